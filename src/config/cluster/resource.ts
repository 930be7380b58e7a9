import { hostname } from 'node:os';
import { type Logger, pino } from 'pino';
import * as z from 'zod';

import { PosternError } from '../../core/errors.ts';
import type { Answer } from '../../providers/exchange.ts';
import { ApiClient, bearer } from '../../providers/kubernetes/api.ts';
import { findCluster } from '../../providers/kubernetes/cluster.ts';
import { kubernetes, type Settings } from '../../providers/kubernetes/index.ts';
import { WatchStream } from '../../providers/kubernetes/watch.ts';
import { isPassing, StoreClient } from '../../providers/store-client.ts';
import { parseResourceAddress, type ResourceAddress } from './address.ts';
import { type ResourceStatus, resourceStatus } from './status.ts';

/** A resource of 1.5 MiB is the most that etcd takes; managed fields come on top. */
const maxBody = 4 * 1024 * 1024;
const timeout = 5000;
/** The server ends a watch after this time, in seconds, so that watches spread over its replicas again. */
const watchSeconds = 240;
/** A watch that says nothing for so long is dead, in milliseconds: the server sends a bookmark each minute. */
const watchSilence = 90_000;

type Environment = Readonly<Record<string, string | undefined>>;

/** A Configuration as the API server has it. */
export interface Resource {
  /** Another object of the same name has another one. */
  readonly uid: string;
  /** Grows with each change of the spec, and with no other. */
  readonly generation: number;
  readonly version: string;
  readonly spec: Readonly<Record<string, unknown>>;
  readonly status: ResourceStatus;
}

/** What a watch tells. */
export type ResourceEvent =
  | { readonly kind: 'there'; readonly resource: Resource }
  | { readonly kind: 'gone' }
  | { readonly kind: 'nothing new' };

const object = z.looseObject({
  metadata: z.looseObject({ uid: z.string(), resourceVersion: z.string(), generation: z.int() }),
  spec: z.record(z.string(), z.unknown()),
  status: resourceStatus.optional().catch(undefined),
});
const list = z.looseObject({
  kind: z.literal('ConfigurationList'),
  metadata: z.looseObject({ resourceVersion: z.string() }),
  items: z.array(z.unknown()),
});
const event = z.looseObject({
  type: z.string(),
  object: z.looseObject({
    code: z.unknown().optional(),
    metadata: z.looseObject({ resourceVersion: z.string().optional() }).optional(),
  }),
});

/** Requests for one Configuration. Failures are PosternErrors that name it, and nothing of what it holds. */
export class ResourceClient {
  /** `k8s://NAMESPACE/NAME` as it was asked for. */
  readonly path: string;
  readonly #name: string;
  readonly #namespace: string;
  readonly #api: ApiClient;

  private constructor(path: string, { name, namespace }: ResourceAddress, api: ApiClient) {
    this.path = path;
    this.#name = name;
    this.#namespace = namespace ?? api.cluster.namespace;
    this.#api = api;
  }

  /** Finds the cluster: that of the pod, or of the kubeconfig. Throws CONFIG_INVALID where there is none. */
  static async open(
    path: string,
    { environment, log }: { readonly environment: Environment; readonly log: Logger },
    signal: AbortSignal,
  ): Promise<ResourceClient> {
    const address = parseResourceAddress(path);
    const options = { name: 'kubernetes', timeout, retries: 1, maxBody };
    try {
      const settings = kubernetes.settings.parse({}) as Settings;
      const cluster = await findCluster(settings, { name: 'kubernetes', log, environment }, signal);
      return new ResourceClient(
        path,
        address,
        new ApiClient(cluster, new StoreClient({ ...options, tls: cluster.tls })),
      );
    } catch (thrown) {
      throw unnamed(thrown);
    }
  }

  async get(signal: AbortSignal): Promise<Resource> {
    using answer = await this.#asked(() => this.#api.get(this.#url(this.#name), 'reading it', signal));
    this.#expect(answer, 'reading it');
    return this.#resource(parsed(object, jsonOf(answer.body)));
  }

  /** The resource, if it is there, and the version to watch from. */
  async list(
    signal: AbortSignal,
  ): Promise<{ readonly resource: Resource | undefined; readonly version: string }> {
    const url = this.#url('', { limit: '2' });
    using answer = await this.#asked(() => this.#api.get(url, 'listing it', signal));
    this.#expect(answer, 'listing it');
    const { metadata, items } = parsed(list, jsonOf(answer.body));
    const [item] = items;
    const resource = item === undefined ? undefined : this.#resource(parsed(object, item));
    return { resource, version: metadata.resourceVersion };
  }

