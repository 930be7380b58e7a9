import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { Readable } from 'node:stream';
import { describe, it } from 'node:test';
import mysql, { type Connection, type RowDataPacket } from 'mysql2/promise';
import { pino } from 'pino';

import { mysql as connector } from '../../../src/connectors/mysql/index.ts';
import { Credentials } from '../../../src/core/credentials.ts';
import { Secret } from '../../../src/core/secret.ts';
import {
  certificates,
  type MySqlInfo,
  mysqlAccounts,
  mysqlQuery,
  withServer,
} from '../../support/servers.ts';
import { paces, Served, type ServedOptions, serviceContext } from '../../support/session.ts';

const { client: clientCertificate } = await certificates();

function settingsFor(info: MySqlInfo, tls: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    host: info.host,
    port: info.port,
    tls: { mode: 'verify-full', ca: info.ca, serverName: 'localhost', ...tls },
  };
}

function serve(info: MySqlInfo, user: string, password: string, options: Partial<ServedOptions> = {}) {
  return Served.open({
    connector: 'mysql',
    settings: settingsFor(info),
    credentials: { username: user, ...(password && { password }) },
    ...options,
  });
}

async function open(served: Served, options: mysql.ConnectionOptions = {}): Promise<Connection> {
  return await mysql.createConnection({
    host: '127.0.0.1',
    port: served.port,
    user: 'whoever',
    database: 'app',
    ...options,
  });
}

async function ask(client: Connection, text: string): Promise<Record<string, unknown>> {
  const [rows] = await client.query<RowDataPacket[]>(text);
  return rows[0] ?? {};
}

