import { PosternError } from '../../core/errors.ts';

/** Where a resource is. */
export interface ResourceAddress {
  /** undefined: in the namespace of the pod, or of the kubeconfig's context. */
  readonly namespace: string | undefined;
  readonly name: string;
}

/** Whether a path of a configuration names a resource of Kubernetes. */
export function namesResource(path: string): boolean {
  return path.startsWith('k8s:');
}

/** `k8s://NAMESPACE/NAME`, or `k8s:///NAME` for the own namespace. Throws CONFIG_INVALID. */
export function parseResourceAddress(path: string): ResourceAddress {
  const match =
    /^k8s:\/\/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)?\/([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)$/.exec(path);
  const [, namespace, name] = match ?? [];
  if (name === undefined)
    throw new PosternError(
      'CONFIG_INVALID',
      'is no address of a resource: write k8s://NAMESPACE/NAME, or k8s:///NAME for the own namespace',
    );
  return { namespace, name };
}
