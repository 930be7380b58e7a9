import { createHmac, randomBytes } from 'node:crypto';
import { open, readdir, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

import type { Connector } from '../connectors/connector.ts';
import { connectors as allConnectors } from '../connectors/index.ts';
import { formatAddress } from '../core/address.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import type { RelaySettings } from '../core/relay.ts';
import { loadFrom, type Table } from '../core/table.ts';
import { providers as allProviders } from '../providers/index.ts';
import type { ProviderKind } from '../providers/provider.ts';
import { check, checkOutside } from './check.ts';
import { namesResource } from './cluster/address.ts';
import type {
  AccessConfig,
  AdminConfig,
  AuditConfig,
  CachePolicy,
  Config,
  Limits,
  Problem,
  ProviderConfig,
  Reference,
  ServiceConfig,
} from './config.ts';
import { collide, isLocal, listenAddress } from './listen.ts';
import {
  child,
  children,
  follow,
  formatPath,
  formatProblem,
  isEmpty,
  type Located,
  Report,
  suggestion,
  without,
} from './report.ts';
import * as schema from './schema.ts';
import {
  convertVersion1,
  ignoredServiceKeys,
  isSecretlessService,
  secretlessConnectors,
  secretlessHttp,
} from './secretless.ts';
import { parseYaml, type Tree } from './yaml.ts';

/** What a configuration depends on apart from its files. */
export interface LoadContext {
  /** What can be named, where that is not what Postern has. */
  readonly connectors?: Table<Connector>;
  readonly providers?: Table<ProviderKind>;
  readonly environment?: Readonly<Record<string, string | undefined>>;
  /** What the command line says; it beats the environment, which beats the file. */
  readonly overrides?: Overrides;
  /** The folder that relative paths start from. */
  readonly folder?: string;
  /** Stands for `/etc`. */
  readonly systemFolder?: string;
  /** Reads a resource of Kubernetes that a path names; without it the cluster is asked once. */
  readonly readResource?: (path: string) => Promise<{ readonly spec: object }>;
}

/** Values as they are written, to be parsed like those of a file. */
export interface Overrides {
  readonly limits?: Readonly<Partial<Record<keyof Limits, string | number>>>;
  /** `listenOn` of the admin listener, or `off`. */
  readonly admin?: string;
  /** `relay.engine`. */
  readonly relay?: string;
}

/** A configuration, or everything that is wrong with it. */
export interface Reading {
  /** undefined when there are problems. */
  readonly config: Config | undefined;
  readonly problems: readonly Problem[];
  readonly warnings: readonly Problem[];
}

/** Reads a configuration; throws CONFIG_INVALID with every problem on a line of its own. No path: the usual places. */
export async function loadConfig(paths: readonly string[], context: LoadContext = {}): Promise<Config> {
  const { config, problems } = await readConfig(paths, context);
  if (config) return config;
  throw new PosternError('CONFIG_INVALID', problems.map(formatProblem).join('\n'));
}

/** Reads a configuration and says all that is wrong or unsafe in it. Never throws for what a file holds. */
export async function readConfig(paths: readonly string[], context: LoadContext = {}): Promise<Reading> {
  const report = new Report();
  const files = await readFiles(paths, context, report);
  const config =
    files.length > 0 ? assemble(files, await choose(files, context), context, report) : undefined;
  report.sort();
  return Object.freeze({
    config: report.problems.length > 0 ? undefined : freeze(config),
    problems: freeze(report.problems),
    warnings: freeze(report.warnings),
  });
}

/**
 * Where a configuration is looked for when no path is given, in this order; the first that exists is taken. Postern's
 * own files come first, the nearest of them before the others, then Secretless's in the order of Secretless.
 */
export function usualPlaces({
  environment = process.env,
  systemFolder = '/etc',
}: LoadContext = {}): string[] {
  const home = environment['HOME'] || homedir();
  return [
    'postern.yaml',
    'postern.yml',
    join(systemFolder, 'postern', 'postern.yaml'),
    'secretless.yml',
    join(home, '.secretless.yml'),
    join(systemFolder, 'secretless.yml'),
  ];
}

// ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────

/** Bytes of a configuration file at most. */
export const largestFile = 1024 * 1024;

/** The paths of the command line, or the one of the environment; none: the usual places. */
export function pathsAsked(
  paths: readonly string[],
  environment: Readonly<Record<string, string | undefined>>,
): readonly string[] {
  const fallback = environment[variables.config];
  return paths.length > 0 || !fallback ? paths : [fallback];
}

/** The top of every file, each parsed and found to be of this version. */
async function readFiles(paths: readonly string[], context: LoadContext, report: Report): Promise<Located[]> {
  const { environment = process.env, folder = process.cwd() } = context;
  const asked = pathsAsked(paths, environment);
  const candidates = asked.length > 0 ? asked : usualPlaces(context);
  const files: Located[] = [];
  for (const path of candidates) {
    if (namesResource(path)) {
      files.push(...(await readResourceAt(path, context, report)));
      continue;
    }
    const found = await listFiles(path, folder, report, asked.length === 0);
    for (const file of found) {
      const top = await readTop(file, folder, report);
      if (top) files.push(top);
    }
    if (asked.length === 0 && (found.length > 0 || report.problems.length > 0)) return files;
  }
  if (asked.length === 0) {
    const looked = candidates.map((path) => `  ${path}`).join('\n');
    report.problemOutside(
      '',
      '',
      `no configuration found; give a file or folder, set POSTERN_CONFIG, or write one of these:\n${looked}`,
    );
  }
  return files;
}

/** The spec of a resource as the top of a file, which it is but for its version. */
async function readResourceAt(path: string, context: LoadContext, report: Report): Promise<Located[]> {
  const { environment = process.env } = context;
  try {
    const { treeOf } = await import('./cluster/tree.ts');
    const { readResource } = await import('./cluster/resource.ts');
    const read = context.readResource ?? ((each: string) => readResource(each, environment));
    const { spec } = await read(path);
    return [{ file: path, path: [], keyAt: { line: 0, column: 0 }, tree: treeOf({ ...spec, version: 2 }) }];
  } catch (thrown) {
    report.problemOutside(path, '', PosternError.from(thrown).message);
    return [];
  }
}

/** Whether a file of a folder is one of its configuration. */
export function isConfigurationFile(name: string): boolean {
  return /^[^.].*\.ya?ml$/.test(name);
}

/** The file itself, or the YAML files of a folder by name. Not their subfolders, nor hidden files (a ConfigMap has some). */
async function listFiles(path: string, folder: string, report: Report, optional: boolean): Promise<string[]> {
  try {
    const names = await readdir(resolve(folder, path));
    const files = names.filter(isConfigurationFile).toSorted();
    if (files.length === 0) report.problemOutside(path, '', 'the folder has no .yaml or .yml file');
    return files.map((name) => join(path, name));
  } catch (error) {
    const reason = reasonOf(error);
    if (reason === 'ENOTDIR') return [path];
    if (reason === 'ENOENT' && optional) return [];
    report.problemOutside(path, '', unreadable(reason));
    return [];
  }
}

function unreadable(reason: string): string {
  if (reason === 'ENOENT') return 'no such file or folder';
  if (reason === 'EACCES' || reason === 'EPERM') return 'may not be read by this user';
  return `cannot be read (${reason})`;
}

async function readTop(file: string, folder: string, report: Report): Promise<Located | undefined> {
  const text = await readText(file, folder, report);
  if (text === undefined) return undefined;
  const { tree, faults } = parseYaml(text);
  for (const { at, path, message } of faults)
    report.problems.push({ file, line: at.line, column: at.column, path: formatPath(path), message });
  if (!tree) return undefined;
  const top: Located = { file, path: [], keyAt: { line: 1, column: 1 }, tree };
  if (isEmpty(top)) {
    report.problem(top, 'the file is empty; it needs at least `version: 2` and `services:`');
    return undefined;
  }
  if (tree.kind !== 'map') {
    report.problem(top, 'must be a map of keys and values that begins with `version: 2`');
    return undefined;
  }
  return checkVersion(top, report) ? top : undefined;
}

/** UTF-8 text of a regular file within the limit; anything else is a problem. */
async function readText(file: string, folder: string, report: Report): Promise<string | undefined> {
  try {
    const path = resolve(folder, file);
    const facts = await stat(path);
    // Opening a pipe would wait for a writer that may never come.
    if (!facts.isFile()) {
      report.problemOutside(file, '', 'is not a regular file');
      return undefined;
    }
    await using handle = await open(path, 'r');
    const bytes = Buffer.alloc(Math.min(facts.size, largestFile) + 1);
    let length = 0;
    while (length < bytes.length) {
      const { bytesRead } = await handle.read(bytes, length, bytes.length - length);
      if (bytesRead === 0) break;
      length += bytesRead;
    }
    if (length > largestFile) {
      report.problemOutside(file, '', 'is larger than 1 MiB, which no configuration needs');
      return undefined;
    }
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, length));
  } catch (error) {
    const reason = reasonOf(error);
    const message = reason === 'ERR_ENCODING_INVALID_ENCODED_DATA' ? 'is not UTF-8 text' : unreadable(reason);
    report.problemOutside(file, '', message);
    return undefined;
  }
}

