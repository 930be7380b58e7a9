import { chmod, chown, copyFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { psql } from '../test/support/clients/psql.ts';
import { Postern } from '../test/support/postern.ts';
import { installPgBouncer } from '../test/support/servers/install.ts';
import { pgBouncerConfig, pgBouncerUsers } from '../test/support/servers/pgbouncer.ts';
import { answers, freePort, launch, mark, ready, unprivileged } from '../test/support/servers/process.ts';
import { discard, freshFolder, writeRecord } from '../test/support/servers/state.ts';
import {
  canary,
  certificates,
  type OpenBao,
  type PrivatePostgres,
  server,
  startPostgres,
  Unavailable,
} from '../test/support/servers.ts';

/** Something that a client program can connect to; everything goes by the PG* variables. */
export interface Candidate {
  readonly name: 'direct' | 'Postern' | 'PgBouncer';
  readonly env: Readonly<Record<string, string>>;
  /** Its process, when it is one that stands in between. */
  readonly pid: number | undefined;
}

/** Everyone who takes part in a measurement, `direct` first. */
export type Field = readonly Candidate[];

/** The servers of one run of the benchmark. */
export interface Cast extends AsyncDisposable {
  readonly postgres: PrivatePostgres;
  readonly versions: Readonly<Record<string, string>>;
  /** Upstream without TLS. */
  readonly plain: Field;
  /** Upstream with TLS, verified in full; the client's side of Postern and PgBouncer stays plain. */
  readonly tls: Field;
  /** As `plain`, the credential in OpenBao instead of a file; undefined where there is no OpenBao. */
  readonly vault: Field | undefined;
  /** Fresh processes to count the memory of. */
  newcomer(name: 'Postern' | 'PgBouncer', tls: boolean): Promise<Newcomer | undefined>;
  /** What could not be had. */
  readonly missing: readonly string[];
}

/** A process that has served nobody yet. */
export interface Newcomer extends AsyncDisposable {
  readonly pid: number;
  readonly port: number;
}

const role = 'scram_user';
const database = 'app';
const MOST_CONNECTIONS = 1500;

/** Starts a PostgreSQL 18 of our own and everything that is to stand before it. */
export async function assemble(): Promise<Cast> {
  await using stack = new AsyncDisposableStack();
  const postgres = await startPostgres({
    version: 18,
    certificate: 'server',
    settings: { max_connections: String(MOST_CONNECTIONS), shared_buffers: '512MB' },
  });
  stack.defer(() => postgres.stop());
  const folder = await freshFolder(`bench-secret-${process.pid}`);
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const secret = join(folder, 'login.json');
  const login = { username: role, password: canary.postgres };
  await writeFile(secret, JSON.stringify(login), { mode: 0o600 });
  const { ca } = await certificates();
  const missing: string[] = [];
  const orSaid = async <T>(what: string, start: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await start();
    } catch (error) {
      if (!(error instanceof Unavailable)) throw error;
      missing.push(`${what}: ${error.message}`);
      return undefined;
    }
  };

  const bao = await orSaid('OpenBao', () => server('openbao'));
  const postern = stack.use(
    await startPostern(
      {
        plain: service(postgres, { mode: 'disable' }, { secret }),
        tls: service(postgres, { mode: 'verify-full', ca }, { secret }),
        ...(bao && { vault: service(postgres, { mode: 'disable' }, 'vault') }),
      },
      bao,
    ),
  );
  const through = (name: string): Candidate => ({
    name: 'Postern',
    env: target(postern.port(name)),
    pid: postern.pid,
  });
  const bouncers = await orSaid('PgBouncer', async () => ({
    plain: stack.use(await PgBouncer.start(postgres, undefined)),
    tls: stack.use(await PgBouncer.start(postgres, ca)),
  }));
  const bounced = (bouncer: PgBouncer | undefined): Candidate[] =>
    bouncer ? [{ name: 'PgBouncer', env: target(bouncer.port), pid: bouncer.pid }] : [];
  const direct = (tls: Readonly<Record<string, string>>): Candidate => ({
    name: 'direct',
    env: { ...target(postgres.port), PGPASSWORD: canary.postgres, ...tls },
    pid: undefined,
  });
  const plain = direct({ PGSSLMODE: 'disable' });
  const verified = direct({ PGSSLMODE: 'verify-full', PGSSLROOTCERT: ca });

  const pgbench = await psql(['--version'], { program: 'pgbench' });
  const ours = stack.move();
  return {
    postgres,
    versions: { PostgreSQL: '18', pgbench: pgbench.stdout.trim() },
    plain: [plain, through('plain'), ...bounced(bouncers?.plain)],
    tls: [verified, through('tls'), ...bounced(bouncers?.tls)],
    vault: bao && [plain, through('vault')],
    missing,
    newcomer: async (name, tls) => {
      if (name === 'PgBouncer') return bouncers && (await PgBouncer.start(postgres, tls ? ca : undefined));
      const mode = tls ? { mode: 'verify-full', ca } : { mode: 'disable' };
      const fresh = await startPostern({ only: service(postgres, mode, { secret }) }, undefined);
      return {
        pid: fresh.pid,
        port: fresh.port('only'),
        [Symbol.asyncDispose]: () => fresh[Symbol.asyncDispose](),
      };
    },
    [Symbol.asyncDispose]: () => ours.disposeAsync(),
  };
}

