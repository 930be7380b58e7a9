import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, it, type TestContext } from 'node:test';
import mysql from 'mysql2/promise';
import type { Client } from 'pg';

import { cancelRequest, int32 } from '../support/fake-postgres.ts';
import { Postern } from '../support/postern.ts';
import { answers } from '../support/servers/process.ts';
import { canary, mysqlAccounts, withServer } from '../support/servers.ts';
import { Peer } from '../support/session.ts';
import {
  application,
  ask,
  busy,
  configuration,
  environment,
  eventually,
  keep,
  loginOf,
  perform,
  refused,
  type ServiceOptions,
  stage,
  towards,
} from './stage.ts';

/** Far more than a test waits: who ends earlier was not cut. */
const PATIENT = { drainTimeout: '10m' };

async function scene(t: TestContext, limits: Readonly<Record<string, string>>, args: readonly string[] = []) {
  const servers = await stage(t);
  if (!servers) return undefined;
  const { openbao, postgres18 } = servers;
  const credentials = await loginOf(openbao, 'scram_user');
  const service: ServiceOptions = { credentials, config: towards(postgres18), limits };
  const text = configuration(openbao, { db: service });
  const postern = await Postern.start(text, { env: environment(openbao), args });
  return { openbao, postgres18, service, postern, port: postern.port('db') };
}

/** What the server says at the end of a connection that nobody asks anything. */
function lastWord(client: Client): Promise<{ code?: string; message: string }> {
  return new Promise((resolve) => client.once('error', resolve));
}

async function asking(client: Client, query: string): Promise<{ pid: number; answer: Promise<unknown> }> {
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
  const answer = client.query(query).then(
    ({ rows: found }) => found,
    (error: { code: string }) => error.code,
  );
  return { pid: rows[0]?.pid ?? 0, answer };
}

/** Messages of the log since a drain began, without those of sessions. */
function course({ lines }: Postern): string[] {
  const from = lines.findIndex(({ msg }) => msg === 'stopping');
  return lines
    .slice(from)
    .filter((line) => line['session'] === undefined && line['provider'] === undefined)
    .map(({ msg }) => msg);
}

