import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  type Kubernetes,
  type KubernetesInfo,
  kubernetes,
  type PrivateKubernetes,
  startLocalKubernetes,
  startPrivateKubernetes,
} from './servers/kube.ts';
import { type MySqlInfo, type MySqlOptions, type PrivateMySql, startLocalMySql } from './servers/mysql.ts';
import { type MySqlKind, mysqlAccounts } from './servers/mysql-accounts.ts';
import type { OpenBao, OpenBaoInfo, PrivateOpenBao } from './servers/openbao.ts';
import { openBao, startLocalOpenBao, startPrivateOpenBao } from './servers/openbao.ts';
import { type PgBouncerInfo, startLocalPgBouncer } from './servers/pgbouncer.ts';
import type { PostgresInfo, PostgresOptions, PrivatePostgres } from './servers/postgres.ts';
import { startLocalPostgres } from './servers/postgres.ts';
import { alive, answers, capture, mark, type ProcessMark, Unavailable } from './servers/process.ts';
import {
  discard,
  home,
  readRecord,
  recipe,
  registerUser,
  type ServerRecord,
  withLock,
} from './servers/state.ts';

export { canary } from './servers/canary.ts';
export type { Certificates, Leaf, ServerCertificate } from './servers/certificates.ts';
export { certificates } from './servers/certificates.ts';
export type { Kubernetes, PrivateKubernetes } from './servers/kube.ts';
export type { MySqlInfo, MySqlOptions, PrivateMySql } from './servers/mysql.ts';
export { mysqlQuery } from './servers/mysql.ts';
export { type Account, type MySqlKind, mysqlAccounts } from './servers/mysql-accounts.ts';
export type { OpenBao, PrivateOpenBao } from './servers/openbao.ts';
export type { PgBouncerInfo } from './servers/pgbouncer.ts';
export type { PostgresInfo, PostgresOptions, PrivatePostgres } from './servers/postgres.ts';
export { sql } from './servers/postgres.ts';
export { type Role, roleMethods } from './servers/postgres-roles.ts';
export { Unavailable } from './servers/process.ts';

/** What each server tells a test. */
export interface Servers {
  /** TLS, also with client certificates. */
  readonly postgres18: PostgresInfo;
  /** No TLS. */
  readonly postgres15: PostgresInfo;
  readonly pgbouncer: PgBouncerInfo;
  /** TLS, also with client certificates; so do the two MariaDBs. */
  readonly mysql9: MySqlInfo;
  readonly mariadb10: MySqlInfo;
  readonly mariadb11: MySqlInfo;
  readonly openbao: OpenBao;
  /** An API server and its store; nothing runs a pod. */
  readonly kubernetes: Kubernetes;
}

export type ServerName = keyof Servers;

/** Every server there is, in the order in which it pays to start them. */
export const serverNames: readonly ServerName[] = [
  'kubernetes',
  'mysql9',
  'postgres18',
  'openbao',
  'mariadb10',
  'mariadb11',
  'postgres15',
  'pgbouncer',
];

interface Source<Info> {
  /** Starts it and records it. */
  readonly start: (name: string) => Promise<unknown>;
  /** Makes what tests get out of what the record keeps; undefined when that is of no use any more. */
  readonly recall: (info: unknown) => Info | undefined | Promise<Info | undefined>;
}

const local: { readonly [Name in ServerName]: Source<Servers[Name]> } = {
  postgres18: {
    start: (name) => startLocalPostgres(name, { version: 18 }),
    recall: (info) => info as PostgresInfo,
  },
  postgres15: {
    start: (name) => startLocalPostgres(name, { version: 15 }),
    recall: (info) => info as PostgresInfo,
  },
  pgbouncer: {
    start: async (name) => startLocalPgBouncer(name, await server('postgres18')),
    // A PostgreSQL that was started anew has another port.
    recall: async (info) => {
      const { port } = await server('postgres18');
      return (info as PgBouncerInfo).upstreamPort === port ? (info as PgBouncerInfo) : undefined;
    },
  },
  mysql9: mysqlSource('mysql9'),
  mariadb10: mysqlSource('mariadb10'),
  mariadb11: mysqlSource('mariadb11'),
  openbao: { start: startLocalOpenBao, recall: (info) => openBao(info as OpenBaoInfo) },
  kubernetes: { start: startLocalKubernetes, recall: (info) => kubernetes(info as KubernetesInfo) },
};

function mysqlSource(kind: MySqlKind): Source<MySqlInfo> {
  return {
    start: (name) => startLocalMySql(name, { kind }),
    recall: (info) => info as MySqlInfo,
  };
}

