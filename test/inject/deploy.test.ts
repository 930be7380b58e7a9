import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { type InjectorSettings, parseSettings } from '../../src/inject/settings.ts';
import { found, type Manifest, parseManifests, RestrictedNamespace } from '../deploy/manifests.ts';
import { withProgram } from '../deploy/programs.ts';
import { installKubectl } from '../support/servers/kube-clients.ts';
import { capture } from '../support/servers/process.ts';
import { type Kubernetes, withServer } from '../support/servers.ts';
import { eventually } from './cluster.ts';

const folder = fileURLToPath(new URL('../../deploy/kubernetes/injector/', import.meta.url));
const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const overlays = ['base', 'ignore', 'cert-manager'];

type Any = Manifest & Readonly<Record<string, unknown>>;

async function render(t: TestContext, overlay: string): Promise<Any[] | undefined> {
  const kubectl = await withProgram(t, installKubectl);
  if (kubectl === undefined) return undefined;
  const { code, stdout, stderr } = await capture(kubectl, ['kustomize', join(folder, overlay)]);
  assert.deepEqual([code, stderr], [0, '']);
  return parseManifests(stdout) as Any[];
}

const one = (manifests: readonly Any[], kind: string) =>
  found(
    manifests.find((each) => each.kind === kind),
    kind,
  );

function settingsOf(manifests: readonly Any[]): InjectorSettings {
  return parseSettings(found(one(manifests, 'ConfigMap').data?.['injector.yaml']), 'injector.yaml');
}

const clusterWide = ['ClusterRole', 'ClusterRoleBinding', 'MutatingWebhookConfiguration', 'Namespace'];

/** Has a real API server take an object, with every unknown field an error, and keep nothing. */
async function admit(cluster: Kubernetes, namespace: RestrictedNamespace, manifest: Any): Promise<void> {
  // Of cert-manager, which is not there.
  if (manifest.apiVersion.startsWith('cert-manager.io/')) return;
  if (!clusterWide.includes(manifest.kind))
    return await namespace.admit({
      ...manifest,
      metadata: { ...manifest.metadata, namespace: namespace.name },
    });
  const group = manifest.apiVersion.includes('/') ? `apis/${manifest.apiVersion}` : 'api/v1';
  const path = `/${group}/${manifest.kind.toLowerCase()}s?dryRun=All&fieldValidation=Strict`;
  await cluster.request('POST', path, {
    ...manifest,
    metadata: { ...manifest.metadata, name: `${namespace.name}-x` },
  });
}

interface Webhook {
  readonly name: string;
  readonly failurePolicy: string;
  readonly sideEffects: string;
  readonly timeoutSeconds: number;
  readonly clientConfig: { readonly service: { readonly name: string; readonly namespace: string } };
  readonly namespaceSelector: {
    readonly matchExpressions: readonly { key: string; operator: string; values: string[] }[];
  };
}

const webhooksOf = (manifests: readonly Any[]) =>
  one(manifests, 'MutatingWebhookConfiguration')['webhooks'] as readonly Webhook[];

