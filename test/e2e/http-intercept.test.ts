import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { copyFile, readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { after, describe, it } from 'node:test';

import { withDriver } from '../support/clients/drivers.ts';
import { httpClients, pythonWebSocket, uploaded } from '../support/clients/http-clients.ts';
import { big, HttpOrigin } from '../support/http-origin.ts';
import {
  clientEnvironment,
  ended,
  type HttpService,
  open,
  Papers,
  performHttp,
  readAnswer,
  secured,
  token,
  tunnel,
} from './http-stage.ts';
import { eventually, shared } from './stage.ts';

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
const ends: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const end of ends.toReversed()) await end();
});

const scene = shared(async () => {
  const papers = await Papers.make();
  ends.push(() => papers[Symbol.asyncDispose]());
  const [api, other] = [
    await HttpOrigin.open(await papers.leaf('api.test')),
    await HttpOrigin.open(await papers.leaf('other.test')),
  ];
  ends.push(
    () => api[Symbol.asyncDispose](),
    () => other[Symbol.asyncDispose](),
  );
  const service: HttpService = {
    config: {
      match: [
        `https://api.test:${api.port}/**`,
        { host: 'strict.test', port: api.port, scheme: 'https', method: ['GET', 'POST'], path: '/ok/**' },
      ],
      tls: { ca: papers.serversCa },
      intercept: { caCert: papers.local.cert, caKey: papers.local.key },
    },
  };
  const postern = await performHttp(
    { api: service },
    { 'api.test': '127.0.0.1', 'strict.test': '127.0.0.1', 'other.test': '127.0.0.1' },
  );
  ends.push(() => postern[Symbol.asyncDispose]());
  const env = clientEnvironment(postern.port('api'), papers.local.cert);
  const ca = await readFile(papers.local.cert);
  return { papers, api, other, postern, env, ca, port: postern.port('api') };
});

for (const client of httpClients)
  describe(`${client.name}, by CONNECT`, () => {
    it('gets, posts and uploads with a credential that it does not have', async (t) => {
      const here = await scene(t);
      if (!here || !(await withDriver(t, client))) return;
      const { api, env } = here;
      const url = (path: string) => `https://api.test:${api.port}${path}`;
      const got = await client.ask('get', url('/big'), env);
      assert.deepEqual([got.status, got.sha256], [200, sha256(big)], got.error);
      assert.equal(api.last?.authorization, `Bearer ${token}`);
      const posted = await client.ask('post', url('/x?y=1'), env);
      assert.equal(posted.status, 200, posted.error);
      assert.deepEqual(
        [api.last?.url, api.last?.length, api.last?.host],
        ['/x?y=1', 7, `api.test:${api.port}`],
      );
      assert.equal(api.last?.authorization, `Bearer ${token}`);
      const sent = await client.ask('upload', url('/up'), env);
      assert.equal(sent.status, 200, sent.error);
      assert.equal(api.last?.sha256, sha256(uploaded));
      assert.equal((await client.ask('get', url('/status/404'), env)).status, 404);
    });

    it('does not get to a host that no rule names', async (t) => {
      const here = await scene(t);
      if (!here || !(await withDriver(t, client))) return;
      const { other, env } = here;
      const answer = await client.ask('get', `https://other.test:${other.port}/`, env);
      assert.ok(answer.status === 0 || answer.status === 403, JSON.stringify(answer));
      assert.equal(other.connections, 0);
    });
  });

