import { createHash, createHmac } from 'node:crypto';

import { PosternError } from '../../../core/errors.ts';
import { join, wipe } from './bytes.ts';

/** What a signature is good for. */
export interface Scope {
  /** `20130524` */
  readonly day: string;
  readonly region: string;
  readonly service: string;
}

/** A request as it is signed (AWS, "Create a signed API request", steps 1 to 3). */
export interface Signable {
  readonly method: string;
  /** As `canonicalPath` makes it. */
  readonly path: string;
  /** As `canonicalQuery` makes it. */
  readonly query: string;
  /** All that is signed; the names in lower case, a name as often as it is in the request. */
  readonly headers: readonly SignedField[];
  /** Hex SHA-256 of the body, or the marker that stands for it. */
  readonly payload: string;
  /** `20130524T000000Z` */
  readonly time: string;
  readonly scope: Scope;
}

/** The value of a field that is a credential (a session token) stays in its buffer. */
export type SignedField = readonly [name: string, value: string | Buffer];

/** Hex SHA-256 of nothing. */
export const emptyHash = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

/** The signature in hex, and the names that it covers as `SignedHeaders` has them. */
export function sign(request: Signable, keys: SigningKeys): { signature: string; signedHeaders: string } {
  const values = new Map<string, (string | Buffer)[]>();
  for (const [name, value] of request.headers) {
    const known = values.get(name);
    if (known) known.push(value);
    else values.set(name, [value]);
  }
  const names = [...values.keys()].toSorted();
  const signedHeaders = names.join(';');

  // All of it is ASCII or the bytes of the head as latin1 text.
  const canonical = createHash('sha256');
  canonical.update(`${request.method}\n${request.path}\n${request.query}\n`, 'latin1');
  for (const name of names) {
    canonical.update(`${name}:`, 'latin1');
    for (const [index, value] of (values.get(name) ?? []).entries()) {
      if (index > 0) canonical.update(',');
      if (typeof value === 'string') canonical.update(collapsed(value), 'latin1');
      else canonical.update(value);
    }
    canonical.update('\n');
  }
  canonical.update(`\n${signedHeaders}\n${request.payload}`, 'latin1');

  const { day, region, service } = request.scope;
  const toSign = `AWS4-HMAC-SHA256\n${request.time}\n${day}/${region}/${service}/aws4_request\n${canonical.digest('hex')}`;
  return {
    signature: createHmac('sha256', keys.get(request.scope)).update(toSign).digest('hex'),
    signedHeaders,
  };
}

/** Not by `trim` and `\s`, to which the second byte of an "à" is a blank too. */
function collapsed(value: string): string {
  const single = value.replaceAll(/[ \t]+/g, ' ');
  return single.slice(single.startsWith(' ') ? 1 : 0, single.endsWith(' ') ? -1 : undefined);
}

/** A client that names scope after scope must not fill the memory. */
const MOST_KEYS = 16;

/** The keys derived from one secret access key, by what they are good for. Disposing overwrites them all. */
export class SigningKeys implements Disposable {
  readonly #secret: Buffer;
  readonly #keys = new Map<string, Buffer>();

  /** `secret` stays the caller's. */
  constructor(secret: Buffer) {
    this.#secret = join([Buffer.from('AWS4'), secret]);
  }