/** A file of another version gets this one problem, because every other would follow from it. */
function checkVersion(top: Located, report: Report): boolean {
  const version = child(top, 'version');
  const number = version?.tree.kind === 'scalar' ? String(version.tree.value) : undefined;
  if (number === '2') return true;
  if (number === '1' || (!version && (child(top, 'listeners') || child(top, 'handlers'))))
    report.problemOfEntry(version ?? top, ['version'], convertVersion1);
  else if (version) report.problem(version, 'must be 2');
  else
    report.problemOfEntry(
      top,
      ['version'],
      'is required: write `version: 2` (Secretless takes a file without it for its version 1, which must be converted)',
    );
  return false;
}

// ── the whole ──────────────────────────────────────────────────────────────────────────────────────────────────

/** The plug-ins that a configuration names, and the names of all that it could have named. */
interface Choice extends schema.Plugins {
  readonly names: { readonly connectors: readonly string[]; readonly providers: readonly string[] };
}

/** Loads what the files name, wherever it stands: whether they say it rightly is seen later. */
async function choose(
  files: readonly Located[],
  { connectors = allConnectors, providers = allProviders }: LoadContext,
): Promise<Choice> {
  const [named, kinds] = [new Set<string>(), new Set<string>([literal])];
  for (const file of files) {
    for (const [, service] of children(child(file, 'services'))) {
      named.add(connectorOf(service) ?? '');
      for (const [, credential] of children(child(service, 'credentials')))
        kinds.add(textOf(child(credential, 'from')) ?? '');
      kinds.add(textOf(child(child(child(service, 'access'), 'password'), 'from')) ?? '');
    }
    kinds.add(textOf(child(child(child(file, 'access'), 'password'), 'from')) ?? '');
    for (const [, provider] of children(child(file, 'providers')))
      kinds.add(textOf(child(provider, 'kind')) ?? '');
  }
  const [loadedConnectors, loadedProviders] = await Promise.all([
    loadFrom(connectors, named),
    loadFrom(providers, kinds),
  ]);
  return {
    connectors: loadedConnectors,
    providers: loadedProviders,
    names: { connectors: Object.keys(connectors), providers: Object.keys(providers) },
  };
}

