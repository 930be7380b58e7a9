import { parseArgs } from 'node:util';

import type { LoadContext } from '../config/load.ts';

/** A command line that cannot be understood: exit code 2, with the usage. */
export class UsageError extends Error {}

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const;
export const logFormats = ['json', 'pretty'] as const;

/** What the commands that read a configuration have in common. */
export interface Options {
  readonly configPaths: readonly string[];
  readonly context: LoadContext;
  readonly logLevel: (typeof logLevels)[number];
  readonly logFormat: (typeof logFormats)[number];
  readonly connect: boolean;
}

/** The flags of every command that reads a configuration. */
export const commonFlags = {
  config: { type: 'string', short: 'f', multiple: true },
  'admin-listen': { type: 'string' },
  'login-timeout': { type: 'string' },
  'drain-timeout': { type: 'string' },
  'idle-timeout': { type: 'string' },
  'max-session-age': { type: 'string' },
  'max-connections': { type: 'string' },
  'log-level': { type: 'string' },
  'log-format': { type: 'string' },
  connect: { type: 'boolean' },
} as const;

/** The common flags, each with what `postern help` says of it. */
export const flagHelp: readonly (readonly [flag: string, meaning: string])[] = [
  ['-f, --config PATH', 'configuration file, or folder of *.yaml files; may be repeated'],
  ['--admin-listen ADDRESS', 'health and metrics: tcp://127.0.0.1:9090, or off'],
  ['--login-timeout TIME', 'how long a login may take: 10s'],
  ['--drain-timeout TIME', 'how long sessions get to finish at shutdown: 30s'],
  ['--idle-timeout TIME', 'how long a session may be silent: 0s, for ever'],
  ['--max-session-age TIME', 'how old a session may grow: 0s, any age'],
  ['--max-connections N', 'sessions of one service at once: 1000'],
  ['--log-level LEVEL', `${logLevels.join(', ')}; info`],
  ['--log-format FORMAT', `${logFormats.join(', ')}; json`],
];

/** The flags of `postern secret`, likewise. */
export const secretFlagHelp: readonly (readonly [flag: string, meaning: string])[] = [
  ['--file PATH', 'the encrypted file: ~/.config/postern/secrets.age'],
  ['--identity PATH', 'the age identity that opens it: ~/.config/postern/identity.txt'],
  ['--passphrase-file PATH', 'a file with a passphrase, instead of an identity'],
  ['--keychain ITEM', 'SERVICE#ACCOUNT of the keychain, which has the identity'],
  ['--raw', 'with set: also take the line end at the end of the input'],
];

/** Parses the words behind a command. Flags beat POSTERN_* variables beat the file. Throws UsageError. */
export function parseOptions(words: readonly string[], environment: NodeJS.ProcessEnv): Options {
  return optionsOf(parseFlags(words, commonFlags), environment);
}

/** What the common flags of a command say that has more than those. Throws UsageError. */
export function optionsOf(
  values: CommonValues,
  environment: NodeJS.ProcessEnv,
  otherwise: Pick<Options, 'logLevel' | 'logFormat'> = { logLevel: 'info', logFormat: 'json' },
): Options {
  const limits = {
    loginTimeout: values['login-timeout'],
    drainTimeout: values['drain-timeout'],
    idleTimeout: values['idle-timeout'],
    maxSessionAge: values['max-session-age'],
    maxConnections: values['max-connections'],
  };
  const given = Object.entries(limits).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return {
    configPaths: values.config ?? [],
    context: {
      environment,
      overrides: {
        limits: Object.fromEntries(given),
        ...(values['admin-listen'] !== undefined && { admin: values['admin-listen'] }),
      },
    },
    logLevel: oneOf(
      logLevels,
      values['log-level'] ?? environment['POSTERN_LOG_LEVEL'] ?? otherwise.logLevel,
      'log level',
    ),
    logFormat: oneOf(
      logFormats,
      values['log-format'] ?? environment['POSTERN_LOG_FORMAT'] ?? otherwise.logFormat,
      'log format',
    ),
    connect: values.connect ?? false,
  };
}

type Flags = NonNullable<NonNullable<Parameters<typeof parseArgs>[0]>['options']>;
type CommonValues = ReturnType<typeof parseFlags<typeof commonFlags>>;

/** The values of a command's flags; words that are none are a UsageError. */
export function parseFlags<const Known extends Flags>(words: readonly string[], known: Known) {
  return parseWords(words, known, false).values;
}

/** The values of a command's flags, and the words between them. Throws UsageError. */
export function parseWords<const Known extends Flags>(
  words: readonly string[],
  known: Known,
  allowPositionals = true,
) {
  try {
    return parseArgs({ args: [...words], options: known, allowPositionals });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : 'the command line cannot be understood');
  }
}

function oneOf<Word extends string>(known: readonly Word[], given: string, what: string): Word {
  const found = known.find((word) => word === given);
  if (found === undefined) throw new UsageError(`the ${what} must be one of ${known.join(', ')}`);
  return found;
}
