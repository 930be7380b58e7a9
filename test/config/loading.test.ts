import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import { capture } from '../support/servers/process.ts';

/** Reads a configuration in a process of its own and prints which files of `src` that took. */
const program = `
  import { registerHooks } from 'node:module';
  const files = [];
  registerHooks({
    load(url, context, next) {
      const file = /\\/src\\/(.*)$/.exec(url)?.[1];
      if (file) files.push(file);
      return next(url, context);
    },
  });
  const { readConfig } = await import(${JSON.stringify(new URL('../../src/config/load.ts', import.meta.url).href)});
  const { problems } = await readConfig([process.argv[1]], { environment: {} });
  console.log(JSON.stringify({ problems, files }));
`;

describe('reading a configuration', () => {
  let folder = '';
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'postern-loading-'));
  });
  after(() => rm(folder, { recursive: true, force: true }));

  async function loadedBy(yaml: string): Promise<string[]> {
    const path = join(folder, 'postern.yaml');
    await writeFile(path, yaml);
    const { code, stdout, stderr } = await capture(
      process.execPath,
      ['--input-type=module', '-e', program, path],
      {
        timeout: 60_000,
      },
    );
    assert.equal(code, 0, stderr);
    const { problems, files } = JSON.parse(stdout) as { problems: unknown[]; files: string[] };
    assert.deepEqual(problems, []);
    return files;
  }

  it('loads the connectors and providers that it names, and no other', async () => {
    const files = await loadedBy(`version: 2
services:
  db:
    connector: postgres
    listenOn: tcp://127.0.0.1:5432
    credentials: { username: app, password: { from: env, get: DB_PASSWORD } }
    config: { host: db.internal }
`);
    for (const needed of ['connectors/postgres/index.ts', 'providers/env.ts', 'providers/literal.ts'])
      assert.ok(files.includes(needed), needed);
    const others = /^connectors\/(mysql|http)\/|^providers\/(vault|aws|gcp|azure|kubernetes|conjur|local)\//;
    assert.deepEqual(
      files.filter((file) => others.test(file)),
      [],
    );
  });

  it('loads a provider that is described under `providers:`, and the connector behind an old name', async () => {
    const files = await loadedBy(`version: 2
providers:
  store: { kind: vault, address: 'https://vault.internal:8200', auth: { method: token, tokenEnv: T } }
services:
  db:
    protocol: mysql
    listenOn: tcp://127.0.0.1:3306
    credentials: { username: { from: store, get: 'secret/db#u' }, password: { from: store, get: 'secret/db#p' } }
    config: { host: db.internal }
`);
    for (const needed of ['connectors/mysql/index.ts', 'providers/vault/index.ts'])
      assert.ok(files.includes(needed), needed);
    assert.ok(!files.includes('connectors/postgres/index.ts'));
  });
});
