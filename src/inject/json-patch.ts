/** A step of RFC 6902. */
export type Operation =
  | { readonly op: 'add' | 'replace'; readonly path: string; readonly value: unknown }
  | { readonly op: 'remove'; readonly path: string };

/**
 * The steps from `before` to `after`, which are values as JSON has them. Of a list only what was put in between its
 * elements is added; a list that lost some is replaced as a whole.
 */
export function difference(before: unknown, after: unknown, path = ''): Operation[] {
  if (Object.is(before, after)) return [];
  if (Array.isArray(before) && Array.isArray(after)) return differenceOfLists(before, after, path);
  if (isObject(before) && isObject(after)) {
    const steps: Operation[] = [];
    for (const [key, value] of Object.entries(after)) {
      const at = `${path}/${escapePointer(key)}`;
      if (Object.hasOwn(before, key)) steps.push(...difference(before[key], value, at));
      else steps.push({ op: 'add', path: at, value });
    }
    for (const key of Object.keys(before))
      if (!Object.hasOwn(after, key)) steps.push({ op: 'remove', path: `${path}/${escapePointer(key)}` });
    return steps;
  }
  return [{ op: 'replace', path, value: after }];
}

function differenceOfLists(before: readonly unknown[], after: readonly unknown[], path: string): Operation[] {
  if (after.length < before.length) return [{ op: 'replace', path, value: after }];
  const added = after.length - before.length;
  const steps: Operation[] = [];
  let at = 0;
  for (const [index, value] of after.entries()) {
    // Elements are told from one another by their names, as everywhere in a pod.
    const left = added - (index - at);
    if (at < before.length && (left === 0 || sameName(before[at], value))) {
      steps.push(...difference(before[at], value, `${path}/${index}`));
      at++;
    } else steps.push({ op: 'add', path: `${path}/${index}`, value });
  }
  return steps;
}

function sameName(one: unknown, other: unknown): boolean {
  if (isObject(one) && isObject(other)) return one['name'] === other['name'];
  return one === other;
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** RFC 6901: an annotation such as postern.dev/status has a slash. */
export function escapePointer(key: string): string {
  return key.replaceAll('~', '~0').replaceAll('/', '~1');
}

/** The keys that a pointer names. */
export function keysOf(pointer: string): string[] {
  return pointer
    .split('/')
    .slice(1)
    .map((key) => key.replaceAll('~1', '/').replaceAll('~0', '~'));
}
