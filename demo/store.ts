import { randomBytes } from 'node:crypto';
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';

import { cachedOpenBao, which } from '../test/support/servers/install.ts';
import { freePort } from '../test/support/servers/process.ts';
import type { Crew } from './crew.ts';
import { Trouble } from './trouble.ts';

export interface Secrets {
  readonly username: string;
  readonly password: string;
  /** For the HTTP API. */
  readonly token: string;
}

/** Where the secrets are kept, and how Postern's configuration says so. */
export interface Store {
  readonly title: string;
  /** A few sentences about it, for the screen. */
  readonly about: string;
  /** What opens it; shown to nobody. */
  readonly keys: readonly string[];
  /** The entry under `providers:`. */
  readonly provider: string;
  /** What `get:` says of a field. */
  reference(field: keyof Secrets): string;
  write(secrets: Secrets): Promise<void>;
}

/** A real OpenBao (or Vault) in memory, when its program is on this machine; undefined otherwise. */
export async function openBaoStore(crew: Crew, parent: string): Promise<Store | undefined> {
  const program = (await which('bao')) ?? (await which('vault')) ?? (await cachedOpenBao());
  if (program === undefined) return undefined;

  const folder = join(parent, 'openbao');
  await mkdir(folder, { mode: 0o700 });
  const rootToken = randomBytes(24).toString('base64url');
  const address = `127.0.0.1:${await freePort()}`;
  const server = crew.start({
    command: program,
    args: ['server', '-dev', '-dev-no-store-token', `-dev-listen-address=${address}`],
    // By the environment: a command line can be read by every user of the machine.
    env: {
      PATH: process.env['PATH'],
      HOME: folder,
      BAO_DEV_ROOT_TOKEN_ID: rootToken,
      VAULT_DEV_ROOT_TOKEN_ID: rootToken,
    },
    cwd: folder,
  });
  const request = async (method: string, path: string, body?: unknown): Promise<unknown> => {
    const response = await fetch(`http://${address}/v1/${path}`, {
      method,
      headers: { 'X-Vault-Token': rootToken },
      signal: AbortSignal.timeout(5000),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw new Trouble(`the secret store answered ${response.status} to ${method} ${path}`);
    return text === '' ? undefined : JSON.parse(text);
  };
  const version = await crew.until('the secret store', server, async () => {
    const health = (await request('GET', 'sys/health')) as { version: string };
    // Dev mode mounts `secret` a moment after it has answered for the first time.
    const mounts = (await request('GET', 'sys/mounts')) as Record<string, unknown>;
    return 'secret/' in mounts ? health.version : undefined;
  });

  // Postern gets a login of its own, which may read this one secret and nothing else.
  const secretId = randomBytes(24).toString('base64url');
  const policy = 'path "secret/data/orders-db" { capabilities = ["read"] }';
  await request('PUT', 'sys/policies/acl/orders', { policy });
  await request('POST', 'sys/auth/approle', { type: 'approle' });
  await request('POST', 'auth/approle/role/orders', { token_policies: 'orders', token_ttl: '20m' });
  await request('POST', 'auth/approle/role/orders/role-id', { role_id: 'orders' });
  await request('POST', 'auth/approle/role/orders/custom-secret-id', { secret_id: secretId });
  const secretIdFile = join(folder, 'secret-id');
  await writeFile(secretIdFile, secretId, { mode: 0o600 });

  const name = basename(program) === 'vault' ? 'Vault' : 'OpenBao';
  return {
    title: `${name} ${version} at http://${address}`,
    about: `The secrets are in its KV store at secret/orders-db, in memory. Postern has a login (AppRole) that may read this one secret and nothing else.`,
    keys: [rootToken, secretId],
    provider: `  vault:
    kind: vault
    address: http://${address}
    auth:
      method: approle
      roleId: orders
      secretIdFile: ${secretIdFile}`,
    reference: (field) => `{ from: vault, get: secret/data/orders-db#${field} }`,
    write: async (secrets) => {
      await request('POST', 'secret/data/orders-db', { data: secrets });
    },
  };
}

/** The embedded default: a file that only its owner may read. */
export async function fileStore(parent: string): Promise<Store> {
  const folder = join(parent, 'secrets');
  await mkdir(folder, { mode: 0o700 });
  const path = join(folder, 'orders-db.json');
  return {
    title: `a file with mode 0600: ${path}`,
    about:
      'The file holds user name, password and token as JSON; Postern reads it anew for each login. With `bao` or `vault` on your PATH this would be a real secret store.',
    keys: [],
    provider: `  secrets:
    kind: file`,
    reference: (field) => `{ from: secrets, get: "${path}#${field}" }`,
    write: async (secrets) => {
      // Whole at once: a login at this very moment reads the old version or the new one, never half of one.
      await writeFile(`${path}.new`, JSON.stringify(secrets), { mode: 0o600 });
      await rename(`${path}.new`, path);
    },
  };
}
