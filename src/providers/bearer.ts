import { copyOf } from '../core/bytes.ts';
import { type ErrorCode, PosternError } from '../core/errors.ts';
import type { JsonBytes } from '../core/json-bytes.ts';
import { Secret } from '../core/secret.ts';
import { refuseAborted } from './deadline.ts';
import type { Answer } from './exchange.ts';
import { Expiring, type Obtained } from './expiring.ts';
import type { Provider } from './provider.ts';
import { isPassing, jsonOf, type StoreCall, type StoreClient } from './store-client.ts';

/** How long before its end a token is replaced: servers that cache theirs hand out a new one by then. */
const early = 4 * 60_000;
/** Of a token whose answer does not say. */
const usualLife = 5 * 60_000;
/** Scopes stand in the configuration; more than this are none. */
const maxScopes = 32;

/** Access tokens of OAuth 2, one for each scope. */
export class ScopedTokens {
  readonly #byScope = new Map<string, Expiring<Secret>>();
  readonly #obtain: (scope: string, signal: AbortSignal) => Promise<Obtained<Secret>>;
  readonly #doing: string;

  constructor(obtain: (scope: string, signal: AbortSignal) => Promise<Obtained<Secret>>, doing: string) {
    this.#obtain = obtain;
    this.#doing = doing;
  }

  of(scope: string): Expiring<Secret> {
    const known = this.#byScope.get(scope);
    if (known) return known;
    if (this.#byScope.size >= maxScopes) {
      throw new PosternError('PROVIDER_FAILED', `more than ${maxScopes} scopes are asked for`);
    }
    const tokens = new Expiring((signal) => this.#obtain(scope, signal), { early, doing: this.#doing });
    this.#byScope.set(scope, tokens);
    return tokens;
  }

  close(): void {
    for (const tokens of this.#byScope.values()) tokens.close();
  }
}

/** A request with a token. A 401 leads to one repetition with a new one; the answer may be of any status. */
export async function callWithToken(
  client: StoreClient,
  tokens: Expiring<Secret>,
  call: Omit<StoreCall, 'headers'>,
  signal: AbortSignal,
): Promise<Answer> {
  const attempt = () =>
    tokens.lend(
      async (token) => ({
        token,
        answer: await client.call({ ...call, headers: () => authorization(token) }, signal),
      }),
      signal,
    );
  const first = await attempt();
  if (first.answer.status !== 401) return first.answer;
  first.answer[Symbol.dispose]();
  tokens.discard(first.token);
  return (await attempt()).answer;
}

/** A header is a string, which cannot be wiped: the one place where a token becomes one. */
export function authorization(token: Secret): Record<string, string> {
  return { authorization: `Bearer ${token.reveal().toString('latin1')}` };
}

/**
 * The token of an answer of a token endpoint (RFC 6749 section 5.1) or of a metadata service, which writes numbers as
 * texts. `sentAt` is when the request was made: its life is counted from then.
 */
export function tokenOf(
  answer: Answer,
  sentAt: number,
  failed: (code: ErrorCode, problem: string) => PosternError,
): Obtained<Secret> {
  const json = jsonOf(answer);
  if (answer.status !== 200) {
    // `error` is one of a few words (section 5.2); its description may repeat what was sent.
    const word = json?.get('error')?.publicText() ?? '';
    const said = /^[\w.-]{1,60}$/.test(word) ? `, ${word}` : '';
    const code = isPassing(answer.status) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
    throw failed(code, `refused (HTTP ${answer.status}${said})`);
  }
  const token = json?.get('access_token');
  if (!json || token?.kind !== 'string') throw failed('PROVIDER_UNAVAILABLE', 'the answer has no token');
  return { value: checkedToken(token, failed), expiresAt: endOf(json, sentAt) };
}

/** Takes a token out of an answer: it must be able to stand in a header. */
export function checkedToken(
  text: JsonBytes,
  failed: (code: ErrorCode, problem: string) => PosternError,
): Secret {
  const bytes = text.copy();
  if (bytes.length === 0 || bytes.length > 65_536 || !bytes.every((byte) => byte > 0x20 && byte < 0x7f)) {
    bytes.fill(0);
    throw failed('PROVIDER_UNAVAILABLE', 'the token in the answer is not printable ASCII');
  }
  return new Secret(bytes);
}

function endOf(json: JsonBytes, sentAt: number): number {
  const seconds = (name: string) => {
    const text = json.get(name)?.publicText() ?? '';
    return /^\d{1,12}(\.\d+)?$/.test(text) ? Number(text) * 1000 : undefined;
  };
  const life = seconds('expires_in');
  if (life !== undefined) return sentAt + life;
  return seconds('expires_on') ?? sentAt + usualLife;
}

interface TokenProvider {
  readonly client: StoreClient;
  readonly tokens: ScopedTokens;
  /** What the reference `token` means. */
  readonly scope: string;
}

/** Says what is wrong with a reference of a provider whose secrets are tokens; undefined when it is well formed. */
export function checkTokenReference(reference: string): string | undefined {
  if (reference === 'token' || /^(https|api):\/\/[\w.-]{1,253}(\/[\w./-]{0,200})?$/.test(reference))
    return undefined;
  return 'must be `token`, or a scope such as https://example.com/.default';
}

/** A provider whose secrets are the tokens themselves: a database takes them as passwords. */
export function openTokenProvider({ client, tokens, scope }: TokenProvider): Provider {
  async function tokenFor(
    wanted: string,
    signal: AbortSignal,
    onEnd: (expiresAt: number) => void,
  ): Promise<Secret> {
    return await tokens.of(wanted).lend((token, expiresAt) => {
      onEnd(expiresAt);
      return Promise.resolve(new Secret(copyOf(token.reveal())));
    }, signal);
  }

  return {
    async fetch(references, signal) {
      refuseAborted(signal);
      const secrets: Secret[] = [];
      let end = Infinity;
      try {
        for (const reference of references) {
          const problem = checkTokenReference(reference);
          if (problem) throw client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
          const wanted = reference === 'token' ? scope : reference;
          const secret = await tokenFor(wanted, signal, (expiresAt) => {
            end = Math.min(end, expiresAt);
          }).catch((thrown: unknown) => {
            throw client.about(`"${reference}"`, thrown);
          });
          secrets.push(secret);
        }
        return { secrets, ...(end === Infinity ? {} : { expiresAt: new Date(end) }) };
      } catch (thrown) {
        for (const secret of secrets) secret.wipe();
        throw client.named(thrown);
      }
    },
    check: (signal) => tokens.of(scope).lend(() => Promise.resolve(), signal),
    close: () => {
      tokens.close();
      client.close();
      return Promise.resolve();
    },
  };
}
