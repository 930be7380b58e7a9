import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, it } from 'node:test';
import { createSecureContext } from 'node:tls';
import fc from 'fast-check';

import type { Relay, RelayEnd } from '../../src/core/relay.ts';
import { findInternals, leasesInUse, useInternals } from '../../src/core/relay-port.ts';
import { proveDirect } from '../../src/core/relay-trial.ts';
import { TypeScriptRelay } from '../../src/core/relay-typescript.ts';
import { certificates } from '../support/servers.ts';
import { socketPair, tlsPair, until } from '../support/session.ts';

const { server: leaf } = await certificates();
const secureContext = createSecureContext({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) });

const [probed, other] = await socketPair();
const internals = findInternals(probed);
for (const socket of [probed, other]) socket.destroy();

/** In which ways sockets are read and written. */
const ways = ['as Node documents it', 'directly'] as const;
type Way = (typeof ways)[number];

function begin(client: Socket, upstream: Socket, idleTimeout: number, way: Way): TypeScriptRelay {
  useInternals(way === 'directly' ? internals : undefined);
  return new TypeScriptRelay(client, upstream, { idleTimeout });
}

it('is proven at the start that this version of Node can be used directly', async () => {
  // Node.js 26 has a way to write of its own, and is used as it documents itself.
  assert.equal(await proveDirect(), Number(process.versions.node.split('.')[0]) < 26);
});

/** A relay with both outer ends in the hand of the test. */
interface Relayed {
  readonly client: Socket;
  readonly server: Socket;
  readonly relay: Relay;
  /** The relay's own sockets. */
  readonly inner: readonly [Socket, Socket];
}

async function relayed(tls: boolean, way: Way, idleTimeout = 0): Promise<Relayed> {
  const [[client, toClient], [toServer, server]] = tls
    ? await Promise.all([tlsPair(secureContext), tlsPair(secureContext)])
    : await Promise.all([socketPair(), socketPair()]);
  return {
    client,
    server,
    relay: begin(toClient, toServer, idleTimeout, way),
    inner: [toClient, toServer],
  };
}

/** Everything the socket receives until its peer is done; `broken` says that it was not done in order. */
async function collect(socket: Socket): Promise<{ readonly bytes: Buffer; readonly broken: boolean }> {
  const chunks: Buffer[] = [];
  let broken = false;
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  socket.on('error', () => (broken = true));
  socket.on('end', resolve);
  socket.on('close', resolve);
  socket.resume();
  await promise;
  return { bytes: Buffer.concat(chunks), broken };
}

async function endOf({ relay, inner }: Relayed): Promise<RelayEnd> {
  let ended: { readonly end: RelayEnd; readonly closed: boolean } | undefined;
  void relay.done.then((end) => (ended = { end, closed: inner.every((socket) => socket.closed) }));
  await until('the relay to end', () => ended !== undefined);
  assert.ok(ended?.closed, 'the relay says that it is done, and a socket is still open');
  return ended.end;
}

