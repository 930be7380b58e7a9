import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { stringify } from 'yaml';

import { injectManifests } from '../../src/inject/manifests.ts';
import { parseSettings } from '../../src/inject/settings.ts';
import { parseManifests } from '../deploy/manifests.ts';
import { type Kubernetes, server, Unavailable } from '../support/servers.ts';
import { eventually, pod, type Replica, type StoredPod, TestInjector } from './cluster.ts';

let cluster: Kubernetes | undefined;
let missing = '';
before(async () => {
  try {
    cluster = await server('kubernetes');
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
    missing = error.message;
  }
});

const names = (stored: StoredPod) =>
  [stored.spec.initContainers ?? [], stored.spec.containers].map((list) => list.map(({ name }) => name));
const asking = { 'postern.dev/inject': 'true' };

describe('the webhook, called by a real API server', () => {
  let injector: TestInjector;
  let replica: Replica;
  let port = 0;
  before(async () => {
    if (!cluster) return;
    injector = await TestInjector.make(cluster);
    replica = await injector.start();
    port = await replica.listening();
    await injector.register(port);
    await replica.ready();
  });
  after(async () => {
    if (cluster) await injector[Symbol.asyncDispose]();
  });

  it('puts a native sidecar before the init containers of a pod that asks for it', async (t) => {
    if (!cluster) return t.skip(missing);
    const namespace = await injector.namespace({ 'pod-security.kubernetes.io/enforce': 'restricted' });
    const stored = await injector.pod(
      namespace,
      pod({
        ...asking,
        'postern.dev/config': 'orders-postern',
        'postern.dev/env': 'orders-db=postgres:5432/orders',
        'postern.dev/token-audience': 'vault',
      }),
      '?fieldValidation=Strict',
    );
    assert.deepEqual(names(stored), [['postern', 'migrate'], ['app']]);
    const [sidecar, migrate] = stored.spec.initContainers ?? [];
    assert.equal(sidecar?.restartPolicy, 'Always');
    assert.equal(sidecar.image, 'registry.example.com/postern:0.1.0');
    assert.deepEqual(
      sidecar.volumeMounts?.map(({ mountPath }) => mountPath),
      ['/etc/postern', '/var/lib/postern', '/var/run/secrets/vault'],
    );
    for (const each of [migrate, stored.spec.containers[0]])
      assert.equal(each?.env?.find(({ name }) => name === 'PGDATABASE')?.value, 'orders');
    assert.equal(stored.metadata.annotations?.['postern.dev/status'], 'injected');
    assert.equal(stored.metadata.annotations['postern.dev/version'], '1.2.3');
  });

  it('does so for the pods of a Job and of a Deployment, which have no name yet', async (t) => {
    if (!cluster) return t.skip(missing);
    const namespace = await injector.namespace({ 'pod-security.kubernetes.io/enforce': 'restricted' });
    const owned = (kind: string, more: object) => {
      const made = pod(asking, more) as { metadata: object };
      const uid = '7f1c1a52-9f0f-4d3e-8f5e-0d2ff7a1b2c3';
      const ownerReferences = [
        { apiVersion: kind === 'Job' ? 'batch/v1' : 'apps/v1', kind, name: 'orders', uid, controller: true },
      ];
      return { ...made, metadata: { ...made.metadata, ownerReferences } };
    };
    const deployed = await injector.pod(namespace, owned('ReplicaSet', {}));
    assert.deepEqual(names(deployed), [['postern', 'migrate'], ['app']]);
    const job = await injector.pod(namespace, owned('Job', { restartPolicy: 'Never' }));
    const [sidecar] = job.spec.initContainers ?? [];
    assert.equal(sidecar?.restartPolicy, 'Always', 'the sidecar of a Job does not keep it from completing');
    assert.ok(!('readinessProbe' in sidecar));
    assert.ok((sidecar as unknown as { args: string[] }).args.join(' ').endsWith('--drain-timeout 2s'));
  });

  it('tells the person who creates a pod what is wrong with its annotations, and creates none', async (t) => {
    if (!cluster) return t.skip(missing);
    const namespace = await injector.namespace();
    const hostile: readonly (readonly [Record<string, string>, RegExp])[] = [
      [
        { 'postern.dev/image': 'evil.example.com/postern:1' },
        /postern: postern\.dev\/image is of a repository/,
      ],
      [{ 'postern.dev/config': '../other/secret' }, /postern\.dev\/config must be the name of a ConfigMap/],
      [{ 'postern.dev/run-as-user': '0' }, /postern\.dev\/run-as-user must be a whole number from 1/],
      [{ 'postern.dev/memory': '900Gi' }, /postern\.dev\/memory must be a quantity .* of 1Gi at most/],
      [
        { 'postern.dev/configmap': 'x' },
        /no annotation \\"postern\.dev\/configmap\\"; did you mean \\"config\\"/,
      ],
      [{ 'postern.dev/inject': 'yes' }, /annotation postern\.dev\/inject must be/],
    ];
    for (const [annotations, message] of hostile)
      await assert.rejects(injector.pod(namespace, pod({ ...asking, ...annotations })), message);
    const list = (await cluster.request('GET', `/api/v1/namespaces/${namespace}/pods`)) as {
      items: unknown[];
    };
    assert.deepEqual(list.items, []);
    assert.ok(
      injector.lines.some(
        ({ outcome, reason }) => outcome === 'refused' && String(reason).includes('run-as-user'),
      ),
    );
  });

  it('follows the label of a namespace, and the pod that says otherwise', async (t) => {
    if (!cluster) return t.skip(missing);
    const [silent, enabled, disabled] = [
      await injector.namespace(),
      await injector.namespace({ 'postern.dev/inject': 'enabled' }),
      await injector.namespace({ 'postern.dev/inject': 'disabled' }),
    ];
    const has = async (namespace: string, annotations: Record<string, string>) =>
      (await injector.pod(namespace, pod(annotations))).spec.initContainers?.[0]?.name === 'postern';
    assert.equal(await has(silent, {}), false);
    assert.equal(await has(silent, asking), true);
    assert.equal(await has(enabled, {}), true);
    assert.equal(await has(enabled, { 'postern.dev/inject': 'false' }), false);
    assert.equal(await has(disabled, asking), false);
    const labelled = pod({}) as { metadata: object };
    const stored = await injector.pod(silent, {
      ...labelled,
      metadata: { ...labelled.metadata, labels: asking },
    });
    assert.deepEqual(names(stored), [['postern', 'migrate'], ['app']]);
  });

  it('leaves alone a pod that has it, and refuses one with a stranger of that name', async (t) => {
    if (!cluster) return t.skip(missing);
    const namespace = await injector.namespace();
    const { metadata, spec } = await injector.pod(namespace, pod(asking));
    const again = {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { generateName: 'copy-', annotations: metadata.annotations },
      spec,
    };
    const stored = await injector.pod(namespace, again);
    assert.deepEqual(names(stored), [['postern', 'migrate'], ['app']]);
    assert.deepEqual(
      stored.spec.volumes?.map(({ name }) => name),
      spec.volumes?.map(({ name }) => name),
    );
    const stranger = pod(asking, {
      containers: [{ name: 'postern', image: 'registry.example.com/other:1' }],
    });
    await assert.rejects(injector.pod(namespace, stranger), /a container is called \\"postern\\"/);
  });

  it('adds one sidecar when two webhooks do the same, whichever comes first', async (t) => {
    if (!cluster) return t.skip(missing);
    const namespace = await injector.namespace();
    const path = '/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations';
    const first = (await cluster.request('GET', `${path}/${injector.name}`)) as { webhooks: object[] };
    // In the order of their names; both are asked again when the other one has changed something.
    for (const name of [`a-${injector.name}`, `z-${injector.name}`]) {
      await cluster.request('POST', path, { metadata: { name }, webhooks: first.webhooks });
      t.after(() => cluster?.request('DELETE', `${path}/${name}`));
    }
    const already = () => replica.metric('postern_inject_requests_total{outcome="already"}');
    const before = await already();
    await eventually(async () => {
      const stored = await injector.pod(namespace, pod({ ...asking, 'postern.dev/env': 'db=postgres' }));
      assert.deepEqual(names(stored), [['postern', 'migrate'], ['app']]);
      assert.equal(stored.spec.containers[0]?.env?.filter(({ name }) => name === 'PGHOST').length, 1);
      return (await already()) >= before + 2;
    }, 'the others are called, too');
  });

  it('gives the sidecar a token for the API server once, also where every container gets one', async (t) => {
    if (!cluster) return t.skip(missing);
    const namespace = await injector.namespace();
    for (const automountServiceAccountToken of [true, false]) {
      const asked = pod({ ...asking, 'postern.dev/api-token': 'true' }, { automountServiceAccountToken });
      const stored = await injector.pod(namespace, asked, '?fieldValidation=Strict');
      const mounts = stored.spec.initContainers?.[0]?.volumeMounts?.filter(
        ({ mountPath }) => mountPath === '/var/run/secrets/kubernetes.io/serviceaccount',
      );
      assert.deepEqual(
        mounts?.map(({ name }) => name),
        ['postern-api-token'],
      );
    }
  });

  it('does offline, to a file, what it does to the same pod in the cluster', async (t) => {
    if (!cluster) return t.skip(missing);
    const namespace = await injector.namespace();
    const asked = pod({
      ...asking,
      'postern.dev/env': 'db=mysql/shop, egress=proxy:3128',
      'postern.dev/sockets': 'true',
      'postern.dev/api-token': 'true',
    });
    const settings = parseSettings('sidecar: { image: registry.example.com/postern:0.1.0 }', 'x').sidecar;
    const context = { settings, everyPod: false, native: true, version: '1.2.3' };
    const { text } = injectManifests(stringify(asked), 'pod.yaml', context);
    const [offline] = parseManifests(text);
    assert.ok(offline && text.includes('postern-sockets'));
    // What the API server makes of both is compared, because it adds defaults; no webhook looks at the second namespace.
    const online = await injector.pod(namespace, asked, '?dryRun=All');
    const aside = await cluster.namespace();
    const plain = await injector.pod(aside, offline, '?dryRun=All&fieldValidation=Strict');
    assert.deepEqual(plain.spec, online.spec);
    assert.deepEqual(plain.metadata.annotations, online.metadata.annotations);
  });

  it('is counted by what became of each pod', async (t) => {
    if (!cluster) return t.skip(missing);
    assert.ok((await replica.metric('postern_inject_requests_total{outcome="injected"}')) >= 4);
    assert.ok((await replica.metric('postern_inject_requests_total{outcome="refused"}')) >= 6);
    assert.ok(
      (await replica.metric('postern_inject_certificate_expiry_timestamp_seconds')) > Date.now() / 1000,
    );
  });

  it('fails closed or open when nobody answers, as failurePolicy says, and for no other pod', async (t) => {
    if (!cluster) return t.skip(missing);
    await using down = await TestInjector.make(cluster);
    const namespace = await down.namespace();
    // Nobody listens there.
    await down.register(1, 'Fail');
    await eventually(
      () =>
        down.pod(namespace, pod(asking), '?dryRun=All').then(
          () => false,
          (error: Error) => /failed calling webhook/.test(error.message),
        ),
      'the API server knows the webhook',
    );
    assert.deepEqual(names(await down.pod(namespace, pod({}))), [['migrate'], ['app']]);
    await down.register(1, 'Ignore');
    await eventually(
      () =>
        down.pod(namespace, pod(asking), '?dryRun=All').then(
          (stored) => names(stored)[0]?.[0] === 'migrate',
          () => false,
        ),
      'the pod is created without the sidecar',
    );
  });
});

