import { isIPv4 } from 'node:net';
import { homedir } from 'node:os';
import { join } from 'node:path';
import * as z from 'zod';

import { duration } from '../../core/duration.ts';
import { PosternError } from '../../core/errors.ts';
import type { ProviderContext } from '../provider.ts';

const text = z.string().min(1);
/** A value that is a secret in itself: editors and documentation show it as such. */
const sensitive = text.meta({ writeOnly: true });
const mount = (name: string) =>
  text
    .regex(/^[^/\s]+(\/[^/\s]+)*$/, 'a mount is written without "/" at its ends')
    .default(name)
    .describe('Where the method is mounted, below `auth/`.');

function atMostOne(keys: readonly string[]) {
  return (value: object, context: z.RefinementCtx) => {
    const given = keys.filter((key) => key in value);
    if (given.length > 1)
      context.addIssue({ code: 'custom', message: `give only one of ${given.join(', ')}` });
  };
}

const token = z
  .strictObject({
    method: z.literal('token'),
    token: sensitive
      .optional()
      .describe('The token itself. It then stands in the configuration: prefer any other way.'),
    tokenEnv: text
      .optional()
      .describe(
        'Variable that holds the token. Without `token` and `tokenEnv`: BAO_TOKEN, VAULT_TOKEN, then the file ~/.vault-token.',
      ),
  })
  .superRefine(atMostOne(['token', 'tokenEnv']));

const tokenFile = z.strictObject({
  method: z.literal('tokenFile'),
  path: text.describe(
    'File with the token, such as the sink of a Vault Agent. Read again when it changes and when the token is refused; while it is empty, Vault counts as unavailable.',
  ),
});

const approle = z
  .strictObject({
    method: z.literal('approle'),
    mount: mount('approle'),
    roleId: text.optional().describe('Role id.'),
    roleIdFile: text.optional().describe('File with the role id, read at each login.'),
    roleIdEnv: text.optional().describe('Variable that holds the role id.'),
    secretId: sensitive
      .optional()
      .describe('Secret id. It then stands in the configuration: prefer secretIdFile.'),
    secretIdFile: text.optional().describe('File with the secret id, read at each login.'),
    secretIdEnv: text.optional().describe('Variable that holds the secret id.'),
    secretIdWrapped: z
      .boolean()
      .default(false)
      .describe(
        'The secret id is given as a response-wrapping token, which Postern unwraps once. That it was already used is reported as a possible interception.',
      ),
  })
  .superRefine(atMostOne(['roleId', 'roleIdFile', 'roleIdEnv']))
  .superRefine(atMostOne(['secretId', 'secretIdFile', 'secretIdEnv']))
  .refine((value) => value.roleId ?? value.roleIdFile ?? value.roleIdEnv, {
    message: 'give one of roleId, roleIdFile, roleIdEnv',
  })
  .refine((value) => !value.secretIdWrapped || (value.secretId ?? value.secretIdFile ?? value.secretIdEnv), {
    message: 'secretIdWrapped needs one of secretId, secretIdFile, secretIdEnv',
  });

const kubernetes = z.strictObject({
  method: z.literal('kubernetes'),
  mount: mount('kubernetes'),
  role: text.describe('Role of the Kubernetes auth method.'),
  jwtFile: text
    .default('/var/run/secrets/kubernetes.io/serviceaccount/token')
    .describe('File with the service account token, read at each login: Kubernetes replaces it.'),
});

const jwt = z.strictObject({
  method: z.literal('jwt'),
  mount: mount('jwt'),
  role: text.optional().describe('Role of the JWT auth method, where it has no default role.'),
  jwtFile: text.describe(
    'File with the signed token (JWT), read at each login: whoever issues it replaces it.',
  ),
});

