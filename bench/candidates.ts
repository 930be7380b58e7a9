import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, chown, copyFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { psql } from '../test/support/clients/psql.ts';
import { Postern } from '../test/support/postern.ts';
import { installPgBouncer } from '../test/support/servers/install.ts';
import { pgBouncerConfig, pgBouncerUsers } from '../test/support/servers/pgbouncer.ts';
import type { PostgresInfo } from '../test/support/servers/postgres.ts';
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
import { layOut, type Package } from './package.ts';
import { haproxyVersion, PlainRelay } from './relays.ts';

/** Who takes part in the rows of PostgreSQL, in the order of the columns. `Postern` is what a user gets who sets nothing. */
export const names = ['direct', 'Postern', 'epoll', 'TypeScript', 'HAProxy', 'PgBouncer', 'Go'] as const;
export type Name = (typeof names)[number];

/** Something that a client program can connect to; everything goes by the PG* variables. */
export interface Candidate {
  readonly name: Name;
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
  /** Upstream with TLS, verified in full; the client's side of those in between stays plain. */
  readonly tls: Field;
  /** The same, without those through which a client would have to log in by itself: SCRAM refuses that where only half of the way has TLS. */
  readonly tlsLogins: Field;
  /** As `plain`, the credential in OpenBao instead of a file; undefined where there is no OpenBao. */
  readonly vault: Field | undefined;
  /** A fresh process to count the memory of; undefined for who is not here. */
  newcomer(name: Name, options: NewcomerOptions): Promise<Newcomer | undefined>;
  /** A server that takes any number of sessions and trusts everybody, in a process of its own. */
  trustingServer(): Promise<Newcomer>;
  /** What could not be had. */
  readonly missing: readonly string[];
}

export interface NewcomerOptions {
  readonly tls: boolean;
  /** The server behind it, when it is not PostgreSQL. */
  readonly upstream?: number;
}

/** A process that has served nobody yet. */
export interface Newcomer extends AsyncDisposable {
  readonly pid: number;
  readonly port: number;
}

type Engine = 'Postern' | 'epoll' | 'TypeScript';

/** The settings under `relay:`, by which they differ. */
const engines: Readonly<Record<Engine, string>> = {
  Postern: '{ engine: native }',
  epoll: '{ engine: native, dedicatedSessions: 0 }',
  TypeScript: '{ engine: typescript }',
};

const role = 'scram_user';
/** Asks for no password, for those who relay TLS that the client knows nothing of: with SCRAM it would notice. */
const trusted = 'trust_user';
const database = 'app';
/** For 2,000 idle sessions, and some that have not quite gone yet. */
const MOST_CONNECTIONS = 2300;
const MOST_SESSIONS = 11_000;