const asked = new Map<ServerName, Promise<unknown>>();

/**
 * A running server, shared with every other test process of this user: started (and installed) by whoever asks first,
 * ended some time after the last one has gone. Throws `Unavailable`, saying what to install, where it cannot be had;
 * in CI (`CI=true`) that is a failure like any other.
 */
export function server<Name extends ServerName>(name: Name): Promise<Servers[Name]> {
  let answer = asked.get(name);
  if (!answer) asked.set(name, (answer = obtain(name)));
  return answer as Promise<Servers[Name]>;
}

/** The server, or undefined after marking the test as skipped with the reason. */
export async function withServer<Name extends ServerName>(
  t: TestContext,
  name: Name,
): Promise<Servers[Name] | undefined> {
  try {
    return await server(name);
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
    t.skip(`${name} is not here: ${error.message}`);
    return undefined;
  }
}

async function obtain<Name extends ServerName>(name: Name): Promise<Servers[Name]> {
  registerUser();
  ensureKeeper();
  return withLock(name, async () => {
    const source = local[name];
    const found = await recall(name, source);
    if (found) return found;
    await discard(name);
    try {
      if (inContainers(name) && (await useContainers())) {
        const { startInContainer } = await import('./servers/docker.ts');
        await startInContainer(name, () => server('postgres18'));
      } else {
        await source.start(name);
      }
      const started = await recall(name, source);
      if (started) return started;
      throw new Error(`${name} ended as soon as it had started`);
    } catch (error) {
      await discard(name);
      throw error;
    }
  });
}

/** The API server is not: its own image lacks an etcd. MySQL and MariaDB are not: their tests need files of the server (its socket, its RSA key), which a container hides. */
function inContainers(name: ServerName): name is Exclude<ServerName, MySqlKind | 'kubernetes'> {
  return name !== 'kubernetes' && !(name in mysqlAccounts);
}

/** With a Docker engine, official images; without, or with POSTERN_TEST_BACKING=local, processes of this machine. */
async function useContainers(): Promise<boolean> {
  if (process.env['POSTERN_TEST_BACKING'] === 'local') return false;
  if (!process.env['DOCKER_HOST'] && !existsSync('/var/run/docker.sock')) return false;
  try {
    return (await capture('docker', ['version'], { timeout: 10_000 })).code === 0;
  } catch {
    return false;
  }
}

async function recall<Info>(name: string, source: Source<Info>): Promise<Info | undefined> {
  const record = await readRecord(name);
  return record && (await usable(record)) ? source.recall(record.info) : undefined;
}

async function usable(record: ServerRecord): Promise<boolean> {
  if (!record.ready || record.recipe !== recipe || (record.process && !alive(record.process))) return false;
  return answers(record.port);
}

function ensureKeeper(): void {
  try {
    const keeper = JSON.parse(readFileSync(join(home(), 'keeper.pid'), 'utf8')) as ProcessMark;
    if (alive(keeper)) return;
  } catch {
    // None has run yet.
  }
  const script = fileURLToPath(new URL('./servers/keeper.ts', import.meta.url));
  spawn(process.execPath, [script], { detached: true, stdio: 'ignore', cwd: home() }).unref();
}

let privates = 0;

function privateName(kind: string): string {
  registerUser();
  ensureKeeper();
  privates += 1;
  return `${kind}-${process.pid}-${privates}`;
}

/** An OpenBao of this test alone, which it may seal, kill and restart. Stop it in `after`. */
export async function startOpenBao(): Promise<PrivateOpenBao> {
  const name = privateName('openbao');
  return startPrivateOpenBao(name, mark(process.pid));
}

/** A Kubernetes of this test alone, whose API server it may kill and restart. Stop it in `after`. */
export async function startKubernetes(): Promise<PrivateKubernetes> {
  const name = privateName('kubernetes');
  return startPrivateKubernetes(name, mark(process.pid));
}

/** A PostgreSQL of this test alone, which it may kill and restart, with a certificate of its choice. Stop it in `after`. */
export async function startPostgres(options: PostgresOptions = {}): Promise<PrivatePostgres> {
  const name = privateName('postgres');
  return startLocalPostgres(name, { ...options, owner: mark(process.pid) });
}

/** A MySQL or MariaDB of this test alone, which it may kill and restart. Stop it in `after`. */
export async function startMySql(options: MySqlOptions = {}): Promise<PrivateMySql> {
  const name = privateName(options.kind ?? 'mysql9');
  return startLocalMySql(name, { ...options, owner: mark(process.pid) });
}
