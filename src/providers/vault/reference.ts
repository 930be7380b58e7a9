/** `secret/app/db?version=3#password`, taken apart. */
export interface VaultReference {
  readonly path: string;
  readonly version: number | undefined;
  readonly field: string;
}

/** Says what is wrong with a reference; undefined when it is well formed. */
export function checkReference(reference: string): string | undefined {
  const { path, query, field } = split(reference);
  if (path === '') return 'the path of the secret is missing';
  if (field === '') return 'the name of the field after "#" is missing';
  // Field names are looked up, not sent; the bound keeps a look-up cheap.
  if (field.length > 512) return 'the name of the field is longer than 512 characters';
  if (query !== undefined && !/^version=[1-9]\d{0,8}$/.test(query)) {
    return 'only "?version=N" with N from 1 may stand between path and field';
  }
  const segments = path.split('/');
  if (segments[0] === '') return 'the path must not begin with "/"';
  if (segments.at(-1) === '') return 'the path must not end with "/"';
  if (segments.includes('')) return 'the path must not have "//" in it';
  // `secret/app/../../sys/seal` would reach what the configuration does not name.
  if (segments.includes('..') || segments.includes('.')) return 'the path must not have "." or ".." parts';
  if (/\p{Cc}/u.test(path) || !path.isWellFormed()) return 'the path has a control character in it';
  if (segments.length < 2) return 'the path must name a mount and a secret, as in secret/app';
  return undefined;
}

/** Takes a reference that `checkReference` found well formed. */
export function parseReference(reference: string): VaultReference {
  const { path, query, field } = split(reference);
  return { path, version: query === undefined ? undefined : Number(query.slice('version='.length)), field };
}

/** `path` as it stands in a request; a segment can hold any character without reaching the rest of the URL. */
export function encodePath(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/');
}

function split(reference: string): { path: string; query: string | undefined; field: string } {
  const hash = reference.indexOf('#');
  const before = hash === -1 ? reference : reference.slice(0, hash);
  const mark = before.indexOf('?');
  return {
    path: mark === -1 ? before : before.slice(0, mark),
    query: mark === -1 ? undefined : before.slice(mark + 1),
    field: hash === -1 ? 'value' : reference.slice(hash + 1),
  };
}
