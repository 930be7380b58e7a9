import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import mariadb, { type Connection as MariaDbConnection } from 'mariadb';
import mysql, { type Connection as MySqlConnection } from 'mysql2/promise';

import { IdleFollower } from '../../../src/connectors/mysql/idle.ts';
import { clientFlags, packet } from '../../support/fake-mysql.ts';
import { mysqlAccounts, withServer } from '../../support/servers.ts';
import { Served } from '../../support/session.ts';

/** mysql2 speaks the classic form with EOF packets; the MariaDB connector the newer one, with results whose columns are left out. */
type Deed<Client> = readonly [what: string, run: (client: Client) => Promise<unknown>];

const big = `select repeat('x', 3000000) a, 1 b`;
const some = 'select 1 a union all select 2 union all select 3';

const byMysql2: readonly Deed<MySqlConnection>[] = [
  ['a query', (client) => client.query('select 1')],
  ['a query without rows', (client) => client.query('select 1 from dual where false')],
  ['a query that fails', (client) => assert.rejects(client.query('selec'))],
  ['a result of three megabytes', (client) => client.query(big)],
  ['several statements', (client) => client.query('select 1; set @a = 1; select 2')],
  ['several statements of which one fails', (client) => assert.rejects(client.query('select 1; selec'))],
  ['a prepared statement', (client) => client.execute('select ? + ?', [1, 2])],
  ['a prepared statement that fails', (client) => assert.rejects(client.execute('selec'))],
  ['a prepared statement without parameters or columns', (client) => client.execute('set @a = 2')],
  ['a statement that was closed', async (client) => (await client.prepare('select 1')).close()],
  ['a ping', (client) => client.ping()],
  ['a change of the database', (client) => client.changeUser({ user: 'whoever', database: 'app' })],
  [
    'a transaction',
    async (client) => {
      await client.beginTransaction();
      await client.query('select 1');
      await client.commit();
    },
  ],
  [
    'LOAD DATA LOCAL',
    async (client) => {
      await client.query('create temporary table t (i int)');
      await client.query({
        sql: "load data local infile 'numbers' into table t",
        infileStreamFactory: () => Readable.from([Buffer.from('1\n2\n'.repeat(20_000))]),
      });
    },
  ],
  [
    'a file that there is not',
    async (client) => {
      await client.query('create temporary table t (i int)');
      await client.query({
        sql: "load data local infile 'none' into table t",
        infileStreamFactory: () => Readable.from([]),
      });
    },
  ],
];

const byMariaDb: readonly Deed<MariaDbConnection>[] = [
  ['a query', (client) => client.query('select 1')],
  ['a query without rows', (client) => client.query('select 1 from dual where false')],
  ['a query that fails', (client) => assert.rejects(client.query('selec'))],
  ['several statements', (client) => client.query('select 1; set @a = 1; select 2')],
  [
    'queries sent ahead',
    (client) => Promise.all([1, 2, 3, 4].map((n) => client.query(`select ${n}, sleep(0.01)`))),
  ],
  ['a prepared statement', (client) => client.execute('select ? + ?', [1, 2])],
  [
    'a prepared statement again and again',
    async (client) => {
      for (let i = 0; i < 3; i += 1) await client.execute(`select ?, a from (${some}) s`, [i]);
    },
  ],
  [
    'a batch',
    async (client) => {
      await client.query('create temporary table t (i int, s varchar(20))');
      await client.batch('insert into t values (?, ?)', [
        [1, 'a'],
        [2, 'b'],
        [3, 'c'],
      ]);
    },
  ],
  [
    'rows that were streamed',
    async (client) => {
      for await (const _ of client.queryStream(some) as AsyncIterable<unknown>);
    },
  ],
  ['a reset', (client) => client.reset()],
];

const underWay: readonly Deed<MySqlConnection>[] = [
  ['a slow query', async (client) => void client.query('select sleep(4)').catch(() => {})],
  ['a transaction', (client) => client.beginTransaction()],
  [
    'a transaction that has asked something',
    async (client) => {
      await client.beginTransaction();
      await client.query('select 1 from information_schema.tables limit 1');
    },
  ],
];

async function serve(
  t: TestContext,
  kind: 'mysql9' | 'mariadb11',
  drainTimeout = 60_000,
): Promise<Served | undefined> {
  const info = await withServer(t, kind);
  if (!info) return undefined;
  const account = mysqlAccounts[kind].find(
    ({ refused, plugin }) => refused === undefined && /native|caching/.test(plugin),
  );
  assert.ok(account);
  return await Served.open({
    connector: 'mysql',
    settings: {
      host: info.host,
      port: info.port,
      allowLocalInfile: true,
      tls: { mode: 'verify-full', ca: info.ca, serverName: 'localhost' },
    },
    credentials: { username: account.user, ...(account.password && { password: account.password }) },
    onRotation: 'drain',
    drainTimeout,
  });
}

