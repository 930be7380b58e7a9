import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, it } from 'node:test';

import { endLingering, readExactly, writeAll } from '../../src/core/socket.ts';
import { socketPair, until } from '../support/session.ts';

const never = new AbortController().signal;

describe('readExactly', () => {
  it('takes what was asked for and leaves the rest in the socket', async () => {
    const [near, far] = await socketPair();
    far.write('hello world');
    assert.equal((await readExactly(near, 'client', 5, never)).toString(), 'hello');
    assert.equal((await readExactly(near, 'client', 1, never)).toString(), ' ');
    far.end();
    assert.equal((await readExactly(near, 'client', 5, never)).toString(), 'world');
    await assert.rejects(readExactly(near, 'client', 1, never), { code: 'CLIENT_CLOSED' });
    near.destroy();
  });

  it('waits for fragments, and reads more than the socket buffers at once', async () => {
    const [near, far] = await socketPair();
    const whole = Buffer.alloc(300_000, 'abc');
    const read = readExactly(near, 'client', whole.length, never);
    for (let at = 0; at < whole.length; at += 10_007) {
      far.write(whole.subarray(at, at + 10_007));
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.ok((await read).equals(whole));
    near.destroy();
    far.destroy();
  });

  it('reads nothing without waiting, also from a socket that is closed', async () => {
    const [near, far] = await socketPair();
    far.destroy();
    near.destroy();
    assert.equal((await readExactly(near, 'client', 0, never)).length, 0);
    await assert.rejects(readExactly(near, 'upstream', 1, never), { code: 'UPSTREAM_CLOSED' });
  });

  for (const how of ['end', 'destroy', 'resetAndDestroy'] as const)
    it(`says whose connection it was that ended in the middle (${how})`, async () => {
      for (const side of ['client', 'upstream'] as const) {
        const [near, far] = await socketPair();
        const read = readExactly(near, side, 10, never);
        far.write('half');
        await until('the half', () => near.readableLength === 4 || near.bytesRead === 4);
        far[how]();
        await assert.rejects(read, { code: side === 'client' ? 'CLIENT_CLOSED' : 'UPSTREAM_CLOSED' });
        near.destroy();
        far.destroy();
      }
    });

  it('ends with the reason of the signal and leaves no listener behind', async () => {
    const [near, far] = await socketPair();
    const listeners = () => ['readable', 'end', 'close'].map((event) => near.listenerCount(event));
    const before = listeners();
    const controller = new AbortController();
    const read = readExactly(near, 'client', 10, controller.signal);
    controller.abort(new Error('too late'));
    await assert.rejects(read, /too late/);
    await assert.rejects(readExactly(near, 'client', 10, controller.signal), /too late/);
    assert.deepEqual(listeners(), before);
    // What was not read is there for the next one.
    far.write('0123456789');
    assert.equal((await readExactly(near, 'client', 10, never)).toString(), '0123456789');
    assert.deepEqual(listeners(), before);
    near.destroy();
    far.destroy();
  });
});

describe('writeAll', () => {
  it('resolves when the kernel has the bytes, so that they may be wiped', async () => {
    const [near, far] = await socketPair();
    const secret = Buffer.from('secret');
    await writeAll(near, 'upstream', secret, never);
    secret.fill(0);
    assert.equal((await readExactly(far, 'client', 6, never)).toString(), 'secret');
    near.destroy();
    far.destroy();
  });

  it('destroys the socket when it is given up, so that nothing half wiped is sent', async () => {
    const [near, far] = await socketPair();
    const controller = new AbortController();
    const write = writeAll(near, 'upstream', Buffer.alloc(64 * 1024 * 1024), controller.signal);
    controller.abort(new Error('too late'));
    await assert.rejects(write, /too late/);
    assert.equal(near.destroyed, true);
    far.destroy();
  });

  it('says whose connection it was that broke', async () => {
    const [near, far] = await socketPair();
    near.destroy();
    await assert.rejects(writeAll(near, 'upstream', Buffer.from('x'), never), { code: 'UPSTREAM_CLOSED' });
    await assert.rejects(writeAll(near, 'client', Buffer.from('x'), never), { code: 'CLIENT_CLOSED' });
    far.destroy();
  });
});

describe('the end of a connection', () => {
  it('lets the peer read the last words while it keeps on sending', async () => {
    const [near, far] = await socketPair();
    const words = Buffer.alloc(200_000, 'last words ');
    let heard = 0;
    far.on('data', (chunk: Buffer) => (heard += chunk.length));
    const chatter = setInterval(() => far.writable && far.write(Buffer.alloc(10_000)), 1);
    try {
      await until('chatter', () => near.readableLength > 0);
      near.write(words);
      endLingering(near);
      await once(far, 'end');
      assert.equal(heard, words.length);
      await until('the connection to be cut', () => near.closed);
    } finally {
      clearInterval(chatter);
      far.destroy();
    }
  });

  it('is at once when the peer is done too, and leaves no timer', async () => {
    const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    const [near, far] = await socketPair();
    const before = timers();
    let cut = false;
    const destroy = near.destroy.bind(near);
    near.destroy = (error) => {
      // Node does so itself when both are done.
      cut ||= !near.readableEnded;
      return destroy(error);
    };
    far.resume();
    far.on('end', () => far.end());
    endLingering(near);
    await once(near, 'close');
    assert.equal(cut, false, 'it was not the timer that ended it');
    assert.equal(timers(), before);
  });

  it('does nothing to a connection that is gone', async () => {
    const [near, far] = await socketPair();
    near.destroy();
    endLingering(near);
    assert.equal(near.listenerCount('data'), 0);
    far.destroy();
  });
});
