import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, it } from 'node:test';

import { paces, until } from '../../support/session.ts';
import { get, inFrontOf, Origin, ok, readHead, readResponse, request, secret } from './origin.ts';

/** The status line of an answer of Postern's own and its code. */
function told(head: string): [string | undefined, string | undefined] {
  return [/^HTTP\/1\.1 (\d+)/.exec(head)?.[1], /\r\nPostern-Error: (\w+)/.exec(head)?.[1]];
}

for (const reads of ['onread', 'data'] as const)
  for (const pace of paces)
    describe(`a client of the HTTP plane, read by ${reads}, ${pace}`, () => {
      it('gets its request through with the credential, the server as Host, and nothing about the hop', async () => {
        await using origin = await Origin.start(() => ok('hello'), pace);
        await using served = await inFrontOf(origin, { reads }, { pace });
        const client = await served.connect();
        client.send(
          get(
            '/a?b=c',
            'authorization: Bearer mine',
            'Connection: keep-alive, X-Hop',
            'X-Hop: 1',
            'X-Kept: 2',
          ),
        );
        assert.deepEqual(await readResponse(client), {
          head: 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n',
          body: 'hello',
        });
        assert.deepEqual(origin.received[0]?.head.split('\r\n'), [
          'GET /a?b=c HTTP/1.1',
          `Host: 127.0.0.1:${origin.port}`,
          `Authorization: Bearer ${secret}`,
          'X-Kept: 2',
          '',
          '',
        ]);
      });

      it('may send requests ahead: they go one at a time, and are answered in order', async () => {
        let under = 0;
        await using origin = await Origin.start(async ({ head }) => {
          under += 1;
          assert.equal(under, 1);
          await new Promise((resolve) => setTimeout(resolve, 20));
          under -= 1;
          return ok(head.split(' ')[1] ?? '');
        }, pace);
        await using served = await inFrontOf(origin, { reads }, { pace });
        const client = await served.connect();
        client.send(get('/1'), request('POST', '/2', 'Content-Length: 3'), Buffer.from('abc'), get('/3'));
        for (const path of ['/1', '/2', '/3']) assert.equal((await readResponse(client)).body, path);
        assert.equal(origin.received[1]?.body, 'abc');
        client.end();
        assert.equal((await served.ended()).outcome, 'ok');
        assert.equal(served.endings[0]?.['requests'], 3);
        assert.equal(origin.connections, 1);
      });

      it('gets bodies of a length and in chunks through, and trailers are left out', async () => {
        await using origin = await Origin.start(() => ok(''), pace);
        await using served = await inFrontOf(origin, { reads }, { pace });
        const client = await served.connect();
        client.send(request('PUT', '/', 'Content-Length: 10'), Buffer.from('0123456789'));
        await readResponse(client);
        client.send(
          request('POST', '/', 'Transfer-Encoding: chunked'),
          Buffer.from('3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n'),
        );
        await readResponse(client);
        assert.deepEqual(
          origin.received.map(({ body }) => body),
          ['0123456789', '3\r\nabc\r\n0\r\n\r\n'],
        );
      });

      it('is told to go on by the server, and by nobody else', async () => {
        await using origin = await Origin.start(() => ok('done'), pace);
        await using served = await inFrontOf(origin, { reads }, { pace });
        const client = await served.connect();
        client.send(request('POST', '/', 'Content-Length: 3', 'Expect: 100-continue'));
        await until('the head to arrive', () => origin.connections === 1);
        assert.equal(client.takeAll().length, 0);
        client.send(Buffer.from('abc'));
        assert.equal((await readResponse(client)).body, 'done');
        assert.match(origin.received[0]?.head ?? '', /\r\nExpect: 100-continue\r\n/);
      });

      it('is refused in HTTP what no two servers would read alike, and its connection ends', async () => {
        await using origin = await Origin.start(() => ok(''), pace);
        await using served = await inFrontOf(origin, { reads }, { pace });
        const cases: [string, string][] = [
          [
            'GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n',
            '400',
          ],
          ['GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n', '400'],
          ['GET / HTTP/1.1\r\n\r\n', '400'],
          ['GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n', '421'],
          ['CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n', '501'],
          [`GET /${'a'.repeat(70_000)} HTTP/1.1\r\n`, '414'],
        ];
        for (const [said, status] of pace === 'as they come' ? cases : cases.slice(0, -1)) {
          const client = await served.connect();
          client.send(Buffer.from(said, 'latin1'));
          const heard = (await client.rest()).toString();
          assert.equal(told(heard)[0], status, said.slice(0, 60));
          client.end();
        }
        assert.equal(origin.received.length, 0);
      });
    });

