import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, it } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { paces, until } from '../../support/session.ts';
import { get, inFrontOf, Origin, ok, readHead, readResponse, request } from './origin.ts';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

const failed = (text: string) => /\r\nPostern-Error: (\w+)/.exec(text)?.[1];

for (const pace of paces)
  describe(`a server behind the HTTP plane, ${pace}`, () => {
    it('whose responses have no body, a length, chunks or end with the connection', async () => {
      const bodies: Record<string, string> = {
        '/204': 'HTTP/1.1 204 No Content\r\n\r\n',
        '/304': 'HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n',
        '/length': ok('abc'),
        '/chunks':
          'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n',
      };
      await using origin = await Origin.start(({ head }, server) => {
        const path = head.split(' ')[1] ?? '';
        if (head.startsWith('HEAD')) return 'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n';
        if (path !== '/close') return bodies[path];
        server.send(Buffer.from('HTTP/1.0 200 OK\r\n\r\nuntil the end'));
        server.end();
        return undefined;
      }, pace);
      await using served = await inFrontOf(origin, {}, { pace });
      const client = await served.connect();
      client.send(request('HEAD', '/'));
      assert.match((await readResponse(client, true)).head, /\r\nContent-Length: 99\r\n/);
      for (const path of ['/204', '/304']) {
        client.send(get(path));
        assert.equal((await readResponse(client, true)).head, bodies[path]);
      }
      client.send(get('/length'));
      assert.equal((await readResponse(client)).body, 'abc');
      client.send(get('/chunks'));
      assert.equal((await readResponse(client)).body, '3\r\nabc\r\n0\r\n\r\n');
      assert.equal(origin.connections, 1);
      client.send(get('/close'));
      assert.equal(
        (await client.rest()).toString(),
        'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end',
      );
      client.end();
    });

    it('that says what could be read in two ways is not passed on', async () => {
      const said = [
        'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n',
        'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n',
        'HTTP/1.1 200 OK\nContent-Length: 0\n\n',
        'HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n',
        'HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde',
        'HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n',
        'HTTP/2 200\r\n\r\n',
        'SSH-2.0-OpenSSH_9.2\r\n',
      ];
      await using origin = await Origin.start((_request, _server, number) => said[number - 1], pace);
      await using served = await inFrontOf(origin, {}, { pace });
      for (const each of said) {
        const client = await served.connect();
        client.send(get());
        assert.equal(failed((await client.rest()).toString()), 'UPSTREAM_PROTOCOL', each);
        client.end();
      }
    });

    it('that says more than its response does not say it to the next client', async () => {
      await using origin = await Origin.start(
        (_request, _server, number) => (number === 1 ? `${ok('mine')}${ok('poison')}` : ok('clean')),
        pace,
      );
      await using served = await inFrontOf(origin, {}, { pace });
      for (const expected of ['mine', 'clean']) {
        const client = await served.connect();
        client.send(get());
        assert.equal((await readResponse(client)).body, expected);
      }
      assert.equal(origin.connections, 2);
    });
  });

