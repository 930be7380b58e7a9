import * as z from 'zod';

import { asksForInjection, prefix, Refusal, readWishes, type Wishes } from './annotations.ts';
import { quantityOf } from './quantity.ts';
import type { SidecarSettings } from './settings.ts';
import { socketFolder, type VariableGroup, variablesOf } from './variables.ts';

/** The name of the container that is added. */
export const sidecarName = 'postern';

const strings = z.record(z.string(), z.unknown()).nullish();
const security = z.looseObject({ runAsUser: z.number().nullish() }).nullish();
const container = z.looseObject({
  name: z.string(),
  restartPolicy: z.string().nullish(),
  env: z.array(z.looseObject({ name: z.string() })).nullish(),
  ports: z.array(z.looseObject({ containerPort: z.number() })).nullish(),
  volumeMounts: z.array(z.looseObject({ name: z.string(), mountPath: z.string() })).nullish(),
  securityContext: security,
});
const podSchema = z.looseObject({
  metadata: z.looseObject({ annotations: strings, labels: strings }).nullish(),
  spec: z.looseObject({
    containers: z.array(container).min(1),
    initContainers: z.array(container).nullish(),
    volumes: z.array(z.looseObject({ name: z.string() })).nullish(),
    restartPolicy: z.string().nullish(),
    hostNetwork: z.boolean().nullish(),
    os: z.looseObject({ name: z.string() }).nullish(),
    securityContext: z
      .looseObject({
        runAsUser: z.number().nullish(),
        fsGroup: z.number().nullish(),
        supplementalGroups: z.array(z.number()).nullish(),
      })
      .nullish(),
  }),
});

type Pod = z.output<typeof podSchema>;
type Spec = Pod['spec'];
type Container = Spec['containers'][number];

/** What decides beside the pod itself. */
export interface Surroundings {
  readonly settings: SidecarSettings;
  /** Whether pods get a sidecar that do not say otherwise. */
  readonly everyPod: boolean;
  /** Whether the cluster has native sidecars. */
  readonly native: boolean;
  /** Of this program, for the pod's annotation. */
  readonly version: string;
}

/** What became of a pod. */
export interface Injection {
  readonly outcome: 'injected' | 'already' | 'unasked';
  /** The pod as it is to be; the given one where nothing changes. */
  readonly pod: unknown;
  /** For the person who asked, 120 characters at most each. */
  readonly warnings: readonly string[];
}

/**
 * Adds the sidecar to a pod, or to the pod template of a workload, that asks for it, and changes nothing that it is
 * given. A pod that has it already stays as it is. Throws Refusal with everything that is wrong.
 */
export function injectPod(given: unknown, surroundings: Surroundings): Injection {
  const unchanged = (outcome: 'already' | 'unasked'): Injection => ({ outcome, pod: given, warnings: [] });
  const { metadata } = (given ?? {}) as { metadata?: { annotations?: unknown; labels?: unknown } };
  // The kubelet's own, which the API server only shows.
  if (Object.hasOwn(metadata?.annotations ?? {}, 'kubernetes.io/config.mirror')) return unchanged('unasked');
  if (!(asksForInjection(metadata) ?? surroundings.everyPod)) return unchanged('unasked');

  if (!podSchema.safeParse(given).success) throw new Refusal(['this is no pod that Kubernetes would take']);
  // As it was given, and no copy: what is not understood goes on as it is.
  const pod = given as Pod;
  const { spec } = pod;
  const annotations = pod.metadata?.annotations ?? {};
  const isThere = [...(spec.initContainers ?? []), ...spec.containers].some(
    ({ name }) => name === sidecarName,
  );
  const wasInjected = Object.hasOwn(annotations, `${prefix}status`);
  if (isThere && wasInjected) return unchanged('already');
  if (isThere)
    throw new Refusal([
      `a container is called "${sidecarName}" that the injector has not made: rename it, or say ${prefix}inject: "false"`,
    ]);
  if (wasInjected)
    throw new Refusal([
      `${prefix}status says that the sidecar is there, and it is not: remove the annotation`,
    ]);

  const wishes = readWishes(annotations, surroundings.settings);
  const plan = planOf(spec, wishes, surroundings);
  const { containers, initContainers, warnings } = placed(spec, plan);
  return {
    outcome: 'injected',
    warnings,
    pod: {
      ...pod,
      metadata: {
        ...pod.metadata,
        annotations: {
          ...annotations,
          [`${prefix}status`]: 'injected',
          [`${prefix}version`]: surroundings.version,
        },
      },
      spec: {
        ...spec,
        ...(initContainers && { initContainers }),
        containers,
        volumes: [...(spec.volumes ?? []), ...plan.volumes.map(({ volume }) => volume)],
        ...groupsFor(spec, plan),
      },
    },
  };
}

