import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { CommandFollower } from '../../../src/connectors/mysql/commands.ts';
import { packet } from '../../support/fake-mysql.ts';

const changeUser = packet(0, Buffer.from([0x11]), Buffer.from('whoever\0\0'));
const query = packet(0, Buffer.from('\x03select 1'));

/** What passes, and what is held, of a stream that comes in these pieces. */
function follow(pieces: readonly Buffer[]): { passed: Buffer; held: Buffer | undefined } {
  const follower = new CommandFollower();
  const passed: Buffer[] = [];
  for (const [i, piece] of pieces.entries()) {
    passed.push(follower.pass(piece));
    const held = follower.takeHeld();
    if (held) return { passed: Buffer.concat(passed), held: Buffer.concat([held, ...pieces.slice(i + 1)]) };
  }
  return { passed: Buffer.concat(passed), held: undefined };
}

function inPieces(bytes: Buffer, size: number): Buffer[] {
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
    bytes.subarray(i * size, (i + 1) * size),
  );
}

/** A command's payload over as many packets as it needs. */
function big(first: number, length: number): Buffer {
  const payload = Buffer.alloc(length, 0x11);
  payload[0] = first;
  const parts = inPieces(payload, 0xffffff);
  if (length % 0xffffff === 0) parts.push(Buffer.alloc(0));
  return Buffer.concat(parts.map((part, i) => packet(i, part)));
}

/** The content of a file as a client uploads it for LOAD DATA LOCAL, with the empty packet that ends it. */
function upload(pieces: readonly Buffer[]): Buffer {
  return Buffer.concat([...pieces, Buffer.alloc(0)].map((piece, i) => packet((i + 2) & 255, piece)));
}

describe('following the commands of a client', () => {
  for (const size of [1, 2, 3, 4, 5, 7, 1000])
    it(`holds a COM_CHANGE_USER and what follows it, in pieces of ${size}`, () => {
      const before = Buffer.concat([query, packet(0, Buffer.from([0x0e])), packet(0), query]);
      const after = Buffer.concat([changeUser, query]);
      const { passed, held } = follow(inPieces(Buffer.concat([before, after]), size));
      assert.deepEqual(passed, before);
      assert.deepEqual(held, after);
    });

  it('holds nothing longer than it must: a whole command passes at once, as the very buffer that came', () => {
    const follower = new CommandFollower();
    assert.equal(follower.pass(query), query);
    const two = Buffer.concat([query, query]);
    assert.equal(follower.pass(two), two);
    assert.equal(follower.takeHeld(), undefined);
  });

  it('sees the next command after it has stepped in for one', () => {
    const follower = new CommandFollower();
    follower.pass(changeUser);
    assert.deepEqual(follower.takeHeld(), changeUser);
    assert.deepEqual(follower.pass(query), query);
    follower.pass(Buffer.concat([changeUser]));
    assert.deepEqual(follower.takeHeld(), changeUser);
  });

  for (const length of [0xffffff - 1, 0xffffff, 0xffffff + 1, 2 * 0xffffff])
    it(`takes no continuation of a command of ${length} bytes for a command`, () => {
      const bytes = big(0x03, length);
      const { passed, held } = follow([...inPieces(bytes, 65_536), changeUser]);
      assert.equal(passed.length, bytes.length);
      assert.deepEqual(held, changeUser);
    });

  it('takes the content of a file for no command, also where the sequence ids come round to 0', () => {
    const content = upload(Array.from({ length: 600 }, () => Buffer.from('\x11root\0\0')));
    const { passed, held } = follow([...inPieces(Buffer.concat([query, content, query]), 1000), changeUser]);
    assert.deepEqual(passed, Buffer.concat([query, content, query]));
    assert.deepEqual(held, changeUser);
  });

  it('takes a full packet and its empty continuation in a file for content, not for the end of it', () => {
    const content = Buffer.concat([
      packet(2, Buffer.alloc(0xffffff, 0x11)),
      packet(3),
      ...Array.from({ length: 252 }, (_, i) => packet(4 + i, Buffer.from('x'))),
      packet(0, Buffer.from('\x11root\0\0')),
      packet(1),
    ]);
    const { passed, held } = follow([content, changeUser]);
    assert.equal(passed.length, content.length);
    assert.deepEqual(held, changeUser);
  });

  it('finds the same command however the bytes are cut', () => {
    const command = fc
      .tuple(fc.constantFrom(0x03, 0x0e, 0x16, 0x17, 0x1f), fc.uint8Array({ maxLength: 40 }))
      .map(([first, rest]) => packet(0, Buffer.from([first]), rest));
    const file = fc
      .array(fc.uint8Array({ minLength: 1, maxLength: 9 }), { maxLength: 300 })
      .map((pieces) => Buffer.concat([query, upload(pieces.map((piece) => Buffer.from(piece)))]));
    const stream = fc.array(fc.oneof(command, file), { maxLength: 8 });
    fc.assert(
      fc.property(stream, fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1 }), (commands, cuts) => {
        const before = Buffer.concat(commands);
        const whole = Buffer.concat([before, changeUser, query]);
        const pieces: Buffer[] = [];
        for (let at = 0, i = 0; at < whole.length; i += 1) {
          const size = cuts[i % cuts.length] ?? 1;
          pieces.push(whole.subarray(at, at + size));
          at += size;
        }
        const { passed, held } = follow(pieces);
        assert.deepEqual(passed, before);
        assert.deepEqual(held, Buffer.concat([changeUser, query]));
      }),
    );
  });
});
