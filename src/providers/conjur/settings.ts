import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parse } from 'yaml';
import * as z from 'zod';

import { duration } from '../../core/duration.ts';
import { PosternError, reasonOf } from '../../core/errors.ts';
import type { ProviderContext } from '../provider.ts';

const text = z.string().min(1);
/** A value that is a secret in itself: editors and documentation show it as such. */
const sensitive = text.meta({ writeOnly: true });
/** Part of a URL; "." and ".." would be taken out of it. */
const name = text.refine((value) => value !== '.' && value !== '..', '"." and ".." are no names');

/** Where Conjur's own sidecar for Kubernetes leaves its token. */
const sidecarToken = '/run/conjur/access-token';
const serviceAccountToken = '/var/run/secrets/kubernetes.io/serviceaccount/token';

const apiKey = z
  .strictObject({
    method: z.literal('apiKey'),
    login: name.describe('Who logs in: `host/orders/app` for a host, else the name of a user.'),
    apiKey: sensitive
      .optional()
      .describe('The API key itself. It then stands in the configuration: prefer apiKeyFile.'),
    apiKeyFile: text.optional().describe('File with the API key, read at each login.'),
    apiKeyEnv: text.optional().describe('Variable that holds the API key.'),
  })
  .refine((value) => [value.apiKey, value.apiKeyFile, value.apiKeyEnv].filter(Boolean).length === 1, {
    message: 'give one of apiKey, apiKeyFile, apiKeyEnv',
  });

const jwt = z.strictObject({
  method: z.literal('jwt'),
  serviceId: name.describe('Service id of the JWT authenticator (`authn-jwt/SERVICE_ID`).'),
  hostId: name
    .optional()
    .describe('Host to log in as, where the token does not say it; with or without `host/` before it.'),
  jwtFile: text
    .default(serviceAccountToken)
    .describe('File with the token, read at each login: Kubernetes replaces it.'),
});

const tokenFile = z.strictObject({
  method: z.literal('tokenFile'),
  path: text
    .default(sidecarToken)
    .describe(
      "File with a ready token of Conjur, which something else renews: Conjur's own sidecar for Kubernetes (authn-k8s). Read anew for each request.",
    ),
});

const tls = z
  .strictObject({
    ca: text
      .optional()
      .describe(
        'File with the CA certificates to trust (PEM), instead of the ones Node brings. Read again when it changes.',
      ),
    caPem: text.optional().describe('The CA certificates themselves (PEM).'),
  })
  .refine(({ ca, caPem }) => ca === undefined || caPem === undefined, { message: 'give ca or caPem' });

/** An entry of kind `conjur`. What it leaves out comes from CONJUR_* variables and Conjur's own files. */
export const settings = z.strictObject({
  url: text
    .optional()
    .describe('Base URL of Conjur: `https://conjur.internal`. Default: CONJUR_APPLIANCE_URL.'),
  account: text
    .regex(/^[^/:]+$/, 'must have no "/" and no ":" in it')
    .optional()
    .describe('Account that the login and the variables belong to. Default: CONJUR_ACCOUNT.'),
  auth: z
    .discriminatedUnion('method', [apiKey, jwt, tokenFile])
    .optional()
    .describe('How Postern logs in. Default: as the CONJUR_* variables say.'),
  tls: tls
    .optional()
    .describe('TLS towards Conjur. Default: CONJUR_SSL_CERTIFICATE, CONJUR_CERT_FILE, else the usual CAs.'),
  timeout: duration
    .refine((milliseconds) => milliseconds > 0, 'must be longer than 0s')
    .optional()
    .describe('How long one request may take. Default: CONJUR_HTTP_TIMEOUT, else 5s.'),
});

export type Settings = z.output<typeof settings>;

/** Where a secret of the login comes from; read when it is needed. */
export type Source = { readonly value: string } | { readonly file: string } | { readonly variable: string };

/** How to come by a token. */
export type Auth =
  | { readonly method: 'apiKey'; readonly login: string; readonly key: Source }
  | { readonly method: 'netrc'; readonly path: string }
  | {
      readonly method: 'jwt';
      readonly url: string;
      readonly hostId: string | undefined;
      readonly jwt: Source;
    }
  | { readonly method: 'tokenFile'; readonly path: string }
  | { readonly method: 'token'; readonly token: Source };

