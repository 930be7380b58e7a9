import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { mysqlCli } from './clients/mysql-cli.ts';
import {
  certificates,
  type MySqlInfo,
  type MySqlKind,
  mysqlQuery,
  startMySql,
  withServer,
} from './servers.ts';

const kinds = ['mysql9', 'mariadb10', 'mariadb11'] as const;

/** Logs in directly; gives what `current_user()` says, or the number of the error. */
async function logIn(
  info: MySqlInfo,
  user: string,
  password: string,
  flags: readonly string[] = [],
  sslmode: 'disable' | 'verify-full' = 'verify-full',
): Promise<string | number> {
  // It knows every plugin there is but socket_user's, which has nothing to ask a client.
  const client: MySqlKind = 'mariadb11';
  const target = {
    host: sslmode === 'disable' ? '127.0.0.1' : 'localhost',
    port: info.port,
    user,
    password,
    database: 'app',
    sslmode,
    ...(info.ca === undefined ? {} : { rootCert: info.ca }),
  };
  const { code, stdout, stderr } = await mysqlCli(client, target, [...flags, '-e', 'select current_user()']);
  return code === 0 ? stdout.trim() : Number(/^ERROR (\d+)/m.exec(stderr)?.[1] ?? stderr);
}

for (const kind of kinds) {
  describe(`${kind}, asked directly`, () => {
    it('lets every account in with what it needs, and refuses it another password', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const { client } = await certificates();
      for (const { user, password, needs, refused } of info.accounts) {
        const flags = needs === 'certificate' ? [`--ssl-cert=${client.cert}`, `--ssl-key=${client.key}`] : [];
        assert.equal(await logIn(info, user, password, flags), refused ?? `${user}@%`, user);
        // MySQL looks at the password of a locked account, MariaDB does not.
        const wrong = await logIn(info, user, 'wrong', flags);
        assert.ok([1045, 1698, 3118, 4151].includes(Number(wrong)), `${user}: ${wrong}`);
        if (needs) assert.equal(await logIn(info, user, password, [], 'disable'), 1045, user);
        if (needs === 'certificate') assert.equal(await logIn(info, user, password), 1045, user);
      }
    });

    it('asks every account by the plugin that its name says', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const rows = await mysqlQuery(
        info,
        kind === 'mysql9'
          ? 'select user as name, plugin as plugin from mysql.user'
          : `select user as name, json_value(priv, '$.plugin') as plugin from mysql.global_priv`,
      );
      const stored = new Map(rows.map((row) => [row['name'], row['plugin']]));
      for (const { user, plugin } of info.accounts) {
        const expected = { client_ed25519: 'ed25519', mysql_clear_password: 'pam' }[plugin] ?? plugin;
        if (user !== 'multi_user') assert.equal(stored.get(user), expected, user);
      }
    });

    it('has a hundred notes, room for 64 MiB, and takes LOAD DATA LOCAL', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const query = 'select @@max_allowed_packet as packet, @@global.local_infile as local';
      assert.deepEqual(await mysqlQuery(info, query), [{ packet: 128 * 1024 * 1024, local: 1 }]);
      assert.deepEqual(await mysqlQuery(info, 'select count(*) as n from notes'), [{ n: 100 }]);
    });

    it('can be had for a test alone: with other settings, without TLS, killed and restarted', async (t) => {
      if (!(await withServer(t, kind))) return;
      const own = await startMySql({ kind, certificate: false, settings: { 'wait-timeout': '77' } });
      t.after(own.stop);
      await mysqlQuery(own, `insert into notes (body) values ('kept')`);
      assert.deepEqual(await mysqlQuery(own, 'select @@wait_timeout as seconds'), [{ seconds: 77 }]);
      await own.kill();
      await assert.rejects(mysqlQuery(own, 'select 1'), /ECONNREFUSED|ENOENT|ECONNRESET/);
      await own.up();
      await own.restart();
      await own.flushPrivileges();
      assert.deepEqual(await mysqlQuery(own, 'select count(*) as n from notes'), [{ n: 101 }]);
      const admin = own.accounts.find(({ user }) => user === 'admin');
      assert.equal(await logIn(own, 'admin', admin?.password ?? '', [], 'disable'), 'admin@%');
      assert.equal(await logIn(own, 'admin', admin?.password ?? ''), 2026);
    });
  });
}