interface Volume {
  readonly volume: Readonly<Record<string, unknown>> & { readonly name: string };
  readonly mountPath: string;
  readonly readOnly: boolean;
}

/** The wishes, with the settings behind them, fit for this pod. */
interface Plan {
  readonly wishes: Wishes;
  readonly native: boolean;
  readonly settings: SidecarSettings;
  readonly user: number;
  readonly adminPort: number;
  /** A pod that ends by itself, as a Job's does. */
  readonly ends: boolean;
  readonly resources: object;
  readonly volumes: readonly Volume[];
  readonly sockets: Volume | undefined;
  /** Which containers get variables and sockets, by name. */
  readonly clients: ReadonlySet<string>;
  readonly variables: readonly VariableGroup[];
}

function planOf(spec: Spec, wishes: Wishes, { settings, native: can }: Surroundings): Plan {
  const problems: string[] = [];
  const mode = wishes.mode ?? settings.mode;
  const native = mode === 'auto' ? can : mode === 'native';
  const ends = spec.restartPolicy === 'Never' || spec.restartPolicy === 'OnFailure';
  const adminPort = wishes.adminPort ?? settings.adminPort;
  const all = [...(spec.initContainers ?? []), ...spec.containers];

  if (native && !can)
    problems.push(`${prefix}mode: this cluster has no native sidecars, which Kubernetes has since 1.29`);
  if (!native && ends)
    problems.push(
      'a Job never completes beside a plain sidecar: take native ones, or `postern exec` in the image of the Job',
    );
  if (spec.hostNetwork)
    problems.push(
      'with hostNetwork every process of the node would be logged in: the sidecar needs the network of a pod',
    );
  if (spec.os?.name === 'windows') problems.push('the sidecar runs on Linux');

  const ports = new Map(
    all.flatMap(({ name, ports: own }) =>
      (own ?? []).map(({ containerPort }) => [containerPort, name] as const),
    ),
  );
  const owner = ports.get(adminPort);
  if (owner !== undefined)
    problems.push(
      `port ${adminPort} is that of ${shown(owner)}: give the sidecar another one by ${prefix}admin-port`,
    );
  for (const { name, port } of wishes.env) {
    const taken = ports.get(port);
    if (taken !== undefined) problems.push(`${prefix}env: the port of ${name} is that of ${shown(taken)}`);
    else if (port === adminPort)
      problems.push(`${prefix}env: the port of ${name} is that of health and metrics`);
  }

  const resources = resourcesFor(wishes, settings, problems);
  const users = new Set(
    all.map(({ securityContext }) => securityContext?.runAsUser ?? spec.securityContext?.runAsUser),
  );
  let user = wishes.runAsUser ?? settings.runAsUser;
  // A process of the same user could read the memory of this one.
  if (wishes.runAsUser !== undefined && users.has(user))
    problems.push(
      `${prefix}run-as-user is the user of another container, whose processes could read the sidecar's memory`,
    );
  if (wishes.runAsUser === undefined) while (users.has(user)) user = user === 2 ** 31 - 1 ? 1 : user + 1;

  // An init container that runs before the sidecar, or another sidecar, is no client of it.
  const early = native && wishes.first ? [] : (spec.initContainers ?? []);
  const late = native && wishes.first ? (spec.initContainers ?? []) : [];
  const candidates = [...late, ...spec.containers];
  for (const name of wishes.containers ?? []) {
    if (early.some((each) => each.name === name))
      problems.push(`${prefix}containers: ${shown(name)} is done before the sidecar listens`);
    else if (!candidates.some((each) => each.name === name))
      problems.push(`${prefix}containers: there is no container ${shown(name)}`);
  }
  const usual = [...late.filter(({ restartPolicy }) => restartPolicy !== 'Always'), ...spec.containers];
  const clients = wishes.containers ?? usual.map(({ name }) => name);
  if (problems.length > 0) throw new Refusal(problems.slice(0, mostProblems));

  const { volumes, sockets } = volumesFor(spec, wishes, settings);
  return {
    wishes,
    native,
    settings,
    user,
    adminPort,
    ends,
    volumes,
    sockets,
    clients: new Set(clients),
    resources,
    variables: variablesOf(wishes.env, { sockets: wishes.sockets }),
  };
}

