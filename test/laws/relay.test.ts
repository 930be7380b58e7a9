import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { after, describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';

import { PosternError } from '../../src/core/errors.ts';
import { loadNative } from '../../src/core/native.ts';
import { type Relay, type RelayEnd, Relays } from '../../src/core/relay.ts';
import { proveDirect } from '../../src/core/relay-trial.ts';
import { socketPair, until } from '../support/session.ts';

/** With POSTERN_LONG_LAWS=1 the laws about what is left behind count as many sessions as a busy day has. */
const long = process.env['POSTERN_LONG_LAWS'] === '1';
const CHURN = long ? 20_000 : 400;
const CUTS = long ? 24_000 : 400;

/** What must hold whatever relays; in CI the addon has to be there. */
const engines = [
  { name: 'native, one thread for all', engine: 'native', dedicatedSessions: 0 },
  { name: 'native, threads for each session', engine: 'native', dedicatedSessions: 1024 },
  { name: 'typescript', engine: 'typescript', dedicatedSessions: 0 },
] as const;
const missing = loadNative().native === undefined && process.env['CI'] !== 'true';

interface Relayed {
  readonly client: Socket;
  readonly server: Socket;
  readonly relay: Relay;
}

async function pairOf(transport: 'tcp' | 'unix'): Promise<[Socket, Socket]> {
  if (transport === 'tcp') return await socketPair();
  const path = join(tmpdir(), `postern-laws-${process.pid}-${randomBytes(4).toString('hex')}`);
  const server = createServer({ allowHalfOpen: true });
  await once(server.listen(path), 'listening');
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const near = connect({ path, allowHalfOpen: true });
  const [[far]] = await Promise.all([accepted, once(near, 'connect')]);
  server.close();
  for (const socket of [near, far]) socket.on('error', () => {});
  return [near, far];
}

/** Everything a socket receives until its peer is done; `broken`: not in order. `slow`: a little at a time. */
async function collect(socket: Socket, slow = false): Promise<{ bytes: Buffer; broken: boolean }> {
  const chunks: Buffer[] = [];
  let broken = false;
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.on('data', (chunk: Buffer) => {
    chunks.push(chunk);
    if (!slow) return;
    socket.pause();
    setTimeout(() => socket.resume(), 1);
  });
  socket.on('error', () => (broken = true));
  socket.on('end', resolve);
  socket.on('close', resolve);
  await promise;
  return { bytes: Buffer.concat(chunks), broken };
}

function digest(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function send(socket: Socket, bytes: Buffer, size: number): Promise<void> {
  for (let at = 0; at < bytes.length; at += size)
    if (!socket.write(bytes.subarray(at, at + size))) await once(socket, 'drain');
  socket.end();
}

async function endOf(relay: Relay): Promise<RelayEnd> {
  let end: RelayEnd | undefined;
  void relay.done.then((how) => (end = how));
  await until('the relay to end', () => end !== undefined);
  return end as RelayEnd;
}

const entries = (folder: string) => (process.platform === 'linux' ? readdirSync(folder).length : 0);
const descriptors = () => entries('/proc/self/fd');
const threads = () => entries('/proc/self/task');

await proveDirect();

for (const { name, engine, dedicatedSessions } of engines)
  describe(`the relay (${name})`, {
    skip: engine === 'native' && missing && 'the addon is not built',
  }, () => {
    let started: Relays | undefined;
    const relays = () => (started ??= Relays.start({ engine, dedicatedSessions }));
    after(() => started?.close());

    async function relayed(transport: 'tcp' | 'unix' = 'tcp', idleTimeout = 0): Promise<Relayed> {
      const [[client, toClient], [toServer, server]] = await Promise.all([
        pairOf(transport),
        pairOf(transport),
      ]);
      return { client, server, relay: relays().relay(toClient, toServer, { idleTimeout }) };
    }

    for (const transport of ['tcp', 'unix'] as const)
      for (const { size, total } of [
        { size: 1, total: 10_000 },
        { size: 1024 * 1024, total: 12 * 1024 * 1024 },
      ])
        for (const slow of [false, true])
          it(`keeps the bytes and their order over ${transport}, in pieces of ${size}, for ${slow ? 'slow' : 'fast'} readers, and counts them`, async () => {
            const { client, server, relay } = await relayed(transport);
            const length = slow ? total / 4 : total;
            const up = randomBytes(length);
            const down = randomBytes(length + 1);
            const [atServer, atClient] = await Promise.all([
              collect(server, slow),
              collect(client, slow),
              send(client, up, size),
              send(server, down, size),
            ]);
            assert.equal(digest(atServer.bytes), digest(up));
            assert.equal(digest(atClient.bytes), digest(down));
            assert.equal(await endOf(relay), 'done');
            assert.deepEqual(relay.bytes, { fromClient: length, fromUpstream: length + 1 });
          });

    for (const transport of ['tcp', 'unix'] as const)
      for (const first of ['client', 'server'] as const)
        it(`passes a half-close of the ${first} on over ${transport}, and late bytes of the other`, async () => {
          const pair = await relayed(transport);
          const other = first === 'client' ? pair.server : pair.client;
          const heard = [collect(pair[first]), collect(other)] as const;
          pair[first].end('last words');
          assert.equal((await heard[1]).bytes.toString(), 'last words');
          for (let i = 0; i < 50; i += 1) {
            other.write(`late ${i};`);
            await new Promise((resolve) => setImmediate(resolve));
          }
          const big = randomBytes(1024 * 1024);
          other.end(big);
          const late = (await heard[0]).bytes;
          const small = Array.from({ length: 50 }, (_, i) => `late ${i};`).join('');
          assert.equal(digest(late), digest(Buffer.concat([Buffer.from(small), big])));
          assert.equal(await endOf(pair.relay), 'done');
        });

    it('brings what either end sent before the relay began, also when that end is done', async () => {
      const [[client, toClient], [toServer, server]] = await Promise.all([socketPair(), socketPair()]);
      client.end('early');
      server.write('bird');
      for (const socket of [toClient, toServer]) socket.on('readable', () => {});
      await until('the bytes', () => toClient.readableLength === 5 && toServer.readableLength === 4);
      for (const socket of [toClient, toServer]) socket.removeAllListeners('readable');
      const relay = relays().relay(toClient, toServer, { idleTimeout: 0 });
      const heard = [collect(server), collect(client)] as const;
      assert.equal((await heard[0]).bytes.toString(), 'early');
      server.end('!');
      assert.equal((await heard[1]).bytes.toString(), 'bird!');
      assert.equal(await endOf(relay), 'done');
      assert.deepEqual(relay.bytes, { fromClient: 5, fromUpstream: 5 });
    });

    it('resets the connection to the server when the client resets its own', async () => {
      const { client, server, relay } = await relayed();
      const atServer = collect(server);
      client.write('begin');
      await until('the bytes to arrive', () => relay.bytes.fromClient === 5);
      client.resetAndDestroy();
      assert.equal((await atServer).broken, true);
      assert.equal(await endOf(relay), 'client-broke');
    });

    it('gives the client all that the server said before it reset the connection, and ends in order', async () => {
      const { client, server, relay } = await relayed();
      const words = randomBytes(100_000);
      const atClient = collect(client);
      server.write(words);
      await until('the bytes to arrive', () => relay.bytes.fromUpstream === words.length);
      server.resetAndDestroy();
      const { bytes, broken } = await atClient;
      assert.equal(digest(bytes), digest(words));
      assert.equal(broken, false);
      client.end();
      assert.equal(await endOf(relay), 'upstream-broke');
    });

    it('gives the client the last words of a server that takes no more, while the client goes on sending', async () => {
      const sending = Buffer.alloc(64 * 1024, 'x');
      const words = 'FATAL: terminating connection due to administrator command';
      for (let round = 0; round < 10; round += 1) {
        const { client, server, relay } = await relayed();
        let told = '';
        client.on('data', (chunk: Buffer) => (told += chunk.toString()));
        const pump = () => {
          while (client.writable && client.write(sending));
        };
        client.on('drain', pump);
        pump();
        await until('some bytes to arrive', () => relay.bytes.fromClient > 200_000);
        server.write(words);
        for (let turns = 0; turns < 3; turns += 1) await new Promise((resolve) => setImmediate(resolve));
        server.destroy();
        await until('the client to be ended', () => client.readableEnded || client.closed);
        assert.equal(told, words, `round ${round}`);
        client.destroy();
        await endOf(relay);
      }
    });

    it('can be closed under load: both ends notice', async () => {
      const { client, server, relay } = await relayed();
      const chunk = Buffer.alloc(256 * 1024);
      for (const end of [client, server]) {
        const pump = () => {
          while (end.writable && end.write(chunk));
        };
        end.on('drain', pump);
        end.resume();
        pump();
      }
      await until('load', () => relay.bytes.fromClient > 1_000_000);
      relay.close();
      assert.equal(await endOf(relay), 'closed');
      await until('both ends to notice', () => client.closed && server.closed);
    });

    it('ends when both ends are silent for too long, and not before', async () => {
      const { client, server, relay } = await relayed('tcp', 300);
      client.resume();
      const started = performance.now();
      for (let beat = 0; beat < 10; beat += 1) {
        server.write('.');
        await new Promise((resolve) => setTimeout(resolve, 60));
      }
      assert.equal(await endOf(relay), 'idle');
      assert.ok(performance.now() - started >= 600 + 240);
      assert.equal(relay.bytes.fromUpstream, 10);
      await until(
        'both ends to notice',
        () => client.readableEnded && (server.readableEnded || server.closed),
      );
      client.destroy();
      server.destroy();
    });

    it('ends a session that is to retire and cannot know when it is at rest, after its patience', async () => {
      const { client, server, relay } = await relayed();
      const why = new PosternError('SESSION_EXPIRED', 'too old');
      relay.retire(why, 50);
      assert.equal(await endOf(relay), why);
      client.destroy();
      server.destroy();
    });

    it('carries 2,000 sessions at once', async () => {
      const limit = Number(/^Max open files\s+(\d+)/m.exec(limits())?.[1] ?? 4096);
      const count = Math.min(2000, Math.floor((limit - 500) / 5));
      const before = descriptors();
      const pairs: Relayed[] = [];
      while (pairs.length < count)
        pairs.push(...(await Promise.all(Array.from({ length: 50 }, () => relayed()))));
      const answers = pairs.map(async ({ client, server }, index) => {
        server.pipe(server);
        const heard = collect(client);
        client.end(`session ${index}`);
        assert.equal((await heard).bytes.toString(), `session ${index}`);
      });
      await Promise.all(answers);
      for (const { relay } of pairs) assert.equal(await endOf(relay), 'done');
      await until('all descriptors to be closed', () => descriptors() <= before);
    });

    it(`leaves no descriptor behind after ${CHURN} sessions`, async () => {
      await endOf((await session()).relay);
      const before = descriptors();
      for (let done = 0; done < CHURN; done += 20)
        await Promise.all(
          Array.from({ length: 20 }, async () => {
            const { client, server, relay } = await session();
            assert.equal(await endOf(relay), 'done');
            client.destroy();
            server.destroy();
          }),
        );
      await until('all descriptors to be closed', () => descriptors() <= before);
    });

    it(`leaves no descriptor, thread or byte behind after ${CUTS} sessions that were cut at random moments`, async () => {
      // Threads of sessions end with them; those of the pool and of the engine are there before.
      const first = await session();
      await endOf(first.relay);
      const before = { descriptors: descriptors(), threads: threads() };
      for (let done = 0; done < CUTS; done += 20)
        await Promise.all(
          Array.from({ length: 20 }, async () => {
            const { client, server, relay } = await relayed();
            const chunk = randomBytes(1 + Math.floor(Math.random() * 200_000));
            for (const end of [client, server]) {
              end.resume();
              end.write(chunk);
            }
            for (let turns = Math.floor(Math.random() * 6); turns > 0; turns -= 1)
              await new Promise((resolve) => setImmediate(resolve));
            const cuts = [
              () => client.resetAndDestroy(),
              () => server.resetAndDestroy(),
              () => client.destroy(),
              () => server.destroy(),
              () => relay.close(),
              () => client.end(),
            ];
            cuts[Math.floor(Math.random() * cuts.length)]?.();
            setTimeout(() => {
              client.destroy();
              server.destroy();
            }, 20);
            await endOf(relay);
            const { fromClient, fromUpstream } = relay.bytes;
            assert.ok(fromClient <= chunk.length && fromUpstream <= chunk.length);
          }),
        );
      await until('all descriptors to be closed', () => descriptors() <= before.descriptors);
      await until('all threads to be gone', () => threads() <= before.threads);
    });

    /** A short session that both ends close in order. */
    async function session(): Promise<Relayed> {
      const pair = await relayed();
      pair.server.on('data', () => {});
      pair.client.on('data', () => {});
      pair.server.once('end', () => pair.server.end('answer'));
      pair.client.end('question');
      return pair;
    }

    it('is seen to die by both ends when its process is killed in the middle of a transfer', async () => {
      const upstream = createServer();
      await once(upstream.listen(0, '127.0.0.1'), 'listening');
      const accepted = once(upstream, 'connection') as Promise<[Socket]>;
      const script = new URL('relay-process.ts', import.meta.url).pathname;
      const { port } = upstream.address() as AddressInfo;
      const child = spawn(process.execPath, [script, engine, String(port)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      const [said] = (await once(child.stdout, 'data')) as [Buffer];
      const client = connect({ port: Number(said.toString()), host: '127.0.0.1' });
      client.on('error', () => {});
      const [server] = await accepted;
      server.on('error', () => {});
      let received = 0;
      client.on('data', (chunk: Buffer) => (received += chunk.length));
      server.resume();
      const chunk = Buffer.alloc(256 * 1024);
      const pump = () => {
        while (server.writable && server.write(chunk));
      };
      server.on('drain', pump);
      pump();
      await until('a transfer', () => received > 4_000_000);
      child.kill('SIGKILL');
      await until('both ends to notice', () => client.closed && server.closed);
      upstream.close();
    });

    if (engine === 'native')
      it('keeps JavaScript free while 500 MB pass', async () => {
        const total = 500_000_000;
        const worker = new Worker(spewer, { eval: true, workerData: total });
        const ports = (await once(worker, 'message')) as [[number, number]];
        const [client, upstream] = ports[0].map((port) =>
          connect({ port, host: '127.0.0.1', allowHalfOpen: true }),
        ) as [Socket, Socket];
        await Promise.all([once(client, 'connect'), once(upstream, 'connect')]);
        const before = process.threadCpuUsage();
        const relay = relays().relay(client, upstream, { idleTimeout: 0 });
        const [[received]] = await Promise.all([once(worker, 'message') as Promise<[number]>, relay.done]);
        const { user, system } = process.threadCpuUsage(before);
        assert.equal(received, total);
        assert.equal(relay.bytes.fromUpstream, total);
        // In JavaScript it is more than 200 ms for the system calls alone.
        assert.ok(user + system < 100_000, `${(user + system) / 1000} ms of the thread of JavaScript`);
        await worker.terminate();
      });
  });

function limits(): string {
  return process.platform === 'linux' ? readFileSync('/proc/self/limits', 'utf8') : '';
}

/** A thread with both outer ends: one sends so many bytes and is done, the other counts what comes. */
const spewer = `
  const { parentPort, workerData: total } = require('node:worker_threads');
  const { createServer } = require('node:net');
  let received = 0;
  const reader = createServer((socket) => {
    socket.on('data', (chunk) => (received += chunk.length));
    socket.on('end', () => parentPort.postMessage(received));
  });
  const chunk = Buffer.alloc(1_000_000);
  const writer = createServer((socket) => {
    let left = total / chunk.length;
    const pump = () => {
      while (left > 0) {
        left -= 1;
        if (!socket.write(chunk)) return;
      }
      socket.end();
    };
    socket.on('drain', pump);
    pump();
  });
  reader.listen(0, '127.0.0.1', () =>
    writer.listen(0, '127.0.0.1', () => parentPort.postMessage([reader.address().port, writer.address().port])));
`;
