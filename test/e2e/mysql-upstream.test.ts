import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import type { Refusal } from '../support/clients/mysql-driver.ts';
import { mysqlDrivers } from '../support/clients/mysql-drivers.ts';
import {
  accountOf,
  fromVault,
  type MySqlService,
  serviceFor,
  startServices,
  store,
} from '../support/mysql-services.ts';
import type { Postern } from '../support/postern.ts';
import {
  certificates,
  type MySqlInfo,
  type MySqlKind,
  mysqlQuery,
  type OpenBao,
  startMySql,
  withServer,
} from '../support/servers.ts';

const kinds = ['mysql9', 'mariadb10', 'mariadb11'] as const;

async function servers(t: TestContext, kind: MySqlKind): Promise<[MySqlInfo, OpenBao] | undefined> {
  const info = await withServer(t, kind);
  const bao = info && (await withServer(t, 'openbao'));
  return bao && [info, bao];
}

/** Runs the program with these services until the test ends. */
async function serving(
  t: TestContext,
  bao: OpenBao,
  services: Readonly<Record<string, MySqlService>>,
): Promise<Postern> {
  const postern = await startServices(bao, services);
  t.after(() => postern.stop());
  return postern;
}

/** Who a service lets in, or why not. */
async function logIn(
  postern: Postern,
  service: string,
  database = 'app',
): Promise<{ user: string | null } & Refusal> {
  const driver = mysqlDrivers.find(({ name }) => name === 'mysql2');
  assert.ok(driver);
  const target = { host: '127.0.0.1', port: 0, user: 'x', database, ports: [postern.port(service)] };
  const [result] = (await driver.ask('logins', target)).results;
  assert.ok(result);
  return result;
}

const modes = ['disable', 'require', 'verify-ca', 'verify-full'] as const;

for (const kind of kinds) {
  describe(`the way to ${kind}`, () => {
    it('is TLS as the configuration says, and the account as its plugin allows', async (t) => {
      const both = await servers(t, kind);
      if (!both) return;
      const bao = both[1];
      // Whoever else logged in meanwhile would warm the server's cache: then nobody shows a password.
      const info = await startMySql({ kind });
      t.after(info.stop);
      const users = info.accounts.filter(({ refused, needs }) => !refused && needs !== 'certificate');
      const services: Record<string, MySqlService> = {};
      for (const account of users) {
        for (const mode of modes) {
          const tls = mode === 'disable' || mode === 'require' ? { mode } : { mode, ca: info.ca };
          services[`${account.user.replaceAll('_', '-')}-${mode}`] = await serviceFor(bao, info, account, {
            tls,
          });
        }
      }
      const postern = await serving(t, bao, services);
      for (const { user, plugin, needs, password } of users) {
        for (const mode of modes) {
          const { user: who, code, message } = await logIn(postern, `${user.replaceAll('_', '-')}-${mode}`);
          // The password itself is for a server that has proved who it is.
          const shows = /sha256|sha2|clear/.test(plugin) && password !== '' && !mode.startsWith('verify');
          if (shows || (mode === 'disable' && needs === 'tls'))
            assert.equal(code, 1045, `${user}, ${mode}: ${who}`);
          else assert.equal(who, `${user}@%`, `${user}, ${mode}: ${message}`);
        }
      }
    });

    it('may be its unix socket', async (t) => {
      const both = await servers(t, kind);
      if (!both) return;
      const [info, bao] = both;
      const users = info.accounts.filter(({ refused, needs }) => !refused && needs === undefined);
      const services: Record<string, MySqlService> = {};
      for (const account of users) {
        services[account.user.replaceAll('_', '-')] = {
          connector: 'mysql',
          listenOn: 'tcp://127.0.0.1:0',
          credentials: fromVault(await store(bao, account.user, account.password)),
          config: { host: info.socket },
        };
      }
      const postern = await serving(t, bao, services);
      await mysqlQuery(info, 'FLUSH PRIVILEGES');
      for (const { user } of users) {
        const { user: who, message } = await logIn(postern, user.replaceAll('_', '-'));
        assert.equal(who, `${user}@%`, String(message));
      }
    });

    it('is refused where the certificate is of another host or authority, or where there is no TLS', async (t) => {
      const both = await servers(t, kind);
      if (!both) return;
      const bao = both[1];
      const { ca } = await certificates();
      for (const certificate of ['wrong-host', 'other-ca', 'expired', false] as const) {
        const mysql = await startMySql({ kind, certificate });
        t.after(mysql.stop);
        const account = accountOf(mysql, 'admin');
        const postern = await serving(t, bao, {
          full: await serviceFor(bao, mysql, account, { tls: { ca } }),
          ca: await serviceFor(bao, mysql, account, { tls: { mode: 'verify-ca', ca } }),
          require: await serviceFor(bao, mysql, account, { tls: { mode: 'require' } }),
        });
        const full = await logIn(postern, 'full');
        assert.equal(full.code, 1105, `${certificate}: ${full.message}`);
        const byCa = await logIn(postern, 'ca');
        if (certificate === 'wrong-host') assert.equal(byCa.user, 'admin@%', String(byCa.message));
        else assert.equal(byCa.code, 1105, `${certificate}: ${byCa.message}`);
        if (certificate === false) assert.equal((await logIn(postern, 'require')).code, 1105);
        await mysql.stop();
      }
    });

    it('says what a database that is not there is, and keeps to the ones allowed', async (t) => {
      const both = await servers(t, kind);
      if (!both) return;
      const [info, bao] = both;
      const account = accountOf(info, 'admin');
      const postern = await serving(t, bao, {
        any: await serviceFor(bao, info, account),
        pinned: await serviceFor(bao, info, account, { database: 'app' }),
        some: await serviceFor(bao, info, account, { databases: ['app'] }),
      });
      assert.deepEqual((await logIn(postern, 'any', 'nowhere')).code, 1049);
      assert.equal((await logIn(postern, 'pinned', 'nowhere')).user, 'admin@%');
      assert.equal((await logIn(postern, 'some')).user, 'admin@%');
      assert.equal((await logIn(postern, 'some', 'mysql')).code, 1044);
    });
  });
}

describe('MySQL without TLS', () => {
  it('gets the password encrypted to its RSA key, where that is given or may be asked for', async (t) => {
    const both = await servers(t, 'mysql9');
    if (!both) return;
    const bao = both[1];
    const info = await startMySql({ kind: 'mysql9' });
    t.after(info.stop);
    const services: Record<string, MySqlService> = {};
    const users = ['sha2_user', 'sha256_user', 'unicode_user'];
    const tls = { mode: 'disable' };
    for (const user of users) {
      const account = accountOf(info, user);
      const name = user.replaceAll('_', '-');
      services[`${name}-none`] = await serviceFor(bao, info, account, { tls });
      services[`${name}-asked`] = await serviceFor(bao, info, account, {
        tls,
        allowPublicKeyRetrieval: true,
      });
      services[`${name}-given`] = await serviceFor(bao, info, account, { tls, rsaPublicKey: info.publicKey });
    }
    const postern = await serving(t, bao, services);
    for (const user of users) {
      const name = user.replaceAll('_', '-');
      for (const how of ['none', 'asked', 'given']) {
        await info.flushPrivileges();
        const { user: who, code, message } = await logIn(postern, `${name}-${how}`);
        if (how === 'none') {
          assert.equal(code, 1045, `${user}: ${who} ${message}`);
          assert.match(String(message), /rsaPublicKey|allowPublicKeyRetrieval|TLS/);
        } else assert.equal(who, `${user}@%`, String(message));
      }
    }
  });
});
