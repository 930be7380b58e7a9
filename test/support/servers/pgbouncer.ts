import { chmod, chown, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { canary } from './canary.ts';
import { certificates } from './certificates.ts';
import { installPgBouncer } from './install.ts';
import type { PostgresInfo } from './postgres.ts';
import { answers, freePort, launch, ready, run, unprivileged } from './process.ts';
import { freshFolder, writeRecord } from './state.ts';

/** PgBouncer in front of the shared PostgreSQL 18, session pooling, SCRAM on both sides, for `scram_user` only. */
export interface PgBouncerInfo {
  readonly host: string;
  readonly port: number;
  readonly database: string;
  /** It does TLS when asked; this verifies its certificate. */
  readonly ca: string;
  /** The port of the PostgreSQL behind it. */
  readonly upstreamPort: number;
}

/** Its file of users, passwords in clear: it needs them to log in to PostgreSQL by SCRAM. */
export const pgBouncerUsers = `"scram_user" "${canary.postgres}"\n`;

/** Its configuration, in either backing. */
export function pgBouncerConfig(at: {
  readonly address: string;
  readonly port: number;
  readonly upstream: { readonly host: string; readonly port: number };
  readonly files: {
    readonly users: string;
    readonly key: string;
    readonly cert: string;
    readonly ca: string;
  };
}): string {
  const { address, port, upstream, files } = at;
  return `[databases]
app = host=${upstream.host} port=${upstream.port} dbname=app
[pgbouncer]
listen_addr = ${address}
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${files.users}
pool_mode = session
max_client_conn = 300
default_pool_size = 100
ignore_startup_parameters = extra_float_digits,options
client_tls_sslmode = allow
client_tls_cert_file = ${files.cert}
client_tls_key_file = ${files.key}
client_tls_ca_file = ${files.ca}
`;
}

/** Starts PgBouncer on this machine and records it under `name`. */
export async function startLocalPgBouncer(name: string, upstream: PostgresInfo): Promise<PgBouncerInfo> {
  const program = await installPgBouncer();
  const identity = await unprivileged();
  const { server, ca } = await certificates();
  const folder = await freshFolder(name);
  const port = await freePort();
  const [config, users, log] = ['pgbouncer.ini', 'users.txt', 'log'].map((file) => join(folder, file)) as [
    string,
    string,
    string,
  ];
  const key = join(folder, 'server.key');
  await writeFile(users, pgBouncerUsers, { mode: 0o600 });
  await run('cp', [server.key, key]);
  await chmod(key, 0o600);
  const files = { users, key, cert: server.cert, ca };
  await writeFile(config, pgBouncerConfig({ address: '127.0.0.1', port, upstream, files }));
  await writeFile(log, '', { mode: 0o600 });
  if (identity) {
    for (const path of [folder, config, users, key, log]) await chown(path, identity.uid, identity.gid);
  }
  const daemon = await launch({ command: program, args: [config], log, cwd: folder, identity });
  const info = { host: '127.0.0.1', port, database: 'app', ca, upstreamPort: upstream.port };
  // SIGINT lets sessions finish first, which takes as long as they like; SIGTERM is at once.
  const record = { process: daemon, endSignal: 'SIGTERM' as const, port, info };
  await writeRecord(name, { ...record, ready: false });
  await ready('PgBouncer', daemon, log, () => answers(port));
  await writeRecord(name, { ...record, ready: true });
  return info;
}
