/** RFC 1123 label: the name of a namespace, a Service, a container. */
export function isDnsLabel(text: string): boolean {
  return text.length <= 63 && /^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$/.test(text);
}

/** RFC 1123 subdomain: the name of a ConfigMap and of most objects. */
export function isDnsName(text: string): boolean {
  return text.length <= 253 && text.split('.').every(isDnsLabel);
}

/**
 * What is wrong with the name of an image, as the distribution specification writes it: host and path in small letters,
 * a tag, a digest. Anything else, such as spaces or a URL, would reach the container runtime of every node.
 */
export function imageProblem(text: string): string | undefined {
  if (text.length > 512) return 'is longer than any image is called';
  const host = String.raw`(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?/)?`;
  const part = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*';
  const pattern = `^${host}${part}(?:/${part})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$`;
  return new RegExp(pattern).test(text) ? undefined : 'is no image';
}

/** An image without tag and digest. */
export function repositoryOf(image: string): string {
  const [withoutDigest = ''] = image.split('@');
  // A colon before the last slash is of the host's port.
  return withoutDigest.replace(/:[^:/]+$/, '');
}

/** Whether a list of repositories has this image: one that ends in `/` is all below it, another itself alone. */
export function isAllowed(image: string, repositories: readonly string[]): boolean {
  const repository = repositoryOf(image);
  return repositories.some((each) =>
    each.endsWith('/') ? repository.startsWith(each) : repository === each,
  );
}
