import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';

import { AtomicWriter } from '../config/cluster/atomic-writer.ts';
import { Postern } from '../support/postern.ts';
import { canary, withServer } from '../support/servers.ts';
import { application, ask, eventually, towards } from './stage.ts';

const DONE = 'configuration reloaded';
const FAILED = 'configuration not reloaded, the old one stays in force';

/** A mounted ConfigMap, and Postern that watches it beside a file of its own, which is empty. */
async function scene(t: TestContext) {
  const postgres = await withServer(t, 'postgres18');
  if (!postgres) return undefined;
  const folder = await mkdtemp(join(tmpdir(), 'postern-configmap-'));
  t.after(() => rm(folder, { recursive: true }));
  const mount = new AtomicWriter(folder);
  const text = (maxConnections: number) =>
    JSON.stringify({
      version: 2,
      services: {
        db: {
          connector: 'postgres',
          listenOn: 'tcp://127.0.0.1:0',
          credentials: { username: 'scram_user', password: { from: 'env', get: 'PASSWORD' } },
          config: towards(postgres),
          limits: { maxConnections },
        },
      },
    });
  await mount.write({ 'postern.yaml': text(100) });
  const postern = await Postern.start('version: 2\n', {
    env: { PASSWORD: canary.postgres, POSTERN_WATCH: 'true' },
    args: ['-f', folder],
  });
  const count = (message: string) => postern.lines.filter(({ msg }) => msg === message).length;
  return { folder, mount, text, postern, count };
}

describe('a mounted ConfigMap that is watched', { timeout: 120_000 }, () => {
  it('is reloaded for each of 100 swaps, while sessions live and clients come', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = at.postern;
    const port = postern.port('db');
    const session = await application(port);
    let stopped = false;
    let served = 0;
    const crowd = Array.from({ length: 2 }, async () => {
      while (!stopped) {
        assert.equal((await ask(port, 'select session_user as who'))['who'], 'scram_user');
        served += 1;
      }
    });
    const all = Promise.all(crowd);
    all.catch(() => {});
    for (let turn = 1; turn <= 100; turn++) {
      await at.mount.write({ 'postern.yaml': at.text(100 + turn) });
      await Promise.race([all, eventually(`swap ${turn}`, () => at.count(DONE) === turn)]);
    }
    stopped = true;
    await all;
    assert.equal((await session.query('select 1')).rowCount, 1);
    await session.end();
    assert.equal(
      await postern.metric('postern_sessions_limit', { service: 'db' }),
      200,
      'the last is in force',
    );
    assert.equal(at.count(DONE), 100, 'once each');
    assert.equal(at.count(FAILED), 0);
    assert.equal(postern.lines.filter(({ msg }) => msg === 'listening').length, 1);
    t.diagnostic(`100 swaps, ${served} connections, 0 failures`);
  });

  it('says once what is wrong with a bad one, keeps the old, and takes the next', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = at.postern;
    await at.mount.write({ 'postern.yaml': at.text(100).slice(0, 90) });
    await eventually('the refusal', () => at.count(FAILED) === 1);
    assert.equal((await ask(postern.port('db'), 'select session_user as who'))['who'], 'scram_user');
    // The same again in the same place, as an editor writes it: there is nothing new to say.
    await writeFile(join(at.folder, '..data', 'postern.yaml'), at.text(100).slice(0, 90));
    await at.mount.write({ 'postern.yaml': at.text(101) });
    await eventually('the next', () => at.count(DONE) === 1);
    assert.equal(at.count(FAILED), 1);
  });
});
