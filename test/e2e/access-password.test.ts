import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';
import mysql2 from 'mysql2/promise';
import { Client } from 'pg';

import { mysqlCli } from '../support/clients/mysql-cli.ts';
import { psql } from '../support/clients/psql.ts';
import { HttpOrigin } from '../support/http-origin.ts';
import { accountOf, upstreamConfig } from '../support/mysql-services.ts';
import { Postern } from '../support/postern.ts';
import { capture } from '../support/servers/process.ts';
import { canary, certificates, withServer } from '../support/servers.ts';
import { towards } from './stage.ts';

/** What applications know; it is no canary of a server's, so that each test looks for it itself. */
const LOCAL = 'l0cal-canary-password';
const access = { username: 'orders', password: { from: 'env', get: 'LOCAL' } };

const folder = await mkdtemp(join(tmpdir(), 'postern-local-'));
after(() => rm(folder, { recursive: true, force: true }));

async function start(
  t: TestContext,
  services: Readonly<Record<string, unknown>>,
  secret: string,
): Promise<Postern> {
  const postern = await Postern.start(JSON.stringify({ version: 2, services }), {
    env: { LOCAL, PASSWORD: secret },
  });
  t.after(async () => {
    const shown = await Promise.all(['/metrics', '/status', '/'].map((path) => postern.admin(path)));
    await postern.stop();
    for (const text of [postern.output, ...shown.map(({ text }) => text)])
      assert.ok(!text.includes(LOCAL), 'the local password is shown');
  });
  return postern;
}

