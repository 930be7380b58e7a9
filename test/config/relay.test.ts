import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import type { Config } from '../../src/config/config.ts';
import { type LoadContext, loadConfig } from '../../src/config/load.ts';

async function load(relay: string, context: LoadContext): Promise<Config> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-relay-'));
  try {
    const file = join(folder, 'postern.yaml');
    await writeFile(
      file,
      `version: 2
services:
  db:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: somebody }
    config: { host: db.internal }
${relay}`,
    );
    return await loadConfig([file], context);
  } finally {
    await rm(folder, { recursive: true });
  }
}

describe('relay: of the configuration', () => {
  it('takes the fastest engine there is, unless somebody says otherwise: the flag over the variable over the file', async () => {
    const file = 'relay: { engine: native, dedicatedSessions: 8 }\n';
    const environment = { POSTERN_RELAY: 'auto' };
    const engineOf = async (text: string, context: LoadContext) => (await load(text, context)).relay;
    assert.deepEqual(await engineOf('', { environment: {} }), { engine: 'auto', dedicatedSessions: 32 });
    assert.deepEqual(await engineOf(file, { environment: {} }), { engine: 'native', dedicatedSessions: 8 });
    assert.deepEqual(await engineOf(file, { environment }), { engine: 'auto', dedicatedSessions: 8 });
    const overrides = { relay: 'typescript' };
    assert.deepEqual(await engineOf(file, { environment, overrides }), {
      engine: 'typescript',
      dedicatedSessions: 8,
    });
  });

  it('knows no other engines', async () => {
    await assert.rejects(load('relay: { engine: rust }\n', { environment: {} }), /relay\.engine/);
    await assert.rejects(load('', { environment: { POSTERN_RELAY: 'rust' } }), /POSTERN_RELAY/);
    await assert.rejects(
      load('relay: { dedicatedSessions: -1 }\n', { environment: {} }),
      /dedicatedSessions/,
    );
  });
});
