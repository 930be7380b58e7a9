import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { prefix, Refusal, annotations as table } from '../../src/inject/annotations.ts';
import { difference } from '../../src/inject/json-patch.ts';
import { imageProblem, isAllowed } from '../../src/inject/names.ts';
import { injectPod, type Surroundings } from '../../src/inject/pod.ts';
import { quantityOf } from '../../src/inject/quantity.ts';
import { parseSettings } from '../../src/inject/settings.ts';
import { pod } from './cluster.ts';

const sidecar = parseSettings('sidecar: { image: "registry.example.com/postern:0.1.0" }', 'x').sidecar;
const usual: Surroundings = { settings: sidecar, everyPod: false, native: true, version: '1.2.3' };

interface Container {
  name: string;
  image: string;
  args: string[];
  env?: { name: string; value: string }[];
  volumeMounts?: { name: string; mountPath: string; readOnly?: boolean }[];
  securityContext: Record<string, unknown>;
  resources: Record<string, Record<string, string>>;
  [more: string]: unknown;
}

interface Spec {
  initContainers?: Container[];
  containers: Container[];
  volumes: { name: string }[];
  securityContext?: { supplementalGroups?: number[] };
}

const asking = (more: Readonly<Record<string, string>> = {}) =>
  Object.fromEntries(
    Object.entries({ inject: 'true', ...more }).map(([key, value]) => [prefix + key, value]),
  );

function inject(
  annotations: Readonly<Record<string, string>>,
  more: object = {},
  by: Partial<Surroundings> = {},
) {
  const given = pod(asking(annotations), more);
  const before = structuredClone(given);
  const { outcome, pod: made, warnings } = injectPod(given, { ...usual, ...by });
  assert.deepEqual(given, before, 'what is given stays as it is');
  const { spec } = made as { spec: Spec };
  const all = [...(spec.initContainers ?? []), ...spec.containers];
  const own = all.find(({ name }) => name === 'postern');
  assert.ok(own);
  return { outcome, spec, own, warnings, made };
}

const variables = ({ env = [] }: Container) =>
  Object.fromEntries(env.map(({ name, value }) => [name, value]));
const refusal = (
  annotations: Readonly<Record<string, string>>,
  more: object = {},
  by: Partial<Surroundings> = {},
) => {
  try {
    inject(annotations, more, by);
  } catch (thrown) {
    assert.ok(thrown instanceof Refusal, String(thrown));
    return thrown.message;
  }
  return 'no refusal';
};

const secure = { securityContext: { runAsUser: 10001 } };

