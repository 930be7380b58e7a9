import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import { decodeFields } from '../../src/connectors/postgres/messages.ts';
import { errorReply } from '../../src/connectors/postgres/replies.ts';
import { errorCodes, PosternError } from '../../src/core/errors.ts';

const page = readFileSync(new URL('../../docs/errors.md', import.meta.url), 'utf8');
const sections = new Map(
  page
    .split(/^## /m)
    .slice(1)
    .map((section): [string, string] => [/^`(\w+)`\n/.exec(section)?.[1] ?? section, section]),
);

describe('docs/errors.md', () => {
  it('has a section for each code, in the order of the code, and for no other', () => {
    assert.deepEqual([...sections.keys()], errorCodes);
  });

  for (const code of errorCodes)
    it(`says what a PostgreSQL client sees of ${code}`, () => {
      const reply = errorReply(new PosternError(code, '...'), '3fa2c1-17');
      const fields = decodeFields(reply.subarray(5));
      const [, told] = /^PostgreSQL: (SQLSTATE `\w{5}`, `[^`]*`)/m.exec(sections.get(code) ?? '') ?? [];
      assert.equal(told, `SQLSTATE \`${fields.get('C')}\`, \`${fields.get('M')}\``);
      assert.ok(page.includes(`\`${fields.get('D')}\``), 'the detail is described at the top');
    });

  it('says more about each than its SQLSTATE', () => {
    for (const [code, section] of sections) assert.ok(section.length > 200, code);
  });
});
