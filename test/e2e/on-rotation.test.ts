import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { describe, it, type TestContext } from 'node:test';
import mysql, { type Connection } from 'mysql2/promise';
import type { Client } from 'pg';

import { mysqlQuery, type PostgresInfo, sql, withServer } from '../support/servers.ts';
import { application, ask, eventually, keep, perform, stage, towards } from './stage.ts';

/** Nobody logs in during these tests: a rotation is noticed because it is looked for. */
const cache = { rotationCheck: '300ms' };

let roles = 0;

async function newRole(
  t: TestContext,
  postgres: PostgresInfo,
): Promise<{ username: string; password: string }> {
  roles += 1;
  const role = { username: `drained_${process.pid}_${roles}`, password: randomUUID() };
  await sql(postgres, `create role ${role.username} login password '${role.password}'`);
  t.after(() => sql(postgres, `drop role ${role.username}`));
  return role;
}

async function endOf(client: Client): Promise<Error & { code?: string }> {
  const { promise, resolve } = Promise.withResolvers<Error>();
  client.on('error', resolve);
  return await promise;
}

describe('onRotation', () => {
  it('drain: sessions of PostgreSQL end when nothing is under way in them, and new ones have the new credential', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const role = await newRole(t, postgres18);
    const { path, references } = await keep(openbao, role);
    await using postern = await perform(openbao, {
      db: { credentials: references, config: towards(postgres18), onRotation: 'drain', cache },
    });
    const port = postern.port('db');
    const [idle, busy, open] = await Promise.all([application(port), application(port), application(port)]);
    const ended = { idle: endOf(idle), busy: endOf(busy), open: endOf(open) };
    const answer = busy.query("select 'whole' as answer from pg_sleep(1.5)");
    await open.query('begin');

    const next = randomUUID();
    await sql(postgres18, `alter role ${role.username} password '${next}'`);
    await openbao.write(path, { data: { ...role, password: next } });

    const told = await ended.idle;
    assert.deepEqual(
      [told.code, told.message],
      ['57P01', 'postern: the credential of the session was replaced'],
    );
    assert.deepEqual((await answer).rows, [{ answer: 'whole' }]);
    assert.equal((await ended.busy).code, '57P01');
    assert.deepEqual((await open.query('select 1 as still')).rows, [{ still: 1 }]);
    await open.query('commit');
    assert.equal((await ended.open).code, '57P01');
    assert.deepEqual(await ask(port, 'select current_user as me'), { me: role.username });
    const drained = () => postern.lines.filter(({ outcome }) => outcome === 'SESSION_EXPIRED');
    await eventually('the lines of the sessions', () => drained().length === 3);
  });

  it('keep: sessions live on', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const role = await newRole(t, postgres18);
    const { path, references } = await keep(openbao, role);
    await using postern = await perform(openbao, {
      db: { credentials: references, config: towards(postgres18), cache },
    });
    const client = await application(postern.port('db'));
    const next = randomUUID();
    await sql(postgres18, `alter role ${role.username} password '${next}'`);
    await openbao.write(path, { data: { ...role, password: next } });
    await ask(postern.port('db'), 'select 1');
    await new Promise((resolve) => setTimeout(resolve, 1000));
    assert.deepEqual((await client.query('select 1 as still')).rows, [{ still: 1 }]);
    await client.end();
  });

  it('drain: sessions of MySQL end likewise', async (t) => {
    const servers = await stage(t);
    const info = servers && (await withServer(t, 'mysql9'));
    if (!info) return;
    roles += 1;
    const user = { username: `drained_${process.pid}_${roles}`, password: randomUUID() };
    await mysqlQuery(info, `create user ${user.username} identified by '${user.password}'`);
    await mysqlQuery(info, `grant select on app.* to ${user.username}`);
    t.after(() => mysqlQuery(info, `drop user ${user.username}`));
    const { path, references } = await keep(servers.openbao, user);
    const tls = { mode: 'verify-full', ca: info.ca, serverName: 'localhost' };
    await using postern = await perform(servers.openbao, {
      db: {
        connector: 'mysql',
        credentials: references,
        config: { host: info.host, port: info.port, tls },
        onRotation: 'drain',
        cache,
      },
    });
    const connect = async (): Promise<Connection & { ended: Promise<Error> }> => {
      const client = await mysql.createConnection({
        host: '127.0.0.1',
        port: postern.port('db'),
        user: 'x',
        database: 'app',
      });
      const { promise, resolve } = Promise.withResolvers<Error>();
      client.on('error', resolve);
      return Object.assign(client, { ended: promise });
    };
    const idle = await connect();
    const open = await connect();
    await open.beginTransaction();
    await open.query('select 1');

    const next = randomUUID();
    await mysqlQuery(info, `alter user ${user.username} identified by '${next}'`);
    await servers.openbao.write(path, { data: { ...user, password: next } });

    assert.match((await idle.ended).message, /postern: the credential of the session was replaced/);
    await open.query('select 1');
    await open.commit();
    assert.match((await open.ended).message, /postern: the credential of the session was replaced/);
    const fresh = await connect();
    await fresh.query('select 1');
    await fresh.end();
  });
});
