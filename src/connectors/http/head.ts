// Heads of HTTP/1 messages (RFC 9112), read strictly: what two servers could understand in two ways is refused, nothing
// is repaired. Bytes in, byte ranges out, no strings: the ranges to leave out are noted, all else is passed on untouched.
import {
  type FieldNames,
  hashStep,
  K_CONNECTION,
  K_DISGUISED,
  K_EXPECT,
  K_HOP,
  K_HOST,
  K_LENGTH,
  K_ORIGIN,
  K_OVERRIDE,
  K_OWNED,
  K_PINNED,
  K_SITE,
  K_TRANSFER,
  K_UPGRADE,
  TOKEN,
  VALUE,
} from './names.ts';

/** More bytes are needed. Another result is the offset behind the head or, negative, the status to answer with. */
export const INCOMPLETE = 0;

export const BODY_NONE = 0;
export const BODY_LENGTH = 1;
export const BODY_CHUNKED = 2;
/** Of a response: it ends with the connection. The parser never says so, see RFC 9112 6.3. */
export const BODY_CLOSE = 3;

/** Methods that a broker treats in a way of their own. Any other token is METHOD_OTHER. */
export const METHOD_OTHER = 0;
export const METHOD_GET = 1;
export const METHOD_HEAD = 2;
export const METHOD_POST = 3;
export const METHOD_PUT = 4;
export const METHOD_PATCH = 5;
export const METHOD_DELETE = 6;
export const METHOD_OPTIONS = 7;
export const METHOD_CONNECT = 8;

const METHOD_BYTES = 24;
const FIELDS = 128;
/** Digits of a Content-Length: below 2^53. */
const LENGTH_DIGITS = 15;
/** Names that one head may nominate in `Connection`. */
const NOMINATED = 16;

/**
 * 1 where a byte may stand in a request target. RFC 3986 has no quotes, angle brackets, backslash, backquote, braces, bar
 * and caret, but the WHATWG's URL leaves some of them in a query as they are, and so do browsers and Node's fetch. What
 * has been used for splitting and rerouting stays out: space, `#`, backslash, control characters, eight bits.
 */
const TARGET = new Uint8Array(256).fill(1, 0x21, 0x7f);
for (const character of '"#<>\\') TARGET[character.charCodeAt(0)] = 0;

const CLOSE = 1;
const KEEP_ALIVE = 2;
const UPGRADE = 4;

/** One parsed head, used again for the next one: read it before the next call. Offsets are into the bytes given. */
export class Head {
  /** Behind the empty line. */
  end = 0;
  /** Behind the first line. */
  lineEnd = 0;
  /**
   * Pairs [from, to) of whole lines to leave out, in order: the first `cuts` numbers. An array that is emptied and grown
   * for each head costs more than reading it.
   */
  readonly cut = new Int32Array(2 * FIELDS);
  cuts = 0;
  body = BODY_NONE;
  /** Of the body, with BODY_LENGTH; else -1. */
  length = -1;
  /** The minor version: 0 or 1. */
  minor = 1;
  /** An `Upgrade` field with `websocket` alone. */
  hasUpgrade = false;
  /** `Expect: 100-continue`. */
  expect = false;
  /** A field from which some servers take another path or method than the request line's: see names.ts. */
  overrides = false;
  /** Why it is refused: a constant. */
  reason = '';

  method = METHOD_OTHER;
  methodAt = 0;
  methodEnd = 0;
  targetAt = 0;
  targetEnd = 0;
  /** The value of `Host`; both 0 where there is none (HTTP/1.0). Its line is always cut. */
  hostAt = 0;
  hostEnd = 0;
  /** The value of `Origin`, of the last one where there are several. */
  originAt = 0;
  originEnd = 0;
  /** The value of `Sec-Fetch-Site`, likewise. */
  siteAt = 0;
  siteEnd = 0;

  status = 0;

  /** What `Connection` says. */
  options = 0;
  /** Pairs [from, to) of other names in `Connection`: the first `nominations` numbers. */
  readonly nominated = new Int32Array(2 * NOMINATED);
  nominations = 0;

  get close(): boolean {
    return (this.options & CLOSE) !== 0;
  }
  get keepAlive(): boolean {
    return (this.options & KEEP_ALIVE) !== 0;
  }
  /** The sender asks for, or agrees to, a WebSocket. */
  get upgrade(): boolean {
    return (this.options & UPGRADE) !== 0 && this.hasUpgrade;
  }