/** Settings, environment and files put together: what a provider really uses. */
export interface Effective {
  /** Without a slash at its end. */
  readonly base: string;
  readonly account: string;
  readonly auth: Auth;
  readonly ca: { readonly file: string } | { readonly pem: string } | undefined;
  readonly timeout: number;
}

type Invalid = (message: string) => PosternError;

/**
 * Fills what the settings leave out from the environment, then from `~/.conjurrc` (or the file CONJURRC), then from
 * `systemFile`, as Conjur's own clients do. Throws CONFIG_INVALID.
 */
export function withEnvironment(
  given: Settings,
  { name: provider, environment }: Pick<ProviderContext, 'name' | 'environment'>,
  systemFile = '/etc/conjur.conf',
): Effective {
  const invalid: Invalid = (message) =>
    new PosternError('CONFIG_INVALID', `provider "${provider}": ${message}`);
  const home = environment['HOME'] || homedir();
  const files = [environment['CONJURRC'] || join(home, '.conjurrc'), systemFile].map((path) =>
    readClientFile(path, invalid),
  );
  /** The variable, else the key of a file; empty counts as absent. */
  const outside = (variable: string, ...keys: readonly string[]): string | undefined =>
    environment[variable] ||
    files.flatMap((file) => keys.flatMap((key) => file.get(key) ?? [])).find((value) => value !== '');

  const url = given.url ?? outside('CONJUR_APPLIANCE_URL', 'appliance_url', 'conjur_url');
  if (url === undefined) throw invalid('give `url`, or set CONJUR_APPLIANCE_URL');
  const base = parseUrl(url, 'url', invalid);
  const account = given.account ?? outside('CONJUR_ACCOUNT', 'account', 'conjur_account') ?? base.account;
  if (account === undefined) throw invalid('give `account`, or set CONJUR_ACCOUNT');
  if (/[/:]/.test(account) || account === '.' || account === '..') throw invalid('the account is no name');

  return {
    base: base.text,
    account,
    auth: given.auth
      ? authOf(given.auth, base.text)
      : authFromEnvironment(environment, outside, base.text, home, invalid),
    ca: given.tls ? caOf(given.tls.caPem, given.tls.ca) : caFromEnvironment(environment, outside),
    timeout: given.timeout ?? timeoutOf(outside('CONJUR_HTTP_TIMEOUT', 'http_timeout'), invalid) ?? 5000,
  };
}

function authOf(auth: NonNullable<Settings['auth']>, base: string): Auth {
  switch (auth.method) {
    case 'apiKey': {
      const { login } = auth;
      if (auth.apiKeyFile !== undefined) return { method: 'apiKey', login, key: { file: auth.apiKeyFile } };
      if (auth.apiKeyEnv !== undefined) return { method: 'apiKey', login, key: { variable: auth.apiKeyEnv } };
      return { method: 'apiKey', login, key: { value: auth.apiKey ?? '' } };
    }
    case 'jwt':
      return {
        method: 'jwt',
        url: jwtUrl(base, auth.serviceId),
        hostId: auth.hostId,
        jwt: { file: auth.jwtFile },
      };
    case 'tokenFile':
      return { method: 'tokenFile', path: auth.path };
  }
}

