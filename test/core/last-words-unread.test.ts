import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { describe, it } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { Worker } from 'node:worker_threads';

import { TypeScriptRelay } from '../../src/core/relay-typescript.ts';
import { certificates } from '../support/servers.ts';
import { socketPair, until } from '../support/session.ts';

const { server: leaf } = await certificates();

/**
 * A server in a thread of its own: it takes one piece, says why it takes no more, and resets the connection. The first
 * number is its port, the second becomes 1 when the reset is out.
 */
const refuser = `
  const { workerData: { numbers, tls } } = require('node:worker_threads');
  const say = (flag, value) => { Atomics.store(numbers, flag, value); Atomics.notify(numbers, flag); };
  const serve = (socket) => socket.on('error', () => {}).once('data', () => {
    socket.pause();
    socket.write('packet too large', () => setTimeout(() => {
      (socket._parent ?? socket).resetAndDestroy();
      setTimeout(() => say(1, 1), 50);
    }, 20));
  });
  const server = tls ? require('node:tls').createServer(tls, serve) : require('node:net').createServer(serve);
  server.listen(0, '127.0.0.1', () => say(0, server.address().port));
`;

async function connectToRefuser(
  tls: boolean,
): Promise<{ socket: Socket; numbers: Int32Array; worker: Worker }> {
  const numbers = new Int32Array(new SharedArrayBuffer(8));
  const identity = tls && { cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) };
  const worker = new Worker(refuser, { eval: true, workerData: { numbers, tls: identity } });
  await until('the server to listen', () => numbers[0] !== 0);
  const plain = connect({ port: numbers[0] ?? 0, host: '127.0.0.1', allowHalfOpen: true });
  const socket = tls ? connectTls({ socket: plain, rejectUnauthorized: false }) : plain;
  await once(socket, tls ? 'secureConnect' : 'connect');
  socket.on('error', () => {});
  return { socket, numbers, worker };
}

describe('a server that says why it takes no more, and resets the connection', () => {
  for (const tls of [false, true])
    it(`is heard by a client that is still sending, ${tls ? 'over TLS' : 'in plain'}`, async () => {
      const { socket: upstream, numbers, worker } = await connectToRefuser(tls);
      const [outer, inner] = await socketPair();
      const relay = new TypeScriptRelay(inner, upstream, { idleTimeout: 0 });
      let heard = '';
      outer.on('data', (chunk) => (heard += String(chunk)));
      outer.write('x'.repeat(100));
      await until('the piece to be passed on', () => relay.bytes.fromClient === 100);
      await new Promise((resolve) => setImmediate(resolve));
      // From here on this thread sees nothing: reason and reset both lie in the kernel when the next write fails.
      Atomics.wait(numbers, 1, 0, 5000);
      inner.emit('data', Buffer.from('y'.repeat(50_000)));
      inner.emit('data', Buffer.from('z'.repeat(50_000)));
      await until('the reason', () => heard === 'packet too large');
      await until('the end of the connection', () => outer.readableEnded);
      outer.end();
      assert.equal(await relay.done, 'upstream-broke');
      assert.equal(relay.bytes.fromUpstream, 'packet too large'.length);
      await worker.terminate();
    });

  it('leaves the client a second to hear the reason, though it never stops sending', async () => {
    const [[outer, inner], [upstream, server]] = await Promise.all([socketPair(), socketPair()]);
    const relay = new TypeScriptRelay(inner, upstream, { idleTimeout: 0 });
    const talk = setInterval(() => outer.write('x'.repeat(10_000)), 5);
    let heard = '';
    outer.on('data', (chunk) => (heard += String(chunk)));
    server.write('packet too large', () => setTimeout(() => server.resetAndDestroy(), 20));
    const started = performance.now();
    assert.equal(await relay.done, 'upstream-broke');
    clearInterval(talk);
    assert.ok(performance.now() - started > 500);
    assert.equal(heard, 'packet too large');
    outer.destroy();
  });
});
