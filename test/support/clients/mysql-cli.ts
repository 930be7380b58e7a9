import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { MySqlKind } from '../servers/mysql-accounts.ts';
import { mysqlClient } from '../servers/mysql-programs.ts';
import { capture, type Output } from '../servers/process.ts';
import {
  bigText,
  type MySqlAction,
  type MySqlAnswers,
  type MySqlDriver,
  type MySqlTarget,
  type Refusal,
  slowQuery,
} from './mysql-driver.ts';

interface CliOptions {
  readonly input?: string;
  readonly timeout?: number;
}

/**
 * Runs the command line client of MySQL or MariaDB, without any option file of the developer's. Rows come as lines of
 * values with tabs between them.
 */
export async function mysqlCli(
  kind: MySqlKind,
  target: MySqlTarget,
  args: readonly string[],
  options: CliOptions = {},
): Promise<Output> {
  const [program, all, env] = await commandLine(kind, target, args);
  return capture(program, all, { ...options, env });
}

async function commandLine(
  kind: MySqlKind,
  target: MySqlTarget,
  args: readonly string[],
): Promise<readonly [string, readonly string[], NodeJS.ProcessEnv]> {
  const { command, env } = await mysqlClient(kind);
  const [program, ...first] = command;
  const own = [
    ...(first.includes('--no-defaults') ? [] : ['--no-defaults']),
    ...(target.host.startsWith('/')
      ? ['--protocol=socket', `--socket=${target.host}`]
      : ['--protocol=tcp', `--host=${target.host}`, `--port=${target.port}`]),
    `--user=${target.user}`,
    `--database=${target.database}`,
    '--default-character-set=utf8mb4',
    '--batch',
    '--skip-column-names',
    '--max-allowed-packet=134217728',
    '--connect-timeout=20',
    ...tlsFlags(kind, target),
    ...(target.password !== undefined && kind === 'mysql9' ? ['--get-server-public-key'] : []),
  ];
  const password = target.password === undefined ? {} : { MYSQL_PWD: target.password };
  return [program, [...first, ...own, ...args], { ...env, ...password, LC_ALL: 'C.UTF-8' }];
}

function tlsFlags(kind: MySqlKind, { sslmode = 'disable', rootCert }: MySqlTarget): readonly string[] {
  const ca = rootCert === undefined ? [] : [`--ssl-ca=${rootCert}`];
  if (kind === 'mysql9') {
    const mode = {
      disable: 'DISABLED',
      prefer: 'PREFERRED',
      require: 'REQUIRED',
      'verify-full': 'VERIFY_IDENTITY',
    };
    return [`--ssl-mode=${mode[sslmode]}`, ...(sslmode === 'verify-full' ? ca : [])];
  }
  switch (sslmode) {
    case 'disable':
      return ['--skip-ssl'];
    case 'prefer':
      return [];
    case 'require':
      return ['--ssl', '--skip-ssl-verify-server-cert'];
    case 'verify-full':
      return ['--ssl', '--ssl-verify-server-cert', ...ca];
  }
}

type Ask = (args: readonly string[], options?: CliOptions) => Promise<string>;

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

function failure({ stderr }: Output): Refusal {
  const [, code, sqlstate, message] = /^ERROR (\d+) \((\w+)\).*?: ([^]*)$/m.exec(stderr) ?? [];
  return {
    code: code ? Number(code) : null,
    sqlstate: sqlstate ?? null,
    message: (message ?? stderr).trim(),
  };
}