describe('an intercepted tunnel', () => {
  it('carries a WebSocket', async (t) => {
    const here = await scene(t);
    if (
      !here ||
      !(await withDriver(t, {
        name: 'python',
        prepare: httpClients.find(({ name }) => name === 'httpx')?.prepare ?? assert.fail(),
      }))
    )
      return;
    const answer = await pythonWebSocket(`wss://api.test:${here.api.port}/ws`, here.env);
    assert.deepEqual([answer.status, answer.echoed], [101, 3], answer.error);
    assert.equal(here.api.last?.authorization, `Bearer ${token}`);
  });

  it('serves one request after the other, and those that are sent ahead', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { api, ca, port } = here;
    const target = `api.test:${api.port}`;
    const { socket } = await tunnel(port, target);
    const secure = await secured(socket, { ca, servername: 'api.test', ALPNProtocols: ['h2', 'http/1.1'] });
    assert.equal(secure.alpnProtocol, 'http/1.1');
    const request = (path: string) => `GET ${path} HTTP/1.1\r\nHost: ${target}\r\n\r\n`;
    for (const path of ['/1', '/2']) {
      secure.write(request(path));
      assert.match((await readAnswer(secure)).body, new RegExp(`"url":"${path}"`));
    }
    const before = api.received.length;
    secure.write(['/3', '/4', '/5'].map(request).join(''));
    let text = '';
    secure.on('data', (chunk: Buffer) => (text += chunk.toString())).resume();
    await eventually('three answers', () => text.includes('"url":"/5"'));
    assert.deepEqual(
      api.received.slice(before).map(({ url }) => url),
      ['/3', '/4', '/5'],
    );
    secure.destroy();
    const line = await here.postern.logged(({ msg, requests }) => msg === 'session ended' && requests === 5);
    assert.deepEqual([line['upstream'], line['host']], [`https://${target}`, 'api.test']);
  });

  it('begins also where the client sends its handshake without waiting for an answer', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { api, ca, port } = here;
    const raw = await open(port);
    const target = `api.test:${api.port}`;
    // Puts the CONNECT in front of the first record, and takes the answer to it off.
    let first = true;
    let answered = false;
    const glued = new Duplex({
      read() {},
      write(chunk: Buffer, _encoding, done) {
        const connect = `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\n`;
        raw.write(first ? Buffer.concat([Buffer.from(connect), chunk]) : chunk, done);
        first = false;
      },
    });
    raw.on('data', (chunk: Buffer) => {
      if (answered) return void glued.push(chunk);
      answered = true;
      const end = chunk.indexOf('\r\n\r\n') + 4;
      assert.match(chunk.toString('latin1', 0, end), /^HTTP\/1\.1 200 /);
      if (end < chunk.length) glued.push(chunk.subarray(end));
    });
    const secure = await secured(glued as Socket, { ca, servername: 'api.test' });
    secure.write(`GET /ahead HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
    assert.equal((await readAnswer(secure)).status, 200);
    raw.destroy();
  });

  it('is for the server that it was asked for, in the handshake and in each request', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { api, ca, port } = here;
    const before = api.received.length;
    const wrongName = await tunnel(port, `api.test:${api.port}`);
    const misled = await secured(wrongName.socket, {
      ca,
      servername: 'strict.test',
      checkServerIdentity: () => undefined,
    });
    assert.equal((await readAnswer(misled)).status, 421);
    for (const request of [
      `GET / HTTP/1.1\r\nHost: strict.test:${api.port}\r\n\r\n`,
      'GET / HTTP/1.1\r\nHost: api.test\r\n\r\n',
      'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n',
      `GET http://api.test:${api.port}/ HTTP/1.1\r\nHost: api.test:${api.port}\r\n\r\n`,
      `GET https://strict.test:${api.port}/ok/x HTTP/1.1\r\nHost: strict.test:${api.port}\r\n\r\n`,
      'GET / HTTP/1.0\r\n\r\n',
    ]) {
      const { socket } = await tunnel(port, `api.test:${api.port}`);
      const secure = await secured(socket, { ca, servername: 'api.test' });
      secure.write(request);
      assert.equal((await readAnswer(secure)).status, 421, request);
      secure.destroy();
    }
    assert.equal(api.received.length, before);
    const { socket } = await tunnel(port, `api.test:${api.port}`);
    const secure = await secured(socket, { ca, servername: 'api.test' });
    secure.write(`GET https://API.test:${api.port}/whole HTTP/1.1\r\nHost: api.TEST:${api.port}\r\n\r\n`);
    assert.equal((await readAnswer(secure)).status, 200);
    assert.equal(api.last?.url, '/whole');
    secure.destroy();
  });

  it('has each request checked by the rules, method and path', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { api, ca, port } = here;
    const target = `strict.test:${api.port}`;
    const before = api.received.length;
    for (const [line, status] of [
      ['GET /ok/x', 421],
      ['DELETE /ok/x', 403],
      ['GET /no', 403],
      ['GET /ok/../no', 403],
      ['GET /ok/%2e%2e/no', 403],
      ['GET /ok%2f..%2fno', 403],
      ['CONNECT api.test:443', 501],
      ['OPTIONS *', 403],
    ] as const) {
      const { socket } = await tunnel(port, target);
      const secure = await secured(socket, { ca, servername: 'strict.test' });
      const host =
        status === 421 ? `api.test:${api.port}` : line.startsWith('CONNECT') ? 'api.test:443' : target;
      secure.write(`${line} HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
      const answer = await readAnswer(secure);
      assert.equal(answer.status, status, `${line}: ${answer.body}`);
      if (line === 'DELETE /ok/x') assert.match(answer.body, /GET,POST https:\/\/strict\.test:\d+\/ok\/\*\*/);
      secure.destroy();
    }
    assert.equal(api.received.length, before);
  });

  it('is refused for a host that no rule names over TLS, with the rules that there are', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { api, other, port } = here;
    for (const target of [
      `other.test:${other.port}`,
      'api.test:80',
      'api.test:443',
      `127.0.0.1:${api.port}`,
      '169.254.169.254:443',
    ]) {
      const { answer } = await tunnel(port, target);
      assert.equal(answer.status, 403, target);
      assert.match(answer.body, /https:\/\/api\.test:\d+\/\*\*/);
      assert.match(answer.body, /nothing was sent/);
    }
    for (const target of [
      'api.test',
      'api.test:0',
      ':443',
      'http://api.test:443',
      'api.test:70000',
      '0x7f.1:443',
    ]) {
      const { answer } = await tunnel(port, target);
      assert.equal(answer.status, 400, target);
    }
    assert.equal(other.connections, 0);
  });

  it('is left when its handshake is none, is too old, wants another protocol, or breaks off', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { api, ca, port, postern } = here;
    const target = `api.test:${api.port}`;
    const plain = await tunnel(port, target);
    plain.socket.write(`GET / HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
    await ended(plain.socket);
    for (const options of [
      { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' },
      { ALPNProtocols: ['h2'] },
    ] as const) {
      const { socket } = await tunnel(port, target);
      await assert.rejects(secured(socket, { ca, servername: 'api.test', ...options }));
    }
    const half = await tunnel(port, target);
    half.socket.end(Buffer.from('160301020001', 'hex'));
    await ended(half.socket);
    const gone = await tunnel(port, target);
    gone.socket.resetAndDestroy();
    await postern.logged(
      (line) => line['outcome'] === 'CLIENT_PROTOCOL' && line['connect'] === 'intercepted',
    );
    // And all is well for the next one.
    const { socket } = await tunnel(port, target);
    const secure = await secured(socket, { ca, servername: 'api.test' });
    secure.write(`GET / HTTP/1.1\r\nHost: ${target}\r\n\r\n`);
    assert.equal((await readAnswer(secure)).status, 200);
    secure.destroy();
  });

  it('serves many at the same time', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { api, ca, port } = here;
    const target = `api.test:${api.port}`;
    const answers = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const { socket } = await tunnel(port, target);
        const secure = await secured(socket, { ca, servername: 'api.test' });
        secure.write(`GET /many/${i} HTTP/1.1\r\nHost: ${target}\r\nConnection: close\r\n\r\n`);
        const { body } = await readAnswer(secure);
        secure.destroy();
        return (JSON.parse(body) as { url: string }).url;
      }),
    );
    assert.deepEqual(
      answers,
      Array.from({ length: 100 }, (_, i) => `/many/${i}`),
    );
  });
});

