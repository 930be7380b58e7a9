import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { after, before, beforeEach, describe, it } from 'node:test';

import { until } from '../../../support/session.ts';
import { type Recorded, Stage, token } from './stage.ts';

const H = 'Host: localhost\r\n';
const ok = (body: string, fields = '') =>
  `HTTP/1.1 200 OK\r\n${fields}Content-Length: ${body.length}\r\n\r\n${body}`;
const get = (path: string, fields = '') => `GET ${path} HTTP/1.1\r\n${H}${fields}\r\n`;
const pause = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

describe('the two sides of a request', () => {
  let stage: Stage;
  /** Requests whose heads have come, with the socket of each. */
  let heads: { readonly head: string; readonly socket: Socket }[];
  before(async () => {
    stage = await Stage.start();
  });
  after(async () => await stage[Symbol.asyncDispose]());
  beforeEach(() => {
    stage.origin.reset();
    heads = [];
  });

  const paths = () => stage.origin.requests.map(({ head }) => head.split(' ')[1]);
  /** Nobody else's answer is left in any pool. */
  const others = async () => {
    stage.origin.respond = ({ head }) => ok(head.split(' ')[1] ?? '');
    for (const path of ['/other-1', '/other-2']) {
      using client = await stage.connect();
      await client.send(get(path, 'Connection: close\r\n'));
      await client.end();
      assert.ok(client.received.endsWith(`\r\n\r\n${path}`), client.received);
      assert.deepEqual(client.statuses, [200]);
    }
  };

  it('stay in order with pipelined requests, one upstream at a time', async () => {
    const waiting: [Recorded, Socket][] = [];
    stage.origin.respond = (request, socket) => {
      waiting.push([request, socket]);
      return undefined;
    };
    using client = await stage.connect();
    await client.send(get('/1') + get('/2') + get('/3'));
    for (const path of ['/1', '/2', '/3']) {
      await until(path, () => waiting.length === 1);
      await pause(20);
      assert.equal(waiting.length, 1, 'the next one waits');
      const [request, socket] = waiting.pop() as [Recorded, Socket];
      assert.equal(request.head.split(' ')[1], path);
      socket.write(ok(path));
    }
    await client.responses(3);
    assert.match(client.received, /\/1HTTP[^]*\/2HTTP[^]*\/3$/);
    await others();
  });

  it('end with a refused request: nothing behind it is read', async () => {
    using client = await stage.connect();
    await client.send(`${get('/1')}GET  /2 HTTP/1.1\r\n${H}\r\n${get('/3')}`);
    await client.end();
    assert.deepEqual(client.statuses, [200, 400]);
    assert.deepEqual(paths(), ['/1']);
    await others();
  });

  it('take no body for a request, when the answer comes before it', async () => {
    stage.origin.respond = () => undefined;
    const body = get('/smuggled');
    using client = await stage.connect();
    const sent = stage.origin;
    await client.send(`POST /early HTTP/1.1\r\n${H}Content-Length: ${body.length}\r\n\r\n`);
    await until('the head', () => sent.connections.some(({ bytes }) => bytes.includes('/early')));
    answer(stage, ok('early'));
    await client.responses(1);
    stage.origin.respond = ({ head }) => (head.startsWith('POST') ? undefined : ok(head.split(' ')[1] ?? ''));
    await client.send(body);
    await client.send(get('/next', 'Connection: close\r\n'));
    await client.end();
    assert.deepEqual(paths(), ['/early', '/next']);
    assert.equal(stage.origin.requests[0]?.body, body);
    assert.deepEqual(client.statuses, [200, 200]);
    await others();
  });

  it('have one answer: a second one, while the body is still going up, is nobody’s', async () => {
    stage.origin.respond = () => undefined;
    using client = await stage.connect();
    await client.send(`POST /twice HTTP/1.1\r\n${H}Content-Length: 10\r\n\r\nhello`);
    await until('the head', () => stage.origin.connections.some(({ bytes }) => bytes.includes('/twice')));
    answer(stage, ok('first'));
    await client.responses(1);
    answer(stage, ok('poison'));
    await client.end();
    assert.ok(!client.received.includes('poison'), client.received);
    assert.deepEqual(client.statuses, [200]);
    await others();
  });

  it('do not grow with answers that are no answers: 1xx without end', async () => {
    stage.origin.respond = (_request, socket) => {
      const hints = Buffer.from(`HTTP/1.1 103 Early Hints\r\nLink: ${'x'.repeat(1000)}\r\n\r\n`.repeat(50));
      const flood = () => {
        while (!socket.destroyed && socket.writableLength < 2 ** 20) socket.write(hints);
        if (!socket.destroyed) setTimeout(flood, 1);
      };
      flood();
      return undefined;
    };
    using client = await stage.connect();
    await client.send(get('/hints'));
    await client.end();
    assert.ok(client.statuses.filter((status) => status === 103).length < 1000);
    await others();
  });

  it('are torn apart when the client leaves in the middle of its body', async () => {
    stage.origin.respond = () => undefined;
    {
      using client = await stage.connect();
      await client.send(`POST /half HTTP/1.1\r\n${H}Content-Length: 100\r\n\r\nhello`);
      await until('the half', () => stage.origin.connections.some(({ bytes }) => bytes.endsWith('hello')));
      client.socket.end();
      await client.end();
    }
    await others();
    assert.equal(stage.origin.connections.length, 2);
    assert.deepEqual(paths(), ['/other-1', '/other-2']);
  });

  it('stay HTTP when a WebSocket is asked for and not given', async () => {
    stage.origin.respond = ({ head }) => ok(head.split(' ')[1] ?? '');
    using client = await stage.connect();
    const upgrade = 'Connection: Upgrade\r\nUpgrade: websocket\r\n';
    await client.send(get('/ws', upgrade) + get('/2', 'Authorization: stolen\r\nConnection: close\r\n'));
    await client.end();
    assert.deepEqual(client.statuses, [200, 200]);
    const [first, second] = stage.origin.requests;
    assert.ok(first?.head.endsWith(`${upgrade}\r\n`), first?.head);
    assert.ok(!second?.head.includes('stolen'));
    assert.ok(second?.head.includes(`Bearer ${token}`));
  });

  it('are a tunnel behind 101, whose connection nobody gets again', async () => {
    stage.origin.respond = () =>
      'HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst';
    using client = await stage.connect();
    await client.send(`${get('/ws', 'Connection: Upgrade\r\nUpgrade: websocket\r\n')}GET /raw`);
    await until('the tunnel', () => client.received.endsWith('first'));
    await until('raw bytes', () => stage.origin.connections[0]?.bytes.endsWith('\r\n\r\nGET /raw') === true);
    assert.match(
      client.received,
      /^HTTP\/1\.1 101 [^]*\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst$/,
    );
    client.socket.destroy();
    await others();
    assert.ok(stage.origin.connections.length >= 2);
  });

  it('know that a client which was not told to go on may never send its body', async () => {
    stage.origin.respond = () => undefined;
    using client = await stage.connect();
    await client.send(`POST /expect HTTP/1.1\r\n${H}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n`);
    await until('the head', () => stage.origin.connections.some(({ bytes }) => bytes.includes('/expect')));
    answer(stage, 'HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n');
    await client.end();
    assert.deepEqual(client.statuses, [413]);
    assert.match(client.received, /\r\nConnection: close\r\n/);
    await others();
  });

  it('are not confused by a body where some servers expect none', async () => {
    stage.origin.respond = ({ head }) => ok(head.split(' ')[1] ?? '');
    for (const method of ['GET', 'DELETE', 'OPTIONS', 'PROPFIND']) {
      using client = await stage.connect();
      const body = get('/smuggled');
      const path = `/${method}-body`;
      await client.send(`${method} ${path} HTTP/1.1\r\n${H}Content-Length: ${body.length}\r\n\r\n${body}`);
      await client.responses(1);
      await client.send(get('/next', 'Connection: close\r\n'));
      await client.end();
      assert.deepEqual(client.statuses, [200, 200]);
      const used = stage.origin.connections.find(({ bytes }) => bytes.includes(`${path} `));
      assert.ok(used?.bytes.endsWith(body), 'nothing was sent behind the body');
    }
    assert.ok(!paths().includes('/smuggled'));
  });

  it('are dropped when the server speaks without being asked', async () => {
    stage.origin.respond = ({ head }, socket) => {
      heads.push({ head, socket });
      return ok('1');
    };
    using client = await stage.connect();
    await client.send(get('/1'));
    await client.responses(1);
    heads[0]?.socket.write(ok('poison'));
    await until('the end of it', () => heads[0]?.socket.destroyed === true);
    await client.send(get('/2', 'Connection: close\r\n'));
    await client.end();
    assert.ok(!client.received.includes('poison'));
    await others();
  });
});

/** Writes on the connection that has got bytes last. */
function answer(stage: Stage, bytes: string): void {
  const socket = [...stage.origin.sockets].at(-1);
  socket?.write(bytes, 'latin1');
}
