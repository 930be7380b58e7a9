/** Bech32 (BIP 173) of bytes, as age writes its identities; bytes and not strings, because an identity is a key. */

const alphabet = Buffer.from('qpzry9x8gf2tvdw0s3jn54khce6mua7l', 'latin1');
const generator = [0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3] as const;
const checksumLength = 6;

/** The bytes behind `prefix` and "1"; undefined when it is no such text. The caller wipes the result. */
export function decodeBech32(prefix: string, text: Buffer): Buffer | undefined {
  const start = prefix.length + 1;
  const groups = Buffer.allocUnsafe(Math.max(0, text.length - start));
  const bytes = Buffer.allocUnsafe(Math.floor((Math.max(0, groups.length - checksumLength) * 5) / 8));
  try {
    if (groups.length < checksumLength) return undefined;
    if (text.toString('latin1', 0, start).toLowerCase() !== `${prefix}1`) return undefined;
    for (let i = 0; i < groups.length; i++) {
      const byte = text[start + i] as number;
      const value = alphabet.indexOf(byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte);
      if (value === -1) return undefined;
      groups[i] = value;
    }
    if (checksum(prefix, groups) !== 1) return undefined;
    if (regroup(groups.subarray(0, -checksumLength), 5, bytes, 8) !== 0) return undefined;
    return Buffer.concat([bytes]);
  } finally {
    groups.fill(0);
    bytes.fill(0);
  }
}

/** `prefix`, "1" and the bytes, in upper case as age writes a secret key. */
export function encodeBech32(prefix: string, bytes: Buffer): Buffer {
  const groups = Buffer.allocUnsafe(Math.ceil((bytes.length * 8) / 5) + checksumLength).fill(0);
  regroup(bytes, 8, groups, 5);
  const sum = checksum(prefix, groups) ^ 1;
  for (let i = 0; i < checksumLength; i++)
    groups[groups.length - checksumLength + i] = (sum >> (5 * (checksumLength - 1 - i))) & 31;
  const text = Buffer.allocUnsafe(prefix.length + 1 + groups.length);
  text.write(`${prefix}1`.toUpperCase(), 'latin1');
  for (const [i, group] of groups.entries()) {
    const letter = alphabet[group] as number;
    text[prefix.length + 1 + i] = letter >= 0x61 ? letter & ~0x20 : letter;
  }
  groups.fill(0);
  return text;
}

/** Writes the bits of `from` into `to`; returns what is left over, which has to be nothing when decoding. */
function regroup(from: Buffer, fromBits: number, to: Buffer, toBits: number): number {
  let [held, bits, at] = [0, 0, 0];
  for (const value of from) {
    held = ((held << fromBits) | value) & 0xfff;
    bits += fromBits;
    while (bits >= toBits) {
      bits -= toBits;
      to[at++] = (held >> bits) & ((1 << toBits) - 1);
    }
  }
  if (toBits === 5 && bits > 0) to[at] = (held << (5 - bits)) & 31;
  return held & ((1 << bits) - 1);
}

function checksum(prefix: string, groups: Buffer): number {
  let sum = 1;
  const add = (value: number) => {
    const top = sum >>> 25;
    sum = ((sum & 0x1ffffff) << 5) ^ value;
    for (const [i, term] of generator.entries()) if ((top >> i) & 1) sum ^= term;
  };
  const letters = Buffer.from(prefix, 'latin1');
  for (const letter of letters) add(letter >> 5);
  add(0);
  for (const letter of letters) add(letter & 31);
  for (const group of groups) add(group);
  return sum;
}
