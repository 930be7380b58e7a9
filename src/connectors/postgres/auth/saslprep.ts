import { isAscii, isUtf8 } from 'node:buffer';

import { type CodePoints, leftToRight, nothing, refused, rightToLeft, spaces } from './saslprep-tables.ts';

/**
 * Prepares a password for SCRAM as PostgreSQL does (`pg_saslprep`): a copy, which the caller wipes. Never fails: what
 * SASLprep (RFC 4013) would refuse is used as it is, because a PostgreSQL server did the same when it stored the verifier.
 */
export function saslprep(password: Buffer): Buffer {
  // Almost every password ends here, and never becomes a string.
  if (isAscii(password) || !isUtf8(password)) return Buffer.from(password);

  // NFKC exists for strings only, so from here on a copy is left to the garbage collector: it cannot be wiped.
  const mapped = map(password.toString('utf8'));
  // RFC 3454 checks the normalized text. PostgreSQL checks the text before normalization; so must its client.
  if (mapped.length === 0 || mapped.some((point) => within(refused, point)) || breaksBidi(mapped)) {
    mapped.fill(0);
    return Buffer.from(password);
  }
  const text = mapped.map((point) => String.fromCodePoint(point)).join('');
  mapped.fill(0);
  return Buffer.from(text.normalize('NFKC'), 'utf8');
}

/** Step 1. U+200B is in both tables; PostgreSQL looks for spaces first, so it becomes one. */
function map(text: string): number[] {
  const mapped: number[] = [];
  for (let i = 0; i < text.length; i++) {
    const point = text.codePointAt(i) as number;
    if (point > 0xffff) i++;
    if (within(spaces, point)) mapped.push(0x20);
    else if (!within(nothing, point)) mapped.push(point);
  }
  return mapped;
}

/** RFC 3454 section 6: with any right-to-left character, no left-to-right one, and the first and last are right-to-left. */
function breaksBidi(points: readonly number[]): boolean {
  if (!points.some((point) => within(rightToLeft, point))) return false;
  if (points.some((point) => within(leftToRight, point))) return true;
  return ![points.at(0), points.at(-1)].every((point) => within(rightToLeft, point as number));
}

function within(table: CodePoints, point: number): boolean {
  let low = 0;
  let high = table.length / 2;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (point > (table[2 * middle + 1] as number)) low = middle + 1;
    else high = middle;
  }
  return 2 * low < table.length && point >= (table[2 * low] as number);
}
