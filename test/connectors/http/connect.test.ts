import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { describe, it, type TestContext } from 'node:test';
import { pino } from 'pino';

import { attachAccepted, type Reading, tryAccelerating } from '../../../src/connectors/http/accelerator.ts';
import { blindTunnel } from '../../../src/connectors/http/connect.ts';
import { SocketWire } from '../../../src/connectors/http/wire.ts';
import { Admission } from '../../../src/core/admission.ts';
import { Relays } from '../../../src/core/relay.ts';
import { ClientSession, type SessionReport } from '../../../src/core/session.ts';

const relays = Relays.start({ engine: 'auto', dedicatedSessions: 4 });

interface Scene {
  /** A client that has asked for a tunnel. */
  readonly client: Socket;
  readonly report: Promise<SessionReport>;
  /** The server's end, when it is there. */
  readonly upstream: Promise<Socket>;
  /** How often a tunnel was said to be there. */
  readonly opened: () => number;
}

/** A tunnel through a socket that was read by a wire before, as behind a request for one. */
async function scene(t: TestContext, how: Reading, permits: (address: string) => boolean): Promise<Scene> {
  if (how === 'onread') assert.ok((await tryAccelerating()).reads);
  const sockets: Socket[] = [];
  let opened = 0;
  const { promise: upstream, resolve: connected } = Promise.withResolvers<Socket>();
  const origin = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(socket);
    connected(socket);
  });
  origin.listen(0, '127.0.0.1');
  await once(origin, 'listening');
  const target = { host: 'localhost', port: (origin.address() as AddressInfo).port };
  const { promise: report, resolve: ended } = Promise.withResolvers<SessionReport>();
  const listener = createServer({ allowHalfOpen: true }, (accepted) => {
    const session = new ClientSession(accepted, {
      name: 's',
      log: pino({ level: 'silent' }),
      localTls: undefined,
      loginTimeout: 2000,
      idleTimeout: 0,
      maxSessionAge: 0,
      drainTimeout: 1000,
      onRotation: 'keep',
      admission: new Admission('s', 10),
      relay: relays.relay,
      lend: () => assert.fail(),
      serve: async (each) => {
        each.admit();
        const { promise: head, resolve: read } = Promise.withResolvers<Buffer>();
        const wire = new SocketWire({
          onBytes: (bytes, from, to) => read(Buffer.from(bytes.subarray(from, to))),
          onEnd: () => {},
          onDrain: () => {},
          onClose: () => {},
        });
        attachAccepted(wire, each.client, how);
        const bytes = await head;
        const tunnel = blindTunnel(target, permits, () => {
          opened += 1;
        });
        await tunnel(wire.detach(bytes.subarray(bytes.indexOf('\r\n\r\n') + 4)), each);
      },
    });
    void session.run().then(ended);
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const client = connect({
    port: (listener.address() as AddressInfo).port,
    host: '127.0.0.1',
    allowHalfOpen: true,
  });
  client.on('error', () => {});
  t.after(() => {
    for (const socket of [client, ...sockets]) socket.destroy();
    listener.close();
    origin.close();
  });
  await once(client, 'connect');
  return { client, report, upstream, opened: () => opened };
}

const REQUEST = 'CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n';

async function everything(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  // Not by iteration: since Node 26 that destroys a socket at its end, also where the other half is open.
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(socket, 'end');
  return Buffer.concat(chunks);
}

for (const how of ['data', 'onread'] as const)
  describe(`a tunnel that nobody looks into, of a socket that was read by ${how}`, () => {
    it('carries bytes both ways, from the first behind the head to the last', async (t) => {
      const { client, report, upstream, opened } = await scene(t, how, () => true);
      const [up, down] = [randomBytes(3_000_000), randomBytes(3_000_000)];
      client.write(Buffer.concat([Buffer.from(REQUEST), up.subarray(0, 100)]));
      const server = await upstream;
      const sent = everything(server);
      const got = everything(client);
      server.write(down.subarray(0, 1000));
      client.write(up.subarray(100));
      client.end();
      assert.deepEqual(sha256(await sent), sha256(up));
      server.end(down.subarray(1000));
      const answer = await got;
      const head = 'HTTP/1.1 200 Connection established\r\n\r\n';
      assert.equal(answer.toString('latin1', 0, head.length), head);
      assert.deepEqual(sha256(answer.subarray(head.length)), sha256(down));
      const { outcome, bytesFromClient, bytesFromUpstream } = await report;
      assert.deepEqual([outcome, bytesFromClient, bytesFromUpstream], ['ok', up.length, down.length]);
      assert.equal(opened(), 1);
    });

    it('is not made to an address that is not permitted, and the client is told', async (t) => {
      const asked: string[] = [];
      const { client, report, opened } = await scene(t, how, (address) => asked.push(address) < 0);
      client.write(REQUEST);
      assert.match((await everything(client)).toString(), /^HTTP\/1\.1 403 Forbidden\r\n/);
      client.destroy();
      assert.equal((await report).outcome, 'CLIENT_REFUSED');
      assert.ok(asked.includes('127.0.0.1'));
      assert.equal(opened(), 0);
    });

    it('ends with its client', async (t) => {
      const { client, report, upstream } = await scene(t, how, () => true);
      client.write(REQUEST);
      const server = await upstream;
      await once(client, 'data');
      server.on('error', () => {}).resume();
      const { promise: closed, resolve } = Promise.withResolvers<void>();
      server.on('close', resolve);
      client.resetAndDestroy();
      await closed;
      assert.equal((await report).outcome, 'CLIENT_CLOSED');
    });
  });

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
