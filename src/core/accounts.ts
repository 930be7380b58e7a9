import { readFile } from 'node:fs/promises';

import { PosternError, reasonOf } from './errors.ts';

/** What a name is looked up in. */
const files = { user: '/etc/passwd', group: '/etc/group' } as const;

/**
 * The numbers of users or groups, given by name or number. Names are looked up in /etc/passwd and /etc/group alone: who else
 * knows them (LDAP, SSSD) answers by a library of C that Node.js does not call. Throws CONFIG_INVALID.
 */
export async function accountIds(
  kind: keyof typeof files,
  accounts: readonly (string | number)[],
): Promise<number[]> {
  const named = accounts.some((account) => typeof account === 'string' && !/^\d+$/.test(account));
  const known = named ? await readAccounts(kind) : new Map<string, number>();
  return accounts.map((account) => {
    const id = known.get(String(account)) ?? Number(account);
    if (Number.isInteger(id)) return id;
    throw new PosternError('CONFIG_INVALID', `no ${kind} in ${files[kind]} is called "${account}"`);
  });
}

async function readAccounts(kind: keyof typeof files): Promise<Map<string, number>> {
  try {
    const lines = (await readFile(files[kind], 'utf8')).split('\n');
    return new Map(lines.map((line) => line.split(':')).map(([name = '', , id]) => [name, Number(id)]));
  } catch (cause) {
    throw new PosternError('CONFIG_INVALID', `${files[kind]} cannot be read (${reasonOf(cause)})`, { cause });
  }
}
