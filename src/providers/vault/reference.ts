/** `secret/app/db?version=3#password` or `pki/issue/web?common_name=a.internal#certificate`, taken apart. */
export interface VaultReference {
  readonly path: string;
  /** What stands after `?`, as it is written: references that are equal in path and query share one answer. */
  readonly query: string | undefined;
  readonly field: string;
}

/** More is no parameter list but a mistake; the bound keeps a request small. */
const longestQuery = 4096;

/** Says what is wrong with a reference; undefined when it is well formed. */
export function checkReference(reference: string): string | undefined {
  const { path, query, field } = parseReference(reference);
  if (path === '') return 'the path of the secret is missing';
  if (field === '') return 'the name of the field after "#" is missing';
  // Field names are looked up, not sent; the bound keeps a look-up cheap.
  if (field.length > 512) return 'the name of the field is longer than 512 characters';
  const segments = path.split('/');
  if (segments[0] === '') return 'the path must not begin with "/"';
  if (segments.at(-1) === '') return 'the path must not end with "/"';
  if (segments.includes('')) return 'the path must not have "//" in it';
  // `secret/app/../../sys/seal` would reach what the configuration does not name.
  if (segments.includes('..') || segments.includes('.')) return 'the path must not have "." or ".." parts';
  if (/\p{Cc}/u.test(path) || !path.isWellFormed()) return 'the path has a control character in it';
  if (segments.length < 2) return 'the path must name a mount and a secret, as in secret/app';
  return query === undefined ? undefined : checkQuery(query);
}

/** Takes a reference apart, well formed or not. Without `#field` the field is `value`. */
export function parseReference(reference: string): VaultReference {
  const hash = reference.indexOf('#');
  const before = hash === -1 ? reference : reference.slice(0, hash);
  const mark = before.indexOf('?');
  return {
    path: mark === -1 ? before : before.slice(0, mark),
    query: mark === -1 ? undefined : before.slice(mark + 1),
    field: hash === -1 ? 'value' : reference.slice(hash + 1),
  };
}

/** The version that a query of KV asks for; undefined when the query is another one. */
export function versionOf(query: string): number | undefined {
  const [, version] = /^version=([1-9]\d{0,8})$/.exec(query) ?? [];
  return version === undefined ? undefined : Number(version);
}

/** The parameters of a query that `checkReference` found well formed, as bytes for a JSON body. */
export function parametersOf(query: string): Record<string, Buffer> {
  return Object.fromEntries(
    pairsOf(query).map(([name, value = '']) => [name, Buffer.from(decodeURIComponent(value))]),
  );
}

/** `path` as it stands in a request; a segment can hold any character without reaching the rest of the URL. */
export function encodePath(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/');
}

function checkQuery(query: string): string | undefined {
  if (query.length > longestQuery) return `what follows "?" is longer than ${longestQuery} characters`;
  if (!query.isWellFormed()) return 'what follows "?" is no text';
  const names = new Set<string>();
  for (const [name, value] of pairsOf(query)) {
    if (!/^[a-z][a-z0-9_]{0,63}$/.test(name) || value === undefined) {
      return 'after "?" stand parameters as in "?common_name=app.internal&ttl=1h"';
    }
    if (names.has(name)) return `the parameter "${name}" is given twice`;
    names.add(name);
    try {
      decodeURIComponent(value);
    } catch {
      return `the parameter "${name}" has a "%" that does not stand for a character; write "%25"`;
    }
  }
  // KV's own parameter has a meaning of its own, wherever it stands.
  if (names.has('version') && versionOf(query) === undefined) {
    return '"?version=N" is a number from 1, and stands alone';
  }
  return undefined;
}

function pairsOf(query: string): (readonly [name: string, value: string | undefined])[] {
  if (query === '') return [];
  return query.split('&').map((pair) => {
    const equals = pair.indexOf('=');
    return equals === -1 ? [pair, undefined] : [pair.slice(0, equals), pair.slice(equals + 1)];
  });
}