describe('a server behind the HTTP plane', () => {
  it('that speaks on an idle connection is not believed', async () => {
    await using origin = await Origin.start((_request, server, number) => {
      if (number > 1) return ok('clean');
      setTimeout(() => server.socket.write(ok('poison')), 30);
      return ok('mine');
    });
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    client.send(get());
    await readResponse(client);
    await until('the connection to be closed', () => origin.open === 0);
    client.send(get());
    assert.equal((await readResponse(client)).body, 'clean');
  });

  it('that had closed a kept connection gets a GET once more on a new one, and a POST not', async () => {
    // It closes when the second request on the connection comes, which is what a race looks like from here.
    const seen = new WeakSet<object>();
    await using origin = await Origin.start((_request, server) => {
      if (seen.has(server)) {
        server.destroy();
        return undefined;
      }
      seen.add(server);
      return ok('answer');
    });
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    for (let i = 0; i < 3; i += 1) {
      client.send(get());
      assert.equal((await readResponse(client)).body, 'answer');
    }
    assert.equal(origin.connections, 3);
    client.send(request('POST', '/', 'Content-Length: 0'));
    assert.equal(failed((await client.rest()).toString()), 'UPSTREAM_CLOSED');
    client.end();
    assert.equal(origin.connections, 3);
  });

  it('that closes a new connection without an answer is asked no second time', async () => {
    await using origin = await Origin.start((_request, server) => {
      server.destroy();
      return undefined;
    });
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    client.send(get());
    assert.equal(failed((await client.rest()).toString()), 'UPSTREAM_CLOSED');
    client.end();
    assert.equal(origin.connections, 1);
  });

  it('that dies in the middle of a body leaves a client that knows it', async () => {
    for (const way of ['end', 'reset'] as const) {
      await using origin = await Origin.start((_request, server) => {
        server.send(Buffer.from(ok('12345').slice(0, -1)));
        setTimeout(() => server[way](), 20);
        return undefined;
      });
      await using served = await inFrontOf(origin);
      const client = await served.connect();
      client.send(get());
      assert.match((await client.rest()).toString(), /\r\n\r\n1234$/);
      await until('the reset', () => client.error === 'ECONNRESET');
      assert.equal((await served.ended()).outcome, 'UPSTREAM_CLOSED');
    }
  });

  it('may answer before it has the body: the client hears it, and nothing is used again', async () => {
    const server = createServer((_request, response) => {
      response.writeHead(413, { connection: 'close', 'content-length': 3 }).end('no!');
    });
    await listening(server);
    await using served = await inFrontOf({ port: portOf(server) });
    const client = await served.connect();
    client.send(request('POST', '/', 'Content-Length: 10000000'), Buffer.alloc(100_000));
    const heard = (await client.rest()).toString();
    assert.match(heard, /^HTTP\/1\.1 413 /);
    assert.match(heard, /\r\nConnection: close\r\n(.*\r\n)*\r\nno!$/);
    client.end();
    server.close();
  });

  it('whose rejection of the credential is answered with a newer one, once, and for requests that were held', async () => {
    let current = 'generation-one-token';
    const valid = () => current;
    await using origin = await Origin.start(({ head }) =>
      head.includes(`Bearer ${valid()}\r\n`)
        ? ok('in')
        : 'HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nout',
    );
    let given = current;
    await using served = await inFrontOf(origin, {}, { credentials: () => ({ password: given }) });
    const client = await served.connect();
    client.send(get());
    assert.equal((await readResponse(client)).body, 'in');

    current = given = 'generation-two-token';
    client.send(request('POST', '/', 'Content-Length: 3'), Buffer.from('abc'));
    assert.equal((await readResponse(client)).body, 'in');
    assert.deepEqual(
      origin.received.slice(1).map(({ body }) => body),
      ['abc', 'abc'],
    );

    // The provider has no other one: the server's own answer is what the client gets, and it stays connected.
    current = 'nobody has this one';
    const before = origin.received.length;
    client.send(get());
    const { head, body } = await readResponse(client);
    assert.match(head, /^HTTP\/1\.1 401 /);
    assert.equal(body, 'out');
    assert.ok(origin.received.length - before <= 2);

    // However many rejections there are, the provider is asked once a second.
    await new Promise((resolve) => setTimeout(resolve, 1100));
    current = given = 'generation-three-token';
    // A body that was not held cannot be sent again; the next request has the new credential.
    client.send(request('POST', '/', 'Transfer-Encoding: chunked'), Buffer.from('3\r\nabc\r\n0\r\n\r\n'));
    assert.match((await readResponse(client)).head, /^HTTP\/1\.1 401 /);
    client.send(get());
    assert.equal((await readResponse(client)).body, 'in');
  });

  it('is asked with one fetch of the credential, however many clients begin at the same time', async () => {
    await using origin = await Origin.start(() => ok('in'));
    await using served = await inFrontOf(origin);
    await Promise.all(
      Array.from({ length: 20 }, async () => {
        const client = await served.connect();
        client.send(get());
        assert.equal((await readResponse(client)).body, 'in');
      }),
    );
    assert.equal(served.fetches, 1);
  });
});

