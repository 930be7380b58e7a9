import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseAllDocuments } from 'yaml';

import { Postern } from '../../support/postern.ts';
import { answers, capture, freePort } from '../../support/servers/process.ts';
import { canary, type Kubernetes, type PrivateKubernetes, startKubernetes } from '../../support/servers.ts';
import { clusterHere, configuration, configurations, defineConfiguration } from './crd.ts';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const reloaded = 'configuration reloaded';

interface Stored {
  readonly metadata: { readonly generation: number };
  readonly status?: {
    readonly conditions?: readonly {
      readonly type: string;
      readonly status: string;
      readonly reason: string;
      readonly message: string;
      readonly observedGeneration: number;
    }[];
    readonly instances?: readonly {
      readonly name: string;
      readonly reason: string;
      readonly message: string;
    }[];
  };
}

async function eventually<T>(what: string, look: () => Promise<T | undefined>): Promise<T> {
  const end = Date.now() + 40_000;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    assert.ok(Date.now() < end, `waited in vain for ${what}`);
    await sleep(50);
  }
}

/** A service that listens; nobody logs in. The password is a canary: it must be nowhere else. */
function service(port: number, more: object = {}): object {
  return {
    connector: 'postgres',
    listenOn: `tcp://127.0.0.1:${port}`,
    credentials: {
      username: { from: 'literal', get: 'app' },
      password: { from: 'literal', get: canary.postgres },
    },
    config: { host: '127.0.0.1', port: 1 },
    ...more,
  };
}

/** A namespace whose service account may do what docs and manifests say, and a resource in it. */
class Scene {
  readonly cluster: Kubernetes;
  readonly namespace: string;
  readonly kubeconfig: string;

  private constructor(cluster: Kubernetes, namespace: string, kubeconfig: string) {
    this.cluster = cluster;
    this.namespace = namespace;
    this.kubeconfig = kubeconfig;
  }

  static async make(
    t: TestContext,
    cluster: Kubernetes,
    rights: 'those of the manifest' | 'to read' | 'none',
  ) {
    const namespace = await cluster.namespace();
    const folder = await mkdtemp(join(tmpdir(), 'postern-cluster-'));
    t.after(() => rm(folder, { recursive: true }));
    const kubeconfig = join(folder, 'config');
    await writeFile(
      kubeconfig,
      JSON.stringify({
        'current-context': 'app',
        contexts: [{ name: 'app', context: { cluster: 'test', user: 'app', namespace } }],
        clusters: [{ name: 'test', cluster: { server: cluster.url, 'certificate-authority': cluster.ca } }],
        users: [{ name: 'app', user: { token: await cluster.token(namespace) } }],
      }),
      { mode: 0o600 },
    );
    if (rights !== 'none') await permit(cluster, namespace, rights === 'to read');
    return new Scene(cluster, namespace, kubeconfig);
  }

  async create(spec: object, name = 'orders'): Promise<void> {
    await this.cluster.request('POST', configurations(this.namespace), configuration(name, spec));
  }

  /** Gives the new generation. */
  async replace(spec: object, name = 'orders'): Promise<number> {
    const path = configurations(this.namespace, name);
    for (;;) {
      const { metadata } = (await this.cluster.request('GET', path)) as { metadata: object };
      const next = { ...configuration(name, spec), metadata };
      const made = await this.cluster.request('PUT', path, next).catch((thrown: Error) => {
        // Postern has written its status in the meantime.
        if (thrown.message.includes(' 409 ')) return undefined;
        throw thrown;
      });
      if (made) return (made as Stored).metadata.generation;
    }
  }

  async stored(name = 'orders'): Promise<Stored> {
    return (await this.cluster.request('GET', configurations(this.namespace, name))) as Stored;
  }

