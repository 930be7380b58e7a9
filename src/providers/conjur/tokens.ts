import { setTimeout as delay } from 'node:timers/promises';

import { copyOf, decodeBase64, isSpace, join, trimmed } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import { JsonBytes } from '../../core/json-bytes.ts';
import { Secret } from '../../core/secret.ts';
import { whyAborted } from '../deadline.ts';
import type { Answer } from '../exchange.ts';
import { Expiring, type Obtained } from '../expiring.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile } from '../secret-file.ts';
import { isPassing, jsonOf, publicLine, type StoreCall, type StoreClient } from '../store-client.ts';
import type { Auth, Effective, Source } from './settings.ts';

/** What servers before `exp` gave their tokens, in milliseconds. */
const usualLife = 480_000;
/** A token is replaced when this part of its life is over, as by Conjur's own clients. */
const replacedAt = 0.85;
/** How often, and after how many milliseconds each, a token file is read again that its writer has not finished. */
const unfinished = { attempts: 10, pause: 50 };

/** A token of Conjur: the JSON that it signed. */
export class Token implements Disposable {
  readonly #json: Secret;

  /** Takes ownership of `json`. */
  constructor(json: Buffer) {
    this.#json = new Secret(json);
  }

  /** The double quotes are part of it. A header is a string, which cannot be wiped: the one place where a token becomes one. */
  authorization(): string {
    return `Token token="${this.#json.reveal().toString('base64')}"`;
  }

  /** A copy of the JSON, which the caller wipes. */
  copy(): Buffer {
    return copyOf(this.#json.reveal());
  }

  [Symbol.dispose](): void {
    this.#json.wipe();
  }
}

/** The tokens that requests are made with. */
export class Tokens {
  readonly #auth: Auth;
  readonly #account: string;
  readonly #base: string;
  readonly #client: StoreClient;
  readonly #context: ProviderContext;
  readonly #current: Expiring<Token>;

  constructor({ auth, account, base }: Effective, client: StoreClient, context: ProviderContext) {
    this.#auth = auth;
    this.#account = account;
    this.#base = base;
    this.#client = client;
    this.#context = context;
    const doing = `provider "${context.name}": the login`;
    this.#current = new Expiring((signal) => this.#obtain(signal), { early: 0, doing });
  }

  /** Lends a token to `use`, with the time of its end where that is known. */
  async lend<T>(use: (token: Token, expiresAt: number) => Promise<T>, signal: AbortSignal): Promise<T> {
    // Whoever writes the file replaces it before the token ends; what it holds now is the best there is.
    if (this.#auth.method === 'tokenFile') {
      using token = await this.#tokenIn(this.#auth.path, signal);
      return await use(token, Infinity);
    }
    return await this.#current.lend(use, signal);
  }

  /** Makes a request with a token. A 401 may mean that the token has died: it leads to one new token and one repetition. */
  async call(call: StoreCall, signal: AbortSignal): Promise<Answer> {
    const once = () =>
      this.lend(async (token) => {
        const headers = () => ({ ...call.headers?.(), authorization: token.authorization() });
        const answer = await this.#client.call({ ...call, headers }, signal);
        if (answer.status === 401) this.#current.discard(token);
        return answer;
      }, signal);
    const first = await once();
    if (first.status !== 401) return first;
    first[Symbol.dispose]();
    return await once();
  }

  close(): void {
    this.#current.close();
  }

  async #obtain(signal: AbortSignal): Promise<Obtained<Token>> {
    const auth = this.#auth;
    switch (auth.method) {
      case 'apiKey': {
        const key = await this.#read(auth.key, signal);
        return await this.#logInWithKey(auth.login, key, signal);
      }
      case 'netrc': {
        const { login, key } = await this.#readNetrc(auth.path, signal);
        return await this.#logInWithKey(login, key, signal);
      }
      case 'jwt':
        return await this.#logInWithJwt(auth, signal);
      case 'token': {
        const bytes = await this.#read(auth.token, signal);
        const token = tokenFrom(bytes);
        if (!token)
          throw this.#client.error('PROVIDER_FAILED', 'the token that was given is not one of Conjur');
        return { value: token, expiresAt: Infinity };
      }
      case 'tokenFile':
        throw this.#client.error('INTERNAL', 'a token file is no login');
    }
  }

