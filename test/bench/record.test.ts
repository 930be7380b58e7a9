import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, it } from 'node:test';

import { sections } from '../../bench/contest.ts';
import { record } from '../../bench/record.ts';

const page = new URL('../../docs/performance.md', import.meta.url);

describe('the record of a run', () => {
  it('takes the place of what is between the markers of its section, and of nothing else', () => {
    const before =
      'a\n<!-- bench:one -->\nold\n<!-- bench:end -->\nb\n<!-- bench:two -->\nkept\n<!-- bench:end -->\nc\n';
    const after = record(before, [{ section: 'one', text: '\nnew $& $1\n' }]);
    assert.equal(
      after,
      'a\n<!-- bench:one -->\n\nnew $& $1\n\n<!-- bench:end -->\nb\n<!-- bench:two -->\nkept\n<!-- bench:end -->\nc\n',
    );
    assert.equal(record(after, [{ section: 'one', text: 'new $& $1' }]), after);
  });

  it('refuses a page without the markers', () => {
    assert.throws(() => record('<!-- bench:one -->\n', [{ section: 'one', text: '' }]), /no markers for one/);
    assert.throws(() => record('', [{ section: 'two', text: '' }]), /no markers for two/);
  });

  it('finds each section in docs/performance.md, and none within another', async () => {
    const text = await readFile(page, 'utf8');
    const marks = [...text.matchAll(/<!-- bench:(\w+) -->/g)].map(([, name]) => name);
    assert.equal(marks.length, 2 * sections.length);
    assert.deepEqual(new Set(marks), new Set([...sections, 'end']));
    assert.ok(marks.every((name, i) => (name === 'end') === (i % 2 === 1)));
    const recorded = record(
      text,
      sections.map((section) => ({ section, text: `tables of ${section}` })),
    );
    for (const section of sections) assert.match(recorded, new RegExp(`^tables of ${section}$`, 'm'));
  });
});