describe('bodies through the HTTP plane', () => {
  const size = 24 * 1024 * 1024;
  const content = randomBytes(size);
  const digest = (bytes: Buffer) => createHash('md5').update(bytes).digest('hex');
  for (const reads of ['onread', 'data'] as const)
    it(`come out as they went in, 24 MiB at a time, both ways and with slow readers, read by ${reads}`, async () => {
      const server = createServer((incoming, response) => {
        if (incoming.method === 'GET') {
          const chunked = incoming.url === '/chunks';
          if (!chunked) response.setHeader('content-length', size);
          response.end(content);
          return;
        }
        const hash = createHash('md5');
        let paused = 0;
        incoming.on('data', (chunk: Buffer) => {
          hash.update(chunk);
          if (paused++ % 40 !== 0) return;
          incoming.pause();
          setTimeout(() => incoming.resume(), 3);
        });
        incoming.on('end', () => response.end(hash.digest('hex')));
      });
      await listening(server);
      await using served = await inFrontOf({ port: portOf(server) }, { reads });
      const transfer = (method: string, path: string, chunked = false) =>
        new Promise<Buffer>((resolve, reject) => {
          const outgoing = httpRequest({ port: served.port, method, path, host: '127.0.0.1' }, (response) => {
            const pieces: Buffer[] = [];
            let count = 0;
            response.on('data', (piece: Buffer) => {
              pieces.push(piece);
              if (count++ % 60 !== 0) return;
              response.pause();
              setTimeout(() => response.resume(), 2);
            });
            response.on('end', () => resolve(Buffer.concat(pieces)));
            response.on('error', reject);
          });
          outgoing.on('error', reject);
          if (method === 'GET') outgoing.end();
          else {
            if (!chunked) outgoing.setHeader('content-length', size);
            outgoing.end(content);
          }
        });
      const results = await Promise.all([
        transfer('GET', '/length'),
        transfer('GET', '/chunks'),
        transfer('PUT', '/'),
        transfer('PUT', '/', true),
        transfer('GET', '/length'),
        transfer('PUT', '/'),
      ]);
      const expected = digest(content);
      assert.deepEqual(
        results.map((bytes) => (bytes.length === 32 ? bytes.toString() : digest(bytes))),
        results.map(() => expected),
      );
      server.closeAllConnections();
      server.close();
    });

  it('are not kept for a client that does not read', async () => {
    const server = createServer((_incoming, response) => {
      response.setHeader('content-length', size);
      response.end(content);
    });
    await listening(server);
    try {
      await using served = await inFrontOf({ port: portOf(server) });
      // What other tests have left behind would be counted, too.
      collect();
      const before = process.memoryUsage().arrayBuffers;
      const clients = await Promise.all(Array.from({ length: 20 }, () => served.connect()));
      for (const client of clients) {
        client.socket.pause();
        client.send(get());
      }
      await new Promise((resolve) => setTimeout(resolve, 500));
      collect();
      const { arrayBuffers } = process.memoryUsage();
      // The server's own copies are the one content; each client may have a buffer or two on its way.
      assert.ok(arrayBuffers - before < 20 * 1024 * 1024, `${arrayBuffers - before} bytes more`);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  it('of events arrive one by one', async () => {
    let tell: (event: string) => void = () => {};
    await using origin = await Origin.start((_request, server) => {
      tell = (event) => server.send(Buffer.from(`${event.length.toString(16)}\r\n${event}\r\n`));
      return 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n';
    });
    await using served = await inFrontOf(origin);
    const client = await served.connect();
    client.send(get());
    await readHead(client);
    for (const event of ['data: 1\n\n', 'data: 2\n\n']) {
      tell(event);
      const framed = `${event.length.toString(16)}\r\n${event}\r\n`;
      assert.equal((await client.read(framed.length)).toString(), framed);
    }
    client.destroy();
  });
});

async function listening(server: Server): Promise<void> {
  await once(server.listen(0, '127.0.0.1'), 'listening');
}

function portOf(server: Server): number {
  return (server.address() as AddressInfo).port;
}
