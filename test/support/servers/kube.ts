import { readFile, writeFile } from 'node:fs/promises';
import { Agent, request as httpsRequest } from 'node:https';
import { join } from 'node:path';
import { certificates } from './certificates.ts';
import { buildKubernetes, type KubernetesPrograms } from './kube-build.ts';
import { answers, end, freePort, launch, type ProcessMark, ready, run } from './process.ts';
import { discard, freshFolder, home, readRecord, writeRecord } from './state.ts';

/** A kube-apiserver with an etcd: objects, permissions, tokens and watches are real; nothing runs a pod. */
export interface KubernetesInfo {
  readonly host: string;
  readonly port: number;
  readonly url: string;
  /** Path of the CA of its certificate. */
  readonly ca: string;
  /** Paths of a client certificate of group system:masters. */
  readonly adminCert: string;
  readonly adminKey: string;
  /** A kubeconfig of that administrator, context `test`. */
  readonly kubeconfig: string;
}

/** What `KubernetesInfo` says, and the calls that tests make as its administrator. */
export interface Kubernetes extends KubernetesInfo {
  /** One call of the API. Rejects on any status that is not a success. */
  readonly request: (method: string, path: string, body?: unknown) => Promise<unknown>;
  /** Makes a namespace of this test alone, with a service account `app` that may do nothing yet. */
  readonly namespace: () => Promise<string>;
  /** Makes or replaces a Secret. */
  readonly secret: (namespace: string, name: string, data: Readonly<Record<string, string>>) => Promise<void>;
  /** Lets the service account `app` do `verbs` with the secrets of these names. */
  readonly permit: (namespace: string, verbs: readonly string[], names: readonly string[]) => Promise<void>;
  /** A token of the service account `app` (TokenRequest). */
  readonly token: (namespace: string, audiences?: readonly string[]) => Promise<string>;
}

/** A cluster of one test alone, which it may break. */
export interface PrivateKubernetes extends Kubernetes {
  /** Kills the API server and leaves its port refused; etcd goes on. */
  readonly kill: () => Promise<void>;
  /** The same port and data again. */
  readonly restart: () => Promise<void>;
  readonly stop: () => Promise<void>;
}

/** Adds the calls to the facts, which alone can go through a file. */
export function kubernetes(info: KubernetesInfo): Kubernetes {
  let agent: Agent | undefined;
  const request = async (method: string, path: string, body?: unknown): Promise<unknown> => {
    agent ??= new Agent({
      ca: await readFile(info.ca),
      cert: await readFile(info.adminCert),
      key: await readFile(info.adminKey),
    });
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers = {
      'content-type': method === 'PATCH' ? 'application/merge-patch+json' : 'application/json',
      ...(text === undefined ? {} : { 'content-length': Buffer.byteLength(text) }),
    };
    const [status, answer] = await new Promise<[number, string]>((resolve, reject) => {
      const asked = httpsRequest(
        `${info.url}${path}`,
        { method, agent, headers, timeout: 10_000 },
        (response) => {
          const chunks: Buffer[] = [];
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.on('error', reject);
          response.on('end', () => resolve([response.statusCode ?? 0, Buffer.concat(chunks).toString()]));
        },
      );
      asked.on('timeout', () => asked.destroy(new Error('the API server does not answer')));
      asked.on('error', reject);
      asked.end(text);
    });
    if (status >= 300) throw new Error(`Kubernetes: ${method} ${path}: ${status} ${answer.slice(0, 500)}`);
    return answer.startsWith('{') ? JSON.parse(answer) : answer;
  };
  const core = (namespace: string, what: string) => `/api/v1/namespaces/${namespace}/${what}`;
  const rbac = (namespace: string, what: string) =>
    `/apis/rbac.authorization.k8s.io/v1/namespaces/${namespace}/${what}`;
  return {
    ...info,
    request,
    async namespace() {
      const made = (await request('POST', '/api/v1/namespaces', { metadata: { generateName: 'test-' } })) as {
        metadata: { name: string };
      };
      await request('POST', core(made.metadata.name, 'serviceaccounts'), { metadata: { name: 'app' } });
      return made.metadata.name;
    },
    async secret(namespace, name, data) {
      const encoded = Object.fromEntries(
        Object.entries(data).map(([key, value]) => [key, Buffer.from(value, 'latin1').toString('base64')]),
      );
      const body = { metadata: { name }, data: encoded };
      try {
        await request('PUT', core(namespace, `secrets/${name}`), body);
      } catch (thrown) {
        if (!(thrown as Error).message.includes(' 404 ')) throw thrown;
        await request('POST', core(namespace, 'secrets'), body);
      }
    },
    async permit(namespace, verbs, names) {
      const made = (await request('POST', rbac(namespace, 'roles'), {
        metadata: { generateName: 'app-' },
        rules: [{ apiGroups: [''], resources: ['secrets'], resourceNames: names, verbs }],
      })) as { metadata: { name: string } };
      await request('POST', rbac(namespace, 'rolebindings'), {
        metadata: { name: made.metadata.name },
        subjects: [{ kind: 'ServiceAccount', name: 'app', namespace }],
        roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: made.metadata.name },
      });
    },
    async token(namespace, audiences) {
      const made = (await request('POST', core(namespace, 'serviceaccounts/app/token'), {
        spec: { expirationSeconds: 600, ...(audiences ? { audiences } : {}) },
      })) as { status: { token: string } };
      return made.status.token;
    },
  };
}

const issuer = 'https://kubernetes.default.svc.cluster.local';