  async #logInWithKey(login: string, key: Buffer, signal: AbortSignal): Promise<Obtained<Token>> {
    // A literal slash would be taken for the service id of another authenticator, and answered with 401.
    const place = `authn/${encodeURIComponent(this.#account)}/${encodeURIComponent(login)}/authenticate`;
    try {
      const body = trimmed(key);
      if (body.length === 0)
        throw this.#client.error('PROVIDER_FAILED', `the API key of "${login}" is empty`);
      const headers = () => ({ 'content-type': 'text/plain' });
      const url = new URL(`${this.#base}/${place}`);
      const call: StoreCall = { method: 'POST', url, headers, body, purpose: `logging in as "${login}"` };
      return await this.#authenticate(call, body, signal);
    } finally {
      key.fill(0);
    }
  }

  async #logInWithJwt(
    { url, hostId, jwt }: Extract<Auth, { method: 'jwt' }>,
    signal: AbortSignal,
  ): Promise<Obtained<Token>> {
    const bytes = await this.#read(jwt, signal);
    let body: Buffer | undefined;
    try {
      const token = trimmed(bytes);
      // What a JWT is made of (RFC 7519) needs no encoding in a form.
      if (token.length === 0 || !token.every(isOfJwt)) {
        throw this.#client.error('PROVIDER_FAILED', `${describe(jwt)} holds no JSON web token`);
      }
      body = join([Buffer.from('jwt='), token]);
      const host = hostId === undefined ? undefined : hostId.startsWith('host/') ? hostId : `host/${hostId}`;
      const place = [this.#account, ...(host === undefined ? [] : [host]), 'authenticate'];
      const call: StoreCall = {
        method: 'POST',
        url: new URL(`${url}/${place.map(encodeURIComponent).join('/')}`),
        headers: () => ({ 'content-type': 'application/x-www-form-urlencoded' }),
        body,
        purpose: 'logging in with a JWT',
      };
      return await this.#authenticate(call, token, signal);
    } finally {
      bytes.fill(0);
      body?.fill(0);
    }
  }

  async #authenticate(call: StoreCall, secret: Buffer, signal: AbortSignal): Promise<Obtained<Token>> {
    const sentAt = Date.now();
    using answer = await this.#client.call(call, signal);
    if (answer.status !== 200) throw this.#refusedLogin(call, answer, secret);
    const token = tokenFrom(answer.body);
    if (!token) {
      throw this.#client.error('PROVIDER_UNAVAILABLE', `${call.purpose}: the answer is not one of Conjur`);
    }
    // By its length from now on, not by the server's clock, which may be another.
    const life = lifeIn(answer.body);
    this.#context.log.debug({ seconds: life / 1000 }, 'logged in to Conjur');
    return { value: token, expiresAt: sentAt + life, early: life * (1 - replacedAt) };
  }

  #refusedLogin({ purpose }: StoreCall, answer: Answer, secret: Buffer): PosternError {
    const { status } = answer;
    const said = publicLine(jsonOf(answer)?.get('error')?.get('message'), answer, [secret]);
    const end = ` (HTTP ${status}${said === '' ? '' : `: ${said}`})`;
    if (isPassing(status)) {
      return this.#client.error('PROVIDER_UNAVAILABLE', `${purpose}: Conjur cannot do it now${end}`);
    }
    const why =
      status === 401
        ? 'Conjur refused: the key or token is wrong, there is no such role or account, the authenticator is not enabled, or logins from this address are not allowed; its log says which'
        : status === 403
          ? 'the role may not authenticate with this service'
          : 'Conjur refused';
    return this.#client.error('PROVIDER_FAILED', `${purpose}: ${why}${end}`);
  }

  /** A file that is written in place may be met half written: its writer gets a moment to finish. */
  async #tokenIn(path: string, signal: AbortSignal): Promise<Token> {
    for (let attempt = 1; ; attempt++) {
      const bytes = await this.#readFile(path, signal);
      const token = tokenFrom(bytes);
      bytes.fill(0);
      if (token) return token;
      if (attempt === unfinished.attempts) {
        throw this.#client.error('PROVIDER_UNAVAILABLE', `the file "${path}" holds no token of Conjur`);
      }
      await delay(unfinished.pause, undefined, { signal }).catch(() => {
        throw whyAborted(signal, `provider "${this.#context.name}": reading a token`);
      });
    }
  }

  async #read(source: Source, signal: AbortSignal): Promise<Buffer> {
    if ('file' in source) return await this.#readFile(source.file, signal);
    if ('value' in source) return Buffer.from(source.value);
    const { environment } = this.#context;
    const value = Object.hasOwn(environment, source.variable) ? environment[source.variable] : undefined;
    if (!value) throw this.#client.error('PROVIDER_FAILED', `the variable ${source.variable} is not set`);
    return Buffer.from(value);
  }

  async #readFile(path: string, signal: AbortSignal): Promise<Buffer> {
    try {
      return (await readSecretFile(path, signal)).bytes;
    } catch (thrown) {
      throw this.#client.named(thrown);
    }
  }

  /** What `conjur login` stored: `machine URL/authn login NAME password KEY`, the URL being one word. */
  async #readNetrc(path: string, signal: AbortSignal): Promise<{ login: string; key: Buffer }> {
    let bytes: Buffer;
    try {
      bytes = await this.#readFile(path, signal);
    } catch (thrown) {
      if (signal.aborted) throw thrown;
      throw this.#client.error(
        'PROVIDER_FAILED',
        `no way to log in: give \`auth\`, or set CONJUR_AUTHN_LOGIN and CONJUR_AUTHN_API_KEY, or log in with Conjur's command line (the file "${path}" cannot be read)`,
      );
    }
    try {
      const entry = netrcEntry(bytes, `${this.#base}/authn`);
      if (entry) return entry;
      throw this.#client.error('PROVIDER_FAILED', `the file "${path}" has no login for ${this.#base}/authn`);
    } finally {
      bytes.fill(0);
    }
  }
}

