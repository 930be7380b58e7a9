import { type ChunkData, Chunks } from './chunked.ts';
import type { Generation } from './generation.ts';
import { BODY_CHUNKED, BODY_LENGTH, BODY_NONE, type Head } from './head.ts';
import { putTarget, roomForTarget } from './inject.ts';
import { refusal } from './replies.ts';
import type { Route } from './route.ts';
import type { RequestView, Signer } from './schemes/scheme.ts';
import { slab } from './slab.ts';

/** A request that was signed by itself. */
export interface SignedRequest {
  readonly head: Buffer;
  /** What was signed with it; undefined: the body, if there is one, goes through as it comes. */
  readonly body: Buffer | undefined;
  /** Up to where the client's bytes are in `head` and `body`. */
  readonly next: number;
}

/** The body has to be seen before its request can be signed, and is not there yet. */
export const BODY_NEEDED = Symbol('the body is needed');

/**
 * Signs the request whose head was read from `bytes`, of which there is as much as up to `to`: the slow road, with strings.
 * Throws what the client is told.
 */
export function signRequest(
  signer: Signer,
  bytes: Buffer,
  to: number,
  head: Head,
  { member, origin, prefix, targetAt }: Route,
  { injection }: Generation,
): SignedRequest | typeof BODY_NEEDED {
  const { ownedHeaders, ownedQuery } = member.scheme;
  slab.begin(roomForTarget(prefix, injection) + head.targetEnd - targetAt);
  putTarget(bytes, targetAt, head.targetEnd, prefix, injection, ownedQuery);
  const view: RequestView = {
    method: bytes.toString('latin1', head.methodAt, head.methodEnd),
    origin,
    authority: origin.authority,
    target: slab.bytes.toString('latin1', slab.from, slab.at),
    ...fieldsOf(bytes, head, ownedHeaders),
    framing: head.body === BODY_LENGTH ? 'length' : head.body === BODY_CHUNKED ? 'chunked' : 'none',
    contentLength: head.body === BODY_LENGTH ? head.length : undefined,
  };
  const held =
    head.body !== BODY_NONE && signer.needsBody(view)
      ? bodyOf(bytes, to, head, member.settings.bufferLimit)
      : undefined;
  if (held === BODY_NEEDED) return BODY_NEEDED;

  // A body that we have whole is sent with its length: few servers that want it signed take it in chunks.
  const seen: RequestView = held
    ? { ...view, framing: 'length', contentLength: held.body.length, headers: withoutFraming(view.headers) }
    : view;
  const signed = signer.sign(seen, held?.body);
  const without = new Set(signed.without);
  const lines = seen.headers.filter(([name]) => !without.has(name.toLowerCase()));
  const length = held ? [['Content-Length', String(held.body.length)] as const] : [];
  const fields = [...length, ...lines].map(([name, value]) => `${name}: ${value}\r\n`).join('');
  return {
    head: Buffer.concat([
      Buffer.from(`${view.method} ${signed.target ?? view.target} HTTP/1.1\r\n`, 'latin1'),
      origin.hostLine,
      injection.headers,
      signed.headers,
      Buffer.from(`${fields}\r\n`, 'latin1'),
    ]),
    body: held?.body,
    next: held ? held.next : head.end,
  };
}

type Fields = RequestView['headers'];

/** The client's fields without those that are cut, and those of the cut ones that are the service's. */
function fieldsOf(bytes: Buffer, head: Head, owned: readonly string[]): { headers: Fields; cut: Fields } {
  const headers: [string, string][] = [];
  const cut: [string, string][] = [];
  let next = 0;
  for (let line = head.lineEnd; line < head.end - 2; ) {
    const end = bytes.indexOf('\r\n', line, 'latin1');
    const colon = bytes.indexOf(0x3a, line);
    const name = bytes.toString('latin1', line, colon);
    const value = bytes.toString('latin1', colon + 1, end).replace(/^[ \t]+|[ \t]+$/g, '');
    if (next < head.cuts && head.cut[next] === line) {
      next += 2;
      if (owned.includes(name.toLowerCase().replaceAll('_', '-'))) cut.push([name, value]);
    } else headers.push([name, value]);
    line = end + 2;
  }
  return { headers, cut };
}

function withoutFraming(fields: Fields): Fields {
  const framing = new Set(['content-length', 'transfer-encoding', 'expect']);
  return fields.filter(([name]) => !framing.has(name.toLowerCase()));
}

function bodyOf(
  bytes: Buffer,
  to: number,
  head: Head,
  limit: number,
): { readonly body: Buffer; readonly next: number } | typeof BODY_NEEDED {
  const tooLong = () =>
    refusal(413, `the body has to be signed and is longer than the ${limit} bytes of \`bufferLimit\``);
  if (head.body === BODY_LENGTH) {
    if (head.length > limit) throw tooLong();
    const next = head.end + head.length;
    return next > to ? BODY_NEEDED : { body: Buffer.concat([bytes.subarray(head.end, next)]), next };
  }
  const pieces: Buffer[] = [];
  const sink: ChunkData = { data: (chunk, from, end) => void pieces.push(chunk.subarray(from, end)) };
  const chunks = new Chunks();
  const next = chunks.scan(bytes, head.end, to, sink);
  if (chunks.bad) throw refusal(400, chunks.reason);
  if (to - head.end > limit) throw tooLong();
  return chunks.done ? { body: Buffer.concat(pieces), next } : BODY_NEEDED;
}
