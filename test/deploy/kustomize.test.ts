import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { installKubectl } from '../support/servers/kube-clients.ts';
import { capture } from '../support/servers/process.ts';
import { withServer } from '../support/servers.ts';
import {
  admitAll,
  configOf,
  found,
  type Manifest,
  parseManifests,
  podsOf,
  posternOf,
  readManifests,
} from './manifests.ts';
import { withProgram } from './programs.ts';

const folder = fileURLToPath(new URL('../../deploy/kustomize/', import.meta.url));
const overlays = readdirSync(join(folder, 'overlays'));

/** What kustomize makes of a folder; undefined where there is none. */
async function render(t: TestContext, path: string): Promise<Manifest[] | undefined> {
  const kubectl = await withProgram(t, installKubectl);
  if (kubectl === undefined) return undefined;
  const { code, stdout, stderr } = await capture(kubectl, ['kustomize', path]);
  assert.deepEqual([code, stderr], [0, '']);
  return parseManifests(stdout);
}

const configMapOf = (manifests: readonly Manifest[]) =>
  found(
    manifests.find(({ kind }) => kind === 'ConfigMap'),
    'a ConfigMap',
  );

describe('deploy/kustomize', () => {
  it('has an overlay for each place that secrets come from, and one for jobs', () => {
    assert.deepEqual(overlays.toSorted(), ['job', 'kubernetes-secret', 'vault']);
  });

  for (const overlay of overlays)
    describe(`overlays/${overlay}`, () => {
      it('makes what a real API server takes under "restricted"', async (t) => {
        const cluster = await withServer(t, 'kubernetes');
        const manifests = cluster && (await render(t, join(folder, 'overlays', overlay)));
        if (manifests) await admitAll(cluster, manifests);
      });

      it('puts Postern before whatever else the pod starts, as sidecar.yaml has it', async (t) => {
        const manifests = await render(t, join(folder, 'overlays', overlay));
        if (!manifests) return;
        const [pod] = podsOf(manifests);
        assert.equal(pod?.initContainers?.[0]?.name, 'postern');
        const rest = ({ volumeMounts: _mounts, ...container }: ReturnType<typeof posternOf>) => container;
        const model = posternOf(found(podsOf(await readManifests('kubernetes/sidecar.yaml'))[0]));
        assert.deepEqual(rest(posternOf(pod)), rest(model));
      });

      it('mounts the configuration that it makes, which the program reads without a warning', async (t) => {
        const manifests = await render(t, join(folder, 'overlays', overlay));
        if (!manifests) return;
        const map = configMapOf(manifests);
        const config = await configOf(map);
        const [pod] = podsOf(manifests);
        const volume = found(pod?.volumes?.find(({ name }) => name === 'postern-config'));
        assert.deepEqual(volume['configMap'], { name: map.metadata.name });
        // A name with the hash of its content: another configuration is another pod template.
        assert.match(map.metadata.name, /^postern-[a-z0-9]{10}$/);
        const { mountPath } = found(
          posternOf(found(pod)).volumeMounts?.find(({ name }) => name === 'postern-config'),
        );
        for (const [, file = ''] of found(map.data?.['postern.yaml']).matchAll(/ca: (\S+\.pem)/g))
          assert.ok(
            file.startsWith(`${mountPath}/`) && file.slice(mountPath.length + 1) in found(map.data),
            file,
          );
        const drain = Math.max(...config.services.map(({ limits }) => limits.drainTimeout)) / 1000;
        assert.ok(drain + 5 < (pod?.terminationGracePeriodSeconds ?? 30));
      });
    });

  it('gives the token of the API server to Postern alone, and with a right to one Secret', async (t) => {
    const manifests = await render(t, join(folder, 'overlays/kubernetes-secret'));
    if (!manifests) return;
    const [pod] = podsOf(manifests);
    assert.equal(pod?.automountServiceAccountToken, false);
    const where = '/var/run/secrets/kubernetes.io/serviceaccount';
    const holders = [...(pod.initContainers ?? []), ...pod.containers]
      .filter(({ volumeMounts = [] }) => volumeMounts.some(({ mountPath }) => mountPath === where))
      .map(({ name }) => name);
    assert.deepEqual(holders, ['postern']);
    const role = found(manifests.find(({ kind }) => kind === 'Role')) as unknown as { rules: object[] };
    const verbs = ['get', 'list', 'watch'];
    assert.deepEqual(role.rules, [
      { apiGroups: [''], resources: ['secrets'], resourceNames: ['orders-db'], verbs },
    ]);
  });

  it('has components for a StatefulSet of somebody else, and leaves alone what has no label', async (t) => {
    const own = await mkdtemp(join(tmpdir(), 'postern-kustomize-'));
    t.after(() => rm(own, { recursive: true }));
    const workload = (name: string, labels: string) => `apiVersion: apps/v1
kind: StatefulSet
metadata: { name: ${name}, labels: { ${labels} } }
spec:
  serviceName: ${name}
  selector: { matchLabels: { app: ${name} } }
  template:
    metadata: { labels: { app: ${name} } }
    spec:
      containers: [{ name: app, image: "registry.example.com/app:1" }]
`;
    await writeFile(join(own, 'with.yaml'), workload('with', 'postern.dev/sidecar: "true"'));
    await writeFile(join(own, 'without.yaml'), workload('without', 'app: without'));
    // Kustomize takes relative paths only.
    const components = ['sidecar', 'vault-token'].map((name) => join(folder, 'components', name));
    await writeFile(
      join(own, 'kustomization.yaml'),
      JSON.stringify({
        resources: ['with.yaml', 'without.yaml'],
        components: components.map((path) => relative(own, path)),
      }),
    );
    const manifests = await render(t, own);
    if (!manifests) return;
    const pods = new Map(manifests.map((each) => [each.metadata.name, podsOf([each])[0]]));
    assert.equal(pods.get('with')?.initContainers?.[0]?.name, 'postern');
    assert.deepEqual(
      pods
        .get('with')
        ?.volumes?.map(({ name }) => name)
        .toSorted(),
      ['postern-config', 'postern-state', 'vault-token'],
    );
    assert.equal(pods.get('without')?.initContainers, undefined);
    assert.equal(pods.get('without')?.volumes, undefined);
  });
});
