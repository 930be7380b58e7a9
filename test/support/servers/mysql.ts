import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, chown, copyFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import mysql, { type RowDataPacket } from 'mysql2/promise';
import { certificates, type Leaf, type ServerCertificate } from './certificates.ts';
import { type Account, type MySqlKind, mysqlAccounts, population } from './mysql-accounts.ts';
import { type MySqlProgram, mysqlProgram, pamKnows } from './mysql-programs.ts';
import {
  end,
  freePort,
  type Identity,
  launch,
  type ProcessMark,
  ready,
  run,
  unprivileged,
} from './process.ts';
import { discard, freshFolder, home, withLock, writeRecord } from './state.ts';

/** A running MySQL or MariaDB with a database `app` with a table `notes` of 100 rows. */
export interface MySqlInfo {
  readonly kind: MySqlKind;
  /** Of its program: `9.7.4`, `11.8.6`. */
  readonly version: string;
  readonly host: string;
  readonly port: number;
  readonly database: string;
  /** Its unix socket, over which root may do everything without a password. */
  readonly socket: string;
  readonly log: string;
  /** What its certificate can be verified with; undefined: it has no TLS. */
  readonly ca: string | undefined;
  /** File with the RSA key by which a password can be sent without TLS; MySQL has one, MariaDB none. */
  readonly publicKey: string | undefined;
  readonly accounts: readonly Account[];
}

/** What may differ in a private server. */
export interface MySqlOptions {
  readonly kind?: MySqlKind;
  /** Its certificate, or false for a server without TLS. Default: `server`, like the shared ones. */
  readonly certificate?: ServerCertificate | Leaf | false;
  /** Options of the server on top of the usual ones: `{ 'max-connections': '5' }`. */
  readonly settings?: Readonly<Record<string, string>>;
}

/** A MySQL or MariaDB of one test alone, which it may break. */
export interface PrivateMySql extends MySqlInfo {
  /** Ends it and removes its files. */
  readonly stop: () => Promise<void>;
  /** Ends it, keeps its data, and starts it again on the same port: its cache of passwords is cold then. */
  readonly restart: () => Promise<void>;
  readonly down: () => Promise<void>;
  readonly up: () => Promise<void>;
  /** Kills it as a crash of the machine would: sessions see the connection break, without a word. */
  readonly kill: () => Promise<void>;
  /** FLUSH PRIVILEGES: empties the cache of passwords, too. */
  readonly flushPrivileges: () => Promise<void>;
}

/** Runs one statement as root, in the database `app` unless told otherwise; gives its rows. */
export async function mysqlQuery(
  info: Pick<MySqlInfo, 'socket' | 'database'>,
  text: string,
  values: readonly (string | number | Buffer)[] = [],
): Promise<Record<string, unknown>[]> {
  const connection = await mysql.createConnection({
    socketPath: info.socket,
    user: 'root',
    database: info.database,
    connectTimeout: 10_000,
  });
  try {
    const [rows] = await connection.query<RowDataPacket[]>(text, [...values]);
    return Array.isArray(rows) ? rows : [];
  } finally {
    await connection.end();
  }
}

async function own(path: string, identity: Identity | undefined): Promise<void> {
  if (identity) await chown(path, identity.uid, identity.gid);
}

/** Flags that every server of the tests runs with; `folder` holds its socket and temporary files. */
function usual(program: MySqlProgram, folder: string): readonly string[] {
  return [
    '--no-defaults',
    ...program.flags,
    `--datadir=${join(folder, 'data')}`,
    `--socket=${join(folder, 's')}`,
    `--pid-file=${join(folder, 'pid')}`,
    `--tmpdir=${folder}`,
    '--secure-file-priv=',
    '--innodb-buffer-pool-size=64M',
    '--innodb-flush-log-at-trx-commit=2',
  ];
}

/** Makes a data folder with all accounts once; every server starts from a copy of it. */
async function template(program: MySqlProgram, identity: Identity | undefined): Promise<string> {
  const { kind } = program;
  const statements = population(kind);
  const key = createHash('sha256')
    .update(JSON.stringify([program.version, statements]))
    .digest('hex');
  const folder = join(home(), `template-${kind}-${key.slice(0, 12)}`);
  if (existsSync(folder)) return folder;
  return withLock(`template-${kind}`, async () => {
    if (existsSync(folder)) return folder;
    const draft = await freshFolder(`template-${kind}.new`);
    await own(draft, identity);
    await program.initialise(join(draft, 'data'), identity);
    const log = join(draft, 'log');
    const daemon = await serve(program, [...usual(program, draft), '--skip-networking'], log, identity);
    try {
      const bare = { socket: join(draft, 's'), database: 'mysql' };
      await ready(kind, daemon, log, () => mysqlQuery(bare, 'select 1').then(() => true));
      for (const statement of statements) await mysqlQuery(bare, statement);
    } finally {
      await end(daemon, 'SIGTERM', 30_000);
    }
    await rename(draft, folder);
    return folder;
  });
}