/** Methods that take a name and a password: they differ in who knows the password. */
function passwordLogin<Method extends string>(method: Method) {
  return z
    .strictObject({
      method: z.literal(method),
      mount: mount(method),
      username: text
        .regex(/^(?!\.{1,2}$)[^/]+$/, 'a user name has no "/" in it')
        .describe('Name of the user.'),
      password: sensitive
        .optional()
        .describe('Password. It then stands in the configuration: prefer passwordFile.'),
      passwordFile: text.optional().describe('File with the password, read at each login.'),
      passwordEnv: text.optional().describe('Variable that holds the password.'),
    })
    .superRefine(atMostOne(['password', 'passwordFile', 'passwordEnv']))
    .refine((value) => value.password ?? value.passwordFile ?? value.passwordEnv, {
      message: 'give one of password, passwordFile, passwordEnv',
    });
}

const cert = z.strictObject({
  method: z.literal('cert'),
  mount: mount('cert'),
  name: text
    .optional()
    .describe('Name of the certificate role. Default: whichever role trusts the certificate.'),
});

const none = z.strictObject({ method: z.literal('none') });

const tls = z.strictObject({
  ca: text
    .optional()
    .describe(
      'File with the CA certificates to trust (PEM), instead of the ones Node brings. Read again when it changes.',
    ),
  caPath: text.optional().describe('Folder of files with CA certificates to trust (PEM).'),
  cert: text.optional().describe('File with the client certificate and its chain (PEM).'),
  key: text.optional().describe('File with the key of the client certificate (PEM, not encrypted).'),
  serverName: text
    .optional()
    .describe(
      'Name to send as SNI and to expect in the certificate, where it is not the host of the address.',
    ),
  skipVerify: z
    .boolean()
    .default(false)
    .describe('Accept any certificate: whoever answers gets the token. For trials only.'),
});

/** An entry of kind `vault`. What it leaves out comes from BAO_* and VAULT_* variables, as for the command line. */
export const settings = z.strictObject({
  address: text
    .optional()
    .describe(
      '`https://host:8200`, `http://...` or `unix:///path` (Vault Agent). Default: VAULT_AGENT_ADDR, VAULT_ADDR, else https://127.0.0.1:8200.',
    ),
  namespace: text.optional().describe('Namespace of all paths. Default: VAULT_NAMESPACE, else none.'),
  auth: z
    .discriminatedUnion('method', [
      token,
      tokenFile,
      approle,
      kubernetes,
      jwt,
      passwordLogin('userpass'),
      passwordLogin('ldap'),
      cert,
      none,
    ])
    .prefault({ method: 'token' })
    .describe(
      'How Postern logs in. cert: with the client certificate of `tls`. none: a Vault Agent adds its own token.',
    ),
  tls: tls
    .optional()
    .describe('TLS towards Vault. When it is given, VAULT_CACERT and its like are not looked at.'),
  kvVersion: z
    .union([z.literal(1), z.literal(2)])
    .optional()
    .describe(
      'Version of the KV mounts, when the policy does not let Postern ask. Default: ask Vault for each mount.',
    ),
  kvMount: text
    .regex(/^[^/\s]+(\/[^/\s]+)*$/, 'a mount is written without "/" at its ends')
    .optional()
    .describe('With kvVersion: the mount, where it is more than the first part of the path.'),
  engineMounts: z
    .array(text.regex(/^[^/\s]+(\/[^/\s]+)*$/, 'a mount is written without "/" at its ends'))
    .default([])
    .describe(
      'Mounts of other engines than KV (`database`, `pki`), when the policy does not let Postern ask. Default: ask Vault for each mount.',
    ),
  followRedirects: z
    .boolean()
    .optional()
    .describe(
      'Follow a redirect (307) of a standby, once, over https or to the same origin. Default: not when VAULT_DISABLE_REDIRECTS is set.',
    ),
  timeout: duration
    .optional()
    .describe('How long one request may take. Default: VAULT_CLIENT_TIMEOUT, else 5s.'),
  retries: z
    .int()
    .min(0)
    .max(10)
    .optional()
    .describe(
      'How often a request is repeated when Vault is overloaded or unreachable. Default: VAULT_MAX_RETRIES, else 2.',
    ),
});