function target(port: number): Record<string, string> {
  return { PGHOST: '127.0.0.1', PGPORT: String(port), PGUSER: role, PGDATABASE: database };
}

/** One entry under `services:`; its login is in a file, or in OpenBao. */
function service(
  postgres: PrivatePostgres,
  tls: Readonly<Record<string, string>>,
  from: { readonly secret: string } | 'vault',
): string {
  const get = (field: string) =>
    from === 'vault'
      ? `{ from: vault, get: "secret/data/app/db#${field}" }`
      : `{ from: file, get: "${from.secret}#${field}" }`;
  return `
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    limits: { maxConnections: 5000, loginTimeout: 30s }
    credentials: { username: ${get('username')}, password: ${get('password')} }
    config: { host: 127.0.0.1, port: ${postgres.port}, tls: ${JSON.stringify(tls)} }
`;
}

/** Postern as its users run it: the log at `info`, the credential asked for at each login. */
async function startPostern(
  services: Readonly<Record<string, string>>,
  bao: OpenBao | undefined,
): Promise<Postern> {
  const vault = bao
    ? `providers:
  vault: { kind: vault, address: "${bao.address}", auth: { method: approle, roleId: "${bao.roleId}", secretIdEnv: SECRET_ID } }
`
    : '';
  const all = Object.entries(services).map(([name, text]) => `  ${name}:${text}`);
  return await Postern.start(`version: 2\n${vault}services:\n${all.join('')}`, {
    args: ['--log-level', 'info'],
    ...(bao && { env: { SECRET_ID: bao.secretId } }),
    ...(process.env['BENCH_NODE_OPTIONS'] && { nodeOptions: process.env['BENCH_NODE_OPTIONS'] }),
  });
}

let bouncers = 0;

/** Session pooling, as near to what Postern does as it gets: clients without a password, SCRAM towards the server. */
class PgBouncer implements AsyncDisposable {
  readonly port: number;
  readonly pid: number;
  readonly #name: string;

  private constructor(name: string, port: number, pid: number) {
    this.#name = name;
    this.port = port;
    this.pid = pid;
  }

  /** `ca`: verifies the server; undefined: no TLS. */
  static async start(postgres: PrivatePostgres, ca: string | undefined): Promise<PgBouncer> {
    const program = await installPgBouncer();
    const identity = await unprivileged();
    const { server: leaf, ca: clientCa } = await certificates();
    bouncers += 1;
    const name = `bench-pgbouncer-${process.pid}-${bouncers}`;
    const folder = await freshFolder(name);
    const port = await freePort();
    const paths = { config: join(folder, 'pgbouncer.ini'), users: join(folder, 'users.txt') };
    const key = join(folder, 'server.key');
    const log = join(folder, 'log');
    await copyFile(leaf.key, key);
    await chmod(key, 0o600);
    await writeFile(paths.users, pgBouncerUsers, { mode: 0o600 });
    const usual = pgBouncerConfig({
      address: '127.0.0.1',
      port,
      upstream: postgres,
      files: { users: paths.users, key, cert: leaf.cert, ca: clientCa },
    });
    // The last of two equal settings counts.
    const own = `auth_type = trust
max_client_conn = 5000
default_pool_size = ${MOST_CONNECTIONS - 100}
server_tls_sslmode = ${ca ? 'verify-full' : 'disable'}
${ca ? `server_tls_ca_file = ${ca}` : ''}
`;
    await writeFile(paths.config, usual + own, { mode: 0o600 });
    await writeFile(log, '', { mode: 0o600 });
    if (identity)
      for (const path of [folder, key, log, ...Object.values(paths)])
        await chown(path, identity.uid, identity.gid);
    const daemon = await launch({
      command: program,
      args: [paths.config],
      log,
      cwd: folder,
      identity,
    });
    const record = { process: daemon, port, info: {}, owner: mark(process.pid) };
    await writeRecord(name, { ...record, ready: true });
    await ready('PgBouncer', daemon, log, () => answers(port));
    return new PgBouncer(name, port, daemon.pid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await discard(this.#name);
  }
}
