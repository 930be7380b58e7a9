import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import mysql from 'mysql2/promise';

import {
  type DatabaseEngine,
  type DatabaseRole,
  mysqlEngine,
  postgresEngine,
} from '../support/database-engine.ts';
import { Postern } from '../support/postern.ts';
import { type PostgresInfo, type PrivateOpenBao, server, startOpenBao } from '../support/servers.ts';
import {
  application,
  ask,
  configuration,
  environment,
  eventually,
  type ServiceOptions,
  shared,
  towards,
} from './stage.ts';

const CRASHES = Number(process.env['POSTERN_TEST_CRASHES'] ?? 20);
const FIRST_CONNECTIONS = 100;

let bao: PrivateOpenBao | undefined;
const folders: string[] = [];
after(async () => {
  await bao?.stop();
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

interface Scene {
  readonly bao: PrivateOpenBao;
  readonly postgres: PostgresInfo;
  readonly onPostgres: DatabaseEngine;
  readonly onMySql: DatabaseEngine;
  readonly mysql: Readonly<Record<string, unknown>>;
}

const scene = shared(async (): Promise<Scene> => {
  const [postgres, mysql9] = [await server('postgres18'), await server('mysql9')];
  bao = await startOpenBao();
  const [onPostgres, onMySql] = [await postgresEngine(bao, postgres), await mysqlEngine(bao, mysql9)];
  await bao.request('PUT', 'sys/policies/acl/leases', {
    policy: `path "database/creds/*" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }`,
  });
  await bao.write('auth/approle/role/leases', { token_policies: 'leases' });
  await bao.write('auth/approle/role/leases/role-id', { role_id: 'leases' });
  await bao.write('auth/approle/role/leases/custom-secret-id', { secret_id: 'secret-of-leases' });
  return {
    bao,
    postgres,
    onPostgres,
    onMySql,
    mysql: { host: 'localhost', port: mysql9.port, tls: { ca: mysql9.ca } },
  };
});

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'postern-state-'));
  folders.push(folder);
  return join(folder, 'state');
}

const login = ({ path }: DatabaseRole) => ({
  username: { from: 'bao', get: `${path}#username` },
  password: { from: 'bao', get: `${path}#password` },
});

/** The program with one service for a role of the engine. */
async function brokering(
  at: Scene,
  service: ServiceOptions,
  { folder = newFolder(), cache = {} }: { readonly folder?: string; readonly cache?: object } = {},
): Promise<Postern> {
  const own = { address: at.bao.address, roleId: 'leases', secretId: 'secret-of-leases' };
  return await Postern.start(configuration(own, { db: service }, { stateFolder: folder, cache }), {
    env: environment(own),
  });
}