  /** The condition once it is about a generation and has this status. */
  async condition(type: string, status: string, generation: number) {
    return await eventually(`${type}=${status} for generation ${generation}`, async () =>
      (await this.stored()).status?.conditions?.find(
        (each) => each.type === type && each.status === status && each.observedGeneration === generation,
      ),
    );
  }

  start(options: { readonly env?: Record<string, string>; readonly args?: readonly string[] } = {}) {
    return Postern.start('version: 2\n', {
      env: { KUBECONFIG: this.kubeconfig, HOSTNAME: 'orders-1', ...options.env },
      args: ['-f', 'k8s:///orders', ...(options.args ?? [])],
    });
  }
}

/** Applies deploy/kubernetes/crd/rbac.yaml, with this namespace's account. */
async function permit(cluster: Kubernetes, namespace: string, onlyRead: boolean): Promise<void> {
  const text = await readFile(join(root, 'deploy/kubernetes/crd/rbac.yaml'), 'utf8');
  for (const document of parseAllDocuments(text)) {
    const manifest = document.toJS() as {
      kind: string;
      rules?: { resources: string[] }[];
      subjects?: { name: string; namespace?: string }[];
    };
    if (onlyRead && manifest.rules)
      manifest.rules = manifest.rules.filter(({ resources }) => !resources.includes('configurations/status'));
    for (const subject of manifest.subjects ?? []) Object.assign(subject, { name: 'app', namespace });
    const plural = manifest.kind === 'Role' ? 'roles' : 'rolebindings';
    await cluster.request(
      'POST',
      `/apis/rbac.authorization.k8s.io/v1/namespaces/${namespace}/${plural}?fieldValidation=Strict`,
      manifest,
    );
  }
}

const here = await clusterHere();

