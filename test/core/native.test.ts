import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';
import { Worker } from 'node:worker_threads';

import { descriptorOf, loadNative } from '../../src/core/native.ts';
import { type NativeHandle, NativeRelays } from '../../src/core/relay-native.ts';
import { socketPair, until } from '../support/session.ts';

const found = loadNative();
const { native } = found;
/** Why the tests that need the binary are skipped: it is built by `npm run native`, where cargo is. */
const skip = found.native ? false : found.reason;

/** Two connected unix sockets, the first as a client has it and the second as a listener has it. */
async function unixPair(): Promise<[Socket, Socket]> {
  const folder = mkdtempSync(join(tmpdir(), 'postern-native-'));
  const server = createServer({ allowHalfOpen: true });
  await once(server.listen(join(folder, 'socket')), 'listening');
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const near = connect({ path: join(folder, 'socket'), allowHalfOpen: true });
  const [[far]] = await Promise.all([accepted, once(near, 'connect')]);
  server.close();
  rmSync(folder, { recursive: true });
  for (const socket of [near, far]) socket.on('error', () => {});
  return [near, far];
}

/** A session with both outer ends in the hand of the test. */
interface Relayed {
  readonly client: Socket;
  readonly server: Socket;
  readonly handle: NativeHandle;
}

async function relayed(relays: NativeRelays, pair = socketPair): Promise<Relayed> {
  const [[client, toClient], [toServer, server]] = await Promise.all([pair(), socketPair()]);
  const handle = relays.adopt(toClient, toServer);
  assert.ok(handle);
  return { client, server, handle };
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

async function endOf({ handle }: Relayed): Promise<Awaited<NativeHandle['ended']>> {
  let end: Awaited<NativeHandle['ended']> | undefined;
  void handle.ended.then((settled) => (end = settled));
  await until('the session to end', () => end !== undefined);
  assert.ok(end);
  return end;
}

const digest = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
const openDescriptors = () => readdirSync('/proc/self/fd').length;
const threadNames = () =>
  readdirSync('/proc/self/task').map((task) => {
    try {
      return readFileSync(`/proc/self/task/${task}/comm`, 'utf8').trim();
    } catch {
      return 'gone meanwhile';
    }
  });
/** Those of sessions that have threads of their own. */
const sessionThreads = () => threadNames().filter((name) => /^postern-(client|server)$/.test(name)).length;

async function writeInPieces(socket: Socket, bytes: Buffer, size: number): Promise<void> {
  for (let at = 0; at < bytes.length; at += size)
    if (!socket.write(bytes.subarray(at, at + size))) await once(socket, 'drain');
  socket.end();
}

for (const { name, dedicated, pair } of [
  { name: 'on the thread for the many', dedicated: 0, pair: socketPair },
  { name: 'on threads of its own', dedicated: 1000, pair: socketPair },
  { name: 'on the thread for the many, its client at a unix socket', dedicated: 0, pair: unixPair },
  { name: 'on threads of its own, its client at a unix socket', dedicated: 1000, pair: unixPair },
])
  describe(`a native relay ${name}`, { skip }, () => {
    const unix = pair === unixPair;
    const relays = native && NativeRelays.start(native, { dedicated });
    after(() => relays?.stop());
    const open = () => {
      assert.ok(relays);
      return relayed(relays, pair);
    };

    for (const { size, total } of [
      { size: 1, total: 5_000 },
      { size: 65_537, total: 3_000_000 },
      { size: 1024 * 1024, total: 16 * 1024 * 1024 },
    ])
      it(`carries every byte in its order, both ways at once, in pieces of ${size}`, async () => {
        const session = await open();
        const up = randomBytes(total);
        const down = randomBytes(total + 1);
        const [atServer, atClient] = await Promise.all([
          collect(session.server),
          collect(session.client),
          writeInPieces(session.client, up, size),
          writeInPieces(session.server, down, size),
        ]);
        assert.equal(digest(atServer.bytes), digest(up));
        assert.equal(digest(atClient.bytes), digest(down));
        assert.deepEqual(await endOf(session), { side: 'none', errno: 0 });
        assert.deepEqual(session.handle.bytes, { fromClient: total, fromUpstream: total + 1 });
      });

    it('carries what either end said before, and its end', async () => {
      const [[client, toClient], [toServer, server]] = await Promise.all([pair(), socketPair()]);
      client.end('early');
      server.end('bird');
      for (const socket of [toClient, toServer]) {
        const waiting = () => {};
        socket.on('readable', waiting);
        await until('the bytes to arrive', () => socket.readableLength > 0);
        socket.off('readable', waiting);
      }
      const handle = relays?.adopt(toClient, toServer);
      assert.ok(handle);
      assert.ok(toClient.destroyed && toServer.destroyed);
      const [atServer, atClient] = await Promise.all([collect(server), collect(client)]);
      assert.deepEqual([atServer.bytes.toString(), atClient.bytes.toString()], ['early', 'bird']);
      assert.deepEqual(await endOf({ client, server, handle }), { side: 'none', errno: 0 });
      assert.deepEqual(handle.bytes, { fromClient: 5, fromUpstream: 4 });
    });

    for (const first of ['client', 'server'] as const)
      it(`passes a half-close of the ${first} on and goes on in the other direction`, async () => {
        const session = await open();
        const other = first === 'client' ? session.server : session.client;
        const heardByFirst = collect(session[first]);
        const heardByOther = collect(other);
        session[first].end('last words');
        assert.equal((await heardByOther).bytes.toString(), 'last words');
        for (let i = 0; i < 100; i += 1) {
          other.write(`late ${i};`);
          await new Promise((resolve) => setImmediate(resolve));
        }
        other.end();
        const late = (await heardByFirst).bytes.toString();
        assert.equal(late, Array.from({ length: 100 }, (_, i) => `late ${i};`).join(''));
        assert.deepEqual(await endOf(session), { side: 'none', errno: 0 });
      });

    it('tells the server by a reset when the client breaks off', { skip: unix }, async () => {
      const session = await open();
      const atServer = collect(session.server);
      session.client.write('begin');
      await until('the bytes to arrive', () => session.handle.bytes.fromClient === 5);
      session.client.resetAndDestroy();
      const { broken } = await atServer;
      assert.equal(broken, true, 'the server must see that the session was cut off, not finished');
      const { side, errno } = await endOf(session);
      assert.deepEqual([side, errno > 0], ['client', true]);
    });

    it('tells a server that is sending by a reset that its client broke off', { skip: unix }, async () => {
      for (let round = 0; round < 20; round += 1) {
        const session = await open();
        const chunk = Buffer.alloc(64 * 1024);
        const pump = () => {
          while (session.server.writable && session.server.write(chunk));
        };
        session.server.on('drain', pump);
        let ended = false;
        let broken = false;
        session.server.on('end', () => (ended = true)).on('error', () => (broken = true));
        session.server.resume();
        pump();
        session.client.resume();
        await until('load', () => session.handle.bytes.fromUpstream > 500_000);
        session.client.resetAndDestroy();
        await until('the server to hear of it', () => session.server.closed);
        assert.deepEqual([ended, broken], [false, true], `round ${round}`);
        assert.equal((await endOf(session)).side, 'client');
      }
    });

    it('gives a slow client what the server said before it broke off', async () => {
      const session = await open();
      session.client.pause();
      const words = randomBytes(400_000);
      session.server.write(words);
      await until('the bytes to be sent', () => session.server.writableLength === 0);
      await until('the bytes to arrive', () => session.handle.bytes.fromUpstream >= 100_000);
      session.server.resetAndDestroy();
      const heard = (await collect(session.client)).bytes;
      assert.equal(digest(heard), digest(words.subarray(0, heard.length)));
      // What lay in the kernel of a server that resets may be lost with it; what the relay had read may not.
      assert.ok(heard.length >= 100_000);
      session.client.end();
      assert.equal((await endOf(session)).side, 'upstream');
    });

    it('gives the client the error of a server that closes while the client is still sending', async () => {
      const sending = Buffer.alloc(64 * 1024, 'x');
      const error = Buffer.from('FATAL: terminating connection due to administrator command');
      for (let round = 0; round < 20; round += 1) {
        const session = await open();
        const { client, server } = session;
        let told = '';
        client.on('data', (chunk: Buffer) => (told += chunk.toString()));
        const pump = () => {
          while (client.writable && client.write(sending));
        };
        client.on('drain', pump);
        pump();
        await until('some bytes to arrive', () => session.handle.bytes.fromClient > 200_000);
        // As a server process does: says it, and exits a moment later with the client's bytes unread.
        server.write(error);
        for (let turns = 0; turns < 3; turns += 1) await new Promise((resolve) => setImmediate(resolve));
        server.destroy();
        await until('the client to be ended', () => client.readableEnded || client.closed);
        assert.equal(told, error.toString(), `round ${round}`);
        client.destroy();
        await endOf(session);
      }
    });

    it('cuts a client that goes on as if its server were there, after a while', { skip: unix }, async () => {
      const session = await open();
      session.client.resume();
      session.server.resetAndDestroy();
      await once(session.client, 'end');
      const beat = setInterval(() => session.client.write('still here'), 20);
      await until('the client to be cut', () => session.client.closed);
      clearInterval(beat);
      assert.equal((await endOf(session)).side, 'upstream');
    });

    it('calls a reset that answers a goodbye an end in order', async () => {
      const session = await open();
      session.client.end('goodbye');
      await once(session.server.resume(), 'end');
      session.server.resetAndDestroy();
      await collect(session.client);
      assert.deepEqual(await endOf(session), { side: 'none', errno: 0 });
    });

    it('holds back a sender that is faster than its receiver, and loses nothing', async () => {
      const session = await open();
      session.server.pause();
      const sent = randomBytes(24 * 1024 * 1024);
      void writeInPieces(session.client, sent, 256 * 1024);
      let before = -1;
      await until('the client to be held back', async () => {
        const now = session.handle.bytes.fromClient;
        const stuck = now === before && now > 0;
        before = now;
        await new Promise((resolve) => setTimeout(resolve, 100));
        return stuck;
      });
      assert.ok(session.handle.bytes.fromClient < sent.length, 'nothing held the client back');
      assert.equal(digest((await collect(session.server)).bytes), digest(sent));
      session.server.end();
      await endOf(session);
    });

    it('can be closed under load, both ends in order, and again', async () => {
      const session = await open();
      const chunk = Buffer.alloc(256 * 1024);
      for (const end of [session.client, session.server]) {
        const pump = () => {
          while (end.writable && end.write(chunk));
        };
        end.on('drain', pump);
        end.resume();
        pump();
      }
      await until('load', () => session.handle.bytes.fromClient > 1_000_000);
      session.handle.close();
      session.handle.close();
      assert.deepEqual(await endOf(session), { side: 'none', errno: 0 });
      session.handle.close();
      await until('both ends to notice', () => session.client.closed && session.server.closed);
    });
  });

describe('native relays', { skip }, () => {
  const start = (t: TestContext, dedicated: number) => {
    assert.ok(native);
    const relays = NativeRelays.start(native, { dedicated });
    t.after(() => relays.stop());
    return relays;
  };

  it('do not take what they cannot relay, and leave it as it was', async (t) => {
    const relays = start(t, 0);
    const [[client, toClient], [toServer, server]] = await Promise.all([socketPair(), socketPair()]);
    client.write('unread');
    await once(toClient, 'readable');
    toServer.cork();
    toServer.write('unsent');
    assert.equal(relays.adopt(toClient, toServer), undefined);
    assert.equal(String(toClient.read()), 'unread');
    toServer.uncork();
    server.destroy();
    toServer.destroy();
    assert.equal(relays.adopt(toClient, toServer), undefined);
    assert.equal(toClient.destroyed, false);
    client.destroy();
  });

  it('give threads of their own to the first sessions only, and again when one of those has ended', async (t) => {
    const relays = start(t, 2);
    const sessions = await Promise.all([0, 1, 2, 3].map(() => relayed(relays)));
    const pairs = () => threadNames().filter((name) => name === 'postern-client').length;
    await until('the threads to have started', () => pairs() === 2);
    for (const session of sessions) session.client.end('bye');
    for (const session of sessions) session.server.end();
    await Promise.all(sessions.flatMap(({ client, server }) => [collect(client), collect(server)]));
    await Promise.all(sessions.map(endOf));
    await until('the threads to have ended', () => pairs() === 0);
    const again = await relayed(relays);
    await until('a thread for the next session', () => pairs() === 1);
    again.handle.close();
    await endOf(again);
  });

  for (const dedicated of [0, 32])
    it(`leave no descriptor and no thread behind when sessions are cut at random moments (${dedicated} with threads of their own)`, async (t) => {
      const relays = start(t, dedicated);
      const before = openDescriptors();
      const chunk = randomBytes(40_000);
      const one = async () => {
        const session = await relayed(relays);
        const { client, server, handle } = session;
        for (const socket of [client, server]) socket.resume();
        for (let writes = Math.random() * 4; writes > 0; writes -= 1) {
          client.write(chunk.subarray(0, Math.random() * chunk.length));
          server.write(chunk.subarray(0, Math.random() * chunk.length));
        }
        if (Math.random() < 0.5) await new Promise((resolve) => setImmediate(resolve));
        // Node never closes a socket that is reset while its own end is under way.
        const reset = (socket: Socket) =>
          socket.writableEnded ? socket.destroy() : socket.resetAndDestroy();
        const cuts = [
          () => reset(client),
          () => reset(server),
          () => client.destroy(),
          () => server.destroy(),
          () => handle.close(),
          () => client.end(),
        ];
        for (const round of [0, 1]) {
          if (round === 1 && Math.random() < 0.5) await new Promise((resolve) => setImmediate(resolve));
          cuts[Math.floor(Math.random() * cuts.length)]?.();
        }
        client.end();
        server.end();
        setTimeout(() => {
          client.destroy();
          server.destroy();
        }, 20);
        await handle.ended;
        await until('both ends to be closed', () => client.closed && server.closed);
      };
      let left = 1500;
      const work = async () => {
        while (left > 0) {
          left -= 1;
          await one();
        }
      };
      await Promise.all(Array.from({ length: 40 }, work));
      await until('every descriptor to be closed', () => openDescriptors() <= before);
      await until('every thread of theirs to end', () => sessionThreads() === 0);
    });

  it('end with the worker that started them, whatever the others do', async (t) => {
    const relays = start(t, 4);
    const session = await relayed(relays);
    await until('the threads to have started', () => sessionThreads() === 2);
    const before = openDescriptors();
    const code = `
      const { parentPort, workerData } = require('node:worker_threads');
      const { connect, createServer } = require('node:net');
      void Promise.all([import(workerData.native), import(workerData.relay)]).then(([{ loadNative }, { NativeRelays }]) => {
        const relays = NativeRelays.start(loadNative().native, { dedicated: 2 });
        let open = 0;
        const echo = createServer().listen(0, '127.0.0.1', () => {
          for (let i = 0; i < 5; i += 1) {
            const near = connect(echo.address().port, '127.0.0.1');
            const far = connect(echo.address().port, '127.0.0.1');
            near.once('connect', () => far.connecting ? far.once('connect', adopt) : adopt());
            const adopt = () => {
              relays.adopt(near, far);
              open += 1;
              if (open === 5) parentPort.postMessage('relaying');
            };
          }
        });
      });`;
    for (let round = 0; round < 5; round += 1) {
      const worker = new Worker(code, {
        eval: true,
        workerData: {
          native: import.meta.resolve('../../src/core/native.ts'),
          relay: import.meta.resolve('../../src/core/relay-native.ts'),
        },
      });
      await once(worker, 'message');
      await until('its threads to have started', () => sessionThreads() === 6);
      await worker.terminate();
      await until('its threads to end', () => sessionThreads() === 2);
      await until('its descriptors to be closed', () => openDescriptors() <= before);
    }
    session.client.write('still here');
    const [heard] = (await once(session.server, 'data')) as [Buffer];
    assert.equal(heard.toString(), 'still here');
    session.handle.close();
    await endOf(session);
  });

  it('settle every session when they are stopped, and take no more', async (t) => {
    const relays = start(t, 1);
    const sessions = await Promise.all([0, 1, 2].map(() => relayed(relays)));
    relays.stop();
    await Promise.all(sessions.map(endOf));
    await until('all ends to notice', () =>
      sessions.every(({ client, server }) => {
        for (const socket of [client, server]) socket.resume().end();
        return client.closed && server.closed;
      }),
    );
    const [[client, toClient], [toServer, server]] = await Promise.all([socketPair(), socketPair()]);
    client.write('kept');
    await once(toClient, 'readable');
    assert.equal(relays.adopt(toClient, toServer), undefined);
    assert.equal(String(toClient.read()), 'kept');
    for (const socket of [client, toClient, toServer, server]) socket.destroy();
  });

  it('keep the process alive while there is a session, and not longer', async () => {
    const code = `
      import { connect, createServer } from 'node:net';
      const { loadNative } = await import(process.argv[1]);
      const { NativeRelays } = await import(process.argv[2]);
      const relays = NativeRelays.start(loadNative().native, { dedicated: 1 });
      const [a, b] = [[], []].map(() => loadNative().native.socketPair());
      const { Socket } = await import('node:net');
      const handle = relays.adopt(new Socket({ fd: a[1] }), new Socket({ fd: b[0] }));
      const { closeSync, writeSync } = await import('node:fs');
      handle.ended.then(() => console.log('ended'));
      console.log('relaying');
      setTimeout(() => { closeSync(a[0]); closeSync(b[1]); }, 300).unref();
    `;
    const child = spawn(
      process.execPath,
      [
        '--input-type=module',
        '-e',
        code,
        import.meta.resolve('../../src/core/native.ts'),
        import.meta.resolve('../../src/core/relay-native.ts'),
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    const [status] = (await once(child, 'close')) as [number];
    assert.deepEqual([output, status], ['relaying\nended\n', 0]);
  });

  it('do not mind ids that nobody has', () => {
    assert.ok(native);
    const engine = new native.Relays(0, () => {});
    for (const id of [0, -1, 2 ** 52, 1]) {
      engine.close(id);
      assert.equal(engine.bytes(id), null);
    }
    assert.throws(() => engine.relay(-1, -1, null, null), { code: 'errno 9' });
    assert.throws(() => engine.relay(2 ** 31 - 1, 0, null, null));
    engine.stop();
    engine.stop();
    assert.throws(() => engine.relay(0, 1, null, null));
  });
});

describe('the native part', { skip }, () => {
  it('knows who is at the other end of a unix socket, and of TCP that it does not', async () => {
    assert.ok(native);
    const [, far] = await unixPair();
    const fd = descriptorOf(far);
    assert.ok(fd !== undefined);
    const { groups, ...rest } = native.peerCredentials(fd) ?? assert.fail();
    assert.deepEqual(rest, { pid: process.pid, uid: process.getuid?.(), gid: process.getgid?.() });
    // Node counts the group of the process among the others, also where the kernel does not.
    assert.deepEqual(new Set([...groups, rest.gid]), new Set(process.getgroups?.()));
    const [near, other] = await socketPair();
    assert.equal(native.peerCredentials(descriptorOf(other) ?? -1), null);
    assert.throws(() => native.peerCredentials(-1), { code: 'errno 9' });
    for (const socket of [far, near, other]) socket.destroy();
  });

  it('sets keep-alive probes, and says when a socket has none', async () => {
    assert.ok(native);
    const settings = { idleSeconds: 7, intervalSeconds: 3, count: 5, userTimeoutMs: 9000 };
    const [near, far] = await socketPair();
    const fd = descriptorOf(near) ?? -1;
    native.setKeepAlive(fd, settings);
    native.setKeepAlive(fd, { ...settings, idleSeconds: 0 });
    const [pipe] = await unixPair();
    assert.throws(() => native.setKeepAlive(descriptorOf(pipe) ?? -1, settings), { code: /^errno \d+$/ });
    for (const socket of [near, far, pipe]) socket.destroy();
  });
});

describe('the search for the native part', () => {
  it('says why there is none', () => {
    assert.deepEqual(loadNative({ POSTERN_NATIVE: 'off' }), {
      native: undefined,
      reason: 'POSTERN_NATIVE=off says not to use it',
    });
  });
});