describe('a drain', { timeout: 120_000 }, () => {
  it('takes cancel requests for the sessions that it waits for, and closes the port behind the last of them', async (t) => {
    const at = await scene(t, PATIENT);
    if (!at) return;
    await using postern = at.postern;
    const client = await application(at.port);
    const { pid, answer } = await asking(client, 'select pg_sleep(600)');
    await busy(at.postgres18, pid);
    postern.signal('SIGTERM');
    await postern.logged(({ msg }) => msg === 'stopping');
    const turned = await refused(at.port);
    assert.equal(turned.code, '57P03');
    assert.match(turned.message, /shutting down/);

    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number | Buffer };
    const key = typeof secretKey === 'number' ? int32(secretKey) : secretKey;
    const peer = await Peer.connect(at.port);
    peer.send(cancelRequest(processID, key));
    assert.equal((await peer.rest()).length, 0);
    peer.end();
    assert.equal(await answer, '57014', 'the query was not cancelled');
    assert.equal((await client.query('select 1')).rowCount, 1);
    await client.end();
    assert.deepEqual(await postern.exited(), { code: 0, signal: null });
    assert.ok(!(await answers(at.port)));
    assert.ok(postern.lines.some(({ cancel, outcome }) => cancel === 'forwarded' && outcome === 'ok'));
  });

  it('tells followed sessions that are at rest, lets a transaction end first, and does not wait for its timeout', async (t) => {
    const at = await scene(t, { ...PATIENT, maxSessionAge: '1h' });
    if (!at) return;
    await using postern = at.postern;
    const [idle, working] = [await application(at.port), await application(at.port)];
    await working.query('begin');
    const told = lastWord(idle);
    postern.signal('SIGTERM');
    assert.equal((await told).code, '57P01');
    assert.equal((await working.query('select 1')).rowCount, 1);
    const toldThen = lastWord(working);
    await working.query('commit');
    const { code, message } = await toldThen;
    assert.deepEqual([code, /shutting down/.test(message)], ['57P01', true]);
    assert.deepEqual(await postern.exited(), { code: 0, signal: null });
    const ends = postern.lines.filter(({ outcome }) => outcome === 'SESSION_EXPIRED');
    assert.deepEqual(
      ends.map(({ level, msg }) => [level, msg]),
      [
        ['info', 'session ended'],
        ['info', 'session ended'],
      ],
    );
  });

  it('tells followed sessions of MySQL as well', async (t) => {
    const servers = await stage(t);
    const info = servers && (await withServer(t, 'mysql9'));
    if (!info) return;
    const account = mysqlAccounts.mysql9.find(({ plugin, refused: no }) => /caching/.test(plugin) && !no);
    assert.ok(account);
    const { user: username, password } = account;
    const { references } = await keep(servers.openbao, { username, password });
    const tls = { mode: 'verify-full', ca: info.ca, serverName: 'localhost' };
    await using postern = await perform(servers.openbao, {
      db: {
        connector: 'mysql',
        credentials: references,
        config: { host: info.host, port: info.port, tls },
        limits: { ...PATIENT, maxSessionAge: '1h' },
      },
    });
    const client = await mysql.createConnection({
      host: '127.0.0.1',
      port: postern.port('db'),
      user: 'x',
      database: 'app',
    });
    await client.query('begin');
    postern.signal('SIGTERM');
    await postern.logged(({ msg }) => msg === 'stopping');
    await client.query('select 1');
    const told = new Promise((resolve) => client.once('error', resolve));
    await client.query('commit');
    // The client has no word for an error that nobody has asked for.
    await told;
    assert.deepEqual(await postern.exited(), { code: 0, signal: null });
    assert.ok(postern.lines.some(({ outcome }) => outcome === 'SESSION_EXPIRED'));
  });

  it('begins after minDrainDelay: until then clients are served, probes hear 503, and nothing is reloaded', async (t) => {
    const at = await scene(t, PATIENT, ['--min-drain-delay', '6s']);
    if (!at) return;
    await using postern = at.postern;
    postern.signal('SIGTERM');
    await postern.logged(({ msg }) => msg === 'not ready any more, and still accepting');
    assert.deepEqual(await postern.admin('/readyz'), { status: 503, text: 'draining\n' });
    assert.equal((await postern.admin('/livez')).status, 200);
    const late = await application(at.port);
    await postern.writeConfig(configuration(at.openbao, { db: at.service, other: at.service }));
    postern.signal('SIGHUP');
    await eventually('the port to be closed to new sessions', async () => {
      try {
        await ask(at.port, 'select 1');
        return false;
      } catch (error) {
        return (error as { code?: string }).code === '57P03';
      }
    });
    assert.equal((await late.query('select 1')).rowCount, 1, 'a session of the delay is served like any');
    await late.end();
    assert.deepEqual(await postern.exited(), { code: 0, signal: null });
    assert.deepEqual(course(postern), ['stopping', 'not ready any more, and still accepting', 'stopped']);
  });

  it('and its delay are over at a second signal', async (t) => {
    const at = await scene(t, PATIENT, ['--min-drain-delay', '10m']);
    if (!at) return;
    await using postern = at.postern;
    postern.signal('SIGTERM');
    await postern.logged(({ msg }) => msg === 'not ready any more, and still accepting');
    postern.signal('SIGINT');
    assert.deepEqual(await postern.exited(), { code: 130, signal: null });
    assert.deepEqual(course(postern), [
      'stopping',
      'not ready any more, and still accepting',
      'ended without waiting for sessions',
    ]);
  });

  it('ends an HTTP connection with the response that is under way', async (t) => {
    const answer = Promise.withResolvers<void>();
    const origin = createServer((_request, response) => {
      void answer.promise.then(() => response.end('late'));
    });
    await once(origin.listen(0, '127.0.0.1'), 'listening');
    t.after(() => origin.close());
    const { port } = origin.address() as AddressInfo;
    const service = {
      connector: 'http',
      listenOn: 'tcp://127.0.0.1:0',
      limits: PATIENT,
      credentials: { token: { from: 'env', get: 'TOKEN' } },
      config: {
        upstream: `http://127.0.0.1:${port}`,
        allowPlainHttp: true,
        authenticate: { bearer: 'token' },
      },
    };
    await using postern = await Postern.start(JSON.stringify({ version: 2, services: { api: service } }), {
      env: { TOKEN: canary.openbaoUserpass },
    });
    const idle = await Peer.connect(postern.port('api'));
    const peer = await Peer.connect(postern.port('api'));
    const asked = once(origin, 'request');
    peer.send(Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'));
    await asked;
    postern.signal('SIGTERM');
    await eventually('the port to be closed', async () => !(await answers(postern.port('api'))));
    answer.resolve();
    const text = (await peer.rest()).toString();
    assert.match(text, /^HTTP\/1\.1 200 OK\r\n/);
    assert.match(text, /\r\nConnection: close\r\n/i);
    assert.match(text, /late$/);
    await idle.rest();
    for (const each of [peer, idle]) each.end();
    assert.deepEqual(await postern.exited(), { code: 0, signal: null });
  });
});
