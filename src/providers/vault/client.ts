import { readdirSync, readFileSync, statSync } from 'node:fs';
import type { Agent } from 'node:http';
import { Agent as TlsAgent } from 'node:https';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { createSecureContext } from 'node:tls';

import { type ErrorCode, PosternError, reasonOf } from '../../core/errors.ts';
import { JsonBytes } from '../../core/json-bytes.ts';
import type { Secret } from '../../core/secret.ts';
import { refuseAborted, whyAborted } from '../deadline.ts';
import { Answer, exchange, type NoAnswer, PlainAgent } from '../exchange.ts';
import type { ProviderContext } from '../provider.ts';
import { pauseBeforeRetry, retire, whyNoAnswer } from '../store-client.ts';
import type { Effective, TlsSettings } from './settings.ts';

/** Requests under way at once; more wait for a connection. */
const maxSockets = 32;

/** One request to Vault, as the rest of the provider sees it. */
export interface Call {
  readonly method: 'GET' | 'POST';
  /** Below /v1/, already percent-encoded. */
  readonly path: string;
  readonly token?: Secret | undefined;
  /** JSON; stays the caller's, who wipes it. */
  readonly body?: Buffer;
  /** What of the body must not come back in a message, should the server quote it. */
  readonly confidential?: readonly Buffer[];
  /** Set for paths that exist in the root namespace only. */
  readonly rootNamespace?: boolean;
  /**
   * Once it is sent, its answer is waited for even when the signal ends: it may bring a lease, which nobody else
   * could revoke, or something that is given only once.
   */
  readonly seenThrough?: boolean;
  /** How often to repeat, where it is not what the settings say. */
  readonly retries?: number;
  /** What the request is for, as it appears in messages: `reading "secret/app/db"`. */
  readonly purpose: string;
}

/** What Vault answered. Its body is wiped when it is disposed of. */
export class Reply implements Disposable {
  readonly status: number;
  /** Vault's own words for a refusal, fit for a message. */
  readonly said: string | undefined;
  readonly #answer: Answer;

  constructor(answer: Answer, { token, confidential = [] }: Call) {
    this.#answer = answer;
    this.status = answer.status;
    this.said =
      answer.status < 400
        ? undefined
        : serverText(answer.body, token ? [token.reveal(), ...confidential] : confidential);
  }

  /** undefined when the answer is no JSON: it did not come from Vault. */
  json(): JsonBytes | undefined {
    try {
      return JsonBytes.parse(this.#answer.body);
    } catch {
      return undefined;
    }
  }

  [Symbol.dispose](): void {
    this.#answer[Symbol.dispose]();
  }
}

/** An error code and the words that go with it. */
export interface Meaning {
  readonly code: ErrorCode;
  readonly text: string;
}

/** For an answer of a form that Vault's never have: something else is listening, or stands between. */
export const notVault: Meaning = { code: 'PROVIDER_UNAVAILABLE', text: 'the answer is not one of Vault' };

/**
 * Vault's HTTP API: headers, retries, redirects, and the connections. Answers of any status come back; only the
 * lack of an answer is thrown (PROVIDER_UNAVAILABLE), and the end of `signal`.
 */
export class VaultClient {
  readonly #effective: Effective;
  readonly #name: string;
  readonly #plain = new PlainAgent(pooled);
  readonly #closing = new AbortController();
  #tls: { readonly agent: TlsAgent; readonly fingerprint: string } | undefined;

  /** Throws CONFIG_INVALID for certificate files that cannot be used. */
  constructor(effective: Effective, { name }: ProviderContext) {
    this.#effective = effective;
    this.#name = name;
    this.#agentFor(effective.origin);
  }

  async call(call: Call, signal: AbortSignal): Promise<Reply> {
    const retries = call.retries ?? this.#effective.retries;
    for (let attempt = 0; ; attempt++) {
      const outcome = await this.#followingOneRedirect(call, signal);
      const pause = attempt < retries ? pauseBeforeRetry(outcome, attempt, isStandby) : undefined;
      if (pause === undefined) {
        if (outcome instanceof Answer) return new Reply(outcome, call);
        throw this.#noAnswer(call, outcome);
      }
      if (outcome instanceof Answer) outcome[Symbol.dispose]();
      await delay(pause, undefined, { signal }).catch(() => {
        throw whyAborted(signal, `provider "${this.#name}": ${call.purpose}`);
      });
    }
  }