  /** Leaves the line out. */
  cutLine(from: number, to: number): void {
    this.cut[this.cuts++] = from;
    this.cut[this.cuts++] = to;
  }
}

/**
 * Reads a request's head from `at`, of which there is as much as up to `to` and no more than `max` bytes will do. What
 * is wrong is said as soon as it is there. Statuses: 400, 405, 414, 417, 431, 501, 505.
 */
export function parseRequest(
  bytes: Buffer,
  at: number,
  to: number,
  head: Head,
  names: FieldNames,
  max: number,
): number {
  let i = at;
  // One empty line in front: some clients end a body with one too many (RFC 9112 2.2).
  if (i < to && bytes[i] === 13) {
    if (to - i < 2) return INCOMPLETE;
    if (bytes[i + 1] !== 10) return refuse(head, 400, 'CR without LF');
    i += 2;
  }

  head.methodAt = i;
  while (i < to && TOKEN[bytes[i] as number] !== 0) i++;
  const length = i - head.methodAt;
  if (length > METHOD_BYTES) return refuse(head, 400, 'method too long');
  if (i === to) return INCOMPLETE;
  if (bytes[i] !== 32 || length === 0) return refuse(head, 400, 'malformed request line');
  head.methodEnd = i;
  head.method = methodOf(bytes, head.methodAt, length);
  if (head.method === METHOD_OTHER) {
    if (tracing.some((name) => equals(bytes, head.methodAt, i, name)))
      return refuse(head, 405, 'TRACE would show the credential');
    if (miswritten.some((name) => equals(bytes, head.methodAt, i, name)))
      return refuse(head, 400, 'method that some servers read as another');
  }

  head.targetAt = ++i;
  while (i < to && TARGET[bytes[i] as number] === 1) i++;
  if (i - at > max) return refuse(head, 414, 'request target too long');
  if (i === to) return INCOMPLETE;
  if (bytes[i] !== 32 || i === head.targetAt) return refuse(head, 400, 'malformed request target');
  head.targetEnd = i++;

  for (let j = 0; j < 10; j++) {
    if (i + j >= to) return INCOMPLETE;
    const byte = bytes[i + j] as number;
    if (j === 5 || j === 7 ? byte < 48 || byte > 57 : byte !== VERSION_LINE[j])
      return refuse(head, 400, 'malformed request line');
  }
  head.minor = (bytes[i + 7] as number) - 48;
  if (bytes[i + 5] !== 49 || head.minor > 1) return refuse(head, 505, 'not HTTP/1.1 or HTTP/1.0');
  return parseFields(bytes, at, i + 10, to, head, names, max, true);
}

/** Reads a response's head likewise. A negative result is -502. */
export function parseResponse(
  bytes: Buffer,
  at: number,
  to: number,
  head: Head,
  names: FieldNames,
  max: number,
): number {
  for (let j = 0; j < 13; j++) {
    if (at + j >= to) return INCOMPLETE;
    const byte = bytes[at + j] as number;
    const right =
      j === 7
        ? byte === 49 || byte === 48
        : j === 8
          ? byte === 32
          : j === 9
            ? byte >= 49 && byte <= 53
            : j < 7
              ? byte === VERSION_LINE[j]
              : j < 12
                ? byte >= 48 && byte <= 57
                : byte === 32 || byte === 13; // the space is left out where there is no reason phrase
    if (!right) return refuse(head, 502, 'malformed status line');
  }
  head.minor = (bytes[at + 7] as number) - 48;
  head.status =
    (bytes[at + 9] as number) * 100 + (bytes[at + 10] as number) * 10 + (bytes[at + 11] as number) - 5328;
  let i = at + 12;
  while (i < to && VALUE[bytes[i] as number] === 1) i++;
  if (i - at > max) return refuse(head, 502, 'status line too long');
  if (i === to) return INCOMPLETE;
  if (bytes[i] !== 13) return refuse(head, 502, 'malformed status line');
  if (i + 1 === to) return INCOMPLETE;
  if (bytes[i + 1] !== 10) return refuse(head, 502, 'malformed status line');
  return parseFields(bytes, at, i + 2, to, head, names, max, false);
}

