/**
 * An application/x-www-form-urlencoded body whose values are given as bytes, so that a token in it is never a string.
 * The caller wipes it, and the values.
 */
export function formOf(members: Readonly<Record<string, Buffer | string>>): Buffer {
  const parts = Object.entries(members).map(
    ([name, value]) => [Buffer.from(encodeURIComponent(name)), toBytes(value)] as const,
  );
  const longest = parts.reduce((sum, [name, value]) => sum + name.length + value.length * 3 + 2, 0);
  const draft = Buffer.allocUnsafeSlow(longest);
  let at = 0;
  for (const [name, value] of parts) {
    if (at > 0) at = draft.writeUInt8(0x26, at);
    at += name.copy(draft, at);
    at = draft.writeUInt8(0x3d, at);
    for (const byte of value) {
      if (unreserved[byte]) at = draft.writeUInt8(byte, at);
      else at += draft.write(`%${byte.toString(16).toUpperCase().padStart(2, '0')}`, at, 'latin1');
    }
  }
  const form = Buffer.allocUnsafeSlow(at);
  draft.copy(form, 0, 0, at);
  draft.fill(0);
  return form;
}

function toBytes(value: Buffer | string): Buffer {
  return typeof value === 'string' ? Buffer.from(value, 'utf8') : value;
}

const unreserved: readonly boolean[] = Array.from({ length: 256 }, (_, byte) =>
  /[A-Za-z0-9_.~-]/.test(String.fromCharCode(byte)),
);
