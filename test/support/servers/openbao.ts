import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { canary } from './canary.ts';
import { certificates } from './certificates.ts';
import { installOpenBao } from './install.ts';
import { end, freePort, launch, type ProcessMark, ready } from './process.ts';
import { discard, freshFolder, home, readRecord, writeRecord } from './state.ts';

/** A running OpenBao: a Vault to everyone who speaks to it. */
export interface OpenBaoInfo {
  readonly host: string;
  readonly port: number;
  /** Plain HTTP. */
  readonly address: string;
  /** HTTPS on another port; the certificate is signed by `ca`, client certificates of the same authority are asked for. */
  readonly tlsAddress: string;
  readonly ca: string;
  readonly rootToken: string;
  /** One key unseals it; empty in a container. */
  readonly unsealKey: string;
  /** Role `app` of the approle method, with the policy `app`: read on `secret/data/app/*` and `kv1/app/*`. */
  readonly roleId: string;
  readonly secretId: string;
  /** User of the userpass method, with the same policy. */
  readonly userpass: { readonly username: string; readonly password: string };
}

/** What `OpenBaoInfo` says, and the calls that tests make as root. */
export interface OpenBao extends OpenBaoInfo {
  /** One call of the HTTP API; `path` is what follows /v1/. Rejects on any status that is not a success. */
  readonly request: (method: string, path: string, body?: unknown) => Promise<unknown>;
  readonly write: (path: string, data?: unknown) => Promise<unknown>;
  readonly read: (path: string) => Promise<unknown>;
  readonly remove: (path: string) => Promise<unknown>;
}

/** An OpenBao of one test alone, which it may break. */
export interface PrivateOpenBao extends OpenBao {
  readonly seal: () => Promise<void>;
  readonly unseal: () => Promise<void>;
  /** Ends the process and leaves the ports refused. */
  readonly kill: () => Promise<void>;
  /** The same ports, tokens and roles again; what a test wrote is gone, as it lived in memory. */
  readonly restart: () => Promise<void>;
  readonly stop: () => Promise<void>;
}

