import { hash } from 'node:crypto';

import { PosternError } from '../../../core/errors.ts';
import type { AuthRequest } from './plugin.ts';

const NONCE = 32;
/** Order of the base point: RFC 8032 section 5.1. */
const L = 2n ** 252n + 27742317777372353535851937790883648493n;

/** `client_ed25519` of MariaDB: the server has a public key, the password is the private one. */
export async function* clientEd25519({ password, data }: AuthRequest): AsyncGenerator<Buffer, void, Buffer> {
  if (data.length !== NONCE)
    throw new PosternError(
      'UPSTREAM_PROTOCOL',
      `the server sent ${data.length} bytes for client_ed25519, which has ${NONCE}`,
    );
  yield await signWithPassword(password, data);
}

/**
 * An Ed25519 signature by RFC 8032 section 5.1.6, but with a password of any length in place of the 32-byte seed, which is
 * why Node's own signatures do not do.
 *
 * Buffers are wiped. The two secret scalars are BigInts while the group is calculated in, and nothing can wipe those: they stay
 * where they were until V8 uses that memory again (docs/decisions/0003-mysql-wire.md).
 */
export async function signWithPassword(password: Buffer, message: Buffer): Promise<Buffer> {
  // Loaded for the accounts that need it: it takes longer than the rest of a login.
  const { Point } = (await import('@noble/curves/ed25519.js')).ed25519;

  const expanded = hash('sha512', password, 'buffer');
  const prefixed = Buffer.concat([expanded.subarray(32), message]);
  const secretNonce = hash('sha512', prefixed, 'buffer');
  try {
    expanded[0] = (expanded[0] as number) & 248;
    expanded[31] = ((expanded[31] as number) & 63) | 64;
    const a = numberOf(expanded.subarray(0, 32)) % L;
    const r = numberOf(secretNonce) % L;

    const publicKey = Point.BASE.multiply(a).toBytes();
    const commitment = Point.BASE.multiply(r).toBytes();
    const k = numberOf(hash('sha512', Buffer.concat([commitment, publicKey, message]), 'buffer')) % L;
    return Buffer.concat([commitment, bytesOf((k * a + r) % L)]);
  } finally {
    for (const secret of [expanded, prefixed, secretNonce]) secret.fill(0);
  }
}

/** A number from its little-endian bytes, a multiple of 8. Not by way of a hexadecimal string, which nobody could wipe. */
function numberOf(bytes: Buffer): bigint {
  let number = 0n;
  for (let at = bytes.length - 8; at >= 0; at -= 8) number = (number << 64n) | bytes.readBigUInt64LE(at);
  return number;
}

function bytesOf(number: bigint): Buffer {
  const bytes = Buffer.allocUnsafe(32);
  for (let at = 0; at < 32; at += 8)
    bytes.writeBigUInt64LE((number >> BigInt(8 * at)) & 0xffff_ffff_ffff_ffffn, at);
  return bytes;
}
