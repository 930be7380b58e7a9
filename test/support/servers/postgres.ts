import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, chown, copyFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Client } from 'pg';
import { canary } from './canary.ts';
import { certificates, type Leaf, type ServerCertificate } from './certificates.ts';
import { copyReadable, embeddedPostgres } from './embedded-postgres.ts';
import { installDebianPostgres } from './install.ts';
import { cluster, database, hba } from './postgres-roles.ts';
import {
  end,
  freePort,
  type Identity,
  killChildren,
  launch,
  type ProcessMark,
  ready,
  run,
  unprivileged,
} from './process.ts';
import { discard, freshFolder, home, withLock, writeRecord } from './state.ts';

/** A running PostgreSQL with the roles of postgres-roles.ts and a database `app` with a table `notes` of 100 rows. */
export interface PostgresInfo {
  readonly version: 15 | 18;
  readonly host: string;
  readonly port: number;
  /** Its port as the server itself knows it (`inet_server_port()`): another one only behind a container's port mapping. */
  readonly ownPort: number;
  readonly database: string;
  /** Folder of its unix socket, over which everybody may be anybody. Undefined where the server runs in a container. */
  readonly socketDir: string | undefined;
  /** Its log file; with the setting `log_connections` it says by which method each session came in. */
  readonly log: string | undefined;
  /** What its certificate can be verified with; undefined: it has no TLS and answers `N` to SSLRequest. */
  readonly ca: string | undefined;
}

/** What may differ in a private server. */
export interface PostgresOptions {
  readonly version?: 15 | 18;
  /** Its certificate, or false for a server without TLS. Default: `server` on 18, no TLS on 15, like the shared ones. */
  readonly certificate?: ServerCertificate | Leaf | false;
  /** Settings of postgresql.conf on top of the usual ones; values are quoted for you. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Lines that come first in pg_hba.conf. */
  readonly hba?: readonly string[];
}

/** A PostgreSQL of one test alone, which it may break. */
export interface PrivatePostgres extends PostgresInfo {
  /** Ends it (`fast`: sessions are told 57P01) and removes its files. */
  readonly stop: () => Promise<void>;
  /** Ends it, keeps its data, and starts it again on the same port; both halves can be had one by one. */
  readonly restart: () => Promise<void>;
  readonly down: () => Promise<void>;
  readonly up: () => Promise<void>;
  /** Kills every process of it as a crash of the machine would: sessions see the connection break, without a word. */
  readonly kill: () => Promise<void>;
}

/** Runs SQL as the superuser, in the database `app` unless told otherwise; gives the rows of the last statement. */
export async function sql(
  info: PostgresInfo,
  text: string,
  values?: readonly unknown[],
  database = info.database,
): Promise<Record<string, unknown>[]> {
  const client = new Client({
    ...(info.socketDir
      ? { host: info.socketDir, user: 'postgres' }
      : { host: info.host, user: 'admin', password: canary.postgres }),
    port: info.port,
    database,
    connectionTimeoutMillis: 10_000,
    query_timeout: 60_000,
  });
  await client.connect();
  try {
    const result = await client.query<Record<string, unknown>>(text, values && [...values]);
    // Several statements in one text give a list of results.
    return (Array.isArray(result) ? result.at(-1) : result).rows;
  } finally {
    await client.end();
  }
}

interface Program {
  readonly version: 15 | 18;
  readonly bin: string;
  readonly identity: Identity | undefined;
}

async function program(version: 15 | 18): Promise<Program> {
  const identity = await unprivileged();
  const bin = version === 15 ? await installDebianPostgres(15) : await embeddedPostgres(identity, sharedCopy);
  return { version, bin, identity };
}

/** A copy of the embedded binaries, shared by all test processes. */
async function sharedCopy(native: string, version: string): Promise<string> {
  const copy = join(home(), `embedded-postgres-${version}`);
  await withLock('copy-postgres', async () => {
    if (!existsSync(copy)) await copyReadable(native, copy);
  });
  return copy;
}

