import assert from 'node:assert/strict';
import { constants, generateKeyPairSync, privateDecrypt } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { cachingSha2Response } from '../../../../src/connectors/mysql/auth/caching-sha2-password.ts';
import { channels, converse, mysql2Answer, salt, strict } from './request.ts';

const keys = generateKeyPairSync('rsa', { modulusLength: 2048 });
const pem = Buffer.from(keys.publicKey.export({ type: 'spki', format: 'pem' }));
const PLUGIN = 'caching_sha2_password';
const fast = Buffer.from([3]);
const full = Buffer.from([4]);
const clear = Buffer.from('Secret#1\0');
/** `Secret#1` and its zero byte, XORed with the salt. */
const salted = '122720362032647949';

function decrypted(answer: Buffer | undefined): string {
  return privateDecrypt(
    { key: keys.privateKey, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha1' },
    answer as Buffer,
  ).toString('hex');
}

describe('caching_sha2_password', () => {
  it('answers what a server expects, whatever the character set of the password', () => {
    const vectors = {
      'Secret#1': 'fd687b361039d4277f62016f5063f3e430dab83999bb5008ffb832616a1ce9a3',
      pä$$wörd: '69d99c9ea0685c1f61488712939b0576b6c9c27a97fc50119622b9594c8f248f',
    };
    for (const [password, answer] of Object.entries(vectors))
      assert.equal(cachingSha2Response(Buffer.from(password), salt).toString('hex'), answer);
  });

  it('answers as mysql2 does, for any password and salt', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: 'binary', minLength: 1 }),
        fc.uint8Array({ minLength: 20, maxLength: 20 }),
        async (text, random) => {
          const data = Buffer.from(random);
          assert.deepEqual(
            cachingSha2Response(Buffer.from(text), data),
            await mysql2Answer(PLUGIN, text, data),
          );
        },
      ),
    );
  });

  it('says nothing more when the server knows the password, on any connection', async () => {
    for (const channel of Object.values(channels)) {
      const [, answer] = await converse(PLUGIN, { channel }, fast);
      assert.equal(answer, undefined);
    }
  });

  it('gives the password itself to a verified server and to a unix socket, when the server has not cached it', async () => {
    for (const channel of [channels['verified TLS'], channels['unix socket']])
      assert.deepEqual((await converse(PLUGIN, { channel }, full))[1], clear);
  });

  it('gives it to no server that anybody could be, unless the service allows that', async () => {
    const channel = channels['unverified TLS'];
    await assert.rejects(converse(PLUGIN, { channel }, full), {
      code: 'AUTH_NOT_ALLOWED',
      message: /\(caching_sha2_password\).*tls\.mode.*allowAuth/,
    });
    const policy = { ...strict, allowAuth: [PLUGIN] };
    assert.deepEqual((await converse(PLUGIN, { channel, policy }, full))[1], clear);
  });

  it('encrypts it to the pinned key without TLS, and asks the server for none', async () => {
    const policy = { ...strict, rsaPublicKey: pem };
    const [, answer] = await converse(PLUGIN, { policy }, full);
    assert.equal(decrypted(answer), salted);
  });

  it("asks for the server's key without TLS where the service allows that", async () => {
    const policy = { ...strict, allowPublicKeyRetrieval: true };
    const [, asked, answer] = await converse(PLUGIN, { policy }, full, pem);
    assert.deepEqual(asked, Buffer.from([2]));
    assert.equal(decrypted(answer), salted);
  });

  it('refuses without TLS, a pinned key or that permission, and names all three', async () => {
    for (const allowAuth of [[], [PLUGIN]])
      await assert.rejects(converse(PLUGIN, { policy: { ...strict, allowAuth } }, full), {
        code: 'AUTH_NOT_ALLOWED',
        message: /\(caching_sha2_password\).*tls\.mode.*rsaPublicKey.*allowPublicKeyRetrieval/,
      });
  });

  it('answers nothing for an account without a password', async () => {
    assert.deepEqual(await converse(PLUGIN, { password: Buffer.alloc(0) }), [Buffer.alloc(0)]);
  });

  it('refuses what is neither of its two verdicts, and data behind its end', async () => {
    const channel = channels['verified TLS'];
    for (const verdict of ['', '00', '02', '05', '0300', '0404', 'ff'])
      await assert.rejects(converse(PLUGIN, { channel }, Buffer.from(verdict, 'hex')), {
        code: 'UPSTREAM_PROTOCOL',
      });
    await assert.rejects(converse(PLUGIN, { channel }, fast, fast), { code: 'UPSTREAM_PROTOCOL' });
    await assert.rejects(converse(PLUGIN, { channel }, fast, full), { code: 'UPSTREAM_PROTOCOL' });
    await assert.rejects(converse(PLUGIN, { channel }, full, full), { code: 'UPSTREAM_PROTOCOL' });
  });
});
