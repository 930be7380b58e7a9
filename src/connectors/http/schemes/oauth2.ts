import { createHmac, randomBytes } from 'node:crypto';

import { formOf, percentEncode, wipe } from '../../../core/bytes.ts';
import type { Credentials } from '../../../core/credentials.ts';
import { PosternError } from '../../../core/errors.ts';
import type { JsonBytes } from '../../../core/json-bytes.ts';
import { basicLine, bearerLine, FixedInjection, headerLine, unusable } from './fixed.ts';
import type { Injection, Scheme } from './scheme.ts';
import { valueOf } from './template.ts';
import { post, secondsIn, type TokenAnswer, type TokenEndpoint, usefulLife } from './token-endpoint.ts';

/** Settings of `authenticate.oauth2`: names of credentials, and what to ask the server for. */
export interface OAuth2Settings {
  readonly endpoint: TokenEndpoint;
  readonly grant: 'client_credentials' | 'refresh_token';
  readonly clientId: string;
  readonly clientSecret: string | undefined;
  readonly refreshToken: string | undefined;
  readonly clientAuth: 'basic' | 'body';
  /** Further parameters, such as `scope`. */
  readonly parameters: Readonly<Record<string, string>>;
  /** `Authorization` or another header, which has the token alone. */
  readonly header: string;
  /** Milliseconds that a token is used whose server does not say how long it lives. */
  readonly defaultLifetime: number;
}

/** OAuth 2.0 (RFC 6749): an access token that is asked for with the credentials, and used until shortly before its end. */
export function oauth2(settings: OAuth2Settings, now: () => number = Date.now): Scheme {
  const tokens = new Tokens(settings, now);
  return {
    ownedHeaders: [settings.header.toLowerCase()],
    ownedQuery: [],
    async prepare(credentials, signal) {
      using token = await tokens.get(credentials, signal);
      return { value: injectionOf(settings, token.bytes), expiresAt: new Date(token.expiresAt) };
    },
    close: () => tokens[Symbol.dispose](),
  };
}

function injectionOf({ header, endpoint }: OAuth2Settings, token: Buffer): Injection {
  const what = `the access token of ${endpoint.url.host}`;
  return new FixedInjection(
    header.toLowerCase() === 'authorization' ? bearerLine(token, what) : headerLine(header, token, what),
  );
}

/** An access token on its way into requests; disposing overwrites it. */
class AccessToken implements Disposable {
  readonly bytes: Buffer;
  /** Milliseconds since the epoch after which another one is needed. */
  readonly expiresAt: number;

  constructor(bytes: Buffer, expiresAt: number) {
    this.bytes = bytes;
    this.expiresAt = expiresAt;
  }

  [Symbol.dispose](): void {
    this.bytes.fill(0);
  }
}

/**
 * The access tokens of one service, one after the other.
 *
 * A question that is under way goes on when nobody waits for it any more: a server that rotates refresh tokens has
 * taken the old one back by then, and its answer holds the only one that is good (RFC 6749, section 10.4).
 */
class Tokens implements Disposable {
  readonly #settings: OAuth2Settings;
  readonly #now: () => number;
  readonly #key = randomBytes(32);
  readonly #closed = new AbortController();
  /** Which credentials all of the following belongs to. */
  #fingerprint = '';
  #flight: Promise<void> | undefined;
  #landed: AccessToken | undefined;
  /** In place of the configured one, once the server has exchanged it. */
  #refreshToken: Buffer | undefined;
  /** The server does not take these credentials any more, whatever is tried. */
  #final: PosternError | undefined;

  constructor(settings: OAuth2Settings, now: () => number) {
    this.#settings = settings;
    this.#now = now;
  }

  /** The caller disposes of it. */
  async get(credentials: Credentials, signal: AbortSignal): Promise<AccessToken> {
    const fingerprint = this.#fingerprintOf(credentials);
    for (;;) {
      signal.throwIfAborted();
      if (this.#fingerprint !== fingerprint) {
        // A question with the credentials before these may still be under way: its answer is not for us.
        this.#forget();
        this.#fingerprint = fingerprint;
      }
      if (this.#final) throw this.#final;
      const landed = this.#landed;
      this.#landed = undefined;
      if (landed && landed.expiresAt > this.#now()) return landed;
      landed?.[Symbol.dispose]();
      this.#flight ??= this.#takeOff(credentials, fingerprint);
      await untilAborted(this.#flight, signal);
    }
  }

  #takeOff(credentials: Credentials, fingerprint: string): Promise<void> {
    const current = () => this.#fingerprint === fingerprint;
    const flight = this.#ask(credentials, current).finally(() => {
      if (this.#flight === flight) this.#flight = undefined;
    });
    // Whoever waits gets the failure; when nobody does, it is nobody's.
    flight.catch(() => {});
    return flight;
  }

  async #ask(credentials: Credentials, current: () => boolean): Promise<void> {
    const { endpoint } = this.#settings;
    const { headers, body } = this.#request(credentials);
    const asked = this.#now();
    try {
      using answer = await post(endpoint, headers, body, this.#closed.signal);
      const json = granted(answer, endpoint.url.host);
      const rotated = json.get('refresh_token')?.copy();
      // Before anything else may fail: the old one is dead.
      if (rotated && rotated.length > 0 && current()) {
        this.#refreshToken?.fill(0);
        this.#refreshToken = rotated;
      } else rotated?.fill(0);
      const token = this.#accessToken(json, asked);
      if (current()) this.#landed = token;
      else token[Symbol.dispose]();
    } catch (thrown) {
      if (thrown instanceof FinalRefusal) {
        if (current()) this.#final = thrown.error;
        throw thrown.error;
      }
      throw thrown;
    } finally {
      wipe(body, ...headers);
    }
  }

  #request(credentials: Credentials): { readonly headers: Buffer[]; readonly body: Buffer } {
    const { grant, clientId, clientSecret, refreshToken, clientAuth, parameters } = this.#settings;
    const headers: Buffer[] = [
      Buffer.from('Content-Type: application/x-www-form-urlencoded\r\nAccept: application/json\r\n'),
    ];
    const form: Record<string, Buffer | string> = { grant_type: grant };
    if (refreshToken !== undefined) {
      const token = this.#refreshToken ?? valueOf(refreshToken, credentials);
      if (token.length === 0) throw unusable(refreshToken, 'is empty');
      form['refresh_token'] = token;
    }
    Object.assign(form, parameters);
    const id = valueOf(clientId, credentials);
    if (id.length === 0) throw unusable(clientId, 'is empty');
    const secret = clientSecret === undefined ? undefined : valueOf(clientSecret, credentials);
    if (secret && clientAuth === 'basic') {
      // RFC 6749, section 2.3.1: each of the two is form-encoded first.
      const halves = [percentEncode(id, '+'), percentEncode(secret, '+')] as const;
      headers.push(basicLine(...halves));
      wipe(...halves);
    } else {
      form['client_id'] = id;
      if (secret) form['client_secret'] = secret;
    }
    return { headers, body: formOf(form) };
  }