/** Makes a data folder with all roles once; every server starts from a copy of it. */
async function template({ version, bin, identity }: Program): Promise<string> {
  const { stdout } = await run(join(bin, 'postgres'), ['--version']);
  const key = createHash('sha256').update(stdout).update(database).update(cluster).digest('hex').slice(0, 12);
  const folder = join(home(), `template-${version}-${key}`);
  if (existsSync(folder)) return folder;
  return withLock(`template-${version}`, async () => {
    if (existsSync(folder)) return folder;
    const draft = await freshFolder(`template-${version}.new`);
    const [data, log] = [join(draft, 'data'), join(draft, 'log')];
    await own(draft, identity);
    const initdb = ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync'];
    await run(join(bin, 'initdb'), initdb, { identity, cwd: draft, timeout: 120_000 });
    const port = 5432; // Only names the socket: it listens on no address.
    const settings = { listen_addresses: '', unix_socket_directories: draft, fsync: 'off' };
    const daemon = await launch({
      command: join(bin, 'postgres'),
      args: ['-D', data, '-p', String(port), ...flags(settings)],
      log,
      cwd: draft,
      identity,
    });
    const info = {
      version,
      host: draft,
      port,
      ownPort: port,
      database: 'postgres',
      socketDir: draft,
      log,
      ca: undefined,
    };
    try {
      const reachable = () => sql(info, 'select 1').then(() => true);
      await ready(`PostgreSQL ${version}`, daemon, log, reachable);
      await sql(info, cluster);
      await sql(info, 'CREATE DATABASE app');
      await sql(info, database, undefined, 'app');
    } finally {
      await end(daemon, 'SIGINT');
    }
    await rename(draft, folder);
    return folder;
  });
}

const flags = (settings: Readonly<Record<string, string>>) =>
  Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);

async function own(path: string, identity: Identity | undefined): Promise<void> {
  if (identity) await chown(path, identity.uid, identity.gid);
}

/** Starts a PostgreSQL on this machine and records it under `name`. */
export async function startLocalPostgres(
  name: string,
  options: PostgresOptions & { readonly owner?: ProcessMark } = {},
): Promise<PrivatePostgres> {
  const { version = 18, owner } = options;
  const certificate = options.certificate ?? (version === 18 ? 'server' : false);
  const chosen = await program(version);
  const { bin, identity } = chosen;
  const source = await template(chosen);
  const folder = await freshFolder(name);
  const [data, log] = [join(folder, 'data'), join(folder, 'log')];
  await run('cp', ['-R', '-p', join(source, 'data'), data]);
  await own(folder, identity);

  const known = await certificates();
  const leaf = typeof certificate === 'string' ? known[certificate] : certificate;
  const port = await freePort();
  const settings: Record<string, string> = {
    listen_addresses: '127.0.0.1',
    port: String(port),
    unix_socket_directories: folder,
    fsync: 'off',
    // Tests open more than 500 sessions at once.
    max_connections: '800',
    wal_level: 'logical',
    ...(leaf ? await tls(leaf, known.ca, data, identity) : {}),
    ...options.settings,
  };
  const lines = Object.entries(settings).map(([key, value]) => `${key} = '${value.replaceAll("'", "''")}'`);
  await writeFile(join(data, 'postgresql.auto.conf'), `${lines.join('\n')}\n`);
  await writeFile(join(data, 'pg_hba.conf'), [...(options.hba ?? []), hba(leaf !== false)].join('\n'));

  const info: PostgresInfo = {
    version,
    host: '127.0.0.1',
    port,
    ownPort: port,
    database: 'app',
    socketDir: folder,
    log,
    ca: leaf ? leaf.ca : undefined,
  };
  let daemon: ProcessMark = { pid: 0, born: '' };
  const record = () => ({
    process: daemon,
    endSignal: 'SIGINT' as const,
    port,
    info,
    ...(owner ? { owner } : {}),
  });
  const up = async () => {
    daemon = await launch({
      command: join(bin, 'postgres'),
      args: ['-D', data],
      log,
      cwd: folder,
      identity,
    });
    await writeRecord(name, { ...record(), ready: false });
    const reachable = () => sql(info, 'select 1').then(() => true);
    await ready(`PostgreSQL ${version}`, daemon, log, reachable);
    await writeRecord(name, { ...record(), ready: true });
  };
  const down = () => end(daemon, 'SIGINT');
  await writeFile(log, '', { mode: 0o600 });
  await own(log, identity);
  await up();
  return {
    ...info,
    stop: () => discard(name),
    down,
    up,
    restart: async () => {
      await down();
      await up();
    },
    kill: async () => {
      await killChildren(daemon);
      // Its children dead, the postmaster has nobody left to tell; SIGQUIT makes it clean up its shared memory and go.
      await end(daemon, 'SIGQUIT');
    },
  };
}

/** The server insists on a key of its own user with mode 0600, so it gets copies. */
async function tls(
  leaf: Leaf,
  clientCa: string,
  data: string,
  identity: Identity | undefined,
): Promise<Record<string, string>> {
  const copies = { ssl_cert_file: leaf.cert, ssl_key_file: leaf.key, ssl_ca_file: clientCa };
  for (const [setting, path] of Object.entries(copies)) {
    const copy = join(data, setting);
    await copyFile(path, copy);
    await chmod(copy, 0o600);
    await own(copy, identity);
  }
  return {
    ssl: 'on',
    ssl_cert_file: 'ssl_cert_file',
    ssl_key_file: 'ssl_key_file',
    ssl_ca_file: 'ssl_ca_file',
  };
}
