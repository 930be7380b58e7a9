import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { serialize } from 'pg-protocol';

import {
  passwordMessage,
  saslInitialResponse,
  saslResponse,
} from '../../../../src/connectors/postgres/auth/password-message.ts';

const text = fc.string({ unit: 'binary', maxLength: 300 }).map((value) => value.replaceAll('\0', ''));

describe('password messages', () => {
  it('are the bytes that pg-protocol writes', () => {
    fc.assert(
      fc.property(text, text, (first, second) => {
        const bytes = Buffer.from(second);
        assert.deepEqual(passwordMessage(bytes), serialize.password(second));
        assert.deepEqual(
          saslInitialResponse(first, bytes),
          serialize.sendSASLInitialResponseMessage(first, second),
        );
        assert.deepEqual(saslResponse(bytes), serialize.sendSCRAMClientFinalMessage(second));
      }),
    );
  });

  it('carry a password of any length and any bytes', () => {
    const token = Buffer.alloc(4000, 0xff);
    const message = passwordMessage(token);
    assert.equal(message.readInt32BE(1), message.length - 1);
    assert.deepEqual(message.subarray(5, -1), token);
    assert.equal(message.at(-1), 0);
  });

  it('are copies, so that the caller can wipe what went in', () => {
    const password = Buffer.from('geheim');
    const message = passwordMessage(password);
    password.fill(0);
    assert.equal(message.toString('latin1', 5, 11), 'geheim');
    const response = Buffer.from('p=proof');
    saslResponse(response);
    assert.equal(response.toString(), 'p=proof');
  });
});
