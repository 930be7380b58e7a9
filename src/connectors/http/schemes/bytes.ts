/**
 * Encodings of bytes that may be secret, into bytes: what goes through a JavaScript string stays in V8's heap, where
 * nothing can overwrite it. Every result is a fresh buffer outside that heap (Node puts the small ones of
 * `Buffer.alloc` inside it), which the caller wipes.
 */

const base64Letters = Buffer.from(
  'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/',
  'latin1',
);
const hexLetters = Buffer.from('0123456789ABCDEF', 'latin1');

/** RFC 4648, section 4, with padding. */
export function base64(bytes: Buffer): Buffer {
  const out = Buffer.allocUnsafe(Math.ceil(bytes.length / 3) * 4);
  let to = 0;
  for (let at = 0; at < bytes.length; at += 3) {
    const left = bytes.length - at;
    const group = (byteAt(bytes, at) << 16) | (byteAt(bytes, at + 1) << 8) | byteAt(bytes, at + 2);
    out[to++] = byteAt(base64Letters, group >> 18);
    out[to++] = byteAt(base64Letters, (group >> 12) & 63);
    out[to++] = left > 1 ? byteAt(base64Letters, (group >> 6) & 63) : 0x3d;
    out[to++] = left > 2 ? byteAt(base64Letters, group & 63) : 0x3d;
  }
  return out;
}

/** RFC 3986: everything but letters, digits and `-._~` becomes `%XX`; or, as a form has it, a space becomes `+`. */
export function percentEncode(bytes: Buffer, space: '%20' | '+' = '%20'): Buffer {
  const plain = (byte: number) => isUnreserved(byte) || (byte === 0x20 && space === '+');
  let length = 0;
  for (const byte of bytes) length += plain(byte) ? 1 : 3;
  const out = Buffer.allocUnsafe(length);
  let to = 0;
  for (const byte of bytes) {
    if (plain(byte)) {
      out[to++] = byte === 0x20 ? 0x2b : byte;
      continue;
    }
    out[to++] = 0x25;
    out[to++] = byteAt(hexLetters, byte >> 4);
    out[to++] = byteAt(hexLetters, byte & 15);
  }
  return out;
}

/** The bytes of all parts in one buffer. The parts stay the caller's. */
export function join(parts: readonly Buffer[]): Buffer {
  let length = 0;
  for (const part of parts) length += part.length;
  const out = Buffer.allocUnsafe(length);
  let to = 0;
  for (const part of parts) to += part.copy(out, to);
  return out;
}

/** Overwrites all of them. */
export function wipe(...buffers: readonly Buffer[]): void {
  for (const buffer of buffers) buffer.fill(0);
}

function isUnreserved(byte: number): boolean {
  return (
    (byte >= 0x61 && byte <= 0x7a) ||
    (byte >= 0x41 && byte <= 0x5a) ||
    (byte >= 0x30 && byte <= 0x39) ||
    byte === 0x2d ||
    byte === 0x2e ||
    byte === 0x5f ||
    byte === 0x7e
  );
}

function byteAt(bytes: Buffer, at: number): number {
  return bytes[at] ?? 0;
}