function assemble(files: readonly Located[], plugins: Choice, context: LoadContext, report: Report): Config {
  for (const file of files)
    check(
      schema.document,
      without(file, ['limits', 'admin', 'audit', 'cache', 'relay', 'stateFolder', 'access']),
      report,
    );

  const overrides = readOverrides(context, report);
  const limits = readLimits(files, overrides.limits, report);
  const cache = readCache(files, report);
  const stateFolder = readStateFolder(files, context, report);
  const relay = readRelay(files, overrides.relay, report);
  const { admin, adminAt } = readAdmin(files, overrides.admin, report);
  const audit = readAudit(files, context, report);

  const providers = new ProviderSet(plugins, report);
  for (const [name, entry] of merge(files, 'providers', report)) providers.add(name, entry);

  const accessAt = single(files, 'access', report);
  const access = accessAt && readAccess(accessAt, providers, report);

  const entries = merge(files, 'services', report);
  const services: ServiceConfig[] = [];
  const listening: { readonly who: string; readonly on: ServiceConfig['listenOn'] }[] = [];
  if (admin.listenOn && !adminAt) listening.push({ who: 'the admin listener', on: admin.listenOn });
  for (const [name, entry] of entries) {
    const service = readService(name, entry, { plugins, providers, limits, cache, access, report });
    if (!service) continue;
    const mates = services.filter((each) => sharesListener(each, service, plugins));
    const other = mates.length > 0 ? undefined : listening.find(({ on }) => collide(on, service.listenOn));
    if (other) {
      const place = follow(entry, ['listenOn']).found;
      report.problem(
        place,
        `${formatAddress(service.listenOn)} is also the address of ${other.who} (${formatAddress(other.on)})`,
      );
    }
    services.push(service);
    listening.push({ who: `the service ${describe(name, entry)}`, on: service.listenOn });
  }
  for (const group of Map.groupBy(services, ({ listenOn }) => formatAddress(listenOn)).values()) {
    const mates = group.filter((service) => group[0] && sharesListener(group[0], service, plugins));
    if (mates.length > 1) reviewSharing(mates, new Map(entries), plugins, report);
  }
  takeAccessOfFirst(services, plugins);
  const first = files[0];
  if (first && files.every((file) => isEmptyMap(child(file, 'services'))))
    report.problemOfEntry(
      child(first, 'services') ?? first,
      ['services'],
      'is required: at least one service',
    );
  if (admin.listenOn && adminAt) {
    const other = listening.find(({ on }) => admin.listenOn && collide(on, admin.listenOn));
    if (other)
      report.problem(adminAt, `${formatAddress(admin.listenOn)} is also the address of ${other.who}`);
  }
  return {
    providers: providers.used(),
    services,
    admin,
    audit,
    relay,
    stateFolder,
    warnings: report.warnings,
  };
}

/** Services may listen on one address together when their connector says how; then the address is the same to the letter. */
function sharesListener(a: ServiceConfig, b: ServiceConfig, { connectors }: schema.Plugins): boolean {
  const how = (service: ServiceConfig) => connectors[service.connector]?.reviewShared;
  return (
    how(a) !== undefined &&
    how(a) === how(b) &&
    formatAddress(a.listenOn) === formatAddress(b.listenOn) &&
    !(a.listenOn.kind === 'tcp' && a.listenOn.port === 0)
  );
}

/** What belongs to the listener is taken from its first service: another one may repeat it and not say otherwise. */
function reviewSharing(
  mates: readonly ServiceConfig[],
  entries: ReadonlyMap<string, Located>,
  { connectors }: schema.Plugins,
  report: Report,
): void {
  const [first, ...others] = mates;
  if (!first) return;
  for (const other of others)
    for (const key of [
      'listenTls',
      'socketMode',
      'socketOwner',
      'socketGroup',
      'access',
      'limits',
    ] as const) {
      const place = child(entries.get(other.name), key);
      if (place && !isEmpty(place) && JSON.stringify(other[key]) !== JSON.stringify(first[key]))
        report.problemOfEntry(
          place,
          place.path,
          `is taken from the first service of this listener, "${first.name}"; give the same or nothing here`,
        );
    }
  const { problems, warnings } = connectors[first.connector]?.reviewShared?.(mates) ?? noFindings;
  for (const [findings, say] of [
    [problems, 'problem'],
    [warnings, 'warning'],
  ] as const)
    for (const {
      path: [name = '', ...inside],
      message,
    } of findings) {
      const entry = entries.get(name);
      if (!entry) continue;
      const { found } = follow(entry, inside);
      const path = [...entry.path, ...inside];
      if (say === 'problem') report.problemOfEntry(found, path, message);
      else report.warnOfEntry({ ...found, path }, message);
    }
}

