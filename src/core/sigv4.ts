import { createHash, createHmac, hash } from 'node:crypto';

import { copyOf, join, percentEncodeText, wipe } from './bytes.ts';

/** For whom a signature is, beside its day. */
export interface SigningScope {
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
  /** As `amzDate` makes it. */
  readonly time: string;
  readonly scope: SigningScope;
}

/** The value of a field that is a credential (a session token) stays in its buffer. */
export type SignedField = readonly [name: string, value: string | Buffer];

/** Names and values as they are meant, each a text of bytes (latin1). */
export type QueryParameters = readonly (readonly [name: string, value: string])[];

/** Hex SHA-256 of nothing. */
export const emptyHash = hash('sha256', '');

const algorithm = 'AWS4-HMAC-SHA256';

/** `20130524T000000Z`, from milliseconds since the epoch. */
export function amzDate(milliseconds: number): string {
  return `${new Date(milliseconds).toISOString().slice(0, 19).replaceAll(/[-:]/g, '')}Z`;
}

/** Value of the Authorization header of a request that is signed so (Signature Version 4). */
export function authorizationOf(request: Signable, accessKeyId: string, keys: SigningKeys): string {
  const { signature, signedHeaders } = sign(request, keys);
  return `${algorithm} Credential=${accessKeyId}/${scopeOf(request)}, SignedHeaders=${signedHeaders}, Signature=${signature}`;
}

/**
 * A query that carries its own signature (a presigned URL), valid for `expires` seconds; only `host` is signed.
 * The session token is part of what is signed.
 */
export function presignedQuery(
  request: Pick<Signable, 'method' | 'path' | 'time' | 'scope'> & {
    readonly host: string;
    readonly parameters: QueryParameters;
    readonly expires: number;
    readonly sessionToken: string | undefined;
  },
  accessKeyId: string,
  keys: SigningKeys,
): string {
  const { host, parameters, expires, sessionToken, ...rest } = request;
  const query = canonicalQuery([
    ...parameters,
    ['X-Amz-Algorithm', algorithm],
    ['X-Amz-Credential', `${accessKeyId}/${scopeOf(request)}`],
    ['X-Amz-Date', request.time],
    ['X-Amz-Expires', String(expires)],
    ...(sessionToken === undefined ? [] : [['X-Amz-Security-Token', sessionToken] as const]),
    ['X-Amz-SignedHeaders', 'host'],
  ]);
  const { signature } = sign({ ...rest, query, headers: [['host', host]], payload: emptyHash }, keys);
  return `${query}&X-Amz-Signature=${signature}`;
}

function scopeOf({ time, scope }: Pick<Signable, 'time' | 'scope'>): string {
  return `${time.slice(0, 8)}/${scope.region}/${scope.service}/aws4_request`;
}

/** The signature in hex, and the names that it covers as `SignedHeaders` has them. */
function sign(request: Signable, keys: SigningKeys): { signature: string; signedHeaders: string } {
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

  const toSign = `${algorithm}\n${request.time}\n${scopeOf(request)}\n${canonical.digest('hex')}`;
  const key = keys.get(request.time.slice(0, 8), request.scope);
  return { signature: createHmac('sha256', key).update(toSign).digest('hex'), signedHeaders };
}

/** Not by `trim` and `\s`, to which the second byte of an "à" is a blank too. */
function collapsed(value: string): string {
  const single = value.replaceAll(/[ \t]+/g, ' ');
  return single.slice(single.startsWith(' ') ? 1 : 0, single.endsWith(' ') ? -1 : undefined);
}

/** A client that names scope after scope must not fill the memory. */
const MOST_KEYS = 16;

/**
 * The keys derived from one secret access key, by what they are good for: each is as good as the secret for its day.
 * Disposing overwrites them all.
 */
export class SigningKeys implements Disposable {
  readonly #secret: Buffer;
  readonly #keys = new Map<string, Buffer>();

  /** `secret` stays the caller's. */
  constructor(secret: Buffer) {
    this.#secret = join([Buffer.from('AWS4'), secret]);
  }

  /** Lives until the keys are disposed of, or sixteen others are wanted. `day` is `20130524`. */
  get(day: string, { region, service }: SigningScope): Buffer {
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
  const outside = copyOf(made);
  made.fill(0);
  return outside;
}

/**
 * S3 takes the path as it is on the wire, `//` and `..` being parts of keys, each byte written in the one way that
 * signatures know. All other services take it without them, and percent-encoded once more.
 */
export function canonicalPath(path: string, service: string): string {
  if (isS3(service)) return path.split('/').map(rewritten).join('/') || '/';
  const segments: string[] = [];
  for (const segment of path.split('/')) {
    if (segment === '' || segment === '.') continue;
    if (segment === '..') segments.pop();
    else segments.push(percentEncodeText(segment));
  }
  const end = path.endsWith('/') && segments.length > 0 ? '/' : '';
  return `/${segments.join('/')}${end}`;
}

/** `a+b(%c3)` and `a%2Bb%28%C3%29` are the same key to S3, and it signs the second. */
function rewritten(segment: string): string {
  const bytes = segment.replaceAll(/%([0-9A-Fa-f]{2})/g, (_, hex: string) =>
    String.fromCodePoint(Number.parseInt(hex, 16)),
  );
  return percentEncodeText(bytes);
}

/** Whether the service has S3's rules for paths and payloads. */
export function isS3(service: string): boolean {
  return service === 's3' || service.startsWith('s3-') || service === 's3express';
}

/** Percent-encoded and sorted by name, then by value: by bytes, not by a locale. */
export function canonicalQuery(parameters: QueryParameters): string {
  return parameters
    .map(([name, value]): [string, string] => [percentEncodeText(name), percentEncodeText(value)])
    .toSorted(([a, x], [b, y]) => (a < b ? -1 : a > b ? 1 : x < y ? -1 : x > y ? 1 : 0))
    .map(([name, value]) => `${name}=${value}`)
    .join('&');
}
