import { Document, isMap, isScalar, type Node } from 'yaml';

import { isLocal, listenAddress } from './listen.ts';
import { ignoredServiceKeys, isSecretlessService, secretlessHttp } from './secretless.ts';
import type { Path, Tree } from './yaml.ts';

/** A configuration of Secretless in Postern's own form. */
export interface Conversion {
  /** The YAML of it, with a comment wherever a default of Secretless had to be written down. */
  readonly text: string;
  /** What could not be taken over, a sentence each: names, never values. */
  readonly leftOut: readonly string[];
}

/** What is written: a file, or a Configuration of postern.dev/v1alpha1 for the cluster. */
export type Form = 'file' | 'crd';

/** One YAML document, and what to call it. */
export interface SourceDocument {
  readonly where: string;
  readonly tree: Tree;
}

type Values = { [key: string]: unknown };

/**
 * Turns files of Secretless (version 2, version 1, and its custom resources in Kubernetes) into one configuration that
 * means the same: what Secretless does without a word is written down beside the reason to change it.
 */
export function convert(documents: readonly SourceDocument[], form: Form = 'file'): Conversion {
  const draft = new Draft();
  for (const { where, tree } of documents) readDocument(valueOf(tree), where, draft);
  return { text: draft.print(form), leftOut: draft.leftOut };
}

// ── the forms that Secretless reads ────────────────────────────────────────────────────────────────────────────

function readDocument(value: unknown, where: string, draft: Draft): void {
  const top = asMap(value);
  if (top['kind'] === 'List') {
    for (const item of asList(top['items'])) readDocument(item, where, draft);
    return;
  }
  if (top['kind'] === 'Configuration' && /^secretless[^/]*\.io\/v1$/.test(text(top['apiVersion']))) {
    const metadata = asMap(top['metadata']);
    const name = text(metadata['name']);
    draft.metadata ??= {
      ...(name !== '' && { name }),
      ...(text(metadata['namespace']) !== '' && { namespace: text(metadata['namespace']) }),
    };
    readVersion1(asMap(top['spec']), `the Configuration "${name}" of ${where}`, draft);
    return;
  }
  if (String(top['version']) === '2') {
    const { version: _, services, ...others } = top;
    for (const [key, other] of Object.entries(others)) draft.others[key] = other;
    for (const [name, service] of Object.entries(asMap(services)))
      readService(name, asMap(service), where, draft);
    return;
  }
  if (top['listeners'] !== undefined || top['handlers'] !== undefined) readVersion1(top, where, draft);
  else draft.leaveOut(where, 'is neither a file of Secretless nor one of its Configuration resources');
}

/** Listeners and handlers, joined as Secretless does it: an HTTP listener has all its handlers, another its first one. */
function readVersion1(top: Values, where: string, draft: Draft): void {
  const handlers = asList(top['handlers']).map(asMap);
  const listeners = asList(top['listeners']).map(asMap);
  const names = new Set(listeners.map(({ name }) => text(name)));
  for (const { name, listener } of handlers)
    if (!names.has(text(listener)))
      draft.leaveOut(where, `the handler "${text(name)}" has no listener "${text(listener)}"`);
  for (const listener of listeners) {
    const linked = handlers.filter((handler) => text(handler['listener']) === text(listener['name']));
    const isHttp = listener['protocol'] === 'http';
    const used = isHttp ? linked : linked.slice(0, 1);
    for (const ignored of linked.slice(used.length))
      draft.leaveOut(
        where,
        `the handler "${text(ignored['name'])}" is not the first of its listener, so Secretless never uses it`,
      );
    if (used.length === 0) draft.leaveOut(where, `the listener "${text(listener['name'])}" has no handler`);
    for (const handler of used) readService(text(handler['name']), joined(listener, handler), where, draft);
  }
}

