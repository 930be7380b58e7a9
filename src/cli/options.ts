import { parseArgs } from 'node:util';

import type { LoadContext } from '../config/load.ts';
import type { Following } from '../config/source.ts';
import { duration } from '../core/duration.ts';

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
  'min-drain-delay': { type: 'string' },
  'idle-timeout': { type: 'string' },
  'max-session-age': { type: 'string' },
  'max-connections': { type: 'string' },
  'log-level': { type: 'string' },
  'log-format': { type: 'string' },
  relay: { type: 'string' },
  connect: { type: 'boolean' },
} as const;

/** The flags of `postern run`. */
export const runFlags = {
  ...commonFlags,
  watch: { type: 'boolean' },
  'config-timeout': { type: 'string' },
} as const;

/** What `postern run` has beside the common options. */
export interface RunOptions extends Options {
  readonly following: Pick<Following, 'watch' | 'patience'>;
}

/** A flag with the word for its value, and what it means: for `postern help`, and for shells that complete. */
export type FlagHelp = readonly [flag: string, meaning: string];

/** The common flags, each with what `postern help` says of it. */
export const flagHelp: readonly FlagHelp[] = [
  ['-f, --config PATH', 'configuration file, or folder of *.yaml files; may be repeated'],
  ['--admin-listen ADDRESS', 'health and metrics: tcp://127.0.0.1:9090, or off'],
  ['--login-timeout TIME', 'how long a login may take: 10s'],
  ['--drain-timeout TIME', 'how long sessions get to finish at shutdown: 30s'],
  ['--min-drain-delay TIME', 'how long clients are still accepted after the signal to stop: 0s'],
  ['--idle-timeout TIME', 'how long a session may be silent: 0s, for ever'],
  ['--max-session-age TIME', 'how old a session may grow: 0s, any age'],
  ['--max-connections N', 'sessions of one service at once: 1000'],
  ['--relay ENGINE', 'what moves the bytes after the login: auto, native or typescript; auto'],
  ['--log-level LEVEL', `${logLevels.join(', ')}; info`],
  ['--log-format FORMAT', `${logFormats.join(', ')}; json`],
];

/** The flags of single commands, beside the common ones. */
export const ownFlagHelp = {
  run: [
    ['--watch', 'reload when a configuration file changes'],
    [
      '--config-timeout TIME',
      'how long to wait at the start for a configuration in the cluster (k8s://): 60s',
    ],
  ],
  check: [
    ['--connect', 'log in to every upstream once'],
    ['--json', 'print JSON, for programs'],
  ],
  exec: [
    [
      '--sockets',
      'put every database service on a unix socket in a private folder, not only those on port 0',
    ],
    ['--tcp', 'never do so: a database service on port 0 gets a free TCP port, as JDBC needs it'],
    ['--keep-env NAME', 'a variable that the command gets although it may hold a secret; NAME* for several'],
    ['--kill-after TIME', 'how long the command may take to obey SIGTERM: 30s'],
    ['--connect', 'log in to every upstream first, and do not start the command if that fails'],
  ],
  explain: [
    ['--url', 'explain a request: explain --url METHOD URL'],
    ['--json', 'print JSON, for programs'],
  ],
  wait: [['--timeout TIME', 'how long to wait: 30s']],
  stop: [
    ['--timeout TIME', 'how long to wait: 60s'],
    ['--pid N', 'the process to stop, by SIGTERM; otherwise the admin listener is asked'],
    ['--pid-file PATH', 'a file with its number'],
  ],
  secret: [
    ['--file PATH', 'the encrypted file: ~/.config/postern/secrets.age'],
    ['--identity PATH', 'the age identity that opens it: ~/.config/postern/identity.txt'],
    ['--passphrase-file PATH', 'a file with a passphrase, instead of an identity'],
    ['--keychain ITEM', 'SERVICE#ACCOUNT of the keychain, which has the identity'],
    ['--raw', 'with set: also take the line end at the end of the input'],
  ],
  ca: [
    ['--out FOLDER', 'create: where the certificate and its key go'],
    ['--host NAME', 'create: a host that it is limited to, with all below it; may be repeated'],
    ['--days N', 'create: how long it is valid: 730'],
    ['--service NAME', 'show: the service, where several listeners intercept'],
    ['--pem', 'show: print the certificate alone'],
    ['--bundle FILE', 'show: also write a file with it and the public ones'],
    ['--file PATH', 'show: where the certificate is, where it is a credential'],
  ],
  convert: [['--to FORM', 'file, or crd: a resource of Kubernetes that `run --config k8s://` reads; file']],
  inject: [
    ['--file PATH', 'print these manifests with the sidecar, instead of serving the webhook; - is the input'],
    ['-f, --config PATH', 'settings of the injector'],
    ['--image IMAGE', 'image of the sidecar, before the settings'],
    ['--all', 'with --file: also pods that do not ask for it, as in a namespace that does'],
    ['--kube-version VERSION', 'with --file: of the cluster, which has native sidecars since 1.29: 1.29'],
    ['--listen ADDRESS', 'where the webhook listens: tcp://0.0.0.0:8443'],
    ['--admin-listen ADDRESS', 'health and metrics: tcp://0.0.0.0:9090, or off'],
    ['--log-level LEVEL', `${logLevels.join(', ')}; info`],
    ['--log-format FORMAT', `${logFormats.join(', ')}; json`],
  ],
} as const satisfies Readonly<Record<string, readonly FlagHelp[]>>;

/** The flags of the commands that ask a running process, beside their own. */
export const askingFlagHelp: readonly FlagHelp[] = flagHelp.filter(([flag]) =>
  ['-f, --config PATH', '--admin-listen ADDRESS'].includes(flag),
);

/** Parses the words behind a command. Flags beat POSTERN_* variables beat the file. Throws UsageError. */
export function parseOptions(words: readonly string[], environment: NodeJS.ProcessEnv): Options {
  return optionsOf(parseFlags(words, commonFlags), environment);
}

/** The same for `postern run`. */
export function parseRunOptions(words: readonly string[], environment: NodeJS.ProcessEnv): RunOptions {
  const values = parseFlags(words, runFlags);
  const patience = duration.safeParse(
    values['config-timeout'] ?? (environment['POSTERN_CONFIG_TIMEOUT'] || '60s'),
  );
  if (!patience.success) throw new UsageError('--config-timeout must be a duration such as 60s');
  const watch = values.watch ?? /^(1|true|yes)$/i.test(environment['POSTERN_WATCH'] ?? '');
  return { ...optionsOf(values, environment), following: { watch, patience: patience.data } };
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
    minDrainDelay: values['min-drain-delay'],
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
        ...(values.relay !== undefined && { relay: values.relay }),
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