/** Of what is wrong with one pod, so much is said. */
const mostProblems = 12;

/** The pod's own lists with the sidecar in its place, and with variables where they are wanted. */
function placed(spec: Spec, plan: Plan) {
  const warnings: string[] = [];
  const served = (each: Container): Container => {
    if (!plan.clients.has(each.name)) return each;
    const has = new Set((each.env ?? []).map(({ name }) => name));
    const missing = new Map<string, string>();
    for (const { variables, anchors } of plan.variables) {
      const kept = anchors.filter((name) => has.has(name));
      if (kept.length === 0) {
        for (const [name, value] of Object.entries(variables)) if (!has.has(name)) missing.set(name, value);
      } else if (warnings.length < mostWarnings)
        warnings.push(
          `container ${shown(each.name)} goes its own way: it has ${kept.slice(0, 2).join(', ')}`.slice(
            0,
            120,
          ),
        );
    }
    const { sockets } = plan;
    const isMounted = (each.volumeMounts ?? []).some(({ mountPath }) => mountPath === socketFolder);
    if (sockets && isMounted && warnings.length < mostWarnings)
      warnings.push(`container ${shown(each.name)} has something else at ${socketFolder}`.slice(0, 120));
    return {
      ...each,
      ...(missing.size > 0 && {
        env: [...(each.env ?? []), ...Array.from(missing, ([name, value]) => ({ name, value }))],
      }),
      ...(sockets &&
        !isMounted && {
          volumeMounts: [
            ...(each.volumeMounts ?? []),
            // To connect one need not write to the folder; who could would put a socket of its own there.
            { name: sockets.volume.name, mountPath: socketFolder, readOnly: true },
          ],
        }),
    };
  };
  const sidecar = sidecarOf(plan);
  const own = (spec.initContainers ?? []).map(served);
  const containers = spec.containers.map(served);
  if (!plan.native) return { containers: [sidecar, ...containers], initContainers: undefined, warnings };
  return { containers, initContainers: plan.wishes.first ? [sidecar, ...own] : [...own, sidecar], warnings };
}

const mostWarnings = 8;

/** The container, in the shape that docs/kubernetes.md explains line by line. */
function sidecarOf(plan: Plan) {
  const { wishes, settings, adminPort, user, volumes } = plan;
  const logLevel = wishes.logLevel ?? settings.logLevel;
  // Whoever is still connected when a Job has ended is nobody to wait for.
  const drainTimeout = wishes.drainTimeout ?? (plan.ends ? '2s' : undefined);
  const probe = (path: string) => ({ httpGet: { path, port: 'postern-admin' } });
  return {
    name: sidecarName,
    image: wishes.image ?? settings.image,
    imagePullPolicy: settings.imagePullPolicy,
    args: [
      'run',
      '--config',
      '/etc/postern/postern.yaml',
      '--admin-listen',
      `tcp://${settings.adminHost === '::' ? '[::]' : settings.adminHost}:${adminPort}`,
      ...(logLevel === 'info' ? [] : ['--log-level', logLevel]),
      ...(drainTimeout === undefined ? [] : ['--drain-timeout', drainTimeout]),
    ],
    ports: [{ name: 'postern-admin', containerPort: adminPort, protocol: 'TCP' }],
    ...(plan.native
      ? {
          restartPolicy: 'Always',
          // What comes behind it in the list starts when this has succeeded.
          startupProbe: { ...probe('/startupz'), periodSeconds: 1, failureThreshold: 60 },
        }
      : {
          lifecycle: {
            postStart: {
              exec: {
                command: [
                  'postern',
                  'wait',
                  '--admin-listen',
                  `tcp://127.0.0.1:${adminPort}`,
                  '--timeout',
                  '60s',
                ],
              },
            },
            // The image has no shell and no sleep; the action `sleep` exists since 1.30.
            preStop: { exec: { command: ['node', '-e', `setTimeout(() => {}, ${settings.preStop})`] } },
          },
        }),
    ...(!plan.ends && { readinessProbe: { ...probe('/readyz'), periodSeconds: 5 } }),
    livenessProbe: { ...probe('/livez'), periodSeconds: 10, timeoutSeconds: 3 },
    securityContext: {
      runAsNonRoot: true,
      runAsUser: user,
      runAsGroup: user,
      seccompProfile: { type: 'RuntimeDefault' },
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    },
    resources: plan.resources,
    volumeMounts: volumes.map(({ volume, mountPath, readOnly }) => ({
      name: volume.name,
      mountPath,
      ...(readOnly && { readOnly }),
    })),
  };
}

