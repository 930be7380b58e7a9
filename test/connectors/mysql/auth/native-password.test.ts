import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { nativeResponse } from '../../../../src/connectors/mysql/auth/native-password.ts';
import { converse, mysql2Answer, salt } from './request.ts';

describe('mysql_native_password', () => {
  it('answers what a server expects, whatever the character set of the password', () => {
    const vectors = {
      'Secret#1': 'ba7ffd2ebc8cee06c7276e94e3b10f871781bba2',
      pä$$wörd: 'e04ed9e6216a8955ef4bf013ecec8d95fe9e4ac4',
    };
    for (const [password, answer] of Object.entries(vectors))
      assert.equal(nativeResponse(Buffer.from(password), salt).toString('hex'), answer);
  });

  it('answers what the server can check with the hash that it stores', () => {
    const sha1 = (bytes: Uint8Array) => createHash('sha1').update(bytes).digest();
    const stored = Buffer.from('332FE7DD03DE16C85FAD51F7879FF671145806BC', 'hex');
    const answer = nativeResponse(Buffer.from('Secret#1'), salt);
    const mask = sha1(Buffer.concat([salt, stored]));
    assert.deepEqual(sha1(answer.map((byte, i) => byte ^ (mask[i] as number))), stored);
  });

  it('answers as mysql2 does, for any password and salt', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: 'binary', minLength: 1 }),
        fc.uint8Array({ minLength: 20, maxLength: 20 }),
        async (text, random) => {
          const data = Buffer.from(random);
          assert.deepEqual(
            nativeResponse(Buffer.from(text), data),
            await mysql2Answer('mysql_native_password', text, data),
          );
        },
      ),
    );
  });

  it('answers nothing for an account without a password', async () => {
    assert.deepEqual(await converse('mysql_native_password', { password: Buffer.alloc(0) }), [
      Buffer.alloc(0),
    ]);
  });

  it('refuses a salt that is not 20 bytes, and data after its only answer', async () => {
    for (const length of [0, 8, 19, 21, 32])
      await assert.rejects(converse('mysql_native_password', { data: Buffer.alloc(length) }), {
        code: 'UPSTREAM_PROTOCOL',
        message: `the server sent a salt of ${length} bytes for mysql_native_password, which has 20`,
      });
    await assert.rejects(converse('mysql_native_password', {}, salt), { code: 'UPSTREAM_PROTOCOL' });
  });
});
