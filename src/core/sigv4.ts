import { createHash, createHmac } from 'node:crypto';

/** Who signs. The secret stays the caller's, who wipes it. */
export interface SigningIdentity {
  readonly accessKeyId: string;
  readonly secretAccessKey: Buffer;
}

/** For whom a signature is, beside its day. */
export interface SigningScope {
  readonly region: string;
  readonly service: string;
}

/** What is signed of a request. */
export interface SignedRequest {
  readonly method: string;
  /** As `canonicalPath` makes it. */
  readonly path: string;
  /** As `canonicalQuery` makes it. */
  readonly query: string;
  /** Every header to sign, `host` among them; a name in any case. */
  readonly headers: Iterable<readonly [name: string, value: string]>;
  /** Hexadecimal SHA-256 of the body, or one of S3's markers. */
  readonly payloadHash: string;
}

/** A signature and what goes with it into the Authorization header, or into the query. */
export interface Signature {
  readonly credential: string;
  readonly signedHeaders: string;
  readonly signature: string;
}

/** Name of the algorithm, as it stands in a request. */
export const algorithm = 'AWS4-HMAC-SHA256';
/** The payload hash of an empty body. */
export const emptyPayload = sha256Hex('');

/** Hexadecimal SHA-256, as a payload hash is. */
export function sha256Hex(data: Buffer | string): string {
  return createHash('sha256').update(data).digest('hex');
}

/** `20260102T030405Z`. */
export function amzDate(at: Date): string {
  return at.toISOString().replaceAll(/[-:]|\.\d{3}/g, '');
}

/** RFC 3986: all but letters, digits and `-_.~` is escaped, in capitals. `encodeURIComponent` leaves five more. */
export function uriEncode(text: string): string {
  return encodeURIComponent(text).replaceAll(
    /[!'()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

/** Sorted by encoded name, then value; a key without a value has an empty one. */
export function canonicalQuery(parameters: Iterable<readonly [name: string, value: string]>): string {
  return [...parameters]
    .map(([name, value]) => [uriEncode(name), uriEncode(value)] as const)
    .toSorted(([a, x], [b, y]) => compare(a, b) || compare(x, y))
    .map(([name, value]) => `${name}=${value}`)
    .join('&');
}

/**
 * The path as it is signed. S3 signs what is on the wire; all others drop `.`, `..` and empty segments and encode the
 * already encoded path once more.
 */
export function canonicalPath(wirePath: string, service: string): string {
  if (service === 's3') return wirePath || '/';
  const segments: string[] = [];
  for (const segment of wirePath.split('/')) {
    if (segment === '..') segments.pop();
    else if (segment !== '' && segment !== '.') segments.push(uriEncode(segment));
  }
  const closed = segments.length > 0 && /\/\.{0,2}$/.test(wirePath);
  return `/${segments.join('/')}${closed ? '/' : ''}`;
}

/** Signs (Signature Version 4). `date` is what `amzDate` makes, and must be in the request too. */
export function signV4(
  request: SignedRequest,
  { accessKeyId, secretAccessKey }: SigningIdentity,
  { region, service }: SigningScope,
  date: string,
): Signature {
  const headers = [...request.headers]
    .map(([name, value]) => [name.toLowerCase(), value.trim().replaceAll(/ +/g, ' ')] as const)
    .toSorted(([a], [b]) => compare(a, b));
  const signedHeaders = headers.map(([name]) => name).join(';');
  const canonical = [
    request.method,
    request.path,
    request.query,
    ...headers.map(([name, value]) => `${name}:${value}`),
    '',
    signedHeaders,
    request.payloadHash,
  ].join('\n');

  const day = date.slice(0, 8);
  const scope = `${day}/${region}/${service}/aws4_request`;
  const toSign = [algorithm, date, scope, sha256Hex(canonical)].join('\n');
  const key = signingKey(secretAccessKey, day, { region, service });
  const signature = createHmac('sha256', key).update(toSign).digest('hex');
  key.fill(0);
  return { credential: `${accessKeyId}/${scope}`, signedHeaders, signature };
}

/** Value of the Authorization header. */
export function authorizationOf({ credential, signedHeaders, signature }: Signature): string {
  return `${algorithm} Credential=${credential}, SignedHeaders=${signedHeaders}, Signature=${signature}`;
}

/**
 * A query that carries its own signature (a presigned URL), valid for `expires` seconds; only `host` is signed.
 * The session token is part of what is signed.
 */
export function presignedQuery(
  request: Pick<SignedRequest, 'method' | 'path'> & {
    readonly host: string;
    readonly parameters: Iterable<readonly [name: string, value: string]>;
    readonly expires: number;
    readonly sessionToken: string | undefined;
  },
  identity: SigningIdentity,
  scope: SigningScope,
  date: string,
): string {
  const { region, service } = scope;
  const query = canonicalQuery([
    ...request.parameters,
    ['X-Amz-Algorithm', algorithm],
    ['X-Amz-Credential', `${identity.accessKeyId}/${date.slice(0, 8)}/${region}/${service}/aws4_request`],
    ['X-Amz-Date', date],
    ['X-Amz-Expires', String(request.expires)],
    ...(request.sessionToken === undefined ? [] : [['X-Amz-Security-Token', request.sessionToken] as const]),
    ['X-Amz-SignedHeaders', 'host'],
  ]);
  const { method, path, host } = request;
  const signed = { method, path, query, headers: [['host', host]] as const, payloadHash: emptyPayload };
  return `${query}&X-Amz-Signature=${signV4(signed, identity, scope, date).signature}`;
}

/** The key of one day, region and service. It is as good as the secret for that day: the caller wipes it. */
export function signingKey(secretAccessKey: Buffer, day: string, { region, service }: SigningScope): Buffer {
  const seed = Buffer.allocUnsafeSlow(4 + secretAccessKey.length);
  seed.write('AWS4', 'latin1');
  secretAccessKey.copy(seed, 4);
  let key = seed;
  for (const part of [day, region, service, 'aws4_request']) {
    const next = createHmac('sha256', key).update(part).digest();
    key.fill(0);
    key = next;
  }
  return key;
}

/** By code unit, not by locale. */
function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