async function openMysql2(served: Served): Promise<MySqlConnection> {
  const client = await mysql.createConnection({
    host: '127.0.0.1',
    port: served.port,
    user: 'whoever',
    database: 'app',
    multipleStatements: true,
  });
  client.on('error', () => {});
  return client;
}

async function openMariaDb(served: Served): Promise<MariaDbConnection> {
  const client = await mariadb.createConnection({
    host: '127.0.0.1',
    port: served.port,
    user: 'whoever',
    database: 'app',
    // Its own default is a second.
    connectTimeout: 30_000,
    multipleStatements: true,
    pipelining: true,
  });
  client.on('error', () => {});
  return client;
}

function expire(served: Served): void {
  for (const session of served.sessions) session.expire('the test wants it to end');
}

/** The session ends long before it would be cut off. */
async function assertExpires(served: Served): Promise<void> {
  expire(served);
  assert.equal((await served.ended()).outcome, 'SESSION_EXPIRED');
}

for (const kind of ['mysql9', 'mariadb11'] as const)
  describe(`a session with ${kind} that is to end`, () => {
    for (const [what, run] of byMysql2)
      it(`ends at once after ${what} of mysql2`, async (t) => {
        await using served = await serve(t, kind);
        if (!served) return;
        await run(await openMysql2(served));
        await assertExpires(served);
      });

    for (const [what, run] of byMariaDb)
      it(`ends at once after ${what} of the MariaDB connector`, async (t) => {
        await using served = await serve(t, kind);
        if (!served) return;
        await run(await openMariaDb(served));
        await assertExpires(served);
      });

    for (const [what, run] of underWay)
      it(`does not end in the middle of ${what}`, async (t) => {
        await using served = await serve(t, kind);
        if (!served) return;
        const client = await openMysql2(served);
        await run(client);
        await sleep(50);
        expire(served);
        await sleep(200);
        assert.equal(served.reports.length, 0);
        client.destroy();
      });

    it('tells a client that is between two questions why, with its next question or before', async (t) => {
      await using served = await serve(t, kind);
      if (!served) return;
      const client = await mysql.createConnection({
        host: '127.0.0.1',
        port: served.port,
        user: 'whoever',
        database: 'app',
      });
      const { promise, resolve } = Promise.withResolvers<Error>();
      client.on('error', resolve);
      await client.query('select 1');
      await assertExpires(served);
      assert.match((await promise).message, /postern: the test wants it to end/);
    });

    it('is cut off when its time is over', async (t) => {
      await using served = await serve(t, kind, 200);
      if (!served) return;
      const client = await openMysql2(served);
      await client.beginTransaction();
      await assertExpires(served);
    });
  });

describe('following a MySQL conversation', () => {
  const capabilities = { flags: clientFlags, extended: 0 };

  it('never throws at noise', () => {
    const noise = fc.record({
      fromClient: fc.boolean(),
      sequence: fc.integer({ min: 0, max: 255 }),
      payload: fc.uint8Array({ maxLength: 40 }),
      cut: fc.integer({ min: 1, max: 50 }),
    });
    fc.assert(
      fc.property(fc.array(noise), (packets) => {
        const follower = new IdleFollower('test', capabilities);
        for (const { fromClient, sequence, payload, cut } of packets) {
          const bytes = packet(sequence, payload);
          for (let at = 0; at < bytes.length; at += cut) {
            const chunk = bytes.subarray(at, at + cut);
            if (fromClient) follower.fromClient(chunk);
            else follower.fromUpstream(chunk);
          }
          assert.equal(typeof follower.atRest, 'boolean');
        }
      }),
    );
  });

  it('says nothing of rest any more when the server speaks out of turn, or streams its log', () => {
    for (const [from, payload] of [
      ['server', Buffer.of(0xff, 1, 2)],
      ['client', Buffer.of(0x12)],
      ['client', Buffer.of(0x1e)],
    ] as const) {
      const follower = new IdleFollower('test', capabilities);
      assert.ok(follower.atRest);
      if (from === 'client') follower.fromClient(packet(0, payload));
      else follower.fromUpstream(packet(0, payload));
      assert.equal(follower.atRest, false);
      follower.fromUpstream(packet(1, Buffer.of(0, 0, 0, 2, 0, 0, 0)));
      assert.equal(follower.atRest, false);
    }
  });
});
