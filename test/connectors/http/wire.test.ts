import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { describe, it } from 'node:test';

import { attachAccepted, tryAccelerating } from '../../../src/connectors/http/accelerator.ts';
import { SocketWire, type WireUser } from '../../../src/connectors/http/wire.ts';
import { socketPair, until } from '../../support/session.ts';

class Recorder implements WireUser {
  readonly heard: Buffer[] = [];
  readonly events: string[] = [];
  onBytes(bytes: Buffer, from: number, to: number): void {
    // Its bytes are the wire's again afterwards.
    this.heard.push(Buffer.from(bytes.subarray(from, to)));
  }
  onEnd(): void {
    this.events.push('end');
  }
  onDrain(): void {
    this.events.push('drain');
  }
  onClose(): void {
    this.events.push('close');
  }
  get text(): string {
    return Buffer.concat(this.heard).toString();
  }
}

describe('a wire', () => {
  it('can have accepted sockets read into its buffers, and write past their streams, on this Node.js', async () => {
    // Node.js 26 has a way to write of its own.
    const writes = Number(process.versions.node.split('.')[0]) < 26;
    assert.deepEqual(await tryAccelerating(), { reads: true, writes });
  });

  for (const reads of ['onread', 'data'] as const) {
    it(`carries bytes both ways, passes a half-close on and ends with its socket, read by ${reads}`, async () => {
      const [near, far] = await socketPair();
      const user = new Recorder();
      const wire = new SocketWire(user);
      attachAccepted(wire, far, reads);
      near.write('question');
      await until('the question', () => user.text === 'question');
      const answer = collected(near);
      wire.put(Buffer.from('-answer-'), 1, 7);
      wire.end();
      await until('the answer', () => answer.ended);
      assert.equal(answer.text, 'answer');
      near.end();
      await until('both ends', () => user.events.includes('close'));
      assert.deepEqual(
        user.events.filter((event) => event !== 'drain'),
        ['end', 'close'],
      );
      await until('the accepted socket to be closed too', () => far.closed);
    });

    it(`gives its socket back with what was not read, read by ${reads}`, async () => {
      const [near, far] = await socketPair();
      const user = new Recorder();
      const wire = new SocketWire(user);
      attachAccepted(wire, far, reads);
      near.write('head');
      await until('the head', () => user.text === 'head');
      const socket = wire.detach(Buffer.from('unread '));
      socket.on('error', () => {});
      const rest = collected(socket);
      socket.resume();
      near.end('and more');
      await until('the rest', () => rest.ended);
      assert.equal(rest.text, 'unread and more');
      assert.equal(user.text, 'head');
      socket.end();
      near.resume();
      await until('both ends to close', () => near.closed && far.closed);
    });

    it(`stops reading when it is told to, and goes on, read by ${reads}`, async () => {
      const [near, far] = await socketPair();
      const user = new Recorder();
      const wire = new SocketWire(user);
      attachAccepted(wire, far, reads);
      wire.pause();
      near.write('later');
      await new Promise((resolve) => setTimeout(resolve, 50));
      assert.equal(user.text, '');
      wire.resume();
      await until('the bytes', () => user.text === 'later');
      wire.destroy();
      near.destroy();
      await until('the sockets to close', () => far.closed);
    });
  }

  for (const reads of ['onread', 'data'] as const) {
    it(`keeps what its peer does not take yet, in order, and says when it has gone, written to as with ${reads}`, async () => {
      const [near, far] = await socketPair();
      const user = new Recorder();
      const wire = new SocketWire(user);
      attachAccepted(wire, far, reads);
      const block = Buffer.alloc(256 * 1024, 'x');
      let sent = 0;
      for (let i = 0; i < 200 && !wire.full; i += 1) {
        wire.put(block, 0, block.length);
        sent += block.length;
      }
      const before = wire.backlog();
      wire.putWhole(Buffer.from(' and '));
      wire.put(Buffer.from('(the last)'), 1, 9);
      assert.equal(wire.backlog(), before + ' and the last'.length);
      const answer = collected(near);
      await until('the news', () => user.events.includes('drain'));
      assert.equal(wire.backlog(), 0);
      wire.end();
      await until('all of it', () => answer.ended);
      assert.equal(answer.text, `${'x'.repeat(sent)} and the last`);
      near.end();
      await until('both ends', () => user.events.includes('close'));
    });

    it(`ends with its socket while something is queued, written to as with ${reads}`, async () => {
      const [near, far] = await socketPair();
      const user = new Recorder();
      const wire = new SocketWire(user);
      attachAccepted(wire, far, reads);
      const block = Buffer.alloc(256 * 1024, 'x');
      for (let i = 0; i < 200 && !wire.full; i += 1) wire.put(block, 0, block.length);
      assert.ok(wire.full);
      near.resetAndDestroy();
      await until('the end', () => user.events.includes('close'));
      wire.put(block, 0, block.length);
      wire.end();
      assert.deepEqual(
        user.events.filter((event) => event === 'close'),
        ['close'],
      );
    });

    it(`tells of a write that failed when the writer has returned, written to as with ${reads}`, async () => {
      const [near, far] = await socketPair();
      const user = new Recorder();
      const wire = new SocketWire(user);
      attachAccepted(wire, far, reads);
      wire.pause();
      near.resetAndDestroy();
      const bytes = Buffer.from('to nobody');
      await until('the end', () => {
        const told = user.events.length;
        wire.put(bytes, 0, bytes.length);
        assert.equal(user.events.length, told);
        return user.events.includes('close');
      });
    });
  }

  it('keeps what is put before its socket is there, and says when that has gone', async () => {
    const [near, far] = await socketPair();
    const user = new Recorder();
    const wire = new SocketWire(user);
    wire.put(Buffer.from('one '), 0, 4);
    wire.put(Buffer.from('two'), 0, 3);
    assert.equal(wire.backlog(), 7);
    const answer = collected(near);
    wire.attach(far, true);
    await until('the bytes', () => answer.text === 'one two');
    assert.ok(user.events.includes('drain'));
    assert.equal(wire.backlog(), 0);
    near.destroy();
    far.destroy();
  });
});

function collected(socket: Socket): { readonly text: string; readonly ended: boolean } {
  let text = '';
  let ended = false;
  socket.on('data', (bytes: Buffer) => {
    text += bytes.toString();
  });
  socket.on('end', () => {
    ended = true;
  });
  return {
    get text() {
      return text;
    },
    get ended() {
      return ended;
    },
  };
}