describe('a leased credential', { timeout: 300_000 }, () => {
  it('is one for a hundred clients who connect at once, and is gone from the database after SIGTERM', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const role = await at.onMySql.dynamic();
    await using postern = await brokering(at, {
      connector: 'mysql',
      credentials: login(role),
      config: at.mysql,
    });
    const clients = await Promise.all(
      Array.from({ length: FIRST_CONNECTIONS }, () =>
        mysql.createConnection({
          host: '127.0.0.1',
          port: postern.port('db'),
          user: 'anybody',
          database: 'app',
        }),
      ),
    );
    const users = await role.users();
    assert.equal(users.length, 1, 'users in the database');
    const names = await Promise.all(
      clients.map(async (client) => (await client.query('select substring_index(user(), "@", 1) as who'))[0]),
    );
    assert.deepEqual(
      [...new Set(names.map((rows) => JSON.stringify(rows)))],
      [JSON.stringify([{ who: users[0] }])],
    );
    const asked = await postern.metric('postern_provider_requests_total', { provider: 'bao', outcome: 'ok' });
    assert.equal(asked, 1);
    const { text } = await postern.admin('/readyz?verbose');
    assert.match(text, /^service db: lease database\/creds\/\S+ of bao: \d+ s left, 100 sessions$/m);
    t.diagnostic(`${clients.length} first connections at once: ${asked} question, ${users.length} user`);
    for (const client of clients) client.destroy();
    const line = await postern.logged(({ msg, lease }) => msg === 'session ended' && lease !== undefined);
    assert.match(String(line['lease']), /^database\/creds\//);
    assert.equal(await postern.stop(), 0);
    assert.deepEqual(await role.users(), []);
  });

  it('is noted before it is used, by its id and for nobody else to read, and struck out when it is revoked', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const folder = newFolder();
    const role = await at.onPostgres.dynamic();
    await using postern = await brokering(
      at,
      { credentials: login(role), config: towards(at.postgres) },
      { folder },
    );
    const { who } = await ask(postern.port('db'), 'select session_user as who');
    const [name = '', ...others] = readdirSync(folder);
    assert.deepEqual(others, []);
    const text = readFileSync(join(folder, name), 'utf8');
    assert.match(text, /"provider": "bao"/);
    assert.ok(text.includes(role.path));
    assert.ok(!text.includes(String(who)), 'the name of the user is in the journal');
    assert.equal(statSync(join(folder, name)).mode & 0o777, 0o600);
    assert.equal(statSync(folder).mode & 0o777, 0o700);
    await postern.stop();
    assert.deepEqual(readdirSync(folder), []);
  });

  it('is renewed while a session uses it, and revoked when it has lingered after the last one', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const role = await at.onPostgres.dynamic({ ttl: '3s' });
    await using postern = await brokering(
      at,
      { credentials: login(role), config: towards(at.postgres) },
      { cache: { linger: '1s' } },
    );
    const client = await application(postern.port('db'));
    const [user] = await role.users();
    const renewals = () =>
      postern.metric('postern_lease_operations_total', { operation: 'renew', outcome: 'ok' });
    await eventually('three renewals', async () => (await renewals()) >= 3, 15_000);
    assert.deepEqual(await role.users(), [user], 'the user is still there, after more than its first life');
    assert.deepEqual(await ask(postern.port('db'), 'select session_user as who'), { who: user });
    await client.end();
    await eventually('the revocation', async () => (await role.users()).length === 0);
    const revoked = { operation: 'revoke', outcome: 'ok' };
    assert.equal(await postern.metric('postern_lease_operations_total', revoked), 1);
  });

  it('is replaced before it can be renewed no more, and nobody notices', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const role = await at.onPostgres.dynamic({ ttl: '4s', max: '8s' });
    await using postern = await brokering(at, { credentials: login(role), config: towards(at.postgres) });
    const old = await application(postern.port('db'));
    const users = new Set<unknown>();
    const end = performance.now() + 20_000;
    let connections = 0;
    while (performance.now() < end) {
      users.add((await ask(postern.port('db'), 'select session_user as who'))['who']);
      assert.equal((await old.query('select 1')).rowCount, 1);
      connections += 1;
      await sleep(50);
    }
    t.diagnostic(`${connections} connections over ${users.size} users of 8 s at most, 0 failures`);
    assert.ok(users.size >= 3, `${users.size} users in 20 s`);
    await old.end();
    await postern.stop();
    assert.deepEqual(await role.users(), []);
  });

  it('that an operator revoked costs nobody a connection: the next login has another', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const role = await at.onPostgres.dynamic();
    await using postern = await brokering(at, { credentials: login(role), config: towards(at.postgres) });
    const { who } = await ask(postern.port('db'), 'select session_user as who');
    const live = await application(postern.port('db'));
    await at.bao.request('PUT', `sys/leases/revoke-prefix/${role.path}`);
    assert.deepEqual(await role.users(), []);
    const others = await Promise.all(
      Array.from({ length: 20 }, () => ask(postern.port('db'), 'select session_user as who')),
    );
    const names = new Set(others.map((row) => row['who']));
    assert.equal(names.size, 1);
    assert.ok(!names.has(who));
    assert.equal((await live.query('select 1')).rowCount, 1, 'a session that was there lives on');
    await live.end();
    await postern.stop();
    assert.deepEqual(await role.users(), []);
  });

  it(`of a process that was killed is revoked by the next one (${CRASHES} times)`, async (t) => {
    const at = await scene(t);
    if (!at) return;
    const folder = newFolder();
    const role = await at.onPostgres.dynamic();
    const service = { credentials: login(role), config: towards(at.postgres) };
    let revoked = 0;
    let before: Postern | undefined;
    for (let turn = 0; turn < CRASHES; turn++) {
      const postern = await brokering(at, service, { folder });
      const killed = before;
      if (killed) {
        await postern.logged(({ msg }) => msg === 'revoked the leases of a former process', 10_000);
        revoked += 1;
      }
      assert.deepEqual(await role.users(), [], 'of the process before');
      const client = await application(postern.port('db'));
      assert.equal((await role.users()).length, 1);
      postern.signal('SIGKILL');
      await postern.exited();
      await client.end().catch(() => {});
      before = postern;
    }
    const last = await brokering(at, service, { folder });
    await eventually('the last one to be revoked', async () => (await role.users()).length === 0);
    await last.stop();
    assert.deepEqual(readdirSync(folder), []);
    t.diagnostic(`${CRASHES} crashes, ${revoked + 1} leases revoked by the next process, 0 left`);
  });
});