function parseFields(
  bytes: Buffer,
  at: number,
  i: number,
  to: number,
  head: Head,
  names: FieldNames,
  max: number,
  request: boolean,
): number {
  const bad = request ? 400 : 502;
  const large = request ? 431 : 502;
  head.reason = '';
  head.lineEnd = i;
  head.cuts = 0;
  head.nominations = 0;
  head.body = BODY_NONE;
  head.length = -1;
  head.options = 0;
  head.hasUpgrade = false;
  head.expect = false;
  head.overrides = false;
  head.hostAt = 0;
  head.hostEnd = 0;
  head.originEnd = 0;
  head.siteEnd = 0;
  let transfer = false;
  let upgrade = false;

  for (let count = 0; ; count++) {
    if (i - at > max) return refuse(head, large, 'head too large');
    if (i === to) return INCOMPLETE;
    if (bytes[i] === 13) {
      if (i + 1 === to) return INCOMPLETE;
      if (bytes[i + 1] !== 10) return refuse(head, bad, 'CR without LF');
      i += 2;
      break;
    }
    if (count === FIELDS) return refuse(head, large, 'too many header fields');

    const line = i;
    let hash = 0;
    for (let byte: number; i < to && TOKEN[(byte = bytes[i] as number)] !== 0; i++)
      hash = hashStep(hash, byte);
    if (i - at > max) return refuse(head, large, 'head too large');
    if (i === to) return INCOMPLETE;
    // A space before the colon, a folded line, a control character: each is read in two ways by somebody.
    if (bytes[i] !== 0x3a || i === line) return refuse(head, bad, 'malformed header field name');
    const kind = names.find(hash, bytes, line, i - line);
    i++;
    while (i < to && (bytes[i] === 32 || bytes[i] === 9)) i++;
    const from = i;
    while (i < to && VALUE[bytes[i] as number] === 1) i++;
    if (i - at > max) return refuse(head, large, 'head too large');
    if (i === to) return INCOMPLETE;
    if (bytes[i] !== 13) return refuse(head, bad, 'control character in a header field');
    if (i + 1 === to) return INCOMPLETE;
    if (bytes[i + 1] !== 10) return refuse(head, bad, 'CR without LF');
    let end = i;
    i += 2;
    if (kind === 0 || kind === K_PINNED) continue;

    while (end > from && (bytes[end - 1] === 32 || bytes[end - 1] === 9)) end--;
    switch (kind) {
      case K_HOP:
      case K_OWNED:
        head.cutLine(line, i);
        break;
      case K_HOST:
        if (head.hostEnd !== 0) return refuse(head, bad, 'more than one Host');
        if (!isAuthority(bytes, from, end)) return refuse(head, bad, 'malformed Host');
        head.hostAt = from;
        head.hostEnd = end;
        head.cutLine(line, i);
        break;
      case K_LENGTH: {
        if (head.length >= 0) return refuse(head, bad, 'more than one Content-Length');
        if (transfer) return refuse(head, bad, 'Content-Length beside Transfer-Encoding');
        const length = decimal(bytes, from, end);
        // A zero in front is octal to somebody. Some servers pad with them, so only requests are held to it.
        if (length < 0 || (request && end - from > 1 && bytes[from] === 48))
          return refuse(head, bad, 'malformed Content-Length');
        head.length = length;
        head.body = BODY_LENGTH;
        break;
      }
      case K_TRANSFER:
        if (transfer) return refuse(head, bad, 'more than one Transfer-Encoding');
        if (head.length >= 0) return refuse(head, bad, 'Content-Length beside Transfer-Encoding');
        if (!equals(bytes, from, end, CHUNKED)) {
          if (request && isUnknownCoding(bytes, from, end))
            return refuse(head, 501, 'transfer coding other than chunked');
          return refuse(head, bad, 'malformed Transfer-Encoding');
        }
        transfer = true;
        head.body = BODY_CHUNKED;
        break;
      case K_UPGRADE:
        if (upgrade) return refuse(head, bad, 'more than one Upgrade');
        upgrade = true;
        head.hasUpgrade = equals(bytes, from, end, WEBSOCKET);
        head.cutLine(line, i);
        break;
      case K_EXPECT:
        // HTTP/1.0 does not know it: to be ignored (RFC 9110 10.1.1).
        if (head.minor === 0) {
          head.cutLine(line, i);
          break;
        }
        if (head.expect || !equals(bytes, from, end, CONTINUE))
          return refuse(head, 417, 'expectation other than 100-continue');
        head.expect = true;
        break;
      case K_CONNECTION: {
        const fault = readOptions(bytes, from, end, head, names, request);
        if (fault !== '') return refuse(head, bad, fault);
        head.cutLine(line, i);
        break;
      }
      case K_OVERRIDE:
        head.overrides = true;
        break;
      case K_ORIGIN:
        head.originAt = from;
        head.originEnd = end;
        break;
      case K_SITE:
        head.siteAt = from;
        head.siteEnd = end;
        break;
      case K_DISGUISED:
        return refuse(head, bad, 'header field name that some servers read as another');
    }
  }

  if (transfer && head.minor === 0) return refuse(head, bad, 'Transfer-Encoding in HTTP/1.0');
  if (request && head.hostEnd === 0 && head.minor === 1) return refuse(head, 400, 'no Host');
  if (request && head.method === METHOD_CONNECT && head.body !== BODY_NONE)
    return refuse(head, 400, 'CONNECT with a body');
  if (i - at > max) return refuse(head, large, 'head too large');
  head.end = i;
  if (head.nominations > 0) cutNominated(bytes, head);
  return i;
}