function joined(listener: Values, handler: Values): Values {
  const isHttp = listener['protocol'] === 'http';
  const credentials = asList(handler['credentials']).map(asMap);
  return {
    connector: isHttp ? text(handler['type']).replace(/^http\//, '') : listener['protocol'],
    listenOn: text(listener['address'])
      ? `tcp://${text(listener['address'])}`
      : `unix://${text(listener['socket'])}`,
    credentials: Object.fromEntries(
      credentials.map(({ name, provider, id }) => [
        text(name),
        provider === 'literal' ? id : { from: provider, get: id },
      ]),
    ),
    ...(isHttp && { config: { authenticateURLsMatching: handler['match'] } }),
  };
}

// ── services ───────────────────────────────────────────────────────────────────────────────────────────────────

/** A service while it is written: `note` says something in front of one of its keys. */
interface Writing {
  readonly service: Values;
  readonly note: (path: readonly string[], comment: string) => void;
}

const known = new Set(['postgres', 'pg', 'mysql', 'http', ...secretlessHttp]);

function readService(given: string, entry: Values, where: string, draft: Draft): void {
  const { protocol, ...rest } = entry;
  const config = asMap(rest['config']);
  const said = text(rest['connector'] ?? protocol);
  const strategy = text(config['authenticationStrategy']);
  const connector = said === 'http' && secretlessHttp.has(strategy) ? strategy : said;
  if (!known.has(connector)) {
    draft.leaveOut(where, `the service "${given}": Postern has no connector "${connector}"`);
    return;
  }
  const name = draft.nameFor(given, where);
  const service: Values = { connector, ...rest };
  service['connector'] = connector;
  draft.services[name] = service;
  const writing: Writing = {
    service,
    note: (path, comment) => draft.comments.push({ path: ['services', name, ...path], comment }),
  };
  if (!isSecretlessService(connector, Object.keys(config).length > 0)) return;
  for (const key of ignoredServiceKeys.keys())
    if (key in service) {
      delete service[key];
      writing.note(['connector'], `\`${key}\` is left out: it has no effect, in Secretless neither.`);
    }
  convertListener(writing);
  if (connector === 'pg') convertPostgres(writing, config);
  else if (connector === 'mysql') convertMySql(writing, config);
  else convertHttp(writing, connector, config);
}

function convertListener({ service, note }: Writing): void {
  const address = listenAddress.safeParse(service['listenOn']).data;
  if (!address) return;
  if (address.kind === 'unix' && service['socketMode'] === undefined)
    note(
      ['listenOn'],
      'Only Postern\'s own user may connect (mode 0600). `socketMode: "0660"` lets a group in, as Secretless\'s umask did.',
    );
  if (isLocal(address) || service['exposed'] !== undefined) return;
  service['exposed'] = true;
  note(
    ['exposed'],
    'Other machines can reach this address, and are logged in without a password. Without this line, listen on 127.0.0.1.',
  );
}

const serverKeys = {
  host: ['host'],
  port: ['port'],
  sslmode: ['tls', 'mode'],
  sslhost: ['tls', 'serverName'],
} as const;

/** Takes what is written into the file out of the credentials, to where settings belong. What is fetched stays. */
function moveServer(credentials: Values, config: Values): void {
  if (isLiteral(credentials['address']) && credentials['host'] === undefined) {
    credentials['host'] = credentials['address'];
    delete credentials['address'];
  }
  for (const [name, [key, inner]] of Object.entries(serverKeys) as [string, readonly [string, string?]][]) {
    const value = credentials[name];
    if (!isLiteral(value)) continue;
    delete credentials[name];
    if (value === '') continue;
    if (inner === undefined) config[key] = name === 'port' ? Number(value) : value;
    else config[key] = { ...asMap(config[key]), [inner]: value };
  }
}

const unverified =
  "Secretless's default: TLS that does not verify the server, so a man in the middle goes unnoticed. Better: delete this line (`verify-full` is the default), and add `ca: FILE` where the CA is your own.";

/** Writes the mode down that Secretless has when nothing is said; returns whether the server is verified. */
function spellMode({ service, note }: Writing, credentials: Values, config: Values): boolean {
  const tls = asMap(config['tls']);
  if (credentials['sslmode'] !== undefined) return false;
  const mode = text(tls['mode']) || 'require';
  config['tls'] = { ...tls, mode };
  service['config'] = config;
  if (mode === 'require') note(['config', 'tls', 'mode'], unverified);
  if (mode === 'disable') note(['config', 'tls', 'mode'], 'Queries and results travel in clear.');
  return mode.startsWith('verify');
}

function convertPostgres(writing: Writing, given: Values): void {
  const { service, note } = writing;
  const credentials = { ...asMap(service['credentials']) };
  const config = { ...given };
  service['connector'] = 'postgres';
  service['credentials'] = credentials;
  service['config'] = config;
  moveServer(credentials, config);
  const own = new Set([
    'username',
    'password',
    'host',
    'address',
    'port',
    'sslmode',
    'sslrootcert',
    'sslcert',
    'sslkey',
    'sslpassword',
    'sslhost',
  ]);
  const pinned = Object.entries(credentials).filter(([name, value]) => !own.has(name) && isLiteral(value));
  if (pinned.length > 0) {
    const parameters = asMap(config['parameters']);
    for (const [name] of pinned) delete credentials[name];
    const set = Object.fromEntries(pinned.map(([name, value]) => [name, String(value)]));
    config['parameters'] = { ...parameters, set: { ...asMap(parameters['set']), ...set } };
    note(
      ['config', 'parameters'],
      'Sent to the server, and no client can override it; in Secretless a client could.',
    );
  }
  const verified = spellMode(writing, credentials, config);
  if (!verified && config['allowAuth'] === undefined) {
    config['allowAuth'] = ['password', 'md5'];
    note(
      ['config', 'allowAuth'],
      'As Secretless does, the password may be shown to a server that is not verified. Delete this line where it is.',
    );
  }
}

const mysqlCredentials = new Set([
  'username',
  'password',
  'host',
  'port',
  'sslmode',
  'sslrootcert',
  'sslcert',
  'sslkey',
  'sslpassword',
  'sslhost',
]);

function convertMySql(writing: Writing, given: Values): void {
  const { service, note } = writing;
  const credentials = { ...asMap(service['credentials']) };
  if (!isLiteral(credentials['host'])) {
    note(
      ['connector'],
      "Without `config.host` this service keeps Secretless's defaults: its host is fetched.",
    );
    return;
  }
  const config = { ...given };
  service['credentials'] = credentials;
  service['config'] = config;
  moveServer(credentials, config);
  for (const name of Object.keys(credentials))
    if (!mysqlCredentials.has(name)) {
      delete credentials[name];
      note(['credentials'], `\`${name}\` is left out: it has no effect, in Secretless neither.`);
    }
  const verified = spellMode(writing, credentials, config);
  if (text(asMap(config['tls'])['mode']) === 'require' && credentials['sslrootcert'] !== undefined) {
    delete credentials['sslrootcert'];
    note(
      ['credentials'],
      '`sslrootcert` is left out: Secretless does not look at it in mode `require`. With `verify-full` it would count.',
    );
  }
  const laxer: readonly (readonly [key: string, value: unknown, why: string])[] = [
    ...(verified
      ? []
      : ([
          [
            'allowAuth',
            ['mysql_clear_password', 'sha256_password', 'caching_sha2_password'],
            'As Secretless does, the password may be shown to a server that is not verified. Delete this line where it is.',
          ],
          [
            'allowPublicKeyRetrieval',
            true,
            'Without TLS, the password is encrypted to the key of whoever answers. Delete this line where there is TLS.',
          ],
        ] as const)),
    [
      'allowLocalInfile',
      true,
      'The server may ask the application for files (LOAD DATA LOCAL). Delete this line where that is not needed.',
    ],
  ];
  for (const [key, value, why] of laxer) {
    if (config[key] !== undefined) continue;
    config[key] = value;
    note(['config', key], why);
  }
}

function convertHttp({ service, note }: Writing, connector: string, given: Values): void {
  const { authenticateURLsMatching, authenticationStrategy: _, forceSSL, ...config } = given;
  const patterns = [authenticateURLsMatching ?? []].flat().map(text);
  const rules = patterns.map(ruleOf);
  const authenticate = authenticationOf(connector, config);
  const match = rules.filter((rule) => rule !== undefined);
  if (!authenticate || match.length < rules.length || match.length === 0) {
    note(
      ['connector'],
      authenticate
        ? "Kept: its `authenticateURLsMatching` is not of the form ^http://host/, so no rule of Postern's own says the same."
        : "Kept: nothing in Postern's own connector `http` means exactly the same.",
    );
    // The connector has its name by now.
    const { authenticationStrategy: __, ...kept } = given;
    if (Object.keys(given).length > 0) service['config'] = kept;
    return;
  }
  for (const key of ['headers', 'queryParams', 'oauth1', 'credentialValidations']) delete config[key];
  service['connector'] = 'http';
  const inClear = forceSSL !== true && match.some((rule) => rule.startsWith('http:'));
  service['config'] = {
    match,
    ...(forceSSL === true && { forceTls: true }),
    ...(inClear && { allowPlainHttp: true }),
    authenticate,
    ...config,
  };
  note(
    ['connector'],
    'Where SECRETLESS_HTTP_CA_BUNDLE named a file, write `tls: { ca: FILE }` under `config`.',
  );
  if (inClear)
    note(
      ['config', 'allowPlainHttp'],
      'As in Secretless without `forceSSL`, the credential travels in clear. Better, where the servers speak TLS: `forceTls: true`.',
    );
}

/** A rule that says the same as one of Secretless's expressions, where there is one. */
function ruleOf(pattern: string): string | undefined {
  const [, scheme, host, port = ''] =
    /^\^(https?):\/\/((?:[a-z0-9_-]|\\\.)+)(:\d+)?\/(?:\.\*\$?)?$/.exec(pattern.replaceAll('\\/', '/')) ?? [];
  return scheme && host && `${scheme}://${host.replaceAll('\\.', '.')}${port}/**`;
}

function authenticationOf(connector: string, config: Values): Values | undefined {
  switch (connector) {
    case 'basic_auth':
      return { basic: {} };
    case 'conjur':
      return { conjur: 'accessToken' };
    case 'generic_http': {
      const { headers, queryParams, oauth1, credentialValidations } = config;
      const plain = oauth1 === undefined && Object.keys(asMap(credentialValidations)).length === 0;
      if (!plain || (headers === undefined && queryParams === undefined)) return undefined;
      return {
        ...(headers !== undefined && { headers }),
        ...(queryParams !== undefined && { query: queryParams }),
      };
    }
    default:
      return undefined;
  }
}

// ── values, and writing them ───────────────────────────────────────────────────────────────────────────────────

/** As it was written: a password of digits keeps its zeros. */
function valueOf(tree: Tree): unknown {
  if (tree.kind === 'map')
    return Object.fromEntries([...tree.entries].map(([key, entry]) => [key, valueOf(entry.value)]));
  if (tree.kind === 'list') return tree.items.map(valueOf);
  const { value, text: written } = tree;
  return typeof value === 'string' || value === null || String(value) === written ? value : written;
}

function asMap(value: unknown): Values {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Values) : {};
}