describe('deploy/kubernetes/injector', () => {
  for (const overlay of overlays)
    it(`is taken by a real API server: ${overlay}`, async (t) => {
      const cluster = await withServer(t, 'kubernetes');
      const manifests = cluster && (await render(t, overlay));
      if (!manifests) return;
      const namespace = await RestrictedNamespace.make(cluster, ['postern-injector']);
      for (const manifest of manifests)
        if (manifest.kind !== 'ServiceAccount') await admit(cluster, namespace, manifest);
      const template = found(one(manifests, 'Deployment').spec?.template);
      await namespace.admitPod(template.spec);
    });

  it('agrees with the settings, with itself, and with what the injector may do', async (t) => {
    const manifests = await render(t, 'base');
    if (!manifests) return;
    const { certificate, listen, admin } = settingsOf(manifests);
    const deployment = one(manifests, 'Deployment');
    const [container] = found(deployment.spec?.template).spec.containers;
    assert.deepEqual(container?.args, ['inject', '--config', '/etc/postern/injector.yaml']);
    assert.deepEqual(
      container.ports?.map(({ containerPort }) => containerPort),
      [listen.port, admin?.port],
    );
    const names = (kind: string) => {
      const rules = one(manifests, kind)['rules'] as readonly { resourceNames: string[]; verbs: string[] }[];
      assert.equal(rules.length, 1);
      assert.deepEqual(rules[0]?.verbs, ['get', 'update']);
      return rules[0].resourceNames;
    };
    assert.deepEqual(names('Role'), [certificate.secret]);
    assert.equal(one(manifests, 'Secret').metadata.name, certificate.secret);
    assert.deepEqual(names('ClusterRole'), [certificate.webhook]);
    assert.equal(one(manifests, 'MutatingWebhookConfiguration').metadata.name, certificate.webhook);
    const service = one(manifests, 'Service').metadata as { name: string; namespace?: string };
    assert.equal(service.name, certificate.service);
    for (const { clientConfig, namespaceSelector, ...webhook } of webhooksOf(manifests)) {
      assert.equal(clientConfig.service.name, service.name);
      assert.equal(clientConfig.service.namespace, service.namespace);
      const [excluded] = namespaceSelector.matchExpressions;
      assert.deepEqual([excluded?.key, excluded?.operator], ['kubernetes.io/metadata.name', 'NotIn']);
      for (const name of ['kube-system', service.namespace ?? ''])
        assert.ok(excluded?.values.includes(name), name);
      assert.deepEqual(
        [webhook.failurePolicy, webhook.sideEffects, webhook.timeoutSeconds],
        ['Fail', 'None', 5],
      );
    }
  });

  it('fails open, or takes the certificate of cert-manager without any right, where an overlay says so', async (t) => {
    const open = await render(t, 'ignore');
    const managed = open && (await render(t, 'cert-manager'));
    if (!managed) return;
    for (const { failurePolicy } of webhooksOf(open)) assert.equal(failurePolicy, 'Ignore');
    assert.deepEqual(
      managed.filter(({ kind }) => /Role|^Secret$/.test(kind)),
      [],
    );
    const { certFile, keyFile } = settingsOf(managed).certificate;
    const spec = found(one(managed, 'Deployment').spec?.template).spec;
    for (const path of [certFile, keyFile])
      assert.ok(spec.containers[0]?.volumeMounts?.some(({ mountPath }) => path?.startsWith(`${mountPath}/`)));
    const certificate = one(managed, 'Certificate').spec as { secretName: string; dnsNames: string[] };
    assert.ok(JSON.stringify(spec.volumes).includes(certificate.secretName));
    assert.deepEqual(certificate.dnsNames, ['postern-injector.postern.svc']);
  });

  it('runs as a process of its own, is ready, says where and until when, and ends with 0 at SIGTERM', async (t) => {
    const cluster = await withServer(t, 'kubernetes');
    if (!cluster) return;
    const [home, place] = [await cluster.namespace(), await mkdtemp(join(tmpdir(), 'postern-inject-'))];
    t.after(() => rm(place, { recursive: true }));
    const config = join(place, 'injector.yaml');
    const webhook = `process-${home}`;
    await writeFile(
      config,
      `sidecar: { image: registry.example.com/postern:0.1.0 }
listen: tcp://127.0.0.1:0
admin: tcp://127.0.0.1:0
cluster: { kubeconfig: ${cluster.kubeconfig}, namespace: ${home} }
certificate: { webhook: ${webhook}, poll: 200ms }
`,
    );
    const child = spawn(program, ['inject', '--config', config], { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => (output += text));
    t.after(() => child.kill('SIGKILL'));
    const line = (msg: string) =>
      output
        .split('\n')
        .filter((each) => each.startsWith('{'))
        .map((each) => JSON.parse(each) as Record<string, string>)
        .find((each) => each['msg'] === msg);
    await eventually(() => line('certificate of the webhook in use') !== undefined, 'a certificate');
    const admin = String(line('health and metrics')?.['address']).replace('tcp://', 'http://');
    const probe = async () => {
      const response = await fetch(`${admin}/readyz`);
      return `${response.status} ${await response.text()}`;
    };
    assert.equal(await probe(), `503 there is no MutatingWebhookConfiguration "${webhook}"\n`);
    const path = '/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations';
    await cluster.request('POST', path, { metadata: { name: webhook }, webhooks: [] });
    t.after(() => cluster.request('DELETE', `${path}/${webhook}`));
    await eventually(async () => (await probe()) === '200 ok\n', 'ready');
    const metrics = await (await fetch(`${admin}/metrics`)).text();
    assert.match(metrics, /^postern_inject_ready 1$/m);
    // The Secret was made by the injector itself, for it may do anything here.
    const secret = (await cluster.request(
      'GET',
      `/api/v1/namespaces/${home}/secrets/postern-injector-tls`,
    )) as {
      data: Record<string, string>;
    };
    assert.deepEqual(Object.keys(secret.data).toSorted(), ['ca.crt', 'tls.crt', 'tls.key']);
    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    assert.deepEqual(await exited, [0, null]);
    const key = Buffer.from(found(secret.data['tls.key']), 'base64').toString();
    assert.ok(key.includes('PRIVATE KEY') && !output.includes(key.split('\n')[1] ?? ''));
  });
});
