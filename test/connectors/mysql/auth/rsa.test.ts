import assert from 'node:assert/strict';
import { constants, generateKeyPairSync, type KeyObject, privateDecrypt } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { encryptPassword, rsaKey, saltedPassword } from '../../../../src/connectors/mysql/auth/rsa.ts';
import { converse, mysql2Answer, salt, strict } from './request.ts';

const keys = generateKeyPairSync('rsa', { modulusLength: 2048 });
const pemOf = (key: KeyObject) => Buffer.from(key.export({ type: 'spki', format: 'pem' }));
const pem = pemOf(keys.publicKey);

function decrypted(answer: Buffer): Buffer {
  return privateDecrypt(
    { key: keys.privateKey, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha1' },
    answer,
  );
}

describe('a password encrypted to an RSA key', () => {
  it('is the password and a zero byte, XORed with the salt over and over', () => {
    assert.equal(saltedPassword(Buffer.from('Secret#1'), salt).toString('hex'), '122720362032647949');
    assert.equal(
      saltedPassword(Buffer.alloc(25, 'x'), salt).toString('hex'),
      '393a3b3c3d3e3f303132333435363728292a2b2c393a3b3c3d46',
    );
  });

  it('is what mysql2 encrypts, for any password that the key has room for', async () => {
    const password = fc
      .string({ unit: 'grapheme', minLength: 1, maxLength: 30 })
      .map((text) => text.replaceAll('\0', ''));
    await fc.assert(
      fc.asyncProperty(password, async (text) => {
        const ours = encryptPassword(Buffer.from(text), salt, keys.publicKey);
        assert.deepEqual(decrypted(ours), decrypted(await mysql2Answer('sha256_password', text, salt, pem)));
      }),
      { numRuns: 20 },
    );
  });

  it('has room for 213 bytes with a key of 2048 bits, and a longer password is refused by that number', () => {
    const longest = encryptPassword(Buffer.alloc(213, 'x'), salt, keys.publicKey);
    assert.equal(longest.length, 256);
    assert.equal(decrypted(longest).length, 214);
    assert.throws(() => encryptPassword(Buffer.alloc(214, 'x'), salt, keys.publicKey), {
      code: 'AUTH_NOT_ALLOWED',
      message: /213 bytes/,
    });
  });

  it('has no zero byte inside, behind which a server would not look', () => {
    assert.throws(() => saltedPassword(Buffer.from('a\0b'), salt), {
      code: 'AUTH_NOT_ALLOWED',
      message: /zero byte/,
    });
  });

  it('goes to an RSA key of at least 2048 bits and to nothing else', async () => {
    assert.ok(rsaKey(pem));
    assert.ok(rsaKey(Buffer.concat([pem, Buffer.from('\n\0')])), 'with something behind it');
    const others = {
      'a short key': pemOf(generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey),
      'a key for signatures': pemOf(generateKeyPairSync('rsa-pss', { modulusLength: 2048 }).publicKey),
      'a key of another kind': pemOf(generateKeyPairSync('ed25519').publicKey),
      'a private key': Buffer.from(keys.privateKey.export({ type: 'pkcs8', format: 'pem' })),
      'a key in DER': keys.publicKey.export({ type: 'spki', format: 'der' }),
      'half a key': pem.subarray(0, 200),
      'no key': Buffer.from('-----BEGIN PUBLIC KEY-----\nQQ==\n-----END PUBLIC KEY-----\n'),
      nothing: Buffer.alloc(0),
      'a key in a heap of something else': Buffer.concat([Buffer.alloc(10_000, '\n'), pem]),
    };
    for (const [what, bytes] of Object.entries(others)) {
      assert.equal(rsaKey(bytes), undefined, what);
      const retrieving = { ...strict, allowPublicKeyRetrieval: true };
      await assert.rejects(converse('sha256_password', { policy: retrieving }, bytes), {
        code: 'UPSTREAM_PROTOCOL',
        message: 'the server sent no RSA public key in PEM of at least 2048 bits',
      });
      const pinned = { ...strict, rsaPublicKey: bytes };
      await assert.rejects(converse('sha256_password', { policy: pinned }), {
        code: 'CONFIG_INVALID',
        message: /^rsaPublicKey is not/,
      });
    }
  });

  it('takes no other key when one is pinned', async () => {
    const other = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const policy = { ...strict, rsaPublicKey: pem, allowPublicKeyRetrieval: true };
    await assert.rejects(converse('sha256_password', { policy }, pemOf(other.publicKey)), {
      code: 'UPSTREAM_PROTOCOL',
    });
  });
});
