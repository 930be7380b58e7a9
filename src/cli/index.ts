import { PosternError } from '../core/errors.ts';
import type { Completable } from './completion.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import { askingFlagHelp, flagHelp, ownFlagHelp, parseRunOptions, UsageError } from './options.ts';
import { packageVersion } from './version.ts';

interface Command extends Completable {
  execute(words: readonly string[]): Promise<number>;
}

/** Each loads its own code: printing a version needs no configuration, and a sidecar no printer for people. */
const commands: Readonly<Record<string, Command>> = {
  run: {
    summary: 'serve until a signal says to stop (the default)',
    flags: [...flagHelp, ...ownFlagHelp.run],
    execute: async (words) => {
      const { run } = await import('./run.ts');
      return await run(parseRunOptions(words, process.env));
    },
  },
  check: {
    summary:
      'say everything that is wrong with the configuration; --connect also logs in to every upstream once',
    flags: [...flagHelp, ...ownFlagHelp.check],
    execute: async (words) => {
      const { check } = await import('./check.ts');
      return await check(words, process.env);
    },
  },
  exec: {
    summary:
      'exec [OPTIONS] -- COMMAND: serve while a command runs, which finds the services in its environment and no secret',
    flags: [...flagHelp, ...ownFlagHelp.exec],
    wraps: true,
    execute: async (words) => {
      const { exec } = await import('./exec.ts');
      return await exec(words, process.env);
    },
  },
  explain: {
    summary:
      'explain [SERVICE]: what a connection would use, by name; explain --url METHOD URL: what a request would; --json',
    flags: [...flagHelp, ...ownFlagHelp.explain],
    execute: async (words) => {
      const { explain } = await import('./explain.ts');
      return await explain(words, process.env);
    },
  },
  wait: {
    summary: 'wait until a running Postern is ready: --timeout 30s',
    flags: [...askingFlagHelp, ...ownFlagHelp.wait],
    execute: async (words) => {
      const { wait } = await import('./wait.ts');
      return await wait(words, process.env);
    },
  },
  stop: {
    summary:
      'have a running Postern drain and end, and wait for that: --timeout 60s, --pid N, --pid-file PATH',
    flags: [...askingFlagHelp, ...ownFlagHelp.stop],
    execute: async (words) => {
      const { stop } = await import('./stop.ts');
      return await stop(words, process.env);
    },
  },
  convert: {
    summary:
      "convert FILE...: print a file of Secretless, or its resources in Kubernetes, in Postern's own form",
    files: true,
    flags: ownFlagHelp.convert,
    execute: async (words) => {
      const { convert } = await import('./convert.ts');
      return await convert(words);
    },
  },
  secret: {
    summary: 'keep secrets in an encrypted file: secret set NAME (value from the input), list, rm NAME',
    flags: ownFlagHelp.secret,
    words: ['set', 'list', 'rm'],
    execute: async (words) => {
      const { secret } = await import('./secret.ts');
      return await secret(words);
    },
  },
  ca: {
    summary:
      'ca create --out FOLDER: make a certificate authority for `intercept`; ca show: what clients need to trust it',
    flags: [...askingFlagHelp.slice(0, 1), ...ownFlagHelp.ca],
    words: ['create', 'show'],
    execute: async (words) => {
      const { ca } = await import('./ca.ts');
      return await ca(words, process.env);
    },
  },
  inject: {
    summary:
      'the webhook that adds the sidecar to pods in Kubernetes; inject --file pod.yaml prints manifests with it',
    flags: ownFlagHelp.inject,
    execute: async (words) => {
      const { inject } = await import('./inject.ts');
      return await inject(words);
    },
  },
  schema: {
    summary: 'print the JSON Schema of the configuration, for editors',
    execute: async () => {
      const { schema } = await import('./schema.ts');
      return print(JSON.stringify(await schema(), null, 2));
    },
  },
  completion: {
    summary: 'print what a shell needs to complete these words: completion bash, zsh, fish or powershell',
    words: ['bash', 'zsh', 'fish', 'powershell'],
    execute: async (words) => {
      const { completion } = await import('./completion.ts');
      return completion(words, commands);
    },
  },
  version: { summary: 'print the version', execute: async () => print(await packageVersion()) },
  help: { summary: 'print this', execute: async () => print(usage()) },
};

/** Runs one command line and returns the exit code. */
export async function main(words: readonly string[]): Promise<number> {
  const [first = 'run', ...rest] = words;
  if (first === '--version' || first === '-v') return print(await packageVersion());
  // What stands behind two dashes is another program's.
  const own = words.includes('--') ? words.slice(0, words.indexOf('--')) : words;
  const isCommand = Object.hasOwn(commands, first);
  if (own.includes('--help') || own.includes('-h')) return print(usage(isCommand ? first : undefined));
  try {
    if (!isCommand && !first.startsWith('-')) throw new UsageError(`there is no command "${first}"`);
    const command = commands[isCommand ? first : 'run'];
    return await (command?.execute(isCommand ? rest : words) ?? exitCodes.usage);
  } catch (thrown) {
    if (thrown instanceof UsageError) {
      process.stderr.write(`postern: ${thrown.message}\n\n${usage()}\n`);
      return exitCodes.usage;
    }
    const error = PosternError.from(thrown);
    process.stderr.write(`postern: ${error.message}\n`);
    return exitCodeOf(error.code);
  }
}

function print(text: string): number {
  process.stdout.write(`${text}\n`);
  return exitCodes.clean;
}

/** What there is to say of one command, or of all. */
function usage(name?: string): string {
  const rows = (pairs: readonly (readonly [string, string])[]) =>
    pairs.map(([left, right]) => `  ${left.padEnd(24)} ${right}`).join('\n');
  const command = name === undefined ? undefined : commands[name];
  if (name !== undefined && command) {
    const flags = command.flags ?? [];
    return [`postern ${name}: ${command.summary}`, ...(flags.length > 0 ? ['', rows(flags)] : [])].join('\n');
  }
  return [
    'postern [COMMAND] [OPTIONS]: logs your application in, so that it needs no secret',
    '',
    rows(Object.entries(commands).map(([each, { summary }]) => [each, summary] as const)),
    '',
    rows(flagHelp),
    '',
    'Each of these options has a variable, such as POSTERN_DRAIN_TIMEOUT, that stands behind the option and before the file.',
    '`postern COMMAND --help` says which options a command has.',
  ].join('\n');
}
