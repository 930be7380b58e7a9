import * as z from 'zod';

import type { Connector } from '../connectors/connector.ts';
import { duration } from '../core/duration.ts';
import type { ProviderKind } from '../providers/provider.ts';
import { inputSchema, type JsonSchema } from './check.ts';
import { auditEvents } from './config.ts';
import { listenAddress } from './listen.ts';
import { ignoredServiceKeys, isSecretlessService } from './secretless.ts';

/** The plug-ins that a configuration may name, loaded. */
export interface Plugins {
  readonly connectors: Readonly<Record<string, Connector>>;
  readonly providers: Readonly<Record<string, ProviderKind>>;
}

const limitFields = {
  loginTimeout: duration.describe(
    'How long a client has to say what it wants, and again how long fetching the credential and logging in may take.',
  ),
  maxConnections: z
    .int()
    .min(1)
    .max(1_000_000)
    .describe('Sessions of one service at once; a client beyond that gets an error in its own protocol.'),
  idleTimeout: duration.describe(
    'How long a session may pass no byte in either direction before it is ended; 0s: for ever.',
  ),
  maxSessionAge: duration.describe(
    'How old a session may grow: then it ends as soon as nothing is under way in it (no query, no transaction), at the latest after `drainTimeout`; 0s: any age.',
  ),
  drainTimeout: duration.describe(
    'How long sessions get to finish at shutdown, or when they are to end for their age or a rotation, before they are cut off.',
  ),
  minDrainDelay: duration.describe(
    'How long clients are still served as usual after the signal to stop, while `/readyz` says 503 already: for whoever has to hear of it first (endpoints of Kubernetes, a load balancer). `drainTimeout` begins after it. Of several services the longest counts.',
  ),
};

/** `limits:` of the file, with its defaults. */
export const limits = z.strictObject({
  loginTimeout: limitFields.loginTimeout.prefault('10s'),
  maxConnections: limitFields.maxConnections.default(1000),
  idleTimeout: limitFields.idleTimeout.prefault('0s'),
  maxSessionAge: limitFields.maxSessionAge.prefault('0s'),
  drainTimeout: limitFields.drainTimeout.prefault('30s'),
  minDrainDelay: limitFields.minDrainDelay.prefault('0s'),
});

/** Some limits, to lay over others. */
export const someLimits = z.strictObject(limitFields).partial();

const cacheFields = {
  ttl: duration.describe(
    'How long a fetched value is used before it is fetched again; while it is in use that happens shortly before, so that nobody waits. 0s: every login asks, and all who ask at the same time share one answer. Without a word: 0s, and 5s where the connector needs the credential with every request (HTTP). A leased value is used as long as its lease lives, whatever stands here.',
  ),
  maxStale: duration.describe(
    'How much longer the last value is used when its provider cannot be asked (unreachable, sealed, overloaded); what the provider says no to (no such secret, permission denied) is not used any longer. 0s: not at all.',
  ),
  linger: duration.describe(
    'How long a leased credential is kept after its last session has ended; then its lease is revoked.',
  ),
  rotationGrace: duration.describe(
    'How long a login whose credential the server rejects may wait for a rotation that has reached only one of server and store, where the server has taken one before; 0s: it is fetched once more, and tried once more if it is another one by then.',
  ),
  rotationCheck: duration.describe(
    'How often the provider is asked for another credential while sessions live, with `onRotation: drain`: for nobody may log in meanwhile. 0s: a rotation is noticed with the next login.',
  ),
};

/** `cache:` of the file, with its defaults. */
export const cache = z.strictObject({
  ttl: cacheFields.ttl.optional(),
  maxStale: cacheFields.maxStale.prefault('0s'),
  linger: cacheFields.linger.prefault('10s'),
  rotationGrace: cacheFields.rotationGrace.prefault('3s'),
  rotationCheck: cacheFields.rotationCheck.prefault('15s'),
});

/** Some of it, to lay over that. */
export const someCache = z.strictObject(cacheFields).partial();

/** Where Postern keeps what it has to know after a crash. */
export const stateFolder = z.string().min(1);
const stateFolderMeaning =
  'Folder in which the ids of leases are noted (never a secret), so that those of a process that crashed are revoked at the next start; made when it is not there. Without a word: the one that systemd gives (`STATE_DIRECTORY`), or none.';

/** What relays after the login: an engine, or the fastest that there is. */
export const relayEngine = z.enum(['auto', 'native', 'typescript']);

