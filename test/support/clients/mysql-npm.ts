import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import mariadb from 'mariadb';
import mysqljs from 'mysql';
import mysql2, { type RowDataPacket } from 'mysql2/promise';
import type { MySqlKind } from '../servers/mysql-accounts.ts';
import {
  bigText,
  type MySqlAction,
  type MySqlAnswers,
  type MySqlDriver,
  type MySqlTarget,
  type Refusal,
  slowQuery,
} from './mysql-driver.ts';

/** One connection of any of the three drivers of npm. */
interface Connection {
  /** The connection id of the greeting. */
  readonly id: number;
  readonly query: (text: string) => Promise<unknown>;
  /** With values: as a prepared statement where the driver has them. */
  readonly rows: (text: string, values?: readonly unknown[]) => Promise<Record<string, unknown>[]>;
  readonly changeUser: () => Promise<unknown>;
  readonly reset?: () => Promise<unknown>;
  readonly end: () => Promise<void>;
}

type Connect = (target: MySqlTarget) => Promise<Connection>;

const address = ({ host, port }: MySqlTarget) =>
  host.startsWith('/') ? { socketPath: host } : { host, port };

/** TLS options; undefined without TLS. */
async function tls({ sslmode = 'disable', rootCert }: MySqlTarget) {
  if (sslmode === 'disable' || sslmode === 'prefer') return undefined;
  return sslmode === 'verify-full' && rootCert
    ? { ca: await readFile(rootCert, 'utf8'), rejectUnauthorized: true }
    : { rejectUnauthorized: false };
}

const connectMysql2: Connect = async (target) => {
  const { user, password, database, localFile } = target;
  const ssl = await tls(target);
  const connection = await mysql2.createConnection({
    ...address(target),
    user,
    database,
    ...(password === undefined ? {} : { password }),
    ...(ssl === undefined ? {} : { ssl }),
    ...(localFile === undefined ? {} : { infileStreamFactory: () => createReadStream(localFile) }),
    multipleStatements: true,
    connectTimeout: 20_000,
  });
  return {
    id: connection.threadId,
    query: async (text) => (await connection.query(text))[0],
    rows: async (text, values) => {
      const [rows] = values
        ? await connection.execute<RowDataPacket[]>(text, values as string[])
        : await connection.query<RowDataPacket[]>(text);
      return rows;
    },
    changeUser: () =>
      connection.changeUser({ user, database, ...(password === undefined ? {} : { password }) }),
    reset: () => connection.reset(),
    end: () => connection.end(),
  };
};

const connectMysqljs: Connect = async (target) => {
  const { user, password, database } = target;
  const ssl = await tls(target);
  const connection = mysqljs.createConnection({
    ...address(target),
    user,
    database,
    ...(password === undefined ? {} : { password }),
    ...(ssl === undefined ? {} : { ssl }),
    multipleStatements: true,
    connectTimeout: 20_000,
  });
  // Without a listener, the error that a server sends before it closes ends the process.
  connection.on('error', () => {});
  const done = <T>(start: (settle: (error: unknown, value?: T) => void) => void) =>
    new Promise<T>((resolve, reject) => {
      start((error, value) => (error ? reject(error as Error) : resolve(value as T)));
    });
  await done((settle) => connection.connect(settle)).catch((error: unknown) => {
    connection.destroy();
    throw error;
  });
  const query = (text: string, values: readonly unknown[] = []) =>
    done<unknown>((settle) => connection.query(text, values, settle));
  return {
    id: connection.threadId ?? 0,
    query,
    rows: async (text, values) => (await query(text, values)) as Record<string, unknown>[],
    changeUser: () =>
      done((settle) =>
        connection.changeUser({ user, database, ...(password === undefined ? {} : { password }) }, settle),
      ),
    end: () => done((settle) => connection.end(settle)),
  };
};

const connectMariadb: Connect = async (target) => {
  const { user, password, database } = target;
  const ssl = await tls(target);
  const connection = await mariadb.createConnection({
    ...address(target),
    user,
    database,
    ...(password === undefined ? {} : { password, allowPublicKeyRetrieval: true }),
    ...(ssl === undefined ? {} : { ssl }),
    multipleStatements: true,
    permitLocalInfile: true,
    connectTimeout: 20_000,
    maxAllowedPacket: 128 * 1024 * 1024,
  });
  connection.on('error', () => {});
  return {
    id: connection.threadId ?? 0,
    query: (text) => connection.query(text),
    rows: (text, values) => (values ? connection.execute(text, values) : connection.query(text)),
    changeUser: () =>
      connection.changeUser({ user, database, ...(password === undefined ? {} : { password }) }),
    reset: () => connection.reset(),
    end: () => connection.end(),
  };
};

interface Failure {
  readonly errno?: number;
  readonly sqlState?: string;
  readonly message: string;
}

const sha256 = (text: unknown) => createHash('sha256').update(String(text)).digest('hex');

