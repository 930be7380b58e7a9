import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { parseAllDocuments } from 'yaml';

import type { Config } from '../../src/config/config.ts';
import { readConfig } from '../../src/config/load.ts';
import { connectors } from '../../src/connectors/index.ts';
import { providers } from '../../src/providers/index.ts';
import { lines, readFiles } from '../config/files.ts';
import type { Kubernetes } from '../support/servers.ts';

interface HttpProbe {
  readonly httpGet?: { readonly path: string; readonly port: string | number };
}

interface Handler {
  readonly exec?: { readonly command: readonly string[] };
  readonly sleep?: { readonly seconds: number };
}

/** What the tests look at in a container. */
export interface Container {
  readonly name: string;
  readonly image: string;
  readonly restartPolicy?: string;
  readonly args?: readonly string[];
  readonly env?: readonly { readonly name: string; readonly value?: string }[];
  readonly ports?: readonly { readonly name?: string; readonly containerPort: number }[];
  readonly lifecycle?: { readonly postStart?: Handler; readonly preStop?: Handler };
  readonly startupProbe?: HttpProbe;
  readonly readinessProbe?: HttpProbe;
  readonly livenessProbe?: HttpProbe;
  readonly securityContext?: Readonly<Record<string, unknown>>;
  readonly resources?: Readonly<Record<string, unknown>>;
  readonly volumeMounts?: readonly {
    readonly name: string;
    readonly mountPath: string;
    readonly readOnly?: boolean;
  }[];
}

/** What the tests look at in a pod. */
export interface Pod {
  readonly serviceAccountName?: string;
  readonly automountServiceAccountToken?: boolean;
  readonly terminationGracePeriodSeconds?: number;
  readonly securityContext?: Readonly<Record<string, unknown>>;
  readonly initContainers?: readonly Container[];
  readonly containers: readonly Container[];
  readonly volumes?: readonly (Readonly<Record<string, unknown>> & { readonly name: string })[];
}

/** An object of the API as a file or a renderer has it. */
export interface Manifest {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: {
    readonly name: string;
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly data?: Readonly<Record<string, string>>;
  readonly spec?: Readonly<Record<string, unknown>> & {
    readonly template?: { readonly metadata?: object; readonly spec: Pod };
  };
}

/** The objects in a text of YAML documents, which must be without a fault: a key that stands twice is one. */
export function parseManifests(text: string): Manifest[] {
  const documents = parseAllDocuments(text);
  assert.deepEqual(
    documents.flatMap(({ errors, warnings }) => [...errors, ...warnings]),
    [],
  );
  return documents.map((document) => document.toJS() as Manifest).filter((manifest) => manifest !== null);
}

/** The objects in a file below `deploy/`. */
export async function readManifests(path: string): Promise<Manifest[]> {
  return parseManifests(await readFile(new URL(`../../deploy/${path}`, import.meta.url), 'utf8'));
}

/** The pod that an object makes, if it makes any. */
export function podOf(manifest: Manifest): Pod | undefined {
  return manifest.spec?.template?.spec;
}

/** The pods that all of the objects make. */
export function podsOf(manifests: readonly Manifest[]): Pod[] {
  return manifests.map(podOf).filter((pod) => pod !== undefined);
}

/** The container that is Postern. */
export function posternOf(pod: Pod): Container {
  return found(
    [...(pod.initContainers ?? []), ...pod.containers].find(({ name }) => name === 'postern'),
    'postern',
  );
}

/** The same value, which must be there. */
export function found<Thing>(thing: Thing | undefined, what = 'this'): Thing {
  assert.ok(thing !== undefined, `${what} is missing`);
  return thing;
}

/** The file postern.yaml of a ConfigMap as the program in the pod would read it: without a problem, without a warning. */
export async function configOf(map: Manifest, overrides: { readonly admin?: string } = {}): Promise<Config> {
  const files = { 'postern.yaml': found(map.data?.['postern.yaml'], 'postern.yaml') };
  const reading = await readFiles(files, undefined, { connectors, providers, overrides });
  assert.deepEqual(lines(reading.problems), []);
  assert.deepEqual(lines(reading.warnings), []);
  return found(reading.config);
}

/** Reads a configuration file where it lies. */
export async function configAt(folder: string, name: string): Promise<Config> {
  const reading = await readConfig([name], { folder, environment: {} });
  assert.deepEqual([...lines(reading.problems), ...lines(reading.warnings)], []);
  return found(reading.config);
}

const plural = (kind: string) => kind.toLowerCase().replace(/y$/, 'ie').concat('s');

/** A namespace of a real API server in which the Pod Security Standard "restricted" is enforced. */
export class RestrictedNamespace {
  readonly #cluster: Kubernetes;
  readonly name: string;

  private constructor(cluster: Kubernetes, name: string) {
    this.#cluster = cluster;
    this.name = name;
  }

  /** Makes one with a service account of each name. */
  static async make(cluster: Kubernetes, accounts: readonly string[] = []): Promise<RestrictedNamespace> {
    const name = await cluster.namespace();
    const labels = { 'pod-security.kubernetes.io/enforce': 'restricted' };
    await cluster.request('PATCH', `/api/v1/namespaces/${name}`, { metadata: { labels } });
    for (const account of accounts)
      await cluster.request('POST', `/api/v1/namespaces/${name}/serviceaccounts`, {
        metadata: { name: account },
      });
    return new RestrictedNamespace(cluster, name);
  }

  /**
   * Asks the server to create the object, with every unknown field an error, and to keep nothing (dryRun). Rejects with
   * what the server says.
   */
  async admit(manifest: Omit<Manifest, 'metadata'> & { readonly metadata: object }): Promise<void> {
    const group = manifest.apiVersion.includes('/') ? `apis/${manifest.apiVersion}` : 'api/v1';
    const path = `/${group}/namespaces/${this.name}/${plural(manifest.kind)}`;
    await this.#cluster.request('POST', `${path}?dryRun=All&fieldValidation=Strict`, manifest);
  }

  /** The same for a pod alone. */
  async admitPod(spec: object): Promise<void> {
    await this.admit({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { generateName: 'pod-' },
      spec,
    } as Parameters<RestrictedNamespace['admit']>[0]);
  }
}

/** Has a real API server take all of the objects, and the pods that its controllers would make of them, under "restricted". */
export async function admitAll(cluster: Kubernetes, manifests: readonly Manifest[]): Promise<void> {
  assert.ok(manifests.length > 0);
  const accounts = new Set(podsOf(manifests).map(({ serviceAccountName = 'default' }) => serviceAccountName));
  // A dry run makes none, and a pod needs its account.
  const namespace = await RestrictedNamespace.make(cluster, [...accounts]);
  for (const manifest of manifests) {
    if (manifest.kind === 'ServiceAccount' && accounts.has(manifest.metadata.name)) {
      // It is there already: the same fields under another name.
      await namespace.admit({ ...manifest, metadata: { ...manifest.metadata, name: 'another' } });
    } else {
      await namespace.admit(manifest);
    }
    const pod = podOf(manifest);
    if (pod) await namespace.admitPod(pod);
  }
}