const actions: {
  readonly [Action in MySqlAction]?: (
    ask: Ask,
    kind: MySqlKind,
    target: MySqlTarget,
  ) => Promise<MySqlAnswers[Action]>;
} = {
  select: async (ask) => {
    const output = await ask([
      '-e',
      `select current_user(), connection_id(); prepare s from 'select ?, ? + 1';
       set @a = 'it''s \u00E4', @b = 41; execute s using @a, @b; select count(*) from notes`,
    ]);
    const [[user = '', connection], [echo = '', sum], [notes]] = output
      .trimEnd()
      .split('\n')
      .map((line) => line.split('\t')) as [string[], string[], string[]];
    return {
      user,
      connection: Number(connection),
      greeted: null,
      echo,
      sum: Number(sum),
      notes: Number(notes),
    };
  },
  // Ctrl-C, as a person would press it: the client then opens a second connection for KILL QUERY.
  'kill-query': async (_, kind, target) => {
    const [program, args, env] = await commandLine(kind, target, ['--force', '--unbuffered']);
    const started = performance.now();
    const child = spawn(program, args, { env, stdio: ['pipe', 'pipe', 'pipe'] });
    child.stdin.end(`${slowQuery};\nselect 1;\n`);
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (chunk) => (stdout += String(chunk)));
    child.stderr.on('data', (chunk) => (stderr += String(chunk)));
    const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
    // The first statement takes 100 seconds: only the signal can have ended it earlier.
    await sleep(1500);
    child.kill('SIGINT');
    const timer = setTimeout(() => child.kill('SIGKILL'), 20_000);
    await closed;
    clearTimeout(timer);
    const code = /ERROR (\d+)/.exec(stderr)?.[1];
    return {
      code: code ? Number(code) : null,
      ms: Math.round(performance.now() - started),
      // Before it stands what the client says about Ctrl-C.
      alive: stdout.trim().split('\n').at(-1) === '1',
    };
  },
  'multi-statements': async (ask) => {
    const output = await ask(['--delimiter=//', '-e', 'select 1; select 2//']);
    return { results: output.trim().split('\n').map(Number) };
  },
  big: async (_, kind, target) => {
    const text = bigText();
    const [program, args, env] = await commandLine(kind, target, ['--unbuffered', '--quick']);
    // What comes back is more than a test should hold in memory; sha256sum reads it.
    const shell = '"$@" | { read -r server; echo "$server"; sha256sum; }';
    const input = `set @text = '${text}';\nselect sha2(@text, 256);\nselect @text;\n`;
    const { stdout } = await capture('sh', ['-c', shell, 'sh', program, ...args], {
      env,
      input,
      timeout: 60_000,
    });
    const [server = '', back = ''] = stdout.split('\n');
    // The client ends the row with a newline.
    const same = back.split(' ')[0] === sha256(`${text}\n`);
    return { sent: sha256(text), server, back: same ? sha256(text) : back };
  },
  'load-local': async (_, kind, target) => {
    const script = `create temporary table loaded (n int, text varchar(200));
      load data local infile '${target.localFile}' into table loaded; select count(*) from loaded`;
    const output = await mysqlCli(kind, target, ['--local-infile=1', '-e', script]);
    if (output.code === 0) return { rows: Number(output.stdout.trim()), code: null, message: null };
    const { code, message } = failure(output);
    return { rows: 0, code, message };
  },
  error: async (_, kind, target) => {
    const { user: __, ...refusal } = await tryLogin(kind, target);
    return refusal;
  },
  logins: async (_, kind, target) => {
    const results: Awaited<ReturnType<typeof tryLogin>>[] = [];
    for (const port of target.ports ?? []) results.push(await tryLogin(kind, { ...target, port }));
    return { results };
  },
};

async function tryLogin(kind: MySqlKind, target: MySqlTarget): Promise<{ user: string | null } & Refusal> {
  const output = await mysqlCli(kind, target, ['-e', 'select current_user()']);
  if (output.code !== 0) return { user: null, ...failure(output) };
  return { user: output.stdout.trim(), code: null, sqlstate: null, message: null };
}

/** MySQL 9.7's own client has a command for COM_RESET_CONNECTION, and obeys its commands when it is told to. */
const reset = async (ask: Ask): Promise<MySqlAnswers['reset']> => {
  const output = await ask(['--commands'], {
    input: 'set @mark = 1;\n\\x\nselect current_user(), @mark is null;\n',
  });
  const [user = '', cleared] = output.trim().split('\t');
  return { user, cleared: cleared === '1' };
};

function cli(kind: MySqlKind, name: string, plugins: readonly string[]): MySqlDriver {
  const known = kind === 'mysql9' ? { ...actions, reset } : actions;
  return {
    name,
    plugins,
    actions: () => Object.keys(known) as MySqlAction[],
    prepare: async () => {
      await mysqlClient(kind);
    },
    ask: async (action, target) => {
      const act = known[action];
      if (!act) throw new Error(`${name} cannot do ${action}`);
      const ask: Ask = async (args, options) => {
        const output = await mysqlCli(kind, target, args, options);
        if (output.code === 0) return output.stdout;
        throw new Error(`${name} ${action} ended with ${output.code}: ${output.stderr.trim()}`);
      };
      return act(ask, kind, target) as Promise<MySqlAnswers[typeof action]>;
    },
  };
}

const native = 'mysql_native_password';

/** The command line clients of MySQL 9.7, MariaDB 10.11 and MariaDB 11.8. */
export const cliDrivers: readonly MySqlDriver[] = [
  // Its mysql_native_password lies beside it as a plugin, which it loads.
  cli('mysql9', 'mysql-cli', [native, 'caching_sha2_password', 'sha256_password']),
  cli('mariadb10', 'mariadb-cli-10', [native, 'mysql_clear_password']),
  cli('mariadb11', 'mariadb-cli-11', [native, 'client_ed25519', 'parsec', 'caching_sha2_password']),
];
