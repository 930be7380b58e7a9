// Names of header fields that mean something to a broker, found by their bytes: a request costs no string.
//
// CGI, WSGI, Rack and PHP hand a field to the application under a name in which `-` and `_` are the same, some servers
// fold every other sign too. So a name is looked up as such a server would read it: `Content_Length` is found as
// Content-Length, and then the parser can refuse it. RFC 9110 5.1, RFC 3875 4.1.18.

/** What a parser does with a field. 0 is any other name: passed on as it is. */
export const K_HOST = 1;
export const K_CONNECTION = 2;
export const K_LENGTH = 3;
export const K_TRANSFER = 4;
export const K_UPGRADE = 5;
export const K_EXPECT = 6;
/** Cut: about this hop only (RFC 9110 7.6.1). */
export const K_HOP = 7;
/** Cut: what the service adds by itself. No client may say it, in any spelling, nor have it taken away. */
export const K_OWNED = 8;
/** Passed on, and `Connection` may not take it away. */
export const K_PINNED = 9;
/** Passed on, with a note: some servers take another path or method from it than the request line has. */
export const K_OVERRIDE = 10;
/** One of the names above that decide where a message ends or goes to, in a spelling that only some servers fold. */
export const K_DISGUISED = 11;
/** Passed on, with a note: which page of a browser has sent it (Origin, RFC 6454). */
export const K_ORIGIN = 12;
/** Likewise: how near that page is (Sec-Fetch-Site, Fetch Metadata). */
export const K_SITE = 13;

/** Characters of a token in lower case, 0 for all others (RFC 9110 5.6.2). */
export const TOKEN = new Uint8Array(256);
/** The same with one sign for all signs, as the most forgiving servers read a name. */
const FOLDED = new Uint8Array(256);
for (const character of "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
  const byte = character.charCodeAt(0);
  TOKEN[byte] = byte;
  FOLDED[byte] = /[a-z0-9]/.test(character) ? byte : 0x2d;
}
for (let byte = 0x41; byte <= 0x5a; byte++) TOKEN[byte] = FOLDED[byte] = byte + 32;

/** 1 where a byte may stand in the value of a field: no control character but the tab, no DEL (RFC 9110 5.5). */
export const VALUE = new Uint8Array(256).fill(1, 0x20);
VALUE[0x7f] = 0;
VALUE[0x09] = 1;

interface Entry {
  readonly name: Uint8Array;
  readonly kind: number;
}

/** A table of names. A name is looked up by a hash that the parser makes while it reads it. */
export class FieldNames {
  readonly #slots: Entry[][] = Array.from({ length: 256 }, () => []);

  /** The first kind that a name is given stays. */
  add(kind: number, ...names: readonly string[]): this {
    for (const name of names) {
      const bytes = Buffer.from(name.toLowerCase(), 'latin1');
      if (this.kindOf(bytes, 0, bytes.length) !== 0) continue;
      let hash = 0;
      for (const byte of bytes) hash = hashStep(hash, byte);
      (this.#slots[slotOf(hash, bytes.length)] as Entry[]).push({ name: bytes, kind });
    }
    return this;
  }

  /** The kind of the name at `from`, whose hash (of `hashStep`, from 0) is known. */
  find(hash: number, bytes: Uint8Array, from: number, length: number): number {
    const slot = this.#slots[slotOf(hash, length)] as Entry[];
    for (let i = 0; i < slot.length; i++) {
      const { name, kind } = slot[i] as Entry;
      if (name.length !== length) continue;
      let j = 0;
      let exact = true;
      for (; j < length; j++) {
        const byte = bytes[from + j] as number;
        const wanted = name[j] as number;
        if (TOKEN[byte] === wanted) continue;
        if (FOLDED[byte] !== FOLDED[wanted]) break;
        exact = false;
      }
      if (j < length) continue;
      if (exact || kind === K_OWNED || kind === K_HOP) return kind;
      // Servers fold it to a name that decides about framing or routing, or they do not: only a refusal is safe.
      return kind <= K_EXPECT ? K_DISGUISED : kind;
    }
    return 0;
  }

  /** The kind of the name in `[from, to)`. */
  kindOf(bytes: Uint8Array, from: number, to: number): number {
    let hash = 0;
    for (let at = from; at < to; at++) hash = hashStep(hash, bytes[at] as number);
    return this.find(hash, bytes, from, to - from);
  }
}

/** The hash of a name with one more byte. */
export function hashStep(hash: number, byte: number): number {
  return (Math.imul(hash, 31) + (FOLDED[byte] as number)) | 0;
}

function slotOf(hash: number, length: number): number {
  return (hash ^ length ^ (hash >>> 8)) & 255;
}

/** Of the framing, and about one hop, in both directions. */
function common(): FieldNames {
  return new FieldNames()
    .add(K_CONNECTION, 'connection')
    .add(K_LENGTH, 'content-length')
    .add(K_TRANSFER, 'transfer-encoding')
    .add(K_UPGRADE, 'upgrade')
    .add(K_HOP, 'keep-alive', 'proxy-connection', 'te', 'trailer', 'http2-settings')
    .add(K_HOP, 'proxy-authenticate', 'proxy-authorization', 'proxy-authentication-info');
}

/** What a message is and for whom: taking one of these away changes its meaning, so `Connection` may not name them. */
const pinned = [
  'authorization',
  'cache-control',
  'content-encoding',
  'content-range',
  'content-type',
  'cookie',
  'date',
  'location',
  'origin',
  'range',
  'set-cookie',
  'www-authenticate',
];

/** Fields from which IIS, Zend, Symfony and others take a path or a method in place of that of the request line. */
const overrides = [
  'x-original-url',
  'x-rewrite-url',
  'x-http-method',
  'x-http-method-override',
  'x-method-override',
];

/** Names in requests. `owned`: what the service adds, in lower case; it is cut wherever a client says it. */
export function requestNames(owned: readonly string[]): FieldNames {
  return common()
    .add(K_HOST, 'host')
    .add(K_EXPECT, 'expect')
    .add(K_ORIGIN, 'origin')
    .add(K_SITE, 'sec-fetch-site')
    .add(K_OWNED, ...owned)
    .add(K_OVERRIDE, ...overrides)
    .add(K_PINNED, ...pinned);
}

/** Names in responses. */
export function responseNames(): FieldNames {
  return common().add(K_PINNED, ...pinned);
}
