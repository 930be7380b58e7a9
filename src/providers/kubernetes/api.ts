import { type ErrorCode, type PosternError } from '../../core/errors.ts';
import type { Secret } from '../../core/secret.ts';
import type { Answer } from '../exchange.ts';
import { isPassing, jsonOf, publicLine, type StoreCall, type StoreClient } from '../store-client.ts';
import type { Cluster } from './cluster.ts';

/** The API, asked with a token that is read for each request. */
export class ApiClient {
  readonly cluster: Cluster;
  readonly client: StoreClient;

  constructor(cluster: Cluster, client: StoreClient) {
    this.cluster = cluster;
    this.client = client;
  }

  url(path: string, query: Readonly<Record<string, string>> = {}): URL {
    const { server } = this.cluster;
    const url = new URL(server.pathname.replace(/\/+$/, '') + path, server);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return url;
  }

  async get(url: URL, purpose: string, signal: AbortSignal): Promise<Answer> {
    return await this.#twice({ method: 'GET', url, purpose }, {}, signal);
  }

  /** Changes what `patch` has (RFC 7396) and nothing else. */
  async patch(url: URL, patch: object, purpose: string, signal: AbortSignal): Promise<Answer> {
    const body = Buffer.from(JSON.stringify(patch));
    const type = { 'content-type': 'application/merge-patch+json' };
    return await this.#twice({ method: 'PATCH', url, purpose, body }, type, signal);
  }

  /** A 401 leads to one repetition when there is another token by then. The answer may be of any status. */
  async #twice(call: StoreCall, headers: Record<string, string>, signal: AbortSignal): Promise<Answer> {
    using first = await this.token(signal);
    const answer = await this.#callWith(first, call, headers, signal);
    if (answer.status !== 401) return answer;
    this.cluster.login.refused();
    using second = await this.token(signal);
    if (!first || !second || first.reveal().equals(second.reveal())) return answer;
    answer[Symbol.dispose]();
    return await this.#callWith(second, call, headers, signal);
  }

  async token(signal: AbortSignal): Promise<Secret | undefined> {
    try {
      return await this.cluster.login.token(signal);
    } catch (thrown) {
      throw this.client.named(thrown);
    }
  }

  /** What to throw for an answer that is not the one hoped for, with the server's own words where they fit. */
  refusal(answer: Answer, purpose: string): PosternError {
    const { code, text } = meaningOf(answer.status);
    const status = jsonOf(answer);
    const said =
      status?.get('kind')?.publicText() === 'Status' ? publicLine(status.get('message'), answer) : '';
    return this.client.error(code, `${purpose}: ${text} (HTTP ${answer.status}${said && `: ${said}`})`);
  }

  async #callWith(
    token: Secret | undefined,
    call: StoreCall,
    headers: Record<string, string>,
    signal: AbortSignal,
  ): Promise<Answer> {
    return await this.client.call({ ...call, headers: () => ({ ...headers, ...bearer(token) }) }, signal);
  }
}

/** A header is a string, which cannot be wiped: the one place where the token becomes one. */
export function bearer(token: Secret | undefined): Record<string, string> {
  return token ? { authorization: `Bearer ${token.reveal().toString('latin1')}` } : {};
}

function meaningOf(status: number): { readonly code: ErrorCode; readonly text: string } {
  if (status === 401) {
    return { code: 'PROVIDER_FAILED', text: 'the API server does not accept the token or certificate' };
  }
  if (status === 403) return { code: 'PROVIDER_FAILED', text: 'permission denied' };
  if (status === 404) return { code: 'PROVIDER_FAILED', text: 'there is no such secret' };
  if (status === 429)
    return { code: 'PROVIDER_UNAVAILABLE', text: 'the API server takes no more requests for now' };
  if (isPassing(status)) return { code: 'PROVIDER_UNAVAILABLE', text: 'the API server failed' };
  return { code: 'PROVIDER_FAILED', text: 'the API server refused' };
}
