import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { generateX25519Identity } from 'age-encryption';
import fc from 'fast-check';

import { decodeBech32, encodeBech32 } from '../../../src/providers/local/bech32.ts';

const prefix = 'age-secret-key-';

describe('bech32 of bytes', () => {
  it('reads back what it writes, in either case', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (array) => {
        const text = encodeBech32(prefix, Buffer.from(array));
        assert.deepEqual(decodeBech32(prefix, text), Buffer.from(array));
        assert.deepEqual(
          decodeBech32(prefix, Buffer.from(text.toString().toLowerCase())),
          Buffer.from(array),
        );
      }),
    );
  });

  it('reads what the library of age writes, and writes it the same', async () => {
    for (let i = 0; i < 20; i++) {
      const identity = await generateX25519Identity();
      const bytes = decodeBech32(prefix, Buffer.from(identity));
      assert.equal(bytes?.length, 32);
      assert.equal(encodeBech32(prefix, bytes).toString(), identity);
    }
  });

  it('refuses a text in which one letter is another one', async () => {
    const identity = Buffer.from(await generateX25519Identity());
    for (let at = 0; at < identity.length; at++) {
      const changed = Buffer.from(identity);
      changed[at] = identity[at] === 0x51 ? 0x50 : 0x51;
      assert.equal(decodeBech32(prefix, changed), undefined, `letter ${at}`);
    }
  });

  for (const text of [
    '',
    'AGE',
    'AGE-SECRET-KEY-1',
    'AGE-SECRET-KEY-1QQQQQ',
    'age1qqqqqqqqqqqq',
    'x'.repeat(74),
  ])
    it(`refuses ${JSON.stringify(text)}`, () => {
      assert.equal(decodeBech32(prefix, Buffer.from(text)), undefined);
    });
});
