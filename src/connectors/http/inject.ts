import type { Injection } from './schemes/scheme.ts';
import { slab } from './slab.ts';

const QUESTION = 0x3f;
const AMPERSAND = 0x26;

/** The most bytes that `putTarget` can need beside the client's own. */
export function roomForTarget(prefix: Buffer, { query }: Injection): number {
  return prefix.length + query.length + 2;
}

/**
 * Writes path and query of `bytes[from..to)`, with what is injected into the query. Parameters that the service owns are
 * cut from the client's: a server may use the first or the last of two.
 */
export function putTarget(
  bytes: Buffer,
  from: number,
  to: number,
  prefix: Buffer,
  injection: Injection,
  ownedQuery: readonly string[],
): void {
  slab.copy(prefix, 0, prefix.length);
  if (from === to || bytes[from] === QUESTION) slab.byte(0x2f);
  const { query } = injection;
  if (query.length === 0 && ownedQuery.length === 0) {
    slab.copy(bytes, from, to);
    return;
  }
  const mark = bytes.indexOf(QUESTION, from);
  const pathEnd = mark < 0 || mark >= to ? to : mark;
  slab.copy(bytes, from, pathEnd);
  let separator = QUESTION;
  for (let at = pathEnd + 1; at <= to && pathEnd < to; ) {
    let end = bytes.indexOf(AMPERSAND, at);
    if (end < 0 || end > to) end = to;
    if (!isOwned(bytes, at, end, ownedQuery)) {
      slab.byte(separator);
      slab.copy(bytes, at, end);
      separator = AMPERSAND;
    }
    at = end + 1;
  }
  if (query.length > 0) {
    slab.byte(separator);
    slab.copy(query, 0, query.length);
  }
}

/** Whether a parameter has one of these names, however it is encoded, also behind a `;`, which some servers split at too. */
function isOwned(bytes: Buffer, from: number, to: number, owned: readonly string[]): boolean {
  if (owned.length === 0) return false;
  return bytes
    .toString('latin1', from, to)
    .split(';')
    .some((each) => owned.includes(decoded(each.split('=', 1)[0] ?? '')));
}

function decoded(name: string): string {
  const bytes = name
    .replaceAll('+', ' ')
    .replace(/%([0-9a-fA-F]{2})/g, (_all, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
