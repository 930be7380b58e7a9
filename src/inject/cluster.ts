import type { Logger } from 'pino';

import { PosternError } from '../core/errors.ts';
import type { Answer } from '../providers/exchange.ts';
import { ApiClient, bearer } from '../providers/kubernetes/api.ts';
import { findCluster } from '../providers/kubernetes/cluster.ts';
import { kubernetes, type Settings } from '../providers/kubernetes/index.ts';
import { jsonOf, publicLine, StoreClient } from '../providers/store-client.ts';

/** A webhook configuration of many webhooks, with the fields that say who changed what. */
const maxBody = 4 * 1024 * 1024;
const name = 'kubernetes';

/** The API server, for the few objects that are the injector's own. */
export class ClusterApi {
  readonly namespace: string;
  readonly #api: ApiClient;

  private constructor(api: ApiClient) {
    this.#api = api;
    this.namespace = api.cluster.namespace;
  }

  /** Finds the cluster and asks it nothing. Throws PROVIDER_FAILED when there is none. */
  static async open(
    wanted: Pick<Settings, 'namespace' | 'kubeconfig' | 'context'>,
    environment: NodeJS.ProcessEnv,
    { log, signal }: { readonly log: Logger; readonly signal: AbortSignal },
  ): Promise<ClusterApi> {
    const given = Object.fromEntries(Object.entries(wanted).filter(([, value]) => value !== undefined));
    const settings = kubernetes.settings.parse(given) as Settings;
    const cluster = await findCluster(settings, { name, log, environment }, signal);
    const options = { name, timeout: settings.timeout, retries: settings.retries, maxBody };
    return new ClusterApi(new ApiClient(cluster, new StoreClient({ ...options, tls: cluster.tls })));
  }

  /** The object at a path; undefined: there is none. The caller disposes of it, because it may hold a key. */
  async get(path: string, signal: AbortSignal): Promise<Answer | undefined> {
    const purpose = `reading ${path}`;
    const answer = await this.#api.get(this.#api.url(path), purpose, signal);
    if (answer.status === 200) return answer;
    using refused = answer;
    if (refused.status === 404) return undefined;
    throw this.#refusal(refused, purpose);
  }

  /**
   * Writes an object, which says in its resourceVersion what it is to replace, or makes one. False: somebody else has
   * been faster. The caller wipes `body`.
   */
  async write(method: 'POST' | 'PUT', path: string, body: Buffer, signal: AbortSignal): Promise<boolean> {
    const purpose = `writing ${path}`;
    using token = await this.#api.token(signal);
    const headers = () => ({ ...bearer(token), 'content-type': 'application/json' });
    // Never sent twice: the second would find what the first has written.
    const call = { method, url: this.#api.url(path), headers, body, purpose, retries: 0 } as const;
    using answer = await this.#api.client.call(call, signal);
    if (answer.status === 409) return false;
    if (answer.status !== 200 && answer.status !== 201) throw this.#refusal(answer, purpose);
    return true;
  }

  /** The minor version of a cluster of version 1. */
  async minorVersion(signal: AbortSignal): Promise<number> {
    using answer = await this.get('/version', signal);
    const minor = answer && jsonOf(answer)?.get('minor')?.publicText();
    // Some add a sign of their own: "28+".
    const [, digits] = /^(\d{1,3})/.exec(minor ?? '') ?? [];
    if (digits === undefined)
      throw new PosternError('PROVIDER_FAILED', 'the API server does not say its version');
    return Number(digits);
  }

  close(): void {
    this.#api.client.close();
  }

  #refusal(answer: Answer, purpose: string): PosternError {
    const said = publicLine(jsonOf(answer)?.get('message'), answer);
    const code = answer.status >= 500 || answer.status === 429 ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
    return new PosternError(code, `${purpose}: HTTP ${answer.status}${said && `: ${said}`}`);
  }
}