export type Settings = z.output<typeof settings>;
export type AuthSettings = Settings['auth'];

/** Settings and environment put together: what a provider really uses. */
export interface Effective {
  readonly origin: URL;
  readonly socketPath: string | undefined;
  readonly namespace: string | undefined;
  readonly tls: TlsSettings;
  readonly timeout: number;
  readonly retries: number;
  readonly followRedirects: boolean;
}

export interface TlsSettings {
  readonly ca: string | undefined;
  /** PEM text from VAULT_CACERT_BYTES. */
  readonly caText: string | undefined;
  readonly caPath: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
  /** PEM texts from BAO_CLIENT_CERT_BYTES and BAO_CLIENT_KEY_BYTES. */
  readonly certText: string | undefined;
  readonly keyText: string | undefined;
  readonly serverName: string | undefined;
  readonly skipVerify: boolean;
}

type Environment = ProviderContext['environment'];

/** Fills what the settings leave out from the environment, and warns of what is unsafe. Throws CONFIG_INVALID. */
export function withEnvironment(settings: Settings, { name, environment, log }: ProviderContext): Effective {
  const invalid = (message: string) => new PosternError('CONFIG_INVALID', `provider "${name}": ${message}`);
  const address =
    settings.address ??
    variable(environment, 'AGENT_ADDR') ??
    variable(environment, 'ADDR') ??
    'https://127.0.0.1:8200';
  const { origin, socketPath } = parseAddress(address, invalid);
  const tls = settings.tls
    ? { ...absent, ...settings.tls }
    : tlsFromEnvironment(environment, invalid, (message) => log.warn(`provider "${name}": ${message}`));

  if (!(tls.cert ?? tls.certText) !== !(tls.key ?? tls.keyText))
    throw invalid('a client certificate needs both its file and the file of its key');
  if (settings.auth.method === 'cert' && (origin.protocol !== 'https:' || !(tls.cert ?? tls.certText)))
    throw invalid(
      '`auth: { method: cert }` needs an https address and a client certificate: tls.cert and tls.key',
    );
  if (tls.skipVerify && origin.protocol === 'https:') {
    log.warn(
      `provider "${name}": TLS is not verified (skipVerify): whoever answers at ${origin.host} gets the token`,
    );
  }
  if (origin.protocol === 'http:' && !socketPath && !isLoopback(origin.hostname)) {
    log.warn(
      `provider "${name}": ${origin.host} is asked over plain http: token and secrets can be read on the way`,
    );
  }
  if (variable(environment, 'HTTP_PROXY') ?? variable(environment, 'PROXY_ADDR')) {
    log.warn(
      `provider "${name}": VAULT_HTTP_PROXY and VAULT_PROXY_ADDR are ignored; Postern asks Vault directly`,
    );
  }

  return {
    origin,
    socketPath,
    namespace: namespaceHeader(settings.namespace ?? variable(environment, 'NAMESPACE'), invalid),
    tls,
    timeout: settings.timeout ?? timeoutFrom(environment, invalid) ?? 5000,
    retries: settings.retries ?? retriesFrom(environment, invalid) ?? 2,
    followRedirects: settings.followRedirects ?? !booleanFrom(environment, 'DISABLE_REDIRECTS', invalid),
  };
}

/** OpenBao's name first, then Vault's; an empty variable counts as absent, as in their own clients. */
export function variable(environment: Environment, name: string): string | undefined {
  return environment[`BAO_${name}`] || environment[`VAULT_${name}`] || undefined;
}

/** Where `vault login` leaves its token; the command line reads it when there is no VAULT_TOKEN. */
export function tokenFileOfTheCommandLine(environment: Environment): string {
  return join(environment['HOME'] || homedir(), '.vault-token');
}

