import assert from 'node:assert/strict';
import { parse } from 'yaml';

import { crdManifest } from '../../../scripts/crd.ts';
import { type Kubernetes, server, Unavailable } from '../../support/servers.ts';

const definitions = '/apis/apiextensions.k8s.io/v1/customresourcedefinitions';

interface Definition {
  readonly metadata: { readonly name: string; readonly resourceVersion?: string };
  readonly status?: { readonly conditions?: readonly { readonly type: string; readonly status: string }[] };
}

/** A cluster for a whole file; undefined where it cannot be had, which in CI is a failure like any other. */
export async function clusterHere(): Promise<Kubernetes | undefined> {
  try {
    return await server('kubernetes');
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
    return undefined;
  }
}

/** Has the API server serve the resource as the schemas are now; other tests may be doing the same. */
export async function defineConfiguration(cluster: Kubernetes): Promise<void> {
  const wanted = parse(crdManifest()) as Definition;
  const path = `${definitions}/${wanted.metadata.name}`;
  for (let attempt = 1; ; attempt++)
    try {
      const found = (await cluster.request('GET', path).catch(() => undefined)) as Definition | undefined;
      const metadata = { ...wanted.metadata, resourceVersion: found?.metadata.resourceVersion };
      await (found
        ? cluster.request('PUT', `${path}?fieldValidation=Strict`, { ...wanted, metadata })
        : cluster.request('POST', `${definitions}?fieldValidation=Strict`, wanted));
      break;
    } catch (thrown) {
      if (!(thrown as Error).message.includes(' 409 ') || attempt === 20) throw thrown;
    }
  const end = Date.now() + 30_000;
  for (;;) {
    const { status } = (await cluster.request('GET', path)) as Definition;
    const established = status?.conditions?.some(
      (each) => each.type === 'Established' && each.status === 'True',
    );
    const served = await cluster.request('GET', '/apis/postern.dev/v1alpha1').then(
      () => true,
      () => false,
    );
    if (established && served) return;
    assert.ok(Date.now() < end, 'the definition is not established');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Where the Configurations of a namespace are, or one of them. */
export function configurations(namespace: string, name?: string): string {
  const all = `/apis/postern.dev/v1alpha1/namespaces/${namespace}/configurations`;
  return name === undefined ? all : `${all}/${name}`;
}

/** A Configuration as it is applied. */
export function configuration(name: string, spec: object): object {
  return { apiVersion: 'postern.dev/v1alpha1', kind: 'Configuration', metadata: { name }, spec };
}
