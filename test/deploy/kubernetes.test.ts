import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { describe, it } from 'node:test';

import { parseOptions } from '../../src/cli/options.ts';
import { withServer } from '../support/servers.ts';
import {
  admitAll,
  configOf,
  found,
  type Manifest,
  type Pod,
  podsOf,
  posternOf,
  RestrictedNamespace,
  readManifests,
} from './manifests.ts';

const folder = new URL('../../deploy/kubernetes/', import.meta.url);
const files = readdirSync(folder).filter((name) => name.endsWith('.yaml'));
const read = (name: string) => readManifests(`kubernetes/${name}`);

/** The first pod of a file. */
async function pod(name: string): Promise<Pod> {
  return found(podsOf(await read(name))[0], `a pod in ${name}`);
}

function configMapOf(manifests: readonly Manifest[]): Manifest {
  return found(
    manifests.find(({ kind }) => kind === 'ConfigMap'),
    'a ConfigMap',
  );
}

describe('deploy/kubernetes', () => {
  it('has the files that docs/kubernetes.md names', () => {
    const expected = [
      'job.yaml',
      'network-policy.yaml',
      'plain-sidecar.yaml',
      'rbac.yaml',
      'sidecar.yaml',
      'unix-socket.yaml',
    ];
    assert.deepEqual(files.toSorted(), expected);
  });

  for (const file of files)
    it(`${file} is taken by a real API server: no unknown field, and "restricted" holds for its pods`, async (t) => {
      const cluster = await withServer(t, 'kubernetes');
      if (!cluster) return;
      await admitAll(cluster, await read(file));
    });

  it('would be refused by that server if a container broke a rule, or a field were misspelt', async (t) => {
    const cluster = await withServer(t, 'kubernetes');
    if (!cluster) return;
    const namespace = await RestrictedNamespace.make(cluster, ['orders']);
    const good = await pod('sidecar.yaml');
    const postern = posternOf(good);
    await namespace.admitPod(good);
    const broken: readonly (readonly [string, RegExp])[] = [
      ['privileged', /violates PodSecurity \\"restricted.*privileged/],
      ['runAsUser', /violates PodSecurity \\"restricted.*runAsUser=0/],
      ['allowPrivilegeEscalation', /violates PodSecurity \\"restricted.*allowPrivilegeEscalation != false/],
    ];
    for (const [field, refusal] of broken) {
      const value = field === 'runAsUser' ? 0 : true;
      // Where escalation is forbidden, the server does not take a privileged container for another reason.
      const escalation = field === 'privileged' ? { allowPrivilegeEscalation: true } : {};
      const securityContext = { ...postern.securityContext, ...escalation, [field]: value };
      const initContainers = [{ ...postern, securityContext }];
      await assert.rejects(namespace.admitPod({ ...good, initContainers }), refusal, field);
    }
    const misspelt = { ...good, initContainers: [{ ...postern, startupprobe: postern.startupProbe }] };
    await assert.rejects(
      namespace.admitPod(misspelt),
      /unknown field \\"spec.initContainers\[0\].startupprobe/,
    );
  });

  it('has Postern in one and the same form everywhere', async () => {
    const model = posternOf(await pod('sidecar.yaml'));
    const rest = ({ args: _args, volumeMounts: _mounts, ...container }: typeof model) => container;
    assert.deepEqual(rest(posternOf(await pod('unix-socket.yaml'))), rest(model));
    // What a job's pod is ready for is nobody's concern.
    const { readinessProbe: _readiness, ...ofJobs } = rest(model);
    assert.deepEqual(rest(posternOf(await pod('job.yaml'))), ofJobs);
    const plain = posternOf(await pod('plain-sidecar.yaml'));
    assert.equal(plain.image, model.image);
    assert.deepEqual(plain.securityContext, model.securityContext);
    assert.deepEqual(plain.readinessProbe, model.readinessProbe);
    assert.deepEqual(plain.volumeMounts, model.volumeMounts);
  });

  for (const file of ['sidecar.yaml', 'job.yaml', 'unix-socket.yaml'])
    it(`${file} starts Postern before everything else, keeps it running, and waits until it listens`, async () => {
      const { initContainers } = await pod(file);
      const [first] = found(initContainers);
      assert.equal(first?.name, 'postern');
      assert.equal(first.restartPolicy, 'Always');
      assert.equal(first.startupProbe?.httpGet?.path, '/startupz');
      assert.equal(first.livenessProbe?.httpGet?.path, '/livez');
    });

  it('plain-sidecar.yaml does with hooks what native sidecars do by themselves', async () => {
    const { containers, initContainers, terminationGracePeriodSeconds } = await pod('plain-sidecar.yaml');
    assert.equal(initContainers, undefined, 'a plain sidecar is started after them');
    const [first] = containers;
    assert.equal(first?.name, 'postern');
    assert.equal(first.restartPolicy, undefined);
    const wait = found(first.lifecycle?.postStart?.exec).command;
    assert.equal(wait[0], 'postern');
    assert.equal(wait[1], 'wait');
    const stop = found(first.lifecycle?.preStop?.exec).command;
    assert.deepEqual(stop.slice(0, 2), ['node', '-e']);
    const pause = Number(
      /^setTimeout\(\(\) => \{\}, ([\d_]+)\)$/.exec(found(stop[2]))?.[1]?.replaceAll('_', ''),
    );
    assert.ok(pause >= 5000);
    const config = await configOf(configMapOf(await read('sidecar.yaml')));
    const drain = Math.max(...config.services.map(({ limits }) => limits.drainTimeout));
    assert.ok(pause + drain + 5000 < found(terminationGracePeriodSeconds) * 1000);
  });

  for (const file of files)
    it(`${file} gives Postern a user of its own, and its token and state to nobody else`, async () => {
      for (const spec of podsOf(await read(file))) {
        const users = [...(spec.initContainers ?? []), ...spec.containers].map(
          (each) => each.securityContext?.['runAsUser'],
        );
        assert.equal(new Set(users).size, users.length);
        assert.equal(spec.automountServiceAccountToken, false);
        const others = [...(spec.initContainers ?? []), ...spec.containers].filter(
          ({ name }) => name !== 'postern',
        );
        assert.ok(others.length > 0);
        const mounts = others.flatMap(({ volumeMounts = [] }) => volumeMounts);
        assert.deepEqual(
          mounts.filter(({ name, readOnly }) => name !== 'postern-socket' || !readOnly),
          [],
        );
        assert.ok(others.every(({ env = [] }) => env.every(({ name }) => !name.includes('PASSWORD'))));
      }
    });

  it('has command lines that the program understands', async () => {
    for (const file of files)
      for (const spec of podsOf(await read(file))) {
        const [command, ...words] = found(posternOf(spec).args);
        assert.equal(command, 'run');
        assert.deepEqual(parseOptions(words, {}).configPaths, ['/etc/postern/postern.yaml']);
      }
  });

  for (const file of ['sidecar.yaml', 'unix-socket.yaml'])
    it(`${file} agrees with itself: probes, token, certificates, addresses and times`, async () => {
      const manifests = await read(file);
      const map = configMapOf(manifests);
      const config = await configOf(map);
      const spec = await pod(file);
      const postern = posternOf(spec);
      const [service] = config.services;
      assert.ok(service && config.admin.listenOn?.kind === 'tcp');

      const port = found(postern.ports?.find(({ name }) => name === 'postern-admin')).containerPort;
      assert.equal(config.admin.listenOn.port, port);
      assert.equal(config.admin.listenOn.host, '0.0.0.0', 'the kubelet calls the address of the pod');

      const [application] = spec.containers;
      const variable = (name: string) => application?.env?.find((each) => each.name === name)?.value;
      if (service.listenOn.kind === 'tcp') {
        assert.equal(variable('PGHOST'), service.listenOn.host);
        assert.equal(variable('PGPORT'), String(service.listenOn.port));
      } else {
        assert.equal(`${variable('PGHOST')}/.s.PGSQL.5432`, service.listenOn.path);
        assert.equal(service.socketMode, 0o660);
        assert.ok(Number.isInteger(spec.securityContext?.['fsGroup']));
        for (const each of [postern, application])
          assert.ok(each?.volumeMounts?.some(({ mountPath }) => mountPath === variable('PGHOST')));
      }

      const text = found(map.data?.['postern.yaml']);
      for (const [, path = ''] of text.matchAll(/(\/etc\/postern\/\S+\.pem)/g))
        assert.ok(path.slice('/etc/postern/'.length) in found(map.data), path);
      const volume = found(spec.volumes?.find(({ name }) => name === 'vault-token'));
      const [source] = (
        volume['projected'] as { sources: { serviceAccountToken: { path: string; audience: string } }[] }
      ).sources;
      const mount = found(postern.volumeMounts?.find(({ name }) => name === 'vault-token')).mountPath;
      assert.equal(source?.serviceAccountToken.audience, 'vault');
      assert.ok(text.includes(`jwtFile: ${mount}/${source?.serviceAccountToken.path}\n`));

      // The root file system cannot be written, and what is to outlive a crash of the container must be on a volume.
      if (config.stateFolder !== undefined) {
        const state = found(postern.volumeMounts?.find(({ mountPath }) => mountPath === config.stateFolder));
        assert.ok('emptyDir' in found(spec.volumes?.find(({ name }) => name === state.name)));
      }
      const drain = Math.max(...config.services.map(({ limits }) => limits.drainTimeout)) / 1000;
      assert.ok(
        drain + 5 < found(spec.terminationGracePeriodSeconds),
        'the kubelet would kill it while it drains',
      );
    });

  it('rbac.yaml permits one Secret and nothing else, on a real API server', async (t) => {
    const cluster = await withServer(t, 'kubernetes');
    if (!cluster) return;
    const namespace = await cluster.namespace();
    const rules = (await read('rbac.yaml')).filter(({ kind }) => kind !== 'ServiceAccount');
    const account = `/api/v1/namespaces/${namespace}/serviceaccounts`;
    await cluster.request('POST', account, { metadata: { name: 'orders' } });
    for (const each of rules) {
      const what = `${each.kind.toLowerCase()}s`;
      const subjects = [{ kind: 'ServiceAccount', name: 'orders', namespace }];
      const binding = each.kind === 'RoleBinding' ? { subjects } : {};
      await cluster.request('POST', `/apis/${each.apiVersion}/namespaces/${namespace}/${what}`, {
        ...each,
        ...binding,
      });
    }
    const may = async (verb: string, name: string, resource = 'secrets') => {
      const asked = (await cluster.request('POST', '/apis/authorization.k8s.io/v1/subjectaccessreviews', {
        apiVersion: 'authorization.k8s.io/v1',
        kind: 'SubjectAccessReview',
        spec: {
          user: `system:serviceaccount:${namespace}:orders`,
          resourceAttributes: { namespace, verb, resource, ...(name && { name }) },
        },
      })) as { status: { allowed: boolean } };
      return asked.status.allowed;
    };
    assert.equal(await may('get', 'orders-db'), true);
    assert.equal(await may('get', 'other'), false);
    assert.equal(await may('list', ''), false);
    assert.equal(await may('watch', 'orders-db'), false, 'the role that is bound has get alone');
    assert.equal(await may('get', 'orders-db', 'configmaps'), false);
    // The other role, instead.
    const bindings = `/apis/rbac.authorization.k8s.io/v1/namespaces/${namespace}/rolebindings`;
    await cluster.request('POST', bindings, {
      metadata: { name: 'watch' },
      subjects: [{ kind: 'ServiceAccount', name: 'orders', namespace }],
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'orders-db-watch' },
    });
    for (const verb of ['get', 'list', 'watch']) {
      assert.equal(await may(verb, 'orders-db'), true);
      assert.equal(await may(verb, ''), false);
      assert.equal(await may(verb, 'other'), false);
    }
  });
});
