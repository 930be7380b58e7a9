import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { Agent, createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { Postern } from '../support/postern.ts';
import { freePort } from '../support/servers/process.ts';
import { type HttpService, httpConfiguration, open, performHttp, readAnswer } from './http-stage.ts';
import { configuration, environment, eventually, keep, stage } from './stage.ts';

const hostsModule = fileURLToPath(new URL('../support/hosts.ts', import.meta.url));

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

async function serverOf(t: TestContext, answer: Answer): Promise<number> {
  const server = createServer(answer);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** A token in a file that changes as a whole. */
async function tokenFile(t: TestContext): Promise<{ path: string; set: (token: string) => Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-rotation-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const path = join(folder, 'token');
  const set = async (token: string) => {
    await writeFile(`${path}.new`, token);
    await rename(`${path}.new`, path);
  };
  return { path, set };
}

const ask = async (port: number, path: string) => {
  const socket = await open(port);
  socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
  try {
    return await readAnswer(socket);
  } finally {
    socket.destroy();
  }
};

describe('a credential that changes while requests are under way', { timeout: 120_000 }, () => {
  it('is the one of its own time also for a request that waited for a connection meanwhile', async (t) => {
    const gate = Promise.withResolvers<void>();
    const seen = new Map<string, string | undefined>();
    const upstream = await serverOf(t, ({ url = '', headers }, response) => {
      seen.set(url, headers.authorization);
      void (url === '/busy' ? gate.promise : Promise.resolve()).then(() => response.end('done'));
    });
    const token = await tokenFile(t);
    await token.set('token-of-the-first-time');
    await using postern = await performHttp(
      {
        api: {
          credentials: { token: { from: 'file', get: token.path } },
          config: {
            upstream: `http://127.0.0.1:${upstream}`,
            allowPlainHttp: true,
            pool: { maxConnections: 1 },
          },
          cache: { ttl: '0s' },
        },
      },
      {},
    );
    const port = postern.port('api');
    const busy = ask(port, '/busy');
    await eventually('the first to arrive', () => seen.has('/busy'));
    const waiting = ask(port, '/waiting');
    await sleep(100);
    await token.set('token-of-the-second-time');
    assert.equal((await ask(port, '/later')).body, 'done');
    gate.resolve();
    assert.equal((await busy).body, 'done');
    assert.equal((await waiting).body, 'done');
    assert.deepEqual(Object.fromEntries(seen), {
      '/busy': 'Bearer token-of-the-first-time',
      '/waiting': 'Bearer token-of-the-second-time',
      '/later': 'Bearer token-of-the-second-time',
    });
  });

  it('is not that of another service where the rules changed while it was waited for', async (t) => {
    const store = Promise.withResolvers<void>();
    let asked = 0;
    const vault = await serverOf(t, (_request, response) => {
      asked += 1;
      void store.promise.then(() =>
        response.end(JSON.stringify({ data: { data: { token: 'token-of-the-slow-one' }, metadata: {} } })),
      );
    });
    const seen: (string | undefined)[] = [];
    const upstream = await serverOf(t, ({ headers }, response) => {
      seen.push(headers.authorization);
      response.end('done');
    });
    const listenOn = `tcp://127.0.0.1:${await freePort()}`;
    const match = [`http://api.test:${upstream}/**`];
    const quick = {
      listenOn,
      credentials: { token: 'token-of-the-quick-one' },
      config: { match, allowPlainHttp: true },
    };
    const slow = { ...quick, credentials: { token: { from: 'slow', get: 'secret/x#token' } } };
    const text = (services: Readonly<Record<string, HttpService>>) =>
      JSON.stringify({
        ...(JSON.parse(httpConfiguration(services)) as object),
        providers: {
          slow: {
            kind: 'vault',
            address: `http://127.0.0.1:${vault}`,
            auth: { method: 'token', tokenEnv: 'SLOW_TOKEN' },
          },
        },
      });
    const other = { ...quick, config: { ...quick.config, match: [`http://other.test:${upstream}/**`] } };
    await using postern = await Postern.start(text({ other, slow }), {
      env: { SLOW_TOKEN: 'x', TEST_HOSTS: 'api.test=127.0.0.1,other.test=127.0.0.1' },
      nodeOptions: `--import=${hostsModule}`,
    });
    const socket = await open(Number(listenOn.split(':').at(-1)));
    socket.write(`GET http://api.test:${upstream}/x HTTP/1.1\r\nHost: api.test:${upstream}\r\n\r\n`);
    const answer = readAnswer(socket);
    await eventually('the store to be asked', () => asked > 0);
    // The service stays and its rule goes to another one.
    await postern.writeConfig(
      text({ other: quick, slow: { ...slow, config: { ...quick.config, match: other.config.match } } }),
    );
    postern.signal('SIGHUP');
    await postern.logged(({ msg }) => msg === 'configuration reloaded');
    store.resolve();
    await answer.then(
      ({ status }) => assert.ok(status === 200 || status === 503, String(status)),
      () => assert.fail('no answer'),
    );
    for (const each of seen) assert.equal(each, 'Bearer token-of-the-quick-one');
    socket.destroy();
    assert.equal((await fetchThrough(postern.port('other'), `http://api.test:${upstream}/x`)).status, 200);
  });
});

async function fetchThrough(port: number, url: string) {
  const socket = await open(port);
  socket.write(`GET ${url} HTTP/1.1\r\nHost: ${new URL(url).host}\r\n\r\n`);
  const answer = await readAnswer(socket);
  socket.destroy();
  return answer;
}

/** Requests at a steady pace over connections that are kept, and what became of them. */
class Load {
  sent = 0;
  readonly failures: string[] = [];
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 64 });
  readonly #port: number;
  readonly #timer: NodeJS.Timeout;
  #open = 0;

  constructor(port: number, perSecond: number) {
    this.#port = port;
    const began = performance.now();
    this.#timer = setInterval(() => {
      const due = ((performance.now() - began) / 1000) * perSecond;
      // No more than can be under way: a test that is slow is no failure of what it tests.
      while (this.sent < due && this.#open < 200) this.#ask(this.sent++);
    }, 5);
  }

  #ask(number: number): void {
    this.#open += 1;
    const method = number % 4 === 0 ? 'POST' : 'GET';
    const asked = request({ port: this.#port, host: '127.0.0.1', agent: this.#agent, method }, (response) => {
      response.resume();
      response.once('close', () => (this.#open -= 1));
      if (response.statusCode !== 200) this.failures.push(`${method} ${response.statusCode}`);
    });
    asked.once('error', (error: NodeJS.ErrnoException) => {
      this.#open -= 1;
      this.failures.push(`${method} ${error.code}`);
    });
    asked.end(method === 'POST' ? 'a body' : undefined);
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await eventually('the last answers', () => this.#open === 0, 20_000);
    this.#agent.destroy();
  }
}

const SECONDS = 4;
const PER_SECOND = 1000;

describe(`a secret of OpenBao that is rotated under ${PER_SECOND} requests a second`, {
  timeout: 120_000,
}, () => {
  for (const ttl of [0, 1])
    it(`fails no request, and its old value is not used when the ttl of ${ttl} s is over`, async (t) => {
      const servers = await stage(t);
      if (!servers) return;
      const { openbao } = servers;
      const { path, references } = await keep(openbao, { token: 'rotated-0' });
      const arrived: { at: number; version: number }[] = [];
      const upstream = await serverOf(t, ({ headers }, response) => {
        const version = Number(/^Bearer rotated-(\d+)$/.exec(headers.authorization ?? '')?.[1] ?? Number.NaN);
        arrived.push({ at: performance.now(), version });
        response.end('ok');
      });
      const postern = await Postern.start(
        configuration(openbao, { api: { ...service(upstream, references), cache: { ttl: `${ttl}s` } } }),
        { env: environment(openbao) },
      );
      await using _ = postern;
      const load = new Load(postern.port('api'), PER_SECOND);
      const written: number[] = [0];
      for (const end = performance.now() + SECONDS * 1000; performance.now() < end; await sleep(150)) {
        await openbao.write(path, { data: { token: `rotated-${written.length}` } });
        written.push(performance.now());
      }
      await sleep(ttl * 1000 + 100);
      await load.stop();
      assert.deepEqual(load.failures, []);
      assert.equal(arrived.length, load.sent);
      // What was sent before the end of its time may arrive a little later.
      let latest = 0;
      for (const { at, version } of arrived) {
        assert.ok(Number.isInteger(version));
        const next = written[version + 1];
        if (next !== undefined) latest = Math.max(latest, at - next);
      }
      assert.ok(latest < ttl * 1000 + 1500, `a value was used ${latest} ms after it was replaced`);
      t.diagnostic(
        `${load.sent} requests (${Math.round(load.sent / (SECONDS + ttl))}/s), ${written.length - 1} rotations, 0 failed, an old value seen ${Math.round(latest)} ms after its replacement at most`,
      );
    });

  it('fails no request where the server takes only the newest value, and says 401 to all others', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao } = servers;
    const { path, references } = await keep(openbao, { token: 'rotated-0' });
    let accepted = 'rotated-0';
    let rejected = 0;
    const upstream = await serverOf(t, (incoming, response) => {
      incoming.resume();
      if (incoming.headers.authorization === `Bearer ${accepted}`) return void response.end('ok');
      rejected += 1;
      response.writeHead(401).end('no');
    });
    const postern = await Postern.start(
      configuration(openbao, { api: { ...service(upstream, references), cache: { ttl: '1m' } } }),
      { env: environment(openbao) },
    );
    await using _ = postern;
    const load = new Load(postern.port('api'), PER_SECOND / 4);
    for (let version = 1; version <= 5; version += 1) {
      await sleep(1200);
      await openbao.write(path, { data: { token: `rotated-${version}` } });
      accepted = `rotated-${version}`;
    }
    await sleep(500);
    await load.stop();
    t.diagnostic(
      `${load.sent} requests, 5 rotations, ${rejected} rejections that no client saw, ${load.failures.length} failed`,
    );
    assert.deepEqual(load.failures, []);
    assert.ok(rejected >= 5);
  });
});

function service(upstream: number, credentials: Readonly<Record<string, unknown>>) {
  return {
    connector: 'http',
    credentials,
    config: {
      upstream: `http://127.0.0.1:${upstream}`,
      allowPlainHttp: true,
      authenticate: { bearer: 'token' },
    },
  };
}