/** Whoever asks for more than the settings' limit means a greater limit, too, as no pod may ask for more than its own. */
function resourcesFor(wishes: Wishes, settings: SidecarSettings, problems: string[]): object {
  const limitFor = (
    kind: 'cpu' | 'memory',
    request: string,
    wanted: string | undefined,
    usual: string | undefined,
  ) => {
    const exceeds = (limit: string) => (quantityOf(request, kind) ?? 0) > (quantityOf(limit, kind) ?? 0);
    if (wanted !== undefined && exceeds(wanted))
      problems.push(`${prefix}${kind}-limit is less than the sidecar asks for (${request})`);
    const limit = wanted ?? usual;
    return limit !== undefined && exceeds(limit) ? request : limit;
  };
  const [cpu, memory] = [wishes.cpu ?? settings.cpu, wishes.memory ?? settings.memory];
  const cpuLimit = limitFor('cpu', cpu, wishes.cpuLimit, settings.cpuLimit);
  const memoryLimit = limitFor('memory', memory, wishes.memoryLimit, settings.memoryLimit);
  return {
    requests: { cpu, memory },
    limits: { ...(cpuLimit !== undefined && { cpu: cpuLimit }), memory: memoryLimit },
  };
}

function volumesFor(spec: Spec, wishes: Wishes, settings: SidecarSettings) {
  const taken = new Set((spec.volumes ?? []).map(({ name }) => name));
  const make = (wanted: string, source: object, mountPath: string, readOnly: boolean): Volume => {
    let name = wanted;
    for (let n = 2; taken.has(name); n++) name = `${wanted}-${n}`;
    taken.add(name);
    return { volume: { name, ...source }, mountPath, readOnly };
  };
  const projected = (sources: readonly object[]) => ({ projected: { sources } });
  const configMap = { configMap: { name: wishes.config ?? settings.config } };
  const sockets = wishes.sockets
    ? make('postern-sockets', { emptyDir: { medium: 'Memory', sizeLimit: '1Mi' } }, socketFolder, false)
    : undefined;
  const volumes = [
    make('postern-config', configMap, '/etc/postern', true),
    make('postern-state', { emptyDir: { sizeLimit: '16Mi' } }, '/var/lib/postern', false),
    ...wishes.tokens.map(({ name, audience }) =>
      make(
        `postern-token-${name}`,
        projected([{ serviceAccountToken: { path: 'token', audience, expirationSeconds: 600 } }]),
        `/var/run/secrets/${name}`,
        true,
      ),
    ),
    ...(wishes.apiToken
      ? [
          make(
            'postern-api-token',
            projected([
              { serviceAccountToken: { path: 'token', expirationSeconds: 3600 } },
              { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
              {
                downwardAPI: {
                  items: [
                    { path: 'namespace', fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' } },
                  ],
                },
              },
            ]),
            '/var/run/secrets/kubernetes.io/serviceaccount',
            true,
          ),
        ]
      : []),
    ...(sockets ? [sockets] : []),
  ];
  return { volumes, sockets };
}

/**
 * Sockets of mode 0660 let the group in: that of the volume, where the pod has an fsGroup, else the sidecar's own, which
 * the pod's containers then are of, too. An fsGroup of ours would change the owner of every file in the pod's volumes.
 */
function groupsFor(spec: Spec, { sockets, user }: Plan) {
  const context = spec.securityContext;
  const groups = context?.supplementalGroups ?? [];
  if (!sockets || typeof context?.fsGroup === 'number' || groups.includes(user)) return {};
  return { securityContext: { ...context, supplementalGroups: [...groups, user] } };
}

/** A name that somebody else chose, fit for a message. */
function shown(name: string): string {
  return JSON.stringify(name.slice(0, 63));
}
