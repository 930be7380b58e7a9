import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { dial } from '../../src/core/dial.ts';
import { until } from '../support/session.ts';

const never = new AbortController().signal;

async function listening(
  host: string,
  port = 0,
): Promise<{ server: Server; port: number; sockets: Socket[] }> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => sockets.push(socket.resume()));
  await once(server.listen(port, host), 'listening');
  // A test that fails must not wait for it.
  server.unref();
  return { server, port: (server.address() as AddressInfo).port, sockets };
}

describe('dial', () => {
  for (const host of ['127.0.0.1', '127.0.0.2', '::1'])
    it(`reaches ${host} and says that it did`, async (t) => {
      let opened: Awaited<ReturnType<typeof listening>>;
      try {
        opened = await listening(host);
      } catch {
        t.skip(`${host} is not to be had here`);
        return;
      }
      const { server, port } = opened;
      const { socket, address } = await dial({ kind: 'tcp', host, port }, never);
      assert.deepEqual(address, { kind: 'tcp', host, port });
      assert.equal(socket.remotePort, port);
      socket.destroy();
      server.close();
    });

  it('tries every address of a name', async () => {
    // localhost is ::1 and 127.0.0.1 on most machines; only one of them answers.
    const { server, port } = await listening('127.0.0.1');
    const { socket, address } = await dial({ kind: 'tcp', host: 'localhost', port }, never);
    assert.deepEqual(address, { kind: 'tcp', host: '127.0.0.1', port });
    socket.destroy();
    server.close();
  });

  it('names the address and the reason when nobody answers', async () => {
    const { server, port } = await listening('127.0.0.1');
    server.close();
    await once(server, 'close');
    await assert.rejects(dial({ kind: 'tcp', host: '127.0.0.1', port }, never), {
      code: 'UPSTREAM_UNREACHABLE',
      message: `cannot connect to tcp://127.0.0.1:${port} (127.0.0.1:${port} ECONNREFUSED)`,
    });
  });

  it('names a host that has no address', async () => {
    await assert.rejects(dial({ kind: 'tcp', host: 'no-such-host.invalid', port: 1 }, never), {
      code: 'UPSTREAM_UNREACHABLE',
      message: /cannot resolve the host name no-such-host\.invalid \(E\w+\)/,
    });
  });

  it('reaches a unix socket, and names one that is not there', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'postern-'));
    try {
      const path = join(folder, '.s.PGSQL.5432');
      await assert.rejects(dial({ kind: 'unix', path }, never), {
        code: 'UPSTREAM_UNREACHABLE',
        message: `cannot connect to unix://${path} (ENOENT)`,
      });
      const server = createServer();
      await once(server.listen(path), 'listening');
      const { socket, address } = await dial({ kind: 'unix', path }, never);
      assert.deepEqual(address, { kind: 'unix', path });
      socket.destroy();
      server.close();
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('does not begin when it is given up before', async () => {
    const { server, port, sockets } = await listening('127.0.0.1');
    const gone = AbortSignal.abort(new Error('too late'));
    for (const host of ['127.0.0.1', 'localhost'])
      await assert.rejects(dial({ kind: 'tcp', host, port }, gone), /too late/);
    assert.equal(sockets.length, 0);
    server.close();
  });

  it('ends with the reason of the signal while it waits, and leaves no socket and no timer', async () => {
    const resources = () =>
      process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout' || kind.includes('Connect'))
        .length;
    const before = resources();
    for (const host of ['127.0.0.1', 'localhost']) {
      const { server, port, sockets } = await listening('127.0.0.1');
      const controller = new AbortController();
      const dialled = dial({ kind: 'tcp', host, port }, controller.signal);
      controller.abort(new Error('too late'));
      await assert.rejects(dialled, /too late/);
      await until('its socket to close', () => sockets.every((socket) => socket.closed));
      server.close();
    }
    assert.ok(resources() <= before);
  });

  it('keeps a socket that breaks later from ending the process', async () => {
    const { server, port, sockets } = await listening('127.0.0.1');
    const { socket } = await dial({ kind: 'tcp', host: '127.0.0.1', port }, never);
    await until('the connection', () => sockets.length === 1);
    sockets[0]?.resetAndDestroy();
    socket.resume();
    await until('it to close', () => socket.closed);
    server.close();
  });

  it('does not even connect to an address that is not permitted', async () => {
    let connections = 0;
    const server = createServer(() => (connections += 1));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const asked: string[] = [];
    const permits = (address: string) => {
      asked.push(address);
      return false;
    };
    for (const host of ['127.0.0.1', 'localhost'])
      await assert.rejects(dial({ kind: 'tcp', host, port }, never, { permits }), { code: 'CLIENT_REFUSED' });
    assert.ok(asked.includes('127.0.0.1'));
    const accepted = once(server, 'connection');
    const { socket } = await dial({ kind: 'tcp', host: 'localhost', port }, never, {
      permits: (address) => address === '127.0.0.1',
    });
    await accepted;
    assert.equal(connections, 1);
    socket.destroy();
    server.close();
  });
});
