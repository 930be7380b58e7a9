import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { debianTree, reachable, treeEnvironment } from './debian-suite.ts';
import { aptInstall, which } from './install.ts';
import { type MySqlKind, pam } from './mysql-accounts.ts';
import { type Identity, run } from './process.ts';

/** A program and the arguments that come first, whatever it shall do. */
export type Command = readonly [string, ...string[]];

/** The server program of one kind, where its parts are, and how it makes a new data folder. */
export interface MySqlProgram {
  readonly kind: MySqlKind;
  readonly version: string;
  readonly server: Command;
  readonly env: NodeJS.ProcessEnv;
  /** Flags without which it would look for its parts where its packager wanted them. */
  readonly flags: readonly string[];
  readonly initialise: (data: string, identity: Identity | undefined) => Promise<void>;
}

/** Packages of each, server and command line client together. */
const packages = {
  mysql9: ['mysql-server-core', 'mysql-client-core'],
  mariadb11: ['mariadb-server-core', 'mariadb-server', 'mariadb-client-core'],
} as const;

/** The server's program, installed when it is missing. */
export async function mysqlProgram(kind: MySqlKind): Promise<MySqlProgram> {
  switch (kind) {
    case 'mysql9':
      return mysql();
    case 'mariadb10':
      return mariadbOfThisMachine();
    case 'mariadb11':
      return mariadbOfTrixie();
  }
}

/** The command line client that belongs to a server. */
export async function mysqlClient(
  kind: MySqlKind,
): Promise<{ readonly command: Command; readonly env: NodeJS.ProcessEnv }> {
  if (kind === 'mariadb10') {
    if (!(await which('mariadb'))) await aptInstall(['mariadb-client']);
    return { command: ['mariadb'], env: { PATH: process.env['PATH'], HOME: '/nonexistent' } };
  }
  const tree = await debianTree(kind === 'mysql9' ? 'sid' : 'trixie', packages[kind]);
  const plugins = `--plugin-dir=${join(tree.folder, clientPlugins[kind])}`;
  const [loader, ...rest] = tree.command(`usr/bin/${kind === 'mysql9' ? 'mysql' : 'mariadb'}`);
  return { command: [loader, ...rest, '--no-defaults', plugins], env: treeEnvironment(tree) };
}

const clientPlugins = {
  mysql9: 'usr/lib/mysql/plugin',
  mariadb11: 'usr/lib/x86_64-linux-gnu/libmariadb3/plugin',
};

async function version(command: Command, env: NodeJS.ProcessEnv): Promise<string> {
  const [program, ...args] = command;
  const { stdout } = await run(program, [...args, '--no-defaults', '--version'], { env });
  return /Ver (\d+\.\d+\.\d+)/.exec(stdout)?.[1] ?? '';
}

async function mysql(): Promise<MySqlProgram> {
  const tree = await reachable(await debianTree('sid', packages.mysql9), 'tree-mysql9');
  const server = tree.command('usr/sbin/mysqld');
  const env = treeEnvironment(tree);
  const flags = [
    `--basedir=${join(tree.folder, 'usr')}`,
    `--plugin-dir=${join(tree.folder, 'usr/lib/mysql/plugin')}`,
    `--lc-messages-dir=${join(tree.folder, 'usr/share/mysql')}`,
    `--character-sets-dir=${join(tree.folder, 'usr/share/mysql/charsets')}`,
    '--plugin-load-add=auth_socket.so',
    '--mysqlx=OFF',
    '--skip-log-bin',
    '--innodb-doublewrite=OFF',
    '--innodb-redo-log-capacity=8M',
  ];
  return {
    kind: 'mysql9',
    version: await version(server, env),
    server,
    env,
    flags,
    initialise: async (data, identity) => {
      const [program, ...args] = server;
      const own = ['--no-defaults', ...flags, '--initialize-insecure', `--datadir=${data}`];
      await run(program, [...args, ...own], { identity, env, timeout: 180_000 });
    },
  };
}

