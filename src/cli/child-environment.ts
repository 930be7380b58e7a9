import { userInfo } from 'node:os';

import type { Config, ServiceConfig } from '../config/config.ts';
import type { Address } from '../core/address.ts';
import { PosternError } from '../core/errors.ts';

/** A service of `postern exec`, and where it really listens. */
export interface OpenService {
  readonly config: ServiceConfig;
  readonly address: Address;
}

/** Files by which the child's HTTP clients trust the certificates that `intercept` makes. */
export interface Trust {
  /** The configured authorities alone. */
  readonly certificate: string;
  /** Those, and the machine's own. */
  readonly bundle: string;
}

/** What the environment of the child is made of. */
export interface Surroundings {
  readonly services: readonly OpenService[];
  readonly providers: Config['providers'];
  /** Names, or beginnings of names with a `*` behind them, that stay although they may hold a credential. */
  readonly keep: readonly string[];
  readonly trust: Trust | undefined;
}

/**
 * Variables in which the credentials of providers are, or by which one gets them, whatever is configured: a token that
 * nobody uses here opens its store as well as one that is used.
 */
const credentialVariables: readonly RegExp[] = [
  /^POSTERN_/,
  /^(VAULT|BAO)_(.*TOKEN|.*SECRET.*|.*PASSWORD.*|.*ROLE_?ID.*|CLIENT_KEY.*)$/,
  /^CONJUR_AUTHN_(LOGIN|API_KEY|TOKEN|TOKEN_FILE|JWT_TOKEN)$/,
  /^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN|WEB_IDENTITY_TOKEN_FILE|CONTAINER_.*)$/,
  /^AZURE_(CLIENT_SECRET|CLIENT_CERTIFICATE_.*|PASSWORD|FEDERATED_TOKEN_FILE)$/,
  /^(IDENTITY|MSI)_(HEADER|SECRET)$/,
  /^(GOOGLE_APPLICATION_CREDENTIALS|GOOGLE_CREDENTIALS|CLOUDSDK_AUTH_.*)$/,
  // What the programs of password managers take, which the provider `exec` runs.
  /^(OP_SERVICE_ACCOUNT_TOKEN|OP_CONNECT_TOKEN|OP_SESSION_.*|BW_(SESSION|CLIENTSECRET|PASSWORD)|DOPPLER_TOKEN|INFISICAL_.*(TOKEN|SECRET).*)$/,
];

/** What libpq takes from the environment and what would lead it past the listener, or have it ask for what is not there. */
const misleadingForLibpq = [
  'PGHOSTADDR',
  'PGSERVICE',
  'PGPASSWORD',
  'PGPASSFILE',
  'PGSSLNEGOTIATION',
  'PGSSLCERT',
  'PGSSLKEY',
  'PGSSLROOTCERT',
  'PGCHANNELBINDING',
  'PGREQUIREAUTH',
];
const misleadingForMySql = ['MYSQL_PWD'];

/** The user name for clients that have to say one; it decides nothing. */
const anybody = 'postern';
/** A database that every server has, for clients that have to name one. */
const anyDatabase = 'postgres';

/**
 * The environment of a child process: the given one without what is secret in it, with what its clients need to find
 * the services. Also says, by name, what was left out. Throws CONFIG_INVALID when two services would share a variable.
 */
export function childEnvironment(
  given: Readonly<NodeJS.ProcessEnv>,
  { services, providers, keep, trust }: Surroundings,
): { readonly environment: NodeJS.ProcessEnv; readonly removed: readonly string[] } {
  const environment: NodeJS.ProcessEnv = { ...given };
  const kept = (name: string) =>
    keep.some((each) => (each.endsWith('*') ? name.startsWith(each.slice(0, -1)) : name === each));
  const read = new Set([...variablesOfReferences(services, providers), ...variablesOfProviders(providers)]);
  const isSecret = (name: string) =>
    read.has(name) || credentialVariables.some((pattern) => pattern.test(name));
  const speaking = new Set(services.map(({ config }) => protocolOf(config)));
  const misleading = new Set([
    ...(speaking.has('postgres') ? misleadingForLibpq : []),
    ...(speaking.has('mysql') ? misleadingForMySql : []),
  ]);
  const removed = Object.keys(given).filter(
    (name) => !kept(name) && (isSecret(name) || misleading.has(name)),
  );
  for (const name of removed) delete environment[name];
  Object.assign(environment, variablesOf(services, environment), trust && trustVariables(trust));
  return { environment, removed };
}

