import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { parseAllDocuments } from 'yaml';

import { parseOptions } from '../../src/cli/options.ts';
import type { Config } from '../../src/config/config.ts';
import { readConfig } from '../../src/config/load.ts';
import { lines } from '../config/files.ts';

interface SecurityContext {
  readonly runAsNonRoot?: boolean;
  readonly runAsUser?: number;
  readonly allowPrivilegeEscalation?: boolean;
  readonly readOnlyRootFilesystem?: boolean;
  readonly privileged?: boolean;
  readonly capabilities?: { readonly add?: readonly string[]; readonly drop?: readonly string[] };
  readonly seccompProfile?: { readonly type: string };
}

interface HttpProbe {
  readonly httpGet?: { readonly path: string; readonly port: string | number; readonly host?: string };
}

interface Container {
  readonly name: string;
  readonly restartPolicy?: string;
  readonly args?: readonly string[];
  readonly env?: readonly { readonly name: string; readonly value?: string }[];
  readonly ports?: readonly {
    readonly name: string;
    readonly containerPort: number;
    readonly hostPort?: number;
  }[];
  readonly startupProbe?: HttpProbe;
  readonly readinessProbe?: HttpProbe;
  readonly livenessProbe?: HttpProbe;
  readonly securityContext?: SecurityContext;
  readonly resources?: { readonly requests?: object; readonly limits?: { readonly memory?: string } };
  readonly volumeMounts?: readonly { readonly name: string; readonly mountPath: string }[];
}

interface Pod {
  readonly automountServiceAccountToken?: boolean;
  readonly terminationGracePeriodSeconds: number;
  readonly hostNetwork?: boolean;
  readonly hostPID?: boolean;
  readonly hostIPC?: boolean;
  readonly shareProcessNamespace?: boolean;
  readonly securityContext?: SecurityContext;
  readonly initContainers: readonly Container[];
  readonly containers: readonly Container[];
  readonly volumes: readonly (Readonly<Record<string, unknown>> & { readonly name: string })[];
}

interface Manifest {
  readonly kind: string;
  readonly data?: Readonly<Record<string, string>>;
  readonly spec?: { readonly template: { readonly spec: Pod } };
}

const file = new URL('../../deploy/kubernetes/sidecar.yaml', import.meta.url);
const documents = parseAllDocuments(readFileSync(file, 'utf8'));
const manifests = documents.map((document) => document.toJS() as Manifest);
const pod = found(manifests.find(({ kind }) => kind === 'Deployment')?.spec).template.spec;
const postern = found(pod.initContainers.find(({ name }) => name === 'postern'));
const configMap = found(manifests.find(({ kind }) => kind === 'ConfigMap')?.data);

function found<Thing>(thing: Thing | undefined): Thing {
  assert.ok(thing);
  return thing;
}