function digest(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function writeInPieces(socket: Socket, bytes: Buffer, size: number): Promise<void> {
  for (let at = 0; at < bytes.length; at += size)
    if (!socket.write(bytes.subarray(at, at + size))) await once(socket, 'drain');
  socket.end();
}

for (const [tls, way] of [false, true].flatMap((each) => ways.map((way) => [each, way] as const)))
  describe(`a relay ${tls ? 'between TLS connections' : 'between plain connections'}, ${way}`, () => {
    for (const { size, total } of [
      { size: 1, total: 20_000 },
      { size: 1024 * 1024, total: 16 * 1024 * 1024 },
      { size: 65_537, total: 3_000_000 },
    ])
      it(`carries every byte in its order, both ways at once, in pieces of ${size}`, async () => {
        const pair = await relayed(tls, way);
        const up = randomBytes(total);
        const down = randomBytes(total + 1);
        const [atServer, atClient] = await Promise.all([
          collect(pair.server),
          collect(pair.client),
          writeInPieces(pair.client, up, size),
          writeInPieces(pair.server, down, size),
        ]);
        assert.equal(digest(atServer.bytes), digest(up));
        assert.equal(digest(atClient.bytes), digest(down));
        assert.equal(await endOf(pair), 'done');
        assert.deepEqual(pair.relay.bytes, { fromClient: total, fromUpstream: total + 1 });
        await until('the buffers of bulk to be given back', () => leasesInUse() === 0);
      });

    for (const first of ['client', 'server'] as const)
      it(`passes a half-close of the ${first} on and goes on in the other direction`, async () => {
        const pair = await relayed(tls, way);
        const other = first === 'client' ? pair.server : pair.client;
        const heardByFirst = collect(pair[first]);
        const heardByOther = collect(other);
        pair[first].end('last words');
        assert.equal((await heardByOther).bytes.toString(), 'last words');
        assert.equal(other.writable, true);
        for (let i = 0; i < 100; i += 1) {
          other.write(`late ${i};`);
          await new Promise((resolve) => setImmediate(resolve));
        }
        other.end();
        const late = (await heardByFirst).bytes.toString();
        assert.equal(late, Array.from({ length: 100 }, (_, i) => `late ${i};`).join(''));
        assert.equal(await endOf(pair), 'done');
      });

    it('carries what either end said before the relay began', async () => {
      const [[client, toClient], [toServer, server]] = tls
        ? await Promise.all([tlsPair(secureContext), tlsPair(secureContext)])
        : await Promise.all([socketPair(), socketPair()]);
      client.end('early');
      server.end('bird');
      toClient.on('readable', () => {});
      await until('the bytes to arrive', () => toClient.readableLength === 5);
      toClient.removeAllListeners('readable');
      const relay = begin(toClient, toServer, 0, way);
      const [atServer, atClient] = await Promise.all([collect(server), collect(client)]);
      assert.equal(atServer.bytes.toString(), 'early');
      assert.equal(atClient.bytes.toString(), 'bird');
      assert.equal(await relay.done, 'done');
    });

    it('tells the server when the client breaks off, and ends', async () => {
      const pair = await relayed(tls, way);
      const atServer = collect(pair.server);
      pair.client.write('begin');
      await until('the bytes to arrive', () => pair.relay.bytes.fromClient === 5);
      if (tls) pair.client.destroy();
      else pair.client.resetAndDestroy();
      const { broken } = await atServer;
      if (!tls) {
        assert.equal(broken, true, 'the server must see that the session was cut off, not finished');
        assert.equal(await endOf(pair), 'client-broke');
      }
      pair.server.destroy();
      await endOf(pair);
    });

    it('gives the client what the server said before it broke off', async () => {
      const pair = await relayed(tls, way);
      const words = randomBytes(100_000);
      const atClient = collect(pair.client);
      pair.server.write(words);
      await until('the bytes to arrive', () => pair.relay.bytes.fromUpstream === words.length);
      if (tls) pair.server.destroy();
      else pair.server.resetAndDestroy();
      assert.equal(digest((await atClient).bytes), digest(words));
      pair.client.end();
      assert.equal(await endOf(pair), tls ? 'done' : 'upstream-broke');
    });

    it('gives a slow client what the server said before it broke off', async () => {
      const pair = await relayed(tls, way);
      pair.client.pause();
      const words = randomBytes(400_000);
      pair.server.write(words);
      await until('the bytes to arrive', () => pair.relay.bytes.fromUpstream === words.length);
      if (tls) pair.server.destroy();
      else pair.server.resetAndDestroy();
      await until('the relay to notice', () => pair.inner[1].readableEnded || pair.inner[1].closed);
      assert.equal(digest((await collect(pair.client)).bytes), digest(words));
      pair.client.end();
      await endOf(pair);
    });

    it('gives the client the error of a server that closes while the client is still sending', async () => {
      const sending = Buffer.alloc(64 * 1024, 'x');
      const error = Buffer.from('FATAL: terminating connection due to administrator command');
      for (let round = 0; round < 20; round += 1) {
        const pair = await relayed(tls, way);
        const { client, server } = pair;
        let told = '';
        client.on('data', (chunk: Buffer) => (told += chunk.toString()));
        const pump = () => {
          while (client.writable && client.write(sending));
        };
        client.on('drain', pump);
        pump();
        await until('some bytes to arrive', () => pair.relay.bytes.fromClient > 200_000);
        // As a server process does: says it, and exits a moment later with the client's bytes unread.
        server.write(error);
        for (let turns = 0; turns < 3; turns += 1) await new Promise((resolve) => setImmediate(resolve));
        server.destroy();
        await until('the client to be ended', () => client.readableEnded || client.closed);
        assert.equal(told, error.toString(), `round ${round}`);
        client.destroy();
        await endOf(pair);
      }
    });

    it('holds back a sender that is faster than its receiver', async () => {
      const pair = await relayed(tls, way);
      pair.server.pause();
      const chunk = Buffer.alloc(1024 * 1024);
      let written = 0;
      const pump = () => {
        while (written < 512 && pair.client.write(chunk)) written += 1;
      };
      pair.client.on('drain', () => {
        written += 1;
        pump();
      });
      pump();
      let before = -1;
      await until('the client to be held back', async () => {
        const now = pair.relay.bytes.fromClient;
        const stuck = now === before && now > 0;
        before = now;
        await new Promise((resolve) => setTimeout(resolve, 50));
        return stuck;
      });
      // What Postern itself holds, beside what the kernel does.
      const held = pair.inner[1].writableLength + pair.inner[0].readableLength;
      assert.ok(held < 1024 * 1024, `holds ${held} bytes`);
      assert.ok(pair.relay.bytes.fromClient < 64 * 1024 * 1024);
      pair.client.destroy();
      pair.server.destroy();
      await endOf(pair);
    });

    it('can be closed under load, both ends in order', async () => {
      const pair = await relayed(tls, way);
      const chunk = Buffer.alloc(256 * 1024);
      for (const end of [pair.client, pair.server]) {
        const pump = () => {
          while (end.writable && end.write(chunk));
        };
        end.on('drain', pump);
        end.resume();
        pump();
      }
      await until('load', () => pair.relay.bytes.fromClient > 1_000_000);
      pair.relay.close();
      assert.equal(await endOf(pair), 'closed');
      await until('both ends to notice', () => pair.client.closed && pair.server.closed);
    });

    it('ends when both directions are idle for too long, not while one of them is busy', async () => {
      const pair = await relayed(tls, way, 200);
      const started = performance.now();
      pair.client.resume();
      let beats = 0;
      const beat = setInterval(() => {
        beats += 1;
        pair.server.write('.');
        if (beats === 20) clearInterval(beat);
      }, 30);
      assert.equal(await endOf(pair), 'idle');
      const elapsed = performance.now() - started;
      assert.equal(beats, 20);
      assert.ok(elapsed >= 600 + 150, `after ${elapsed} ms`);
    });

    it('leaves no timer and no listener behind', async () => {
      const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
      const before = timers();
      const pair = await relayed(tls, way, 3_600_000);
      const ends = [collect(pair.client), collect(pair.server)];
      pair.client.end('x');
      pair.server.end('y');
      await Promise.all(ends);
      assert.equal(await endOf(pair), 'done');
      assert.equal(timers(), before);
    });
  });

for (const way of ways)
  describe(`a relay that begins too late, ${way}`, () => {
    it('is done only when both sockets are closed, also when the server is already broken', async () => {
      const [[client, toClient], [toServer, server]] = await Promise.all([socketPair(), socketPair()]);
      const greeting = randomBytes(8 * 1024 * 1024);
      toClient.write(greeting);
      // Destroyed, and 'close' is still to come: as when a reset and the server's last message arrive together.
      toServer.destroy();
      const relay = begin(toClient, toServer, 0, way);
      const ended = endOf({ client, server, relay, inner: [toClient, toServer] });
      await once(toServer, 'close');
      const heard = collect(client);
      assert.equal(digest((await heard).bytes), digest(greeting));
      client.end();
      assert.equal(await ended, 'upstream-broke');
      server.destroy();
    });

    it('notices sockets that are closed since long', async () => {
      const [[client, toClient], [toServer, server]] = await Promise.all([socketPair(), socketPair()]);
      for (const socket of [toClient, toServer]) {
        socket.destroy();
        await once(socket, 'close');
      }
      const relay = begin(toClient, toServer, 0, way);
      assert.equal(await relay.done, 'client-broke');
      client.destroy();
      server.destroy();
    });
  });

for (const way of ways)
  describe(`a relay from a plain client to a TLS server, ${way}`, () => {
    it('survives a client that breaks off, and tells the server', async () => {
      const [[client, toClient], [toServer, server]] = await Promise.all([
        socketPair(),
        tlsPair(secureContext),
      ]);
      const relay = begin(toClient, toServer, 0, way);
      const atServer = collect(server);
      client.write('begin');
      await until('the bytes to arrive', () => relay.bytes.fromClient === 5);
      client.resetAndDestroy();
      assert.equal((await atServer).bytes.toString(), 'begin');
      assert.equal(await endOf({ client, server, relay, inner: [toClient, toServer] }), 'client-broke');
      server.destroy();
    });
  });

for (const way of ways)
  describe(`the bytes of a relay, ${way}`, () => {
    it('come out as they went in, whatever the pieces and whoever ends first', async () => {
      const pieces = fc.array(fc.integer({ min: 1, max: 200_000 }), { maxLength: 12 });
      await fc.assert(
        fc.asyncProperty(pieces, pieces, fc.boolean(), async (up, down, clientFirst) => {
          const pair = await relayed(false, way);
          const send = async (socket: Socket, sizes: readonly number[], seed: number) => {
            const all = sizes.map((size, i) => Buffer.alloc(size, (seed + i) % 251));
            for (const piece of all) if (!socket.write(piece)) await once(socket, 'drain');
            return digest(Buffer.concat(all));
          };
          const [first, second] = clientFirst ? [pair.client, pair.server] : [pair.server, pair.client];
          const heard = [collect(pair.client), collect(pair.server)] as const;
          const [sentUp, sentDown] = await Promise.all([
            send(pair.client, up, 1),
            send(pair.server, down, 100),
          ]);
          first.end();
          second.end();
          const [atClient, atServer] = await Promise.all(heard);
          assert.equal(digest(atServer.bytes), sentUp);
          assert.equal(digest(atClient.bytes), sentDown);
          assert.equal(await endOf(pair), 'done');
        }),
        { numRuns: 30 },
      );
    });
  });