/** Who may connect is decided before it is known which of the services is meant. */
function takeAccessOfFirst(services: ServiceConfig[], plugins: schema.Plugins): void {
  for (const [i, service] of services.entries()) {
    const first = services.find((each) => each === service || sharesListener(each, service, plugins));
    if (first && first !== service && first.access !== service.access)
      services[i] = {
        ...service,
        access: first.access,
        fingerprint: fingerprint(`${service.fingerprint} ${first.access?.fingerprint}`),
      };
  }
}

const noFindings = { problems: [], warnings: [] };

function isEmptyMap(value: Located | undefined): boolean {
  return (
    value === undefined || isEmpty(value) || (value.tree.kind === 'map' && value.tree.entries.size === 0)
  );
}

function placeOf({ file, keyAt: { line, column } }: Located): string {
  return line > 0 ? `${file}:${line}:${column}` : file;
}

function describe(name: string, { file, keyAt }: Located): string {
  return `"${name}" (${keyAt.line > 0 ? `${file}:${keyAt.line}` : file})`;
}

/** The entries of one map from all files, each name once. */
function merge(
  files: readonly Located[],
  key: 'providers' | 'services',
  report: Report,
): [string, Located][] {
  const merged = new Map<string, Located>();
  for (const file of files) {
    for (const [name, entry] of children(child(file, key))) {
      const first = merged.get(name);
      if (!schema.entryName.test(name))
        report.problemOfEntry(
          entry,
          entry.path,
          'a name has letters, digits, ".", "_" and "-", at most 128 of them',
        );
      else if (first)
        report.problemOfEntry(entry, entry.path, `is given twice: here and in ${placeOf(first)}`);
      else merged.set(name, entry);
    }
  }
  return [...merged];
}

/** A key that may stand in one file only. */
function single(files: readonly Located[], key: string, report: Report): Located | undefined {
  let first: Located | undefined;
  for (const file of files) {
    const value = child(file, key);
    if (!value || isEmpty(value)) continue;
    if (first) report.problemOfEntry(value, value.path, `is given twice: here and in ${placeOf(first)}`);
    first ??= value;
  }
  return first;
}

// ── limits, admin, overrides ───────────────────────────────────────────────────────────────────────────────────

type SomeLimits = { readonly [Key in keyof Limits]?: Limits[Key] | undefined };

function readLimits(files: readonly Located[], overrides: SomeLimits, report: Report): Limits {
  const given = single(files, 'limits', report);
  const fromFile = given && check(schema.limits, given, report);
  return layer(fromFile ?? schema.limits.parse({}), overrides);
}

function layer(below: Limits, above: SomeLimits): Limits {
  return {
    loginTimeout: above.loginTimeout ?? below.loginTimeout,
    maxConnections: above.maxConnections ?? below.maxConnections,
    idleTimeout: above.idleTimeout ?? below.idleTimeout,
    maxSessionAge: above.maxSessionAge ?? below.maxSessionAge,
    drainTimeout: above.drainTimeout ?? below.drainTimeout,
    minDrainDelay: above.minDrainDelay ?? below.minDrainDelay,
  };
}

function readCache(files: readonly Located[], report: Report): CachePolicy {
  const given = single(files, 'cache', report);
  const { ttl, ...others } = (given && check(schema.cache, given, report)) ?? schema.cache.parse({});
  return { ttl, ...others };
}

function readRelay(
  files: readonly Located[],
  engine: RelaySettings['engine'] | undefined,
  report: Report,
): RelaySettings {
  const given = single(files, 'relay', report);
  const fromFile = (given && check(schema.relay, given, report)) ?? schema.relay.parse({});
  return engine === undefined ? fromFile : { ...fromFile, engine };
}

/** The variable over the file, and both over what systemd gives a service (`StateDirectory=`). */
function readStateFolder(
  files: readonly Located[],
  { environment = process.env, folder = process.cwd() }: LoadContext,
  report: Report,
): string | undefined {
  const given = single(files, 'stateFolder', report);
  const fromFile = given && check(schema.stateFolder, given, report);
  // Several folders are separated by colons.
  const [fromSystemd] = (environment['STATE_DIRECTORY'] ?? '').split(':');
  const path = environment[variables.stateFolder] || fromFile || fromSystemd || undefined;
  return path === undefined ? undefined : resolve(folder, path);
}

function readAdmin(
  files: readonly Located[],
  override: Pick<AdminConfig, 'listenOn'> | undefined,
  report: Report,
): { readonly admin: AdminConfig; readonly adminAt: Located | undefined } {
  const given = single(files, 'admin', report);
  const parsed = given && check(schema.admin, given, report);
  const whole = typeof parsed === 'object' ? parsed : undefined;
  const { listenOn, exposed, quit, hosts } = whole ?? defaultAdmin();
  if (override) return { admin: { ...override, quit, hosts }, adminAt: undefined };
  if (parsed === 'off' || parsed === false)
    return { admin: { listenOn: undefined, quit, hosts }, adminAt: undefined };
  const adminAt = whole && child(given, 'listenOn');
  if (adminAt && !isLocal(listenOn) && !exposed)
    report.warnOfEntry(
      adminAt,
      'other machines can reach the admin listener; say `exposed: true` beside it if they should',
    );
  return { admin: { listenOn, quit, hosts }, adminAt };
}

