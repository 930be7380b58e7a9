import assert from 'node:assert/strict';
import { createHmac, randomBytes } from 'node:crypto';
import { describe, it } from 'node:test';

import { hmacSha256 } from '../../src/core/hmac.ts';

describe('HMAC-SHA-256', () => {
  it('gives what RFC 4231 says (test cases 1 and 2)', () => {
    const code = (key: Buffer, text: string) => hmacSha256(key, Buffer.from(text)).toString('hex');
    assert.equal(
      code(Buffer.alloc(20, 0x0b), 'Hi There'),
      'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7',
    );
    assert.equal(
      code(Buffer.from('Jefe'), 'what do ya want for nothing?'),
      '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843',
    );
  });

  it('agrees with OpenSSL for every length of a key and around the blocks of the data', () => {
    for (let length = 0; length <= 64; length++)
      for (const size of [0, 1, 55, 56, 63, 64, 65, 1000]) {
        const [key, data] = [randomBytes(length), randomBytes(size)];
        const expected = createHmac('sha256', key).update(data).digest('hex');
        assert.equal(hmacSha256(key, data).toString('hex'), expected, `${length}, ${size}`);
      }
  });

  it('refuses a longer key, and leaves key and data as they were', () => {
    assert.throws(() => hmacSha256(Buffer.alloc(65), Buffer.alloc(1)), RangeError);
    const [key, data] = [Buffer.from('key'), Buffer.from('data')];
    hmacSha256(key, data);
    assert.deepEqual([key, data], [Buffer.from('key'), Buffer.from('data')]);
  });
});
