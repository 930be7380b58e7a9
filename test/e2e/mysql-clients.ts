import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import { withDriver } from '../support/clients/drivers.ts';
import type { MySqlDriver, MySqlTarget } from '../support/clients/mysql-driver.ts';
import { mysqlDrivers } from '../support/clients/mysql-drivers.ts';
import { accountOf, serviceFor, startServices } from '../support/mysql-services.ts';
import type { Postern } from '../support/postern.ts';
import { type MySqlInfo, type MySqlKind, server, Unavailable } from '../support/servers.ts';

/** An account of each server by a plugin that not every one of the clients knows. */
const users = { mysql9: 'sha2_user', mariadb10: 'ed_user', mariadb11: 'parsec_user' } as const;

/** What every client does on one of the servers. A test file for each server, so that they run side by side. */
export function testClients(kind: MySqlKind): void {
  describe(`what clients do on ${kind} through Postern`, () => {
    let folder: string;
    let localFile: string;
    let postern: Postern | undefined;
    let missing = '';
    const user = users[kind];

    before(async () => {
      folder = await mkdtemp(join(tmpdir(), 'postern-load-'));
      localFile = join(folder, 'rows.txt');
      // Over four megabytes: the packets of the file come round to sequence 0, where a command would begin.
      const lines = Array.from({ length: 40_000 }, (_, n) => `${n}\t${'x'.repeat(100)}\n`);
      await writeFile(localFile, lines.join(''));
      try {
        const info: MySqlInfo = await server(kind);
        const bao = await server('openbao');
        const account = accountOf(info, user);
        postern = await startServices(bao, {
          usual: await serviceFor(bao, info, account),
          files: await serviceFor(bao, info, account, { allowLocalInfile: true }),
          plain: await serviceFor(bao, info, account, { allowLocalInfile: true, changeUser: 'relay' }),
          refusing: await serviceFor(bao, info, account, { changeUser: 'refuse' }),
        });
      } catch (error) {
        if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
        missing = error.message;
      }
    });

    after(async () => {
      await postern?.stop();
      await rm(folder, { recursive: true, force: true });
    });

    /** Runs `use` with a target for each service, or says why not. */
    async function through(
      t: TestContext,
      driver: MySqlDriver,
      use: (to: (service: string) => MySqlTarget) => Promise<void>,
    ): Promise<void> {
      if (!postern) return t.skip(`not here: ${missing}`);
      if (!(await withDriver(t, driver))) return;
      const running = postern;
      const common = { host: '127.0.0.1', user: 'nobody', database: 'app', localFile };
      await use((service) => ({ ...common, port: running.port(service) }));
    }

    for (const driver of mysqlDrivers) {
      it(`${driver.name} asks, prepares, and gets several results`, (t) =>
        through(t, driver, async (to) => {
          const { connection, greeted, ...answer } = await driver.ask('select', to('usual'));
          assert.deepEqual(answer, { user: `${user}@%`, echo: "it's \u00E4", sum: 42, notes: 100 });
          // The id that a driver was greeted with is the one that KILL takes.
          if (greeted !== null) assert.equal(greeted, connection);
          assert.deepEqual((await driver.ask('multi-statements', to('usual'))).results, [1, 2]);
        }));

      it(`${driver.name} ends a query as it does directly`, (t) =>
        through(t, driver, async (to) => {
          const { code, ms, alive } = await driver.ask('kill-query', to('usual'));
          assert.deepEqual([code, alive], [1317, true]);
          assert.ok(ms >= 290 && ms < 15_000, `ended after ${ms} ms`);
        }));

      for (const action of ['change-user', 'reset'] as const) {
        if (!driver.actions(kind).includes(action)) continue;
        it(`${driver.name} clears its session by ${action}`, (t) =>
          through(t, driver, async (to) => {
            for (const service of ['usual', 'files'])
              assert.deepEqual(await driver.ask(action, to(service)), { user: `${user}@%`, cleared: true });
          }));
      }

      it(`${driver.name} sends a file where the service allows it, and only there`, (t) =>
        through(t, driver, async (to) => {
          for (const service of ['files', 'plain']) {
            const loaded = await driver.ask('load-local', to(service));
            assert.deepEqual(loaded, { rows: 40_000, code: null, message: null });
          }
          const refused = await driver.ask('load-local', to('usual'));
          assert.equal(refused.rows, 0);
          assert.notEqual(refused.message, null);
        }));

      // 64 MiB there and back take seconds each, and what they meet on the way does not depend on the server.
      if (kind === 'mysql9')
        it(`${driver.name} sends and gets 64 MiB`, (t) =>
          through(t, driver, async (to) => {
            const big = await driver.ask('big', to('usual'));
            assert.deepEqual(big, { sent: big.sent, server: big.sent, back: big.sent });
          }));
    }

    it('no application changes to an account of its own', async (t) => {
      if (!postern) return t.skip(`not here: ${missing}`);
      const driver = mysqlDrivers.find(({ name }) => name === 'mysql');
      assert.ok(driver);
      const target = { host: '127.0.0.1', user: 'nobody', database: 'app', port: postern.port('refusing') };
      await assert.rejects(driver.ask('change-user', target), { errno: 1047 });
    });
  });
}