function serve(
  program: MySqlProgram,
  flags: readonly string[],
  log: string,
  identity: Identity | undefined,
): Promise<ProcessMark> {
  const [command, ...args] = program.server;
  return launch({ command, args: [...args, ...flags], env: program.env, log, cwd: '/', identity });
}

/** Starts a MySQL or MariaDB on this machine and records it under `name`. */
export async function startLocalMySql(
  name: string,
  options: MySqlOptions & { readonly owner?: ProcessMark } = {},
): Promise<PrivateMySql> {
  const { kind = 'mysql9', certificate = 'server', owner } = options;
  const identity = await unprivileged();
  const program = await mysqlProgram(kind);
  const source = await template(program, identity);
  const folder = await freshFolder(name);
  await own(folder, identity);
  await run('cp', ['-R', '-p', '--reflink=auto', join(source, 'data'), join(folder, 'data')]);
  // Two servers of one identity are taken for replicas of each other.
  await rm(join(folder, 'data', 'auto.cnf'), { force: true });

  const known = await certificates();
  const leaf = typeof certificate === 'string' ? known[certificate] : certificate;
  const port = await freePort();
  const settings: Record<string, string> = {
    'bind-address': '127.0.0.1',
    port: String(port),
    'skip-name-resolve': 'ON',
    // Tests open more than 500 sessions at once, and send packets of 64 MiB.
    'max-connections': '800',
    'max-allowed-packet': '128M',
    'local-infile': 'ON',
    ...(leaf ? await tls(leaf, known.ca, folder, identity) : withoutTls(kind)),
    ...options.settings,
  };
  const flags = [
    ...usual(program, folder),
    ...Object.entries(settings).map(([key, value]) => `--${key}=${value}`),
  ];
  const log = join(folder, 'log');
  const info: MySqlInfo = {
    kind,
    version: program.version,
    host: '127.0.0.1',
    port,
    database: 'app',
    socket: join(folder, 's'),
    log,
    ca: leaf ? leaf.ca : undefined,
    publicKey: kind === 'mysql9' ? join(folder, 'data', 'public_key.pem') : undefined,
    accounts: mysqlAccounts[kind].filter(({ user }) => user !== 'clear_user' || pamKnows()),
  };
  let daemon: ProcessMark = { pid: 0, born: '' };
  const record = () => ({ process: daemon, port, info, ...(owner ? { owner } : {}) });
  const up = async () => {
    daemon = await serve(program, flags, log, identity);
    await writeRecord(name, { ...record(), ready: false });
    await ready(kind, daemon, log, () => mysqlQuery(info, 'select 1').then(() => true));
    await writeRecord(name, { ...record(), ready: true });
  };
  const down = () => end(daemon, 'SIGTERM', 20_000);
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
    kill: () => end(daemon, 'SIGKILL'),
    flushPrivileges: async () => {
      await mysqlQuery(info, 'FLUSH PRIVILEGES');
    },
  };
}

/** An empty list of TLS versions is how MySQL is told to have none; MariaDB has a switch. */
function withoutTls(kind: MySqlKind): Record<string, string> {
  return kind === 'mysql9' ? { 'tls-version': '' } : { ssl: 'OFF' };
}

/** The server wants a key that its own user can read, so it gets copies. */
async function tls(
  leaf: Leaf,
  clientCa: string,
  folder: string,
  identity: Identity | undefined,
): Promise<Record<string, string>> {
  const copies: Record<string, string> = {};
  for (const [setting, path] of Object.entries({
    'ssl-cert': leaf.cert,
    'ssl-key': leaf.key,
    'ssl-ca': clientCa,
  })) {
    const copy = join(folder, setting);
    await copyFile(path, copy);
    await chmod(copy, 0o600);
    await own(copy, identity);
    copies[setting] = copy;
  }
  return copies;
}