describe('the sidecar of a pod', () => {
  it('has what the annotations say, and else what the settings say', () => {
    const { own, spec } = inject({
      image: 'registry.example.com/postern:0.2.0',
      cpu: '100m',
      memory: '128Mi',
      'cpu-limit': '1',
      'memory-limit': '512Mi',
      'log-level': 'debug',
      'drain-timeout': '5s',
      'run-as-user': '20002',
      'admin-port': '9191',
      config: 'orders-postern',
    });
    assert.equal(own.image, 'registry.example.com/postern:0.2.0');
    assert.deepEqual(own.resources, {
      requests: { cpu: '100m', memory: '128Mi' },
      limits: { cpu: '1', memory: '512Mi' },
    });
    assert.deepEqual(own.args.slice(3), [
      '--admin-listen',
      'tcp://0.0.0.0:9191',
      '--log-level',
      'debug',
      '--drain-timeout',
      '5s',
    ]);
    assert.equal(own.securityContext['runAsUser'], 20002);
    assert.deepEqual(spec.volumes[0], { name: 'postern-config', configMap: { name: 'orders-postern' } });
    const { own: plain } = inject({});
    assert.deepEqual(plain.resources, {
      requests: { cpu: '50m', memory: '96Mi' },
      limits: { memory: '256Mi' },
    });
  });

  it('is limited to no less than it asks for', () => {
    const limits = (annotations: Readonly<Record<string, string>>) =>
      inject(annotations).own.resources['limits'];
    assert.deepEqual(limits({ memory: '512Mi' }), { memory: '512Mi' });
    assert.deepEqual(limits({ memory: '128Mi' }), { memory: '256Mi' });
    assert.match(refusal({ memory: '512Mi', 'memory-limit': '0.25Gi' }), /memory-limit is less than/);
    assert.match(refusal({ 'cpu-limit': '10m' }), /cpu-limit is less than the sidecar asks for \(50m\)/);
  });

  it('is the first of the containers, with hooks that keep the order, where a cluster has no native ones', () => {
    const { spec, own } = inject({}, {}, { native: false });
    assert.deepEqual(
      spec.containers.map(({ name }) => name),
      ['postern', 'app'],
    );
    assert.deepEqual(
      spec.initContainers?.map(({ name }) => name),
      ['migrate'],
    );
    assert.ok(!('restartPolicy' in own) && !('startupProbe' in own));
    assert.deepEqual(Object.keys(own['lifecycle'] as object), ['postStart', 'preStop']);
    assert.match(
      refusal({}, { restartPolicy: 'OnFailure' }, { native: false }),
      /a Job never completes beside a plain sidecar/,
    );
    assert.match(refusal({ mode: 'native' }, {}, { native: false }), /no native sidecars/);
  });

  it('comes behind the init containers where that is asked for, and they get no variables then', () => {
    const { spec } = inject({ first: 'false', env: 'db=postgres' });
    assert.deepEqual(
      spec.initContainers?.map(({ name }) => name),
      ['migrate', 'postern'],
    );
    assert.equal(spec.initContainers?.[0]?.env, undefined);
    assert.equal(variables(spec.containers[0] as Container)['PGHOST'], '127.0.0.1');
    assert.match(
      refusal({ first: 'false', containers: 'migrate' }),
      /"migrate" is done before the sidecar listens/,
    );
  });

  it('is another user than every other container', () => {
    const app = {
      containers: [
        { name: 'app', securityContext: { runAsUser: 65532 } },
        { name: 'b', securityContext: { runAsUser: 65533 } },
      ],
    };
    assert.equal(inject({}, app).own.securityContext['runAsUser'], 65534);
    assert.equal(
      inject({}, { securityContext: { runAsUser: 65532 }, containers: [{ name: 'app' }] }).own
        .securityContext['runAsUser'],
      65533,
    );
    assert.match(refusal({ 'run-as-user': '10001' }), /is the user of another container/);
  });

  it('gives its names to volumes that nobody else has', () => {
    const volumes = [{ name: 'postern-config' }, { name: 'postern-config-2' }, { name: 'postern-state' }];
    const { spec, own } = inject({ 'token-audience': 'vault' }, { volumes });
    const names = spec.volumes.map(({ name }) => name);
    assert.equal(new Set(names).size, names.length);
    assert.deepEqual(names.slice(3), ['postern-config-3', 'postern-state-2', 'postern-token-vault']);
    for (const { name } of own.volumeMounts ?? []) assert.ok(names.slice(3).includes(name));
  });

  it('has tokens for stores by name and audience', () => {
    const { spec, own } = inject({ 'token-audience': 'vault, aws=sts.amazonaws.com', 'api-token': 'true' });
    const text = JSON.stringify(spec.volumes);
    assert.ok(text.includes('"audience":"vault"') && text.includes('"audience":"sts.amazonaws.com"'));
    assert.deepEqual(own.volumeMounts?.map(({ mountPath }) => mountPath).slice(2), [
      '/var/run/secrets/vault',
      '/var/run/secrets/aws',
      '/var/run/secrets/kubernetes.io/serviceaccount',
    ]);
  });
});

