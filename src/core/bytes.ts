/**
 * Encodings of bytes that may be secret, into bytes: what goes through a JavaScript string stays in V8's heap, where
 * nothing can overwrite it. Every result is a fresh buffer outside that heap, which the caller wipes: 64 bytes or fewer of
 * `Buffer.alloc` and `Buffer.allocUnsafeSlow` lie inside it, where the collector leaves copies behind when it moves them.
 */

const base64Letters = Buffer.from(
  'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/',
  'latin1',
);

/** RFC 4648, section 4, with padding. */
export function encodeBase64(bytes: Buffer): Buffer {
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

/** Value of each byte of the alphabets of RFC 4648, sections 4 and 5; -1 for one that is in neither. */
const base64Values = Int8Array.from({ length: 256 }, (_, byte) => {
  if (byte === 0x2d) return 62;
  if (byte === 0x5f) return 63;
  return base64Letters.indexOf(byte);
});

/** Takes either alphabet, with or without padding, in lines or not. undefined: it is anything else. */
export function decodeBase64(text: Buffer): Buffer | undefined {
  const draft = Buffer.allocUnsafe(Math.ceil((text.length * 3) / 4));
  try {
    let [length, bits, held, padding] = [0, 0, 0, 0];
    for (const byte of text) {
      if (byte === 0x0a || byte === 0x0d) continue;
      if (byte === 0x3d) {
        padding++;
        continue;
      }
      const value = base64Values[byte] ?? -1;
      if (value < 0 || padding > 0) return undefined;
      bits = ((bits << 6) | value) & 0xffff;
      held += 6;
      if (held >= 8) {
        held -= 8;
        draft[length++] = (bits >> held) & 0xff;
      }
    }
    // One letter alone is less than a byte, bits that are left must be none, and padding fills up to four letters.
    const missing = held === 0 ? 0 : held === 2 ? 1 : 2;
    if (held === 6 || (bits & ((1 << held) - 1)) !== 0 || (padding > 0 && padding !== missing))
      return undefined;
    return copyOf(draft, 0, length);
  } finally {
    draft.fill(0);
  }
}

const hexLetters = Buffer.from('0123456789ABCDEF', 'latin1');

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

const escapes = Array.from({ length: 256 }, (_, byte) =>
  isUnreserved(byte) ? String.fromCodePoint(byte) : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`,
);

/** The same for what is no secret: a text of bytes (latin1). */
export function percentEncodeText(bytes: string): string {
  let out = '';
  for (let at = 0; at < bytes.length; at++) out += escapes[bytes.charCodeAt(at) & 0xff];
  return out;
}

/** application/x-www-form-urlencoded. The values stay the caller's. */
export function formOf(members: Readonly<Record<string, Buffer | string>>): Buffer {
  const parts: Buffer[] = [];
  for (const [name, value] of Object.entries(members)) {
    if (parts.length > 0) parts.push(Buffer.from('&'));
    parts.push(percentEncode(Buffer.from(name), '+'), Buffer.from('='));
    parts.push(percentEncode(typeof value === 'string' ? Buffer.from(value) : value, '+'));
  }
  const form = join(parts);
  wipe(...parts);
  return form;
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

/** From `start` to before `end`, in a buffer of its own. */
export function copyOf(bytes: Buffer, start = 0, end = bytes.length): Buffer {
  return join([bytes.subarray(start, end)]);
}

/** Without the spaces, tabs and line ends around it; a view. */
export function trimmed(bytes: Buffer): Buffer {
  let start = 0;
  let end = bytes.length;
  while (start < end && isSpace(bytes[start])) start++;
  while (end > start && isSpace(bytes[end - 1])) end--;
  return bytes.subarray(start, end);
}

/** Space, tab or a part of a line end; not what stands behind the last byte. */
export function isSpace(byte: number | undefined): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d;
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