describe('a listener that intercepts', () => {
  it('ends a client that is silent in its handshake at the deadline', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { papers, api } = here;
    await using postern = await performHttp(
      {
        slow: {
          config: {
            match: [`https://api.test:${api.port}/**`],
            intercept: { caCert: papers.local.cert, caKey: papers.local.key },
          },
          limits: { loginTimeout: '500ms' },
        },
      },
      {},
    );
    const { socket, answer } = await tunnel(postern.port('slow'), `api.test:${api.port}`);
    assert.equal(answer.status, 200);
    const started = performance.now();
    await ended(socket);
    assert.ok(performance.now() - started < 8000);
    await postern.logged((line) => line['outcome'] === 'TIMEOUT');
  });

  it('fetches its authority from where the credentials come from, and goes on when that is new', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { papers, api } = here;
    const files = { caCert: join(papers.folder, 'vault.crt'), caKey: join(papers.folder, 'vault.key') };
    await copyFile(papers.local.cert, files.caCert);
    await copyFile(papers.local.key, files.caKey);
    await using postern = await performHttp(
      {
        api: {
          credentials: {
            token: { from: 'env', get: 'TOKEN' },
            caCert: { from: 'file', get: files.caCert },
            caKey: { from: 'file', get: files.caKey },
          },
          config: {
            match: [`https://api.test:${api.port}/**`],
            tls: { ca: papers.serversCa },
            intercept: {},
          },
        },
      },
      { 'api.test': '127.0.0.1' },
    );
    const target = `api.test:${api.port}`;
    const ask = async (ca: Buffer) => {
      const { socket } = await tunnel(postern.port('api'), target);
      const secure = await secured(socket, { ca, servername: 'api.test' });
      secure.write(`GET / HTTP/1.1\r\nHost: ${target}\r\nConnection: close\r\n\r\n`);
      const { status } = await readAnswer(secure);
      secure.destroy();
      return status;
    };
    assert.equal(await ask(here.ca), 200);
    const next = await Papers.make();
    await copyFile(next.local.key, files.caKey);
    await copyFile(next.local.cert, files.caCert);
    const ca = await readFile(next.local.cert);
    await eventually('the new authority', async () => (await ask(ca).catch(() => 0)) === 200, 15_000);
    await next[Symbol.asyncDispose]();
  });

  it('says before the tunnel that its authority cannot be had', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { papers, api } = here;
    await using postern = await performHttp(
      {
        api: {
          credentials: { token: 'x', caKey: { from: 'file', get: join(papers.folder, 'none.key') } },
          config: { match: [`https://api.test:${api.port}/**`], intercept: { caCert: papers.local.cert } },
        },
      },
      {},
    );
    const { answer } = await tunnel(postern.port('api'), `api.test:${api.port}`);
    assert.equal(answer.status, 502);
    assert.match(answer.body, /PROVIDER_FAILED/);
  });

  it('does not tunnel to a private address, by its spelling or by its name, and never blindly with a credential', async (t) => {
    const here = await scene(t);
    if (!here) return;
    const { papers, api, other } = here;
    await using postern = await performHttp(
      {
        api: {
          config: {
            match: [`https://api.test:${api.port}/**`],
            intercept: { caCert: papers.local.cert, caKey: papers.local.key, unmatched: 'tunnel' },
          },
        },
      },
      {
        'api.test': '127.0.0.1',
        'other.test': '127.0.0.1',
        'meta.test': '169.254.169.254',
        'six.test': '::ffff:127.0.0.1',
      },
    );
    const before = other.connections;
    for (const host of [
      '127.0.0.1',
      'localhost',
      '[::1]',
      '169.254.169.254',
      '10.0.0.1',
      'other.test',
      'six.test',
      'meta.test',
    ]) {
      const { answer } = await tunnel(postern.port('api'), `${host}:${other.port}`);
      assert.ok(answer.status === 403 || answer.status === 502, `${host}: ${answer.status}`);
    }
    assert.equal(other.received.length, 0);
    assert.equal(other.connections, before);
  });
});
