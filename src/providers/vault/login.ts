import { createHmac, randomBytes } from 'node:crypto';
import { stat } from 'node:fs/promises';

import { copyOf, trimmed } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import { jsonObject } from '../../core/json-bytes.ts';
import { Secret } from '../../core/secret.ts';
import { untilAborted } from '../deadline.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile, withoutLineEnd } from '../secret-file.ts';
import { type Call, notVault, type Reply, type VaultClient } from './client.ts';
import { encodePath } from './reference.ts';
import { type AuthSettings, tokenFileOfTheCommandLine, variable } from './settings.ts';

/** A token, and what is known of its life when it is got. */
export interface NewToken {
  readonly secret: Secret;
  /** Made by a login of Postern's, so that another can be made and this one is Postern's to revoke. */
  readonly fromLogin: boolean;
  /** By the monotonic clock, when it was asked for. */
  readonly bornAt: number;
  /** Milliseconds from then; Infinity: it never expires; undefined: nobody has said. */
  readonly life: number | undefined;
  readonly renewable: boolean;
  /** A batch token cannot be revoked. */
  readonly revocable: boolean;
  /** How many requests it is good for; undefined: any number. */
  readonly uses: number | undefined;
}

type Approle = Extract<AuthSettings, { method: 'approle' }>;

/** A refused login is not tried again with the same values before this; each time twice as long, up to the last. */
const backoff = { PROVIDER_FAILED: [1000, 10_000], PROVIDER_UNAVAILABLE: [200, 2000] } as const;

/** Gets tokens: by a login, from a file, from a variable. */
export class Logins {
  readonly #auth: AuthSettings;
  readonly #client: VaultClient;
  readonly #context: ProviderContext;
  readonly #key = randomBytes(32);
  #refused: { readonly what: string; readonly error: PosternError; count: number; until: number } | undefined;
  #unwrapped: Unwrapped | undefined;
  /** The wrapping token that was sent to be unwrapped, and no answer came. */
  #lostUnwrap: string | undefined;

  constructor(auth: AuthSettings, client: VaultClient, context: ProviderContext) {
    this.#auth = auth;
    this.#client = client;
    this.#context = context;
  }

