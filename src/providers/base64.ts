const alphabet = Buffer.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/', 'latin1');

/** Value of each byte of the alphabets of RFC 4648 sections 4 and 5; -1 for one that is in neither. */
const values = Int8Array.from({ length: 256 }, (_, byte) => {
  if (byte === 0x2d) return 62;
  if (byte === 0x5f) return 63;
  return alphabet.indexOf(byte);
});

/**
 * Decodes base64 of either alphabet, with or without padding, whose lines may be wrapped. Node's own decoder takes
 * and makes strings, which nothing can wipe. Returns undefined for anything else; the caller wipes the result.
 */
export function decodeBase64(text: Buffer): Buffer | undefined {
  const out = Buffer.alloc(Math.ceil((text.length * 3) / 4));
  let [length, bits, held, padding] = [0, 0, 0, 0];
  for (const byte of text) {
    if (byte === 0x0a || byte === 0x0d) continue;
    if (byte === 0x3d) {
      padding++;
      continue;
    }
    const value = values[byte] as number;
    if (value < 0 || padding > 0) return refuse(out);
    bits = ((bits << 6) | value) & 0xffff;
    held += 6;
    if (held >= 8) {
      held -= 8;
      out[length++] = (bits >> held) & 0xff;
    }
  }
  // One letter alone is less than a byte, bits that are left must be none, and padding fills up to four letters.
  const missing = held === 0 ? 0 : held === 2 ? 1 : 2;
  if (held === 6 || (bits & ((1 << held) - 1)) !== 0 || (padding > 0 && padding !== missing)) {
    return refuse(out);
  }
  const exact = Buffer.alloc(length);
  out.copy(exact, 0, 0, length);
  out.fill(0);
  return exact;
}

/** Base64 with padding (RFC 4648 section 4) as bytes, which the caller wipes. */
export function encodeBase64(bytes: Buffer): Buffer {
  const out = Buffer.alloc(Math.ceil(bytes.length / 3) * 4, '=');
  let at = 0;
  for (let i = 0; i < bytes.length; i += 3) {
    const [a = 0, b = 0, c = 0] = [bytes[i], bytes[i + 1], bytes[i + 2]];
    out[at] = alphabet[a >> 2] as number;
    out[at + 1] = alphabet[((a & 3) << 4) | (b >> 4)] as number;
    if (i + 1 < bytes.length) out[at + 2] = alphabet[((b & 15) << 2) | (c >> 6)] as number;
    if (i + 2 < bytes.length) out[at + 3] = alphabet[c & 63] as number;
    at += 4;
  }
  return out;
}

function refuse(out: Buffer): undefined {
  out.fill(0);
  return undefined;
}
