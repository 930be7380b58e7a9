import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import { childEnvironment } from '../../src/cli/child-environment.ts';
import { loadConfig } from '../../src/config/load.ts';
import type { Address } from '../../src/core/address.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-child-'));
});
after(() => rm(folder, { recursive: true, force: true }));

const database = (connector: string, more: object = {}) => ({
  connector,
  listenOn: 'tcp://127.0.0.1:0',
  credentials: {
    username: { from: 'env', get: 'DB_USER' },
    password: { from: 'vault', get: 'secret/db#password' },
  },
  config: { host: 'db.example', ...more },
});
const proxy = {
  connector: 'http',
  listenOn: 'tcp://127.0.0.1:0',
  credentials: { token: 'x' },
  config: { match: ['https://api.example/**'], authenticate: { bearer: 'token' } },
};

/** The environment of a child when the services listen on these addresses, in the order of their names. */
async function environmentFor(
  config: { services: Record<string, object>; providers?: object },
  addresses: readonly Address[],
  given: NodeJS.ProcessEnv = {},
  { keep = [], trust }: { keep?: readonly string[]; trust?: { certificate: string; bundle: string } } = {},
) {
  const path = join(folder, `${Math.random()}.yaml`);
  await writeFile(path, JSON.stringify({ version: 2, ...config }));
  const { services, providers } = await loadConfig([path], { environment: {} });
  const open = services.map((service, i) => ({ config: service, address: addresses[i] as Address }));
  return childEnvironment(given, { services: open, providers, keep, trust });
}

const port = (number: number): Address => ({ kind: 'tcp', host: '127.0.0.1', port: number });