describe('a configuration in the cluster', { timeout: 180_000, concurrency: 2, skip: !here }, () => {
  let cluster: Kubernetes;
  before(async () => {
    assert.ok(here);
    cluster = here;
    await defineConfiguration(cluster);
  });

  it('is served by a service account with the least rights, and followed through its changes', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    const [first, second] = [await freePort(), await freePort()];
    await at.create({ services: { db: service(first) } });
    await using postern = await at.start();
    assert.ok(await answers(first));
    await at.condition('Accepted', 'True', 1);
    await at.condition('Ready', 'True', 1);

    const generation = await at.replace({ services: { db: service(first), more: service(second) } });
    await postern.logged(({ msg }) => msg === reloaded);
    assert.ok(await answers(second));
    await at.condition('Ready', 'True', generation);
    assert.equal(await postern.metric('postern_config_source_up'), 1);
    assert.equal(
      postern.lines.filter(({ msg, service: of }) => msg === 'listening' && of === 'db').length,
      1,
    );

    await at.replace({ services: { more: service(second) } });
    await eventually('the first to close', async () => ((await answers(first)) ? undefined : true));
    // What Postern writes into the status is no change of the configuration.
    const reloads = await postern.metric('postern_config_reloads_total', { outcome: 'ok' });
    assert.equal(reloads, 2);
  });

  it('stays in force when the next one cannot be read, and the condition says why, without a value', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    const port = await freePort();
    await at.create({ services: { db: service(port) } });
    await using postern = await at.start();
    // What no structural schema sees: a setting that the connector does not have.
    const bad = service(port, { config: { host: '127.0.0.1', hosst: canary.postgresUnicode } });
    const generation = await at.replace({ services: { db: bad } });
    const accepted = await at.condition('Accepted', 'False', generation);
    assert.equal(accepted.reason, 'CONFIG_INVALID');
    assert.match(
      accepted.message,
      /^orders-1: k8s:\/\/\/orders: services\.db\.config\.hosst: unknown key; did you mean "host"\?$/,
    );
    await at.condition('Ready', 'False', generation);
    const { status } = await at.stored();
    assert.deepEqual(
      status?.instances?.map(({ name, reason }) => [name, reason]),
      [['orders-1', 'CONFIG_INVALID']],
    );
    for (const secret of Object.values(canary)) assert.ok(!JSON.stringify(status).includes(secret));
    assert.ok(await answers(port));
    assert.equal(await postern.metric('postern_config_reloads_total', { outcome: 'failed' }), 1);

    const mended = await at.replace({ services: { db: service(port) } });
    await at.condition('Accepted', 'True', mended);
    await at.condition('Ready', 'True', mended);
    assert.deepEqual((await at.stored()).status?.instances, []);
  });

  it('is accepted and not ready where an address is taken', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    const [port, taken] = [await freePort(), await freePort()];
    await at.create({ services: { db: service(port) } });
    await using postern = await at.start();
    await using _other = await Postern.start(
      JSON.stringify({ version: 2, services: { other: service(taken) } }),
    );
    const generation = await at.replace({ services: { db: service(port), more: service(taken) } });
    const ready = await at.condition('Ready', 'False', generation);
    assert.equal(ready.reason, 'LISTEN_FAILED');
    await at.condition('Accepted', 'True', generation);
    assert.ok(await answers(port));
    assert.ok(!postern.lines.some(({ msg }) => msg === 'stopping'));
  });

  it('lists each instance that has trouble, and forgets one that ends', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    await at.create({ services: { db: service(0) } });
    await using one = await at.start({ env: { HOSTNAME: 'orders-1' } });
    await using two = await at.start({ env: { HOSTNAME: 'x', POD_NAME: 'orders-2' } });
    const bad = service(0, { config: { host: '127.0.0.1', hosst: 'x' } });
    await at.replace({ services: { db: bad } });
    const names = async () => (await at.stored()).status?.instances?.map(({ name }) => name).join();
    await eventually('both', async () => ((await names()) === 'orders-1,orders-2' ? true : undefined));
    await one.stop();
    await eventually('the other', async () => ((await names()) === 'orders-2' ? true : undefined));
    await two.stop();
    await eventually('none', async () => ((await names()) === '' ? true : undefined));
  });

  it('goes on without the right to write its status, and says so once', async (t) => {
    const at = await Scene.make(t, cluster, 'to read');
    const port = await freePort();
    await at.create({ services: { db: service(port) } });
    await using postern = await at.start();
    await postern.logged(
      ({ msg }) => msg === 'the status of the configuration in the cluster cannot be written',
    );
    await at.replace({ services: { db: service(port), more: service(0) } });
    await postern.logged(({ msg }) => msg === reloaded);
    assert.equal((await at.stored()).status, undefined);
    const said = postern.lines.filter(({ msg }) => String(msg).startsWith('the status of'));
    assert.equal(said.length, 1);
  });

  it('stays in force when the resource is deleted, and goes on when there is another one', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    const [port, later] = [await freePort(), await freePort()];
    await at.create({ services: { db: service(port) } });
    await using postern = await at.start();
    await at.condition('Ready', 'True', 1);
    await cluster.request('DELETE', configurations(at.namespace, 'orders'));
    await postern.logged(
      ({ msg }) => msg === 'the configuration in the cluster is gone, the last one stays in force',
    );
    assert.equal(await postern.metric('postern_config_source_up'), 0);
    assert.ok(await answers(port));
    // Somebody asks for a reload: there is nothing to read, so nothing changes.
    postern.signal('SIGHUP');
    await postern.logged(({ msg }) => msg === 'configuration not reloaded, the old one stays in force');
    assert.ok(await answers(port));
    // The same generation, and yet another object.
    await at.create({ services: { db: service(later) } });
    await eventually('the new one', async () => ((await answers(later)) ? true : undefined));
    assert.equal(await postern.metric('postern_config_source_up'), 1);
  });

  it('ends the start with 1 when it is bad, and leaves the reason in the status', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    await at.create({ services: { db: service(0, { config: { hosst: 'x' } }) } });
    const { code, stderr } = await run(at, ['-f', 'k8s:///orders']);
    assert.equal(code, 1);
    assert.match(stderr, /^k8s:\/\/\/orders: services\.db\.config\.hosst: unknown key/m);
    const { message } = await at.condition('Accepted', 'False', 1);
    assert.match(message, /^crashing-1: .*hosst: unknown key/);
  });

  it('is waited for at the start as long as it is said, and then the process ends with 1', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    const missing = await run(at, ['-f', 'k8s:///orders', '--config-timeout', '8s']);
    assert.equal(missing.code, 1);
    assert.match(missing.stderr, /^k8s:\/\/\/orders: reading it: there is no such Configuration/m);
    assert.match(missing.stdout, /waiting for the configuration in the cluster/);

    const port = await freePort();
    const starting = at.start({ args: ['--config-timeout', '50s'] });
    await sleep(300);
    await at.create({ services: { db: service(port) } });
    await using _postern = await starting;
    assert.ok(await answers(port));
  });

  it('is not waited for where the right to read it is missing', async (t) => {
    const at = await Scene.make(t, cluster, 'none');
    const { code, stderr } = await run(at, ['-f', 'k8s:///orders']);
    assert.equal(code, 1);
    assert.match(stderr, /^k8s:\/\/\/orders: reading it: permission denied \(HTTP 403/m);
  });

  it('can be checked like a file, and more rights than the manifest gives are not needed for others', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    await at.create({ services: { db: service(0) } });
    await at.create({ services: { db: service(0) } }, 'others');
    const words = (path: string) => [['check'], ['-f', path]].flat();
    const env = { PATH: process.env['PATH'], KUBECONFIG: at.kubeconfig };
    const good = await capture(join(root, 'bin/postern'), words(`k8s://${at.namespace}/orders`), { env });
    assert.equal(good.code, 0, good.stdout + good.stderr);
    const other = await capture(join(root, 'bin/postern'), words('k8s:///others'), { env });
    assert.equal(other.code, 1);
    assert.match(other.stdout, /permission denied/);
    const misspelt = await capture(join(root, 'bin/postern'), words('k8s://orders'), { env });
    assert.match(misspelt.stdout, /write k8s:\/\/NAMESPACE\/NAME, or k8s:\/\/\/NAME/);
  });
});

