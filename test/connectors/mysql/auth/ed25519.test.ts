import assert from 'node:assert/strict';
import { createPrivateKey, createPublicKey, sign, verify } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { signWithPassword } from '../../../../src/connectors/mysql/auth/ed25519.ts';
import { converse, nonce } from './request.ts';

describe('client_ed25519', () => {
  it('signs what a server expects, also without a password', async () => {
    const vectors = {
      'Secret#1':
        'a7022f101a071b474ef74345df8b0df7dc74e8bc53fcaa7b3326996cf51fe86cf8a902581209470937ae6e840c536337a3c63b21f03acd7ba469746814703009',
      '': '1e7e2c09c0c0e5f755a202872d95c85c4b14d23a888e9c40a0e9323e1ed28dd4aee4a8197c2d2ca26942bf6496d61c60c63661959ab57706eb0bfda05749ad0f',
    };
    for (const [text, signature] of Object.entries(vectors)) {
      const password = Buffer.from(text);
      const [answer] = await converse('client_ed25519', { password, data: nonce });
      assert.equal(answer?.toString('hex'), signature);
    }
  });

  it('signs what the key verifies that a server stores for the password', async () => {
    const der = Buffer.from('302a300506032b6570032100', 'hex');
    const stored = Buffer.from('/FpazqMphdpmRD44AI7noL7/fL6dEynNK890va9pm/E', 'base64');
    const key = createPublicKey({ key: Buffer.concat([der, stored]), format: 'der', type: 'spki' });
    for (const message of [nonce, Buffer.alloc(32, 0xff)])
      assert.ok(verify(null, message, key, await signWithPassword(Buffer.from('Secret#1'), message)));
  });

  it('is the Ed25519 of RFC 8032 for a password of 32 bytes', async () => {
    const bytes = fc.uint8Array({ minLength: 32, maxLength: 32 });
    await fc.assert(
      fc.asyncProperty(bytes, bytes, async (seed, message) => {
        const der = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed]);
        const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
        assert.deepEqual(
          await signWithPassword(Buffer.from(seed), Buffer.from(message)),
          sign(null, message, key),
        );
      }),
      { numRuns: 25 },
    );
  });

  it('leaves the password as it was, and takes one of any length', async () => {
    const password = Buffer.alloc(1000, 'x');
    assert.equal((await signWithPassword(password, nonce)).length, 64);
    assert.deepEqual(password, Buffer.alloc(1000, 'x'));
  });

  it('refuses a nonce that is not 32 bytes, and data behind its end', async () => {
    for (const length of [0, 20, 31, 33])
      await assert.rejects(converse('client_ed25519', { data: Buffer.alloc(length) }), {
        code: 'UPSTREAM_PROTOCOL',
        message: `the server sent ${length} bytes for client_ed25519, which has 32`,
      });
    await assert.rejects(converse('client_ed25519', { data: nonce }, nonce), { code: 'UPSTREAM_PROTOCOL' });
  });
});