describe('the certificate of the webhook', () => {
  it('is renewed, with its authority, by two replicas that share it, while pods are created without one failure', async (t) => {
    if (!cluster) return t.skip(missing);
    const shared = cluster;
    await using injector = await TestInjector.make(cluster);
    // A renewal each three seconds or so; each certificate is good for an hour.
    const fast = 'lifetime: 1h, renewBefore: 3598s, settle: 1s, poll: 200ms';
    const [first, second] = [await injector.start(fast), await injector.start(fast)];
    const ports = [await first.listening(), await second.listening()];
    await injector.register(ports[0] ?? 0);
    await Promise.all([first.ready(), second.ready()]);
    const namespace = await injector.namespace();
    const path = `/api/v1/namespaces/${injector.home}/secrets/certificates`;
    const secret = async () => ((await shared.request('GET', path)) as { data: Record<string, string> }).data;
    const before = (await secret())['tls.crt'];
    await eventually(
      () =>
        injector.pod(namespace, pod(asking), '?dryRun=All').then(
          () => true,
          () => false,
        ),
      'the API server knows the webhook',
    );
    let created = 0;
    const renewals = async () =>
      Math.min(
        await first.metric('postern_inject_certificates_total'),
        await second.metric('postern_inject_certificates_total'),
      );
    const end = Date.now() + 60_000;
    while ((await renewals()) < 4) {
      assert.ok(Date.now() < end, 'no renewals');
      const stored = await injector.pod(namespace, pod(asking), '?dryRun=All');
      assert.equal(stored.spec.initContainers?.[0]?.name, 'postern');
      created++;
      await delay(20);
    }
    assert.ok(created > 10);
    assert.notEqual((await secret())['tls.crt'], before);
    // Both showed the same ones: nobody made a certificate that the other one did not take.
    const shown = injector.lines
      .filter(({ msg }) => msg === 'certificate of the webhook in use')
      .map(({ until }) => String(until));
    const times = new Map<string, number>();
    for (const until of shown) times.set(until, (times.get(until) ?? 0) + 1);
    const byBoth = [...times.values()].filter((count) => count === 2).length;
    assert.ok(byBoth >= 3, `they go separate ways: ${JSON.stringify([...times])}`);
    assert.deepEqual(
      injector.lines.filter(({ level }) => Number(level) >= 50),
      [],
    );
    // Whoever comes later shows it, too.
    await first.stop();
    await second.stop();
    const third = await injector.start('poll: 200ms', { port: ports[0] ?? 0 });
    await third.ready();
    await injector.pod(namespace, pod(asking), '?dryRun=All');
  });

  it('is made anew when somebody breaks the Secret, and the caBundle is put back when somebody takes it', async (t) => {
    if (!cluster) return t.skip(missing);
    await using injector = await TestInjector.make(cluster);
    const replica = await injector.start();
    await injector.register(await replica.listening());
    await replica.ready();
    const namespace = await injector.namespace();
    const works = () =>
      injector.pod(namespace, pod(asking), '?dryRun=All').then(
        () => true,
        () => false,
      );
    await eventually(works, 'the webhook is called');
    await cluster.secret(injector.home, 'certificates', {
      'tls.crt': 'garbage',
      'tls.key': 'garbage',
      'ca.crt': '-----BEGIN',
    });
    await eventually(
      async () => (await replica.metric('postern_inject_certificates_total')) === 2,
      'a new certificate',
    );
    await eventually(works, 'the webhook is called again');
    const path = `/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/${injector.name}`;
    const read = async () =>
      (await cluster?.request('GET', path)) as { webhooks: { clientConfig: { caBundle?: string } }[] };
    const good = await read();
    for (const { clientConfig } of good.webhooks) delete clientConfig.caBundle;
    await cluster.request('PUT', path, good);
    await eventually(
      async () => (await read()).webhooks.every(({ clientConfig }) => clientConfig.caBundle),
      'the caBundle is back',
    );
    await eventually(works, 'the webhook is called again');
  });

  it('is made by one of two replicas that start at once where there is no Secret yet', async (t) => {
    if (!cluster) return t.skip(missing);
    await using injector = await TestInjector.make(cluster);
    await injector.register(1);
    const more = { secret: 'of-their-own', kubeconfig: cluster.kubeconfig };
    const replicas = await Promise.all(Array.from({ length: 3 }, () => injector.start('poll: 200ms', more)));
    await Promise.all(replicas.map((replica) => replica.ready()));
    const shown = injector.lines.filter(({ msg }) => msg === 'certificate of the webhook in use');
    assert.equal(shown.length, 3);
    for (const replica of replicas)
      assert.equal(await replica.metric('postern_inject_certificates_total'), 1);
    const ends = await Promise.all(
      replicas.map((replica) => replica.metric('postern_inject_certificate_expiry_timestamp_seconds')),
    );
    assert.equal(new Set(ends).size, 1);
  });

  it('stays when the API server goes away, and is looked after again when it is back', async (t) => {
    if (!cluster) return t.skip(missing);
    await using injector = await TestInjector.make(cluster);
    // What stands between the injector and the API server, which others need.
    const open = new Set<Socket>();
    const way = createServer((near) => {
      const far = connect(cluster?.port ?? 0, '127.0.0.1');
      for (const socket of [near, far]) {
        open.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => {
          near.destroy();
          far.destroy();
        });
      }
      near.pipe(far).pipe(near);
    });
    t.after(() => way.close());
    await once(way.listen(0, '127.0.0.1'), 'listening');
    const { port } = way.address() as AddressInfo;
    const replica = await injector.start('poll: 200ms', { apiPort: port });
    await injector.register(await replica.listening());
    await replica.ready();
    way.close();
    for (const socket of open) socket.destroy();
    const failures = () => replica.metric('postern_inject_certificate_failures_total');
    await eventually(async () => (await failures()) >= 2, 'it cannot be looked after');
    assert.equal(replica.injector.notReady(), undefined);
    way.listen(port, '127.0.0.1');
    const said = (msg: string) => injector.lines.filter((line) => line['msg'] === msg).length;
    await eventually(() => said('certificate of the webhook can be looked after again') === 1, 'it is again');
    assert.equal(said('certificate of the webhook cannot be looked after'), 1);
    const namespace = await injector.namespace();
    await eventually(
      () =>
        injector.pod(namespace, pod(asking), '?dryRun=All').then(
          (stored) => names(stored)[0]?.[0] === 'postern',
          () => false,
        ),
      'pods are injected again',
    );
  });
});
