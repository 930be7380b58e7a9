import assert from 'node:assert/strict';
import { once } from 'node:events';
import { realpathSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { describe, it } from 'node:test';

import { loadNative } from '../../src/core/native.ts';
import { identifyPeer, ownerByTables } from '../../src/core/peer.ts';

const { native } = loadNative();
const { signal } = new AbortController();
const uid = process.getuid?.();
const skip = process.platform === 'linux' ? false : 'only Linux has it';

/** A client's connection from here, as a listener sees it. */
async function accepted(listen: string, to = listen): Promise<Disposable & { near: Socket; far: Socket }> {
  const server = createServer({ allowHalfOpen: true });
  await once(server.listen(0, listen), 'listening');
  const { port } = server.address() as { port: number };
  const far = once(server, 'connection') as Promise<[Socket]>;
  const near = connect({ port, host: to, allowHalfOpen: true });
  await once(near, 'connect');
  const [socket] = await far;
  server.close();
  for (const each of [near, socket]) each.on('error', () => {});
  return {
    near,
    far: socket,
    [Symbol.dispose]: () => {
      near.destroy();
      socket.destroy();
    },
  };
}

describe('the peer of a connection over TCP', { skip }, () => {
  for (const [what, with_] of [
    ['sock_diag', native],
    ['/proc/net/tcp', undefined],
  ] as const)
    for (const [listen, to] of [
      ['127.0.0.1', '127.0.0.1'],
      ['::1', '::1'],
      ['::', '127.0.0.1'],
      ['127.0.0.1', '::ffff:127.0.0.1'],
    ] as const)
      it(`is found by ${what}, from ${to} to ${listen}`, {
        skip: what === 'sock_diag' && !native,
      }, async () => {
        using both = await accepted(listen, to);
        const peer = await identifyPeer(both.far, { native: with_, executables: false }, signal);
        assert.deepEqual(peer, { uid, gids: undefined, pid: undefined, executables: undefined });
      });

  it('is known by its program, when that is asked for', async () => {
    using both = await accepted('127.0.0.1');
    const peer = await identifyPeer(both.far, { native, executables: true }, signal);
    assert.equal(peer?.pid, process.pid);
    assert.deepEqual(peer?.executables, [realpathSync(process.execPath)]);
  });

  it('is known while it has only finished sending', async () => {
    for (const with_ of [native, undefined]) {
      using both = await accepted('127.0.0.1');
      both.near.end();
      both.far.resume();
      await once(both.far, 'end');
      const peer = await identifyPeer(both.far, { native: with_, executables: false }, signal);
      assert.equal(peer?.uid, uid);
    }
  });

  it('is unknown once it is gone, and not root', async () => {
    for (const with_ of [native, undefined]) {
      using both = await accepted('127.0.0.1');
      both.near.destroy();
      await once(both.near, 'close');
      assert.equal(await identifyPeer(both.far, { native: with_, executables: false }, signal), undefined);
    }
  });

  it('is unknown where there is no such connection', async () => {
    using both = await accepted('127.0.0.1');
    const { localPort } = both.far;
    assert.ok(localPort);
    const own = { address: '127.0.0.1', port: localPort };
    assert.equal(await ownerByTables({ address: '127.0.0.1', port: 1 }, own, signal), undefined);
  });

  it('is asked of the tables where the system has no netlink', { skip: !native }, async () => {
    assert.ok(native);
    using both = await accepted('127.0.0.1');
    const tcpOwner = () => {
      throw Object.assign(new Error('the system refused'), { code: 'errno 93' });
    };
    const peer = await identifyPeer(
      both.far,
      { native: { ...native, tcpOwner }, executables: false },
      signal,
    );
    assert.equal(peer?.uid, uid);
  });
});
