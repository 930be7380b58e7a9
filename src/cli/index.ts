import { PosternError } from '../core/errors.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import { flagHelp, parseOptions, secretFlagHelp, UsageError } from './options.ts';
import { packageVersion } from './version.ts';

interface Command {
  readonly summary: string;
  execute(words: readonly string[]): Promise<number>;
}

/** Each loads its own code: printing a version needs no configuration, and a sidecar no printer for people. */
const commands: Readonly<Record<string, Command>> = {
  run: {
    summary: 'serve until a signal says to stop (the default)',
    execute: async (words) => {
      const { run } = await import('./run.ts');
      return await run(parseOptions(words, process.env));
    },
  },
  check: {
    summary:
      'say everything that is wrong with the configuration; --connect also logs in to every upstream once',
    execute: async (words) => {
      const { check } = await import('./check.ts');
      return await check(parseOptions(words, process.env));
    },
  },
  secret: {
    summary: 'keep secrets in an encrypted file: secret set NAME (value from the input), list, rm NAME',
    execute: async (words) => {
      const { secret } = await import('./secret.ts');
      return await secret(words);
    },
  },
  ca: {
    summary:
      'ca create --out FOLDER: make a certificate authority for `intercept`; ca show: what clients need to trust it',
    execute: async (words) => {
      const { ca } = await import('./ca.ts');
      return await ca(words, process.env);
    },
  },
  schema: {
    summary: 'print the JSON Schema of the configuration, for editors',
    execute: async () => {
      const { schema } = await import('./schema.ts');
      return print(JSON.stringify(await schema(), null, 2));
    },
  },
  version: { summary: 'print the version', execute: async () => print(await packageVersion()) },
  help: { summary: 'print this', execute: async () => print(usage()) },
};

/** Runs one command line and returns the exit code. */
export async function main(words: readonly string[]): Promise<number> {
  const [first = 'run', ...rest] = words;
  if (first === '--version' || first === '-v') return print(await packageVersion());
  if (words.includes('--help') || words.includes('-h')) return print(usage());
  const isCommand = Object.hasOwn(commands, first);
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

function usage(): string {
  const rows = (pairs: readonly (readonly [string, string])[]) =>
    pairs.map(([left, right]) => `  ${left.padEnd(22)} ${right}`).join('\n');
  return [
    'postern [COMMAND] [OPTIONS]: logs your application in, so that it needs no secret',
    '',
    rows(Object.entries(commands).map(([name, { summary }]) => [name, summary] as const)),
    '',
    rows(flagHelp),
    '',
    'With secret:',
    rows(secretFlagHelp),
    '',
    'Every option has a variable, such as POSTERN_DRAIN_TIMEOUT, that stands behind the option and before the file.',
  ].join('\n');
}