/** The configuration as the program in the pod would read it. */
async function embeddedConfig(): Promise<Config> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-sidecar-'));
  try {
    await writeFile(join(folder, 'postern.yaml'), found(configMap['postern.yaml']));
    const reading = await readConfig(['postern.yaml'], { folder, environment: {} });
    assert.deepEqual(lines(reading.problems), []);
    assert.deepEqual(lines(reading.warnings), []);
    return found(reading.config);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** The rules of the Pod Security Standard "restricted" for one container; what is broken. */
function brokenRules(container: Container): string[] {
  const own = container.securityContext ?? {};
  const all = { ...pod.securityContext, ...own };
  const rules: readonly (readonly [rule: string, holds: boolean])[] = [
    ['allowPrivilegeEscalation: false', own.allowPrivilegeEscalation === false],
    ['capabilities: drop ALL', own.capabilities?.drop?.includes('ALL') === true],
    ['capabilities: add nothing', (own.capabilities?.add ?? []).length === 0],
    ['runAsNonRoot: true', all.runAsNonRoot === true],
    ['runAsUser is a number and not 0', (own.runAsUser ?? 0) > 0],
    ['seccompProfile: RuntimeDefault', all.seccompProfile?.type === 'RuntimeDefault'],
    ['not privileged', own.privileged !== true],
    ['no hostPort', (container.ports ?? []).every(({ hostPort }) => hostPort === undefined)],
    [
      'no host in probes',
      [container.startupProbe, container.readinessProbe, container.livenessProbe].every(
        (probe) => probe?.httpGet?.host === undefined,
      ),
    ],
    ['readOnlyRootFilesystem: true', own.readOnlyRootFilesystem === true],
  ];
  return rules.filter(([, holds]) => !holds).map(([rule]) => `${container.name}: ${rule}`);
}

describe('deploy/kubernetes/sidecar.yaml', () => {
  it('is YAML without a fault', () => {
    assert.deepEqual(
      documents.flatMap(({ errors, warnings }) => [...errors, ...warnings]),
      [],
    );
  });

  it('keeps the rules of the Pod Security Standard "restricted" in every container', () => {
    assert.deepEqual([...pod.initContainers, ...pod.containers].flatMap(brokenRules), []);
    assert.ok(!pod.hostNetwork && !pod.hostPID && !pod.hostIPC && !pod.shareProcessNamespace);
    const allowed = ['configMap', 'csi', 'downwardAPI', 'emptyDir', 'ephemeral', 'projected', 'secret'];
    for (const { name, ...source } of pod.volumes)
      assert.deepEqual(
        Object.keys(source).filter((kind) => !allowed.includes(kind)),
        [],
        name,
      );
  });

  it('notices a container that breaks a rule', () => {
    const broken = { ...postern, securityContext: { ...postern.securityContext, runAsUser: 0 } };
    assert.deepEqual(brokenRules(broken), ['postern: runAsUser is a number and not 0']);
  });

  it('starts Postern first, keeps it running, and lets nothing else start before it listens', () => {
    assert.equal(pod.initContainers[0]?.name, 'postern');
    assert.equal(postern.restartPolicy, 'Always');
    assert.equal(postern.startupProbe?.httpGet?.path, '/startupz');
    assert.equal(postern.readinessProbe?.httpGet?.path, '/readyz');
    assert.equal(postern.livenessProbe?.httpGet?.path, '/livez');
  });

  it('gives Postern a user of its own, and the token of Vault to nobody else', () => {
    const users = [...pod.initContainers, ...pod.containers].map((each) => each.securityContext?.runAsUser);
    assert.equal(new Set(users).size, users.length);
    assert.equal(pod.automountServiceAccountToken, false);
    const mounts = pod.containers.flatMap((each) => each.volumeMounts ?? []);
    assert.deepEqual(mounts, []);
  });

  it('is understood by the program: the command line, and the configuration without a warning', async () => {
    const [command, ...words] = found(postern.args);
    assert.equal(command, 'run');
    assert.deepEqual(parseOptions(words, {}).configPaths, ['/etc/postern/postern.yaml']);
    await embeddedConfig();
  });

  it('agrees with itself: probes, token, certificates, addresses and times', async () => {
    const config = await embeddedConfig();
    const [service] = config.services;
    assert.ok(service && service.listenOn.kind === 'tcp' && config.admin.listenOn?.kind === 'tcp');

    const port = found(postern.ports?.find(({ name }) => name === 'admin')).containerPort;
    assert.equal(config.admin.listenOn.port, port);
    assert.equal(config.admin.listenOn.host, '0.0.0.0', 'the kubelet calls the address of the pod');

    const [application] = pod.containers;
    const variable = (name: string) => application?.env?.find((each) => each.name === name)?.value;
    assert.equal(variable('PGHOST'), service.listenOn.host);
    assert.equal(variable('PGPORT'), String(service.listenOn.port));
    assert.equal(variable('PGPASSWORD'), undefined);

    const text = found(configMap['postern.yaml']);
    for (const [, path = ''] of text.matchAll(/(\/etc\/postern\/\S+\.pem)/g))
      assert.ok(path.slice('/etc/postern/'.length) in configMap, path);
    const volume = found(pod.volumes.find(({ name }) => name === 'vault-token'));
    const [source] = (
      volume['projected'] as { sources: { serviceAccountToken: { path: string; audience: string } }[] }
    ).sources;
    const mount = found(postern.volumeMounts?.find(({ name }) => name === 'vault-token')).mountPath;
    assert.equal(source?.serviceAccountToken.audience, 'vault');
    assert.ok(text.includes(`jwtFile: ${mount}/${source?.serviceAccountToken.path}\n`));

    // The root file system cannot be written, and what is to outlive a crash of the container must be on a volume.
    const state = found(postern.volumeMounts?.find(({ mountPath }) => mountPath === config.stateFolder));
    assert.ok('emptyDir' in found(pod.volumes.find(({ name }) => name === state.name)));

    const drain = Math.max(...config.services.map(({ limits }) => limits.drainTimeout)) / 1000;
    assert.ok(drain < pod.terminationGracePeriodSeconds, 'the kubelet would kill it while it drains');
  });
});
