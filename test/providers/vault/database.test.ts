import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import mysql from 'mysql2/promise';
import { Client } from 'pg';

import type { Grant, Lease } from '../../../src/providers/provider.ts';
import { type DatabaseEngine, mysqlEngine, postgresEngine } from '../../support/database-engine.ts';
import {
  type MySqlInfo,
  type PostgresInfo,
  type PrivateOpenBao,
  server,
  startOpenBao,
} from '../../support/servers.ts';
import { failure, never, type Opened, open } from '../opening.ts';

describe('database credentials of a real OpenBao', () => {
  let bao: PrivateOpenBao;
  let postgres: PostgresInfo;
  let mysql9: MySqlInfo;
  let onPostgres: DatabaseEngine;
  let onMySql: DatabaseEngine;
  const opened: Opened[] = [];

  before(async () => {
    [bao, postgres, mysql9] = await Promise.all([startOpenBao(), server('postgres18'), server('mysql9')]);
    onPostgres = await postgresEngine(bao, postgres);
    onMySql = await mysqlEngine(bao, mysql9);
    await bao.request('PUT', 'sys/policies/acl/database', { policy: may() });
  });
  after(async () => {
    for (const provider of opened) await provider.close(AbortSignal.timeout(2000));
    await bao.stop();
  });

  /** What the page of the provider tells an operator to allow. */
  function may(more = 'path "sys/leases/revoke" { capabilities = ["update"] }'): string {
    return `path "database/creds/*" { capabilities = ["read"] }
path "database/static-creds/*" { capabilities = ["read"] }
path "secret/data/app/*" { capabilities = ["read"] }
${more}`;
  }

  /** A provider that logs in by an AppRole with these settings of its tokens. */
  async function vault(token: object = {}): Promise<Opened> {
    const role = `role-${opened.length}`;
    await bao.write(`auth/approle/role/${role}`, { token_policies: 'database', ...token });
    await bao.write(`auth/approle/role/${role}/role-id`, { role_id: role });
    await bao.write(`auth/approle/role/${role}/custom-secret-id`, { secret_id: `secret-of-${role}` });
    const auth = { method: 'approle', roleId: role, secretId: `secret-of-${role}` };
    const provider = open('vault', { address: bao.address, auth });
    opened.push(provider);
    return provider;
  }

  const login = (path: string) => [`${path}#username`, `${path}#password`] as const;

  async function whoOnPostgres({ secrets: [user, password] }: Grant): Promise<unknown> {
    const { host, port, database } = postgres;
    const client = new Client({
      host,
      port,
      database,
      user: text(user),
      password: text(password),
    });
    await client.connect();
    const { rows } = await client.query('SELECT current_user AS name');
    await client.end();
    return rows[0]?.name;
  }

  async function whoOnMySql({ secrets: [user, password] }: Grant): Promise<unknown> {
    const connection = await mysql.createConnection({
      host: mysql9.host,
      port: mysql9.port,
      user: text(user),
      password: text(password),
      ssl: { rejectUnauthorized: false },
    });
    const [rows] = await connection.query<mysql.RowDataPacket[]>('SELECT user() AS name');
    await connection.end();
    return String(rows[0]?.['name']).split('@')[0];
  }

  const text = (secret: { reveal(): Buffer } | undefined) => secret?.reveal().toString() ?? '';
  const secondsLeft = (end: Date | undefined) => ((end?.getTime() ?? 0) - Date.now()) / 1000;

  function onlyLease({ leases }: Grant): Lease {
    assert.equal(leases?.length, 1);
    return leases[0] as Lease;
  }

  async function leaseAtServer(id: string): Promise<{ ttl: number; last_renewal: string | null }> {
    return ((await bao.write('sys/leases/lookup', { lease_id: id })) as { data: never }).data;
  }

  async function tokens(): Promise<string[]> {
    const { data } = (await bao.request('LIST', 'auth/token/accessors')) as { data: { keys: string[] } };
    return data.keys;
  }

  for (const [what, engine, who] of [
    ['PostgreSQL', () => onPostgres, whoOnPostgres],
    ['MySQL', () => onMySql, whoOnMySql],
  ] as const) {
    it(`makes one user of ${what} for a user name and its password, which can log in`, async () => {
      const role = await engine().dynamic();
      const provider = await vault();
      const grant = await provider.fetch([...login(role.path), `${role.path}#username`], never);
      assert.deepEqual(await role.users(), [text(grant.secrets[0])]);
      assert.equal(await who(grant), text(grant.secrets[0]));
      assert.equal(text(grant.secrets[2]), text(grant.secrets[0]));
      const lease = onlyLease(grant);
      assert.ok(lease.id.startsWith(`${role.path}/`));
      assert.equal(lease.renewable, true);
      assert.ok(Math.abs(secondsLeft(lease.expiresAt) - 3600) < 5);
      assert.equal(grant.expiresAt, undefined, 'a lease says itself when it ends');
    });

    it(`reads a static role of ${what}, says when it was rotated, and when it will be`, async () => {
      const role = await engine().static();
      const provider = await vault();
      const grant = await provider.fetch(login(role.path), never);
      assert.equal(await who(grant), role.username);
      assert.equal(grant.leases, undefined);
      assert.match(grant.version ?? '', /^\d{4}-\d\d-\d\dT/);
      assert.ok(Math.abs(secondsLeft(grant.expiresAt) - 3600) < 5);
      await role.rotate();
      const after = await provider.fetch(login(role.path), never);
      assert.notEqual(after.version, grant.version);
      assert.notEqual(text(after.secrets[1]), text(grant.secrets[1]));
      assert.equal(await who(after), role.username);
      await assert.rejects(who(grant));
    });

    it(`drops the user of ${what} by the time that the lease was revoked, and again is no error`, async () => {
      const role = await engine().dynamic();
      const lease = onlyLease(await (await vault()).fetch(login(role.path), never));
      await lease.revoke(never);
      assert.deepEqual(await role.users(), []);
      await lease.revoke(never);
      const error = await failure(lease.renew(never));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, /it has ended/);
    });
  }

  it('never says that a static role is good for less than a second, also while its rotation is due', async () => {
    const role = await onPostgres.static('5s');
    const provider = await vault();
    const seen = new Map<string, string>();
    let shortest = Infinity;
    for (const end = performance.now() + 20_000; performance.now() < end && seen.size < 2; await sleep(100)) {
      const { version = '', secrets, expiresAt } = await provider.fetch(login(role.path), never);
      shortest = Math.min(shortest, secondsLeft(expiresAt));
      const password = text(secrets[1]);
      assert.equal(seen.get(version) ?? password, password, 'one version is one password');
      seen.set(version, password);
    }
    assert.equal(seen.size, 2, 'it was rotated meanwhile');
    assert.ok(shortest > 0.8 && shortest < 1.05, String(shortest));
  });

  it('renews a lease for its first duration, from now on, and never shortens it', async () => {
    const role = await onPostgres.dynamic({ ttl: '60s', max: '10m' });
    const lease = onlyLease(await (await vault()).fetch(login(role.path), never));
    const first = lease.expiresAt.getTime();
    await sleep(1500);
    const renewed = await lease.renew(never);
    assert.ok(Math.abs(secondsLeft(renewed) - 60) < 1.5);
    assert.ok(renewed.getTime() > first + 1000);
    assert.equal(Math.round(lease.expiresAt.getTime() / 100), Math.round(renewed.getTime() / 100));
    const { ttl, last_renewal } = await leaseAtServer(lease.id);
    assert.ok(ttl > 58);
    assert.notEqual(last_renewal, null);
  });

  it('says so when a lease comes to its longest life, and when it was revoked by somebody else', async () => {
    const role = await onPostgres.dynamic({ ttl: '4s', max: '5s' });
    const provider = await vault();
    const lease = onlyLease(await provider.fetch(login(role.path), never));
    const issuedAt = Date.now();
    await sleep(2000);
    assert.ok((await lease.renew(never)).getTime() < issuedAt + 6000, 'cut by max_ttl');
    await sleep(1000);
    assert.ok(
      (await lease.renew(never)).getTime() < issuedAt + 6000,
      'no longer, though Vault calls it renewed',
    );
    await sleep(3500);
    const error = await failure(lease.renew(never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(
      error.message,
      /lease "database\/creds\/ro-[^"]*": (it|the lease) (has ended|cannot be renewed any further)/,
    );
    assert.deepEqual(await role.users(), []);

    const long = await onPostgres.dynamic();
    const revoked = onlyLease(await provider.fetch(login(long.path), never));
    await bao.write('sys/leases/revoke', { lease_id: revoked.id, sync: true });
    const gone = await failure(revoked.renew(never));
    assert.equal(gone.code, 'PROVIDER_FAILED');
    assert.match(gone.message, /renewing the lease "database\/creds.*the lease has ended \(HTTP 400: /);
    assert.ok(secondsLeft(revoked.expiresAt) <= 0);
    await revoked.revoke(never);
  });

  it('revokes what it was given when it cannot hand it out', async () => {
    const role = await onPostgres.dynamic();
    const provider = await vault();
    const missing = await failure(provider.fetch([`${role.path}#username`, `${role.path}#pasword`], never));
    assert.match(missing.message, /has no field "pasword"/);
    const other = await failure(provider.fetch([...login(role.path), 'secret/app/nothing#x'], never));
    assert.match(other.message, /no secret at "secret\/app\/nothing"/);
    await eventually(async () => assert.deepEqual(await role.users(), []));
    const none = await failure(provider.fetch(login('database/creds/none'), never));
    assert.equal(none.code, 'PROVIDER_FAILED');
    assert.match(
      none.message,
      /reading "database\/creds\/none#username": Vault refused \(HTTP 400: .*unknown role: none/,
    );
  });

  it('keeps the token alive for as long as a lease hangs on it, beyond what the token had at first', async () => {
    const role = await onPostgres.dynamic();
    const provider = await vault({ token_ttl: '2s', token_max_ttl: '1h' });
    const grant = await provider.fetch(login(role.path), never);
    const lease = onlyLease(grant);
    assert.ok(secondsLeft(lease.expiresAt) <= 2, 'the lease is worth no more than its token');
    await sleep(5000);
    assert.equal(await whoOnPostgres(grant), text(grant.secrets[0]));
    assert.ok(secondsLeft(await lease.renew(never)) > 1.5);
    assert.match(provider.logged(), /renewed the token/);
    await lease.revoke(never);
    const renewals = provider.logged().split('renewed the token').length;
    await sleep(2500);
    assert.equal(
      provider.logged().split('renewed the token').length,
      renewals,
      'nothing hangs on it any more',
    );
  });

  it('keeps a periodic token alive in the same way', async () => {
    const role = await onPostgres.dynamic();
    const grant = await (await vault({ token_period: '2s' })).fetch(login(role.path), never);
    await sleep(5000);
    assert.equal(await whoOnPostgres(grant), text(grant.secrets[0]));
  });

  it('replaces a token before it cannot be renewed any more, and gives it up after its last lease', async () => {
    const role = await onPostgres.dynamic();
    const before = await tokens();
    const provider = await vault({ token_ttl: '16s', token_max_ttl: '20s' });
    const first = await provider.fetch(login(role.path), never);
    const endOfFirst = Date.now() + 20_000;
    const [old] = (await tokens()).filter((accessor) => !before.includes(accessor));
    // What is left then is less than half of a life of 16 s, also when the server rounds it to whole seconds, and enough for a slow
    // machine to do the rest.
    await sleep(13_500);
    const lease = onlyLease(first);
    const nearEnd = (await lease.renew(never)).getTime();
    assert.ok(nearEnd <= endOfFirst + 1000, 'the lease says that its end is near');

    const second = await provider.fetch(login(role.path), never);
    assert.ok(
      onlyLease(second).expiresAt.getTime() > endOfFirst + 2000,
      'the new lease hangs on a new token, as it ends after the old one',
    );
    assert.equal(await whoOnPostgres(first), text(first.secrets[0]), 'the old one still works');
    assert.ok((await tokens()).includes(old ?? ''));
    await lease.revoke(never);
    await eventually(async () => assert.ok(!(await tokens()).includes(old ?? '')));
    assert.equal(await whoOnPostgres(second), text(second.secrets[0]));
    assert.deepEqual(await role.users(), [text(second.secrets[0])]);
  });

  it('takes a new batch token in time: it cannot be renewed, and its leases end with it', async () => {
    const role = await onPostgres.dynamic();
    const provider = await vault({ token_type: 'batch', token_ttl: '4s' });
    const first = await provider.fetch(login(role.path), never);
    assert.ok(secondsLeft(onlyLease(first).expiresAt) <= 4);
    await sleep(2500);
    assert.ok(
      secondsLeft(
        await onlyLease(first)
          .renew(never)
          .catch(() => new Date()),
      ) < 2,
    );
    const second = await provider.fetch(login(role.path), never);
    assert.ok(secondsLeft(onlyLease(second).expiresAt) > 2.5);
    assert.equal(await whoOnPostgres(second), text(second.secrets[0]));
    await provider.close(never);
    assert.doesNotMatch(provider.logged(), /not revoked/);
  });

  it('never spends the last use of a token on what would be revoked with it', async () => {
    const role = await onPostgres.dynamic();
    const provider = await vault({ token_num_uses: 3 });
    for (let i = 0; i < 4; i++) {
      const grant = await provider.fetch(login(role.path), never);
      assert.equal(await whoOnPostgres(grant), text(grant.secrets[0]));
    }
  });

  it('goes on after its token was revoked: a new login, once, and the lease is known to be lost', async () => {
    const role = await onPostgres.dynamic();
    const before = await tokens();
    const provider = await vault();
    const lost = onlyLease(await provider.fetch(login(role.path), never));
    const [mine] = (await tokens()).filter((accessor) => !before.includes(accessor));
    await bao.write('auth/token/revoke-accessor', { accessor: mine });
    const error = await failure(lost.renew(never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(error.message, /the lease has ended/);
    const grant = await provider.fetch(login(role.path), never);
    assert.deepEqual(await role.users(), [text(grant.secrets[0])]);
  });

  it('keeps the leases of a token that was replaced because a path is denied to it', async () => {
    const role = await onPostgres.dynamic();
    const provider = await vault({ token_ttl: '2s', token_max_ttl: '1h' });
    const grant = await provider.fetch(login(role.path), never);
    const denied = await failure(provider.fetch(['secret/other#x'], never));
    assert.match(denied.message, /permission denied/);
    assert.equal(provider.logged().split('logged in to Vault').length, 3);
    await sleep(3500);
    assert.equal(await whoOnPostgres(grant), text(grant.secrets[0]));
    assert.ok(secondsLeft(await onlyLease(grant).renew(never)) > 1.5);
    await onlyLease(grant).revoke(never);
    assert.deepEqual(await role.users(), []);
  });

  it('says which rule of the policy is missing when it may not revoke, and lets the token end instead', async () => {
    await bao.request('PUT', 'sys/policies/acl/no-revoke', { policy: may('') });
    const role = await onPostgres.dynamic();
    const provider = await vault({ token_policies: 'no-revoke' });
    const lease = onlyLease(await provider.fetch(login(role.path), never));
    const error = await failure(lease.revoke(never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(
      error.message,
      /revoking the lease ".*": the policy does not allow update on sys\/leases\/revoke/,
    );
    const ids = [lease.id];
    assert.match(
      (await failure(provider.revokeLeases?.(ids, never) ?? Promise.resolve())).message,
      /the policy/,
    );
    await failure(provider.fetch([`${role.path}#none`], never));
    await eventually(async () =>
      assert.match(provider.logged(), /"level":40.*lease not revoked: .*the policy/),
    );
    await provider.close(never);
    await eventually(async () => assert.deepEqual(await role.users(), []));
  });

  it('revokes by their ids what a former process left, also when some are unknown', async () => {
    const role = await onPostgres.dynamic();
    const former = await vault();
    const ids: string[] = [];
    for (let i = 0; i < 12; i++) ids.push(onlyLease(await former.fetch(login(role.path), never)).id);
    assert.equal((await role.users()).length, 12);
    const provider = await vault();
    await provider.revokeLeases?.([...ids, `${role.path}/unknown`, 'no/such/mount/at-all'], never);
    assert.deepEqual(await role.users(), []);
  });

  it('leaves nothing behind when it is closed, though nobody has revoked the leases', async () => {
    const role = await onPostgres.dynamic();
    const provider = await vault();
    await Promise.all(Array.from({ length: 5 }, () => provider.fetch(login(role.path), never)));
    assert.equal((await role.users()).length, 5);
    const startedAt = performance.now();
    await provider.close(AbortSignal.timeout(5000));
    assert.ok(performance.now() - startedAt < 3000);
    await eventually(async () => assert.deepEqual(await role.users(), []));
  });

  it('needs no more than the policy that its page shows, and not the policy "default"', async () => {
    const page = readFileSync(new URL('../../../docs/providers/vault.md', import.meta.url), 'utf8');
    const [, policy = ''] = /```hcl\n([^`]*)```/.exec(page) ?? [];
    const [dynamic, fixed] = [await onPostgres.dynamic(), await onPostgres.static()];
    await bao.write('sys/mounts/pki', { type: 'pki' });
    await bao.write('pki/root/generate/internal', { common_name: 'Test CA' });
    await bao.write('pki/roles/orders', { allow_any_name: true, max_ttl: '1h' });
    const own = policy
      .replace('database/creds/orders', dynamic.path)
      .replace('database/static-creds/orders', fixed.path);
    await bao.request('PUT', 'sys/policies/acl/page', { policy: own });
    const provider = await vault({ token_policies: 'page', token_no_default_policy: true, token_ttl: '2s' });
    await provider.check(never);
    const grant = await provider.fetch(
      [
        ...login(dynamic.path),
        ...login(fixed.path),
        'secret/app/db#password',
        'pki/issue/orders?common_name=a#certificate',
      ],
      never,
    );
    assert.equal(grant.secrets.length, 6);
    await sleep(2500);
    await onlyLease(grant).renew(never);
    await onlyLease(grant).revoke(never);
    assert.deepEqual(await dynamic.users(), []);
    await provider.close(never);
    assert.doesNotMatch(provider.logged(), /"level":[45]0/);
  });

  it('says that Vault failed when the database is out of its reach, and revokes nothing that is not there', async () => {
    await bao.write('database/config/nowhere', {
      plugin_name: 'postgresql-database-plugin',
      connection_url: 'postgresql://{{username}}:{{password}}@127.0.0.1:1/app',
      username: 'admin',
      password: 'none',
      allowed_roles: '*',
      verify_connection: false,
    });
    const create = [`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}'`];
    await bao.write('database/roles/nowhere', { db_name: 'nowhere', creation_statements: create });
    const error = await failure((await vault()).fetch(login('database/creds/nowhere'), never));
    assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
    assert.match(error.message, /reading "database\/creds\/nowhere#username": Vault failed \(HTTP 500: /);
  });
});

async function eventually(attempt: () => Promise<unknown>): Promise<void> {
  for (let left = 300; ; left--) {
    try {
      await attempt();
      return;
    } catch (thrown) {
      if (left === 0) throw thrown;
      await sleep(100);
    }
  }
}
