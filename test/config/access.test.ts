import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

import { type Reading, readConfig } from '../../src/config/load.ts';

const folder = await mkdtemp(join(tmpdir(), 'postern-access-config-'));
after(() => rm(folder, { recursive: true }));

async function read(service: Record<string, unknown>, top: Record<string, unknown> = {}): Promise<Reading> {
  const app = {
    connector: 'postgres',
    listenOn: 'tcp://127.0.0.1:5432',
    credentials: { username: 'x' },
    config: { host: 'db.internal' },
    ...service,
  };
  await writeFile(join(folder, 'postern.yaml'), JSON.stringify({ version: 2, services: { app }, ...top }));
  return await readConfig(['postern.yaml'], { folder, environment: {} });
}

describe('`access` of a configuration', () => {
  it("of a service stands in place of the file's, also when it is empty", async () => {
    const top = { access: { uids: [1] } };
    const accessOf = ({ config }: Reading) => config?.services[0]?.access;
    assert.deepEqual(accessOf(await read({}, top))?.uids, [1]);
    assert.deepEqual(accessOf(await read({ access: { uids: ['root'] } }, top))?.uids, ['root']);
    assert.equal(accessOf(await read({ access: {} }, top))?.uids, undefined);
    assert.equal(accessOf(await read({})), undefined);
  });

  it('makes another service of one whose access has changed', async () => {
    const before = (await read({})).config?.services[0]?.fingerprint;
    const afterwards = (await read({}, { access: { uids: [1] } })).config?.services[0]?.fingerprint;
    assert.ok(before);
    assert.notEqual(before, afterwards);
  });

  it('is refused where it could not hold', async () => {
    const { problems } = await read({ access: { gids: [1] } });
    assert.match(problems[0]?.message ?? '', /cannot be asked of TCP clients/);
    for (const access of [
      { uids: [] },
      { uid: [1] },
      { executables: ['psql'] },
      { username: 'x' },
      { uids: [-1] },
    ])
      assert.ok((await read({ access })).problems.length > 0, JSON.stringify(access));
  });

  it('shows no password that is written into the file', async () => {
    const reading = await read({ access: { password: 'hunter2-hunter2' } });
    assert.ok(reading.config);
    assert.ok(!JSON.stringify([...reading.config.services]).includes('hunter2'));
    const wrong = await read({ access: { password: ['hunter2-hunter2'] } });
    assert.ok(wrong.problems.length > 0);
    assert.ok(!JSON.stringify(wrong.problems).includes('hunter2'));
  });

  it('ends the warning of a port that is open to other machines', async () => {
    const listenOn = 'tcp://0.0.0.0:5432';
    const { warnings } = await read({ listenOn, exposed: true });
    assert.match(warnings[0]?.message ?? '', /access: \{ password: /);
    const guarded = await read({ listenOn, exposed: true, access: { password: 'hunter2-hunter2' } });
    assert.deepEqual(guarded.warnings, []);
  });
});