describe('the environment of a child', () => {
  it('names the first PostgreSQL service as libpq wants it, and every service by its name', async () => {
    const { environment } = await environmentFor(
      { services: { 'app-db': database('postgres', { database: 'app' }), '2nd.db': database('pg') } },
      [port(6001), port(6002)],
      { HOME: '/home/me', PGUSER: 'me' },
    );
    assert.deepEqual(environment, {
      HOME: '/home/me',
      APP_DB_HOST: '127.0.0.1',
      APP_DB_PORT: '6001',
      APP_DB_URL: 'postgresql://postern@127.0.0.1:6001/app?sslmode=disable',
      _2ND_DB_HOST: '127.0.0.1',
      _2ND_DB_PORT: '6002',
      _2ND_DB_URL: 'postgresql://postern@127.0.0.1:6002/postgres?sslmode=disable',
      PGHOST: '127.0.0.1',
      PGPORT: '6001',
      PGUSER: 'me',
      PGDATABASE: 'app',
      PGSSLMODE: 'disable',
    });
  });

  it('leads clients of MySQL and PostgreSQL to unix sockets', async () => {
    const { environment } = await environmentFor(
      { services: { db: database('postgres'), orders: database('mysql', { database: 'shop' }) } },
      [
        { kind: 'unix', path: '/run/me/.s.PGSQL.5433' },
        { kind: 'unix', path: '/run/me/mysql-1' },
      ],
      { PGDATABASE: 'mine' },
    );
    const { PGHOST, PGPORT, PGDATABASE, DB_URL, ORDERS_URL, MYSQL_HOST, MYSQL_UNIX_PORT } = environment;
    assert.deepEqual([PGHOST, PGPORT, PGDATABASE], ['/run/me', '5433', 'mine']);
    assert.equal(DB_URL, 'postgresql://postern@/mine?host=%2Frun%2Fme&port=5433');
    assert.equal(ORDERS_URL, 'mysql://postern@localhost/shop?socket=%2Frun%2Fme%2Fmysql-1');
    assert.deepEqual([MYSQL_HOST, MYSQL_UNIX_PORT], ['localhost', '/run/me/mysql-1']);
  });

  it('makes a forward service the proxy, and keeps the hosts that were reached without one', async () => {
    const { environment } = await environmentFor(
      {
        services: {
          api: proxy,
          github: {
            ...proxy,
            config: { upstream: 'https://api.github.com', authenticate: { bearer: 'token' } },
          },
        },
      },
      [port(8001), { kind: 'tcp', host: '::', port: 8002 }],
      { no_proxy: 'intern.example, *', HTTPS_PROXY: 'http://corporate' },
      { trust: { certificate: '/run/ca.pem', bundle: '/run/bundle.pem' } },
    );
    for (const name of ['http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'API_URL'])
      assert.equal(environment[name], 'http://127.0.0.1:8001', name);
    assert.equal(environment['GITHUB_URL'], 'http://[::1]:8002');
    assert.equal(environment['NO_PROXY'], 'localhost,127.0.0.1,::1,intern.example');
    assert.equal(environment['no_proxy'], environment['NO_PROXY']);
    assert.equal(environment['NODE_USE_ENV_PROXY'], '1');
    assert.equal(environment['NODE_EXTRA_CA_CERTS'], '/run/ca.pem');
    assert.equal(environment['SSL_CERT_FILE'], '/run/bundle.pem');
  });

  it('has no credential of any provider, and nothing that the configuration reads or passes on', async () => {
    const secret = [
      'VAULT_TOKEN',
      'BAO_TOKEN',
      'VAULT_SECRET_ID',
      'VAULT_APP_ROLE_ID',
      'VAULT_CLIENT_KEY',
      'CONJUR_AUTHN_API_KEY',
      'CONJUR_AUTHN_TOKEN',
      'AWS_SECRET_ACCESS_KEY',
      'AWS_SESSION_TOKEN',
      'AZURE_CLIENT_SECRET',
      'GOOGLE_APPLICATION_CREDENTIALS',
      'OP_SERVICE_ACCOUNT_TOKEN',
      'BW_SESSION',
      'POSTERN_CONFIG',
      'PGPASSWORD',
      'PGHOSTADDR',
      'PGSERVICE',
      'MYSQL_PWD',
      // Named in the configuration below.
      'DB_USER',
      'DB_USER_FILE',
      'MY_SECRET_ID',
      'MANAGER_KEY',
    ];
    const harmless = ['VAULT_ADDR', 'VAULT_NAMESPACE', 'AWS_REGION', 'PATH', 'DB_USERNAME', 'PGAPPNAME'];
    const auth = { method: 'approle', roleId: 'app', secretIdEnv: 'MY_SECRET_ID' };
    const { environment, removed } = await environmentFor(
      {
        providers: {
          vault: { kind: 'vault', address: 'https://vault.example', auth },
          manager: { kind: 'exec', command: ['manager', '{}'], passEnv: ['MANAGER_KEY'] },
        },
        services: {
          db: database('postgres'),
          orders: {
            ...database('mysql'),
            credentials: { username: 'x', password: { from: 'manager', get: 'a' } },
          },
        },
      },
      [port(1), port(2)],
      Object.fromEntries([...secret, ...harmless].map((name) => [name, 'canary'])),
    );
    assert.deepEqual([...removed].toSorted(), secret.toSorted());
    const left = Object.keys(environment).filter((name) => environment[name] === 'canary');
    assert.deepEqual(left.toSorted(), harmless.toSorted());
  });

  it('keeps what it is told to keep, by name or by the beginning of one', async () => {
    const { environment, removed } = await environmentFor(
      { services: { db: database('postgres') } },
      [port(1)],
      { AWS_SECRET_ACCESS_KEY: 'a', AWS_SESSION_TOKEN: 'b', VAULT_TOKEN: 'c', BAO_TOKEN: 'd' },
      { keep: ['AWS_*', 'BAO_TOKEN'] },
    );
    assert.deepEqual(removed, ['VAULT_TOKEN']);
    assert.equal(environment['AWS_SESSION_TOKEN'], 'b');
    assert.equal(environment['BAO_TOKEN'], 'd');
  });

  it('is refused where two services would share a variable', async () => {
    await assert.rejects(
      environmentFor({ services: { 'app-db': database('postgres'), 'app.db': database('postgres') } }, [
        port(1),
        port(2),
      ]),
      { code: 'CONFIG_INVALID', message: /"app-db" and "app\.db" would share the variables APP_DB_/ },
    );
  });
});
