import assert from 'node:assert/strict';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';

import { parseOptions } from '../../src/cli/options.ts';
import { buildHelm } from '../support/servers/kube-clients.ts';
import { capture, type Output } from '../support/servers/process.ts';
import { withServer } from '../support/servers.ts';
import {
  admitAll,
  configOf,
  found,
  type Manifest,
  parseManifests,
  podsOf,
  posternOf,
  RestrictedNamespace,
  readManifests,
} from './manifests.ts';
import { withProgram } from './programs.ts';

const charts = fileURLToPath(new URL('../../deploy/helm/', import.meta.url));
const kubeVersion = '1.36.0';

/** Runs helm in a folder of its own: it keeps caches, and puts what a chart depends on into the chart. */
class Helm {
  readonly #program: string;
  readonly folder: string;

  private constructor(program: string, folder: string) {
    this.#program = program;
    this.folder = folder;
  }

  static async open(program: string): Promise<Helm> {
    const folder = await mkdtemp(join(tmpdir(), 'postern-helm-'));
    await cp(charts, folder, { recursive: true });
    const helm = new Helm(program, folder);
    const { code, stderr } = await helm.run('dependency', 'update', 'example');
    assert.equal(code, 0, stderr);
    return helm;
  }

  run(...words: readonly string[]): Promise<Output> {
    const homes = ['CACHE', 'CONFIG', 'DATA'].map((name) => [
      `HELM_${name}_HOME`,
      join(this.folder, `.${name}`),
    ]);
    const env = { ...process.env, ...Object.fromEntries(homes) };
    return capture(this.#program, words, { cwd: this.folder, env });
  }

  async template(chart: 'postern' | 'example', values: object, version = kubeVersion): Promise<Output> {
    const file = join(this.folder, `values-${crypto.randomUUID()}.yaml`);
    await writeFile(file, stringify(values));
    return await this.run('template', 'orders', chart, '--values', file, '--kube-version', version);
  }
}

let opened: Promise<Helm> | undefined;
after(async () => {
  const helm = await opened?.catch(() => undefined);
  if (helm) await rm(helm.folder, { recursive: true });
});

async function withHelm(t: TestContext): Promise<Helm | undefined> {
  const program = await withProgram(t, buildHelm);
  if (program === undefined) return undefined;
  opened ??= Helm.open(program);
  return await opened;
}

async function render(
  t: TestContext,
  chart: 'postern' | 'example',
  values: object,
  version?: string,
): Promise<Manifest[] | undefined> {
  const helm = await withHelm(t);
  if (!helm) return undefined;
  const { code, stdout, stderr } = await helm.template(chart, values, version);
  assert.equal(code, 0, stderr);
  return parseManifests(stdout);
}

const service = (listenOn: string, rest: object = { exposed: true }) => ({
  connector: 'postgres',
  listenOn,
  credentials: {
    username: { from: 'vault', get: 'secret/orders/db#username' },
    password: { from: 'vault', get: 'secret/orders/db#password' },
  },
  config: { host: 'orders-db.databases.svc' },
  ...rest,
});
const providers = {
  vault: {
    kind: 'vault',
    address: 'https://vault.vault.svc:8200',
    auth: { method: 'kubernetes', role: 'gateway', jwtFile: '/var/run/secrets/vault/token' },
  },
};
const config = (services: object, rest: object = {}) =>
  stringify({ version: 2, providers, services, limits: { drainTimeout: '20s' }, ...rest });
/** Asks for a local password, as everybody's gateway should: without it the program warns. */
const access = { password: { from: 'vault', get: 'secret/orders/local#password' } };
const gatewayConfig = config(
  { orders: service('tcp://0.0.0.0:5432'), stock: service('tcp://0.0.0.0:5433') },
  { access },
);
const vaultToken = [{ name: 'vault', audience: 'vault' }];

/** Sets of values that have to work, each with what it is for. */
const gateways: Readonly<Record<string, object>> = {
  'with nothing but a configuration': { config: gatewayConfig, tokens: vaultToken },
  'with everything switched on': {
    config: gatewayConfig,
    files: { 'vault-ca.pem': 'a certificate\nof two lines\n' },
    existingSecret: 'approle',
    image: { repository: 'registry.example.com/postern', digest: `sha256:${'0'.repeat(64)}` },
    imagePullSecrets: [{ name: 'registry' }],
    commonLabels: { team: 'orders' },
    args: ['--log-level', 'debug'],
    env: [{ name: 'VAULT_NAMESPACE', value: 'orders' }],
    envFrom: [{ configMapRef: { name: 'variables', optional: true } }],
    extraVolumes: [{ name: 'more', emptyDir: {} }],
    extraVolumeMounts: [{ name: 'more', mountPath: '/more' }],
    tokens: [...vaultToken, { name: 'conjur', audience: 'conjur', expirationSeconds: 1_000_000 }],
    kubernetesSecrets: { names: ['orders-db', 'stock-db'], watch: true },
    gateway: {
      replicaCount: 3,
      service: { type: 'LoadBalancer', annotations: { 'example.com/internal': 'true' } },
      serviceAccount: { annotations: { 'example.com/role': 'orders' } },
      podAnnotations: { 'example.com/a': 'b' },
      podLabels: { 'example.com/a': 'b' },
      nodeSelector: { 'kubernetes.io/os': 'linux' },
      tolerations: [{ key: 'dedicated', operator: 'Exists' }],
      affinity: {
        podAntiAffinity: {
          preferredDuringSchedulingIgnoredDuringExecution: [
            { weight: 1, podAffinityTerm: { topologyKey: 'kubernetes.io/hostname' } },
          ],
        },
      },
      topologySpreadConstraints: [
        { maxSkew: 1, topologyKey: 'topology.kubernetes.io/zone', whenUnsatisfiable: 'ScheduleAnyway' },
      ],
      priorityClassName: 'system-cluster-critical',
      podDisruptionBudget: { enabled: true, maxUnavailable: '50%' },
    },
  },
  'with as little as possible': {
    config: gatewayConfig,
    fullnameOverride: 'pg',
    state: { enabled: false },
    gateway: {
      // The action `sleep` takes 0 only in the newest clusters: there is no hook then.
      preStopSeconds: 0,
      serviceAccount: { create: false, name: 'mine' },
      podDisruptionBudget: { enabled: false },
      networkPolicy: { enabled: false },
    },
  },
  'with a configuration in the cluster': {
    configuration: { resource: 'orders' },
    files: { 'db-ca.pem': 'a certificate' },
    gateway: { ports: [{ name: 'postgres', port: 5432 }] },
  },
  'with a ConfigMap of its own': {
    existingConfigMap: 'mine',
    gateway: { ports: [{ name: 'postgres', port: 5432, targetPort: 6432 }] },
  },
};

describe('the Helm chart as a gateway', () => {
  for (const [what, values] of Object.entries(gateways))
    it(`${what} makes what a real API server takes under "restricted"`, async (t) => {
      const cluster = await withServer(t, 'kubernetes');
      const manifests = cluster && (await render(t, 'postern', values));
      if (manifests) await admitAll(cluster, manifests);
    });

  it('has a Service and a NetworkPolicy for the ports that the configuration listens on', async (t) => {
    const manifests = await render(t, 'postern', {
      config: config({
        orders: service('tcp://0.0.0.0:5432'),
        stock: service('tcp://[::]:5433'),
        first: { ...service('tcp://0.0.0.0:8080'), connector: 'http' },
        second: { ...service('tcp://0.0.0.0:8080'), connector: 'http' },
      }),
    });
    if (!manifests) return;
    const byKind = (kind: string) => found(found(manifests.find((each) => each.kind === kind)).spec);
    const port = (number: number) => ({ name: `tcp-${number}`, port: number, targetPort: number });
    assert.deepEqual(
      (byKind('Service')['ports'] as { port: number }[]).toSorted((a, b) => a.port - b.port),
      [5432, 5433, 8080].map(port),
    );
    const [clients] = byKind('NetworkPolicy')['ingress'] as { ports: { port: number }[]; from: object[] }[];
    assert.deepEqual(clients?.ports.map((each) => each.port).toSorted(), [5432, 5433, 8080]);
    assert.deepEqual(clients?.from, [{ podSelector: { matchLabels: { 'postern.dev/client': 'true' } } }]);
  });

  it('makes a configuration that the program reads without a warning, and a command line that it understands', async (t) => {
    const manifests = await render(t, 'postern', found(gateways['with everything switched on']));
    if (!manifests) return;
    const [command, ...words] = found(posternOf(found(podsOf(manifests)[0])).args);
    assert.equal(command, 'run');
    const options = parseOptions(words, {});
    assert.deepEqual(options.configPaths, ['/etc/postern/postern.yaml']);
    assert.equal(options.logLevel, 'debug');
    const admin = found(options.context.overrides?.admin);
    const map = found(manifests.find(({ kind }) => kind === 'ConfigMap'));
    const read = await configOf(map, { admin });
    assert.deepEqual(read.admin.listenOn, { kind: 'tcp', host: '0.0.0.0', port: 9090 });
    assert.equal(map.data?.['vault-ca.pem'], 'a certificate\nof two lines\n');
    assert.equal(map.data?.['postern.yaml'], gatewayConfig, 'verbatim');
  });

  it('reads a configuration in the cluster with a token and the rights for that one', async (t) => {
    const values = found(gateways['with a configuration in the cluster']);
    const manifests = await render(t, 'postern', values);
    if (!manifests) return;
    const postern = posternOf(found(podsOf(manifests)[0]));
    const { configPaths } = parseOptions(found(postern.args).slice(1), {});
    assert.deepEqual(configPaths, ['k8s:///orders']);
    assert.ok(postern.volumeMounts?.some(({ name }) => name === 'postern-api-token'));
    assert.deepEqual(found(manifests.find(({ kind }) => kind === 'ConfigMap')).data, {
      'db-ca.pem': 'a certificate\n',
    });
    const role = found(manifests.find(({ kind }) => kind === 'Role')) as unknown as { rules: object[] };
    const model = (await readManifests('kubernetes/crd/rbac.yaml'))[0] as unknown as { rules: object[] };
    assert.deepEqual(role.rules, model.rules);
    // With a configuration of the chart both are read.
    const both = await render(t, 'postern', { ...values, config: gatewayConfig });
    const words = found(posternOf(found(podsOf(both ?? [])[0])).args).slice(1);
    assert.deepEqual(parseOptions(words, {}).configPaths, ['/etc/postern/postern.yaml', 'k8s:///orders']);
  });

  it('changes its pods when the configuration changes, and only then', async (t) => {
    const template = async (values: object) =>
      JSON.stringify((await render(t, 'postern', values))?.find(({ kind }) => kind === 'Deployment')?.spec);
    const one = await template({ config: gatewayConfig });
    assert.equal(await template({ config: gatewayConfig, gateway: { service: { type: 'NodePort' } } }), one);
    if (one === undefined) return;
    assert.notEqual(await template({ config: `${gatewayConfig}# other\n` }), one);
    assert.notEqual(await template({ config: gatewayConfig, files: { 'ca.pem': 'other' } }), one);
  });

  const refusals: readonly (readonly [what: string, values: object, sentence: RegExp])[] = [
    ['no configuration', {}, /a gateway needs services in `config`|`config` is empty/],
    [
      'a listener that no other pod can reach',
      { config: config({ db: service('tcp://127.0.0.1:5432') }) },
      /service db listens on tcp:\/\/127\.0\.0\.1:5432, which no other pod can reach/,
    ],
    [
      'a unix socket',
      { config: config({ db: service('unix:///run/db') }) },
      /service db listens on "unix:\/\/\/run\/db", which no other pod can reach/,
    ],
    [
      'a service that does not say exposed',
      { config: config({ db: service('tcp://0.0.0.0:5432', {}) }) },
      /service db needs exposed: true, which says that whoever reaches it is logged in/,
    ],
    ['a configuration that is no YAML', { config: 'services: [' }, /config is no YAML/],
    ['a misspelt value', { config: gatewayConfig, gateway: { replicas: 3 } }, /replicas/],
    ['a value of a wrong type', { config: gatewayConfig, adminPort: 'nine' }, /adminPort/],
    ['a configuration that is not a text', { config: { version: 2 } }, /config/],
    ['root', { config: gatewayConfig, securityContext: { runAsUser: 0 } }, /runAsUser/],
    [
      'a file that would replace the configuration',
      { config: gatewayConfig, files: { 'postern.yaml': '' } },
      /postern\.yaml/,
    ],
    ['a ConfigMap of its own without ports', { existingConfigMap: 'mine' }, /gateway needs services/],
  ];
  for (const [what, values, sentence] of refusals)
    it(`refuses ${what} with a sentence`, async (t) => {
      const helm = await withHelm(t);
      if (!helm) return;
      const { code, stderr } = await helm.template('postern', values);
      assert.notEqual(code, 0);
      assert.match(stderr, sentence);
    });

  it('passes the linter of helm without a warning', async (t) => {
    const helm = await withHelm(t);
    if (!helm) return;
    await writeFile(join(helm.folder, 'good.yaml'), stringify({ config: gatewayConfig }));
    for (const words of [['postern', '--values', 'good.yaml'], ['example']]) {
      const { code, stdout } = await helm.run('lint', '--strict', ...words);
      assert.equal(code, 0, stdout);
      assert.doesNotMatch(stdout, /\[(WARNING|ERROR)\]/);
    }
  });

  it('is installed, changed and taken away, and says loudly each time who is logged in', async (t) => {
    const cluster = await withServer(t, 'kubernetes');
    const helm = cluster && (await withHelm(t));
    if (!helm) return;
    const namespace = await RestrictedNamespace.make(cluster);
    const where = ['--kubeconfig', cluster.kubeconfig, '--namespace', namespace.name];
    const release = async (command: string, values: object) => {
      await writeFile(join(helm.folder, 'notes.yaml'), stringify(values));
      const { code, stdout, stderr } = await helm.run(
        command,
        'orders',
        'postern',
        '--values',
        'notes.yaml',
        ...where,
      );
      assert.equal(code, 0, stderr);
      return stdout.slice(stdout.indexOf('NOTES:'));
    };
    const policies = async () => {
      const path = `/apis/networking.k8s.io/v1/namespaces/${namespace.name}/networkpolicies`;
      const { items } = (await cluster.request('GET', path)) as { items: { metadata: { name: string } }[] };
      return items.map(({ metadata }) => metadata.name);
    };
    const notes = await release('install', { config: gatewayConfig });
    assert.match(notes, /WHOEVER REACHES THESE PORTS IS LOGGED IN WITHOUT A PASSWORD/);
    assert.match(notes, /port 5432, port 5433/);
    assert.deepEqual(await policies(), ['orders-postern']);
    const networkPolicy = { enabled: false };
    const open = await release('upgrade', { config: gatewayConfig, gateway: { networkPolicy } });
    assert.match(open, /EVERY POD OF THE CLUSTER CAN/);
    assert.deepEqual(await policies(), []);
    assert.equal((await helm.run('uninstall', 'orders', ...where)).code, 0);
  });

  it('asks for metrics where the Prometheus operator is to read them', async (t) => {
    const serviceMonitor = { enabled: true, labels: { release: 'prometheus' }, interval: '15s' };
    const manifests = await render(t, 'postern', { config: gatewayConfig, metrics: { serviceMonitor } });
    if (!manifests) return;
    const monitor = found(manifests.find(({ kind }) => kind === 'ServiceMonitor'));
    assert.equal(monitor.metadata.labels?.['release'], 'prometheus');
    assert.deepEqual(monitor.spec?.['endpoints'], [
      { port: 'postern-admin', path: '/metrics', interval: '15s', scrapeTimeout: '10s' },
    ]);
    // It selects the one Service that has this port.
    const { matchLabels } = found(monitor.spec)['selector'] as { matchLabels: Record<string, string> };
    const selected = manifests.filter(
      ({ kind, metadata }) =>
        kind === 'Service' &&
        Object.entries(matchLabels).every(([label, value]) => metadata.labels?.[label] === value),
    );
    assert.deepEqual(
      selected.map(({ metadata }) => metadata.name),
      ['orders-postern-metrics'],
    );
  });
});

describe('the Helm chart as a library', () => {
  const forms: Readonly<Record<string, readonly [values: object, version?: string]>> = {
    'a native sidecar': [{}],
    'a plain sidecar of an old cluster': [{ postern: { sidecar: { native: false } } }, '1.28.0'],
    'the provider kubernetes': [
      { postern: { kubernetesSecrets: { names: ['orders-db'], serviceAccountName: 'orders' } } },
    ],
  };
  for (const [what, [values, version]] of Object.entries(forms))
    it(`${what} makes what a real API server takes under "restricted"`, async (t) => {
      const cluster = await withServer(t, 'kubernetes');
      const manifests = cluster && (await render(t, 'example', values, version));
      if (!manifests) return;
      await admitAll(cluster, manifests);
      assert.equal(
        manifests.filter(({ kind }) => kind === 'Deployment').length,
        1,
        'no gateway beside the application',
      );
    });

  it('has Postern before everything else, in the form of sidecar.yaml', async (t) => {
    const manifests = await render(t, 'example', {});
    if (!manifests) return;
    const [pod] = podsOf(manifests);
    const [first] = found(pod?.initContainers);
    assert.equal(first?.name, 'postern');
    const model = posternOf(found(podsOf(await readManifests('kubernetes/sidecar.yaml'))[0]));
    const { args, volumeMounts, ...rest } = first;
    const { args: plainArgs, volumeMounts: plainMounts, ...plain } = model;
    assert.deepEqual(rest, { ...plain, imagePullPolicy: 'IfNotPresent' });
    assert.deepEqual(args?.slice(0, 3), plainArgs);
    const where = (mounts: typeof volumeMounts) => mounts?.map(({ mountPath }) => mountPath).toSorted();
    assert.deepEqual(where(volumeMounts), where(plainMounts));
  });

  it('orders a plain sidecar by hooks', async (t) => {
    const values = { postern: { adminPort: 9191, sidecar: { native: false, preStopSeconds: 7 } } };
    const lifecycle = async (version: string) => {
      const manifests = await render(t, 'example', values, version);
      if (!manifests) return undefined;
      const [first] = found(podsOf(manifests)[0]).containers;
      assert.equal(first?.name, 'postern');
      assert.equal(first.startupProbe, undefined);
      return found(first.lifecycle);
    };
    const old = await lifecycle('1.28.0');
    if (!old) return;
    const wait = ['postern', 'wait', '--admin-listen', 'tcp://127.0.0.1:9191', '--timeout', '60s'];
    assert.deepEqual(old.postStart, { exec: { command: wait } });
    assert.deepEqual(old.preStop, { exec: { command: ['node', '-e', 'setTimeout(() => {}, 7000)'] } });
    assert.deepEqual((await lifecycle('1.30.0'))?.preStop, { sleep: { seconds: 7 } });
  });

  it('permits the Secrets that it names and nothing else', async (t) => {
    const manifests = await render(t, 'example', {
      postern: { kubernetesSecrets: { names: ['orders-db'], serviceAccountName: 'orders' } },
    });
    if (!manifests) return;
    const role = manifests.find(({ kind }) => kind === 'Role') as unknown as { rules: object[] };
    assert.deepEqual(role.rules, [
      { apiGroups: [''], resources: ['secrets'], resourceNames: ['orders-db'], verbs: ['get'] },
    ]);
    const binding = manifests.find(({ kind }) => kind === 'RoleBinding') as unknown as { subjects: object[] };
    assert.deepEqual(binding.subjects, [{ kind: 'ServiceAccount', name: 'orders', namespace: 'default' }]);
  });

  it('reads its configuration without a warning', async (t) => {
    const manifests = await render(t, 'example', {});
    if (!manifests) return;
    const args = found(posternOf(found(podsOf(manifests)[0])).args);
    const admin = found(parseOptions(args.slice(1), {}).context.overrides?.admin);
    const map = found(manifests.find(({ kind }) => kind === 'ConfigMap'));
    const { services } = await configOf(map, { admin });
    assert.equal(services.length, 1);
  });
});