/** Starts etcd and the API server on this machine and records them under `name` and `name-etcd`. */
export async function startLocalKubernetes(name: string, owner?: ProcessMark): Promise<Kubernetes> {
  const programs = await buildKubernetes();
  await discard(`${name}-etcd`);
  const { folder: authority, ca } = await certificates();
  const folder = await freshFolder(name);
  const openssl = (command: string) => run('openssl', command.split(' '), { cwd: folder });
  await openssl(
    'req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O=system:masters/CN=admin -keyout admin.key -out admin.csr',
  );
  await openssl(
    `x509 -req -in admin.csr -CA ${authority}/ca.crt -CAkey ${authority}/ca.key -days 3650 -set_serial 0x6b756265 -out admin.crt`,
  );
  await openssl('genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out accounts.key');
  const [port, etcdPort, peerPort] = [await freePort(), await freePort(), await freePort()];
  const url = `https://127.0.0.1:${port}`;
  const info: KubernetesInfo = {
    host: '127.0.0.1',
    port,
    url,
    ca,
    adminCert: join(folder, 'admin.crt'),
    adminKey: join(folder, 'admin.key'),
    kubeconfig: join(folder, 'kubeconfig'),
  };
  await writeFile(
    info.kubeconfig,
    `apiVersion: v1
kind: Config
current-context: test
contexts: [{name: test, context: {cluster: test, user: admin}}]
clusters: [{name: test, cluster: {server: "${url}", certificate-authority: ${ca}}}]
users: [{name: admin, user: {client-certificate: admin.crt, client-key: admin.key}}]
`,
  );
  await startEtcd(`${name}-etcd`, { programs, folder, port: etcdPort, peerPort, owner });
  return serve(name, { programs, folder, etcdPort, info, owner });
}

async function startEtcd(
  name: string,
  to: {
    readonly programs: KubernetesPrograms;
    readonly folder: string;
    readonly port: number;
    readonly peerPort: number;
    readonly owner: ProcessMark | undefined;
  },
): Promise<void> {
  const log = join(to.folder, 'etcd.log');
  const [client, peer] = [`http://127.0.0.1:${to.port}`, `http://127.0.0.1:${to.peerPort}`];
  const daemon = await launch({
    command: to.programs.etcd,
    args: [
      `--data-dir=${join(to.folder, 'etcd')}`,
      '--unsafe-no-fsync',
      '--log-level=warn',
      `--listen-client-urls=${client}`,
      `--advertise-client-urls=${client}`,
      `--listen-peer-urls=${peer}`,
      `--initial-advertise-peer-urls=${peer}`,
      `--initial-cluster=default=${peer}`,
    ],
    log,
    cwd: to.folder,
  });
  const record = { process: daemon, port: to.port, info: {}, ...(to.owner ? { owner: to.owner } : {}) };
  await writeRecord(name, { ...record, ready: false });
  await ready('etcd', daemon, log, () => answers(to.port));
  await writeRecord(name, { ...record, ready: true });
}

interface Recipe {
  readonly programs: KubernetesPrograms;
  readonly folder: string;
  readonly etcdPort: number;
  readonly info: KubernetesInfo;
  readonly owner: ProcessMark | undefined;
}

async function serve(name: string, { programs, folder, etcdPort, info, owner }: Recipe): Promise<Kubernetes> {
  const { server, ca } = await certificates();
  const log = join(folder, 'log');
  const daemon = await launch({
    command: programs.apiServer,
    args: [
      `--etcd-servers=http://127.0.0.1:${etcdPort}`,
      '--bind-address=127.0.0.1',
      '--advertise-address=127.0.0.1',
      `--secure-port=${info.port}`,
      '--endpoint-reconciler-type=none',
      `--tls-cert-file=${server.cert}`,
      `--tls-private-key-file=${server.key}`,
      `--client-ca-file=${ca}`,
      `--service-account-issuer=${issuer}`,
      `--api-audiences=${issuer}`,
      `--service-account-key-file=${join(folder, 'accounts.key')}`,
      `--service-account-signing-key-file=${join(folder, 'accounts.key')}`,
      '--authorization-mode=RBAC',
      '--service-cluster-ip-range=10.0.0.0/24',
      '--allow-privileged',
      '--profiling=false',
      '--v=1',
    ],
    log,
    cwd: folder,
  });
  const record = { process: daemon, port: info.port, info, ...(owner ? { owner } : {}) };
  await writeRecord(name, { ...record, ready: false });
  const cluster = kubernetes(info);
  await ready('kube-apiserver', daemon, log, async () => {
    // It refuses connections, then answers 503 while it sets itself up.
    await cluster.request('GET', '/readyz');
    await cluster.request('GET', '/api/v1/namespaces/default');
    return true;
  });
  // Nothing here makes the account that every pod has.
  await cluster
    .request('POST', '/api/v1/namespaces/default/serviceaccounts', { metadata: { name: 'default' } })
    .catch((thrown: Error) => {
      if (!thrown.message.includes(' 409 ')) throw thrown;
    });
  await writeRecord(name, { ...record, ready: true });
  return cluster;
}

/** Starts a cluster of the caller's own. */
export async function startPrivateKubernetes(name: string, owner: ProcessMark): Promise<PrivateKubernetes> {
  const first = await startLocalKubernetes(name, owner);
  const info = (await readRecord(name))?.info as KubernetesInfo;
  const etcdPort = (await readRecord(`${name}-etcd`))?.port ?? 0;
  const kill = async () => {
    const record = await readRecord(name);
    if (record?.process) await end(record.process, 'SIGKILL');
  };
  return {
    ...first,
    kill,
    restart: async () => {
      await kill();
      const programs = await buildKubernetes();
      await serve(name, { programs, folder: join(home(), name), etcdPort, info, owner });
    },
    stop: async () => {
      await discard(name);
      await discard(`${name}-etcd`);
    },
  };
}
