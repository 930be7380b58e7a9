import * as z from 'zod';

import {
  type Connector,
  type CredentialNames,
  defineConnector,
  type Finding,
  type Review,
} from '../connector.ts';
import { reviewShared } from './forward.ts';
import { type Characters, GoRegExp, PatternError } from './go-regexp.ts';
import { openHttp } from './index.ts';
import type { Locate } from './router.ts';
import { looseUrlPattern, Matcher, urlPatterns } from './rules.ts';
import { awsEndpointFor, awsSecretless } from './schemes/aws.ts';
import { basic, conjur, templates, unusable } from './schemes/fixed.ts';
import { headerTemplates, queryTemplates, type Scheme, template } from './schemes/index.ts';
import { oauth1 } from './schemes/oauth1.ts';
import { valueOf } from './schemes/template.ts';
import { type EngineSettings, engineShape } from './settings.ts';

/*
 * Secretless's HTTP connectors: forward proxies for http:// URLs, each with one way to authenticate. They map to the same
 * engine as `http` with `match`. What is different from Secretless, on purpose: a URL that no service has is refused, where
 * Secretless passes it on without a credential, for anybody to anywhere; a credential that is missing in a template sends
 * nothing; `forceSSL` of one service is not that of another.
 */

const strategies = ['basic_auth', 'conjur', 'aws', 'generic_http'] as const;

/** Keys that all of them have. Those that Secretless does not know it ignores: so they are warnings here, and no errors. */
const common = {
  ...engineShape,
  authenticateURLsMatching: urlPatterns,
  authenticationStrategy: z
    .enum(strategies)
    .optional()
    .describe("Secretless's old way to name the connector, beside `protocol: http`."),
};

const forceSSL = z
  .boolean()
  .default(false)
  .describe('Whether http:// URLs are fetched over TLS. Without it the credential travels in clear to them.');

const plain = z.looseObject({ ...common, forceSSL });
const withoutSsl = z.looseObject(common);

const credentialPattern = z.string().transform((text, context) => {
  try {
    return new GoRegExp(text);
  } catch (thrown) {
    if (!(thrown instanceof PatternError)) throw thrown;
    context.addIssue({ code: 'custom', message: `is no regular expression of Go: ${thrown.message}` });
    return z.NEVER;
  }
});

const generic = z.looseObject({
  ...common,
  forceSSL,
  headers: headerTemplates
    .optional()
    .describe(
      "Header fields by name, each a template of Go's with the credentials in it: `Bearer {{ .token }}`.",
    ),
  queryParams: queryTemplates
    .optional()
    .describe('Query parameters by name, each a template as in `headers`.'),
  oauth1: z
    .strictObject({
      consumer_key: template.describe('Template of the consumer key.'),
      consumer_secret: template.describe('Template of the consumer secret.'),
      token: template.describe('Template of the access token.'),
      token_secret: template.describe('Template of the secret of the access token.'),
    })
    .optional()
    .describe('OAuth 1.0a with HMAC-SHA1.'),
  credentialValidations: z
    .record(z.string(), credentialPattern)
    .default({})
    .describe('Regular expressions of Go, by the credentials that have to match them.'),
});

interface Common extends EngineSettings {
  readonly authenticateURLsMatching: readonly string[];
  readonly forceSSL?: boolean | undefined;
}

/** One connector of Secretless: its settings, its credentials, and the scheme that they make. */
function secretless<Schema extends z.ZodType<Common>>(about: {
  readonly summary: string;
  readonly settings: Schema;
  readonly keys: readonly string[];
  readonly credentials: CredentialNames;
  readonly scheme: (settings: z.output<Schema>) => Scheme;
  readonly review?: (settings: z.output<Schema>, credentials: ReadonlySet<string>) => readonly Finding[];
  readonly locate?: Locate;
}): Connector {
  const names = new Set([...about.credentials.required, ...about.credentials.optional]);
  return defineConnector({
    summary: about.summary,
    settings: about.settings,
    credentials: about.credentials,
    review(settings, credentials): Review {
      const problems = [...(about.review?.(settings, credentials) ?? [])];
      const unknown = Object.keys(settings).filter((key) => !about.keys.includes(key));
      const warnings: Finding[] = unknown.map((key) => ({
        path: ['config', key],
        message: 'is ignored, here as in Secretless',
      }));
      // Those of generic_http have any names.
      if (names.size > 0)
        for (const name of credentials)
          if (!names.has(name))
            warnings.push({ path: ['credentials', name], message: 'is ignored, here as in Secretless' });
      return { problems, warnings: [...warnings, ...reviewUrls(settings)] };
    },
    reviewShared,
    open(settings, service) {
      const extraCa = process.env['SECRETLESS_HTTP_CA_BUNDLE'];
      return openHttp(
        {
          engine: { ...settings, ...(extraCa && { extraCa }) },
          scheme: about.scheme(settings),
          forward: {
            rules: new Matcher([], settings.authenticateURLsMatching),
            forceTls: settings.forceSSL ?? false,
            allowPlainHttp: true,
            locate: about.locate,
          },
          origins: [],
        },
        service,
      );
    },
  });
}

