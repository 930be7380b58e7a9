/** A reference to a variable, taken apart: `account:variable:id?version=3`. */
export interface ConjurReference {
  /** undefined: the account that Postern logs in to. */
  readonly account: string | undefined;
  readonly id: string;
  readonly version: number | undefined;
}

/** The special id of Secretless that stands for a token, not for a variable. */
export const accessToken = 'accessToken';

/** Says what is wrong with a reference; undefined when it is well formed. */
export function checkReference(reference: string): string | undefined {
  if (reference === accessToken) return undefined;
  const { account, kind, id, version } = split(reference);
  if (kind !== 'variable') {
    return 'only the kind "variable" has a value; an id is written `id`, `variable:id` or `account:variable:id`';
  }
  if (account === '') return 'the account before the first ":" is missing';
  if (id === '') return 'the id of the variable is missing';
  if (version !== undefined && !/^[1-9]\d{0,8}$/.test(version)) {
    return 'a version is written "?version=N" with N from 1';
  }
  for (const part of [account ?? 'x', id]) {
    // As a segment of the URL, "." and ".." would be taken out of it before the request is made.
    if (part === '.' || part === '..') return '"." and ".." are no names';
    if (/\p{Cc}/u.test(part) || !part.isWellFormed()) return 'there is a control character in it';
  }
  if (account?.includes('/')) return 'an account has no "/" in it';
  return undefined;
}

/** Takes a reference that `checkReference` found well formed. */
export function parseReference(reference: string): ConjurReference {
  const { account, id, version } = split(reference);
  return { account, id, version: version === undefined ? undefined : Number(version) };
}

/** As in Secretless: the first two colons separate, and with fewer parts the account and the kind are the usual ones. */
function split(reference: string) {
  const mark = reference.lastIndexOf('?version=');
  const name = mark === -1 ? reference : reference.slice(0, mark);
  const version = mark === -1 ? undefined : reference.slice(mark + '?version='.length);
  const first = name.indexOf(':');
  if (first === -1) return { account: undefined, kind: 'variable', id: name, version };
  const second = name.indexOf(':', first + 1);
  if (second === -1) {
    return { account: undefined, kind: name.slice(0, first), id: name.slice(first + 1), version };
  }
  return {
    account: name.slice(0, first),
    kind: name.slice(first + 1, second),
    id: name.slice(second + 1),
    version,
  };
}
