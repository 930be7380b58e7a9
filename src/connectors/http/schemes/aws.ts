import { hash } from 'node:crypto';

import { copyOf, join, trimmed } from '../../../core/bytes.ts';
import { PosternError } from '../../../core/errors.ts';
import {
  amzDate,
  authorizationOf,
  canonicalPath,
  canonicalQuery,
  emptyHash,
  isS3,
  type QueryParameters,
  type SignedField,
  SigningKeys,
  type SigningScope,
} from '../../../core/sigv4.ts';
import { awsHostOf, awsScopeOf } from './aws-hosts.ts';
import { unusable } from './fixed.ts';
import { parametersOf, writtenQuery } from './query.ts';
import type { Injection, RequestView, Scheme, Signed, Signer } from './scheme.ts';
import { valueOf } from './template.ts';

/** Settings of `authenticate.aws`: names of credentials, and what every request is signed for. */
export interface AwsSettings {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string | undefined;
  readonly region?: string | undefined;
  readonly service?: string | undefined;
}

const owned = ['authorization', 'x-amz-date', 'x-amz-security-token', 'x-amz-content-sha256'];

/**
 * AWS Signature Version 4. A request that an SDK has signed with a key that means nothing is signed again for the same
 * region, service and time; one without a signature is signed for what its host says.
 */
export function aws(settings: AwsSettings, now: () => number = Date.now): Scheme {
  return {
    ownedHeaders: owned,
    ownedQuery: [],
    prepare(credentials) {
      // A line break at the end, as files have it, is no part of a key; Secretless cuts it off too.
      const value = (name: string) => trimmed(valueOf(name, credentials));
      const accessKeyId = value(settings.accessKeyId);
      const secret = value(settings.secretAccessKey);
      const token = settings.sessionToken === undefined ? undefined : value(settings.sessionToken);
      if (!/^[\w./+=:-]+$/.test(accessKeyId.toString('latin1')))
        throw unusable(settings.accessKeyId, 'is no access key id');
      if (secret.length === 0) throw unusable(settings.secretAccessKey, 'is empty');
      if (token && (token.length === 0 || token.some((byte) => byte <= 0x20 || byte >= 0x7f)))
        throw unusable(settings.sessionToken ?? '', 'is no session token');
      return { value: new AwsInjection(settings, accessKeyId.toString('latin1'), secret, token, now) };
    },
  };
}

/** As Secretless has it: a session token where there is one. */
export function awsSecretless(): Scheme {
  const names = { accessKeyId: 'accessKeyId', secretAccessKey: 'secretAccessKey' };
  return {
    ownedHeaders: owned,
    ownedQuery: [],
    prepare(credentials, signal) {
      const temporary = credentials.has('accessToken') && trimmed(credentials.get('accessToken')).length > 0;
      return aws({ ...names, ...(temporary && { sessionToken: 'accessToken' }) }).prepare(
        credentials,
        signal,
      );
    },
  };
}

/** The host that an SDK would have asked that signed a request so. Throws CLIENT_REFUSED for one that is not signed. */
export function awsEndpointFor(authorization: string): string {
  const { region, service } = scopeIn(/[\s,]Credential=([^\s,]+)/.exec(authorization)?.[1]);
  return awsHostOf(service, region);
}

class AwsInjection implements Injection, Signer {
  readonly headers = Buffer.allocUnsafe(0);
  readonly query = Buffer.allocUnsafe(0);
  readonly signer = this;
  readonly shown: readonly Buffer[];
  readonly #settings: AwsSettings;
  readonly #accessKeyId: string;
  readonly #keys: SigningKeys;
  readonly #token: Buffer | undefined;
  readonly #now: () => number;

  constructor(
    settings: AwsSettings,
    accessKeyId: string,
    secret: Buffer,
    token: Buffer | undefined,
    now: () => number,
  ) {
    this.#settings = settings;
    this.#accessKeyId = accessKeyId;
    this.#keys = new SigningKeys(secret);
    this.#token = token && copyOf(token);
    this.shown = this.#token ? [this.#token] : [];
    this.#now = now;
  }

  [Symbol.dispose](): void {
    this.#keys[Symbol.dispose]();
    this.#token?.fill(0);
  }

