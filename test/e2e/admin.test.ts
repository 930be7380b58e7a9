import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import type { Status } from '../../src/admin/status.ts';
import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import { canary, server } from '../support/servers.ts';
import { until } from '../support/session.ts';

describe('the admin listener of the running program', { timeout: 120_000 }, () => {
  it('tells what happens, shows no secret anywhere, and ends the program when it is told to', async () => {
    const postgres = await server('postgres18');
    await using postern = await Postern.start(
      `version: 2
admin: { quit: true, hosts: [postern.internal] }
services:
  orders:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: scram_user, password: { from: env, get: PASSWORD } }
    config: { host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
  wrong:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: scram_user, password: { from: env, get: WRONG } }
    config: { host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
`,
      { env: { PASSWORD: canary.postgres, WRONG: canary.mysql } },
    );
    const to = (name: string) =>
      `host=127.0.0.1 port=${postern.port(name)} user=me dbname=app sslmode=disable`;
    const long = psql([to('orders'), '-c', 'SELECT pg_sleep(3)']);
    const status = async () => JSON.parse((await postern.admin('/status')).text) as Status;
    const of = async (name: string) => (await status()).services.find((service) => service.name === name);

    // A login counts when it is done, not when its session is over.
    await until('the login', async () => (await of('orders'))?.logins?.ok === 1);
    await psql([to('wrong'), '-c', 'SELECT 1']);
    await until('the failure', async () => (await of('wrong'))?.logins?.failed === 1);
    assert.equal((await of('wrong'))?.lastError?.code, 'UPSTREAM_REJECTED');
    await long;
    await until('the end', async () => (await of('orders'))?.sessions.active === 0);
    const orders = await of('orders');
    assert.ok((orders?.logins?.milliseconds?.p50 ?? 0) > 0);
    assert.ok((orders?.bytes.fromUpstream ?? 0) > 0);
    const { state, providers, process: used } = await status();
    assert.equal(state, 'serving');
    assert.deepEqual(
      providers.map(({ name, up }) => [name, up]),
      [
        ['literal', true],
        ['env', true],
      ],
    );
    assert.ok(used.residentBytes > 0);

    for (const path of [
      '/',
      '/?parts',
      '/status',
      '/metrics',
      '/readyz?verbose',
      '/readyz?verbose&format=json',
    ]) {
      const { status: code, text } = await postern.admin(path);
      assert.equal(code, 200, path);
      for (const secret of Object.values(canary)) assert.ok(!text.includes(secret), path);
    }

    const quit = (headers: Record<string, string>) =>
      fetch(`${postern.adminUrl}/quit`, { method: 'POST', headers });
    assert.equal((await quit({ 'content-type': 'text/plain' })).status, 403);
    assert.equal((await quit({ 'x-postern': 'quit' })).status, 202);
    assert.deepEqual(await postern.exited(), { code: 0, signal: null });
  });
});