function describe(source: Source): string {
  if ('file' in source) return `the file "${source.file}"`;
  return 'variable' in source ? `the variable ${source.variable}` : 'the setting';
}

/** A token from its JSON, or from base64 of that, as some tools hand it on; undefined when it is none. */
function tokenFrom(bytes: Buffer): Token | undefined {
  const text = trimmed(bytes);
  if (isToken(text)) return new Token(copyOf(text));
  const decoded = decodeBase64(text);
  if (decoded && isToken(decoded)) return new Token(decoded);
  decoded?.fill(0);
  return undefined;
}

function isToken(text: Buffer): boolean {
  const json = parsed(text);
  return ['protected', 'payload', 'signature'].every((key) => json?.get(key)?.kind === 'string');
}

/** Milliseconds from a token's birth to its end. */
function lifeIn(text: Buffer): number {
  const payload = parsed(text)?.get('payload')?.copy();
  const claims = payload && parsed(decodeBase64(payload) ?? Buffer.alloc(0));
  const [born, ends] = ['iat', 'exp'].map((claim) => Number(claims?.get(claim)?.publicText() ?? NaN));
  if (born === undefined || ends === undefined || !(ends > born)) return usualLife;
  return Math.min((ends - born) * 1000, 24 * 3_600_000);
}

function parsed(text: Buffer): JsonBytes | undefined {
  try {
    return JsonBytes.parse(text);
  } catch {
    return undefined;
  }
}

/** The words behind `machine`, up to the next one. Only the key is a secret, and it stays bytes. */
function netrcEntry(bytes: Buffer, machine: string): { login: string; key: Buffer } | undefined {
  const words: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    while (isSpace(bytes[at])) at++;
    const start = at;
    while (at < bytes.length && !isSpace(bytes[at])) at++;
    if (at > start) words.push(bytes.subarray(start, at));
  }
  const is = (word: Buffer | undefined, text: string) => word?.equals(Buffer.from(text)) ?? false;
  const start = words.findIndex((word, i) => is(word, 'machine') && is(words[i + 1], machine));
  if (start === -1) return undefined;
  let login: string | undefined;
  let key: Buffer | undefined;
  for (let i = start + 2; i < words.length && !is(words[i], 'machine') && !is(words[i], 'default'); i += 2) {
    if (is(words[i], 'login')) login = words[i + 1]?.toString('utf8');
    if (is(words[i], 'password')) key = words[i + 1];
  }
  return login === undefined || !key ? undefined : { login, key: copyOf(key) };
}

/** Letters, digits, "-", "_", and "." between the parts. */
function isOfJwt(byte: number): boolean {
  return /[\w.-]/.test(String.fromCharCode(byte));
}
