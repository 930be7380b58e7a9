import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { withDriver } from '../support/clients/drivers.ts';
import { mysqlDrivers } from '../support/clients/mysql-drivers.ts';
import { type MySqlService, serviceFor, startServices } from '../support/mysql-services.ts';
import type { Postern } from '../support/postern.ts';
import { type Account, type PrivateMySql, server, startMySql, Unavailable } from '../support/servers.ts';

/** What a client is told of an account that the server does not let in: its own number of that may say too much. */
const refusal = 1045;

/** How each client came in on each account, for the table at the end: cold and warm. */
const table = new Map<string, Map<string, string>>();

for (const kind of ['mysql9', 'mariadb10', 'mariadb11'] as const) {
  describe(`every account of ${kind}, from every client, through Postern`, () => {
    let mysql: PrivateMySql | undefined;
    let postern: Postern | undefined;
    let missing = '';
    let names: string[] = [];
    let accounts: readonly Account[] = [];

    before(async () => {
      try {
        mysql = await startMySql({ kind });
        const bao = await server('openbao');
        accounts = mysql.accounts;
        const services: [string, MySqlService][] = [];
        for (const account of accounts) {
          services.push([account.user.replaceAll('_', '-'), await serviceFor(bao, mysql, account)]);
        }
        names = services.map(([name]) => name);
        postern = await startServices(bao, Object.fromEntries(services));
      } catch (error) {
        if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
        missing = error.message;
      }
    });

    after(async () => {
      await postern?.stop();
      await mysql?.stop();
    });

    for (const driver of mysqlDrivers) {
      it(`${driver.name}: cold and warm`, async (t) => {
        const running = postern;
        if (!running || !mysql) return t.skip(`not here: ${missing}`);
        if (!(await withDriver(t, driver))) return;
        // Either makes a server forget which passwords it has seen: the next login of each account takes the long way.
        if (driver === mysqlDrivers[0]) await mysql.restart();
        else await mysql.flushPrivileges();
        const once = names.map((name) => running.port(name));
        const target = { host: '127.0.0.1', port: 0, user: 'anything', database: 'app' };
        const { results } = await driver.ask('logins', { ...target, ports: [...once, ...once] });
        for (const [index, account] of accounts.entries()) {
          const [cold, warm] = [results[index], results[index + accounts.length]];
          const shown = [cold, warm].map((result) => (result?.user === null ? String(result.code) : 'ok'));
          const row = `${kind.padEnd(9)} ${account.user.padEnd(13)} ${account.plugin}`;
          const cells = table.get(row) ?? new Map<string, string>();
          table.set(row, cells.set(driver.name, shown.join(' ')));
          for (const result of [cold, warm]) {
            assert.ok(result);
            if (account.refused === undefined) {
              assert.equal(result.user, `${account.user}@%`, `${account.user}: ${result.message}`);
            } else if (result.user === null) {
              assert.ok(
                [refusal, account.refused].includes(Number(result.code)),
                `${account.user}: ${result.message}`,
              );
              assert.ok(!String(result.message).includes(account.user), String(result.message));
            } else {
              assert.equal(account.user, 'expired_user');
            }
          }
        }
      });
    }
  });
}

after(() => {
  const clients = mysqlDrivers.map(({ name }) => name);
  const width = 46;
  const head = clients.map((name) => name.padEnd(19)).join('');
  console.log(`\ncold and warm, by account (number of the error where the account may not come in)`);
  console.log(`${''.padEnd(width)}${head}`);
  for (const [row, cells] of table) {
    console.log(`${row.padEnd(width)}${clients.map((name) => (cells.get(name) ?? '-').padEnd(19)).join('')}`);
  }
});
