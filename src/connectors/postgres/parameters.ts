import type { PosternError } from '../../core/errors.ts';
import type { StartupHello } from './client.ts';
import { byteString, type Parameter, textOf } from './messages.ts';
import { printable, refusal } from './replies.ts';
import type { Settings } from './settings.ts';

/** What a client may decide about its session, checked; the real user is filled in only when logging in. */
export interface StartupRequest {
  readonly database: string;
  /** The user name that the client gave. It decides nothing but the default database. */
  readonly askedUser: string;
  /** Everything for the server's StartupMessage but the user. */
  readonly parameters: readonly Parameter[];
}

/** Of these the server takes the last one given; any other name it applies in order. */
const single = ['user', 'database', 'options', 'replication'];

/**
 * Turns the client's StartupMessage into what the server is asked for. The client's bytes are never forwarded: the
 * list is taken apart, checked against the service's policy, and built anew. `pinned` are parameters of the
 * configuration, which the client cannot override. Throws CLIENT_REFUSED with the server's own SQLSTATEs.
 */
export function startupRequest(
  hello: StartupHello,
  settings: Settings,
  pinned: readonly Parameter[],
): StartupRequest {
  const given = new Map(hello.parameters.filter(([name]) => single.includes(name)));
  const askedUser = given.get('user') ?? '';
  const database = chooseDatabase(given.get('database') || askedUser, settings);
  const policy = new Policy(settings, pinned);

  const parameters: Parameter[] = [['database', database], ...pinned.filter(([name]) => name !== 'options')];
  const replication = given.get('replication');
  if (replication !== undefined && wantsReplication(replication)) {
    if (!settings.replication)
      throw refusal(
        '0A000',
        'replication connections are not allowed by this service',
        'The setting `replication: true` of the service allows them.',
      );
    parameters.push(['replication', replication]);
  }
  for (const [name, value] of hello.parameters)
    if (!single.includes(name) && policy.admits(name)) parameters.push([name, value]);

  const pinnedOptions = pinned.find(([name]) => name === 'options')?.[1];
  const options = [pinnedOptions, policy.admittedOptions(given.get('options') ?? '')]
    .filter(Boolean)
    .join(' ');
  if (options) parameters.push(['options', options]);
  return { database, askedUser, parameters };
}

function chooseDatabase(asked: string, settings: Settings): string {
  if (settings.database !== undefined) return byteString(settings.database);
  if (asked === '')
    throw refusal('28000', 'no PostgreSQL user name specified in startup packet, and no database');
  if (settings.databases && !settings.databases.includes(textOf(asked)))
    throw refusal('42501', `database "${printable(textOf(asked))}" is not allowed by this service`);
  return asked;
}

/** The server's reading of the value: any boolean false is an ordinary session. */
function wantsReplication(value: string): boolean {
  const word = value.toLowerCase();
  const isFalse =
    word === '0' ||
    (word !== '' && ('false'.startsWith(word) || 'no'.startsWith(word))) ||
    word === 'off' ||
    word === 'of';
  return !isFalse;
}

/** Which startup parameters a client may send. Setting names are case-insensitive, so they are compared in lower case. */
class Policy {
  readonly #settings: Settings['parameters'];
  readonly #pinned: ReadonlySet<string>;
  readonly #allowed: ReadonlySet<string> | undefined;
  readonly #denied: ReadonlySet<string>;

  constructor({ parameters }: Settings, pinned: readonly Parameter[]) {
    this.#settings = parameters;
    // What the configuration sets through its own `options` is set by the configuration too.
    const inOptions = pinned
      .filter(([name]) => name === 'options')
      .flatMap(([, value]) => readOptions(value));
    const names = [...pinned.map(([name]) => name), ...inOptions.flatMap((setting) => setting?.name ?? [])];
    this.#pinned = new Set(names.map(canonical));
    this.#allowed = parameters.allow && new Set(parameters.allow.map((name) => canonical(byteString(name))));
    this.#denied = new Set((parameters.deny ?? []).map((name) => canonical(byteString(name))));
  }

  /** Whether the parameter is passed on. Throws where the policy says so. */
  admits(name: string): boolean {
    const wanted = canonical(name);
    if (this.#pinned.has(wanted)) return false;
    if (this.#allowed ? this.#allowed.has(wanted) : !this.#denied.has(wanted)) return true;
    if (this.#settings.otherwise === 'drop') return false;
    throw refusal('42501', `startup parameter "${printable(textOf(name))}" is not allowed by this service`);
  }

  /** The client's `options`, without what the policy takes out of it. Without a policy it passes as it is. */
  admittedOptions(options: string): string {
    const transparent = this.#pinned.size === 0 && !this.#allowed && this.#denied.size === 0;
    if (transparent || options === '') return options;
    if (this.#denied.has('options') && !this.admits('options')) return '';
    return (
      splitOptions(options)
        .filter(({ name }) => this.admits(name))
        // The name too: with a space in it the server would read another one than the policy did.
        .map(({ name, value }) => `-c ${escapeOption(`${name}=${value}`)}`)
        .join(' ')
    );
  }
}

/** Settings that the server still takes under an old name (map_old_guc_names), of those that a client may set. */
const oldNames: ReadonlyMap<string, string> = new Map([
  ['sort_mem', 'work_mem'],
  ['vacuum_mem', 'maintenance_work_mem'],
]);

/** The server reads `-` in the names of `--long-options` as `_`. */
function canonical(name: string): string {
  const lower = name.toLowerCase().replaceAll('-', '_');
  return oldNames.get(lower) ?? lower;
}

/** Settings within command-line options; behind a policy only settings are understood. */
function splitOptions(options: string): Setting[] {
  return readOptions(options).map((setting) => {
    if (!setting) throw unknownOption();
    return setting;
  });
}

interface Setting {
  readonly name: string;
  readonly value: string;
}

/**
 * Splits command-line options as the server does (pg_split_opts: white space separates, a backslash takes the next
 * character as it is). A setting is `-c name=value`, `-cname=value` or `--name=value`; undefined: another option.
 */
function readOptions(options: string): (Setting | undefined)[] {
  // Not \s, which is wider than isspace(): it would also split the bytes of "à" in UTF-8.
  const words = [...options.matchAll(/(?:\\[^]|[^ \t\n\v\f\r\\])+/g)].map(([word]) =>
    word.replaceAll(/\\([^])/g, '$1'),
  );
  const found: (Setting | undefined)[] = [];
  for (let i = 0; i < words.length; i += 1) {
    const word = words[i] ?? '';
    let setting = '';
    if (word === '-c') setting = words[(i += 1)] ?? '';
    else if (word.startsWith('-c') || word.startsWith('--')) setting = word.slice(2);
    const [, name, value] = /^([^=]+)=([^]*)$/.exec(setting) ?? [];
    found.push(
      name === undefined || value === undefined ? undefined : { name: name.replaceAll('-', '_'), value },
    );
  }
  return found;
}

function unknownOption(): PosternError {
  return refusal(
    '42501',
    'the startup parameter "options" holds more than settings, which this service does not allow',
    'Settings are written as -c name=value or --name=value.',
  );
}

function escapeOption(setting: string): string {
  return setting.replaceAll(/[ \t\n\v\f\r\\]/g, '\\$&');
}