/** Starts a PostgreSQL 18 of our own and everything that is to stand before it. */
export async function assemble(): Promise<Cast> {
  await using stack = new AsyncDisposableStack();
  const built = await layOut();
  stack.defer(() => rm(built.folder, { recursive: true, force: true }));
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
  if (built.withoutNative !== undefined)
    missing.push(`the native engine, so Postern relays in TypeScript: ${built.withoutNative}`);

  const bao = await orSaid('OpenBao', () => server('openbao'));
  const plainly = service(postgres.port, { mode: 'disable' }, { secret });
  const verified = { mode: 'verify-full', ca };
  const postern: Partial<Record<Engine, Postern>> = {};
  const [usual, ...others] = enginesOf(built);
  for (const engine of [usual, ...others])
    postern[engine] = stack.use(
      await startPostern(
        built,
        engine,
        {
          plain: plainly,
          ...(engine === 'TypeScript' && { tls: service(postgres.port, verified, { secret }) }),
          ...(engine === usual && bao && { vault: service(postgres.port, { mode: 'disable' }, 'vault') }),
        },
        engine === usual ? bao : undefined,
      ),
    );
  const through = (engine: Engine, name = 'plain'): Candidate[] => {
    const process = postern[engine];
    return process ? [{ name: engine, env: target(process.port(name)), pid: process.pid }] : [];
  };
  const bouncers = await orSaid('PgBouncer', async () => ({
    plain: stack.use(await PgBouncer.start(postgres, undefined)),
    tls: stack.use(await PgBouncer.start(postgres, ca)),
  }));
  const haproxy = await orSaid('HAProxy', async () => stack.use(await PlainRelay.haproxy(postgres.port)));
  const gophers = await orSaid('Go', async () => ({
    plain: stack.use(await PlainRelay.go(postgres.port, undefined)),
    tls: stack.use(await PlainRelay.go(postgres.port, ca)),
  }));
  const bounced = (bouncer: PgBouncer | undefined): Candidate[] =>
    bouncer ? [{ name: 'PgBouncer', env: target(bouncer.port), pid: bouncer.pid }] : [];
  const password = { PGPASSWORD: canary.postgres, PGSSLMODE: 'disable' };
  const relayed = (name: Name, relay: PlainRelay | undefined, env: Record<string, string>): Candidate[] =>
    relay ? [{ name, env: { ...target(relay.port), ...env }, pid: relay.pid }] : [];
  const direct = (tls: Readonly<Record<string, string>>): Candidate => ({
    name: 'direct',
    env: { ...target(postgres.port), ...password, ...tls },
    pid: undefined,
  });
  const plain = direct({});
  const tlsLogins = [
    direct({ PGSSLMODE: 'verify-full', PGSSLROOTCERT: ca }),
    ...through('TypeScript', 'tls'),
    ...bounced(bouncers?.tls),
  ];

  const pgbench = await psql(['--version'], { program: 'pgbench' });
  const ours = stack.move();
  return {
    postgres,
    versions: {
      PostgreSQL: '18',
      pgbench: pgbench.stdout.trim(),
      ...(haproxy && { HAProxy: await haproxyVersion() }),
      ...(built.staleNative && {
        addon: 'older than its source: run `npm run native` to measure this commit',
      }),
    },
    plain: [
      plain,
      ...through('Postern'),
      ...through('epoll'),
      ...through('TypeScript'),
      ...relayed('HAProxy', haproxy, password),
      ...bounced(bouncers?.plain),
      ...relayed('Go', gophers?.plain, password),
    ],
    tls: [...tlsLogins, ...relayed('Go', gophers?.tls, { PGUSER: trusted, PGSSLMODE: 'disable' })],
    tlsLogins,
    vault: bao && [plain, ...through(usual, 'vault')],
    missing,
    newcomer: async (name, { tls, upstream = postgres.port }) => {
      const verifying = tls ? ca : undefined;
      if (name === 'PgBouncer')
        return bouncers && (await PgBouncer.start({ ...postgres, port: upstream }, verifying));
      if (name === 'HAProxy') return haproxy && (await PlainRelay.haproxy(upstream));
      if (name === 'Go') return gophers && (await PlainRelay.go(upstream, verifying));
      if (name === 'direct' || !postern[name]) return undefined;
      const only = service(upstream, tls ? verified : { mode: 'disable' }, { secret });
      const fresh = await startPostern(built, name, { only }, undefined);
      return {
        pid: fresh.pid,
        port: fresh.port('only'),
        [Symbol.asyncDispose]: () => fresh[Symbol.asyncDispose](),
      };
    },
    trustingServer,
    [Symbol.asyncDispose]: () => ours.disposeAsync(),
  };
}

/** The one that is used without a word first. */
function enginesOf(built: Package): readonly [Engine, ...Engine[]] {
  return built.withoutNative === undefined ? ['Postern', 'epoll', 'TypeScript'] : ['TypeScript'];
}

async function trustingServer(): Promise<Newcomer> {
  const program = join(import.meta.dirname, 'trusting-server.ts');
  const child = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] });
  const [port] = (await once(child.stdout ?? child, 'data')) as [Buffer];
  return {
    pid: child.pid ?? 0,
    port: Number(port.toString()),
    [Symbol.asyncDispose]: async () => {
      const ended = once(child, 'exit');
      child.kill();
      await ended;
    },
  };
}

function target(port: number): Record<string, string> {
  return { PGHOST: '127.0.0.1', PGPORT: String(port), PGUSER: role, PGDATABASE: database };
}

/** One entry under `services:`; its login is in a file, or in OpenBao. */
function service(
  upstream: number,
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
    limits: { maxConnections: ${MOST_SESSIONS}, loginTimeout: 30s }
    credentials: { username: ${get('username')}, password: ${get('password')} }
    config: { host: 127.0.0.1, port: ${upstream}, tls: ${JSON.stringify(tls)} }
`;
}

/** Postern as its users run it: the built package, the log at `info`, the credential asked for at each login. */
async function startPostern(
  built: Package,
  engine: Engine,
  services: Readonly<Record<string, string>>,
  bao: OpenBao | undefined,
): Promise<Postern> {
  const vault = bao
    ? `providers:
  vault: { kind: vault, address: "${bao.address}", auth: { method: approle, roleId: "${bao.roleId}", secretIdEnv: SECRET_ID } }
`
    : '';
  const all = Object.entries(services).map(([name, text]) => `  ${name}:${text}`);
  const file = `version: 2\nrelay: ${engines[engine]}\n${vault}services:\n${all.join('')}`;
  return await Postern.start(file, {
    program: built.program,
    args: ['--log-level', 'info'],
    env: { NODE_ENV: 'production', ...(bao && { SECRET_ID: bao.secretId }) },
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
  static async start(upstream: PostgresInfo, ca: string | undefined): Promise<PgBouncer> {
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
      upstream,
      files: { users: paths.users, key, cert: leaf.cert, ca: clientCa },
    });
    // The last of two equal settings counts.
    const own = `auth_type = trust
max_client_conn = ${MOST_SESSIONS}
default_pool_size = ${MOST_SESSIONS}
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