  /** What to throw for a reply that is not the one hoped for; `meaning` where the caller knows more than its status. */
  refusal(call: Call, reply: Reply, meaning: Meaning = meaningOf(reply.status)): PosternError {
    const said = reply.said === undefined ? '' : `: ${reply.said}`;
    const status = reply.status === 200 ? '' : ` (HTTP ${reply.status}${said})`;
    return this.error(meaning.code, `${call.purpose}: ${meaning.text}${status}`);
  }

  error(code: ErrorCode, text: string): PosternError {
    return new PosternError(code, this.naming(text));
  }

  /** Every message says which provider it is about. */
  naming(text: string): string {
    return `provider "${this.#name}": ${text}`;
  }

  /** Ends what is under way, and all connections. */
  close(): void {
    this.#closing.abort(new PosternError('SHUTDOWN', `provider "${this.#name}" was closed`));
    this.#plain.destroy();
    this.#tls?.agent.destroy();
  }

  async #followingOneRedirect(call: Call, signal: AbortSignal): Promise<Answer | NoAnswer> {
    const { origin, socketPath, followRedirects } = this.#effective;
    const url = new URL(`${origin.pathname.replace(/\/+$/, '')}/v1/${call.path}`, origin);
    const first = await this.#once(call, url, signal);
    // A standby that cannot forward sends its clients to the active node.
    if (!(first instanceof Answer) || first.status !== 307 || socketPath || !followRedirects) return first;
    const target = redirectTarget(first.location, url);
    if (!target) return first;
    first[Symbol.dispose]();
    return await this.#once(call, target, signal);
  }