/** `relay:` of the file, with its defaults. */
export const relay = z.strictObject({
  engine: relayEngine
    .default('auto')
    .describe(
      'What moves the bytes after the login. `native`: threads of a compiled addon, for plain connections on both sides; it is an error where there is none. `typescript`: JavaScript alone. `auto`: native where there is an addon for this platform. TLS on either side, and services that follow their sessions (`onRotation: drain`, `maxSessionAge`, MySQL with `changeUser`), are always relayed by JavaScript.',
    ),
  dedicatedSessions: z
    .int()
    .min(0)
    .max(1024)
    .default(32)
    .describe(
      'Native sessions at once that have two threads of their own, which is faster and takes memory for their stacks; all others share one thread. 0: none.',
    ),
});

const account = z.union([
  z
    .int()
    .min(0)
    .max(2 ** 32 - 2),
  z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/, 'must be a name or a number'),
]);

const rate = z
  .strictObject({
    perSecond: z.number().positive().max(100_000).describe('How many in a second, in the long run.'),
    burst: z.int().min(1).max(100_000).describe('How many at once.'),
  })
  .optional();

/** `access:` of the file or of a service. */
export const access = z.strictObject({
  uids: z
    .array(account)
    .min(1)
    .max(256)
    .optional()
    .describe(
      'Users whose processes may connect, by number or by name in /etc/passwd. The kernel says who it is, of a unix socket and of TCP over loopback; where it cannot (a client of another machine) the client is refused.',
    ),
  gids: z
    .array(account)
    .min(1)
    .max(256)
    .optional()
    .describe(
      'Groups of which the process must have one, by number or by name in /etc/group. Unix sockets only: of TCP the kernel does not tell.',
    ),
  executables: z
    .array(z.string().regex(/^\//, 'must be an absolute path'))
    .min(1)
    .max(256)
    .optional()
    .describe(
      'Programs that the process may be, as absolute paths. It keeps honest programs apart and is no boundary against a hostile one of the same user, which can start any of these. Postern must be of the same user, or root, to see it.',
    ),
  username: z
    .string()
    .min(1)
    .max(256)
    .optional()
    .describe('User name that clients have to give with `password`. Without a word: any.'),
  password: z
    .unknown()
    .optional()
    .describe(
      'A local password that clients have to know: `{from: PROVIDER, get: REFERENCE}`. It is asked for as the protocol does it (SCRAM-SHA-256, caching_sha2_password, Basic or Bearer) and never passed on.',
    ),
  maxConnectionsPerPeer: z
    .int()
    .min(1)
    .max(1_000_000)
    .optional()
    .describe('Sessions at once of one user of this machine or, where that is not known, of one address.'),
  loginRate: rate.describe('How often sessions may begin, all clients together.'),
  loginRatePerPeer: rate.describe('The same for each user or address.'),
});

/** `listenOn` of the admin listener, or `off`. */
export const adminListenOn = z.union([z.literal('off'), listenAddress]);

/** `admin:`; a YAML writer of version 1.1 turns `off` into `false`. */
export const admin = z.union([
  z.literal(['off', false]),
  z.strictObject({
    listenOn: listenAddress
      .prefault('tcp://127.0.0.1:9090')
      .describe('Address of the health checks, the metrics and the status page.'),
    exposed: z
      .boolean()
      .default(false)
      .describe('Says that the admin listener may be reached from other machines, which is else a warning.'),
    quit: z
      .boolean()
      .default(false)
      .describe('Whether `POST /quit` ends Postern as SIGTERM does; `postern stop` uses it.'),
    hosts: z
      .array(
        z
          .string()
          .regex(
            /^[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$/,
            'must be the name of a host, without a port',
          ),
      )
      .max(64)
      .default([])
      .describe(
        'Names by which the admin listener may be called. IP addresses, `localhost` and the host of `listenOn` always may; another name could be one that a web page has made lead here.',
      ),
  }),
]);

/** `audit:` of the file. */
export const audit = z.strictObject({
  file: z
    .string()
    .min(1)
    .describe(
      'Where the records go, one JSON object a line: a file (made with mode 0600, opened anew at each reload), `stdout`, `stderr`, or `unix:///path` of a socket that somebody reads.',
    ),
  events: z
    .array(z.enum(auditEvents))
    .min(1)
    .default(['start', 'stop', 'reload', 'session', 'refused', 'lease'])
    .describe(
      'What is recorded: `session` at the end of each, `login` already when it is logged in, `request` for each request of HTTP services, `refused` for clients that were turned away, `lease` for renewals and revocations, `start`, `stop` and `reload`.',
    ),
});

const file = z.string().min(1);

const listenTls = z.strictObject({
  cert: file.describe('File with the certificate and its chain (PEM).'),
  key: file.describe('File with its private key (PEM).'),
  passphraseFile: file.optional().describe('File with the passphrase of the key, when it is encrypted.'),
});

const connectorName = z.string().min(1);

/** An entry under `services:`; what its connector decides (`config`, `credentials`) is checked by the connector's own schema. */
export const service = z.strictObject({
  connector: connectorName
    .optional()
    .describe('The protocol that the service speaks; it decides what `config` and `credentials` may hold.'),
  protocol: connectorName
    .optional()
    .meta({ deprecated: true })
    .describe("Secretless's old name for `connector`."),
  listenOn: listenAddress.describe(
    'Where clients connect: `tcp://host:port` (also tcp4, tcp6; port 0 takes a free one) or `unix:///path`.',
  ),
  exposed: z
    .boolean()
    .default(false)
    .describe(
      'Says that whoever reaches the address from another machine may use the credential without having one; a `listenOn` that is not loopback needs it.',
    ),
  socketMode: z
    .string()
    .regex(/^0?[0-7]{3}$/, 'must be an octal file mode in quotes, such as "0600" or "0660"')
    .default('0600')
    .describe('Permissions of a unix socket, in octal and in quotes.'),
  socketOwner: account
    .optional()
    .describe('Owner of a unix socket, by name or number; giving it away takes root, or CAP_CHOWN.'),
  socketGroup: account
    .optional()
    .describe(
      'Group of a unix socket, by name or number: one that Postern is in, or any for root. With `socketMode: "0660"` its members may connect.',
    ),
  access: access
    .nullish()
    .describe(
      'Who may use the port; every rule that is given has to hold. It stands in place of `access` of the file.',
    ),
  listenTls: listenTls
    .optional()
    .describe('Certificate to show to clients that ask for TLS. Default: no TLS on this side.'),
  credentials: z
    .record(z.string(), z.unknown())
    .nullish()
    .describe(
      'The values to fetch for each login, by the names that the connector gives them: `{from: PROVIDER, get: REFERENCE}`, or the value itself.',
    ),
  config: z.record(z.string(), z.unknown()).nullish().describe('Settings of the connector.'),
  onRotation: z
    .enum(['keep', 'drain'])
    .default('keep')
    .describe(
      'What becomes of a session when the credential that it logged in with has been replaced: `keep` lets it live on, `drain` ends it as soon as nothing is under way in it, at the latest after `drainTimeout`.',
    ),
  limits: someLimits
    .nullish()
    .describe('Limits of this service; what is not given is as in `limits` of the file.'),
  cache: someCache
    .nullish()
    .describe(
      "How long this service's credentials are kept; what is not given is as in `cache` of the file.",
    ),
});

/** An entry under `providers:`, apart from the settings of its kind. */
export const provider = z.looseObject({
  kind: z.string().min(1).describe('What the provider is; it decides what else the entry may hold.'),
});

/** A credential that is fetched. */
export const reference = z.strictObject({
  from: z
    .string()
    .min(1)
    .describe(
      'An entry under `providers:`, or a kind of provider, which is then set up from its environment variables.',
    ),
  get: z
    .union([z.string().min(1), z.number(), z.boolean()])
    .describe('What to ask the provider for; the provider says how it is written.'),
});

/** The top of a configuration file. */
export const document = z.strictObject({
  version: z.literal([2, '2']).describe('Version of this format.'),
  providers: z
    .record(z.string(), z.unknown())
    .nullish()
    .describe('Where secrets come from, by the names that `from:` uses.'),
  services: z
    .record(z.string(), z.unknown())
    .nullish()
    .describe('What Postern listens on, and what it connects each listener to, by name.'),
  limits: limits.nullish().describe('Limits of every service that does not set its own.'),
  cache: cache
    .nullish()
    .describe('How long credentials are kept, of every service that does not say it itself.'),
  access: access.nullish().describe('Who may use the ports of all services that do not say it themselves.'),
  stateFolder: stateFolder.nullish().describe(stateFolderMeaning),
  relay: relay.nullish().describe('What moves the bytes after the login.'),
  admin: admin.nullish().describe('The admin listener, or `off`.'),
  audit: audit
    .nullish()
    .describe('Records of who used which credential, for which server. Without a word: none.'),
});

/** Names of services, providers and credentials: they appear in log lines, metrics and messages. */
export const entryName = /^[\w.-]{1,128}$/;

const named = { propertyNames: { pattern: entryName.source } };

/** JSON Schema (draft 2020-12) of a configuration file, for editors and other tools. */
export function jsonSchema({ connectors, providers }: Plugins): object {
  const top = inputSchema(document);
  return {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    title: 'Configuration of Postern',
    type: 'object',
    properties: {
      ...top.properties,
      providers: { ...described(top, 'providers'), ...mapOf('provider') },
      services: { ...described(top, 'services'), ...mapOf('service'), minProperties: 1 },
    },
    required: ['version', 'services'],
    additionalProperties: false,
    $defs: {
      service: serviceSchema(connectors),
      provider: providerSchema(providers),
      credential: {
        description: 'A reference to a secret, or the value itself.',
        anyOf: [inputSchema(reference), { type: ['string', 'number', 'boolean'] }],
      },
    },
  };
}

function described(schema: JsonSchema, key: string): JsonSchema {
  const description = schema.properties?.[key]?.description;
  return description === undefined ? {} : { description };
}

function mapOf(definition: string): object {
  return { type: ['object', 'null'], ...named, additionalProperties: { $ref: `#/$defs/${definition}` } };
}

function serviceSchema(connectors: Plugins['connectors']): object {
  const schema = inputSchema(service);
  const names = Object.keys(connectors);
  const ignored = [...ignoredServiceKeys].map(([key, message]) => [
    key,
    { deprecated: true, description: `${key} ${message}.` },
  ]);
  return {
    ...schema,
    properties: {
      ...schema.properties,
      connector: { ...described(schema, 'connector'), enum: names },
      protocol: { ...described(schema, 'protocol'), enum: names, deprecated: true },
      ...Object.fromEntries(ignored),
    },
    required: ['listenOn'],
    oneOf: [{ required: ['connector'] }, { required: ['protocol'] }],
    allOf: Object.entries(connectors).map(([name, connector]) => ({
      if: {
        anyOf: ['connector', 'protocol'].map((key) => ({
          properties: { [key]: { const: name } },
          required: [key],
        })),
      },
      // oxlint-disable-next-line unicorn/no-thenable -- the word of JSON Schema
      then: {
        properties: {
          config: { ...described(schema, 'config'), ...orNull(inputSchema(connector.settings)) },
          credentials: { ...described(schema, 'credentials'), ...credentialsSchema(connector) },
          ...(isSecretlessService(name, false)
            ? {}
            : Object.fromEntries([...ignoredServiceKeys.keys()].map((key) => [key, false]))),
        },
        ...(requiresInput(connector.settings) ? { required: ['config'] } : {}),
      },
    })),
  };
}

/** A key with nothing behind it is as good as no key where nothing is needed. */
function orNull(schema: JsonSchema): object {
  return (schema.required ?? []).length > 0 ? schema : { anyOf: [schema, { type: 'null' }] };
}

function requiresInput(schema: z.ZodType): boolean {
  return (inputSchema(schema).required ?? []).length > 0;
}

function credentialsSchema({ credentials }: Connector): object {
  const names = [...credentials.required, ...credentials.optional];
  const other = { $ref: '#/$defs/credential', description: credentials.others };
  return {
    type: 'object',
    ...named,
    properties: Object.fromEntries(names.map((name) => [name, { $ref: '#/$defs/credential' }])),
    required: credentials.required,
    additionalProperties: credentials.others === undefined ? false : other,
  };
}

function providerSchema(kinds: Plugins['providers']): object {
  const kind = { ...described(inputSchema(provider), 'kind'), enum: Object.keys(kinds) };
  return {
    type: 'object',
    properties: { kind },
    required: ['kind'],
    allOf: Object.entries(kinds).map(([name, { settings, summary }]) => {
      const { properties, required = [], additionalProperties: _, ...rest } = inputSchema(settings);
      return {
        if: { properties: { kind: { const: name } }, required: ['kind'] },
        // oxlint-disable-next-line unicorn/no-thenable -- the word of JSON Schema
        then: {
          ...rest,
          description: summary,
          properties: { kind: true, ...properties },
          required: ['kind', ...required],
          additionalProperties: false,
        },
      };
    }),
  };
}