describe('a local password', { timeout: 240_000 }, () => {
  it('is asked of PostgreSQL clients by SCRAM-SHA-256', async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const { server, ca } = await certificates();
    const service = {
      connector: 'postgres',
      access,
      listenTls: { cert: server.cert, key: server.key },
      credentials: { username: 'scram_user', password: { from: 'env', get: 'PASSWORD' } },
      config: towards(postgres),
    };
    const postern = await start(
      t,
      {
        tcp: { ...service, listenOn: 'tcp://127.0.0.1:0' },
        unix: { ...service, listenOn: `unix://${join(folder, '.s.PGSQL.7001')}` },
      },
      canary.postgres,
    );
    const port = postern.port('tcp');
    const ask = async (to: string, password: string, more: NodeJS.ProcessEnv = {}) =>
      await psql(['-At', '-c', 'select current_user', `${to} dbname=app`], {
        env: { PGPASSWORD: password, ...more },
      });
    for (const to of [
      `host=127.0.0.1 port=${port} user=orders sslmode=disable`,
      `host=localhost port=${port} user=orders sslmode=verify-full sslrootcert=${ca} hostaddr=127.0.0.1`,
      `host=${folder} port=7001 user=orders`,
    ]) {
      const { stdout, stderr } = await ask(to, LOCAL);
      assert.equal(stdout, 'scram_user\n', stderr);
    }
    const told: string[] = [];
    for (const [user, password] of [
      ['orders', 'wrong'],
      ['somebody', LOCAL],
    ] as const) {
      const { code, stderr } = await ask(
        `host=127.0.0.1 port=${port} user=${user} sslmode=disable`,
        password,
      );
      assert.equal(code, 2);
      told.push(stderr);
    }
    assert.match(told[0] ?? '', /FATAL: {2}postern: wrong user name or password for service "tcp"/);
    assert.equal(told[0], told[1], 'nobody learns which of them was wrong');
    const bound = await ask(`host=127.0.0.1 port=${port} user=orders channel_binding=require`, LOCAL);
    assert.match(bound.stderr, /channel binding/);
    assert.equal(await postern.metric('postern_refusals_total', { service: 'tcp', reason: 'access' }), 2);

    const config = { host: '127.0.0.1', port, user: 'orders', database: 'app' };
    const client = new Client({ ...config, password: LOCAL });
    await client.connect();
    await client.end();
    const bad = new Client({ ...config, password: 'wrong' });
    bad.on('error', () => {});
    await assert.rejects(bad.connect(), { code: '28P01' });
  });

  it('is asked of MySQL and MariaDB clients by caching_sha2_password', async (t) => {
    const info = await withServer(t, 'mysql9');
    if (!info) return;
    const account = accountOf(info, 'admin');
    const postern = await start(
      t,
      {
        app: {
          connector: 'mysql',
          listenOn: 'tcp://127.0.0.1:0',
          access,
          credentials: { username: account.user, password: { from: 'env', get: 'PASSWORD' } },
          config: await upstreamConfig(info, account),
        },
      },
      account.password,
    );
    const port = postern.port('app');
    for (const client of ['mysql9', 'mariadb11'] as const) {
      const target = { host: '127.0.0.1', port, user: 'orders', database: 'app' };
      const ask = async (user: string, password: string) =>
        await mysqlCli(client, { ...target, user, password }, ['-e', 'select current_user()']);
      const { stdout, stderr } = await ask('orders', LOCAL);
      assert.equal(stdout.trim(), 'admin@%', `${client}: ${stderr}`);
      for (const [user, password] of [
        ['orders', 'wrong'],
        ['somebody', LOCAL],
      ] as const)
        assert.match(
          (await ask(user, password)).stderr,
          /ERROR 1045 \(28000\).*postern: wrong user name or password for service "app"/,
          client,
        );
    }
    const connection = await mysql2.createConnection({
      host: '127.0.0.1',
      port,
      user: 'orders',
      password: LOCAL,
      database: 'app',
    });
    const [rows] = await connection.query('select current_user() as me');
    assert.deepEqual(JSON.parse(JSON.stringify(rows)), [{ me: 'admin@%' }]);
    await connection.end();
    const wrong = { host: '127.0.0.1', port, user: 'orders', password: 'wrong', database: 'app' };
    await assert.rejects(mysql2.createConnection(wrong), { errno: 1045 });
  });

  it('is asked of HTTP clients by Basic or Bearer, and goes no further', async (t) => {
    await using origin = await HttpOrigin.open();
    const url = `http://127.0.0.1:${origin.port}`;
    const common = {
      connector: 'http',
      listenOn: 'tcp://127.0.0.1:0',
      access,
      credentials: { token: { from: 'env', get: 'PASSWORD' } },
    };
    const postern = await start(
      t,
      {
        reverse: {
          ...common,
          config: {
            upstream: url,
            allowPlainHttp: true,
            authenticate: { headers: { 'X-Token': '{{ token }}' } },
          },
        },
        forward: {
          ...common,
          config: {
            match: [`${url}/**`],
            allowPlainHttp: true,
            authenticate: { headers: { 'X-Token': '{{ token }}' } },
          },
        },
      },
      'upstream-token',
    );
    const curl = async (...args: string[]) => (await capture('curl', ['-sS', '-i', ...args])).stdout;
    const own = `http://127.0.0.1:${postern.port('reverse')}/a`;
    const proxy = ['-x', `http://127.0.0.1:${postern.port('forward')}`, '--noproxy', ''];

    assert.match(await curl('-u', `orders:${LOCAL}`, own), /^HTTP\/1.1 200/);
    assert.match(await curl('-H', `Authorization: Bearer ${LOCAL}`, own), /^HTTP\/1.1 200/);
    assert.match(
      await curl(...proxy, '-U', `orders:${LOCAL}`, '-H', 'Authorization: Bearer of-the-client', `${url}/b`),
      /^HTTP\/1.1 200/,
    );
    assert.deepEqual(
      origin.received.map(({ authorization, headers }) => [
        authorization,
        headers['proxy-authorization'],
        headers['x-token'],
      ]),
      [
        [undefined, undefined, 'upstream-token'],
        [undefined, undefined, 'upstream-token'],
        ['Bearer of-the-client', undefined, 'upstream-token'],
      ],
    );

    assert.match(
      await curl(own),
      /^HTTP\/1.1 401 Unauthorized\r\n[^]*WWW-Authenticate: Basic realm="postern"/,
    );
    assert.match(await curl('-u', 'orders:wrong', own), /^HTTP\/1.1 401 [^]*Postern-Error: ACCESS_DENIED/);
    assert.match(await curl('-u', `somebody:${LOCAL}`, own), /^HTTP\/1.1 401/);
    assert.match(await curl(...proxy, `${url}/b`), /^HTTP\/1.1 407 [^]*Proxy-Authenticate: Basic/);
    // What is for the server proves nothing to a proxy, and the other way round.
    assert.match(await curl(...proxy, '-u', `orders:${LOCAL}`, `${url}/b`), /^HTTP\/1.1 407/);
    assert.match(await curl('-H', `Proxy-Authorization: Bearer ${LOCAL}`, own), /^HTTP\/1.1 401/);
    assert.match(
      await curl('-H', `Authorization: Bearer ${LOCAL}`, '-H', 'Authorization: Bearer x', own),
      /^HTTP\/1.1 40[01]/,
    );
    assert.equal(origin.received.length, 3);

    // Whoever guesses is stopped, and with it whoever shares its user.
    for (let i = 0; i < 12; i += 1) await curl('-u', `orders:guess-${i}`, own);
    assert.match(await curl('-u', `orders:${LOCAL}`, own), /^HTTP\/1.1 429 [^]*Postern-Error: RATE_LIMITED/);
    assert.equal(origin.received.length, 3);
  });
});
