import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import mysql, { type Connection, type RowDataPacket } from 'mysql2/promise';
import type { Client } from 'pg';

import { mysqlAccounts, sql, withServer } from '../support/servers.ts';
import { application, eventually, keep, loginOf, perform, stage, towards } from './stage.ts';

const CLIENTS = 12;
const SECONDS = 4;
/** Each session ends about once a second. */
const limits = { maxSessionAge: '1s', drainTimeout: '5s' };

/** One connection of an application that connects again when it is told that its session is over. */
interface Worker {
  transaction(): Promise<void>;
  close(): Promise<void>;
}

/** What happened to transactions that ran for a while: committed, told at their first word, or broken in the middle. */
async function work(
  open: () => Promise<Worker>,
): Promise<{ committed: number; told: number; broken: string[] }> {
  const counts = { committed: 0, told: 0, broken: [] as string[] };
  const end = Date.now() + SECONDS * 1000;
  const one = async () => {
    let worker = await open();
    while (Date.now() < end)
      try {
        await worker.transaction();
        counts.committed += 1;
      } catch (error) {
        if (error instanceof Told) counts.told += 1;
        else counts.broken.push(String(error));
        await worker.close().catch(() => {});
        worker = await open();
      }
    await worker.close().catch(() => {});
  };
  await Promise.all(Array.from({ length: CLIENTS }, one));
  return counts;
}

/** The session was over before the transaction began: an application loses nothing by beginning it again. */
class Told extends Error {}

async function atFirst<T>(begin: Promise<T>): Promise<T> {
  try {
    return await begin;
  } catch (error) {
    throw new Told(String(error));
  }
}

function postgresWorker(client: Client): Worker {
  return {
    async transaction() {
      await atFirst(client.query('begin'));
      await client.query('insert into aging select 1 from pg_sleep(0.005)');
      await client.query('commit');
    },
    close: () => client.end(),
  };
}

function mysqlWorker(client: Connection): Worker {
  return {
    async transaction() {
      await atFirst(client.query('begin'));
      await client.query('insert into aging select 1 from (select sleep(0.005)) s');
      await client.query('commit');
    },
    close: () => client.end(),
  };
}

describe('sessions with a maximum age', () => {
  it('end between the transactions of a PostgreSQL application under load, never in one', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    await sql(
      postgres18,
      'drop table if exists aging; create table aging (i int); grant all on aging to public',
    );
    t.after(() => sql(postgres18, 'drop table aging'));
    await using postern = await perform(openbao, {
      db: { credentials: await loginOf(openbao, 'scram_user'), config: towards(postgres18), limits },
    });
    const counts = await work(async () => postgresWorker(await application(postern.port('db'))));
    const rows = Number((await sql(postgres18, 'select count(*) n from aging'))[0]?.['n']);
    report(t, counts);
    assert.deepEqual(counts.broken, []);
    assert.equal(rows, counts.committed);
    assert.ok(counts.told >= CLIENTS, 'sessions lived on');
    await assertExpired(postern);
  });

  it('end between the transactions of a MySQL application under load, never in one', async (t) => {
    const servers = await stage(t);
    const info = servers && (await withServer(t, 'mysql9'));
    if (!info) return;
    const account = mysqlAccounts.mysql9.find(({ plugin, refused }) => /caching/.test(plugin) && !refused);
    assert.ok(account);
    const { references } = await keep(servers.openbao, {
      username: account.user,
      password: account.password,
    });
    await using postern = await perform(servers.openbao, {
      db: {
        connector: 'mysql',
        credentials: references,
        config: {
          host: info.host,
          port: info.port,
          tls: { mode: 'verify-full', ca: info.ca, serverName: 'localhost' },
        },
        limits,
      },
    });
    const open = async () => {
      const client = await mysql.createConnection({
        host: '127.0.0.1',
        port: postern.port('db'),
        user: 'x',
        database: 'app',
      });
      client.on('error', () => {});
      return client;
    };
    const admin = await open();
    await admin.query('drop table if exists aging');
    await admin.query('create table aging (i int)');
    await admin.end();
    const counts = await work(async () => mysqlWorker(await open()));
    const last = await open();
    const [rows] = await last.query<RowDataPacket[]>('select count(*) n from aging');
    await last.query('drop table aging');
    await last.end();
    report(t, counts);
    assert.deepEqual(counts.broken, []);
    assert.equal(rows[0]?.['n'], counts.committed);
    assert.ok(counts.told >= CLIENTS, 'sessions lived on');
    await assertExpired(postern);
  });
});

function report(t: TestContext, { committed, told, broken }: Awaited<ReturnType<typeof work>>): void {
  t.diagnostic(
    `${CLIENTS} clients, ${committed} transactions, ${told} sessions over before a transaction, ${broken.length} in one`,
  );
}

async function assertExpired(postern: Awaited<ReturnType<typeof perform>>): Promise<void> {
  const expired = () => postern.lines.filter(({ outcome }) => outcome === 'SESSION_EXPIRED');
  await eventually('sessions that ended for their age', () => expired().length >= CLIENTS);
  assert.ok(expired().every(({ level }) => level === 'info'));
}
