import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { canary, withServer } from '../servers.ts';
import { drivers, type Target, withDriver } from './drivers.ts';

for (const driver of drivers) {
  describe(`${driver.name}, straight to PostgreSQL`, () => {
    const cases: { readonly name: string; readonly more: (ca: string) => Partial<Target> }[] = [
      { name: 'in clear', more: () => ({}) },
      { name: 'over TLS', more: (rootCert) => ({ host: 'localhost', sslmode: 'verify-full', rootCert }) },
    ];
    for (const { name, more } of cases) {
      it(`selects, cancels, listens, copies and is refused ${name}`, async (t) => {
        const postgres = await withServer(t, 'postgres18');
        if (!postgres || !(await withDriver(t, driver))) return;
        const { host, port, database, ca = '' } = postgres;
        const target = { host, port, database, user: 'scram_user', password: canary.postgres, ...more(ca) };

        assert.deepEqual(await driver.ask('select', target), {
          user: 'scram_user',
          port: postgres.ownPort,
          echo: "it's \u00E4",
          sum: 42,
        });
        const { sqlstate, ms, alive } = await driver.ask('cancel', target);
        assert.deepEqual([sqlstate, alive], ['57014', true]);
        assert.ok(ms >= 300 && ms < 10_000, `cancelled after ${ms} ms`);
        const { payload } = await driver.ask('listen', target);
        assert.equal(payload, 'hello');
        const copied = await driver.ask('copy', target);
        assert.equal(copied.rows, 20_000);
        assert.equal(copied.back, copied.out);
        const refused = await driver.ask('error', { ...target, password: 'wrong' });
        assert.match(String(refused.message), /password authentication failed/);
        // psycopg cannot say: libpq keeps the SQLSTATE of a failed connect to itself.
        assert.equal(refused.sqlstate, driver.name === 'psycopg' ? null : '28P01');
      });
    }
  });
}