describe('a client of the HTTP plane', () => {
  it('is closed after as many requests as one connection may have, and is told so with the last', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(origin, { requestsPerConnection: 2 });
    const client = await served.connect();
    client.send(get());
    assert.doesNotMatch((await readResponse(client)).head, /Connection/);
    client.send(get());
    assert.match((await readResponse(client)).head, /\r\nConnection: close\r\n/);
    assert.equal((await client.rest()).length, 0);
    client.end();
    assert.equal((await served.ended()).outcome, 'ok');
  });

  it('that leaves while its request is under way has it stopped at the server', async () => {
    for (const way of ['end', 'reset'] as const) {
      await using origin = await Origin.start(() => undefined);
      await using served = await inFrontOf(origin);
      const client = await served.connect();
      client.send(get());
      await until('the request to arrive', () => origin.received.length === 1);
      client[way]();
      await until('the connection to the server to end', () => origin.open === 0);
      assert.equal((await served.ended()).outcome, 'CLIENT_CLOSED');
    }
  });

  it('of HTTP/1.0 is kept only where it asks for it, and gets no chunks and no 1xx', async () => {
    await using origin = await Origin.start(({ head }) =>
      head.includes('/chunks')
        ? 'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\nX: y\r\n\r\n'
        : ok('kept'),
    );
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    client.send(Buffer.from('GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n'));
    assert.match((await readResponse(client)).head, /\r\nConnection: keep-alive\r\n/);
    client.send(Buffer.from('GET /chunks HTTP/1.0\r\nConnection: keep-alive\r\n\r\n'));
    assert.equal((await client.rest()).toString(), 'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdefg');
    client.end();
  });

  it('gets 100 and 103 as they come, and a WebSocket only where it asked for one', async () => {
    await using origin = await Origin.start(({ head }) =>
      head.includes('/hints')
        ? `HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n${ok('then')}`
        : 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
    );
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    client.send(get('/hints'));
    assert.equal(await readHead(client), 'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n');
    assert.equal((await readResponse(client)).body, 'then');
    client.send(get('/unasked'));
    assert.deepEqual(told((await client.rest()).toString()), ['502', 'UPSTREAM_PROTOCOL']);
    client.end();
  });

  it('that asks for a WebSocket and gets another answer stays in HTTP', async () => {
    await using origin = await Origin.start(() => ok('no'));
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    const ask = get('/chat', 'Connection: Upgrade', 'Upgrade: websocket');
    client.send(ask, get('/next'));
    assert.equal((await readResponse(client)).body, 'no');
    assert.equal((await readResponse(client)).body, 'no');
    assert.match(origin.received[0]?.head ?? '', /\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n/);
    assert.match(origin.received[1]?.head ?? '', /^GET \/next /);
  });

  it('never sees a response that belongs to a body nobody read: such a connection is not used again', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    for (const method of ['GET', 'DELETE']) {
      client.send(request(method, '/', 'Content-Length: 3'), Buffer.from('abc'));
      await readResponse(client);
    }
    client.send(get());
    await readResponse(client);
    assert.equal(origin.connections, 3);
  });

  it('cannot lead the credential out of the path of the base URL', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(origin, { upstream: `http://127.0.0.1:${origin.port}/team/a/` });
    for (const path of [
      '/../b',
      '/x/../../b',
      '/%2e%2e/b',
      '/..%2fb',
      '/..;/b',
      '/.%2e/b',
      '//../b',
      '/%2e%2e%2fb',
      '*',
    ]) {
      const client = await served.connect();
      client.send(request(path === '*' ? 'OPTIONS' : 'GET', path));
      assert.equal(told((await client.rest()).toString())[0], '403', path);
      client.end();
    }
    assert.equal(origin.received.length, 0);
    const client = await served.connect();
    client.send(get('/x?y=/../z'));
    await readResponse(client);
    assert.match(origin.received[0]?.head ?? '', /^GET \/team\/a\/x\?y=\/\.\.\/z /);
  });

  it('gets a parameter of its own replaced by the one of the service, however it spells it', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(origin, { authenticate: { query: { api_key: '{{ password }}' } } });
    const client = await served.connect();
    for (const [asked, sent] of [
      ['/', `/?api_key=${secret}`],
      ['/?', `/?&api_key=${secret}`],
      ['/a?b=1', `/a?b=1&api_key=${secret}`],
      ['/a?api_key=mine&b=1', `/a?b=1&api_key=${secret}`],
      ['/a?b=1&api%5Fkey=mine', `/a?b=1&api_key=${secret}`],
      ['/a?api_key', `/a?api_key=${secret}`],
      ['/a?b=1;api_key=mine', `/a?api_key=${secret}`],
    ]) {
      client.send(get(asked));
      await readResponse(client);
      assert.equal(origin.received.at(-1)?.head.split(' ')[1], sent);
    }
  });

  it('does not see the credential that a server repeats in its head', async () => {
    await using origin = await Origin.start(() =>
      ok(
        '',
        `X-Echo: Bearer ${secret}`,
        'X-Kept: 1',
        `Location: /?t=${secret}`,
        'Connection: x-hop',
        'X-Hop: 1',
      ),
    );
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    client.send(get());
    assert.equal(
      (await readResponse(client)).head,
      'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Kept: 1\r\n\r\n',
    );
  });

  it('that is idle is closed when the service has no new clients, and one with a request after it', async () => {
    const gate = Promise.withResolvers<void>();
    await using origin = await Origin.start(async () => {
      await gate.promise;
      return ok('late');
    });
    await using served = await inFrontOf(origin);
    const idle = await served.connect();
    const busy = await served.connect();
    busy.send(get());
    await until('the request to arrive', () => origin.received.length === 1);
    served.drain();
    await until('the idle connection to end', () => idle.ended);
    gate.resolve();
    const { head, body } = await readResponse(busy);
    assert.match(head, /\r\nConnection: close\r\n/);
    assert.equal(body, 'late');
    await busy.rest();
    busy.end();
    idle.end();
    await served.ended(2);
  });
});

