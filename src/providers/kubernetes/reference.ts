/** `namespace/name#field`, taken apart. */
export interface KubernetesReference {
  /** undefined: the provider's own. */
  readonly namespace: string | undefined;
  readonly name: string;
  readonly field: string;
}

/** Says what is wrong with a reference; undefined when it is well formed. */
export function checkReference(reference: string): string | undefined {
  const { namespace, name, field } = parseReference(reference);
  if (name === '') return 'the name of the secret is missing';
  if (field === '') return 'the key in the secret is missing; write name#key';
  // They become parts of a URL: what Kubernetes would refuse must not reach it.
  if (!isName(name, 253)) return `"${name}" cannot be the name of a secret`;
  if (namespace !== undefined && !isName(namespace, 63)) return `"${namespace}" cannot be a namespace`;
  if (!/^[-._a-zA-Z0-9]{1,253}$/.test(field)) return `"${field}" cannot be a key of a secret`;
  return undefined;
}

/** Takes any reference; only of one that `checkReference` found well formed the parts mean something. */
export function parseReference(reference: string): KubernetesReference {
  const hash = reference.indexOf('#');
  const place = hash === -1 ? reference : reference.slice(0, hash);
  const field = hash === -1 ? '' : reference.slice(hash + 1);
  const slash = place.indexOf('/');
  return {
    namespace: slash === -1 ? undefined : place.slice(0, slash),
    name: slash === -1 ? place : place.slice(slash + 1),
    field,
  };
}

/** A DNS label or subdomain (RFC 1123), as Kubernetes wants its names. */
export function isName(text: string, longest: number): boolean {
  return (
    text.length <= longest && /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/.test(text)
  );
}