describe('the containers of a pod', () => {
  it('find each service, and the first of a kind by the names that its clients know', () => {
    const { spec } = inject({
      env: 'orders-db=postgres:6432/orders, 2nd=postgres:6433, shop=mysql/shop, api=http:8080, egress=proxy:3128',
    });
    const found = variables(spec.containers[0] as Container);
    const expected = {
      PGHOST: '127.0.0.1',
      PGPORT: '6432',
      PGUSER: 'postern',
      PGDATABASE: 'orders',
      PGSSLMODE: 'disable',
      ORDERS_DB_URL: 'postgresql://postern@127.0.0.1:6432/orders?sslmode=disable',
      _2ND_PORT: '6433',
      MYSQL_HOST: '127.0.0.1',
      MYSQL_TCP_PORT: '3306',
      SHOP_URL: 'mysql://postern@127.0.0.1:3306/shop',
      API_URL: 'http://127.0.0.1:8080',
      HTTPS_PROXY: 'http://127.0.0.1:3128',
      https_proxy: 'http://127.0.0.1:3128',
    };
    for (const [name, value] of Object.entries(expected)) assert.equal(found[name], value, name);
  });

  it('keep what they have set, and are not led half way by the rest', () => {
    const env = [
      { name: 'PGHOST', value: 'db.example.com' },
      { name: 'http_proxy', value: 'http://proxy.example.com' },
    ];
    const { spec, warnings } = inject(
      { env: 'db=postgres, egress=proxy:3128' },
      { containers: [{ name: 'app', env, ...secure }] },
    );
    const found = variables(spec.containers[0] as Container);
    assert.equal(found['PGHOST'], 'db.example.com');
    // With PGSSLMODE the connection to its own server would be in clear.
    assert.ok(!('PGSSLMODE' in found) && !('PGPORT' in found) && !('HTTPS_PROXY' in found));
    assert.equal(found['DB_PORT'], '5432');
    assert.equal(warnings.length, 2);
    assert.ok(warnings.every((warning) => warning.length <= 120));
    const { spec: other } = inject(
      { env: 'db=postgres' },
      { containers: [{ name: 'app', env: [{ name: 'PGUSER', value: 'me' }], ...secure }] },
    );
    const names = variables(other.containers[0] as Container);
    assert.equal(names['PGUSER'], 'me');
    assert.equal(names['PGHOST'], '127.0.0.1');
  });

  it('have no variable twice, also with a service that is called like a group', () => {
    const { spec } = inject({ env: 'mysql=mysql, http=proxy:3128, pg=postgres' });
    const names = (spec.containers[0]?.env ?? []).map(({ name }) => name);
    assert.equal(new Set(names).size, names.length);
  });

  it('get nothing when others are named', () => {
    const { spec } = inject({ env: 'db=postgres', containers: 'migrate' });
    assert.equal(spec.containers[0]?.env, undefined);
    assert.equal(variables(spec.initContainers?.[1] as Container)['PGPORT'], '5432');
    assert.match(refusal({ containers: 'nobody' }), /there is no container "nobody"/);
  });

  it('that are sidecars themselves are led nowhere unless they are named', () => {
    const initContainers = [{ name: 'mesh', restartPolicy: 'Always', ...secure }];
    const { spec } = inject({ env: 'egress=proxy:3128' }, { initContainers });
    assert.equal(spec.initContainers?.[1]?.env, undefined);
    assert.ok(
      inject({ env: 'egress=proxy:3128', containers: 'mesh' }, { initContainers }).spec.initContainers?.[1]
        ?.env,
    );
  });

  it('reach unix sockets as a group, and cannot put one of their own there', () => {
    const { spec, own } = inject({ sockets: 'true', env: 'db=postgres, shop=mysql' });
    assert.deepEqual(spec.securityContext?.supplementalGroups, [65532]);
    assert.deepEqual(own.volumeMounts?.at(-1), { name: 'postern-sockets', mountPath: '/run/postern' });
    for (const each of [spec.initContainers?.[1], spec.containers[0]]) {
      assert.deepEqual(each?.volumeMounts, [
        { name: 'postern-sockets', mountPath: '/run/postern', readOnly: true },
      ]);
      const found = variables(each);
      assert.equal(found['PGHOST'], '/run/postern');
      assert.equal(found['MYSQL_UNIX_PORT'], '/run/postern/shop.sock');
    }
    const { spec: grouped } = inject({ sockets: 'true' }, { securityContext: { fsGroup: 2000 } });
    assert.equal(grouped.securityContext?.supplementalGroups, undefined);
  });
});

