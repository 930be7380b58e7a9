import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { type MySqlKind, withServer } from '../servers.ts';
import { withDriver } from './drivers.ts';
import type { MySqlTarget } from './mysql-driver.ts';
import { mysqlDrivers } from './mysql-drivers.ts';

/** The account that every driver can log in to by itself. */
const everyone: { readonly [Kind in MySqlKind]: string } = {
  mysql9: 'sha2_user',
  mariadb10: 'native_user',
  mariadb11: 'native_user',
};

describe('clients of MySQL, straight to the servers', () => {
  let folder: string;
  let localFile: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'postern-load-'));
    localFile = join(folder, 'rows.txt');
    const lines = Array.from({ length: 1000 }, (_, n) => `${n}\tline ${n}\n`);
    await writeFile(localFile, lines.join(''));
  });

  after(() => rm(folder, { recursive: true, force: true }));

  for (const kind of ['mysql9', 'mariadb10', 'mariadb11'] as const) {
    for (const driver of mysqlDrivers) {
      // mysql of npm knows no plugin that MySQL 9 still has.
      if (kind === 'mysql9' && driver.name === 'mysql') continue;
      // Drivers differ in how they do TLS, and not from server to server.
      const secure = kind === (driver.name === 'mysql' ? 'mariadb10' : 'mysql9');
      for (const sslmode of secure ? (['disable', 'verify-full'] as const) : (['disable'] as const)) {
        it(`${driver.name} does what it says on ${kind}, TLS ${sslmode}`, async (t) => {
          const info = await withServer(t, kind);
          if (!info || !(await withDriver(t, driver))) return;
          const account = info.accounts.find(({ user }) => user === everyone[kind]);
          assert.ok(account);
          const target: MySqlTarget = {
            host: sslmode === 'disable' ? '127.0.0.1' : 'localhost',
            port: info.port,
            user: account.user,
            password: account.password,
            database: 'app',
            sslmode,
            localFile,
            ...(info.ca === undefined ? {} : { rootCert: info.ca }),
          };
          const user = `${account.user}@%`;
          const { connection, greeted, ...select } = await driver.ask('select', target);
          assert.deepEqual(select, { user, echo: "it's \u00E4", sum: 42, notes: 100 });
          if (greeted !== null) assert.equal(greeted, connection);
          for (const action of ['change-user', 'reset'] as const) {
            if (!driver.actions(kind).includes(action)) continue;
            assert.deepEqual(await driver.ask(action, target), { user, cleared: true }, action);
          }
          const { code, ms, alive } = await driver.ask('kill-query', target);
          assert.deepEqual([code, alive], [1317, true]);
          assert.ok(ms >= 290 && ms < 15_000, `killed after ${ms} ms`);
          assert.deepEqual((await driver.ask('multi-statements', target)).results, [1, 2]);
          const loaded = await driver.ask('load-local', target);
          assert.deepEqual(loaded, { rows: 1000, code: null, message: null });
          const refused = await driver.ask('error', { ...target, password: 'wrong' });
          assert.equal(refused.code, 1045, refused.message ?? '');
          assert.match(String(refused.message), /Access denied for user/);
          if (refused.sqlstate !== null) assert.equal(refused.sqlstate, '28000');
        });
      }
    }
  }
});
