import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import mysql from 'mysql2/promise';

import { Postern } from '../test/support/postern.ts';
import { which } from '../test/support/servers/install.ts';
import { mysqlClient } from '../test/support/servers/mysql-programs.ts';
import { capture, type Output } from '../test/support/servers/process.ts';
import { freshFolder } from '../test/support/servers/state.ts';
import { canary, type MySqlInfo, server, Unavailable } from '../test/support/servers.ts';
import { cpuSeconds, type Sample, withoutSecrets } from './measure.ts';

/** Someone who takes part in a measurement of MySQL; `relay` is Postern with `changeUser: relay`. */
export interface MySqlCandidate {
  readonly name: 'direct' | 'Postern' | 'relay';
  readonly port: number;
  /** Undefined behind Postern, where none is needed. */
  readonly password: string | undefined;
  /** Postern's process. */
  readonly pid: number | undefined;
}

export interface PointSelects {
  readonly clients: number;
  readonly seconds: number;
  /** A new connection for every query. */
  readonly reconnect?: boolean;
}

/** MySQL, or MariaDB where there is none, and Postern before it. There is no TLS anywhere. */
export interface MySqlCast extends AsyncDisposable {
  /** What is measured, for the title of a row: `MySQL`. */
  readonly label: string;
  /** The program that makes the load, for the title of a row: `sysbench`, or `mysql2` where that is not installed. */
  readonly generator: string;
  readonly versions: Readonly<Record<string, string>>;
  /** `direct` first. */
  readonly field: readonly MySqlCandidate[];
  /** The same, and Postern without a look at COM_CHANGE_USER. */
  readonly withRelay: readonly MySqlCandidate[];
  /** Selects by primary key, one row each. */
  pointSelects(candidate: MySqlCandidate, options: PointSelects): Promise<Sample>;
  /** Megabytes a second of one result that is thrown away as it comes. */
  bigResult(candidate: MySqlCandidate, megabytes: number): Promise<Sample>;
}

/** Prepares everything; throws `Unavailable` where there is neither MySQL nor MariaDB. */
export async function assembleMySql(): Promise<MySqlCast> {
  await using stack = new AsyncDisposableStack();
  const info = await mysqlOrMariaDb();
  const user = info.kind === 'mysql9' ? 'sha2_user' : 'native_user';
  const folder = await freshFolder(`bench-mysql-${process.pid}`);
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const login = join(folder, 'login.json');
  await writeFile(login, JSON.stringify({ username: user, password: canary.mysql }), { mode: 0o600 });
  const service = (changeUser: 'intercept' | 'relay') => ({
    connector: 'mysql',
    listenOn: 'tcp://127.0.0.1:0',
    limits: { maxConnections: 5000, loginTimeout: '30s' },
    credentials: {
      username: { from: 'file', get: `${login}#username` },
      password: { from: 'file', get: `${login}#password` },
    },
    config: {
      host: '127.0.0.1',
      port: info.port,
      tls: { mode: 'disable' },
      changeUser,
      ...(info.publicKey !== undefined && { rsaPublicKey: info.publicKey }),
    },
  });
  const services = { intercept: service('intercept'), relay: service('relay') };
  const postern = stack.use(
    await Postern.start(JSON.stringify({ version: 2, services }), {
      args: ['--log-level', 'info'],
      ...(process.env['BENCH_NODE_OPTIONS'] && { nodeOptions: process.env['BENCH_NODE_OPTIONS'] }),
    }),
  );
  await remember(info, user);
  const { pid } = postern;
  const field: MySqlCandidate[] = [
    { name: 'direct', port: info.port, password: canary.mysql, pid: undefined },
    { name: 'Postern', port: postern.port('intercept'), password: undefined, pid },
  ];
  const load = await loadGenerator(user, folder);
  const label = info.kind === 'mysql9' ? 'MySQL' : 'MariaDB';
  const ours = stack.move();
  return {
    label,
    generator: load.name,
    versions: { [label]: info.version, [`load of ${label}`]: load.version },
    field,
    withRelay: [...field, { name: 'relay', port: postern.port('relay'), password: undefined, pid }],
    pointSelects: async (candidate, options) => {
      const before = await cpuSeconds(candidate.pid);
      const { transactions, took } = await load.run(candidate, options);
      const after = await cpuSeconds(candidate.pid);
      if (!(transactions > 0 && took > 0))
        throw new Error(`${load.name} through ${candidate.name} says nothing of what it did`);
      return {
        value: transactions / took,
        transactions,
        ...(before !== undefined && after !== undefined && { cpuSeconds: after - before }),
      };
    },
    bigResult: (candidate, megabytes) => bigResult(info, user, candidate, megabytes),
    [Symbol.asyncDispose]: () => ours.disposeAsync(),
  };
}

async function mysqlOrMariaDb(): Promise<MySqlInfo> {
  try {
    return await server('mysql9');
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    return await server('mariadb10');
  }
}