function readAudit(
  files: readonly Located[],
  { folder = process.cwd() }: LoadContext,
  report: Report,
): AuditConfig | undefined {
  const given = single(files, 'audit', report);
  const parsed = given && check(schema.audit, given, report);
  if (!parsed) return undefined;
  const { file, events } = parsed;
  if (file === 'stdout' || file === 'stderr') return { to: file, events };
  if (!file.startsWith('unix:')) return { to: { file: resolve(folder, file) }, events };
  const socket = checkOutside(listenAddress, file, (message) =>
    report.problem(child(given, 'file') ?? given, message),
  );
  return socket?.kind === 'unix' ? { to: { socket: socket.path }, events } : undefined;
}

function defaultAdmin() {
  const parsed = schema.admin.parse({});
  if (typeof parsed !== 'object') throw new PosternError('INTERNAL', 'the admin listener has no default');
  return parsed;
}

/** The limits by their variables; the flags are the same words in lower case. */
const limitVariables = {
  loginTimeout: 'POSTERN_LOGIN_TIMEOUT',
  maxConnections: 'POSTERN_MAX_CONNECTIONS',
  idleTimeout: 'POSTERN_IDLE_TIMEOUT',
  maxSessionAge: 'POSTERN_MAX_SESSION_AGE',
  drainTimeout: 'POSTERN_DRAIN_TIMEOUT',
  minDrainDelay: 'POSTERN_MIN_DRAIN_DELAY',
} as const satisfies Record<keyof Limits, string>;

/** The environment variables that beat the file, by what they stand for. */
export const variables = {
  config: 'POSTERN_CONFIG',
  admin: 'POSTERN_ADMIN_LISTEN',
  stateFolder: 'POSTERN_STATE_FOLDER',
  relay: 'POSTERN_RELAY',
  ...limitVariables,
} as const;

/** Flags over variables. A bad value is a problem even where a better one beats it. */
function readOverrides(
  { environment = process.env, overrides = {} }: LoadContext,
  report: Report,
): {
  readonly limits: SomeLimits;
  readonly admin: Pick<AdminConfig, 'listenOn'> | undefined;
  readonly relay: RelaySettings['engine'] | undefined;
} {
  const limits: Record<string, number> = {};
  for (const [key, variable] of Object.entries(limitVariables) as [keyof Limits, string][]) {
    const shape = schema.someLimits.shape[key];
    const sources = [
      { name: variable, value: environment[variable] || undefined },
      { name: flagOf(variable), value: overrides.limits?.[key] },
    ];
    for (const { name, value } of sources) {
      if (value === undefined) continue;
      const number = key === 'maxConnections' && /^\d{1,9}$/.test(String(value)) ? Number(value) : value;
      const parsed = checkOutside(shape, number, (message) => report.problemOutside('', name, message));
      if (parsed !== undefined) limits[key] = parsed;
    }
  }
  let admin: Pick<AdminConfig, 'listenOn'> | undefined;
  for (const { name, value } of [
    { name: variables.admin, value: environment[variables.admin] || undefined },
    { name: flagOf(variables.admin), value: overrides.admin },
  ]) {
    if (value === undefined) continue;
    const complain = (message: string) => report.problemOutside('', name, message);
    const parsed = checkOutside(schema.adminListenOn, value, complain);
    if (parsed !== undefined) admin = { listenOn: parsed === 'off' ? undefined : parsed };
  }
  let relay: RelaySettings['engine'] | undefined;
  for (const { name, value } of [
    { name: variables.relay, value: environment[variables.relay] || undefined },
    { name: flagOf(variables.relay), value: overrides.relay },
  ]) {
    if (value === undefined) continue;
    relay = checkOutside(schema.relayEngine, value, (message) => report.problemOutside('', name, message));
  }
  return { limits, admin, relay };
}

function flagOf(variable: string): string {
  return `--${variable.replace('POSTERN_', '').toLowerCase().replaceAll('_', '-')}`;
}

// ── providers ──────────────────────────────────────────────────────────────────────────────────────────────────

/** The kind that a value written into the file goes through, as if it were fetched. */
const literal = 'literal';

/** The providers of a configuration: those it lists, and those that its references name by kind alone. */
class ProviderSet {
  readonly #kinds: schema.Plugins['providers'];
  readonly #names: readonly string[];
  readonly #report: Report;
  /** undefined: listed, with problems of its own. */
  readonly #entries = new Map<string, ProviderConfig | undefined>();

  constructor({ providers, names }: Choice, report: Report) {
    this.#kinds = providers;
    this.#names = names.providers;
    this.#report = report;
  }

  add(name: string, entry: Located): void {
    this.#entries.set(name, this.#read(name, entry));
  }