/** What is unsafe about which URLs get the credential. */
function reviewUrls({ authenticateURLsMatching, forceSSL }: Common): Finding[] {
  const path = ['config', 'authenticateURLsMatching'];
  const loose = authenticateURLsMatching.map(looseUrlPattern).find((message) => message !== undefined);
  const warnings: Finding[] = loose === undefined ? [] : [{ path, message: loose }];
  const inClear = authenticateURLsMatching.some((url) => !/^\^?https:/.test(url));
  if (forceSSL === false && inClear)
    warnings.push({
      path: ['config', 'forceSSL'],
      message:
        'the credential travels in clear to http:// URLs; add `forceSSL: true` to config where the servers speak TLS',
    });
  return warnings;
}

/** HTTP Basic for the URLs that match, as Secretless has it. */
export const basicAuth = secretless({
  summary: "Secretless's forward proxy with HTTP Basic",
  settings: plain,
  keys: [...Object.keys(common), 'forceSSL'],
  credentials: { required: ['username', 'password'], optional: [], others: 'ignored, as in Secretless' },
  scheme: () => basic({ username: 'username', password: 'password' }),
});

/** Conjur's access token for the URLs that match, as Secretless has it. */
export const conjurHttp = secretless({
  summary: "Secretless's forward proxy with the access token of Conjur",
  settings: plain,
  keys: [...Object.keys(common), 'forceSSL'],
  credentials: { required: ['accessToken'], optional: [], others: 'ignored, as in Secretless' },
  scheme: () => conjur('accessToken'),
});

/** Signatures of AWS for the URLs that match, as Secretless has it. */
export const awsHttp = secretless({
  summary:
    "Secretless's forward proxy with signatures of AWS; `http://secretless.empty` is the service that the request is signed for",
  settings: withoutSsl,
  keys: Object.keys(common),
  credentials: {
    required: ['accessKeyId', 'secretAccessKey'],
    optional: ['accessToken'],
    others: 'ignored, as in Secretless',
  },
  scheme: awsSecretless,
  locate(asked, header) {
    // Only where the client could not say https://: Secretless's word for "as the SDK would find it".
    if (asked.tls || asked.host !== 'secretless.empty') return undefined;
    return { tls: true, host: awsEndpointFor(header('authorization') ?? ''), port: 443 };
  },
});

/** Headers, parameters or OAuth 1 from templates for the URLs that match, as Secretless has it. */
export const genericHttp = secretless({
  summary: "Secretless's forward proxy with headers, query parameters or OAuth 1 from templates",
  settings: generic,
  keys: Object.keys(generic.shape),
  credentials: { required: [], optional: [], others: 'used by the templates, by its name' },
  scheme: genericScheme,
  review(settings, credentials) {
    const known = credentials.size > 0 ? `it has ${[...credentials].join(', ')}` : 'it has none';
    const problems: Finding[] = [];
    const named = (name: string, path: readonly string[]) => {
      if (!credentials.has(name))
        problems.push({
          path: ['config', ...path],
          message: `the service has no credential "${name}"; ${known}`,
        });
    };
    for (const key of ['headers', 'queryParams', 'oauth1'] as const)
      for (const [field, { names }] of Object.entries(settings[key] ?? {}))
        for (const name of names) named(name, [key, field]);
    for (const name of Object.keys(settings.credentialValidations))
      named(name, ['credentialValidations', name]);
    if (
      settings.oauth1 &&
      Object.keys(settings.headers ?? {}).some((name) => name.toLowerCase() === 'authorization')
    )
      problems.push({ path: ['config', 'headers'], message: 'has Authorization, which oauth1 sets' });
    return problems;
  },
});

function genericScheme(settings: z.output<typeof generic>): Scheme {
  const fixed = templates(settings.headers ?? {}, settings.queryParams ?? {});
  const { oauth1: given } = settings;
  const signing =
    given &&
    oauth1({
      consumerKey: given.consumer_key,
      consumerSecret: given.consumer_secret,
      token: given.token,
      tokenSecret: given.token_secret,
      signature: 'HMAC-SHA1',
    });
  return {
    ownedHeaders: [...fixed.ownedHeaders, ...(signing?.ownedHeaders ?? [])],
    ownedQuery: fixed.ownedQuery,
    async prepare(credentials, signal) {
      for (const [name, pattern] of Object.entries(settings.credentialValidations))
        if (!pattern.test(charactersOf(valueOf(name, credentials))))
          throw unusable(name, 'does not match its pattern in `credentialValidations`');
      const made = await fixed.prepare(credentials, signal);
      if (!signing) return made;
      const { value: signed } = await signing.prepare(credentials, signal);
      const { headers, query } = made.value;
      return {
        value: {
          headers,
          query,
          ...(signed.signer && { signer: signed.signer }),
          [Symbol.dispose]() {
            made.value[Symbol.dispose]();
            signed[Symbol.dispose]();
          },
        },
      };
    },
  };
}

/** The bytes of a secret as an expression reads them, without a string of them. */
function charactersOf(bytes: Buffer): Characters {
  return { length: bytes.length, charCodeAt: (at) => bytes[at] ?? Number.NaN };
}