/** The order of Secretless, and then what Conjur's clients know beside. */
function authFromEnvironment(
  environment: ProviderContext['environment'],
  outside: (variable: string, ...keys: readonly string[]) => string | undefined,
  base: string,
  home: string,
  invalid: Invalid,
): Auth {
  const login = environment['CONJUR_AUTHN_LOGIN'] || undefined;
  if (login === '.' || login === '..') throw invalid('CONJUR_AUTHN_LOGIN is no name');
  if (login !== undefined && environment['CONJUR_AUTHN_API_KEY']) {
    return { method: 'apiKey', login, key: { variable: 'CONJUR_AUTHN_API_KEY' } };
  }
  const path = environment['CONJUR_AUTHN_TOKEN_FILE'];
  if (path) return { method: 'tokenFile', path };

  const hostId = outside('CONJUR_AUTHN_JWT_HOST_ID', 'jwt_host_id') ?? login;
  const jwt: Source = environment['CONJUR_AUTHN_JWT_TOKEN']
    ? { variable: 'CONJUR_AUTHN_JWT_TOKEN' }
    : { file: outside('JWT_TOKEN_PATH', 'jwt_file') ?? serviceAccountToken };
  const authnUrl = environment['CONJUR_AUTHN_URL'] || undefined;
  if (authnUrl?.includes('authn-jwt')) {
    return { method: 'jwt', url: parseUrl(authnUrl, 'CONJUR_AUTHN_URL', invalid).text, hostId, jwt };
  }
  // The certificate of authn-k8s is written into the pod by Conjur; its own sidecar knows how to take it there.
  if (authnUrl?.includes('authn-k8s')) return { method: 'tokenFile', path: sidecarToken };
  if (environment['CONJUR_AUTHN_TOKEN'])
    return { method: 'token', token: { variable: 'CONJUR_AUTHN_TOKEN' } };

  const type = outside('CONJUR_AUTHN_TYPE', 'authn_type');
  const serviceId =
    environment['CONJUR_AUTHN_JWT_SERVICE_ID'] ||
    (type === 'jwt' ? outside('CONJUR_SERVICE_ID', 'service_id') : undefined);
  if (serviceId) return { method: 'jwt', url: jwtUrl(base, serviceId), hostId, jwt };
  if (type !== undefined && type !== 'authn') {
    const known = /^[a-z0-9-]{1,20}$/.test(type) ? ` "${type}"` : '';
    throw invalid(
      `Postern cannot log in with the authenticator${known} that CONJUR_AUTHN_TYPE names, as it is set up; it knows API keys, JWT (with a service id) and token files`,
    );
  }
  return { method: 'netrc', path: outside('', 'netrc_path') ?? join(home, '.netrc') };
}

function caOf(pem: string | undefined, file: string | undefined): Effective['ca'] {
  if (pem !== undefined) return { pem };
  return file === undefined ? undefined : { file };
}

function caFromEnvironment(
  environment: ProviderContext['environment'],
  outside: (variable: string, ...keys: readonly string[]) => string | undefined,
): Effective['ca'] {
  return caOf(environment['CONJUR_SSL_CERTIFICATE'] || undefined, outside('CONJUR_CERT_FILE', 'cert_file'));
}

function jwtUrl(base: string, serviceId: string): string {
  return `${base}/authn-jwt/${encodeURIComponent(serviceId)}`;
}

/** The URL without a slash at its end; the hosted service has its API below /api, and one account. */
function parseUrl(
  url: string,
  what: string,
  invalid: Invalid,
): { text: string; account: string | undefined } {
  const parsed = URL.parse(url);
  if (!parsed || (parsed.protocol !== 'https:' && parsed.protocol !== 'http:')) {
    throw invalid(`${what} must begin with https:// or http://`);
  }
  // Not shown: it may hold a password.
  if (parsed.username || parsed.password || parsed.search || parsed.hash) {
    throw invalid(`${what} must be a scheme, a host, a port and at most a path`);
  }
  const hosted = /(^|\.)secretsmgr\.cyberark\.cloud$|-secretsmanager\.cyberark\.cloud$/.test(parsed.hostname);
  const path = parsed.pathname.replace(/\/+$/, '');
  return {
    text: parsed.origin + (hosted && path === '' ? '/api' : path),
    account: hosted ? 'conjur' : undefined,
  };
}

function timeoutOf(seconds: string | undefined, invalid: Invalid): number | undefined {
  if (seconds === undefined) return undefined;
  if (!/^[1-9]\d{0,2}$/.test(seconds) || Number(seconds) > 600) {
    throw invalid('CONJUR_HTTP_TIMEOUT must be a number of seconds from 1 to 600');
  }
  return Number(seconds) * 1000;
}

/** The keys of a file of Conjur's clients (YAML); none when it is not there. */
function readClientFile(path: string, invalid: Invalid): ReadonlyMap<string, string> {
  let content: string;
  try {
    content = readFileSync(path, 'utf8');
  } catch (thrown) {
    const reason = reasonOf(thrown);
    if (reason === 'ENOENT' || reason === 'ENOTDIR') return new Map();
    throw invalid(`the file "${path}" cannot be read (${reason})`);
  }
  try {
    const values: unknown = parse(content) ?? {};
    if (typeof values === 'object' && !Array.isArray(values)) {
      return new Map(
        Object.entries(values as object).flatMap(([key, value]) =>
          typeof value === 'string' || typeof value === 'number' ? [[key, String(value)] as const] : [],
        ),
      );
    }
  } catch {
    // What the parser says quotes the file.
  }
  throw invalid(`the file "${path}" is not one of Conjur's clients (YAML with keys such as appliance_url)`);
}