  /**
   * Watches from a version until the server ends it, and gives the version to go on from; undefined: the server has
   * forgotten that one (410), and the resource must be listed again.
   */
  async watch(
    from: string,
    on: { readonly open: () => void; readonly event: (event: ResourceEvent) => void },
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const url = this.#url('', {
      watch: 'true',
      allowWatchBookmarks: 'true',
      resourceVersion: from,
      timeoutSeconds: String(Math.round(watchSeconds * (1 + Math.random() / 2))),
    });
    using stream = new WatchStream(watchSilence);
    const status = await this.#asked(async () => {
      using token = await this.#api.token(signal);
      return await stream.open(url, this.#api, bearer(token), signal);
    });
    if (status === 410) return undefined;
    if (status === 401) this.#api.cluster.login.refused();
    if (status !== 200) throw refusal('watching it', status, '');
    on.open();
    let reached = from;
    for await (const line of stream.lines()) {
      const { type, object: about } = parsed(event, jsonOf(line));
      if (type === 'ERROR') {
        if (about.code === 410) return undefined;
        throw new PosternError('PROVIDER_UNAVAILABLE', 'watching it: the server ended it with an error');
      }
      reached = about.metadata?.resourceVersion ?? reached;
      if (type === 'ADDED' || type === 'MODIFIED')
        on.event({ kind: 'there', resource: this.#resource(parsed(object, about)) });
      else on.event(type === 'DELETED' ? { kind: 'gone' } : { kind: 'nothing new' });
    }
    return reached;
  }

  /** Replaces the status of that version of the resource; undefined: somebody else was faster. */
  async writeStatus(
    version: string,
    status: ResourceStatus,
    signal: AbortSignal,
  ): Promise<Resource | undefined> {
    const patch = { metadata: { resourceVersion: version }, status };
    const url = this.#url(`${this.#name}/status`, { fieldManager: 'postern' });
    using answer = await this.#asked(() => this.#api.patch(url, patch, 'writing its status', signal));
    if (answer.status === 409) return undefined;
    this.#expect(answer, 'writing its status');
    return this.#resource(parsed(object, jsonOf(answer.body)));
  }

  async close(): Promise<void> {
    await this.#api.cluster.login.close(AbortSignal.timeout(timeout));
    this.#api.client.close();
  }

  #url(rest: string, query: Readonly<Record<string, string>> = {}): URL {
    const all = `/apis/postern.dev/v1alpha1/namespaces/${this.#namespace}/configurations`;
    if (rest !== '') return this.#api.url(`${all}/${rest}`, query);
    // With this selector a role that names the resource (resourceNames) is enough.
    return this.#api.url(all, { fieldSelector: `metadata.name=${this.#name}`, ...query });
  }

  async #asked<T>(ask: () => Promise<T>): Promise<T> {
    try {
      return await ask();
    } catch (thrown) {
      throw unnamed(thrown);
    }
  }

  #expect(answer: Answer, doing: string): void {
    if (answer.status === 200) return;
    const said = unnamed(this.#api.refusal(answer, doing)).message;
    throw refusal(doing, answer.status, said);
  }

  #resource({ metadata, spec, status }: z.output<typeof object>): Resource {
    return {
      uid: metadata.uid,
      generation: metadata.generation,
      version: metadata.resourceVersion,
      spec,
      status: status ?? {},
    };
  }
}

/** Reads a resource once. Throws what `ResourceClient` does. */
export async function readResource(path: string, environment: Environment): Promise<Resource> {
  const signal = AbortSignal.timeout(4 * timeout);
  const client = await ResourceClient.open(path, { environment, log: pino({ level: 'silent' }) }, signal);
  try {
    return await client.get(signal);
  } finally {
    await client.close().catch(() => undefined);
  }
}

/** Whether what failed may go well later: nobody answers, or the resource is not there yet. */
export function mayPass(thrown: unknown): boolean {
  return thrown instanceof PosternError && thrown.code === 'PROVIDER_UNAVAILABLE';
}

/** The pod, which is what its host is called unless it says otherwise. */
export function instanceName(environment: Environment): string {
  return (environment['POD_NAME'] || environment['HOSTNAME'] || hostname()).slice(0, 253);
}

function refusal(doing: string, status: number, said: string): PosternError {
  if (status === 404)
    return new PosternError(
      'PROVIDER_UNAVAILABLE',
      `${doing}: there is no such Configuration, or no definition of that resource`,
    );
  const code = isPassing(status) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
  return new PosternError(code, said === '' ? `${doing}: refused (HTTP ${status})` : said);
}

/** Without the name that errors of a provider begin with: here is none. */
function unnamed(thrown: unknown): PosternError {
  const { code, message } = PosternError.from(thrown);
  return new PosternError(code, message.replace(/^provider "kubernetes": /, ''));
}

function jsonOf(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8')) as unknown;
  } catch {
    // The library's message quotes the text.
    return undefined;
  }
}

function parsed<Schema extends z.ZodType>(schema: Schema, value: unknown): z.output<Schema> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw new PosternError('PROVIDER_UNAVAILABLE', 'the answer is not what an API server says');
}
