import { PosternError } from '../../core/errors.ts';
import { Secret } from '../../core/secret.ts';
import { untilAborted } from '../deadline.ts';
import { jsonObject } from '../json-bytes.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile, withoutLineEnd } from '../secret-file.ts';
import type { Call, Reply, VaultClient } from './client.ts';
import { encodePath } from './reference.ts';
import { type AuthSettings, tokenFileOfTheCommandLine, variable } from './settings.ts';

/** How long a path stays denied that was denied to a token fresh from a login, before another login is tried. */
const denialHolds = 10_000;
/** Revoking the token must not hold up the end of the program. */
const revokeTimeout = 2000;

/**
 * The token that requests are made with: read or logged in for when it is first needed, shared, and replaced when
 * it is about to expire or is refused. There are no timers; expiry is looked at when the token is used.
 */
export class Tokens {
  readonly #auth: AuthSettings;
  readonly #client: VaultClient;
  readonly #context: ProviderContext;
  readonly #denied = new Map<string, number>();
  #current: Token | undefined;
  #flight: Flight | undefined;

  constructor(auth: AuthSettings, client: VaultClient, context: ProviderContext) {
    this.#auth = auth;
    this.#client = client;
    this.#context = context;
  }

  /** Makes a request with the token. A 403 may mean that the token has died, so it leads to one new token and one repetition. */
  async call(call: Call, signal: AbortSignal): Promise<Reply> {
    const token = await this.#borrow(signal);
    if (!token) return await this.#client.call(call, signal);
    let another: Token | undefined;
    try {
      const first = await this.#client.call({ ...call, token: token.secret }, signal);
      if (first.status !== 403 || this.#wasDenied(call.path)) return first;
      another = await this.#borrowAnother(token, signal);
      if (!another) return first;
      first[Symbol.dispose]();
      const second = await this.#client.call({ ...call, token: another.secret }, signal);
      if (second.status === 403) this.#rememberDenial(call.path);
      return second;
    } finally {
      token.giveBack();
      another?.giveBack();
    }
  }

  /** Is there a token, or can one be had? */
  async check(signal: AbortSignal): Promise<void> {
    (await this.#borrow(signal))?.giveBack();
  }

  /** Revokes the token if a login made it; one that was given to Postern is not Postern's to revoke. */
  async close(signal: AbortSignal): Promise<void> {
    this.#flight?.controller.abort(
      new PosternError('SHUTDOWN', `provider "${this.#context.name}" was closed`),
    );
    const token = this.#current;
    this.#current = undefined;
    if (!token) return;
    try {
      if (token.revocable) await this.#revoke(token, signal);
    } catch (thrown) {
      this.#context.log.warn(`token not revoked: ${PosternError.from(thrown).message}`);
    } finally {
      token.retire();
    }
  }

  async #revoke(token: Token, signal: AbortSignal): Promise<void> {
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(revokeTimeout)]);
    const call: Call = {
      method: 'POST',
      path: 'auth/token/revoke-self',
      token: token.secret,
      retries: 0,
      purpose: 'revoking the token',
    };
    using answer = await this.#client.call(call, bounded);
    if (answer.status !== 200 && answer.status !== 204) throw this.#client.refusal(call, answer);
  }

  async #borrow(signal: AbortSignal): Promise<Token | undefined> {
    if (this.#auth.method === 'none') return undefined;
    for (;;) {
      const current = this.#current;
      if (current?.expired()) this.#drop(current);
      else if (current?.borrow()) return current;
      // A fresh one is used even when its life is too short for us. It may have been replaced already, by another
      // request that was refused with it.
      const fresh = await this.#obtain(signal);
      if (fresh.borrow()) return fresh;
    }
  }

  /** Another token than the refused one; undefined when there is none to be had. */
  async #borrowAnother(refused: Token, signal: AbortSignal): Promise<Token | undefined> {
    if (this.#current === refused && !refused.fromLogin) {
      const reread = await this.#obtain(signal);
      if (reread.equals(refused)) return undefined;
    } else {
      this.#drop(refused);
    }
    return await this.#borrow(signal);
  }

  #drop(token: Token): void {
    if (this.#current === token) this.#current = undefined;
    token.retire();
  }

  /** All who need a token at once share one login, which goes on while one of them still waits for it. */
  async #obtain(signal: AbortSignal): Promise<Token> {
    const flight = this.#flight ?? this.#takeOff();
    flight.waiting++;
    try {
      return await untilAborted(flight.token, signal, `provider "${this.#context.name}": the login`);
    } finally {
      if (--flight.waiting === 0 && this.#flight === flight) {
        this.#flight = undefined;
        flight.controller.abort();
      }
    }
  }

  #takeOff(): Flight {
    const controller = new AbortController();
    const token = this.#logIn(controller.signal).then((fresh) => {
      this.#current?.retire();
      this.#current = fresh;
      return fresh;
    });
    const flight: Flight = { token, controller, waiting: 0 };
    this.#flight = flight;
    const land = () => {
      if (this.#flight === flight) this.#flight = undefined;
    };
    token.then(land, land);
    return flight;
  }

  async #logIn(signal: AbortSignal): Promise<Token> {
    const auth = this.#auth;
    switch (auth.method) {
      case 'approle':
        return await this.#logInWith('approle', auth.mount, await this.#approle(auth, signal), signal);
      case 'kubernetes': {
        const jwt = await this.#file(auth.jwtFile, signal);
        return await this.#logInWith('kubernetes', auth.mount, { role: Buffer.from(auth.role), jwt }, signal);
      }
      case 'tokenFile':
        return this.#given(await this.#file(auth.path, signal), `the file "${auth.path}"`);
      case 'token':
        return await this.#configuredToken(auth, signal);
      case 'none':
        throw this.#client.error('INTERNAL', 'asked for a token without a method to get one');
    }
  }

  async #configuredToken(
    auth: Extract<AuthSettings, { method: 'token' }>,
    signal: AbortSignal,
  ): Promise<Token> {
    if (auth.token !== undefined) return this.#given(Buffer.from(auth.token), '`auth.token`');
    const { environment } = this.#context;
    if (auth.tokenEnv !== undefined) return this.#given(this.#variable(auth.tokenEnv), auth.tokenEnv);
    const fromVariable = variable(environment, 'TOKEN');
    if (fromVariable !== undefined) return this.#given(Buffer.from(fromVariable), 'VAULT_TOKEN');
    const path = tokenFileOfTheCommandLine(environment);
    try {
      return this.#given(await this.#file(path, signal), `the file "${path}"`);
    } catch (thrown) {
      if (signal.aborted) throw thrown;
      throw this.#client.error(
        'PROVIDER_FAILED',
        `no token: set \`auth\`, or VAULT_TOKEN, or log in with the vault command (${PosternError.from(thrown).message})`,
      );
    }
  }

  async #approle(
    auth: Extract<AuthSettings, { method: 'approle' }>,
    signal: AbortSignal,
  ): Promise<Record<string, Buffer>> {
    const roleId = await this.#value(auth.roleId, auth.roleIdFile, auth.roleIdEnv, signal);
    const secretId = await this.#value(auth.secretId, auth.secretIdFile, auth.secretIdEnv, signal);
    // A role without bind_secret_id has no secret id.
    return { ...(roleId ? { role_id: roleId } : {}), ...(secretId ? { secret_id: secretId } : {}) };
  }

  async #value(
    inline: string | undefined,
    path: string | undefined,
    name: string | undefined,
    signal: AbortSignal,
  ): Promise<Buffer | undefined> {
    if (inline !== undefined) return Buffer.from(inline);
    if (path !== undefined) return await this.#file(path, signal);
    return name === undefined ? undefined : this.#variable(name);
  }

  #variable(name: string): Buffer {
    const { environment } = this.#context;
    const value = Object.hasOwn(environment, name) ? environment[name] : undefined;
    if (!value) throw this.#client.error('PROVIDER_FAILED', `the variable ${name} is not set`);
    return Buffer.from(value);
  }

  async #file(path: string, signal: AbortSignal): Promise<Buffer> {
    try {
      const { bytes } = await readSecretFile(path, signal);
      return bytes;
    } catch (thrown) {
      const { code, message } = PosternError.from(thrown);
      throw this.#client.error(code, message);
    }
  }

  /** Sends a login. `members` are trimmed, and wiped afterwards. */
  async #logInWith(
    method: string,
    mount: string,
    members: Record<string, Buffer>,
    signal: AbortSignal,
  ): Promise<Token> {
    const trimmed = Object.entries(members).map(([key, value]) => [key, trim(value)] as const);
    const body = jsonObject(Object.fromEntries(trimmed));
    const call: Call = {
      method: 'POST',
      path: `auth/${encodePath(mount)}/login`,
      body,
      confidential: trimmed.find(([key]) => key === 'secret_id' || key === 'jwt')?.[1],
      purpose: `${method} login`,
    };
    const startedAt = performance.now();
    try {
      using answer = await this.#client.call(call, signal);
      if (answer.status !== 200) throw this.#client.refusal(call, answer);
      const token = this.#fromLogin(answer, startedAt);
      this.#context.log.debug({ method, expires: token.expiresAt !== Infinity }, 'logged in to Vault');
      return token;
    } finally {
      body.fill(0);
      for (const value of Object.values(members)) value.fill(0);
    }
  }

  #fromLogin(answer: Reply, startedAt: number): Token {
    const auth = answer.json()?.get('auth');
    if (auth?.kind !== 'object') {
      throw this.#client.error('PROVIDER_UNAVAILABLE', 'the answer to the login is not one of Vault');
    }
    const mfa = auth.get('mfa_requirement');
    if (mfa && mfa.kind !== 'null') {
      throw this.#client.error(
        'PROVIDER_FAILED',
        'the login asks for a second factor, which nobody is there to give',
      );
    }
    const text = auth.get('client_token');
    if (text?.kind !== 'string') {
      throw this.#client.error('PROVIDER_UNAVAILABLE', 'the answer to the login has no token');
    }
    const lease = Number(auth.get('lease_duration')?.publicText() ?? 0) * 1000;
    const batch = auth.get('token_type')?.publicText() === 'batch';
    // Replaced a little early, so that it does not die on the way: a tenth of its life, at most half a minute.
    const expiresAt = lease > 0 ? startedAt + lease - Math.min(lease / 10, 30_000) : Infinity;
    return new Token(this.#checked(text.copy(), 'the login'), {
      expiresAt,
      fromLogin: true,
      revocable: !batch,
    });
  }

  #given(bytes: Buffer, from: string): Token {
    return new Token(this.#checked(bytes, from), { expiresAt: Infinity, fromLogin: false, revocable: false });
  }

  /** A header takes printable ASCII only; anything else in a token is a wrong file or a lost encoding. */
  #checked(bytes: Buffer, from: string): Secret {
    const text = trim(bytes);
    if (text.length === 0 || text.length > 8192 || !text.every((byte) => byte > 0x20 && byte < 0x7f)) {
      bytes.fill(0);
      const problem = text.length === 0 ? 'is empty' : 'is not a line of printable ASCII';
      throw this.#client.error('PROVIDER_FAILED', `the token from ${from} ${problem}`);
    }
    return new Secret(text);
  }

  #wasDenied(path: string): boolean {
    const until = this.#denied.get(path);
    if (until === undefined) return false;
    if (until > performance.now()) return true;
    this.#denied.delete(path);
    return false;
  }

  /** Keeps a denied path, asked for with every connection, from making as many logins. */
  #rememberDenial(path: string): void {
    if (this.#denied.size >= 1000) this.#denied.clear();
    this.#denied.set(path, performance.now() + denialHolds);
  }
}

