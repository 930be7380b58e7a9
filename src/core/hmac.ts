import { hash } from 'node:crypto';

const BLOCK = 64;

/**
 * HMAC-SHA-256 (RFC 2104) of bytes with a key of at most 64 of them. By one-shot hashes: `createHmac` makes an object of the
 * key for each call, outside of V8's heap, which takes five times as long and leaves the key in it until it is collected.
 */
export function hmacSha256(key: Uint8Array, data: Uint8Array): Buffer {
  if (key.length > BLOCK) throw new RangeError('a longer key has to be hashed first');
  const inner = Buffer.allocUnsafe(BLOCK + data.length).fill(0x36, 0, BLOCK);
  const outer = Buffer.allocUnsafe(BLOCK + 32).fill(0x5c, 0, BLOCK);
  for (const [i, byte] of key.entries()) {
    inner[i] = byte ^ 0x36;
    outer[i] = byte ^ 0x5c;
  }
  inner.set(data, BLOCK);
  const digest = hash('sha256', inner, 'buffer');
  outer.set(digest, BLOCK);
  const code = hash('sha256', outer, 'buffer');
  for (const secret of [inner, outer, digest]) secret.fill(0);
  return code;
}
