import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { configurationPage, pageFile } from '../../scripts/docs.ts';
import { readConfig } from '../../src/config/load.ts';
import { lines } from './files.ts';

const examples = fileURLToPath(new URL('../../examples/', import.meta.url));

describe('docs/configuration.md', () => {
  it('is what scripts/docs.ts writes from the schemas', () => {
    assert.equal(readFileSync(pageFile, 'utf8'), configurationPage(), 'stale: run `node scripts/docs.ts`');
  });

  it('has a sentence for every key', () => {
    const rows = configurationPage().match(/^\| `[\w.]+` \|[^|]*\|[^|]*\| {2}\|$/gm);
    assert.deepEqual(rows?.filter((row) => !row.includes('| `[')) ?? [], []);
  });
});

describe('an example', () => {
  for (const name of readdirSync(examples))
    it(`loads: ${name}`, async () => {
      const { config, problems, warnings } = await readConfig([name], { folder: examples, environment: {} });
      assert.deepEqual(lines(problems), []);
      assert.ok(config && config.services.length > 0);
      if (!name.startsWith('secretless')) assert.deepEqual(lines(warnings), []);
    });
});
