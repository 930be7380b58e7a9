import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { parse } from 'pg-protocol';

import {
  authenticationOk,
  byteString,
  decodeBackendKey,
  decodeFields,
  decodeParameters,
  encodeBackendKey,
  encodeCancelRequest,
  encodeError,
  encodeMessage,
  encodeStartup,
  negotiateProtocolVersion,
  type Parameter,
  textOf,
} from '../../../src/connectors/postgres/messages.ts';
import { errorReply, refusal } from '../../../src/connectors/postgres/replies.ts';
import { errorCodes, PosternError } from '../../../src/core/errors.ts';

/** What node-postgres understands of some bytes, which may come in pieces. */
async function understood(bytes: Buffer, piece = bytes.length): Promise<Record<string, unknown>[]> {
  const messages: Record<string, unknown>[] = [];
  const stream = new PassThrough();
  const parsed = parse(stream, (message) => messages.push(message as unknown as Record<string, unknown>));
  for (let at = 0; at < bytes.length; at += Math.max(1, piece))
    stream.write(bytes.subarray(at, at + Math.max(1, piece)));
  stream.end();
  await parsed;
  return messages;
}

/** Any byte but zero, as byte strings. */
const bytes = fc
  .uint8Array({ maxLength: 40 })
  .map((array) => Buffer.from(array.filter((byte) => byte !== 0)).toString('latin1'));
const name = bytes.filter((text) => text !== '');

describe('the messages for a client, as node-postgres reads them', () => {
  it('say in an error what they were given', async () => {
    const text = fc.string({ unit: 'grapheme', maxLength: 60 }).map((each) => each.replaceAll('\0', ''));
    await fc.assert(
      fc.asyncProperty(
        text,
        text,
        fc.stringMatching(/^[0-9A-Z]{5}$/),
        fc.nat(50),
        async (message, detail, code, piece) => {
          const fields = new Map([
            ['S', 'FATAL'],
            ['V', 'FATAL'],
            ['C', code],
            ['M', byteString(message)],
            ['D', byteString(detail)],
          ]);
          const [error, ...more] = await understood(encodeError(fields), piece);
          assert.equal(more.length, 0);
          assert.deepEqual(
            [error?.['name'], error?.['severity'], error?.['code'], error?.['message'], error?.['detail']],
            ['error', 'FATAL', code, message, detail],
          );
        },
      ),
    );
  });

  it('give the process id and the key', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
        fc.uint8Array({ minLength: 4, maxLength: 4 }),
        async (pid, key) => {
          const [data] = await understood(encodeBackendKey({ pid: pid >>> 0, key: Buffer.from(key) }));
          assert.deepEqual(
            [data?.['name'], data?.['processID'], data?.['secretKey']],
            ['backendKeyData', pid, Buffer.from(key).readInt32BE()],
          );
        },
      ),
    );
  });

  it('say that the login is done', async () => {
    assert.deepEqual(
      (await understood(Buffer.concat([authenticationOk, encodeMessage('Z', Buffer.from('I'))]), 1)).map(
        ({ name: of }) => of,
      ),
      ['authenticationOk', 'readyForQuery'],
    );
  });

  it('answer every way to fail with a FATAL error that says where to look', async () => {
    for (const code of errorCodes) {
      const reply = errorReply(new PosternError(code, 'host db.internal said "é"'), 'abc-1');
      const [error] = await understood(reply);
      assert.equal(error?.['severity'], 'FATAL');
      assert.match(String(error?.['code']), /^[0-9A-Z]{5}$/);
      assert.match(String(error?.['message']), /^postern: /);
      assert.match(String(error?.['detail']), /session abc-1/);
      if (['UPSTREAM_UNREACHABLE', 'UPSTREAM_TLS', 'UPSTREAM_REJECTED', 'INTERNAL'].includes(code))
        assert.doesNotMatch(String(error?.['message']), /db\.internal/);
    }
    const [refused] = await understood(refusal('42501', 'no', 'try é').reply ?? Buffer.alloc(0));
    assert.deepEqual(
      [refused?.['code'], refused?.['message'], refused?.['hint']],
      ['42501', 'postern: no', 'try é'],
    );
  });
});

describe('the encodings', () => {
  it('of a startup message are those that the decoding takes apart', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(name, bytes), { maxLength: 10 }), (parameters: Parameter[]) => {
        const packet = encodeStartup(parameters);
        assert.equal(packet.readInt32BE(), packet.length);
        assert.equal(packet.readInt32BE(4), 0x0003_0000);
        assert.deepEqual(decodeParameters(packet.subarray(8)), parameters);
      }),
    );
  });

  it('of a list of parameters are one to one: what is taken apart is what was sent', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (array) => {
        const list = Buffer.from(array.map((byte) => (byte < 100 ? 0 : byte)));
        const decoded = decodeParameters(list);
        if (decoded) assert.deepEqual(encodeStartup(decoded).subarray(8), list);
      }),
    );
  });

  it('of an error keep every field', () => {
    const letter = fc.integer({ min: 1, max: 255 }).map((code) => String.fromCharCode(code));
    fc.assert(
      fc.property(fc.array(fc.tuple(letter, bytes), { maxLength: 10 }), (list) => {
        const fields = new Map(list);
        assert.deepEqual(decodeFields(encodeError(fields).subarray(5)), fields);
      }),
    );
  });

  it('of a key are its process id and all of its bytes', () => {
    fc.assert(
      fc.property(fc.nat(2 ** 32 - 1), fc.uint8Array({ minLength: 1, maxLength: 256 }), (pid, array) => {
        const key = Buffer.from(array);
        assert.deepEqual(decodeBackendKey(encodeBackendKey({ pid, key }).subarray(5)), { pid, key });
        assert.deepEqual(decodeBackendKey(encodeCancelRequest({ pid, key }).subarray(8)), { pid, key });
      }),
    );
    for (const length of [0, 1, 3, 4, 261, 1000])
      assert.equal(decodeBackendKey(Buffer.alloc(length)), undefined);
  });

  it('of a version negotiation are the bytes of PostgreSQL 18', () => {
    assert.equal(negotiateProtocolVersion(2, []).toString('hex'), '760000000c0003000200000000');
    assert.equal(
      negotiateProtocolVersion(0, ['_pq_.foo']).toString('hex'),
      '7600000015000300000000000' + '15f70715f2e666f6f00',
    );
  });

  it('of text are UTF-8, whatever the text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), (text) => assert.equal(textOf(byteString(text)), text)),
    );
  });
});