type Invalid = (message: string) => PosternError;

const absent = {
  ca: undefined,
  caText: undefined,
  caPath: undefined,
  cert: undefined,
  key: undefined,
  certText: undefined,
  keyText: undefined,
  serverName: undefined,
};

function parseAddress(address: string, invalid: Invalid): Pick<Effective, 'origin' | 'socketPath'> {
  if (address.startsWith('unix://')) {
    const socketPath = address.slice('unix://'.length);
    if (!socketPath.startsWith('/')) throw invalid('a unix address is written unix:///path');
    return { origin: new URL('http://localhost'), socketPath };
  }
  const origin = URL.parse(address);
  if (!origin || (origin.protocol !== 'https:' && origin.protocol !== 'http:')) {
    throw invalid('the address must begin with https://, http:// or unix:///');
  }
  // Not shown: it may hold a password.
  if (origin.username || origin.password || origin.search || origin.hash) {
    throw invalid('the address must be a scheme, a host, a port and at most a path');
  }
  return { origin, socketPath: undefined };
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '[::1]' || (isIPv4(host) && host.startsWith('127.'));
}

function namespaceHeader(namespace: string | undefined, invalid: Invalid): string | undefined {
  if (namespace !== undefined && !/^[\x21-\x7e]+$/.test(namespace)) {
    throw invalid('the namespace must be printable ASCII without spaces');
  }
  return namespace;
}

function tlsFromEnvironment(
  environment: Environment,
  invalid: Invalid,
  warn: (message: string) => void,
): TlsSettings {
  const ca = variable(environment, 'CACERT');
  const caText = variable(environment, 'CACERT_BYTES');
  // Both implementations take the file, though Vault's documentation says otherwise; and a file can be renewed.
  if (ca && caText) warn('both VAULT_CACERT and VAULT_CACERT_BYTES are set: the file is used');
  const cert = variable(environment, 'CLIENT_CERT');
  const key = variable(environment, 'CLIENT_KEY');
  return {
    ca,
    caText: ca ? undefined : caText,
    caPath: ca || caText ? undefined : variable(environment, 'CAPATH'),
    cert,
    key,
    certText: cert ? undefined : variable(environment, 'CLIENT_CERT_BYTES'),
    keyText: key ? undefined : variable(environment, 'CLIENT_KEY_BYTES'),
    serverName: variable(environment, 'TLS_SERVER_NAME'),
    skipVerify: booleanFrom(environment, 'SKIP_VERIFY', invalid),
  };
}

/** As Go's strconv.ParseBool. "false" turning verification off is a mistake that clients do make. */
function booleanFrom(environment: Environment, name: string, invalid: Invalid): boolean {
  const value = variable(environment, name);
  if (value === undefined || ['0', 'f', 'F', 'false', 'FALSE', 'False'].includes(value)) return false;
  if (['1', 't', 'T', 'true', 'TRUE', 'True'].includes(value)) return true;
  throw invalid(`VAULT_${name} must be true or false`);
}

function timeoutFrom(environment: Environment, invalid: Invalid): number | undefined {
  const value = variable(environment, 'CLIENT_TIMEOUT');
  if (value === undefined) return undefined;
  const parsed = duration.safeParse(/^\d+$/.test(value) ? `${value}s` : value);
  if (!parsed.success || parsed.data === 0) {
    throw invalid('VAULT_CLIENT_TIMEOUT must be a number of seconds, or one number and a unit as in 30s');
  }
  return parsed.data;
}

function retriesFrom(environment: Environment, invalid: Invalid): number | undefined {
  const value = variable(environment, 'MAX_RETRIES');
  if (value === undefined) return undefined;
  if (!/^\d$|^10$/.test(value)) throw invalid('VAULT_MAX_RETRIES must be a number from 0 to 10');
  return Number(value);
}