for (const kind of ['mysql9', 'mariadb10', 'mariadb11'] as const)
  describe(`with a real ${kind}`, () => {
    for (const pace of paces)
      for (const { user, plugin, password, needs, refused } of mysqlAccounts[kind])
        it(`${refused === undefined ? 'logs in' : 'tells the client of the refusal of'} ${user} (${plugin}), ${pace}`, async (t) => {
          const info = await withServer(t, kind);
          if (!info) return;
          const { cert, key } = clientCertificate;
          const settings = settingsFor(info, needs === 'certificate' ? { cert, key } : {});
          await using served = await serve(info, user, password, { settings, pace });
          // In its sandbox an expired account of MariaDB may log in, and do nothing but change its password.
          if (refused !== undefined && refused !== 1820) {
            await assert.rejects(open(served), (error: mysql.QueryError) => {
              assert.deepEqual([error.errno, error.sqlState], [1045, '28000']);
              assert.ok(!error.message.includes(user));
              return true;
            });
            return;
          }
          const client = await open(served);
          if (refused !== undefined) {
            await assert.rejects(ask(client, 'select 1'), { errno: refused });
            client.destroy();
            return;
          }
          const who =
            'select substring_index(current_user(), "@", 1) user, connection_id() id, database() db';
          assert.deepEqual(await ask(client, who), { user, id: client.threadId, db: 'app' });

          await ask(client, 'set @left = 1');
          await client.changeUser({ user: 'root', password: 'guess', database: 'app' });
          const after = await ask(client, `${who}, @left gone`);
          assert.deepEqual(after, { user, id: client.threadId, db: 'app', gone: null });
          const [notes] = await client.execute<RowDataPacket[]>('select id from notes where id > ?', [90]);
          assert.equal(notes.length, 10);
          await client.end();
          assert.equal((await served.ended()).outcome, 'ok');
        });

    it('logs in over a unix socket', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const [account] = mysqlAccounts[kind];
      assert.ok(account);
      await using served = await serve(info, account.user, account.password, {
        settings: { host: info.socket },
      });
      const client = await open(served);
      assert.equal(typeof (await ask(client, 'select 1 one'))['one'], 'number');
      await client.end();
    });

    it('kills the query of another session by the id that its client was shown', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const [account] = mysqlAccounts[kind];
      assert.ok(account);
      await using served = await serve(info, account.user, account.password);
      const [sleeper, killer] = await Promise.all([open(served), open(served)]);
      const slept = ask(sleeper, 'select sleep(20) result').catch((error: mysql.QueryError) => error.errno);
      await new Promise((resolve) => setTimeout(resolve, 200));
      const started = performance.now();
      await killer.query(`kill query ${sleeper.threadId}`);
      // MySQL says how SLEEP() ended, MariaDB that it was interrupted.
      const result = await slept;
      assert.ok(result === 1317 || (typeof result === 'object' && result?.['result'] === 1));
      assert.ok(performance.now() - started < 5000);
      await Promise.all([sleeper.end(), killer.end()]);
    });

    for (const allowed of [false, true])
      it(`${allowed ? 'lets the server ask for a file' : 'keeps the server from asking for a file'} (LOAD DATA LOCAL)`, async (t) => {
        const info = await withServer(t, kind);
        if (!info) return;
        const [account] = mysqlAccounts[kind];
        assert.ok(account);
        await using served = await serve(info, account.user, account.password, {
          settings: { ...settingsFor(info), allowLocalInfile: allowed },
        });
        const client = await open(served);
        const load = async () => {
          await client.query('create temporary table loaded (line varchar(100))');
          // Each piece is a packet: more than 256 of them, so that sequence ids come round, each like a COM_CHANGE_USER.
          const lines = Array.from({ length: 700 }, () => '\x11root\0\0\n');
          await client.query({
            sql: "load data local infile 'anything' into table loaded",
            infileStreamFactory: () => Readable.from(lines.map((line) => Buffer.from(line))),
          });
          return await ask(client, 'select count(*) n from loaded');
        };
        if (allowed) assert.deepEqual(await load(), { n: 700 });
        else
          await assert.rejects(load(), (error: mysql.QueryError) =>
            [1148, 3948, 4166].includes(error.errno ?? 0),
          );
        if (allowed) await client.changeUser({});
        await client.end();
      });

    it('passes on why the server takes no more, though the client is still sending', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const [account] = mysqlAccounts[kind];
      assert.ok(account);
      await using served = await serve(info, account.user, account.password);
      const client = await open(served);
      const limit = Number((await ask(client, 'select @@max_allowed_packet n'))['n']);
      const long = `select length('${'x'.repeat(limit + 1_000_000)}')`;
      await assert.rejects(client.query(long), { errno: 1153 });
      client.destroy();
    });

    it('says in a probe as whom it has logged in, and how', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const [account] = mysqlAccounts[kind];
      assert.ok(account);
      const { user, password, plugin } = account;
      const said = await connector.open(connector.settings.parse(settingsFor(info)), serviceContext()).probe({
        log: pino({ level: 'silent' }),
        note: () => {},
        withCredentials: async (use) => {
          const secrets = Object.entries({ username: user, password }).map(
            ([name, value]) => [name, new Secret(Buffer.from(value))] as const,
          );
          using credentials = new Credentials(new Map(secrets));
          return await use(credentials, AbortSignal.timeout(5000));
        },
      });
      assert.match(
        said,
        new RegExp(`^logged in to .*:${info.port} as ${user} \\(${plugin}, TLS TLSv1\\.3\\)$`),
      );
    });

    it('counts no failed connection against Postern for a client that leaves without a word', async (t) => {
      const info = await withServer(t, kind);
      if (!info) return;
      const [account] = mysqlAccounts[kind];
      assert.ok(account);
      await using served = await serve(info, account.user, account.password);
      const aborted = async () =>
        Number((await mysqlQuery(info, "show global status like 'Aborted_connects'"))[0]?.['Value']);
      const before = await aborted();
      for (let i = 0; i < 5; i += 1) {
        const socket = connect(served.port, '127.0.0.1');
        await once(socket, 'connect');
        socket.resume().end();
        await once(socket, 'close');
      }
      await served.ended(5);
      assert.equal(await aborted(), before);
    });
  });

it('keeps a proof of the password from the client that MariaDB 11 puts into its OK', async (t) => {
  const info = await withServer(t, 'mariadb11');
  if (!info) return;
  const heard: Buffer[] = [];
  await using served = await serve(info, 'native_user', mysqlAccounts.mariadb11[0]?.password ?? '');
  const tap = createServer((near) => {
    const far = connect(served.port, '127.0.0.1');
    near.pipe(far);
    far.on('data', (chunk: Buffer) => heard.push(chunk)).pipe(near);
  });
  await once(tap.listen(0, '127.0.0.1'), 'listening');
  const client = await open(served, { port: (tap.address() as AddressInfo).port });
  await client.end();
  tap.close();
  assert.doesNotMatch(Buffer.concat(heard).toString('latin1'), /[0-9A-Fa-f]{64}/);
});
