import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, readdir, rm, stat, unlink, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';

import type { Address } from '../src/core/address.ts';
import { Listener } from '../src/listener.ts';
import { until } from './support/session.ts';

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'postern-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function open(t: TestContext, address: Address, mode = 0o600) {
  const clients: Socket[] = [];
  const listener = await Listener.open(address, mode, {
    onClient: (client) => clients.push(client.on('error', () => {})),
    onAcceptError: () => {},
  });
  t.after(() => {
    listener.close();
    for (const client of clients) client.destroy();
  });
  return { listener, clients };
}

const anyPort: Address = { kind: 'tcp', host: '127.0.0.1', port: 0 };

describe('a listener', () => {
  it('says which port it got, and hands over half-closable clients', async (t) => {
    const { listener, clients } = await open(t, anyPort);
    const { address } = listener;
    assert.ok(address.kind === 'tcp' && address.port > 0);
    const client = connect({ port: address.port, host: address.host });
    await once(client, 'connect');
    await until('the client to be accepted', () => clients.length === 1);
    assert.equal(clients[0]?.allowHalfOpen, true);
    client.destroy();
  });

  it('accepts nobody once it is closed, and lets those be whom it has', async (t) => {
    const { listener, clients } = await open(t, anyPort);
    const { address } = listener;
    assert.ok(address.kind === 'tcp');
    const client = connect({ port: address.port, host: address.host });
    await once(client, 'connect');
    await until('the client to be accepted', () => clients.length === 1);
    listener.close();
    clients[0]?.write('still here');
    const [heard] = (await once(client, 'data')) as [Buffer];
    assert.equal(heard.toString(), 'still here');
    const late = connect({ port: address.port, host: address.host });
    await assert.rejects(once(late, 'connect'), { code: 'ECONNREFUSED' });
    client.destroy();
  });

  it('says that an address is in use', async (t) => {
    const { listener } = await open(t, anyPort);
    await assert.rejects(open(t, listener.address), {
      code: 'LISTEN_FAILED',
      message: /^cannot listen on tcp:\/\/127\.0\.0\.1:\d+: the address is in use$/,
    });
  });

  for (const mode of [0o600, 0o660, 0o666])
    it(`makes a unix socket of mode ${mode.toString(8)} and takes it away at the end`, async (t) => {
      const path = join(await folder(t), '.s.PGSQL.5432');
      const before = process.umask();
      const { listener } = await open(t, { kind: 'unix', path }, mode);
      assert.equal(process.umask(), before);
      assert.equal((await stat(path)).mode & 0o777, mode);
      listener.close();
      await until('the file to go', async () => !(await stat(path).catch(() => undefined)));
    });

  it('takes the place of a unix socket that nobody listens on any more', async (t) => {
    const path = join(await folder(t), 'socket');
    // A process that was killed: the socket is bound, and the file stays.
    const { spawnSync } = await import('node:child_process');
    spawnSync(process.execPath, [
      '-e',
      `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`,
    ]);
    assert.ok((await stat(path)).isSocket());
    const { clients } = await open(t, { kind: 'unix', path });
    const client = connect({ path });
    await until('the client to be accepted', () => clients.length === 1);
    client.destroy();
  });

  it('leaves a unix socket alone that somebody listens on', async (t) => {
    const path = join(await folder(t), 'socket');
    const other = createServer((socket) => socket.destroy());
    await once(other.listen(path), 'listening');
    t.after(() => other.close());
    await assert.rejects(open(t, { kind: 'unix', path }), {
      code: 'LISTEN_FAILED',
      message: /another process listens there/,
    });
    assert.ok((await stat(path)).isSocket());
  });

  it('leaves the socket alone at its end that somebody else has put in the place of its own', async (t) => {
    const path = join(await folder(t), 'socket');
    const { listener } = await open(t, { kind: 'unix', path });
    await unlink(path);
    const other = createServer((socket) => socket.end('still here'));
    await once(other.listen(path), 'listening');
    t.after(() => other.close());
    listener.close();
    const client = connect({ path });
    const [heard] = (await once(client, 'data')) as [Buffer];
    assert.equal(heard.toString(), 'still here');
    client.destroy();
    assert.deepEqual(await readdir(join(path, '..')), ['socket']);
  });

  it('takes its socket away also when its owner or mode was changed meanwhile', async (t) => {
    const path = join(await folder(t), 'socket');
    const { listener } = await open(t, { kind: 'unix', path });
    await listener.permit(0o666);
    listener.close();
    listener.close();
    assert.deepEqual(await readdir(join(path, '..')), []);
  });

  it('listens again where it did, for the same clients', async (t) => {
    const { listener, clients } = await open(t, anyPort);
    const { address } = listener;
    assert.ok(address.kind === 'tcp');
    listener.close();
    assert.equal(listener.open, false);
    await assert.rejects(once(connect({ port: address.port, host: address.host }), 'connect'));
    await listener.reopen();
    assert.deepEqual([listener.open, listener.address], [true, address]);
    const client = connect({ port: address.port, host: address.host });
    await until('the client to be accepted', () => clients.length === 1);
    client.destroy();
  });

  it('leaves a file of another kind alone', async (t) => {
    const path = join(await folder(t), 'precious');
    await writeFile(path, 'data');
    await assert.rejects(open(t, { kind: 'unix', path }), {
      code: 'LISTEN_FAILED',
      message: /a file of another kind/,
    });
    assert.equal((await stat(path)).size, 4);
  });

  it('names a folder that is not there', async (t) => {
    const path = join(await folder(t), 'none', 'socket');
    await assert.rejects(open(t, { kind: 'unix', path }), { code: 'LISTEN_FAILED' });
  });
});