describe('a pod that nobody asks about', () => {
  it('stays as it is, to the byte', () => {
    const untouched: readonly (readonly [object, boolean])[] = [
      [pod({}), false],
      [pod({ 'postern.dev/inject': 'false' }), true],
      [pod({ 'postern.dev/inject': 'true', 'kubernetes.io/config.mirror': 'x' }), true],
      [{}, false],
    ];
    for (const [given, everyPod] of untouched) {
      const { pod: made, outcome } = injectPod(given, { ...usual, everyPod });
      assert.equal(outcome, 'unasked');
      assert.equal(made, given);
    }
  });

  it('is the same after a second look as after the first', () => {
    const { made } = inject({ env: 'db=postgres', sockets: 'true' });
    const { outcome, pod: again } = injectPod(made, usual);
    assert.equal(outcome, 'already');
    assert.deepEqual(difference(made, again), []);
  });
});

describe('a pod that asks for what it must not have', () => {
  const cases: readonly (readonly [string, string, RegExp])[] = [
    ['image', 'registry.example.com/postern-evil:1', /allow/],
    ['image', 'registry.example.com/postern/evil:1', /allow/],
    ['image', 'registry.example.com.evil.com/postern:1', /allow/],
    ['image', 'https://registry.example.com/postern', /name of an image/],
    ['image', 'registry.example.com/postern:1 --privileged', /name of an image/],
    ['image', 'registry.example.com/x/../postern:1', /name of an image/],
    ['config', 'a/b', /ConfigMap/],
    ['config', '', /ConfigMap/],
    ['config', 'x'.repeat(254), /ConfigMap/],
    ['config', '"}],"hostNetwork":true', /ConfigMap/],
    ['cpu', '-1', /quantity/],
    ['cpu', '1e3', /quantity/],
    ['cpu', '0', /quantity/],
    ['cpu', '2001m', /of 2 at most/],
    ['cpu', '1Mi', /quantity/],
    ['memory', '9999999999999999Gi', /quantity/],
    ['memory-limit', '2Gi', /of 1Gi at most/],
    ['memory', '128Mi\n', /quantity/],
    ['run-as-user', '0', /whole number/],
    ['run-as-user', '-5', /whole number/],
    ['run-as-user', '0x10', /whole number/],
    ['run-as-user', '2147483648', /whole number/],
    ['admin-port', '80', /whole number/],
    ['log-level', 'trace', /must be one of/],
    ['mode', 'constructor', /must be one of/],
    ['drain-timeout', '9h', /duration/],
    ['env', 'db=postgres:99999', /must list services/],
    ['env', 'db=oracle', /must list services/],
    ['env', 'a=http:80,A=http:81', /must list services/],
    ['env', 'LD_PRELOAD=/x', /must list services/],
    ['env', 'db=postgres/$(cat)', /must list services/],
    ['env', Array.from({ length: 33 }, (_, n) => `s${n}=http:80`).join(), /must list services/],
    ['env', 'x'.repeat(5000), /must list services/],
    ['containers', 'app,,', /must list names/],
    ['containers', '__proto__', /must list names/],
    ['token-audience', 'https://sts.example.com', /must list audiences/],
    ['token-audience', '../../etc=vault', /must list audiences/],
    ['token-audience', 'a=vault,a=other', /must list audiences/],
    ['sockets', 'True', /must be one of/],
    ['first', '1', /must be one of/],
  ];
  for (const [key, value, message] of cases)
    it(`is refused: ${key} ${JSON.stringify(value.slice(0, 50))}`, () => {
      const said = refusal({ [key]: value });
      assert.match(said, message);
      assert.ok(said.startsWith(`${prefix}${key} `));
      if (value.length > 3) assert.ok(!said.includes(value), 'the value is not repeated');
    });

  it('is told what it has misspelt, with a bound on how much', () => {
    assert.match(refusal({ configs: 'x' }), /no annotation "postern\.dev\/configs"; did you mean "config"\?/);
    const many = Object.fromEntries(
      Array.from({ length: 1000 }, (_, n) => [`${'k'.repeat(200)}${n}`, '\n\u0000']),
    );
    assert.ok(refusal(many).length < 2000);
    assert.ok(!refusal(many).includes('\n'));
  });

  it('is refused where the sidecar cannot be kept from others, or its ports are taken', () => {
    assert.match(refusal({}, { hostNetwork: true }), /hostNetwork/);
    assert.match(refusal({}, { os: { name: 'windows' } }), /Linux/);
    const ports = (containerPort: number) => ({
      containers: [{ name: 'app', ports: [{ containerPort }], ...secure }],
    });
    assert.match(refusal({}, ports(9090)), /port 9090 is that of "app".*admin-port/);
    assert.match(refusal({ env: 'db=postgres' }, ports(5432)), /the port of db is that of "app"/);
    assert.match(refusal({ env: 'api=http:9090' }), /health and metrics/);
  });

  it('is refused when it says that it has the sidecar, and has not', () => {
    assert.match(refusal({ status: 'injected' }), /says that the sidecar is there/);
    assert.match(refusal({}, { initContainers: [{ name: 'postern' }] }), /a container is called "postern"/);
  });

  it('is refused or injected, whatever stands in it, and never a failure', () => {
    const value = fc.oneof(fc.string(), fc.constantFrom('true', 'false', '1', 'app', 'db=postgres', 'vault'));
    const key = fc.constantFrom(...Object.keys(table), '__proto__', 'constructor', 'x');
    const annotations = fc.dictionary(key, value, { noNullPrototype: true });
    fc.assert(
      fc.property(annotations, fc.jsonValue({ maxDepth: 3 }), (own, spec) => {
        const given = {
          metadata: {
            annotations: {
              ...asking(),
              ...Object.fromEntries(Object.entries(own).map(([k, v]) => [prefix + k, v])),
            },
          },
        };
        for (const candidate of [{ ...given, spec }, { ...pod({}), ...given }, spec]) {
          try {
            injectPod(candidate, usual);
          } catch (thrown) {
            assert.ok(thrown instanceof Refusal, String(thrown));
          }
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe('images and quantities', () => {
  it('are told from what only looks like one', () => {
    const good = [
      'postern',
      'a/b',
      'localhost:5000/a:v1',
      'registry.example.com/a/b-c__d:1.2@sha256:' + 'a'.repeat(64),
      '[::1]:5000/a',
    ];
    for (const image of good) assert.equal(imageProblem(image), undefined, image);
    for (const image of ['', 'A', 'a:', 'a//b', 'a b', 'a@sha256:12', 'a/', '/a', 'a\n', 'a:b:c'])
      assert.notEqual(imageProblem(image), undefined, image);
    assert.equal(isAllowed('localhost:5000/a:v1', ['localhost:5000/a']), true);
    assert.equal(isAllowed('localhost:5000/a', ['localhost']), false);
    assert.equal(isAllowed('registry.example.com/team/x:1', ['registry.example.com/team/']), true);
    assert.equal(isAllowed('registry.example.com/teams/x:1', ['registry.example.com/team/']), false);
    assert.equal(quantityOf('1.5', 'cpu'), 1.5);
    assert.equal(quantityOf('64Mi', 'memory'), 64 * 2 ** 20);
    assert.equal(quantityOf('64Mi', 'cpu'), undefined);
  });

  it('take no time that grows with a hostile text', () => {
    const started = performance.now();
    for (const text of [
      'a'.repeat(512),
      `${'a.'.repeat(255)}!`,
      `${'a-'.repeat(255)}!`,
      `${'a_'.repeat(250)}_!`,
      'a/'.repeat(255),
    ])
      imageProblem(text);
    assert.ok(performance.now() - started < 5000);
  });
});