describe('a connection that has grown old', () => {
  it('ends with the response to its next request, which is told so', async () => {
    await using origin = await Origin.start(() => ok('here'));
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    client.send(get());
    await readResponse(client);
    for (const session of served.sessions) session.expire('it is old');
    assert.ok(!client.ended, 'ended although its client may be about to send');
    client.send(get());
    const { head, body } = await readResponse(client);
    assert.match(head, /\r\nConnection: close\r\n/);
    assert.equal(body, 'here');
    await client.rest();
    client.end();
    assert.equal((await served.ended()).outcome, 'ok');
    assert.equal(served.endings[0]?.['requests'], 2);
  });

  it('is cut off when its response, or its silence, lasts longer than a drain may', async () => {
    const gate = Promise.withResolvers<void>();
    await using origin = await Origin.start(async ({ head }) => {
      if (head.startsWith('GET /slow ')) await gate.promise;
      return ok('here');
    });
    await using served = await inFrontOf(origin, {}, { maxSessionAge: 1, drainTimeout: 50 });
    const [silent, busy] = [await served.connect(), await served.connect()];
    silent.send(get());
    busy.send(get('/slow'));
    assert.match(
      (await readResponse(busy)).head,
      /^HTTP\/1\.1 503 .*\r\nPostern-Error: SESSION_EXPIRED\r\n/s,
    );
    await readResponse(silent);
    await silent.rest();
    for (const peer of [silent, busy]) peer.end();
    await served.ended(2);
    assert.deepEqual(served.reports.map(({ outcome }) => outcome).toSorted(), ['SESSION_EXPIRED', 'ok']);
    gate.resolve();
  });
});