/** What `{from: env, get: NAME}` reads, and the file that may stand for it. */
function variablesOfReferences(
  services: readonly OpenService[],
  providers: Config['providers'],
): readonly string[] {
  return services.flatMap(({ config }) =>
    [...config.credentials.values()]
      .filter(({ provider }) => providers.get(provider)?.kind === 'env')
      .flatMap(({ get }) => [get, `${get}_FILE`]),
  );
}

/** What settings of providers name as a variable that holds a credential (`tokenEnv`), or that a program is to get. */
function variablesOfProviders(providers: Config['providers']): readonly string[] {
  const named: string[] = [];
  const search = (settings: unknown): void => {
    if (typeof settings !== 'object' || settings === null) return;
    for (const [key, value] of Object.entries(settings)) {
      if (key.endsWith('Env')) named.push(...[value].flat().filter((each) => typeof each === 'string'));
      else search(value);
    }
  };
  for (const { settings } of providers.values()) search(settings);
  return named;
}

/** Which family of clients speaks to a service. */
type Protocol = 'postgres' | 'mysql' | 'http' | 'proxy' | 'other';

/** What clients a service is for; a forward proxy is another thing to them than a server. */
export function protocolOf({ connector, settings }: ServiceConfig): Protocol {
  switch (connector) {
    case 'postgres':
    case 'pg':
      return 'postgres';
    case 'mysql':
      return 'mysql';
    case 'http':
      return (settings as { readonly upstream?: string }).upstream === undefined ? 'proxy' : 'http';
    case 'basic_auth':
    case 'conjur':
    case 'aws':
    case 'generic_http':
      return 'proxy';
    default:
      return 'other';
  }
}

function variablesOf(
  services: readonly OpenService[],
  given: Readonly<NodeJS.ProcessEnv>,
): Record<string, string> {
  const variables: Record<string, string> = {};
  const owners = new Map<string, string>();
  for (const service of services) {
    const { name } = service.config;
    const prefix = prefixOf(name);
    const owner = owners.get(prefix);
    if (owner !== undefined)
      throw new PosternError(
        'CONFIG_INVALID',
        `the services "${owner}" and "${name}" would share the variables ${prefix}_...: rename one of them`,
      );
    owners.set(prefix, name);
    for (const [key, value] of Object.entries(ownVariables(service, given)))
      variables[`${prefix}_${key}`] = value;
  }
  const first = (protocol: Protocol) => services.find(({ config }) => protocolOf(config) === protocol);
  const [postgres, mysql, proxy] = [first('postgres'), first('mysql'), first('proxy')];
  return {
    ...variables,
    ...(postgres && libpqVariables(postgres, given)),
    ...(mysql && mysqlVariables(mysql)),
    ...(proxy?.address.kind === 'tcp' &&
      proxyVariables(urlOf(proxy.address, proxy.config), given['NO_PROXY'] ?? given['no_proxy'])),
  };
}

/** `orders-db` is ORDERS_DB; a variable does not begin with a digit. */
function prefixOf(name: string): string {
  return name
    .toUpperCase()
    .replaceAll(/[^A-Z0-9]/g, '_')
    .replace(/^\d/, '_$&');
}

function ownVariables(
  { config, address }: OpenService,
  given: Readonly<NodeJS.ProcessEnv>,
): Record<string, string> {
  const protocol = protocolOf(config);
  if (protocol === 'http' || protocol === 'proxy' || protocol === 'other')
    return address.kind === 'unix'
      ? { SOCKET: address.path }
      : { ...placeOf(address), ...(protocol !== 'other' && { URL: urlOf(address, config) }) };
  const database = databaseOf(config, given);
  const at = protocol === 'postgres' ? 'postgresql' : 'mysql';
  const path = database === undefined ? '' : encodeURIComponent(database);
  if (address.kind === 'tcp') {
    const plain = protocol === 'postgres' && !config.listenTls ? '?sslmode=disable' : '';
    const { HOST, PORT } = placeOf(address);
    const host = HOST.includes(':') ? `[${HOST}]` : HOST;
    return { HOST, PORT, URL: `${at}://${anybody}@${host}:${PORT}/${path}${plain}` };
  }
  if (protocol === 'mysql')
    return {
      HOST: 'localhost',
      SOCKET: address.path,
      URL: `mysql://${anybody}@localhost/${path}?socket=${encodeURIComponent(address.path)}`,
    };
  const libpq = libpqSocket(address.path);
  if (!libpq) return { SOCKET: address.path };
  const query = `host=${encodeURIComponent(libpq.folder)}&port=${libpq.port}`;
  return {
    HOST: libpq.folder,
    PORT: libpq.port,
    SOCKET: address.path,
    URL: `postgresql://${anybody}@/${path}?${query}`,
  };
}