/** A password that MySQL has not seen since it started must come by TLS once; from then on its hash is enough. */
async function remember({ port, ca }: MySqlInfo, user: string): Promise<void> {
  const ssl = ca === undefined ? {} : { ssl: { rejectUnauthorized: false } };
  const connection = await mysql.createConnection({
    host: '127.0.0.1',
    port,
    user,
    password: canary.mysql,
    database: 'app',
    ...ssl,
  });
  await connection.end();
}

interface LoadGenerator {
  readonly name: string;
  readonly version: string;
  run(candidate: MySqlCandidate, options: PointSelects): Promise<Load>;
}

interface Load {
  readonly transactions: number;
  /** Seconds. */
  readonly took: number;
}

async function loadGenerator(user: string, folder: string): Promise<LoadGenerator> {
  const sysbench = await which('sysbench');
  return sysbench === undefined ? driver(user) : await withSysbench(sysbench, user, folder);
}

async function withSysbench(program: string, user: string, folder: string): Promise<LoadGenerator> {
  // Not on the command line, where everybody on the machine could read it.
  const password = join(folder, 'sysbench.cnf');
  await writeFile(password, `mysql-password=${canary.mysql}\n`, { mode: 0o600 });
  const script = join(import.meta.dirname, 'point-select.lua');
  const version = await capture(program, ['--version']);
  return {
    name: 'sysbench',
    version: version.stdout.trim(),
    run: async (candidate, { clients, seconds, reconnect = false }) => {
      const to = ['--mysql-host=127.0.0.1', `--mysql-port=${candidate.port}`, `--mysql-user=${user}`];
      const output = await capture(
        program,
        [
          ...(candidate.password === undefined ? [] : [`--config-file=${password}`]),
          '--db-driver=mysql',
          '--mysql-ssl=off',
          '--mysql-db=app',
          ...to,
          `--threads=${clients}`,
          `--time=${seconds}`,
          '--events=0',
          '--rand-type=uniform',
          script,
          ...(reconnect ? ['--reconnect=on'] : []),
          'run',
        ],
        { timeout: (seconds + 60) * 1000 },
      );
      succeeded('sysbench', candidate, output);
      return {
        transactions: Number(/total number of events:\s+(\d+)/.exec(output.stdout)?.[1]),
        took: Number(/total time:\s+([\d.]+)s/.exec(output.stdout)?.[1]),
      };
    },
  };
}

/** A Node process of its own: it takes more CPU than sysbench, so the ratios come out kinder than they are. */
async function driver(user: string): Promise<LoadGenerator> {
  const program = join(import.meta.dirname, 'point-select.ts');
  return {
    name: 'mysql2',
    version: 'mysql2 (sysbench is not installed, so the client takes more of the time than it should)',
    run: async (candidate, options) => {
      const { port, password } = candidate;
      const target = { host: '127.0.0.1', port, user, password, database: 'app' };
      const output = await capture(process.execPath, [program], {
        env: { ...process.env, BENCH_LOAD: JSON.stringify({ ...options, target }) },
        timeout: (options.seconds + 60) * 1000,
      });
      succeeded('mysql2', candidate, output);
      return JSON.parse(output.stdout) as Load;
    },
  };
}

/** The server makes the rows as it sends them; `--quick` makes the client forget each as it comes. */
async function bigResult(
  { kind }: MySqlInfo,
  user: string,
  candidate: MySqlCandidate,
  megabytes: number,
): Promise<Sample> {
  const { command, env } = await mysqlClient(kind);
  const [program, ...first] = command;
  const { code, stdout, stderr, ms } = await capture(
    'sh',
    [
      '-c',
      'exec "$@" > /dev/null',
      'sh',
      program,
      ...first,
      ...(first.includes('--no-defaults') ? [] : ['--no-defaults']),
      '--protocol=tcp',
      '--host=127.0.0.1',
      `--port=${candidate.port}`,
      `--user=${user}`,
      kind === 'mysql9' ? '--ssl-mode=DISABLED' : '--skip-ssl',
      '--database=app',
      '--batch',
      '--raw',
      '--quick',
      '--skip-column-names',
      '--execute',
      `SELECT repeat('x', 999) FROM notes a, notes b, notes c LIMIT ${megabytes * 1000}`,
    ],
    {
      env: { ...env, ...(candidate.password !== undefined && { MYSQL_PWD: candidate.password }) },
      timeout: 120_000,
    },
  );
  succeeded('a big result', candidate, { code, stdout, stderr, ms });
  return { value: megabytes / (ms / 1000) };
}

function succeeded(what: string, { name }: MySqlCandidate, { code, stdout, stderr }: Output): void {
  if (code !== 0)
    throw new Error(`${what} through ${name} failed: ${withoutSecrets(`${stdout}\n${stderr}`)}`);
}