interface Flight {
  readonly token: Promise<Token>;
  readonly controller: AbortController;
  waiting: number;
}

interface TokenFacts {
  /** By the monotonic clock, in milliseconds. */
  readonly expiresAt: number;
  readonly fromLogin: boolean;
  readonly revocable: boolean;
}

/** A token and who uses it; wiped when it is replaced and nobody does any more. */
class Token {
  readonly secret: Secret;
  readonly expiresAt: number;
  readonly fromLogin: boolean;
  readonly revocable: boolean;
  #users = 0;
  #retired = false;

  constructor(secret: Secret, { expiresAt, fromLogin, revocable }: TokenFacts) {
    this.secret = secret;
    this.expiresAt = expiresAt;
    this.fromLogin = fromLogin;
    this.revocable = revocable;
  }

  expired(): boolean {
    return performance.now() >= this.expiresAt;
  }

  borrow(): boolean {
    if (!this.#retired) this.#users++;
    return !this.#retired;
  }

  giveBack(): void {
    this.#users--;
    this.#wipeWhenUnused();
  }

  retire(): void {
    this.#retired = true;
    this.#wipeWhenUnused();
  }

  equals(other: Token): boolean {
    return this.secret.reveal().equals(other.secret.reveal());
  }

  #wipeWhenUnused(): void {
    if (this.#retired && this.#users === 0) this.secret.wipe();
  }
}

function trim(bytes: Buffer): Buffer {
  const text = withoutLineEnd(bytes);
  let start = 0;
  let end = text.length;
  while (start < end && isSpace(text[start])) start++;
  while (end > start && isSpace(text[end - 1])) end--;
  return text.subarray(start, end);
}

function isSpace(byte: number | undefined): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d;
}
