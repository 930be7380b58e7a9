import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { md5Response } from '../../../../src/connectors/postgres/auth/md5.ts';

const bytes = fc.uint8Array({ maxLength: 80 }).map((array) => Buffer.from(array));

describe('MD5 authentication', () => {
  it('answers as a PostgreSQL server expects', () => {
    const answer = md5Response(Buffer.from('m1'), Buffer.from('pw-m1'), Buffer.from('01020304', 'hex'));
    assert.equal(answer.toString(), 'md52ef44a4a2cbad2b9cc3ecc162233a22c');
  });

  it('is the formula of the documentation for any user name, password and salt', () => {
    const hex = (...parts: (Buffer | string)[]) => {
      const hash = createHash('md5');
      for (const part of parts) hash.update(part);
      return hash.digest('hex');
    };
    fc.assert(
      fc.property(bytes, bytes, fc.uint8Array({ minLength: 4, maxLength: 4 }), (username, password, salt) => {
        const answer = md5Response(username, password, Buffer.from(salt));
        assert.equal(answer.toString(), `md5${hex(hex(password, username), Buffer.from(salt))}`);
      }),
    );
  });

  it('leaves user name, password and salt as they were', () => {
    const given = [Buffer.from('m1'), Buffer.from('pw-m1'), Buffer.from([1, 2, 3, 4])] as const;
    md5Response(...given);
    assert.deepEqual(given, [Buffer.from('m1'), Buffer.from('pw-m1'), Buffer.from([1, 2, 3, 4])]);
  });

  it('refuses a salt that is not four bytes', () => {
    for (const length of [0, 3, 5]) {
      assert.throws(() => md5Response(Buffer.from('m1'), Buffer.from('pw-m1'), Buffer.alloc(length)), {
        code: 'UPSTREAM_PROTOCOL',
      });
    }
  });
});