function libpqVariables({ config, address }: OpenService, given: Readonly<NodeJS.ProcessEnv>) {
  const place = address.kind === 'tcp' ? placeOf(address) : libpqSocket(address.path);
  if (!place) return {};
  const [host, port] = 'HOST' in place ? [place.HOST, place.PORT] : [place.folder, place.port];
  return {
    PGHOST: host,
    PGPORT: port,
    PGUSER: given['PGUSER'] || userName(),
    PGDATABASE: databaseOf(config, given) ?? anyDatabase,
    ...(!config.listenTls && { PGSSLMODE: 'disable' }),
  };
}

function mysqlVariables({ address }: OpenService) {
  // Clients of MySQL take the word localhost, and no address, for the unix socket.
  if (address.kind === 'unix') return { MYSQL_HOST: 'localhost', MYSQL_UNIX_PORT: address.path };
  const { HOST, PORT } = placeOf(address);
  return { MYSQL_HOST: HOST, MYSQL_TCP_PORT: PORT };
}

/** The database that a client is to ask for: libpq would else take the name of the user. */
function databaseOf({ connector, settings }: ServiceConfig, given: Readonly<NodeJS.ProcessEnv>) {
  const { database, databases } = settings as {
    readonly database?: string;
    readonly databases?: readonly string[];
  };
  if (database !== undefined) return database;
  if (connector === 'mysql') return databases?.[0];
  return given['PGDATABASE'] || (databases?.[0] ?? anyDatabase);
}

/** libpq does not start for a user that the machine has no name for, as in a container. */
function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return anybody;
  }
}

/** What libpq calls host and port of a unix socket; undefined when its name is not of libpq's making. */
function libpqSocket(path: string): { readonly folder: string; readonly port: string } | undefined {
  const [, folder, port] = /^(.*)\/\.s\.PGSQL\.(\d+)$/.exec(path) ?? [];
  return folder && port ? { folder, port } : undefined;
}

/** Where to connect to, when a listener is on every address of the machine. */
function placeOf({ host, port }: Extract<Address, { kind: 'tcp' }>) {
  return { HOST: { '0.0.0.0': '127.0.0.1', '::': '::1' }[host] ?? host, PORT: String(port) };
}

/** The URL of an HTTP listener. */
export function urlOf(
  address: Extract<Address, { kind: 'tcp' }>,
  { listenTls }: Pick<ServiceConfig, 'listenTls'>,
) {
  const { HOST, PORT } = placeOf(address);
  return `${listenTls ? 'https' : 'http'}://${HOST.includes(':') ? `[${HOST}]` : HOST}:${PORT}`;
}

const notForProxies = ['localhost', '127.0.0.1', '::1'];

/** The variables by which HTTP clients find their proxy; `besides` are hosts that were reached without one before. */
export function proxyVariables(proxy: string, besides = ''): Record<string, string> {
  const own = new Set([...notForProxies, ...besides.split(',').map((host) => host.trim())]);
  // All hosts: there would be no proxy at all.
  own.delete('*');
  own.delete('');
  const hosts = [...own].join(',');
  return {
    // curl reads http_proxy in small letters only, because a CGI script's caller decides about HTTP_PROXY.
    http_proxy: proxy,
    HTTP_PROXY: proxy,
    https_proxy: proxy,
    HTTPS_PROXY: proxy,
    no_proxy: hosts,
    NO_PROXY: hosts,
    NODE_USE_ENV_PROXY: '1',
  };
}

/** Variables with a file that is read beside the authorities that a program has. */
const adding = ['NODE_EXTRA_CA_CERTS', 'DENO_CERT'] as const;
/** Variables with a file that is read in their place. */
const replacing = [
  'SSL_CERT_FILE',
  'REQUESTS_CA_BUNDLE',
  'CURL_CA_BUNDLE',
  'GIT_SSL_CAINFO',
  'PIP_CERT',
  'AWS_CA_BUNDLE',
  'CARGO_HTTP_CAINFO',
  'npm_config_cafile',
] as const;

/** The variables by which HTTP clients find the authorities that they are to trust. */
export function trustVariables({ certificate, bundle }: Trust): Record<string, string> {
  return Object.fromEntries([
    ...adding.map((name) => [name, certificate]),
    ...replacing.map((name) => [name, bundle]),
  ]);
}