/** Adds the calls to the facts, which alone can go through a file. */
export function openBao(info: OpenBaoInfo): OpenBao {
  const request = async (method: string, path: string, body?: unknown): Promise<unknown> => {
    const response = await fetch(`${info.address}/v1/${path}`, {
      method,
      headers: { 'X-Vault-Token': info.rootToken },
      signal: AbortSignal.timeout(10_000),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`OpenBao: ${method} ${path}: ${response.status} ${text.slice(0, 500)}`);
    return text === '' ? undefined : JSON.parse(text);
  };
  return {
    ...info,
    request,
    write: (path, data = {}) => request('POST', path, data),
    read: (path) => request('GET', path),
    remove: (path) => request('DELETE', path),
  };
}

const policy = `
path "secret/data/app/*" { capabilities = ["read"] }
path "kv1/app/*"         { capabilities = ["read"] }
`;

/** What every OpenBao of the tests holds, over HTTP, in either backing. */
export async function fill(bao: OpenBao): Promise<void> {
  const login = { username: 'scram_user', password: canary.postgres };
  await bao.write('sys/mounts/kv1', { type: 'kv', options: { version: '1' } });
  await bao.write('kv1/app/db', login);
  await bao.write('secret/data/app/db', { data: login });
  await bao.request('PUT', 'sys/policies/acl/app', { policy });
  await bao.write('sys/auth/approle', { type: 'approle' });
  await bao.write('auth/approle/role/app', {
    token_policies: 'app',
    token_ttl: '20m',
    token_max_ttl: '1h',
    secret_id_num_uses: 0,
  });
  await bao.write('auth/approle/role/app/role-id', { role_id: bao.roleId });
  await bao.write('auth/approle/role/app/custom-secret-id', { secret_id: bao.secretId });
  await bao.write('sys/auth/userpass', { type: 'userpass' });
  await bao.write(`auth/userpass/users/${bao.userpass.username}`, {
    password: bao.userpass.password,
    token_policies: 'app',
  });
}

/** Random, so that no test can pass with a value it did not read. */
export function newIdentifiers(): Pick<OpenBaoInfo, 'rootToken' | 'roleId' | 'secretId' | 'userpass'> {
  const random = () => randomBytes(16).toString('hex');
  return {
    rootToken: `root-${random()}`,
    roleId: `role-${random()}`,
    secretId: `secret-${random()}`,
    userpass: { username: 'app', password: canary.openbaoUserpass },
  };
}

/** Configuration of a second listener, beside the plain one of dev mode. */
export function tlsListener(address: string, files: { cert: string; key: string; ca: string }): string {
  return `listener "tcp" {
  address            = "${address}"
  tls_cert_file      = "${files.cert}"
  tls_key_file       = "${files.key}"
  tls_client_ca_file = "${files.ca}"
}
`;
}

/** Starts and fills an OpenBao on this machine, in memory, and records it under `name`. */
export async function startLocalOpenBao(name: string, owner?: ProcessMark): Promise<OpenBao> {
  const program = await installOpenBao();
  const { ca, server } = await certificates();
  const folder = await freshFolder(name);
  const [port, tlsPort] = [await freePort(), await freePort()];
  const config = join(folder, 'tls.hcl');
  const files = { cert: server.cert, key: server.key, ca };
  await writeFile(config, tlsListener(`127.0.0.1:${tlsPort}`, files));
  const info: OpenBaoInfo = {
    ...newIdentifiers(),
    host: '127.0.0.1',
    port,
    address: `http://127.0.0.1:${port}`,
    tlsAddress: `https://127.0.0.1:${tlsPort}`,
    ca,
    unsealKey: '',
  };
  return serve(name, { program, folder, config, info, owner });
}

interface Recipe {
  readonly program: string;
  readonly folder: string;
  readonly config: string;
  readonly info: OpenBaoInfo;
  readonly owner: ProcessMark | undefined;
}

async function serve(name: string, recipe: Recipe): Promise<OpenBao> {
  const { program, folder, config, info, owner } = recipe;
  const log = join(folder, 'log');
  await writeFile(log, '', { mode: 0o600 });
  const daemon = await launch({
    command: program,
    args: [
      'server',
      '-dev',
      '-dev-no-store-token',
      `-dev-listen-address=127.0.0.1:${info.port}`,
      `-config=${config}`,
    ],
    // The token goes by the environment: a command line can be read by every user of the machine.
    env: { PATH: process.env['PATH'], HOME: folder, BAO_DEV_ROOT_TOKEN_ID: info.rootToken },
    log,
    cwd: folder,
  });
  const record = { process: daemon, port: info.port, ...(owner ? { owner } : {}) };
  await writeRecord(name, { ...record, ready: false, info });
  await ready('OpenBao', daemon, log, async () => {
    const health = await fetch(`${info.address}/v1/sys/health`, { signal: AbortSignal.timeout(2000) });
    await health.arrayBuffer();
    return health.ok && (await unsealKey(log)) !== '';
  });
  const bao = openBao({ ...info, unsealKey: await unsealKey(log) });
  await fill(bao);
  await writeRecord(name, { ...record, ready: true, info: { ...info, unsealKey: bao.unsealKey } });
  return bao;
}

async function unsealKey(log: string): Promise<string> {
  return /^Unseal Key: (\S+)$/m.exec(await readFile(log, 'utf8'))?.[1] ?? '';
}

/** Starts an OpenBao of the caller's own. */
export async function startPrivateOpenBao(name: string, owner: ProcessMark): Promise<PrivateOpenBao> {
  const first = await startLocalOpenBao(name, owner);
  const program = await installOpenBao();
  const folder = join(home(), name);
  const info = (await readRecord(name))?.info as OpenBaoInfo;
  let key = first.unsealKey;
  const kill = async () => {
    const record = await readRecord(name);
    if (record?.process) await end(record.process, 'SIGKILL');
  };
  return {
    ...first,
    seal: async () => {
      await first.request('PUT', 'sys/seal');
    },
    unseal: async () => {
      await first.request('PUT', 'sys/unseal', { key });
    },
    kill,
    restart: async () => {
      await kill();
      const recipe = { program, folder, config: join(folder, 'tls.hcl'), info, owner };
      key = (await serve(name, recipe)).unsealKey;
    },
    stop: () => discard(name),
  };
}