function asList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function text(value: unknown): string {
  return typeof value === 'string' || typeof value === 'number' ? String(value) : '';
}

function isLiteral(value: unknown): boolean {
  return value !== undefined && value !== null && typeof value !== 'object';
}

const opening =
  ' Converted from Secretless by `postern convert`. It means the same; the comments say where a default of Secretless is\n written down that Postern would not have, and what would be better. Try it with `postern check`.';

/** A resource has a reference for each credential: a value is one to `literal`, and always text. */
function withReferences({ credentials, ...service }: Values): Values {
  if (credentials === undefined || credentials === null) return service;
  const references = Object.entries(asMap(credentials)).map(([name, credential]) => {
    const { from, get } = isLiteral(credential) ? { from: 'literal', get: credential } : asMap(credential);
    return [name, { from, get: text(get) || String(get) }];
  });
  return { ...service, credentials: Object.fromEntries(references) };
}

/** The configuration while it is put together. */
class Draft {
  readonly others: Values = {};
  readonly services: Values = {};
  readonly comments: { readonly path: Path; readonly comment: string }[] = [];
  readonly leftOut: string[] = [];
  /** Of the first resource that was read. */
  metadata: Values | undefined;

  leaveOut(where: string, what: string): void {
    this.leftOut.push(`${where}: ${what}`);
  }