  #read(name: string, entry: Located): ProviderConfig | undefined {
    const general = check(schema.provider, entry, this.#report);
    if (!general) return undefined;
    const kind = own(this.#kinds, general.kind);
    const kindAt = child(entry, 'kind');
    if (!kind) {
      const names = this.#names;
      if (kindAt)
        this.#report.problem(kindAt, `must be one of ${names.join(', ')}${suggestion(general.kind, names)}`);
      return undefined;
    }
    if (name === literal && general.kind !== literal && kindAt) {
      this.#report.problem(kindAt, 'the name "literal" is taken: values written into the file go through it');
      return undefined;
    }
    const before = this.#report.problems.length;
    const settings = check(kind.settings, without(entry, ['kind']), this.#report);
    if (this.#report.problems.length > before) return undefined;
    return { name, kind: general.kind, settings, fingerprint: fingerprint(canonical(entry.tree)) };
  }

  /** What is wrong with fetching `get` from `from`; the reference when nothing is. */
  refer(
    from: string,
    get: string,
    places: { readonly from: Located; readonly get: Located },
  ): Reference | undefined {
    if (!this.#entries.has(from)) this.#addByKind(from, places.from);
    const entry = this.#entries.get(from);
    const kind = entry && own(this.#kinds, entry.kind);
    if (!kind) return undefined;
    const fault = kind.checkReference(get);
    if (fault === undefined) return referenceTo(from, get, entry.kind === literal);
    // What a provider says about a reference may quote it, and a literal's reference is the secret.
    this.#report.problem(places.get, entry.kind === literal ? 'is not a value that can be used' : fault);
    return undefined;
  }

  #addByKind(name: string, at: Located): void {
    const kind = own(this.#kinds, name);
    if (!kind) {
      const names = [...this.#entries.keys(), ...this.#names];
      this.#report.problem(at, `no provider has this name${suggestion(name, names)}`);
      return;
    }
    const settings = kind.settings.safeParse({});
    if (!settings.success)
      this.#report.problem(at, `"${name}" needs settings; describe it under \`providers:\``);
    this.#entries.set(
      name,
      settings.success
        ? { name, kind: name, settings: settings.data, fingerprint: fingerprint(`implicit ${name}`) }
        : undefined,
    );
  }

  used(): ReadonlyMap<string, ProviderConfig> {
    const complete = new Map<string, ProviderConfig>();
    for (const [name, entry] of this.#entries) if (entry) complete.set(name, entry);
    return complete;
  }
}

/** A literal's `get` is a secret: it does not enumerate, so printing or serialising a configuration leaves it out. */
function referenceTo(provider: string, get: string, secret: boolean): Reference {
  return Object.defineProperty({ provider, get }, 'get', { value: get, enumerable: !secret });
}

/** Names come from files, tables have a prototype. */
function own<Value>(table: Readonly<Record<string, Value>>, name: string): Value | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}

// ── services ───────────────────────────────────────────────────────────────────────────────────────────────────

interface Surroundings {
  readonly plugins: Choice;
  readonly providers: ProviderSet;
  readonly limits: Limits;
  readonly cache: CachePolicy;
  readonly access: AccessConfig | undefined;
  readonly report: Report;
}

function readService(name: string, entry: Located, around: Surroundings): ServiceConfig | undefined {
  const { plugins, providers, report } = around;
  const before = report.problems.length;
  const connectorName = readConnectorName(entry, report);
  const connector = connectorName === undefined ? undefined : own(plugins.connectors, connectorName);
  const configAt = child(entry, 'config');
  const hasConfig = configAt !== undefined && !isEmpty(configAt);
  const secretless = connectorName !== undefined && isSecretlessService(connectorName, hasConfig);

  if (connectorName !== undefined && !connector) {
    const place = child(entry, 'connector') ?? child(entry, 'protocol') ?? entry;
    const names = plugins.names.connectors;
    report.problem(
      place,
      secretlessConnectors.has(connectorName)
        ? `Postern has no connector "${connectorName}" yet; it has ${names.join(', ')}`
        : `must be one of ${names.join(', ')}${suggestion(connectorName, names)}`,
    );
  }

  const ignored = secretless ? [...ignoredServiceKeys].filter(([key]) => child(entry, key)) : [];
  for (const [key, message] of ignored) {
    const place = child(entry, key);
    if (place) report.warnOfEntry(place, message);
  }
  const known = without(
    entry,
    ignored.map(([key]) => key),
  );
  const general = check(schema.service, known, report);
  const accessAt = child(entry, 'access');
  const access =
    accessAt && !isEmpty(accessAt) && general ? readAccess(accessAt, providers, report) : around.access;
  if (general) {
    reviewListener(entry, general, access, secretless, report);
    reviewAccess(entry, general.listenOn, access, report);
  }

  const settings = connector && readSettings(entry, connector.settings, report);
  const credentials = readCredentials(entry, connector?.credentials, providers, report);
  if (connector && settings?.parsed) {
    const { problems, warnings } = connector.review(settings.value, new Set(credentials.keys()));
    for (const { path, message } of problems) {
      const { found } = follow(entry, path);
      report.problemOfEntry(found, [...entry.path, ...path], message);
    }
    for (const { path, message } of warnings) {
      const { found } = follow(entry, path);
      report.warnOfEntry({ ...found, path: [...entry.path, ...path] }, message);
    }
  }

  if (!general || connectorName === undefined || report.problems.length > before) return undefined;
  const limits = layer(around.limits, general.limits ?? {});
  const cache = layerCache(around.cache, general.cache ?? {});
  return {
    name,
    connector: connectorName,
    listenOn: general.listenOn,
    socketMode: Number.parseInt(general.socketMode, 8),
    socketOwner: general.socketOwner,
    socketGroup: general.socketGroup,
    access,
    listenTls: general.listenTls && {
      ...general.listenTls,
      passphraseFile: general.listenTls.passphraseFile,
    },
    credentials,
    settings: settings?.value,
    onRotation: general.onRotation,
    limits,
    cache,
    fingerprint: fingerprint(
      `${canonical(entry.tree)} ${JSON.stringify([limits, cache, access?.fingerprint])}`,
    ),
  };
}

function layerCache(
  below: CachePolicy,
  above: { readonly [Key in keyof CachePolicy]?: CachePolicy[Key] | undefined },
): CachePolicy {
  return {
    ttl: above.ttl ?? below.ttl,
    maxStale: above.maxStale ?? below.maxStale,
    linger: above.linger ?? below.linger,
    rotationGrace: above.rotationGrace ?? below.rotationGrace,
    rotationCheck: above.rotationCheck ?? below.rotationCheck,
  };
}

/** `connector`, or Secretless's old word `protocol`. */
function readConnectorName(entry: Located, report: Report): string | undefined {
  const connector = child(entry, 'connector');
  const protocol = child(entry, 'protocol');
  if (entry.tree.kind !== 'map') return undefined;
  if (!connector && !protocol) report.problemOfEntry(entry, [...entry.path, 'connector'], 'is required');
  if (connector && protocol)
    report.problemOfEntry(protocol, protocol.path, 'is an old word for `connector`; give one of them');
  else if (protocol) report.warnOfEntry(protocol, 'is an old word; write `connector` instead');
  return connectorOf(entry);
}

function connectorOf(entry: Located): string | undefined {
  const value = textOf(child(entry, 'connector') ?? child(entry, 'protocol'));
  // Secretless's oldest files say which connector of HTTP it is in the settings.
  const strategy =
    value === 'http' ? textOf(child(child(entry, 'config'), 'authenticationStrategy')) : undefined;
  return strategy !== undefined && secretlessHttp.has(strategy) ? strategy : value;
}

function textOf(place: Located | undefined): string | undefined {
  const value = place?.tree.kind === 'scalar' ? place.tree.value : undefined;
  return typeof value === 'string' && value !== '' ? value : undefined;
}

/** The password is read as credentials are, so that a value in the file is in no message. */
function readAccess(at: Located, providers: ProviderSet, report: Report): AccessConfig | undefined {
  const parsed = check(schema.access, without(at, ['password']), report);
  const passwordAt = child(at, 'password');
  const given = passwordAt && !isEmpty(passwordAt) ? passwordAt : undefined;
  const password = given && readCredential(given, providers, report);
  if (passwordAt && !given)
    report.problem(passwordAt, 'has no value; write `{from: PROVIDER, get: REFERENCE}`');
  if (!parsed) return undefined;
  const { uids, gids, executables, username, maxConnectionsPerPeer, loginRate, loginRatePerPeer } = parsed;
  if (username !== undefined && !passwordAt)
    report.problemOfEntry(at, [...at.path, 'username'], 'means nothing without `password`');
  return {
    uids,
    gids,
    executables,
    username,
    password,
    maxConnectionsPerPeer,
    loginRate,
    loginRatePerPeer,
    fingerprint: fingerprint(canonical(at.tree)),
  };
}

/** Rules that can never hold. */
function reviewAccess(
  entry: Located,
  listenOn: ServiceConfig['listenOn'],
  access: AccessConfig | undefined,
  report: Report,
): void {
  if (listenOn.kind === 'tcp' && access?.gids)
    report.problemOfEntry(
      follow(entry, ['access', 'gids']).found,
      [...entry.path, 'access', 'gids'],
      'cannot be asked of TCP clients: the kernel does not tell their groups; use `uids`, or listen on a unix socket',
    );
}

interface GeneralSettings {
  readonly listenOn: ServiceConfig['listenOn'];
  readonly exposed: boolean;
  readonly socketMode: string;
}

/** What is unsafe or senseless about a service's own address. */
function reviewListener(
  entry: Located,
  general: GeneralSettings,
  access: AccessConfig | undefined,
  secretless: boolean,
  report: Report,
): void {
  const listenAt = child(entry, 'listenOn') ?? entry;
  const { listenOn, exposed, socketMode } = general;
  if (!isLocal(listenOn) && !exposed) {
    const danger =
      `${formatAddress(listenOn)} can be reached from other machines, and whoever reaches it is logged in without a password; ` +
      'listen on 127.0.0.1, or say `exposed: true` in this service if that is what you want';
    if (secretless) report.warnOfEntry(listenAt, danger);
    else report.problem(listenAt, danger);
  }
  if (!isLocal(listenOn) && exposed && !guarded(access))
    report.warnOfEntry(
      listenAt,
      `${formatAddress(listenOn)} can be reached from other machines, and whoever reaches it is logged in without a password; write \`access: { password: { from: PROVIDER, get: REFERENCE } }\` in this service to ask for one`,
    );
  for (const key of ['socketMode', 'socketOwner', 'socketGroup']) {
    const place = child(entry, key);
    if (place && listenOn.kind === 'tcp')
      report.problemOfEntry(place, place.path, 'means nothing here: `listenOn` is not a unix socket');
  }
  const modeAt = child(entry, 'socketMode');
  // Connecting to a unix socket takes the right to write to it.
  if (
    modeAt &&
    listenOn.kind === 'unix' &&
    (Number.parseInt(socketMode, 8) & 0o002) !== 0 &&
    !exposed &&
    !guarded(access)
  )
    report.warnOfEntry(
      modeAt,
      'every user of this machine may connect, and is logged in without a password; "0660" and a group would do',
    );
}

/** Whether more is asked of a client than to reach the port. */
function guarded(access: AccessConfig | undefined): boolean {
  return Boolean(access?.uids ?? access?.gids ?? access?.executables ?? access?.password);
}

function readSettings(
  entry: Located,
  settings: schema.Plugins['connectors'][string]['settings'],
  report: Report,
): { readonly parsed: boolean; readonly value: unknown } {
  const before = report.problems.length;
  const given = child(entry, 'config');
  const nothing: Tree = { kind: 'map', at: entry.keyAt, size: 1, entries: new Map() };
  const config: Located =
    given && !isEmpty(given)
      ? given
      : {
          file: entry.file,
          path: [...entry.path, 'config'],
          keyAt: given?.keyAt ?? entry.keyAt,
          tree: nothing,
        };
  // Not a map at all: the service's own schema has said so.
  if (config.tree.kind !== 'map') return { parsed: false, value: undefined };
  const value: unknown = check(settings, config, report);
  return { parsed: report.problems.length === before, value };
}

function readCredentials(
  entry: Located,
  names: schema.Plugins['connectors'][string]['credentials'] | undefined,
  providers: ProviderSet,
  report: Report,
): Map<string, Reference> {
  const credentials = new Map<string, Reference>();
  const place = child(entry, 'credentials');
  const expected = [...(names?.required ?? []), ...(names?.optional ?? [])];
  for (const [name, credential] of children(place)) {
    if (!schema.entryName.test(name)) {
      // `{username: app, the-password}` makes the password a key: a name that is not one is not repeated.
      report.problemOfEntry(
        credential,
        entry.path,
        'a credential has a name of letters, digits, ".", "_" and "-"',
      );
      continue;
    }
    if (isEmpty(credential)) {
      report.problemOfEntry(
        credential,
        expected.includes(name) ? credential.path : [...entry.path, 'credentials'],
        'a credential has no value; write `{from: PROVIDER, get: REFERENCE}` or the value itself',
      );
      continue;
    }
    if (names && names.others === undefined && !expected.includes(name)) {
      report.problemOfEntry(
        credential,
        credential.path,
        `the connector has no such credential${suggestion(name, expected)}`,
      );
      continue;
    }
    const reference = readCredential(credential, providers, report);
    if (reference) credentials.set(name, reference);
  }
  for (const name of names?.required ?? [])
    if (
      entry.tree.kind === 'map' &&
      !child(place, name) &&
      (!place || isEmpty(place) || place.tree.kind === 'map')
    )
      report.problemOfEntry(place ?? entry, [...entry.path, 'credentials', name], 'is required');
  return credentials;
}

function readCredential(credential: Located, providers: ProviderSet, report: Report): Reference | undefined {
  const { tree } = credential;
  if (tree.kind === 'scalar')
    return providers.refer(literal, tree.text, { from: credential, get: credential });
  if (tree.kind === 'list') {
    report.problem(credential, 'must be `{from: PROVIDER, get: REFERENCE}` or the value itself');
    return undefined;
  }
  const parsed = check(schema.reference, credential, report);
  const from = child(credential, 'from');
  const get = child(credential, 'get');
  if (!parsed || !from || get?.tree.kind !== 'scalar') return undefined;
  return providers.refer(parsed.from, get.tree.text, { from, get });
}

// ── the result ─────────────────────────────────────────────────────────────────────────────────────────────────

/** Dies with the process: fingerprints are compared within one run, and cannot be searched for the secrets in them. */
const fingerprintKey = randomBytes(32);

function fingerprint(text: string): string {
  return createHmac('sha256', fingerprintKey).update(text).digest('base64url');
}

/** One text for all ways to write the same tree. It holds literal secrets, so it is hashed and never kept. */
function canonical(tree: Tree): string {
  if (tree.kind === 'list') return `[${tree.items.map(canonical).join(',')}]`;
  if (tree.kind === 'scalar') return `${typeof tree.value}:${JSON.stringify(tree.text)}`;
  const entries = [...tree.entries].toSorted(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, { value }]) => `${JSON.stringify(key)}:${canonical(value)}`).join(',')}}`;
}

/** Freezes plain objects, lists and maps all the way down; what a schema made of another class is left alone. */
function freeze<Value>(value: Value): Value {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value;
  if (value instanceof Map) {
    for (const inner of value.values()) freeze(inner);
    const refuse = () => {
      throw new TypeError('a configuration does not change');
    };
    return Object.freeze(
      Object.defineProperties(value, {
        set: { value: refuse },
        delete: { value: refuse },
        clear: { value: refuse },
      }),
    );
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== Array.prototype && prototype !== null) return value;
  for (const inner of Object.values(value)) freeze(inner);
  return Object.freeze(value);
}