function refuse(head: Head, status: number, reason: string): number {
  head.reason = reason;
  return -status;
}

/** Reads one `Connection` field (RFC 9110 7.6.1). Returns what is wrong with it, or nothing. */
function readOptions(
  bytes: Buffer,
  i: number,
  end: number,
  head: Head,
  names: FieldNames,
  request: boolean,
): string {
  while (i < end) {
    while (i < end && (bytes[i] === 32 || bytes[i] === 9 || bytes[i] === 0x2c)) i++;
    if (i === end) break;
    const from = i;
    while (i < end && TOKEN[bytes[i] as number] !== 0) i++;
    if (i === from) return 'malformed Connection';
    if (equals(bytes, from, i, KEEP_ALIVE_OPTION)) head.options |= KEEP_ALIVE;
    else if (equals(bytes, from, i, CLOSE_OPTION)) head.options |= CLOSE;
    else if (equals(bytes, from, i, UPGRADE_OPTION)) head.options |= UPGRADE;
    else {
      const kind = names.kindOf(bytes, from, i);
      if (kind === 0 || kind === K_OVERRIDE) {
        if (head.nominations === 2 * NOMINATED) return 'too many names in Connection';
        head.nominated[head.nominations++] = from;
        head.nominated[head.nominations++] = i;
      } else if (kind !== K_HOP && request) {
        // Taking these away would change where the message ends, whose it is, or what it means. In responses it does
        // happen (`Connection: Transfer-Encoding` is true, after all), and there it is enough that they stay.
        return 'Connection names a field that is not about the connection';
      }
    }
    while (i < end && (bytes[i] === 32 || bytes[i] === 9)) i++;
    if (i < end && bytes[i] !== 0x2c) return 'malformed Connection';
  }
  return '';
}

/** Cuts the lines whose names `Connection` had. Rare, so a second look at a head that is well-formed by now. */
function cutNominated(bytes: Buffer, head: Head): void {
  const { nominated, nominations } = head;
  const known = head.cut.slice(0, head.cuts);
  head.cuts = 0;
  let next = 0;
  for (let line = head.lineEnd; line < head.end - 2; ) {
    const lineEnd = bytes.indexOf('\r\n', line, 'latin1') + 2;
    const nameEnd = bytes.indexOf(0x3a, line);
    let drop = next < known.length && known[next] === line;
    if (drop) next += 2;
    for (let i = 0; i < nominations && !drop; i += 2)
      drop = sameName(bytes, line, nameEnd, nominated[i] as number, nominated[i + 1] as number);
    if (drop) head.cutLine(line, lineEnd);
    line = lineEnd;
  }
}

function sameName(bytes: Buffer, from: number, to: number, otherFrom: number, otherTo: number): boolean {
  if (to - from !== otherTo - otherFrom) return false;
  for (let i = 0; i < to - from; i++)
    if (TOKEN[bytes[from + i] as number] !== TOKEN[bytes[otherFrom + i] as number]) return false;
  return true;
}