  /** Two files may have services of one name: they have to be told apart. */
  nameFor(given: string, where: string): string {
    const plain = given.replaceAll(/[^\w.-]/g, '-').slice(0, 120) || 'service';
    if (plain !== given) this.leaveOut(where, `the service "${plain}" had a name that Postern does not take`);
    let name = plain;
    for (let i = 2; Object.hasOwn(this.services, name); i++) name = `${plain}-${i}`;
    if (name !== plain)
      this.leaveOut(where, `the name "${plain}" is taken, so the service is called "${name}"`);
    return name;
  }

  print(form: Form): string {
    const inFront = form === 'crd' ? ['spec'] : [];
    const document = new Document(form === 'crd' ? this.#resource() : this.#file(), {
      aliasDuplicateObjects: false,
    });
    document.commentBefore = `${opening}${this.leftOut.map((line) => `\n Left out or changed: ${line}`).join('')}`;
    for (const { path: inside, comment } of this.comments) {
      const path = [...inFront, ...inside];
      const holder = document.getIn(path.slice(0, -1), true);
      const pair = isMap(holder)
        ? holder.items.find(({ key }) => isScalar(key) && key.value === path.at(-1))
        : undefined;
      if (!pair) continue;
      const key = pair.key as Node;
      const before = key.commentBefore;
      key.commentBefore = `${before === undefined || before === null ? '' : `${before}\n`} ${comment}`;
    }
    return document.toString({ lineWidth: 0 });
  }

  #file(): Values {
    return { version: 2, ...this.others, services: this.services };
  }

  #resource(): Values {
    const services = Object.entries(this.services).map(([name, service]) => [
      name,
      withReferences(asMap(service)),
    ]);
    return {
      apiVersion: 'postern.dev/v1alpha1',
      kind: 'Configuration',
      metadata: { name: 'postern', ...this.metadata },
      spec: { ...this.others, services: Object.fromEntries(services) },
    };
  }
}
