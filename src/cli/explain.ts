import { pino } from 'pino';

import type { Config, ProviderConfig, ServiceConfig } from '../config/config.ts';
import { loadConfig } from '../config/load.ts';
import type { Explained, Protocol } from '../connectors/connector.ts';
import { connectors } from '../connectors/index.ts';
import { type Address, formatAddress } from '../core/address.ts';
import { PosternError } from '../core/errors.ts';
import { loadOne } from '../core/table.ts';
import { exitCodes } from './exit-codes.ts';
import { commonFlags, optionsOf, parseWords, UsageError } from './options.ts';

/** The flags of `postern explain`. */
export const explainFlags = {
  ...commonFlags,
  url: { type: 'boolean' },
  json: { type: 'boolean' },
} as const;

/**
 * `postern explain [SERVICE]`: says what a connection to each service would use; `--url METHOD URL` what a request
 * would. Names only: nobody is asked, no value is read.
 */
export async function explain(
  words: readonly string[],
  environment: NodeJS.ProcessEnv,
  say: (text: string) => void = print,
): Promise<number> {
  const { values, positionals } = parseWords(words, explainFlags);
  const options = optionsOf(values, environment);
  const asked = values.url ? requestOf(positionals) : undefined;
  if (!asked && positionals.length > 1)
    throw new UsageError('`postern explain` takes the name of one service');
  const config = await loadConfig(options.configPaths, options.context);
  if (asked) {
    const answers = await explainUrl(config, asked);
    if (values.json)
      say(JSON.stringify({ method: asked.method, url: asked.text, listeners: answers }, null, 2));
    else for (const answer of answers) say(describeAnswer(answer));
    return exitCodes.clean;
  }
  const [name] = positionals;
  const chosen = config.services.filter((service) => name === undefined || service.name === name);
  if (chosen.length === 0) {
    const names = config.services.map((service) => service.name).join(', ');
    throw new PosternError('CONFIG_INVALID', `there is no service of this name; there are ${names}`);
  }
  const facts = chosen.map((service) => factsOf(service, config));
  if (values.json) say(JSON.stringify({ services: facts }, null, 2));
  else say(facts.map(describeFacts).join('\n\n'));
  return exitCodes.clean;
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

// ── what a connection would use ────────────────────────────────────────────────────────────────────────────────

interface Facts {
  readonly service: string;
  readonly connector: string;
  readonly listenOn: string;
  /** Who may connect, as far as the system decides it. */
  readonly reach: string;
  readonly clientTls: string;
  readonly upstream: string;
  readonly upstreamTls: string;
  readonly identity: string;
  readonly credentials: Readonly<Record<string, string>>;
  readonly providers: Readonly<Record<string, string>>;
  readonly limits: Readonly<Record<string, number | string>>;
  readonly cache: Readonly<Record<string, string>>;
}

/** The parts of connectors' settings that are told; each connector has some of them. */
interface Telling {
  readonly host?: string | readonly string[];
  readonly port?: number;
  readonly tls?: { readonly mode?: string; readonly verify?: string; readonly ca?: string };
  readonly upstream?: string;
  readonly authenticate?: Readonly<Record<string, unknown>>;
  readonly database?: string;
  readonly databases?: readonly string[];
  readonly intercept?: unknown;
}

function factsOf(service: ServiceConfig, config: Config): Facts {
  const settings = (service.settings ?? {}) as Telling;
  const { limits, cache } = service;
  const used = new Set([...service.credentials.values()].map(({ provider }) => provider));
  return {
    service: service.name,
    connector: service.connector,
    listenOn: formatAddress(service.listenOn),
    reach: reachOf(service),
    clientTls: service.listenTls ? `with the certificate ${service.listenTls.cert}` : 'none',
    upstream: upstreamOf(service, settings),
    upstreamTls: tlsOf(service, settings),
    identity: identityOf(service, settings),
    credentials: Object.fromEntries(
      [...service.credentials].map(([name, reference]) => [name, describeReference(reference, config)]),
    ),
    providers: Object.fromEntries(
      [...used].flatMap((name) => {
        const provider = config.providers.get(name);
        return provider && provider.kind !== 'literal' ? [[name, describeProvider(provider)]] : [];
      }),
    ),
    limits: {
      maxConnections: limits.maxConnections,
      loginTimeout: time(limits.loginTimeout),
      idleTimeout: limits.idleTimeout === 0 ? 'none' : time(limits.idleTimeout),
      maxSessionAge: limits.maxSessionAge === 0 ? 'none' : time(limits.maxSessionAge),
      drainTimeout: time(limits.drainTimeout),
      minDrainDelay: limits.minDrainDelay === 0 ? 'none' : time(limits.minDrainDelay),
    },
    cache: {
      ttl: cache.ttl === undefined ? 'as suits the connector' : time(cache.ttl),
      maxStale: time(cache.maxStale),
      rotationGrace: time(cache.rotationGrace),
      linger: time(cache.linger),
      onRotation: service.onRotation,
    },
  };
}

function reachOf({ listenOn, socketMode }: ServiceConfig): string {
  if (listenOn.kind === 'unix')
    return `users that the mode ${socketMode.toString(8).padStart(4, '0')} lets in`;
  return isLoopback(listenOn.host) ? 'every user of this machine' : 'whoever reaches this machine';
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

function upstreamOf({ credentials }: ServiceConfig, settings: Telling): string {
  if (settings.upstream !== undefined) return settings.upstream;
  if ('match' in settings || 'authenticateURLsMatching' in settings)
    return 'what its rules match; ask with --url METHOD URL';
  const host = ['host', 'address'].find((name) => credentials.has(name));
  if (host !== undefined) return `as the credential "${host}" says`;
  const port = credentials.has('port') ? 'the credential "port"' : String(settings.port);
  return [settings.host ?? []]
    .flat()
    .map((each) => (each.startsWith('/') ? each : `${each}, port ${port}`))
    .join('; ');
}

function tlsOf({ credentials }: ServiceConfig, { tls, upstream }: Telling): string {
  if (credentials.has('sslmode')) return 'as the credential "sslmode" says';
  if (upstream?.startsWith('http://')) return 'none: http://';
  const mode = tls?.mode ?? (tls?.verify === undefined ? undefined : `verify: ${tls.verify}`);
  if (mode === undefined) return 'none';
  const ca = credentials.has('sslrootcert') || credentials.has('tlsCa') ? 'a credential' : tls?.ca;
  return ca === undefined ? mode : `${mode}, with the CA of ${ca}`;
}

function identityOf({ credentials }: ServiceConfig, settings: Telling): string {
  if (settings.authenticate) return `by ${Object.keys(settings.authenticate).join(' and ')}`;
  const user = credentials.has('username') ? 'the credential "username"' : undefined;
  if (user === undefined) return 'by its credentials';
  const { database, databases } = settings;
  const where =
    database === undefined
      ? (databases && `, databases ${databases.join(', ')}`) || ', the database that the client asks for'
      : `, database ${database}`;
  return `${user}${where}`;
}

/** A value that stands in the file is not told, nor is its reference, which is the value. */
function describeReference(
  { provider, get }: { provider: string; get: string },
  { providers }: Config,
): string {
  return providers.get(provider)?.kind === 'literal'
    ? 'a value of the configuration'
    : `${get} from ${provider}`;
}

function describeProvider({ kind, settings }: ProviderConfig): string {
  const { address, auth } = (settings ?? {}) as {
    readonly address?: string;
    readonly auth?: { readonly method?: string };
  };
  const told = [kind, address && `at ${address}`, auth?.method && `by ${auth.method}`];
  return told.filter(Boolean).join(' ');
}

function time(milliseconds: number): string {
  return milliseconds % 1000 === 0 ? `${milliseconds / 1000} s` : `${milliseconds} ms`;
}

function describeFacts(facts: Facts): string {
  const pairs = (values: Readonly<Record<string, unknown>>) =>
    Object.entries(values)
      .map(([key, value]) => `${key} ${String(value)}`)
      .join(', ');
  const rows: [string, string][] = [
    ['listens on', `${facts.listenOn}, for ${facts.reach}`],
    ['client TLS', facts.clientTls],
    ['connects to', facts.upstream],
    ['server TLS', facts.upstreamTls],
    ['logs in', facts.identity],
    ...Object.entries(facts.credentials).map(([name, from]): [string, string] => [
      'credential',
      `${name}: ${from}`,
    ]),
    ...Object.entries(facts.providers).map(([name, what]): [string, string] => [
      'provider',
      `${name}: ${what}`,
    ]),
    ['limits', pairs(facts.limits)],
    ['cache', pairs(facts.cache)],
  ];
  return [
    `${facts.service} (${facts.connector})`,
    ...rows.map(([left, right]) => `  ${left.padEnd(12)} ${right}`),
  ].join('\n');
}

// ── what a request would ───────────────────────────────────────────────────────────────────────────────────────

interface Asked {
  readonly method: string;
  readonly text: string;
  readonly url: URL;
  readonly path: string;
}

/** What one listener makes of the request. */
type Answer = { readonly listener: string; readonly services: readonly string[] } & (
  | ({ readonly allowed: true; readonly credentials: Readonly<Record<string, string>> } & Explained)
  | { readonly allowed: false; readonly code: string; readonly reason: string }
);

function requestOf(positionals: readonly string[]): Asked {
  const [first, second] = positionals;
  const [method, text] = second === undefined ? ['GET', first] : [first, second];
  const path = /^https?:\/\/[^/?#]+([^#]*)/i.exec(text ?? '')?.[1];
  const url = URL.parse(text ?? '');
  if (!method || text === undefined || path === undefined || !url || positionals.length > 2)
    throw new UsageError('write `postern explain --url METHOD URL`, with an http:// or https:// URL');
  return { method, text, url, path: path.startsWith('/') ? path : `/${path}` };
}

async function explainUrl(config: Config, asked: Asked): Promise<Answer[]> {
  const speaking = config.services.filter(({ connector, settings }) => isHttp(connector, settings));
  if (speaking.length === 0)
    throw new PosternError('CONFIG_INVALID', 'no service of the configuration speaks HTTP');
  const listeners = [...Map.groupBy(speaking, listenerOf).values()];
  const answers = await Promise.all(listeners.map((services) => answerOf(services, asked, config)));
  // Who asks for a listener's own URL does not want to hear what the others are no proxies for.
  const own = answers.filter((_, i) => isOwn(listeners[i]?.[0]?.listenOn, asked.url));
  return own.length > 0 ? own : answers;
}

function listenerOf({ name, listenOn }: ServiceConfig): string {
  const text = formatAddress(listenOn);
  return listenOn.kind === 'tcp' && listenOn.port === 0 ? `${text} (${name})` : text;
}

function isHttp(connector: string, settings: unknown): boolean {
  return (
    ['http', 'basic_auth', 'conjur', 'aws', 'generic_http'].includes(connector) && settings !== undefined
  );
}

function isOwn(address: Address | undefined, url: URL): boolean {
  if (address?.kind !== 'tcp') return false;
  const port = Number(url.port || (url.protocol === 'https:' ? 443 : 80));
  return port === address.port && isLoopback(url.hostname.replace(/^\[|\]$/g, ''));
}

async function answerOf(services: readonly ServiceConfig[], asked: Asked, config: Config): Promise<Answer> {
  const listener = listenerOf(services[0] as ServiceConfig);
  const common = { listener, services: services.map(({ name }) => name) };
  const protocols = await Promise.all(services.map(openIdle));
  try {
    const [first] = protocols;
    first?.join?.(protocols);
    const toListener = isOwn(services[0]?.listenOn, asked.url);
    const found = first?.explain?.({ ...asked, toListener });
    if (!found) throw new PosternError('INTERNAL', 'the connector does not explain itself');
    const references = services.find(({ name }) => name === found.service)?.credentials ?? new Map();
    const credentials = Object.fromEntries(
      [...references].map(([name, reference]) => [name, describeReference(reference, config)]),
    );
    return { ...common, allowed: true, ...found, credentials };
  } catch (thrown) {
    const { code, message } = PosternError.from(thrown);
    return { ...common, allowed: false, code, reason: message };
  } finally {
    for (const protocol of protocols) protocol.close?.();
  }
}

/** The service as it would be opened, but for what it would read or fetch. */
async function openIdle({ name, connector, settings, limits }: ServiceConfig): Promise<Protocol> {
  const { intercept, ...rest } = settings as { readonly intercept?: object };
  const idle = {
    ...rest,
    reads: 'data',
    ...(intercept && { intercept: { ...intercept, caCert: undefined } }),
  };
  const opened = (await loadOne(connectors, connector))?.open(idle, {
    name,
    log: pino({ level: 'silent' }),
    loginTimeout: limits.loginTimeout,
    idleTimeout: limits.idleTimeout,
    prepare: () => ({
      current: undefined,
      get: async () => {
        throw new PosternError('INTERNAL', 'an explanation needs no credential');
      },
      reject: () => {},
    }),
  });
  if (!opened) throw new PosternError('INTERNAL', `no connector is called "${connector}"`);
  return opened;
}

function describeAnswer(answer: Answer): string {
  const head = `${answer.listener} (${answer.services.join(', ')})`;
  if (!answer.allowed) return `${head}\n  refused      ${answer.code}: ${answer.reason}`;
  const rows: [string, string][] = [
    ['service', answer.service],
    ['asks for', answer.upstream],
    ...answer.headers.map((name): [string, string] => ['header', name]),
    ...answer.query.map((name): [string, string] => ['parameter', name]),
    ...Object.entries(answer.credentials).map(([name, from]): [string, string] => [
      'credential',
      `${name}: ${from}`,
    ]),
  ];
  return [head, ...rows.map(([left, right]) => `  ${left.padEnd(12)} ${right}`)].join('\n');
}
