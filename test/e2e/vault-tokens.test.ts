import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import mysql from 'mysql2/promise';

import { type DatabaseRole, mysqlEngine, postgresEngine } from '../support/database-engine.ts';
import { Postern } from '../support/postern.ts';
import {
  type MySqlInfo,
  type PostgresInfo,
  type PrivateOpenBao,
  server,
  startOpenBao,
} from '../support/servers.ts';
import { ask, configuration, environment, eventually, shared, towards } from './stage.ts';

let bao: PrivateOpenBao | undefined;
const folder = mkdtempSync(join(tmpdir(), 'postern-tokens-'));
after(async () => {
  await bao?.stop();
  rmSync(folder, { recursive: true, force: true });
});

interface Scene {
  readonly bao: PrivateOpenBao;
  readonly postgres: PostgresInfo;
  readonly mysql9: MySqlInfo;
}

const scene = shared(async (): Promise<Scene> => {
  const [postgres, mysql9] = [await server('postgres18'), await server('mysql9')];
  bao = await startOpenBao();
  await bao.request('PUT', 'sys/policies/acl/tokens', {
    policy: `path "database/creds/*" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }`,
  });
  return { bao, postgres, mysql9 };
});

interface Running {
  readonly postern: Postern;
  readonly roles: readonly DatabaseRole[];
  /** Connects to both services, and says as whom to MySQL: PostgreSQL does not know the name of a user dropped meanwhile. */
  readonly connect: () => Promise<string>;
}

let runs = 0;

/** A service for PostgreSQL and one for MySQL, whose users the store makes, and a login with these settings of its tokens. */
async function running(at: Scene, token: object, lifetime: { ttl: string; max: string }): Promise<Running> {
  runs += 1;
  const own = { address: at.bao.address, roleId: `tokens-${runs}`, secretId: `secret-of-tokens-${runs}` };
  await at.bao.write(`auth/approle/role/${own.roleId}`, { token_policies: 'tokens', ...token });
  await at.bao.write(`auth/approle/role/${own.roleId}/role-id`, { role_id: own.roleId });
  await at.bao.write(`auth/approle/role/${own.roleId}/custom-secret-id`, { secret_id: own.secretId });
  const onPostgres = await (await postgresEngine(at.bao, at.postgres)).dynamic(lifetime);
  const onMySql = await (await mysqlEngine(at.bao, at.mysql9)).dynamic(lifetime);
  const login = ({ path }: DatabaseRole) => ({
    username: { from: 'bao', get: `${path}#username` },
    password: { from: 'bao', get: `${path}#password` },
  });
  const upstream = { host: 'localhost', port: at.mysql9.port, tls: { ca: at.mysql9.ca } };
  const services = {
    pg: { credentials: login(onPostgres), config: towards(at.postgres) },
    my: { connector: 'mysql', credentials: login(onMySql), config: upstream },
  };
  const state = join(folder, String(runs));
  const postern = await Postern.start(configuration(own, services, { stateFolder: state }), {
    env: environment(own),
  });
  const connect = async () => {
    await ask(postern.port('pg'), 'select 1');
    const client = await mysql.createConnection({
      host: '127.0.0.1',
      port: postern.port('my'),
      user: 'anybody',
    });
    const [rows] = await client.query<mysql.RowDataPacket[]>('select substring_index(user(), "@", 1) as who');
    await client.end();
    return String(rows[0]?.['who']);
  };
  return { postern, roles: [onPostgres, onMySql], connect };
}

async function users({ roles }: Running): Promise<number> {
  return (await Promise.all(roles.map((role) => role.users()))).flat().length;
}

/** Tokens that the login of the last run has made and that are still good. */
async function tokensOf(at: Scene): Promise<string[]> {
  const { data } = (await at.bao.request('LIST', 'auth/token/accessors')) as { data: { keys: string[] } };
  const found: string[] = [];
  for (const accessor of data.keys) {
    try {
      const { data: token } = (await at.bao.write('auth/token/lookup-accessor', { accessor })) as {
        data: { path: string; meta: { role_name?: string } | null };
      };
      if (token.meta?.role_name === `tokens-${runs}`) found.push(accessor);
    } catch {
      // It ended between the two questions.
    }
  }
  return found;
}

/** Connects again and again until `time` is over; all must be served. */
async function connecting(
  { connect }: Running,
  time: number,
): Promise<{ connections: number; names: Set<string> }> {
  const names = new Set<string>();
  let connections = 0;
  for (const end = performance.now() + time; performance.now() < end; await sleep(100)) {
    names.add(await connect());
    connections += 2;
  }
  return { connections, names };
}

describe('dynamic users of PostgreSQL and MySQL, while applications come and go', {
  timeout: 300_000,
}, () => {
  for (const [what, token] of [
    ['that live shorter than the leases', { token_ttl: '3s', token_max_ttl: '8s' }],
    ['that cannot be renewed (batch)', { token_type: 'batch', token_ttl: '5s' }],
    ['that are good for three requests', { token_num_uses: 3 }],
  ] as const) {
    it(`are there for every connection under tokens ${what}, and nothing is left at the end`, async (t) => {
      const at = await scene(t);
      if (!at) return;
      const lifetime = 'token_num_uses' in token ? { ttl: '4s', max: '10s' } : { ttl: '10m', max: '1h' };
      const run = await running(at, token, lifetime);
      await using postern = run.postern;
      const { connections, names } = await connecting(run, 15_000);
      const logins = postern.lines.filter(({ msg }) => msg === 'logged in to Vault').length;
      t.diagnostic(`${connections} connections, 0 refused; ${logins} logins, ${names.size} users`);
      assert.ok(names.size >= 2, 'they were replaced');
      assert.ok(logins >= 3, 'and the tokens too');
      assert.equal(await postern.stop(), 0);
      await eventually('the users are gone', async () => (await users(run)) === 0);
      assert.deepEqual(await tokensOf(at), []);
      assert.ok(!postern.output.includes('secret-of-tokens'));
    });
  }

  it('are there for every connection while an operator revokes tokens and leases and seals the store for a second', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const run = await running(at, { token_ttl: '30s' }, { ttl: '30s', max: '1h' });
    await using postern = run.postern;
    await run.connect();
    // Leased credentials that are rejected are replaced every five seconds at most: each is a user in the database.
    const operator = async () => {
      await sleep(1500);
      for (const accessor of await tokensOf(at)) {
        await at.bao.write('auth/token/revoke-accessor', { accessor });
      }
      await sleep(6000);
      for (const role of run.roles) await at.bao.request('PUT', `sys/leases/revoke-prefix/${role.path}`);
      await sleep(2000);
      await at.bao.seal();
      await sleep(1000);
      await at.bao.unseal();
      return await tokensOf(at);
    };
    const [{ connections, names }, tokens] = await Promise.all([connecting(run, 13_000), operator()]);
    t.diagnostic(`${connections} connections, 0 refused; ${names.size} users`);
    assert.equal(names.size, 3, 'each revocation has made a new user');
    assert.equal(tokens.length, 1);
    assert.equal(await postern.stop(), 0);
    await eventually('the users are gone', async () => (await users(run)) === 0);
    assert.deepEqual(await tokensOf(at), []);
  });
});