  get({ day, region, service }: Scope): Buffer {
    const label = `${day}/${region}/${service}`;
    const known = this.#keys.get(label);
    if (known) return known;
    if (this.#keys.size >= MOST_KEYS) this.#forget();
    const ofDay = hmac(this.#secret, day);
    const ofRegion = hmac(ofDay, region);
    const ofService = hmac(ofRegion, service);
    const key = hmac(ofService, 'aws4_request');
    wipe(ofDay, ofRegion, ofService);
    this.#keys.set(label, key);
    return key;
  }

  #forget(): void {
    wipe(...this.#keys.values());
    this.#keys.clear();
  }

  [Symbol.dispose](): void {
    this.#forget();
    this.#secret.fill(0);
  }
}

function hmac(key: Buffer, text: string): Buffer {
  const made = createHmac('sha256', key).update(text).digest();
  // OpenSSL's answer lies on V8's heap, where the collector may copy it before it is overwritten.
  const outside = join([made]);
  made.fill(0);
  return outside;
}

/**
 * S3 takes the path as it is on the wire, `//` and `..` being parts of keys, each byte written in the one way that
 * signatures know. All other services take it without them, and percent-encoded once more.
 */
export function canonicalPath(path: string, service: string): string {
  if (isS3(service)) return path.split('/').map(rewritten).join('/');
  const segments: string[] = [];
  for (const segment of path.split('/')) {
    if (segment === '' || segment === '.') continue;
    if (segment === '..') segments.pop();
    else segments.push(encode(segment));
  }
  const end = path.endsWith('/') && segments.length > 0 ? '/' : '';
  return `/${segments.join('/')}${end}`;
}

/** `a+b(%c3)` and `a%2Bb%28%C3%29` are the same key to S3, and it signs the second. */
function rewritten(segment: string): string {
  const bytes = segment.replaceAll(/%([0-9A-Fa-f]{2})/g, (_, hex: string) =>
    String.fromCodePoint(Number.parseInt(hex, 16)),
  );
  return encode(bytes);
}

/** Whether the service has S3's rules for paths and payloads. */
export function isS3(service: string): boolean {
  return service === 's3' || service.startsWith('s3-') || service === 's3express';
}

/** Names and values as they are meant, each a text of bytes (latin1). */
export type Parameters = readonly (readonly [name: string, value: string])[];

/**
 * The parameters of a target. A `+` is a space, as in every form. Throws CLIENT_REFUSED for an escape that is none: it
 * cannot be known what the server would make of it.
 */
export function parametersOf(query: string): Parameters {
  return query
    .split('&')
    .filter((part) => part !== '')
    .map((part) => {
      const equals = part.indexOf('=');
      return equals === -1
        ? ([decode(part), ''] as const)
        : ([decode(part.slice(0, equals)), decode(part.slice(equals + 1))] as const);
    });
}

/** Percent-encoded and sorted by name, then by value. */
export function canonicalQuery(parameters: Parameters): string {
  return parameters
    .map(([name, value]): [string, string] => [encode(name), encode(value)])
    .toSorted(([a, x], [b, y]) => (a < b ? -1 : a > b ? 1 : x < y ? -1 : x > y ? 1 : 0))
    .map(([name, value]) => `${name}=${value}`)
    .join('&');
}

/** Percent-encoded, in the order that they have. */
export function writtenQuery(parameters: Parameters): string {
  return parameters.map(([name, value]) => `${encode(name)}=${encode(value)}`).join('&');
}

const escapes = Array.from({ length: 256 }, (_, byte) => {
  const letter = String.fromCodePoint(byte);
  return /[A-Za-z0-9._~-]/.test(letter) ? letter : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
});

/** RFC 3986 of a text of bytes: everything but letters, digits and `-._~`. */
export function encode(bytes: string): string {
  let out = '';
  for (let at = 0; at < bytes.length; at++) out += escapes[bytes.charCodeAt(at) & 0xff];
  return out;
}

function decode(text: string): string {
  if (!/[%+]/.test(text)) return text;
  return text.replaceAll(/\+|%(..?)?/g, (escape, hex: string | undefined) => {
    if (escape === '+') return ' ';
    if (hex === undefined || !/^[0-9A-Fa-f]{2}$/.test(hex))
      throw new PosternError(
        'CLIENT_REFUSED',
        'the query has a "%" that is no percent-encoding, so it cannot be signed',
      );
    return String.fromCodePoint(Number.parseInt(hex, 16));
  });
}
