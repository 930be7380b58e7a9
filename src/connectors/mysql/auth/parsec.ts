import { createPrivateKey, pbkdf2, randomBytes, sign } from 'node:crypto';
import { promisify } from 'node:util';

import { PosternError } from '../../../core/errors.ts';
import type { AuthRequest } from './plugin.ts';

const SCRAMBLE = 32;
const SALT = 18;
/** The letter for PBKDF2, the only derivation there is. */
const PBKDF2 = 0x50;
/** 1024 << 8 iterations are a quarter of a second of work. MariaDB's own client stops at 3. */
const MOST_DOUBLINGS = 8;
/** PKCS #8 of an Ed25519 private key up to its 32 bytes: RFC 8410 section 7. */
const PKCS8 = Buffer.from('302e020100300506032b657004220420', 'hex');

/**
 * `parsec` of MariaDB 11.6 and later: the server has a public key, the private one is derived from the password with a salt
 * that has to be asked for, by an empty answer.
 */
export async function* parsec({ password, data, derive }: AuthRequest): AsyncGenerator<Buffer, void, Buffer> {
  if (data.length !== SCRAMBLE)
    throw new PosternError(
      'UPSTREAM_PROTOCOL',
      `the server sent ${data.length} bytes for parsec, which has ${SCRAMBLE}`,
    );
  const { salt, iterations } = decodeExtendedSalt(yield Buffer.alloc(0));
  const seed = await derive(`parsec ${iterations} ${salt.toString('base64')}`, () =>
    deriveSeed(password, salt, iterations),
  );
  // Wiped before the answer is yielded: nobody need come back for more.
  let answer: Buffer;
  try {
    answer = signScrambles(seed, data, randomBytes(SCRAMBLE));
  } finally {
    seed.fill(0);
  }
  yield answer;
}

/** `P`, the number of doublings, the salt. MariaDB 11.8 repeats in front the 0x01 of the packet that it comes in. */
export function decodeExtendedSalt(data: Buffer): { readonly salt: Buffer; readonly iterations: number } {
  const body = data.length === SALT + 3 && data[0] === 0x01 ? data.subarray(1) : data;
  if (body.length !== SALT + 2 || body[0] !== PBKDF2)
    throw new PosternError('UPSTREAM_PROTOCOL', 'the server sent no salt that parsec could use');
  const doublings = body.readUInt8(1);
  if (doublings > MOST_DOUBLINGS)
    // Each iteration is work, and the server that asks for it has proved nothing yet.
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      `the server asks for more than ${1024 << MOST_DOUBLINGS} iterations (parsec)`,
    );
  return { salt: body.subarray(2), iterations: 1024 << doublings };
}

/** The Ed25519 seed of an account. It logs in as well as the password does. */
export async function deriveSeed(password: Buffer, salt: Buffer, iterations: number): Promise<Buffer> {
  return await promisify(pbkdf2)(password, salt, iterations, 32, 'sha512');
}

/** The client's scramble, and the signature of the server's and the client's. */
export function signScrambles(seed: Buffer, server: Buffer, client: Buffer): Buffer {
  const pkcs8 = Buffer.concat([PKCS8, seed]);
  try {
    const key = createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' });
    return Buffer.concat([client, sign(null, Buffer.concat([server, client]), key)]);
  } finally {
    pkcs8.fill(0);
  }
}
