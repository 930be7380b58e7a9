import assert from 'node:assert/strict';
import { after, describe, it, type TestContext } from 'node:test';
import { withDriver } from '../support/clients/drivers.ts';
import { mysqlCli } from '../support/clients/mysql-cli.ts';
import type { MySqlAnswers } from '../support/clients/mysql-driver.ts';
import { mysqlDrivers } from '../support/clients/mysql-drivers.ts';
import { accountOf, serviceFor, startServices } from '../support/mysql-services.ts';
import type { Postern } from '../support/postern.ts';
import { certificates, withServer } from '../support/servers.ts';

const kinds = ['mysql9', 'mariadb10', 'mariadb11'] as const;

for (const kind of kinds) {
  describe(`the way from clients to Postern in front of ${kind}`, () => {
    let postern: Postern | undefined;
    after(() => postern?.stop());

    async function start(t: TestContext): Promise<Postern | undefined> {
      if (postern) return postern;
      const info = await withServer(t, kind);
      const bao = info && (await withServer(t, 'openbao'));
      if (!bao) return undefined;
      const service = await serviceFor(bao, info, accountOf(info, 'admin'));
      const { cert, key } = (await certificates()).server;
      postern = await startServices(bao, {
        plain: service,
        secure: { ...service, listenTls: { cert, key } },
      });
      return postern;
    }

    for (const driver of mysqlDrivers) {
      it(`is TLS where ${driver.name} asks for it`, async (t) => {
        const running = await start(t);
        if (!running || !(await withDriver(t, driver))) return;
        const { ca } = await certificates();
        const common = { host: 'localhost', user: 'x', database: 'app', rootCert: ca };
        for (const sslmode of ['disable', 'prefer', 'require', 'verify-full'] as const) {
          const answer: MySqlAnswers['select'] = await driver.ask('select', {
            ...common,
            sslmode,
            port: running.port('secure'),
          });
          assert.equal(answer.user, 'admin@%', sslmode);
        }
        // MariaDB's own clients insist on TLS only where they verify the server.
        const refused = await driver.ask('error', {
          ...common,
          sslmode: 'verify-full',
          port: running.port('plain'),
        });
        assert.match(String(refused.message), /ssl|tls|secure/i);
      });
    }

    it('is never compressed: what asks for it goes without', async (t) => {
      const running = await start(t);
      if (!running) return;
      for (const client of kinds) {
        const target = { host: '127.0.0.1', port: running.port('plain'), user: 'x', database: 'app' };
        const script = `show status like 'Compression'; select count(*) from notes`;
        const { stdout, stderr } = await mysqlCli(client, target, ['--compress', '-e', script]);
        assert.equal(stdout, 'Compression\tOFF\n100\n', stderr);
      }
    });
  });
}
