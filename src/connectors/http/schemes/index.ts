import * as z from 'zod';

import { duration } from '../../../core/duration.ts';
import { PosternError } from '../../../core/errors.ts';
import type { Finding } from '../../connector.ts';
import { aws } from './aws.ts';
import { basic, bearer, conjur, nothing, templates } from './fixed.ts';
import { githubApp } from './github-app.ts';
import { oauth1 } from './oauth1.ts';
import { oauth2 } from './oauth2.ts';
import type { Scheme } from './scheme.ts';
import { Template } from './template.ts';

export type { Injection, RequestView, Scheme, Signed } from './scheme.ts';

/** The name of an entry under `credentials:`. */
const credential = z.string().regex(/^[\w.-]{1,128}$/, 'must be the name of an entry under `credentials`');

/** A text with `{{ name }}` in it; see docs/connectors/http.md. */
export const template = z.string().transform((text, context) => {
  try {
    return Template.parse(text);
  } catch (thrown) {
    context.addIssue({ code: 'custom', message: PosternError.from(thrown).message });
    return z.NEVER;
  }
});

/** Fields that frame a message or belong to one connection, and so to Postern alone. */
const framing = new Set(
  'host content-length transfer-encoding connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer upgrade expect http2-settings'.split(
    ' ',
  ),
);

const headerName = z
  .string()
  .regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$/, 'is not a name that a header can have')
  .refine((name) => !framing.has(name.toLowerCase()), 'is a header that Postern itself has to set');

/** Templates by the header fields that they are for. */
export const headerTemplates = z
  .record(headerName, template)
  .refine((given) => Object.keys(given).length > 0, 'names no header')
  .refine(
    (given) =>
      new Set(Object.keys(given).map((name) => name.toLowerCase())).size === Object.keys(given).length,
    'names a header twice: upper and lower case are the same',
  );

/** Templates by the query parameters that they are for. */
export const queryTemplates = z
  .record(z.string().min(1).max(128), template)
  .refine((given) => Object.keys(given).length > 0, 'names no parameter');

const awsWord = z.string().regex(/^[\w-]{1,64}$/, 'is a word such as eu-central-1 or s3');

/** A server that gives out tokens. */
const tokenServer = z
  .url({ protocol: /^https?$/ })
  .transform((text) => new URL(text))
  .refine((url) => url.username === '' && url.password === '' && url.hash === '', {
    message: 'has a user, a password or a "#", which do not belong there',
  });

const tokenServerTrust = {
  ca: z
    .string()
    .min(1)
    .optional()
    .describe('File with the CA certificates to trust for this (PEM), instead of the system ones.'),
  allowPlainHttp: z
    .boolean()
    .default(false)
    .describe('Whether secret and token may travel in clear, to a server that is `http://`.'),
};

function refusePlain(
  url: URL,
  allowed: boolean,
  key: string,
  fault: (key: string, message: string) => void,
): void {
  if (url.protocol === 'http:' && !allowed)
    fault(key, 'would send the secret in clear; use https, or say `allowPlainHttp: true` beside it');
}

const oauthText = z.string().regex(/^[\x20-\x7e]{1,2048}$/, 'is one line of ASCII');