  async #once(call: Call, url: URL, signal: AbortSignal): Promise<Answer | NoAnswer> {
    const { socketPath, namespace, timeout } = this.#effective;
    const headers: Record<string, string> = {
      accept: 'application/json',
      // A listener of Vault Agent may insist on it: a browser or a tricked server cannot send it.
      'x-vault-request': 'true',
    };
    if (namespace !== undefined && !call.rootNamespace) headers['x-vault-namespace'] = namespace;
    // A header is a string, which cannot be wiped: the one place where a token becomes one.
    if (call.token) headers['x-vault-token'] = call.token.reveal().toString('latin1');
    if (call.body) {
      headers['content-type'] = 'application/json';
      headers['content-length'] = String(call.body.length);
    }
    refuseAborted(signal);
    const agent = this.#agentFor(url);
    return await exchange(
      { method: call.method, url, socketPath, agent, headers, body: call.body, timeout },
      call.seenThrough ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]),
    );
  }

  #noAnswer(call: Call, { reason }: NoAnswer): PosternError {
    const { origin, socketPath, timeout } = this.#effective;
    const why = whyNoAnswer(socketPath ?? origin.host, reason, timeout);
    return this.error('PROVIDER_UNAVAILABLE', `${call.purpose}: ${why}`);
  }

  #agentFor(url: URL): Agent {
    if (url.protocol === 'http:') return this.#plain;
    const now = fingerprint(this.#effective.tls);
    if (this.#tls?.fingerprint === now) return this.#tls.agent;
    // Certificates are renewed on disk while the program runs: new connections use the new ones.
    try {
      const agent = openTlsAgent(this.#effective.tls);
      if (this.#tls) retire(this.#tls.agent);
      this.#tls = { agent, fingerprint: now };
    } catch (thrown) {
      // Perhaps in the middle of the renewal: the old ones serve until the files are whole.
      if (!this.#tls)
        throw this.error('CONFIG_INVALID', `the TLS files cannot be used (${reasonOf(thrown)})`);
    }
    return this.#tls.agent;
  }
}

const pooled = { keepAlive: true, maxSockets, maxFreeSockets: 4 };

function openTlsAgent(settings: TlsSettings): TlsAgent {
  const { ca, caText, caPath, serverName, skipVerify } = settings;
  const cert = settings.cert ? readFileSync(settings.cert) : settings.certText;
  const key = settings.key ? readFileSync(settings.key) : settings.keyText;
  const trusted = [
    ...(ca ? [readFileSync(ca)] : []),
    ...(caText ? [caText] : []),
    ...(caPath ? certificatesIn(caPath) : []),
  ];
  // An empty list would fall back to the public CAs, which is not what was asked for.
  if (caPath && trusted.length === 0) throw new Error('no certificate in the folder');
  const options = {
    minVersion: 'TLSv1.2',
    rejectUnauthorized: !skipVerify,
    ...(trusted.length > 0 ? { ca: trusted } : {}),
    ...(cert && key ? { cert, key } : {}),
    ...(serverName ? { servername: serverName } : {}),
  } as const;
  // Says now what a connection would only say later: a file that is no certificate, a key that is not its key.
  createSecureContext(options);
  return new TlsAgent({ ...pooled, ...options });
}

function certificatesIn(folder: string): Buffer[] {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .slice(0, 1000)
    .map((entry) => readFileSync(join(folder, entry.name)))
    .filter((content) => content.includes('-----BEGIN CERTIFICATE-----'));
}

function fingerprint({ ca, caPath, cert, key }: TlsSettings): string {
  return [ca, caPath, cert, key]
    .map((path) => {
      const status = path === undefined ? undefined : statSync(path, { throwIfNoEntry: false });
      return status ? `${status.ino}:${status.mtimeMs}` : '';
    })
    .join(' ');
}

/**
 * Where a redirect may take the token: to another host over TLS only, since that host has to prove its name to the
 * same CA; over plain http only back to the very same origin.
 */
function redirectTarget(location: string | undefined, from: URL): URL | undefined {
  const target = location === undefined ? undefined : URL.parse(location, from.href);
  if (!target || target.username || target.password) return undefined;
  if (target.protocol === 'https:') return target;
  return target.origin === from.origin ? target : undefined;
}

/** 412 is a standby that has not caught up, or an Agent that misses a header, which no repetition adds. */
function isStandby({ status, body }: Answer): boolean {
  return status === 412 && !body.includes('X-Vault-Request');
}

function meaningOf(status: number): Meaning {
  if (status === 503) return { code: 'PROVIDER_UNAVAILABLE', text: 'Vault is sealed or unavailable' };
  if (status === 429) return { code: 'PROVIDER_UNAVAILABLE', text: 'Vault allows no more requests for now' };
  if (status === 412)
    return { code: 'PROVIDER_UNAVAILABLE', text: 'the server is not ready for the request' };
  if (status >= 500) return { code: 'PROVIDER_UNAVAILABLE', text: 'Vault failed' };
  if (status === 403) return { code: 'PROVIDER_FAILED', text: 'permission denied' };
  if (status === 404) return { code: 'PROVIDER_FAILED', text: 'there is nothing at this path' };
  if (status >= 300 && status < 400) {
    return {
      code: 'PROVIDER_FAILED',
      text: 'redirected to where the token must not go; is the address right?',
    };
  }
  return { code: 'PROVIDER_FAILED', text: 'Vault refused' };
}

/**
 * The first of `errors` in an answer, fit for a message: one line, printable, at most 200 characters. A text with
 * something in it that was sent in confidence is left out as a whole.
 */
function serverText(body: Buffer, confidential: readonly Buffer[]): string | undefined {
  try {
    const said = JsonBytes.parse(body).get('errors')?.first();
    if (said?.kind !== 'string') return undefined;
    const bytes = said.copy();
    if (confidential.some((secret) => secret.length > 0 && bytes.includes(secret))) return undefined;
    const line = bytes
      .toString('utf8')
      .replace(/[^\x21-\x7e]+/g, ' ')
      .trim();
    return line === '' ? undefined : line.slice(0, 200);
  } catch {
    return undefined;
  }
}