/**
 * `gzip, chunked` and the like: well-formed, only that we do not know it (RFC 9112 6.1). Where `chunked` is there and not
 * the last, or twice, there is no telling where the body ends (RFC 9112 6.3).
 */
function isUnknownCoding(bytes: Buffer, from: number, to: number): boolean {
  let chunked = false;
  for (let i = from; ; i++) {
    while (i < to && bytes[i] === 32) i++;
    const token = i;
    while (i < to && TOKEN[bytes[i] as number] !== 0) i++;
    if (i === token) return false;
    if (chunked) return false;
    chunked = equals(bytes, token, i, CHUNKED);
    while (i < to && bytes[i] === 32) i++;
    if (i === to) return true;
    if (bytes[i] !== 0x2c) return false;
  }
}

/** Whether these bytes are `host`, `host:port`, `[address]` or `[address]:port`: no user, no path, no list. */
export function isAuthority(bytes: Buffer, from: number, to: number): boolean {
  let i = from;
  if (bytes[i] === 0x5b) {
    i++;
    while (i < to && IP6[bytes[i] as number] === 1) i++;
    if (i - from < 3 || i === to || bytes[i] !== 0x5d) return false;
    i++;
  } else {
    while (i < to && NAME[bytes[i] as number] === 1) i++;
    if (i === from) return false;
  }
  if (i === to) return true;
  if (bytes[i] !== 0x3a || to - i > 6) return false;
  const port = decimal(bytes, i + 1, to);
  return port >= 0 && port <= 65535;
}

/** A number without a sign; -1 where it is none or a long one. */
function decimal(bytes: Buffer, from: number, to: number): number {
  if (from === to || to - from > LENGTH_DIGITS) return -1;
  let value = 0;
  for (let i = from; i < to; i++) {
    const digit = (bytes[i] as number) - 48;
    if (digit < 0 || digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value;
}

function equals(bytes: Buffer, from: number, to: number, lowerCase: Uint8Array): boolean {
  if (to - from !== lowerCase.length) return false;
  for (let i = 0; i < lowerCase.length; i++)
    if (TOKEN[bytes[from + i] as number] !== lowerCase[i]) return false;
  return true;
}

const methods: readonly (readonly [name: Uint8Array, method: number])[] = (
  [
    ['GET', METHOD_GET],
    ['POST', METHOD_POST],
    ['PUT', METHOD_PUT],
    ['HEAD', METHOD_HEAD],
    ['DELETE', METHOD_DELETE],
    ['PATCH', METHOD_PATCH],
    ['OPTIONS', METHOD_OPTIONS],
    ['CONNECT', METHOD_CONNECT],
  ] as const
).map(([name, method]) => [Buffer.from(name), method]);

function methodOf(bytes: Buffer, from: number, length: number): number {
  for (let i = 0; i < methods.length; i++) {
    const [name, method] = methods[i] as (typeof methods)[number];
    if (name.length !== length) continue;
    let j = 0;
    while (j < length && bytes[from + j] === name[j]) j++;
    if (j === length) return method;
  }
  return METHOD_OTHER;
}

/** An answer to TRACE repeats the request as the server got it: with the credential (RFC 9110 9.3.8). */
const tracing = [Buffer.from('trace'), Buffer.from('track')];
/**
 * Methods are case-sensitive (RFC 9110 9.1), but a server that takes `head` for HEAD sends a length and no body, and one
 * that takes `connect` for CONNECT opens a tunnel.
 */
const miswritten = [Buffer.from('head'), Buffer.from('connect')];

const VERSION_LINE = Buffer.from('HTTP/1.x\r\n');
const CHUNKED = Buffer.from('chunked');
const WEBSOCKET = Buffer.from('websocket');
const CONTINUE = Buffer.from('100-continue');
const KEEP_ALIVE_OPTION = Buffer.from('keep-alive');
const CLOSE_OPTION = Buffer.from('close');
const UPGRADE_OPTION = Buffer.from('upgrade');

/** In a host: RFC 3986's unreserved characters without `~`. Percent-encoded ones and the rest are read in two ways. */
const NAME = new Uint8Array(256);
const IP6 = new Uint8Array(256);
for (const character of 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._')
  NAME[character.charCodeAt(0)] = 1;
for (const character of 'abcdefABCDEF0123456789:.') IP6[character.charCodeAt(0)] = 1;