  /** A fresh token, or one that was given. */
  async obtain(signal: AbortSignal): Promise<NewToken> {
    const auth = this.#auth;
    switch (auth.method) {
      case 'approle':
        return await this.#logIn(`${auth.mount}/login`, await this.#approle(auth, signal), signal);
      case 'kubernetes': {
        const jwt = await this.#file(auth.jwtFile, signal);
        return await this.#logIn(`${auth.mount}/login`, { role: Buffer.from(auth.role), jwt }, signal);
      }
      case 'jwt': {
        const jwt = await this.#file(auth.jwtFile, signal);
        const role = auth.role === undefined ? {} : { role: Buffer.from(auth.role) };
        return await this.#logIn(`${auth.mount}/login`, { ...role, jwt }, signal);
      }
      case 'userpass':
      case 'ldap': {
        const password = await this.#value(auth.password, auth.passwordFile, auth.passwordEnv, signal);
        return await this.#logIn(
          `${auth.mount}/login/${auth.username}`,
          password ? { password } : {},
          signal,
        );
      }
      case 'cert': {
        const name = auth.name === undefined ? {} : { name: Buffer.from(auth.name) };
        return await this.#logIn(`${auth.mount}/login`, name, signal);
      }
      case 'tokenFile':
        return this.#given(await this.#file(auth.path, signal), `the file "${auth.path}"`);
      case 'token':
        return await this.#configuredToken(auth, signal);
      case 'none':
        throw this.#client.error('INTERNAL', 'asked for a token without a method to get one');
    }
  }

  /** Changes when the file with the token does; undefined where there is none. */
  async fileMark(): Promise<string | undefined> {
    if (this.#auth.method !== 'tokenFile') return undefined;
    try {
      const { ino, mtimeMs, size } = await stat(this.#auth.path);
      return `${ino}:${mtimeMs}:${size}`;
    } catch {
      return undefined;
    }
  }

  close(): void {
    this.#unwrapped?.secretId?.wipe();
    this.#unwrapped = undefined;
    this.#key.fill(0);
  }

  async #configuredToken(
    auth: Extract<AuthSettings, { method: 'token' }>,
    signal: AbortSignal,
  ): Promise<NewToken> {
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

  async #approle(auth: Approle, signal: AbortSignal): Promise<Record<string, Buffer>> {
    const roleId = await this.#value(auth.roleId, auth.roleIdFile, auth.roleIdEnv, signal);
    const given = await this.#value(auth.secretId, auth.secretIdFile, auth.secretIdEnv, signal);
    const secretId = given && auth.secretIdWrapped ? await this.#unwrapOnce(auth, given, signal) : given;
    // A role without bind_secret_id has no secret id.
    return { ...(roleId ? { role_id: roleId } : {}), ...(secretId ? { secret_id: secretId } : {}) };
  }

  /**
   * A wrapping token can be used once, by whoever comes first: that it is used up is how an interception shows
   * (response wrapping, "Response wrapping token validation"). What it held is kept for later logins.
   */
  async #unwrapOnce(auth: Approle, given: Buffer, signal: AbortSignal): Promise<Buffer> {
    const token = new Secret(trimmed(given));
    const of = this.#fingerprint(token.reveal());
    if (this.#unwrapped?.of !== of) {
      this.#unwrapped?.secretId?.wipe();
      const fresh: Unwrapped = { of, secretId: undefined, done: Promise.resolve(), sent: false };
      // Not ended by the caller's signal: the secret id would be lost on its way, and the alarm false.
      this.#unwrapped = fresh;
      fresh.done = this.#unwrap(auth, token, fresh).finally(() => token.wipe());
      fresh.done.catch((thrown: unknown) => {
        // An alarm stays until another token is there; after an outage the same one is tried again.
        if (PosternError.from(thrown).code === 'PROVIDER_FAILED') return;
        if (fresh.sent) this.#lostUnwrap = of;
        if (this.#unwrapped === fresh) this.#unwrapped = undefined;
      });
    } else {
      token.wipe();
    }
    const mine = this.#unwrapped;
    await untilAborted(mine.done, signal, this.#client.naming('unwrapping the secret id'));
    const bytes = mine.secretId?.reveal();
    if (!bytes) throw this.#client.error('PROVIDER_FAILED', 'the unwrapped secret id is not there any more');
    return copyOf(bytes);
  }

  async #unwrap(auth: Approle, token: Secret, into: Unwrapped): Promise<void> {
    const patient = new AbortController().signal;
    const purpose = 'unwrapping the secret id';
    const body = jsonObject({ token: token.reveal() });
    const lookup: Call = {
      method: 'POST',
      path: 'sys/wrapping/lookup',
      body,
      confidential: [token.reveal()],
      seenThrough: true,
      purpose,
    };
    try {
      using found = await this.#client.call(lookup, patient);
      if (found.status !== 200) throw this.#notUnwrapped(lookup, found, into.of);
      const path = found.json()?.get('data')?.get('creation_path')?.publicText() ?? '';
      // Whoever took the token can wrap something else and leave that in its place.
      if (!isSecretIdPath(path, auth.mount))
        throw this.#alarm('the wrapping token does not come from this role');
    } finally {
      body.fill(0);
    }
    const call: Call = {
      method: 'POST',
      path: 'sys/wrapping/unwrap',
      token,
      retries: 0,
      seenThrough: true,
      purpose,
    };
    into.sent = true;
    using answer = await this.#client.call(call, patient);
    if (answer.status !== 200) throw this.#notUnwrapped(call, answer, into.of);
    const value = answer.json()?.get('data')?.get('secret_id');
    if (value?.kind !== 'string')
      throw this.#client.error('PROVIDER_FAILED', `${purpose}: no secret_id was wrapped`);
    const secretId = new Secret(value.copy());
    // Closed meanwhile: nobody will ask for it.
    if (this.#unwrapped === into) into.secretId = secretId;
    else secretId.wipe();
  }

  #notUnwrapped(call: Call, reply: Reply, of: string): PosternError {
    if (reply.status !== 400 && reply.status !== 403 && reply.status !== 404)
      return this.#client.refusal(call, reply);
    if (this.#lostUnwrap === of) {
      const text = 'the wrapping token is used up: it was sent before, and no answer came. Deliver a new one';
      return this.#client.error('PROVIDER_FAILED', text);
    }
    return this.#alarm('the wrapping token was already used, or has expired');
  }

  #alarm(what: string): PosternError {
    const text = `possible interception: ${what}. Somebody else may hold the secret id: find out who unwrapped it, destroy it, and deliver a new one`;
    this.#context.log.error(this.#client.naming(text));
    return this.#client.error('PROVIDER_FAILED', text);
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
  async #logIn(path: string, members: Record<string, Buffer>, signal: AbortSignal): Promise<NewToken> {
    const { method } = this.#auth;
    const sent = Object.entries(members).map(
      ([key, value]) => [key, key === 'password' ? withoutLineEnd(value) : trimmed(value)] as const,
    );
    const secret = sent.find(([key]) => confidentialKeys.has(key))?.[1] ?? Buffer.of();
    let body: Buffer | undefined;
    let escaped: Buffer | undefined;
    try {
      body = jsonObject(Object.fromEntries(sent));
      // As it stands in the body, which a server may quote: `{"":"` and `"}` are around it.
      escaped = jsonObject({ '': secret });
      const what = this.#fingerprint(body);
      this.#refuseTooSoon(what);
      const call: Call = {
        method: 'POST',
        path: `auth/${encodePath(path)}`,
        body,
        confidential: [secret, escaped.subarray(5, -2)],
        purpose: `${method} login`,
      };
      const bornAt = performance.now();
      try {
        using answer = await this.#client.call(call, signal);
        if (answer.status !== 200) throw this.#client.refusal(call, answer);
        const token = this.#fromLogin(call, answer, bornAt);
        this.#refused = undefined;
        this.#context.log.debug({ method, expires: token.life !== Infinity }, 'logged in to Vault');
        return token;
      } catch (thrown) {
        this.#rememberRefusal(what, PosternError.from(thrown));
        throw thrown;
      }
    } finally {
      body?.fill(0);
      escaped?.fill(0);
      for (const value of Object.values(members)) value.fill(0);
    }
  }

  /** The same values would be refused again, and Vault locks a user out who is refused too often. */
  #refuseTooSoon(what: string): void {
    if (this.#refused?.what === what && performance.now() < this.#refused.until) throw this.#refused.error;
  }

  #rememberRefusal(what: string, error: PosternError): void {
    if (error.code !== 'PROVIDER_FAILED' && error.code !== 'PROVIDER_UNAVAILABLE') return;
    const [first, longest] = backoff[error.code];
    const count = this.#refused?.what === what ? this.#refused.count + 1 : 0;
    const pause = Math.min(first * 2 ** Math.min(count, 16), longest) * (0.8 + 0.4 * Math.random());
    this.#refused = { what, error, count, until: performance.now() + pause };
  }

  #fromLogin(call: Call, answer: Reply, bornAt: number): NewToken {
    const auth = answer.json()?.get('auth');
    if (auth?.kind !== 'object') throw this.#client.refusal(call, answer, notVault);
    const mfa = auth.get('mfa_requirement');
    if (mfa && mfa.kind !== 'null') {
      const text = 'the login asks for a second factor, which nobody is there to give';
      throw this.#client.error('PROVIDER_FAILED', text);
    }
    const text = auth.get('client_token');
    if (text?.kind !== 'string')
      throw this.#client.error('PROVIDER_UNAVAILABLE', 'the answer to the login has no token');
    const seconds = secondsIn(auth.get('lease_duration')?.publicText());
    const uses = secondsIn(auth.get('num_uses')?.publicText());
    const batch = auth.get('token_type')?.publicText() === 'batch';
    return {
      secret: this.#checked(text.copy(), 'the login', 'PROVIDER_FAILED'),
      fromLogin: true,
      bornAt,
      life: seconds > 0 ? seconds * 1000 : Infinity,
      // A renewal is a use, too.
      renewable: !batch && uses === 0 && auth.get('renewable')?.publicText() === 'true',
      revocable: !batch,
      uses: uses > 0 ? uses : undefined,
    };
  }

  #given(bytes: Buffer, from: string): NewToken {
    return {
      // An Agent that has just started has made its file, and nothing in it yet.
      secret: this.#checked(bytes, from, 'PROVIDER_UNAVAILABLE'),
      fromLogin: false,
      bornAt: performance.now(),
      life: undefined,
      renewable: false,
      revocable: false,
      uses: undefined,
    };
  }

  /** A header takes printable ASCII only; anything else in a token is a wrong file or a lost encoding. */
  #checked(bytes: Buffer, from: string, whenEmpty: 'PROVIDER_FAILED' | 'PROVIDER_UNAVAILABLE'): Secret {
    const text = trimmed(bytes);
    if (text.length === 0) throw this.#client.error(whenEmpty, `the token from ${from} is empty`);
    if (text.length > 8192 || !text.every((byte) => byte > 0x20 && byte < 0x7f)) {
      bytes.fill(0);
      throw this.#client.error('PROVIDER_FAILED', `the token from ${from} is not a line of printable ASCII`);
    }
    return new Secret(text);
  }

  /** Tells values apart that were sent, without keeping them. */
  #fingerprint(bytes: Buffer): string {
    return createHmac('sha256', this.#key).update(bytes).digest('base64');
  }
}

interface Unwrapped {
  /** Fingerprint of the wrapping token. */
  readonly of: string;
  secretId: Secret | undefined;
  done: Promise<void>;
  /** From here on the token may be used up, whether or not an answer comes. */
  sent: boolean;
}

const confidentialKeys: ReadonlySet<string> = new Set(['secret_id', 'jwt', 'password']);

/** `auth/approle/role/NAME/secret-id`, behind the name of a namespace where there is one. */
function isSecretIdPath(path: string, mount: string): boolean {
  const [before, role = '', ...rest] = path.split('/role/');
  return (
    rest.length === 0 &&
    (before === `auth/${mount}` || before?.endsWith(`/auth/${mount}`) === true) &&
    /^[^/]+\/(secret-id|custom-secret-id)$/.test(role)
  );
}

/** A count of seconds or uses in an answer; 0 for anything odd. */
export function secondsIn(text: string | undefined): number {
  const seconds = Number(text ?? 0);
  return Number.isFinite(seconds) && seconds > 0 ? seconds : 0;
}
