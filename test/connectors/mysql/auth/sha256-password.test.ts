import assert from 'node:assert/strict';
import { constants, generateKeyPairSync, privateDecrypt } from 'node:crypto';
import { describe, it } from 'node:test';

import { channels, converse, salt, strict } from './request.ts';

const keys = generateKeyPairSync('rsa', { modulusLength: 2048 });
const pem = Buffer.from(keys.publicKey.export({ type: 'spki', format: 'pem' }));
const PLUGIN = 'sha256_password';

function decrypted(answer: Buffer | undefined): string {
  return privateDecrypt(
    { key: keys.privateKey, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha1' },
    answer as Buffer,
  ).toString('hex');
}

describe('sha256_password', () => {
  it('gives the password itself inside verified TLS', async () => {
    const answers = await converse(PLUGIN, { channel: channels['verified TLS'] });
    assert.deepEqual(answers, [Buffer.from('Secret#1\0')]);
  });

  it('gives it to no server that anybody could be, unless the service allows that', async () => {
    const channel = channels['unverified TLS'];
    await assert.rejects(converse(PLUGIN, { channel }), {
      code: 'AUTH_NOT_ALLOWED',
      message: /\(sha256_password\).*tls\.mode.*allowAuth/,
    });
    const policy = { ...strict, allowAuth: [PLUGIN] };
    assert.deepEqual(await converse(PLUGIN, { channel, policy }), [Buffer.from('Secret#1\0')]);
  });

  it('asks for the key on a unix socket without permission: nobody can be in the middle', async () => {
    const [asked, answer] = await converse(PLUGIN, { channel: channels['unix socket'] }, pem);
    assert.deepEqual(asked, Buffer.from([1]));
    assert.equal(decrypted(answer), '122720362032647949');
  });

  it('asks for the key on plain TCP only where the service allows that', async () => {
    await assert.rejects(converse(PLUGIN, {}), {
      code: 'AUTH_NOT_ALLOWED',
      message: /\(sha256_password\).*tls\.mode.*rsaPublicKey.*allowPublicKeyRetrieval/,
    });
    const [asked, answer] = await converse(
      PLUGIN,
      { policy: { ...strict, allowPublicKeyRetrieval: true } },
      pem,
    );
    assert.deepEqual(asked, Buffer.from([1]));
    assert.equal(decrypted(answer), '122720362032647949');
  });

  it('encrypts to the pinned key at once', async () => {
    const [answer] = await converse(PLUGIN, { policy: { ...strict, rsaPublicKey: pem } });
    assert.equal(decrypted(answer), '122720362032647949');
  });

  it('answers one zero byte for an account without a password', async () => {
    for (const channel of Object.values(channels))
      assert.deepEqual(await converse(PLUGIN, { channel, password: Buffer.alloc(0) }), [Buffer.alloc(1)]);
  });

  it('refuses a salt that is not 20 bytes where it needs one, and data behind its end', async () => {
    const policy = { ...strict, allowPublicKeyRetrieval: true };
    await assert.rejects(converse(PLUGIN, { policy, data: Buffer.alloc(0) }), { code: 'UPSTREAM_PROTOCOL' });
    await assert.rejects(converse(PLUGIN, { policy }, pem, salt), { code: 'UPSTREAM_PROTOCOL' });
    await assert.rejects(converse(PLUGIN, { channel: channels['verified TLS'] }, pem), {
      code: 'UPSTREAM_PROTOCOL',
    });
  });
});