const shape = {
  basic: z
    .strictObject({
      username: credential.default('username').describe('Credential that is the user.'),
      password: credential.default('password').describe('Credential that is the password.'),
    })
    .describe('`Authorization: Basic`, RFC 7617.'),
  bearer: credential.describe('Credential that is sent as `Authorization: Bearer`, RFC 6750.'),
  headers: headerTemplates.describe(
    'Header fields by name, each a text with `{{ credential }}` in it: `Bearer {{ token }}`, `Basic {{ printf "%s:%s" .user .password | base64 }}`. A field of the same name in the request is replaced.',
  ),
  query: queryTemplates.describe(
    'Query parameters by name, each a text as in `headers`; percent-encoded and added to the request, in place of its own of that name.',
  ),
  conjur: credential.describe(
    'Credential that is a Conjur access token, sent as Conjur wants it: `Authorization: Token token="..."` in base64.',
  ),
  aws: z
    .strictObject({
      accessKeyId: credential.default('accessKeyId').describe('Credential that is the access key id.'),
      secretAccessKey: credential
        .default('secretAccessKey')
        .describe('Credential that is the secret access key.'),
      sessionToken: credential
        .optional()
        .describe('Credential that is the session token; temporary keys have one.'),
      region: awsWord
        .optional()
        .describe(
          'Region that requests are signed for. Default: that of the signature in the request, else what its host says.',
        ),
      service: awsWord
        .optional()
        .describe('Service that requests are signed for, such as `s3`. Default: as for `region`.'),
    })
    .describe('AWS Signature Version 4, of each request anew.'),
  oauth1: z
    .strictObject({
      consumerKey: credential.default('consumerKey').describe('Credential that is the consumer key.'),
      consumerSecret: credential
        .default('consumerSecret')
        .describe('Credential that is the consumer secret.'),
      token: credential
        .optional()
        .describe('Credential that is the access token. Without it the consumer speaks for itself.'),
      tokenSecret: credential.optional().describe('Credential that is the secret of the access token.'),
      signature: z
        .enum(['HMAC-SHA1', 'HMAC-SHA256'])
        .default('HMAC-SHA1')
        .describe('How requests are signed. Servers of RFC 5849 know HMAC-SHA1.'),
      realm: z
        .string()
        .regex(/^[\x20-\x21\x23-\x5b\x5d-\x7e]{1,256}$/, 'holds what a quoted realm cannot')
        .optional()
        .describe('Realm to name in the header, where the server wants one.'),
    })
    .refine((given) => (given.token === undefined) === (given.tokenSecret === undefined), {
      message: 'token and tokenSecret go together',
    })
    .describe('OAuth 1.0a (RFC 5849): each request is signed; of a form also the body.'),
  oauth2: z
    .strictObject({
      tokenUrl: tokenServer.describe(
        'Where the access token is asked for, such as `https://login.example.com/oauth2/token`.',
      ),
      grant: z
        .enum(['client_credentials', 'refresh_token'])
        .default('client_credentials')
        .describe(
          'What the token is granted for: to the client itself, or to whom the refresh token is from.',
        ),
      clientId: credential.default('clientId').describe('Credential that is the client id.'),
      clientSecret: credential
        .optional()
        .describe(
          'Credential that is the client secret. Only a public client with a refresh token has none.',
        ),
      refreshToken: credential
        .optional()
        .describe(
          'Credential that is the refresh token. When the server exchanges it, the new one is kept in memory until the credential changes.',
        ),
      scope: oauthText.optional().describe('`scope` to ask for, words with blanks between them.'),
      audience: oauthText.optional().describe('`audience` to ask for, where the server wants one.'),
      resource: oauthText.optional().describe('`resource` to ask for (RFC 8707).'),
      clientAuth: z
        .enum(['basic', 'body'])
        .default('basic')
        .describe('How the client shows its secret: as HTTP Basic, or in the body.'),
      header: headerName
        .default('Authorization')
        .describe(
          'Header for the access token: `Authorization` has it as a bearer token, any other one as it is.',
        ),
      defaultLifetime: duration
        .prefault('5m')
        .describe('How long a token is used whose server does not say how long it lives.'),
      ...tokenServerTrust,
    })
    .superRefine((given, context) => {
      const fault = (key: string, message: string) =>
        context.addIssue({ code: 'custom', path: [key], message });
      refusePlain(given.tokenUrl, given.allowPlainHttp, 'tokenUrl', fault);
      const refreshes = given.grant === 'refresh_token';
      if (refreshes && given.refreshToken === undefined) fault('refreshToken', 'is required by this grant');
      if (!refreshes && given.refreshToken !== undefined)
        fault('refreshToken', 'means nothing to this grant; write `grant: refresh_token`');
      if (!refreshes && given.clientSecret === undefined) fault('clientSecret', 'is required by this grant');
    })
    .describe(
      'OAuth 2.0 (RFC 6749): an access token is asked for, and asked for anew shortly before its end.',
    ),
  githubApp: z
    .strictObject({
      clientId: z
        .string()
        .regex(/^[\w.-]{1,64}$/, 'is no client id')
        .optional()
        .describe('Client id of the app; or `appId`.'),
      appId: z.int().min(1).optional().describe('Number of the app; or `clientId`, which GitHub prefers.'),
      installationId: z
        .int()
        .min(1)
        .describe('Number of the installation, as in the address of its settings.'),
      privateKey: credential
        .default('privateKey')
        .describe("Credential that is the app's private key (PEM)."),
      apiUrl: tokenServer
        .prefault('https://api.github.com')
        .describe('Base URL of the API; of a GitHub Enterprise Server `https://HOST/api/v3`.'),
      repositories: z
        .array(z.string().regex(/^[\w.-]{1,100}$/, 'is the name of a repository without its owner'))
        .min(1)
        .optional()
        .describe('The only repositories that the token is good for. Default: all of the installation.'),
      permissions: z
        .record(z.string().regex(/^[a-z_]{1,64}$/), z.enum(['read', 'write', 'admin']))
        .optional()
        .describe(
          'The only permissions that the token has, such as `contents: read`. Default: all of the installation.',
        ),
      as: z
        .enum(['bearer', 'git'])
        .default('bearer')
        .describe('bearer: for the API. git: for git over https, as the password of `x-access-token`.'),
      ...tokenServerTrust,
    })
    .superRefine((given, context) => {
      const fault = (key: string, message: string) =>
        context.addIssue({ code: 'custom', path: [key], message });
      refusePlain(given.apiUrl, given.allowPlainHttp, 'apiUrl', fault);
      if ((given.clientId === undefined) === (given.appId === undefined))
        fault('clientId', 'is required, or `appId` in its place');
    })
    .describe('Token of the installation of a GitHub App, asked for with the key of the app.'),
};

type Key = keyof typeof shape;