describe('the access log of an HTTP service', () => {
  const requests = (log: string) =>
    log
      .split('\n')
      .filter((line) => line.includes('"msg":"request"'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);

  it('has a line for each request, without its query and its fields, and none unless it is wanted', async () => {
    await using origin = await Origin.start(({ head }) =>
      head.includes('/ok') ? ok('abc') : 'nonsense\r\n\r\n',
    );
    for (const accessLog of [true, false]) {
      await using served = await inFrontOf(origin, { accessLog });
      const client = await served.connect();
      client.send(get('/ok/a?token=hidden', 'Cookie: hidden'));
      await readResponse(client);
      client.send(get('/bad'));
      await client.rest();
      client.end();
      await served.ended();
      const lines = requests(served.log);
      assert.deepEqual(
        lines.map(({ method, path, outcome, member }) => [method, path, outcome, member]),
        accessLog
          ? [
              ['GET', '/ok/a', '200', undefined],
              ['GET', '/bad', 'UPSTREAM_PROTOCOL', undefined],
            ]
          : [],
      );
      assert.ok(!served.log.includes('hidden'));
    }
  });
});

describe('timeouts of a client of the HTTP plane', () => {
  const silence = 300;

  it('answer a head that comes byte by byte for ever, and a body that stops', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(
      origin,
      { timeouts: { requestBody: `${silence}ms` } },
      { loginTimeout: silence },
    );
    const slow = await served.connect();
    const drip = setInterval(() => slow.socket.write('X'), 20);
    slow.send(Buffer.from('GET / HTTP/1.1\r\nX-'));
    assert.deepEqual(told((await slow.rest()).toString()), ['408', 'TIMEOUT']);
    clearInterval(drip);
    slow.end();

    const half = await served.connect();
    half.send(request('POST', '/', 'Content-Length: 10'), Buffer.from('abc'));
    assert.deepEqual(told((await half.rest()).toString()), ['408', 'TIMEOUT']);
    half.end();
    await until('the connection to the server to end', () => origin.open === 0);
  });

  it('close a connection without a request in silence, once it had one', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(origin, { timeouts: { keepAlive: `${silence}ms` } });
    const client = await served.connect();
    client.send(get());
    await readResponse(client);
    assert.equal((await client.rest()).length, 0);
    client.end();
    assert.equal((await served.ended()).outcome, 'ok');
  });

  it('answer for a server that is silent, and reset what it began', async () => {
    await using origin = await Origin.start(({ head }) =>
      head.includes('/half') ? ok('12345').slice(0, -2) : undefined,
    );
    await using served = await inFrontOf(origin, { timeouts: { response: `${silence}ms` } });
    const client = await served.connect();
    client.send(get('/none'));
    assert.deepEqual(told((await client.rest()).toString()), ['504', 'TIMEOUT']);
    client.end();
    const half = await served.connect();
    half.send(get('/half'));
    assert.match((await half.rest()).toString(), /\r\n\r\n123$/);
    await until('the reset', () => half.error === 'ECONNRESET');
  });

  it('say of a client that does not take its response that it was the client', async () => {
    const size = 32 * 1024 * 1024;
    const server = createHttpServer((_request, response) => {
      response.setHeader('content-length', size);
      response.end(Buffer.alloc(size));
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    try {
      await using served = await inFrontOf({ port }, { timeouts: { response: `${silence}ms` } });
      const client = await served.connect();
      client.socket.pause();
      client.send(get());
      await until('the end', () => served.log.includes('the client did not take its response in time'));
      assert.ok(!served.log.includes('the server did not answer in time'));
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });
});