async function run(at: Scene, args: readonly string[]) {
  return await capture(join(root, 'bin/postern'), ['run', '--admin-listen', 'off', ...args], {
    env: { PATH: process.env['PATH'], KUBECONFIG: at.kubeconfig, HOSTNAME: 'crashing-1' },
  });
}

describe('a configuration in a cluster whose API server comes and goes', {
  timeout: 180_000,
  skip: !here,
}, () => {
  let cluster: PrivateKubernetes;
  before(async () => {
    cluster = await startKubernetes();
    await defineConfiguration(cluster);
  });
  after(async () => await cluster.stop());

  it('stays in force while the API server is down, and is followed when it is back', async (t) => {
    const at = await Scene.make(t, cluster, 'those of the manifest');
    const [port, later] = [await freePort(), await freePort()];
    await at.create({ services: { db: service(port) } });
    await using postern = await at.start();
    await at.condition('Ready', 'True', 1);
    await cluster.kill();
    await postern.logged(
      ({ msg }) => msg === 'the configuration in the cluster is not watched, the last one stays in force',
    );
    assert.equal(await postern.metric('postern_config_source_up'), 0);
    postern.signal('SIGHUP');
    await postern.logged(({ msg }) => msg === 'configuration not reloaded, the old one stays in force');
    assert.ok(await answers(port));
    await cluster.restart();
    await at.replace({ services: { db: service(port), more: service(later) } });
    await postern.logged(({ msg }) => msg === 'the configuration in the cluster is watched again', 60_000);
    await eventually('the change', async () => ((await answers(later)) ? true : undefined));
    await at.condition('Ready', 'True', 2);
    assert.equal(await postern.metric('postern_config_source_up'), 1);
  });
});
