import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Logger, pino } from 'pino';

import { Injector } from '../../src/inject/injector.ts';
import { parseSettings } from '../../src/inject/settings.ts';
import { type Manifest, readManifests } from '../deploy/manifests.ts';
import type { Kubernetes } from '../support/servers.ts';

/** What the tests look at in a pod that the API server has taken. */
export interface StoredPod {
  readonly metadata: { readonly name: string; readonly annotations?: Readonly<Record<string, string>> };
  readonly spec: {
    readonly initContainers?: readonly StoredContainer[];
    readonly containers: readonly StoredContainer[];
    readonly volumes?: readonly { readonly name: string }[];
  };
}

interface StoredContainer {
  readonly name: string;
  readonly image: string;
  readonly restartPolicy?: string;
  readonly env?: readonly { readonly name: string; readonly value?: string }[];
  readonly volumeMounts?: readonly { readonly name: string; readonly mountPath: string }[];
}

interface Webhook {
  readonly clientConfig: { readonly service: { readonly path: string } };
  readonly namespaceSelector: { readonly matchExpressions: readonly object[] };
}

let unique = 0;

/**
 * The injector as deploy/kubernetes/injector has it, in a cluster that is shared with other tests: its own namespace for
 * its Secret, its own webhook configuration, for namespaces of this test alone, and the rights of rbac.yaml and no others.
 */
export class TestInjector implements AsyncDisposable {
  readonly #cluster: Kubernetes;
  readonly #folder: string;
  readonly name: string;
  readonly home: string;
  readonly lines: Readonly<Record<string, unknown>>[] = [];
  readonly #running = new Set<Replica>();

  private constructor(cluster: Kubernetes, names: { folder: string; name: string; home: string }) {
    this.#cluster = cluster;
    this.#folder = names.folder;
    this.name = names.name;
    this.home = names.home;
  }

  static async make(cluster: Kubernetes): Promise<TestInjector> {
    const folder = await mkdtemp(join(tmpdir(), 'postern-inject-'));
    const name = `postern-injector-${process.pid}-${++unique}`;
    const home = await cluster.namespace();
    const injector = new TestInjector(cluster, { folder, name, home });
    await injector.#permit();
    return injector;
  }

  /** A namespace whose pods come to the injector as webhook.yaml says. */
  async namespace(labels: Readonly<Record<string, string>> = {}): Promise<string> {
    const namespace = await this.#cluster.namespace();
    await this.#cluster.request('PATCH', `/api/v1/namespaces/${namespace}`, {
      metadata: { labels: { ...labels, 'test.postern.dev/injector': this.name } },
    });
    return namespace;
  }

  /** Registers the webhooks of webhook.yaml for the namespaces of this test, calling a port of this machine. */
  async register(port: number, failurePolicy: 'Fail' | 'Ignore' = 'Fail'): Promise<void> {
    const [manifest] = (await readManifests('kubernetes/injector/base/webhook.yaml')) as unknown as [
      Manifest & { webhooks: Webhook[] },
    ];
    const webhooks = manifest.webhooks.map((webhook) => ({
      ...webhook,
      failurePolicy,
      clientConfig: { url: `https://127.0.0.1:${port}${webhook.clientConfig.service.path}` },
      namespaceSelector: {
        ...webhook.namespaceSelector,
        matchExpressions: [
          ...webhook.namespaceSelector.matchExpressions,
          { key: 'test.postern.dev/injector', operator: 'In', values: [this.name] },
        ],
      },
    }));
    await this.unregister();
    await this.#cluster.request('POST', configurations, {
      ...manifest,
      metadata: { name: this.name },
      webhooks,
    });
  }

  async unregister(): Promise<void> {
    await this.#cluster.request('DELETE', `${configurations}/${this.name}`).catch(() => undefined);
  }

  /** Starts a replica with settings of its certificate (YAML), with the rights of rbac.yaml unless a kubeconfig has more. */
  async start(
    certificate = 'poll: 200ms',
    more: {
      readonly port?: number;
      readonly secret?: string;
      readonly kubeconfig?: string;
      readonly apiPort?: number;
    } = {},
  ): Promise<Replica> {
    const { port = 0, secret = 'certificates', kubeconfig = await this.#kubeconfig(more.apiPort) } = more;
    const settings = parseSettings(
      `sidecar:
  image: registry.example.com/postern:0.1.0
  allowedImages: [registry.example.com/postern, registry.example.com/team/]
listen: tcp://127.0.0.1:${port}
admin: tcp://127.0.0.1:0
cluster: { kubeconfig: ${kubeconfig}, namespace: ${this.home} }
certificate: { host: 127.0.0.1, secret: ${secret}, webhook: ${this.name}, ${certificate} }
`,
      'injector.yaml',
    );
    const log = pino(
      { level: 'debug', base: null },
      { write: (line: string) => this.lines.push(JSON.parse(line) as Record<string, unknown>) },
    );
    const replica = await Replica.start(settings, log, () => this.#running.delete(replica));
    this.#running.add(replica);
    return replica;
  }

  async pod(namespace: string, pod: object, query = ''): Promise<StoredPod> {
    const path = `/api/v1/namespaces/${namespace}/pods${query}`;
    return (await this.#cluster.request('POST', path, pod)) as StoredPod;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.unregister();
    for (const replica of this.#running) await replica.stop();
    for (const kind of ['clusterroles', 'clusterrolebindings'])
      await this.#cluster.request('DELETE', `${rbac}/${kind}/${this.name}`).catch(() => undefined);
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** The rules of rbac.yaml, with the names of this test. */
  async #permit(): Promise<void> {
    const rules = (await readManifests('kubernetes/injector/base/rbac.yaml')) as unknown as (Manifest & {
      rules?: { resources: string[]; resourceNames: string[] }[];
    })[];
    const subjects = [{ kind: 'ServiceAccount', name: 'app', namespace: this.home }];
    for (const { kind, rules: own = [] } of rules) {
      if (kind !== 'Role' && kind !== 'ClusterRole') continue;
      const renamed = own.map((rule) => ({
        ...rule,
        resourceNames: [rule.resources[0] === 'secrets' ? 'certificates' : this.name],
      }));
      const place = kind === 'Role' ? `${rbac}/namespaces/${this.home}` : rbac;
      const metadata = { name: this.name };
      await this.#cluster.request('POST', `${place}/${kind.toLowerCase()}s`, { metadata, rules: renamed });
      await this.#cluster.request('POST', `${place}/${kind.toLowerCase()}bindings`, {
        metadata,
        subjects,
        roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind, name: this.name },
      });
    }
    await this.#cluster.secret(this.home, 'certificates', {});
  }

  async #kubeconfig(port = this.#cluster.port): Promise<string> {
    const path = join(this.#folder, `kubeconfig-${port}`);
    const token = await this.#cluster.token(this.home);
    await writeFile(
      path,
      `apiVersion: v1
kind: Config
current-context: test
contexts: [{name: test, context: {cluster: test, user: app}}]
clusters: [{name: test, cluster: {server: "https://127.0.0.1:${port}", certificate-authority: ${this.#cluster.ca}}}]
users: [{name: app, user: {token: ${token}}}]
`,
    );
    return path;
  }
}

