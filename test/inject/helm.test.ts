import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { parseSettings } from '../../src/inject/settings.ts';
import {
  found,
  type Manifest,
  parseManifests,
  RestrictedNamespace,
  readManifests,
} from '../deploy/manifests.ts';
import { withProgram } from '../deploy/programs.ts';
import { buildHelm } from '../support/servers/kube-clients.ts';
import { capture } from '../support/servers/process.ts';
import { withServer } from '../support/servers.ts';

const chart = fileURLToPath(new URL('../../deploy/helm/postern/', import.meta.url));

async function render(t: TestContext, ...words: string[]): Promise<Manifest[] | undefined> {
  const helm = await withProgram(t, buildHelm);
  if (helm === undefined) return undefined;
  const set = [
    '--namespace',
    'postern',
    '--kube-version',
    '1.36.0',
    '--set',
    'gateway.enabled=false',
    ...words,
  ];
  const { code, stdout, stderr } = await capture(helm, ['template', 'postern', chart, ...set]);
  assert.equal(code, 0, stderr);
  return parseManifests(stdout);
}

const enabled = ['--set', 'injector.enabled=true'];
const one = (manifests: readonly Manifest[], kind: string) =>
  found(
    manifests.find((each) => each.kind === kind),
    kind,
  );

describe('the injector of the Helm chart', () => {
  it('is not there unless it is asked for', async (t) => {
    const manifests = await render(t, '--set', 'existingConfigMap=orders');
    if (manifests)
      assert.deepEqual(
        manifests.filter(({ metadata }) => metadata.name.includes('injector')),
        [],
      );
  });

  it('is that of the manifests: webhooks, rights, and a container under "restricted"', async (t) => {
    const cluster = await withServer(t, 'kubernetes');
    const manifests = cluster && (await render(t, ...enabled));
    if (!manifests) return;
    const base = (name: string) => readManifests(`kubernetes/injector/base/${name}.yaml`);
    const webhooks = (all: readonly Manifest[]) =>
      (one(all, 'MutatingWebhookConfiguration') as unknown as { webhooks: unknown }).webhooks;
    assert.deepEqual(webhooks(manifests), webhooks(await base('webhook')));
    for (const kind of ['Role', 'ClusterRole']) {
      const rules = (all: readonly Manifest[]) => (one(all, kind) as unknown as { rules: unknown }).rules;
      assert.deepEqual(rules(manifests), rules(await base('rbac')));
    }
    const [container] = found(one(manifests, 'Deployment').spec?.template).spec.containers;
    const [expected] = found(one(await base('deployment'), 'Deployment').spec?.template).spec.containers;
    const {
      lifecycle: _own,
      imagePullPolicy: _policy,
      ...rest
    } = container as unknown as Record<string, unknown>;
    const { lifecycle: _theirs, ...wanted } = expected as unknown as Record<string, unknown>;
    assert.deepEqual(rest, wanted);
    const { sidecar, certificate } = parseSettings(
      found(one(manifests, 'ConfigMap').data?.['injector.yaml']),
      'injector.yaml',
    );
    assert.equal(sidecar.image, 'registry.example.com/postern:0.1.0');
    assert.deepEqual(sidecar.allowedImages, ['registry.example.com/postern']);
    for (const name of [certificate.webhook, certificate.service]) assert.equal(name, 'postern-injector');

    const namespace = await RestrictedNamespace.make(cluster, ['postern-injector']);
    await namespace.admitPod(found(one(manifests, 'Deployment').spec?.template).spec);
    const there = { namespace: namespace.name };
    for (const kind of [
      'ConfigMap',
      'Secret',
      'Service',
      'Deployment',
      'PodDisruptionBudget',
      'Role',
      'RoleBinding',
    ]) {
      const manifest = one(manifests, kind);
      await namespace.admit({ ...manifest, metadata: { ...manifest.metadata, ...there } });
    }
  });

  it('fails open, and gives sidecars what the values say', async (t) => {
    const more = ['--set', 'injector.failurePolicy=Ignore', '--set', 'injector.sidecar.memory=128Mi'];
    const manifests = await render(t, ...enabled, ...more);
    if (!manifests) return;
    const { webhooks } = one(manifests, 'MutatingWebhookConfiguration') as unknown as {
      webhooks: { failurePolicy: string }[];
    };
    assert.deepEqual(
      webhooks.map(({ failurePolicy }) => failurePolicy),
      ['Ignore', 'Ignore'],
    );
    const text = found(one(manifests, 'ConfigMap').data?.['injector.yaml']);
    assert.equal(parseSettings(text, 'injector.yaml').sidecar.memory, '128Mi');
  });
});