/** `authenticate:` of a service: how its credentials get into its requests. One key, or `headers` and `query` together. */
export const authenticate = z
  .strictObject(shape)
  .partial()
  .superRefine((given, context) => {
    const keys = Object.keys(given).filter((key) => given[key as Key] !== undefined);
    if (keys.length === 1 || (keys.length === 2 && given.headers && given.query)) return;
    const all = Object.keys(shape).join(', ');
    context.addIssue({
      code: 'custom',
      message:
        keys.length === 0
          ? `must be one of ${all}`
          : `must be one of ${all}; only headers and query go together`,
    });
  });

export type Authenticate = z.output<typeof authenticate>;

/** What a scheme knows of its service. */
export interface SchemeContext {
  /** The service. */
  readonly name: string;
  /** Milliseconds since the epoch; for tests. */
  readonly now?: () => number;
}

/** Makes the scheme of a service; `undefined`: its credential is not in its requests (a client certificate). */
export function openScheme(given: Authenticate | undefined, context: SchemeContext): Scheme {
  if (!given) return nothing();
  if (given.basic) return basic(given.basic);
  if (given.bearer !== undefined) return bearer(given.bearer);
  if (given.conjur !== undefined) return conjur(given.conjur);
  if (given.aws) return aws(given.aws, context.now);
  if (given.oauth1) {
    const { consumerKey, consumerSecret, token, tokenSecret, signature, realm } = given.oauth1;
    return oauth1(
      {
        consumerKey: Template.of(consumerKey),
        consumerSecret: Template.of(consumerSecret),
        token: token === undefined ? undefined : Template.of(token),
        tokenSecret: tokenSecret === undefined ? undefined : Template.of(tokenSecret),
        signature,
        realm,
      },
      context.now && { now: context.now },
    );
  }
  if (given.oauth2) {
    const { tokenUrl, ca, scope, audience, resource, ...rest } = given.oauth2;
    const asked = Object.entries({ scope, audience, resource });
    const parameters = Object.fromEntries(
      asked.filter((entry): entry is [string, string] => entry[1] !== undefined),
    );
    return oauth2(
      {
        ...rest,
        clientSecret: rest.clientSecret,
        refreshToken: rest.refreshToken,
        endpoint: { url: tokenUrl, ca },
        parameters,
      },
      context.now,
    );
  }
  if (given.githubApp) {
    const { clientId, appId, installationId, privateKey, apiUrl, ca, repositories, permissions, as } =
      given.githubApp;
    const issuer = clientId ?? String(appId);
    return githubApp(
      {
        issuer,
        installationId: String(installationId),
        privateKey,
        apiUrl,
        ca,
        repositories,
        permissions,
        as,
      },
      context.now,
    );
  }
  return templates(given.headers ?? {}, given.query ?? {});
}

/** Where each credential is named; the paths start at `authenticate`. */
export function credentialsOf(
  given: Authenticate | undefined,
): { readonly name: string; readonly path: readonly string[] }[] {
  if (!given) return [];
  const named = (name: string | undefined, ...path: readonly string[]) =>
    name === undefined ? [] : [{ name, path }];
  const inTemplates = (key: 'headers' | 'query') =>
    Object.entries(given[key] ?? {}).flatMap(([field, value]) =>
      value.names.map((name) => ({ name, path: [key, field] })),
    );
  return [
    ...named(given.basic?.username, 'basic', 'username'),
    ...named(given.basic?.password, 'basic', 'password'),
    ...named(given.bearer, 'bearer'),
    ...named(given.conjur, 'conjur'),
    ...named(given.aws?.accessKeyId, 'aws', 'accessKeyId'),
    ...named(given.aws?.secretAccessKey, 'aws', 'secretAccessKey'),
    ...named(given.aws?.sessionToken, 'aws', 'sessionToken'),
    ...named(given.oauth1?.consumerKey, 'oauth1', 'consumerKey'),
    ...named(given.oauth1?.consumerSecret, 'oauth1', 'consumerSecret'),
    ...named(given.oauth1?.token, 'oauth1', 'token'),
    ...named(given.oauth1?.tokenSecret, 'oauth1', 'tokenSecret'),
    ...named(given.oauth2?.clientId, 'oauth2', 'clientId'),
    ...named(given.oauth2?.clientSecret, 'oauth2', 'clientSecret'),
    ...named(given.oauth2?.refreshToken, 'oauth2', 'refreshToken'),
    ...named(given.githubApp?.privateKey, 'githubApp', 'privateKey'),
    ...inTemplates('headers'),
    ...inTemplates('query'),
  ];
}

/**
 * Credentials that a service names and does not have; `path` leads from the service to its `authenticate`.
 */
export function reviewAuthenticate(
  given: Authenticate | undefined,
  credentials: ReadonlySet<string>,
  path: readonly string[] = ['config', 'authenticate'],
): Finding[] {
  const known = credentials.size > 0 ? `it has ${[...credentials].join(', ')}` : 'it has none';
  return credentialsOf(given)
    .filter(({ name }) => !credentials.has(name))
    .map((each) => ({
      path: [...path, ...each.path],
      message: `the service has no credential "${each.name}"; ${known}`,
    }));
}
