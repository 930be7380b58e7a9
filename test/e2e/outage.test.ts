import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { after, describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import mysql from 'mysql2/promise';

import { Postern } from '../support/postern.ts';
import {
  canary,
  mysqlAccounts,
  type PostgresInfo,
  type PrivateOpenBao,
  server,
  startOpenBao,
} from '../support/servers.ts';
import {
  application,
  ask,
  configuration,
  environment,
  eventually,
  keep,
  refused,
  shared,
  towards,
} from './stage.ts';

/** How a broken store answers; `well` hands everything on to the real one. */
const faults = {
  'does not answer at all': undefined,
  'refuses connections with a reset': 'reset',
  'answers 500': response('500 Internal Server Error', '{"errors":["boom"]}'),
  'answers 429': response(
    '429 Too Many Requests',
    '{"errors":["request path \\"x\\": rate limit quota exceeded"]}',
  ),
  'answers 503, as a sealed one does': response('503 Service Unavailable', '{"errors":["Vault is sealed"]}'),
  'answers with garbage': response('200 OK', '\u0000\u0001<html>no json</html>'),
  'answers with half a JSON': response('200 OK', '{"request_id":"x","data":{"data":{"usern', 400),
  'answers with another protocol': '220 mail.example ESMTP\r\n',
} as const;

type Fault = keyof typeof faults;

function response(status: string, body: string, length = Buffer.byteLength(body)): string {
  return `HTTP/1.1 ${status}\r\nContent-Type: application/json\r\nContent-Length: ${length}\r\nConnection: close\r\n\r\n${body}`;
}

/** Stands between Postern and the store. */
class Interposer implements AsyncDisposable {
  readonly #server = createServer();
  readonly #sockets = new Set<Socket>();
  #fault: Fault | undefined;
  /** Connections since the fault began. */
  attempts = 0;

  static async before(port: number): Promise<Interposer> {
    const interposer = new Interposer();
    interposer.#server.on('connection', (near) => interposer.#serve(near, port));
    await once(interposer.#server.listen(0, '127.0.0.1'), 'listening');
    return interposer;
  }

  get address(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  set fault(fault: Fault | undefined) {
    this.#fault = fault;
    this.attempts = 0;
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve(near: Socket, port: number): void {
    this.#sockets.add(near);
    near.on('close', () => this.#sockets.delete(near)).on('error', () => {});
    if (this.#fault === undefined) {
      const far = connect(port, '127.0.0.1');
      this.#sockets.add(far);
      far.on('close', () => this.#sockets.delete(far)).on('error', () => near.destroy());
      near.pipe(far).pipe(near);
      return;
    }
    this.attempts += 1;
    const says = faults[this.#fault];
    if (says === 'reset') near.resetAndDestroy();
    else near.on('data', () => says !== undefined && near.end(says));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

let bao: PrivateOpenBao | undefined;
after(() => bao?.stop());
const scene = shared(async () => {
  const postgres = await server('postgres18');
  bao = await startOpenBao();
  return { postgres, bao };
});

async function brokering(
  t: TestContext,
  at: { readonly postgres: PostgresInfo; readonly bao: PrivateOpenBao },
  cache: object,
  limits: object = {},
) {
  const interposer = await Interposer.before(at.bao.port);
  t.after(() => interposer[Symbol.asyncDispose]());
  const login = { username: 'scram_user', password: canary.postgres };
  const { path, references: credentials } = await keep(at.bao, login);
  const text = configuration(
    { ...at.bao, address: interposer.address },
    { db: { credentials, config: { ...towards(at.postgres), connectTimeout: '60s' } } },
    { cache, limits },
  );
  const postern = await Postern.start(text, { env: environment(at.bao) });
  return { interposer, postern, port: postern.port('db'), store: { path, login } };
}

const served = async (port: number) =>
  assert.deepEqual(await ask(port, 'select 42 as answer'), { answer: 42 });

describe('a secret store that fails', { timeout: 240_000, concurrency: 4 }, () => {
  for (const fault of Object.keys(faults) as Fault[])
    it(`and ${fault}: sessions live on, new ones have the last credential for maxStale, then an error within a second; all is well again without a restart`, async (t) => {
      const at = await scene(t);
      if (!at) return;
      const { interposer, postern, port } = await brokering(
        t,
        at,
        { maxStale: '4s' },
        { loginTimeout: '3s' },
      );
      await using running = postern;
      const live = await application(port);
      await served(port);

      interposer.fault = fault;
      const began = performance.now();
      let slowest = 0;
      let connections = 0;
      while (performance.now() - began < 2500) {
        const started = performance.now();
        await served(port);
        slowest = Math.max(slowest, performance.now() - started);
        connections += 1;
        await sleep(50);
      }
      assert.equal(await running.metric('postern_credential_stale', { service: 'db' }), 1);
      assert.ok((await running.metric('postern_credential_requests_total', { from: 'stale' })) > 0);
      // One may wait a second for a provider that is slow; the others know.
      assert.ok(slowest < 8000, `one was held for ${Math.round(slowest)} ms`);

      await eventually('the bound to be over', async () => performance.now() - began > 4600);
      await refused(port);
      const refusal = await refused(port);
      assert.equal(refusal.code, '57P03');
      assert.match(refusal.message, /provider "bao"/);
      assert.ok(refusal.ms < 8000, `refused after ${Math.round(refusal.ms)} ms`);
      assert.equal((await live.query('select 1')).rowCount, 1, 'a live session died of it');
      const { attempts } = interposer;
      assert.equal(await running.metric('postern_provider_up', { provider: 'bao' }), 0);
      const { text } = await running.admin('/readyz?verbose');
      assert.match(
        text,
        /^service db: failing for \d+ s \(PROVIDER_UNAVAILABLE, \d+ times, next in \d+ s\): provider "bao"/m,
      );

      interposer.fault = undefined;
      await eventually('the store to be asked again', () =>
        served(port).then(
          () => true,
          () => false,
        ),
      );
      assert.equal(await running.metric('postern_provider_up', { provider: 'bao' }), 1);
      assert.equal(await running.metric('postern_provider_consecutive_failures', { provider: 'bao' }), 0);
      assert.equal(await running.metric('postern_credential_stale', { service: 'db' }), 0);
      const said = running.lines.filter(({ msg }) => msg.startsWith('using an old credential'));
      assert.equal(said.length, 1, 'said once for each outage');
      t.diagnostic(
        `${connections} connections with the old credential, the slowest in ${Math.round(slowest)} ms; then refused in ${Math.round(refusal.ms)} ms; ${attempts} requests to the store meanwhile`,
      );
      await live.end();
    });

  it('is not asked by every client: attempts back off', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { interposer, postern, port } = await brokering(t, at, {});
    await using running = postern;
    await served(port);
    interposer.fault = 'answers 503, as a sealed one does';
    const storm = await Promise.all(Array.from({ length: 100 }, () => refused(port)));
    assert.ok(storm.every(({ code }) => code === '57P03'));
    const end = performance.now() + 5000;
    while (performance.now() < end) await refused(port);
    const attempts = await running.metric('postern_provider_consecutive_failures', { provider: 'bao' });
    assert.ok(attempts >= 3 && attempts <= 7, `${attempts} attempts in 5 s`);
    t.diagnostic(`5 s of clients without a pause: ${attempts} questions`);
  });

  it('is asked once by 500 clients who connect at once, with nothing in hand', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { postern, port } = await brokering(t, at, { ttl: '1h' }, { loginTimeout: '60s' });
    await using running = postern;
    const rows = await Promise.all(
      Array.from({ length: 500 }, () => ask(port, 'select 1 as one', { connectionTimeoutMillis: 60_000 })),
    );
    assert.equal(rows.length, 500);
    const asked = await running.metric('postern_provider_requests_total', { provider: 'bao', outcome: 'ok' });
    t.diagnostic(`500 connections, ${asked} questions for 2 references`);
    assert.equal(asked, 1);
  });

  it('is one that says no where it does not know the secret any more: nothing old is used then', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { postern, port, store } = await brokering(t, at, { maxStale: '1h' });
    await using running = postern;
    await served(port);
    await at.bao.remove(store.path);
    const { code, message } = await refused(port);
    assert.equal(code, '28000');
    assert.match(message, /provider "bao"/);
    assert.equal((await refused(port)).code, '28000');
    await at.bao.write(store.path, { data: store.login });
    await eventually('the store to answer', () =>
      served(port).then(
        () => true,
        () => false,
      ),
    );
    assert.ok(!running.output.includes('using an old credential'));
  });
});

describe('a secret store that fails, for HTTP and MySQL', { timeout: 240_000 }, () => {
  for (const fault of ['does not answer at all', 'answers 503, as a sealed one does'] as const)
    it(`and ${fault}: requests and logins go on with what there was for maxStale, then fail in their own protocols within a second`, async (t) => {
      const at = await scene(t);
      if (!at) return;
      const seen: (string | undefined)[] = [];
      const api = createHttpServer((request, response) => {
        seen.push(request.headers.authorization);
        response.end('answer');
      });
      await once(api.listen(0, '127.0.0.1'), 'listening');
      t.after(() => api.close());
      const info = await server('mysql9');
      const account = mysqlAccounts.mysql9.find(({ plugin, refused: no }) => /caching/.test(plugin) && !no);
      assert.ok(account);
      const interposer = await Interposer.before(at.bao.port);
      t.after(() => interposer[Symbol.asyncDispose]());
      const token = await keep(at.bao, { token: canary.postgres });
      const login = await keep(at.bao, { username: account.user, password: account.password });
      const upstream = `http://127.0.0.1:${(api.address() as AddressInfo).port}`;
      const cache = { ttl: '500ms', maxStale: '4s' };
      const tls = { mode: 'verify-full', ca: info.ca, serverName: 'localhost' };
      const text = configuration(
        { ...at.bao, address: interposer.address },
        {
          api: {
            connector: 'http',
            credentials: token.references,
            config: { upstream, allowPlainHttp: true, authenticate: { bearer: 'token' } },
          },
          db: {
            connector: 'mysql',
            credentials: login.references,
            config: { host: info.host, port: info.port, tls },
          },
        },
        { cache, limits: { loginTimeout: '3s' } },
      );
      await using postern = await Postern.start(text, { env: environment(at.bao) });
      const request = async () => {
        const started = performance.now();
        const response = await fetch(`http://127.0.0.1:${postern.port('api')}/`);
        const body = await response.text();
        return {
          status: response.status,
          code: response.headers.get('postern-error'),
          body,
          ms: performance.now() - started,
        };
      };
      const connecting = async () => {
        const started = performance.now();
        const port = postern.port('db');
        try {
          const client = await mysql.createConnection({
            host: '127.0.0.1',
            port,
            user: 'x',
            database: 'app',
          });
          await client.query('select 1');
          await client.end();
          return { errno: 0, message: '', ms: performance.now() - started };
        } catch (error) {
          const { errno = -1, message } = error as Error & { errno?: number };
          return { errno, message, ms: performance.now() - started };
        }
      };
      assert.equal((await request()).body, 'answer');
      assert.equal((await connecting()).errno, 0);

      interposer.fault = fault;
      for (const end = performance.now() + 2500; performance.now() < end; ) {
        const [answer, client] = await Promise.all([request(), connecting()]);
        assert.deepEqual([answer.status, client.errno], [200, 0], `${answer.body} ${client.message}`);
      }
      assert.ok(seen.every((authorization) => authorization === `Bearer ${canary.postgres}`));

      await eventually(
        'the end of maxStale',
        async () => (await request()).status !== 200 && (await connecting()).errno !== 0,
      );
      const [answer, client] = await Promise.all([request(), connecting()]);
      assert.deepEqual([answer.status, answer.code], [503, 'PROVIDER_UNAVAILABLE']);
      assert.match(answer.body, /provider \\"bao\\"/);
      assert.equal(client.errno, 1158);
      assert.match(client.message, /provider "bao"/);
      assert.ok(answer.ms < 8000 && client.ms < 8000, `told after ${answer.ms} ms and ${client.ms} ms`);

      interposer.fault = undefined;
      await eventually('the store to be asked again', async () => (await request()).status === 200, 20_000);
      await eventually('logins to succeed again', async () => (await connecting()).errno === 0, 20_000);
    });
});