const configurations = '/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations';
const rbac = '/apis/rbac.authorization.k8s.io/v1';

/** One process of the injector, in this one. */
export class Replica {
  readonly injector: Injector;
  readonly #end: AbortController;
  readonly #running: Promise<void>;
  readonly #gone: () => void;

  private constructor(injector: Injector, end: AbortController, gone: () => void) {
    this.injector = injector;
    this.#end = end;
    this.#running = injector.run();
    this.#gone = gone;
  }

  static async start(
    settings: ReturnType<typeof parseSettings>,
    log: Logger,
    gone: () => void,
  ): Promise<Replica> {
    const end = new AbortController();
    const context = { log, version: '1.2.3', environment: {}, signal: end.signal };
    return new Replica(await Injector.start(settings, context), end, gone);
  }

  /** Waits until it listens, and gives its port. */
  async listening(): Promise<number> {
    await eventually(() => this.injector.address !== undefined, 'the webhook listens');
    const { address } = this.injector;
    return address?.kind === 'tcp' ? address.port : 0;
  }

  /** Waits until the API server would believe its certificate. */
  async ready(): Promise<void> {
    await eventually(() => this.injector.notReady() === undefined, `ready: ${this.injector.notReady()}`);
  }

  async metric(name: string): Promise<number> {
    const { adminAddress } = this.injector;
    const response = await fetch(
      `http://127.0.0.1:${adminAddress?.kind === 'tcp' ? adminAddress.port : 0}/metrics`,
    );
    const text = await response.text();
    return Number(
      text
        .split('\n')
        .find((line) => line.startsWith(`${name} `))
        ?.split(' ')
        .at(-1) ?? 0,
    );
  }

  async stop(): Promise<void> {
    this.#gone();
    this.#end.abort(new Error('the test is over'));
    await this.#running;
    await this.injector[Symbol.asyncDispose]();
  }
}

/** Waits, as long as a busy machine may take, until it is so. */
export async function eventually(so: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const end = Date.now() + 30_000;
  while (!(await so())) {
    if (Date.now() > end) throw new Error(`not within 30 s: ${what}`);
    await delay(25);
  }
}

/** A pod that "restricted" takes, with an init container as a migration is one. */
export function pod(
  annotations: Readonly<Record<string, string>>,
  more: object = {},
): Record<string, unknown> {
  const securityContext = {
    runAsUser: 10001,
    allowPrivilegeEscalation: false,
    capabilities: { drop: ['ALL'] },
  };
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { generateName: 'orders-', annotations },
    spec: {
      serviceAccountName: 'app',
      automountServiceAccountToken: false,
      securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } },
      initContainers: [{ name: 'migrate', image: 'registry.example.com/migrate:1', securityContext }],
      containers: [{ name: 'app', image: 'registry.example.com/app:1', securityContext }],
      ...more,
    },
  };
}
