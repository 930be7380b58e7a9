import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { describe, it } from 'node:test';
import { createServer as createTlsServer, connect as tlsConnect } from 'node:tls';

import { saveLastWords } from '../../src/core/last-words.ts';
import { TypeScriptRelay } from '../../src/core/relay-typescript.ts';
import { certificates } from '../support/servers.ts';

const lastWords = 'FATAL: terminating connection due to administrator command';

async function accepted(onServer: (socket: Socket) => void): Promise<{ near: Socket; close: () => void }> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    onServer(socket);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const near = connect({
    port: (server.address() as AddressInfo).port,
    host: '127.0.0.1',
    allowHalfOpen: true,
  });
  near.on('error', () => {});
  await once(near, 'connect');
  return { near, close: () => server.close() };
}

describe('the last words of a server that breaks off', () => {
  for (const size of [16, 64 * 1024])
    it(`reach a client that goes on sending pieces of ${size} bytes meanwhile`, async () => {
      // The server reads nothing: with bytes unread its close is a reset, which the relay's next write runs into.
      let serverEnd: Socket | undefined;
      const upstream = await accepted((socket) => (serverEnd = socket.pause()));
      let clientEnd: Socket | undefined;
      const application = await accepted((socket) => (clientEnd = socket));
      while (!clientEnd || !serverEnd) await new Promise(setImmediate);

      const relay = new TypeScriptRelay(clientEnd, upstream.near, { idleTimeout: 0 });
      let heard = '';
      application.near.setEncoding('latin1').on('data', (text: string) => (heard += text));
      const piece = Buffer.alloc(size);
      let sending = true;
      const pump = () => {
        if (!sending) return;
        if (application.near.writableLength < 1024 * 1024) application.near.write(piece);
        setImmediate(pump);
      };
      pump();
      while (relay.bytes.fromClient < 4 * size) await new Promise(setImmediate);

      const server = serverEnd;
      server.write(lastWords, () => server.destroy());
      assert.equal(await relay.done, 'upstream-broke');
      sending = false;
      application.near.destroy();
      application.close();
      upstream.close();
      assert.equal(heard, lastWords);
      assert.equal(relay.bytes.fromUpstream, lastWords.length);
    });

  it('are heard from a TLS socket that reads into a buffer of its user', async () => {
    const { server: leaf } = await certificates();
    const sockets: Socket[] = [];
    const [cert, key] = await Promise.all([readFile(leaf.cert), readFile(leaf.key)]);
    const server = createTlsServer({ cert, key }, (socket) => sockets.push(socket.on('error', () => {})));
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const buffer = Buffer.alloc(64 * 1024);
    const onto = {
      port: (server.address() as AddressInfo).port,
      host: '127.0.0.1',
      onread: { buffer, callback: () => true },
    };
    const near = tlsConnect({ rejectUnauthorized: false, ...onto });
    near.on('error', () => {});
    await once(near, 'secureConnect');
    while (sockets.length === 0) await new Promise(setImmediate);
    near.pause();
    let heard = '';
    saveLastWords(
      near,
      (bytes) => {
        heard += bytes.toString('latin1');
      },
      () => buffer,
    );
    const [far] = sockets;
    far?.write(lastWords);
    far?.end(' and more');
    // All of it is in the kernel of the other end when the FIN behind it has gone.
    await new Promise((resolve) => far?.once('finish', resolve));
    const closed = new Promise((resolve) => near.once('close', resolve));
    near.destroy(new Error('a write failed'));
    await closed;
    assert.equal(heard, `${lastWords} and more`);
    far?.destroy();
    server.close();
  });
});