  #accessToken(json: JsonBytes, asked: number): AccessToken {
    const { host } = this.#settings.endpoint.url;
    const type = json.get('token_type')?.publicText()?.toLowerCase();
    if (type !== 'bearer')
      throw new PosternError(
        'PROVIDER_FAILED',
        `${host} gave a token of ${type === undefined ? 'no type' : 'another type than "bearer"'}, which cannot be sent`,
      );
    const lifetime = json.get('expires_in');
    const seconds = secondsIn(json, 'expires_in');
    const unlimited = lifetime === undefined || lifetime.kind === 'null';
    if (!unlimited && (seconds === undefined || seconds === 0))
      throw new PosternError(
        'PROVIDER_FAILED',
        `${host} gave a token whose expires_in is no number of seconds`,
      );
    const life = Math.min(seconds === undefined ? this.#settings.defaultLifetime : seconds * 1000, LONGEST);
    const bytes = json.get('access_token')?.copy();
    if (!bytes || bytes.length === 0)
      throw new PosternError('PROVIDER_FAILED', `${host} answered without an access_token`);
    return new AccessToken(bytes, asked + usefulLife(life));
  }

  /** Says whether credentials are the same, and nothing else about them. */
  #fingerprintOf(credentials: Credentials): string {
    const { clientId, clientSecret, refreshToken } = this.#settings;
    const hmac = createHmac('sha256', this.#key);
    for (const name of [clientId, clientSecret, refreshToken]) {
      if (name === undefined) continue;
      const bytes = valueOf(name, credentials);
      hmac.update(`${bytes.length}:`).update(bytes);
    }
    return hmac.digest('base64');
  }

  #forget(): void {
    this.#flight = undefined;
    this.#final = undefined;
    this.#landed?.[Symbol.dispose]();
    this.#landed = undefined;
    this.#refreshToken?.fill(0);
    this.#refreshToken = undefined;
  }

  [Symbol.dispose](): void {
    this.#forget();
    this.#fingerprint = '';
    this.#closed.abort(new PosternError('SHUTDOWN', 'the service has ended'));
  }
}

/** No token is used longer than this, whatever its server says: 30 days in milliseconds. */
const LONGEST = 30 * 24 * 3_600_000;

/** Asking again with the same credentials is pointless, and can make a server suspicious. */
class FinalRefusal extends Error {
  readonly error: PosternError;

  constructor(error: PosternError) {
    super();
    this.error = error;
  }
}

/** What RFC 6749 (section 5.2) and servers say; any other word is not repeated: it could be anything. */
const known: ReadonlySet<string> = new Set(
  'invalid_request invalid_client invalid_grant unauthorized_client unsupported_grant_type invalid_scope invalid_target access_denied bad_refresh_token incorrect_client_credentials interaction_required consent_required'.split(
    ' ',
  ),
);
const passing: ReadonlySet<string> = new Set(['server_error', 'temporarily_unavailable', 'slow_down']);

/** The answer that grants a token. Throws what any other one means. */
function granted({ status, json }: TokenAnswer, host: string): JsonBytes {
  if (status === 429 || status >= 500)
    throw new PosternError(
      'PROVIDER_UNAVAILABLE',
      `${host} answered ${status} when it was asked for a token`,
    );
  if (status >= 300 && status < 400)
    throw new PosternError(
      'PROVIDER_FAILED',
      `${host} answered with a redirect (${status}), which is not followed`,
    );
  // Some servers say what is wrong with a 200.
  const word = json?.get('error')?.publicText();
  if (word !== undefined) {
    if (passing.has(word))
      throw new PosternError('PROVIDER_UNAVAILABLE', `${host} cannot give a token now (${word})`);
    const said = known.has(word) ? word : `an error of its own, status ${status}`;
    const error = new PosternError('PROVIDER_FAILED', `${host} gives no token: ${said}`);
    if (word === 'invalid_grant' || word === 'bad_refresh_token') throw new FinalRefusal(error);
    throw error;
  }
  if (status !== 200 || !json)
    throw new PosternError(
      'PROVIDER_FAILED',
      `${host} answered ${status} when it was asked for a token, and not with JSON that says why`,
    );
  return json;
}

/** `promise`, or the signal's reason as soon as it aborts. */
async function untilAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason as Error);
  signal.addEventListener('abort', abort);
  try {
    await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
