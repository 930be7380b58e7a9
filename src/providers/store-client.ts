import type { Agent } from 'node:http';
import { type AgentOptions, Agent as TlsAgent } from 'node:https';
import { isIPv4 } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { createSecureContext, type SecureContextOptions } from 'node:tls';

import { type ErrorCode, PosternError, reasonOf } from '../core/errors.ts';
import { JsonBytes } from '../core/json-bytes.ts';
import { whyAborted } from './deadline.ts';
import { Answer, exchange, type NoAnswer, PlainAgent } from './exchange.ts';

const pooled: AgentOptions = { keepAlive: true, maxFreeSockets: 4 };
/** A store that asks for a longer pause than this is called unavailable at once, in milliseconds. */
const maxRetryAfter = 2000;

/** One request to a secret store. */
export interface StoreCall {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH';
  readonly url: URL;
  /** Made anew for each attempt: a signature holds the time. */
  readonly headers?: () => Readonly<Record<string, string>>;
  /** Stays the caller's, who wipes it. */
  readonly body?: Buffer | undefined;
  /** What the request is for, as it appears in messages. */
  readonly purpose: string;
  /** Where they are not the client's own. */
  readonly timeout?: number;
  readonly retries?: number;
  /** The one Content-Encoding that the caller understands beside none. */
  readonly contentEncoding?: string;
  /** Says of a refusal with another status than 429 and 5xx that asking again later may help. */
  readonly overloaded?: (answer: Answer) => boolean;
}

/** TLS of a store whose CA, or client certificate, is not the usual one. */
export interface StoreTls {
  /** Changes when the files have changed: new connections then use the new ones. */
  fingerprint(): string;
  load(): SecureContextOptions & { readonly rejectUnauthorized?: boolean; readonly servername?: string };
}

interface Options {
  /** The provider's name in the configuration, for messages. */
  readonly name: string;
  readonly timeout: number;
  readonly retries: number;
  readonly maxBody?: number;
  /** Connections at once, 32 where it is not said; more requests wait for one. */
  readonly maxSockets?: number;
  readonly tls?: StoreTls | undefined;
}

/**
 * HTTP towards a secret store: connections, retries, and words for the lack of an answer. Answers of any status come
 * back; redirects are not followed, since a token belongs to the host that it was meant for.
 */
export class StoreClient {
  readonly #options: Options;
  readonly #pooled: AgentOptions;
  readonly #plain: PlainAgent;
  #tls: { readonly agent: TlsAgent; readonly fingerprint: string } | undefined;

  constructor(options: Options) {
    this.#options = options;
    this.#pooled = { ...pooled, maxSockets: options.maxSockets ?? 32 };
    this.#plain = new PlainAgent(this.#pooled);
  }

  /** Throws PROVIDER_UNAVAILABLE when there is no answer, and why `signal` ended. */
  async call(call: StoreCall, signal: AbortSignal): Promise<Answer> {
    const retries = call.retries ?? this.#options.retries;
    for (let attempt = 0; ; attempt++) {
      const outcome = await this.#once(call, signal);
      const pause = attempt < retries ? pauseBeforeRetry(outcome, attempt, call.overloaded) : undefined;
      if (pause === undefined) {
        if (outcome instanceof Answer) return outcome;
        throw this.noAnswer(call, outcome.reason);
      }
      if (outcome instanceof Answer) outcome[Symbol.dispose]();
      await delay(pause, undefined, { signal }).catch(() => {
        throw whyAborted(signal, `provider "${this.#options.name}": ${call.purpose}`);
      });
    }
  }

  error(code: ErrorCode, text: string): PosternError {
    return new PosternError(code, `provider "${this.#options.name}": ${text}`);
  }

  /** `thrown` with the provider's name, where it lacks it. */
  named(thrown: unknown): PosternError {
    const error = PosternError.from(thrown);
    const name = `provider "${this.#options.name}": `;
    if (error.message.startsWith(name) || error.code === 'TIMEOUT' || error.code === 'SHUTDOWN') return error;
    return new PosternError(error.code, name + error.message);
  }

  /** `thrown` with the provider's name and what it was about: a reference. */
  about(what: string, thrown: unknown): PosternError {
    const error = PosternError.from(thrown);
    if (error.code === 'TIMEOUT' || error.code === 'SHUTDOWN') return error;
    const name = `provider "${this.#options.name}": `;
    const text = error.message.startsWith(name) ? error.message.slice(name.length) : error.message;
    return new PosternError(error.code, `${name}${what}: ${text}`);
  }

