import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { describe, it } from 'node:test';

import { TypeScriptRelay } from '../../src/core/relay-typescript.ts';

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
});