  needsBody(request: RequestView): boolean {
    const asked = askedOf(request);
    return payloadOf(request, this.#scope(request, asked).service) === undefined;
  }

  sign(request: RequestView, body: Buffer | undefined): Signed {
    const asked = askedOf(request);
    const time = asked.time ?? amzDate(this.#now());
    const scope = this.#scope(request, asked);
    const payload = payloadOf(request, scope.service) ?? (body ? hash('sha256', body) : emptyHash);

    const toAdd: SignedField[] = [['x-amz-date', time]];
    const declares =
      isS3(scope.service) || scope.service === 'aoss' || cutField(request, 'x-amz-content-sha256');
    if (declares) toAdd.push(['x-amz-content-sha256', payload]);
    if (this.#token) toAdd.push(['x-amz-security-token', this.#token]);

    const authorization = authorizationOf(
      {
        method: request.method,
        path: canonicalPath(asked.path, scope.service),
        query: canonicalQuery(asked.parameters),
        headers: [['host', request.authority], ...toAdd, ...worthSigning(request, asked.signedHeaders)],
        payload,
        time,
        scope,
      },
      this.#accessKeyId,
      this.#keys,
    );
    const lines: Buffer[] = [];
    for (const [name, value] of toAdd)
      lines.push(Buffer.from(`${name}: `), typeof value === 'string' ? Buffer.from(value) : value, lineEnd);
    lines.push(Buffer.from(`Authorization: ${authorization}\r\n`));
    return { headers: join(lines), ...(asked.target !== request.target && { target: asked.target }) };
  }

  /** The configuration pins what it names; the client's own signature says the rest, and then the host. */
  #scope(request: RequestView, asked: Asked): SigningScope {
    const { region, service } = this.#settings;
    if (region !== undefined && service !== undefined) return { region, service };
    const known = asked.scope ?? awsScopeOf(request.origin.host);
    const found = { region: region ?? known?.region, service: service ?? known?.service };
    if (found.region === undefined || found.service === undefined)
      throw refused(
        `the host ${request.origin.host} does not say which ${found.service === undefined ? 'AWS service' : 'region'} it is of; set authenticate.aws.region and authenticate.aws.service`,
      );
    return { region: found.region, service: found.service };
  }
}

const lineEnd = Buffer.from('\r\n');

// ── what the client has asked for ──────────────────────────────────────────────────────────────────────────────

/** A request without the client's own signature, and what that one said. */
interface Asked {
  readonly scope: SigningScope | undefined;
  readonly time: string | undefined;
  readonly signedHeaders: ReadonlySet<string>;
  readonly target: string;
  readonly path: string;
  readonly parameters: QueryParameters;
}

/** QueryParameters of a presigned URL. */
const presigned: ReadonlySet<string> = new Set([
  'x-amz-algorithm',
  'x-amz-credential',
  'x-amz-date',
  'x-amz-expires',
  'x-amz-signedheaders',
  'x-amz-signature',
  'x-amz-security-token',
]);

function askedOf(request: RequestView): Asked {
  const question = request.target.indexOf('?');
  const path = question === -1 ? request.target : request.target.slice(0, question);
  const query = question === -1 ? '' : request.target.slice(question + 1);
  const all = parametersOf(query);
  const parameters = all.filter(([name]) => !presigned.has(name.toLowerCase()));
  const inQuery = new Map(all.map(([name, value]) => [name.toLowerCase(), value]));
  // A `+` is signed as the space that it means, and AWS wants to see it written so.
  const rewritten = parameters.length < all.length || query.includes('+');
  const target = rewritten
    ? [path, writtenQuery(parameters)].filter((part) => part !== '').join('?')
    : request.target;

  if (request.headers.some(([name]) => name.toLowerCase() === 'x-amz-s3session-token'))
    throw refused(
      'the request is signed with a session of S3 Express, whose key Postern does not have; turn it off in the SDK (disableS3ExpressSessionAuth)',
    );
  const authorization = cutField(request, 'authorization');
  const presignedBy = inQuery.get('x-amz-algorithm');
  const algorithm = /^AWS4-\S+/.exec(authorization ?? presignedBy ?? '')?.[0];
  if (algorithm !== undefined && algorithm !== 'AWS4-HMAC-SHA256')
    throw refused(
      `the request is signed with ${algorithm.slice(0, 40)} (SigV4A, for several regions at once), which needs a key of another kind; have the SDK sign for one region`,
    );
  const bare = { target, path, parameters, signedHeaders: new Set<string>() };
  if (algorithm === undefined) return { ...bare, scope: undefined, time: undefined };

  const inHeader = (name: string) => new RegExp(`[\\s,]${name}=([^\\s,]+)`).exec(authorization ?? '')?.[1];
  const credential = authorization === undefined ? inQuery.get('x-amz-credential') : inHeader('Credential');
  const names = authorization === undefined ? inQuery.get('x-amz-signedheaders') : inHeader('SignedHeaders');
  const date = authorization === undefined ? inQuery.get('x-amz-date') : cutField(request, 'x-amz-date');
  return {
    ...bare,
    scope: scopeIn(credential),
    // The client's clock, as Secretless has it: an SDK that has found out its skew sends the server's time.
    time: date !== undefined && /^\d{8}T\d{6}Z$/.test(date) ? date : undefined,
    signedHeaders: new Set((names ?? '').toLowerCase().split(';')),
  };
}

function scopeIn(credential: string | undefined): SigningScope {
  const scope = /\/\d{8}\/([\w-]{1,64})\/([\w-]{1,64})\/aws4_request$/.exec(credential ?? '');
  const [, region, service] = scope ?? [];
  if (region === undefined || service === undefined)
    throw refused(
      'the signature of the request names no region and service (Credential=KEY/DAY/REGION/SERVICE/aws4_request)',
    );
  return { region, service };
}

/** Of the field that the client sent and that was cut; undefined unless there was exactly one. */
function cutField({ cut }: RequestView, wanted: string): string | undefined {
  const found = cut.filter(([name]) => name.toLowerCase() === wanted);
  return found.length === 1 ? found[0]?.[1].trim() : undefined;
}

/** Fields that a hop on the way may change, add or drop, so that a signature over them would fail. */
const changing: ReadonlySet<string> = new Set([
  'authorization',
  'host',
  'content-length',
  'transfer-encoding',
  'connection',
  'keep-alive',
  'te',
  'trailer',
  'upgrade',
  'expect',
  'user-agent',
  'accept-encoding',
  'cache-control',
  'pragma',
  'via',
  'forwarded',
  'from',
  'referer',
  'max-forwards',
  'x-amzn-trace-id',
]);

/** What AWS wants signed, and what the client's own signature covered. */
function worthSigning({ headers }: RequestView, covered: ReadonlySet<string>): SignedField[] {
  const fields: SignedField[] = [];
  for (const [spelled, value] of headers) {
    const name = spelled.toLowerCase();
    if (changing.has(name) || name.startsWith('x-forwarded-') || name.startsWith('proxy-')) continue;
    if (name.startsWith('x-amz-') || name === 'content-type' || name === 'content-md5' || covered.has(name))
      fields.push([name, value]);
  }
  return fields;
}

const streamedUnsigned = 'STREAMING-UNSIGNED-PAYLOAD-TRAILER';

/**
 * What is signed in place of the body: undefined: its hash, for which it has to be seen. Throws CLIENT_REFUSED for a
 * body that has signatures of its own inside, made with the client's key.
 */
function payloadOf(request: RequestView, service: string): string | undefined {
  const { tls } = request.origin;
  const declared = cutField(request, 'x-amz-content-sha256') ?? '';
  if (declared === streamedUnsigned) {
    // The checksum behind the body is no proof against somebody on the way: S3 itself wants TLS here.
    if (!tls) throw refused(`${streamedUnsigned} is for https upstreams only`);
    return declared;
  }
  if (declared.startsWith('STREAMING-'))
    throw refused(
      'each chunk of the body is signed with the client\'s key, which means nothing to AWS; have the SDK send unsigned chunks: a client for https (endpoint or proxy with TLS) does, or turn payload signing off (Java: chunkedEncodingEnabled(false); boto3: s3={"payload_signing_enabled": False}; Go: v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)',
    );
  if (/^[0-9a-f]{64}$/.test(declared)) return declared;
  if (declared === 'UNSIGNED-PAYLOAD' && tls) return declared;
  if (request.framing === 'none' || request.contentLength === 0) return emptyHash;
  return isS3(service) && tls ? 'UNSIGNED-PAYLOAD' : undefined;
}

function refused(message: string): PosternError {
  return new PosternError('CLIENT_REFUSED', message);
}