  noAnswer({ purpose, url, timeout = this.#options.timeout }: StoreCall, reason: string): PosternError {
    return this.error('PROVIDER_UNAVAILABLE', `${purpose}: ${whyNoAnswer(url.host, reason, timeout)}`);
  }

  /** Connections to this URL, by its scheme. Throws PROVIDER_FAILED for TLS files that cannot be used. */
  agentFor(url: URL): Agent {
    if (url.protocol === 'http:') {
      this.#refuseOpenHttp(url);
      return this.#plain;
    }
    const now = this.#options.tls?.fingerprint() ?? '';
    if (this.#tls?.fingerprint === now) return this.#tls.agent;
    try {
      // Said, because Node takes what is not said from NODE_TLS_REJECT_UNAUTHORIZED.
      const options = {
        minVersion: 'TLSv1.2',
        rejectUnauthorized: true,
        ...this.#options.tls?.load(),
      } as const;
      // Says now what a connection would only say later: a file that is no certificate, a key that is not its key.
      if (this.#options.tls) createSecureContext(options);
      const agent = new TlsAgent({ ...this.#pooled, ...options });
      if (this.#tls) retire(this.#tls.agent);
      this.#tls = { agent, fingerprint: now };
    } catch (thrown) {
      // Perhaps in the middle of a renewal: the old ones serve until the files are whole.
      if (!this.#tls) {
        const reason = thrown instanceof PosternError ? thrown.message : reasonOf(thrown);
        throw this.error('PROVIDER_FAILED', `the TLS files cannot be used (${reason})`);
      }
    }
    return this.#tls.agent;
  }

  /** Ends all connections. */
  close(): void {
    this.#plain.destroy();
    this.#tls?.agent.destroy();
  }

  async #once(call: StoreCall, signal: AbortSignal): Promise<Answer | NoAnswer> {
    const { timeout, maxBody } = this.#options;
    const headers: Record<string, string> = { accept: 'application/json', ...call.headers?.() };
    if (call.body) headers['content-length'] = String(call.body.length);
    else if (call.method !== 'GET') headers['content-length'] = '0';
    return await exchange(
      {
        method: call.method,
        url: call.url,
        socketPath: undefined,
        agent: this.agentFor(call.url),
        headers,
        body: call.body,
        timeout: call.timeout ?? timeout,
        maxBody,
        contentEncoding: call.contentEncoding,
      },
      signal,
    );
  }

  /** Tokens and secrets go over plain http only where no network carries them: this machine, its hypervisor. */
  #refuseOpenHttp({ hostname, host }: URL): void {
    if (hostname === 'localhost' || hostname === '[::1]' || hostname === 'metadata.google.internal') return;
    if (isIPv4(hostname) && (hostname.startsWith('127.') || hostname.startsWith('169.254.'))) return;
    // EKS Pod Identity and EC2 metadata over IPv6.
    if (hostname === '[fd00:ec2::23]' || hostname === '[fd00:ec2::254]') return;
    throw this.error('PROVIDER_FAILED', `${host} would be asked over plain http, where secrets can be read`);
  }
}

/**
 * Text of an answer that is no secret, fit for a message: one line, printable, at most 200 characters. Empty when it
 * repeats what the request said in confidence, in its header fields or as the caller says.
 */
export function publicLine(
  said: JsonBytes | undefined,
  answer: Answer,
  confidential: readonly Buffer[] = [],
): string {
  if (said?.kind !== 'string') return '';
  const text = said.publicText() ?? '';
  if (confidential.some((secret) => secret.length > 0 && Buffer.from(text).includes(secret))) return '';
  const line = text
    .replaceAll(/[^\x21-\x7e]+/g, ' ')
    .trim()
    .slice(0, 200);
  return answer.repeats(line) ? '' : line;
}

/** The JSON of an answer; undefined when it is none, so that it did not come from the store. */
export function jsonOf(answer: Answer): JsonBytes | undefined {
  try {
    return JsonBytes.parse(answer.body);
  } catch {
    return undefined;
  }
}

/** Requests under way keep their connection; it closes when they are done. */
export function retire(agent: Agent): void {
  for (const sockets of Object.values(agent.freeSockets))
    for (const socket of sockets ?? []) socket.destroy();
  agent.maxFreeSockets = 0;
}

/** Milliseconds until the request is worth repeating; undefined: it is not. `passes` knows more than the status. */
export function pauseBeforeRetry(
  outcome: Answer | NoAnswer,
  attempt: number,
  passes: ((answer: Answer) => boolean) | undefined,
): number | undefined {
  // 100, 300, 900 ms ..., each by up to half more or less, so that many sidecars do not come back at once.
  const backoff = Math.min(100 * 3 ** attempt, 2000) * (0.5 + Math.random());
  if (!(outcome instanceof Answer)) return passing.has(outcome.reason) ? backoff : undefined;
  if (outcome.status < 400) return undefined;
  if (!mayPass.has(outcome.status) && !passes?.(outcome)) return undefined;
  const asked = retryAfter(outcome.retryAfter);
  return asked > maxRetryAfter ? undefined : Math.max(asked, backoff);
}

/** Overloaded, or broken for the moment. */
const mayPass: ReadonlySet<number> = new Set([429, 500, 502, 503, 504]);

/** Whether asking again later may help with an answer of this status. */
export function isPassing(status: number): boolean {
  return status === 429 || status >= 500;
}

/** Failures of the moment: a restart, a closed idle connection, a name server that is busy. */
const passing: ReadonlySet<string> = new Set(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'EAI_AGAIN']);

function retryAfter(header: string | undefined): number {
  if (header === undefined) return 0;
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000;
  const until = Date.parse(header);
  return Number.isNaN(until) ? 0 : Math.max(0, until - Date.now());
}

/** What became of a question to `place`, for a message. */
export function whyNoAnswer(place: string, reason: string, timeout: number): string {
  if (tlsFailure.test(reason)) return `TLS with ${place} failed (${reason})`;
  if (reason === 'timeout') return `no answer from ${place} within ${timeout} ms`;
  return `${place} cannot be asked (${reason})`;
}

const tlsFailure =
  /^(CERT_|ERR_TLS_|ERR_SSL_|ERR_OSSL_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH|INVALID_CA|EPROTO)/;
