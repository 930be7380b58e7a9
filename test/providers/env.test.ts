import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { providers } from '../support/plugins.ts';
import { failure, never, open, texts } from './opening.ts';

describe('the provider "env"', () => {
  it('gives the value of a variable, an empty one too', async () => {
    assert.deepEqual(await texts(open('env', {}, { A: 'pässword', B: '' }), 'B', 'A'), ['', 'pässword']);
  });

  it('reads the file that NAME_FILE names, without its line end, when NAME is not set', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'postern-env-'));
    try {
      const path = join(folder, 'password');
      writeFileSync(path, 'from-file\n');
      assert.deepEqual(await texts(open('env', {}, { A_FILE: path }), 'A'), ['from-file']);
      assert.deepEqual(await texts(open('env', {}, { A: 'itself', A_FILE: path }), 'A'), ['itself']);
      const error = await failure(open('env', {}, { A_FILE: folder }).fetch(['A'], never));
      assert.match(error.message, /A_FILE: ".*" is a folder/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('names the variable that is missing', async () => {
    const error = await failure(open('env').fetch(['DB_PASSWORD'], never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(error.message, /neither DB_PASSWORD nor DB_PASSWORD_FILE is set/);
    assert.equal((await failure(open('env').fetch(['constructor'], never))).code, 'PROVIDER_FAILED');
  });

  it('says what is wrong with a reference before it is used', () => {
    assert.equal(providers['env']?.checkReference('DB_PASSWORD'), undefined);
    assert.match(providers['env']?.checkReference('') ?? '', /missing/);
    assert.match(providers['env']?.checkReference('A=b') ?? '', /"="/);
  });
});