const actions: {
  readonly [Action in MySqlAction]: (connect: Connect, target: MySqlTarget) => Promise<MySqlAnswers[Action]>;
} = {
  select: (connect, target) =>
    using(connect, target, async (connection) => {
      const [who] = await connection.rows('select current_user() as user, connection_id() as connection');
      const [row] = await connection.rows('select ? as echo, ? + 1 as total', ["it's \u00E4", 41]);
      const [count] = await connection.rows('select count(*) as notes from notes');
      return {
        user: String(who?.['user']),
        connection: Number(who?.['connection']),
        greeted: connection.id,
        echo: String(row?.['echo']),
        sum: Number(row?.['total']),
        notes: Number(count?.['notes']),
      };
    }),
  'change-user': (connect, target) => cleared(connect, target, (connection) => connection.changeUser()),
  reset: (connect, target) => cleared(connect, target, (connection) => connection.reset?.()),
  'kill-query': (connect, target) =>
    using(connect, target, (connection) =>
      using(connect, target, async (other) => {
        const started = performance.now();
        const killed = sleep(300).then(() => other.query(`kill query ${connection.id}`));
        const code = await connection.query(slowQuery).then(
          () => null,
          (error: Failure) => error.errno ?? null,
        );
        const ms = Math.round(performance.now() - started);
        await killed;
        const [row] = await connection.rows('select 1 as one');
        return { code, ms, alive: Number(row?.['one']) === 1 };
      }),
    ),
  'multi-statements': (connect, target) =>
    using(connect, target, async (connection) => {
      const lists = (await connection.query('select 1 as n; select 2 as n')) as Record<string, unknown>[][];
      return { results: lists.map((rows) => Number(rows[0]?.['n'])) };
    }),
  big: (connect, target) =>
    using(connect, target, async (connection) => {
      const text = bigText();
      await connection.query(`set @text = '${text}'`);
      const [row] = await connection.rows('select sha2(@text, 256) as server, @text as back');
      return { sent: sha256(text), server: String(row?.['server']), back: sha256(row?.['back']) };
    }),
  'load-local': (connect, target) =>
    using(connect, target, async (connection) => {
      await connection.query('create temporary table loaded (n int, text varchar(200))');
      try {
        await connection.query(`load data local infile '${target.localFile}' into table loaded`);
      } catch (error) {
        const { errno, message } = error as Failure;
        return { rows: 0, code: errno ?? null, message };
      }
      const [row] = await connection.rows('select count(*) as loaded from loaded');
      return { rows: Number(row?.['loaded']), code: null, message: null };
    }),
  error: async (connect, target) => {
    const { user: _, ...refusal } = await tryLogin(connect, target);
    return refusal;
  },
  logins: async (connect, target) => {
    const results: Awaited<ReturnType<typeof tryLogin>>[] = [];
    for (const port of target.ports ?? []) results.push(await tryLogin(connect, { ...target, port }));
    return { results };
  },
};

async function tryLogin(connect: Connect, target: MySqlTarget): Promise<{ user: string | null } & Refusal> {
  try {
    return await using(connect, target, async (connection) => {
      const [row] = await connection.rows('select current_user() as user');
      return { user: String(row?.['user']), code: null, sqlstate: null, message: null };
    });
  } catch (error) {
    const { errno, sqlState, message } = error as Failure;
    return { user: null, code: errno ?? null, sqlstate: sqlState?.replace('#', '') ?? null, message };
  }
}

async function using<T>(
  connect: Connect,
  target: MySqlTarget,
  use: (connection: Connection) => Promise<T>,
): Promise<T> {
  const connection = await connect(target);
  try {
    return await use(connection);
  } finally {
    await connection.end().catch(() => {});
  }
}

function cleared(
  connect: Connect,
  target: MySqlTarget,
  clear: (connection: Connection) => Promise<unknown> | undefined,
): Promise<{ user: string; cleared: boolean }> {
  return using(connect, target, async (connection) => {
    await connection.query('set @mark = 1');
    await clear(connection);
    const [row] = await connection.rows('select current_user() as user, @mark is null as cleared');
    return { user: String(row?.['user']), cleared: Number(row?.['cleared']) === 1 };
  });
}

function npmDriver(
  name: string,
  connect: Connect,
  plugins: readonly string[],
  lacks: (action: MySqlAction, kind: MySqlKind) => boolean,
): MySqlDriver {
  return {
    name,
    plugins,
    actions: (kind) => (Object.keys(actions) as MySqlAction[]).filter((action) => !lacks(action, kind)),
    prepare: () => Promise.resolve(),
    ask: (action, target) => actions[action](connect, target),
  };
}

/** The three drivers of npm, in this process. */
export const npmDrivers: readonly MySqlDriver[] = [
  npmDriver(
    'mysql2',
    connectMysql2,
    ['mysql_native_password', 'caching_sha2_password', 'sha256_password', 'mysql_clear_password'],
    () => false,
  ),
  npmDriver('mysql', connectMysqljs, ['mysql_native_password'], (action) => action === 'reset'),
  npmDriver(
    'mariadb',
    connectMariadb,
    [
      'mysql_native_password',
      'caching_sha2_password',
      'sha256_password',
      'mysql_clear_password',
      'client_ed25519',
      'parsec',
    ],
    // It refuses to send COM_CHANGE_USER to a MySQL.
    (action, kind) => action === 'change-user' && kind === 'mysql9',
  ),
];
