import { constants, createPublicKey, type KeyObject, publicEncrypt } from 'node:crypto';

import { PosternError } from '../../../core/errors.ts';
import { type AuthRequest, saltOf, terminated } from './plugin.ts';

/** A key of 16384 bits, the longest that OpenSSL uses, has 2.8 KB of PEM. */
const LONGEST_PEM = 8192;
const FEWEST_BITS = 2048;
/** What OAEP with SHA-1 needs of each block. */
const OAEP_BYTES = 42;

/**
 * Sends the password to a server without TLS, encrypted to its RSA key: the pinned one, or the one it answers `keyRequest`
 * with. Whoever is in the middle can answer with a key of his own, so asking is for a secure channel or needs permission.
 */
export async function* encryptedPassword(
  plugin: string,
  keyRequest: number,
  request: AuthRequest,
): AsyncGenerator<Buffer, void, Buffer> {
  const { password, channel, policy } = request;
  const salt = saltOf(plugin, request);
  if (policy.rsaPublicKey) {
    const key = rsaKey(policy.rsaPublicKey);
    if (!key)
      throw new PosternError(
        'CONFIG_INVALID',
        `rsaPublicKey is not an RSA public key in PEM of at least ${FEWEST_BITS} bits`,
      );
    yield encryptPassword(password, salt, key);
    return;
  }
  if (!channel.secure && !policy.allowPublicKeyRetrieval)
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      `the server asks for the password (${plugin}) on a connection without TLS; use TLS (tls.mode), give the server's key (rsaPublicKey) or accept any key it sends (allowPublicKeyRetrieval)`,
    );
  const key = rsaKey(yield Buffer.from([keyRequest]));
  if (!key)
    throw new PosternError(
      'UPSTREAM_PROTOCOL',
      `the server sent no RSA public key in PEM of at least ${FEWEST_BITS} bits`,
    );
  yield encryptPassword(password, salt, key);
}

/** RSA-OAEP with SHA-1 of the password and a zero byte, XORed with the salt over and over. */
export function encryptPassword(password: Buffer, salt: Buffer, key: KeyObject): Buffer {
  const longest = (key.asymmetricKeyDetails?.modulusLength ?? 0) / 8 - OAEP_BYTES - 1;
  if (password.length > longest)
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      `the password is too long for the server's RSA key, which takes ${Math.floor(longest)} bytes; use TLS (tls.mode)`,
    );
  const plaintext = saltedPassword(password, salt);
  try {
    return publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha1' }, plaintext);
  } catch (cause) {
    throw new PosternError('UPSTREAM_PROTOCOL', "the server's RSA key cannot encrypt", { cause });
  } finally {
    plaintext.fill(0);
  }
}

/** What is encrypted. The XOR hides nothing from who sees the salt; it keeps an answer from being used twice. */
export function saltedPassword(password: Buffer, salt: Buffer): Buffer {
  const plaintext = terminated(password);
  for (const [i, byte] of plaintext.entries()) plaintext[i] = byte ^ (salt[i % salt.length] as number);
  return plaintext;
}

/** An RSA public key that is worth encrypting to; undefined when it is none. */
export function rsaKey(pem: Buffer): KeyObject | undefined {
  // Node would take a certificate or a private key for one as well.
  if (pem.length > LONGEST_PEM || !pem.includes('-----BEGIN PUBLIC KEY-----')) return undefined;
  try {
    const key = createPublicKey({ key: pem, format: 'pem' });
    const bits = key.asymmetricKeyType === 'rsa' ? key.asymmetricKeyDetails?.modulusLength : undefined;
    return bits !== undefined && bits >= FEWEST_BITS ? key : undefined;
  } catch {
    return undefined;
  }
}