async function mariadbOfThisMachine(): Promise<MySqlProgram> {
  if (!(await which('mariadbd'))) await aptInstall(['mariadb-server', 'mariadb-client']);
  const server: Command = [(await which('mariadbd')) ?? '/usr/sbin/mariadbd'];
  const env = { PATH: process.env['PATH'], HOME: '/nonexistent' };
  const files = { plugins: '/usr/lib/mysql/plugin', share: '/usr/share/mysql', prefix: 'mysql' };
  return mariadb('mariadb10', { server, env, basedir: '/usr', ...files });
}

async function mariadbOfTrixie(): Promise<MySqlProgram> {
  const tree = await reachable(await debianTree('trixie', packages.mariadb11), 'tree-mariadb11');
  const usr = join(tree.folder, 'usr');
  return mariadb('mariadb11', {
    server: tree.command('usr/sbin/mariadbd'),
    env: treeEnvironment(tree),
    basedir: usr,
    plugins: join(usr, 'lib/mysql/plugin'),
    share: join(usr, 'share/mariadb'),
    prefix: 'mariadb',
  });
}

interface MariaDbParts {
  readonly server: Command;
  readonly env: NodeJS.ProcessEnv;
  readonly basedir: string;
  readonly plugins: string;
  readonly share: string;
  /** What the names of its SQL files begin with. */
  readonly prefix: string;
}

async function mariadb(kind: MySqlKind, parts: MariaDbParts): Promise<MySqlProgram> {
  await allowPam();
  const { server, env, basedir, plugins, share, prefix } = parts;
  const flags = [
    `--basedir=${basedir}`,
    `--plugin-dir=${plugins}`,
    `--lc-messages-dir=${share}`,
    '--plugin-maturity=unknown',
    '--plugin-load-add=auth_ed25519',
    '--plugin-load-add=auth_pam_v1',
    '--pam-use-cleartext-plugin=ON',
    ...(kind === 'mariadb11' ? ['--plugin-load-add=auth_parsec'] : []),
    '--innodb-log-file-size=8M',
  ];
  return {
    kind,
    version: await version(server, env),
    server,
    env,
    flags,
    // mariadb-install-db would call programs where the packager wanted them; this is what it does.
    initialise: async (data, identity) => {
      const tables = ['system_tables', 'performance_tables', 'system_tables_data', 'sys_schema'];
      const texts = tables.map((name) => readFile(join(share, `${prefix}_${name}.sql`), 'utf8'));
      const input = [
        'create database if not exists mysql;',
        'use mysql;',
        'set @auth_root_socket=NULL;',
        'set @skip_auth_anonymous=1;',
        ...(await Promise.all(texts)),
      ].join('\n');
      await mkdir(data, { recursive: true });
      if (identity) await run('chown', [`${identity.uid}:${identity.gid}`, data]);
      const own = ['--bootstrap', `--datadir=${data}`, '--skip-networking', '--enforce-storage-engine='];
      const usual = flags.filter((flag) => !/^--(plugin-load|pam)/.test(flag));
      const [program, ...args] = server;
      const all = [...args, '--no-defaults', ...usual, ...own];
      await run(program, all, { identity, env, input, timeout: 180_000 });
    },
  };
}

/** PAM reads its rules from one folder of the machine; without them the server refuses `clear_user`. */
async function allowPam(): Promise<void> {
  const path = join('/etc/pam.d', pam.service);
  if (process.getuid?.() !== 0) return;
  if (existsSync(path) && (await readFile(path, 'utf8')) === pam.rules) return;
  await writeFile(`${path}.new`, pam.rules, { mode: 0o644 });
  await rename(`${path}.new`, path);
}

/** Whether PAM of this machine knows the rules, so that `clear_user` can be let in. */
export function pamKnows(): boolean {
  return existsSync(join('/etc/pam.d', pam.service));
}
