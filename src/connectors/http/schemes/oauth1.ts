import { createHmac, randomBytes } from 'node:crypto';
import { join, percentEncode, percentEncodeText, wipe } from '../../../core/bytes.ts';
import { PosternError } from '../../../core/errors.ts';
import { canonicalQuery, type QueryParameters } from '../../../core/sigv4.ts';
import { unusable } from './fixed.ts';
import { parametersOf } from './query.ts';
import type { Injection, RequestView, Scheme, Signed, Signer } from './scheme.ts';
import type { Template } from './template.ts';

/** Settings of `authenticate.oauth1`. */
export interface OAuth1Settings {
  readonly consumerKey: Template;
  readonly consumerSecret: Template;
  /** Without a token and its secret it is "two-legged": the consumer speaks for itself. */
  readonly token?: Template | undefined;
  readonly tokenSecret?: Template | undefined;
  readonly signature: 'HMAC-SHA1' | 'HMAC-SHA256';
  readonly realm?: string | undefined;
}

/** What a test knows and else nobody. */
export interface Chances {
  readonly now: () => number;
  readonly nonce: () => string;
}

const chances: Chances = { now: Date.now, nonce: () => randomBytes(16).toString('hex') };

/** OAuth 1.0a (RFC 5849): each request is signed with the secrets of the consumer and of the token. */
export function oauth1(settings: OAuth1Settings, given: Partial<Chances> = {}): Scheme {
  return {
    ownedHeaders: ['authorization'],
    ownedQuery: [],
    prepare(credentials) {
      const secrets: Buffer[] = [];
      try {
        for (const template of [settings.consumerSecret, settings.tokenSecret]) {
          const secret = template?.render(credentials) ?? Buffer.allocUnsafe(0);
          secrets.push(secret, percentEncode(secret));
        }
        const [consumerSecret, encodedConsumer, , encodedToken] = secrets;
        if (!consumerSecret?.length) throw unusable(nameOf(settings.consumerSecret), 'is empty');
        // RFC 5849, section 3.4.2: the key.
        const key = join([
          encodedConsumer ?? consumerSecret,
          Buffer.from('&'),
          encodedToken ?? Buffer.allocUnsafe(0),
        ]);
        // The identifiers are no secrets: they are sent as they are.
        const identifier = (template: Template) => {
          const bytes = template.render(credentials);
          if (bytes.length === 0) throw unusable(nameOf(template), 'is empty');
          return bytes.toString('latin1');
        };
        const consumerKey = identifier(settings.consumerKey);
        const token = settings.token && identifier(settings.token);
        return { value: new OAuth1Injection(settings, consumerKey, token, key, { ...chances, ...given }) };
      } finally {
        wipe(...secrets);
      }
    },
  };
}

function nameOf({ names }: Template): string {
  return names.join('", "');
}

class OAuth1Injection implements Injection, Signer {
  readonly headers = Buffer.allocUnsafe(0);
  readonly query = Buffer.allocUnsafe(0);
  readonly signer = this;
  readonly #settings: OAuth1Settings;
  readonly #consumerKey: string;
  readonly #token: string | undefined;
  readonly #key: Buffer;
  readonly #chances: Chances;

  constructor(
    settings: OAuth1Settings,
    consumerKey: string,
    token: string | undefined,
    key: Buffer,
    given: Chances,
  ) {
    this.#settings = settings;
    this.#consumerKey = consumerKey;
    this.#token = token;
    this.#key = key;
    this.#chances = given;
  }

  [Symbol.dispose](): void {
    this.#key.fill(0);
  }

  /** RFC 5849, section 3.4.1.3.1: a body is signed when it is one whole form, and not when it is anything else. */
  needsBody(request: RequestView): boolean {
    if (request.framing === 'none') return false;
    const types = request.headers.filter(([name]) => name.toLowerCase() === 'content-type');
    return (
      types.length === 1 &&
      /^application\/x-www-form-urlencoded[ \t]*(?:;|$)/i.test(types[0]?.[1].trim() ?? '')
    );
  }

  sign(request: RequestView, body: Buffer | undefined): Signed {
    const question = request.target.indexOf('?');
    const path = question === -1 ? request.target : request.target.slice(0, question);
    const inQuery = question === -1 ? [] : parametersOf(request.target.slice(question + 1));
    const inBody = body && this.needsBody(request) ? parametersOf(body.toString('latin1')) : [];
    // Section 3.1: no parameter more than once; and whose would count, ours or the client's?
    if ([...inQuery, ...inBody].some(([name]) => name.startsWith('oauth_')))
      throw new PosternError(
        'CLIENT_REFUSED',
        'the request has parameters of OAuth 1 (oauth_...) of its own; leave the signing to Postern',
      );
    const protocol: QueryParameters = [
      ['oauth_consumer_key', this.#consumerKey],
      ...(this.#token === undefined ? [] : [['oauth_token', this.#token] as const]),
      ['oauth_signature_method', this.#settings.signature],
      ['oauth_timestamp', String(Math.floor(this.#chances.now() / 1000))],
      ['oauth_nonce', this.#chances.nonce()],
      ['oauth_version', '1.0'],
    ];
    const base = baseString(request, path, [...inQuery, ...inBody, ...protocol]);
    const signature = signatureOf(base, this.#key, this.#settings.signature);
    const { realm } = this.#settings;
    const parameters = [
      ...(realm === undefined ? [] : [`realm="${realm}"`]),
      ...[...protocol, ['oauth_signature', signature] as const].map(
        ([name, value]) => `${name}="${percentEncodeText(value)}"`,
      ),
    ];
    return { headers: Buffer.from(`Authorization: OAuth ${parameters.join(', ')}\r\n`) };
  }
}

/** RFC 5849, section 3.4.1. */
export function baseString(
  { method, origin, authority }: Pick<RequestView, 'method' | 'origin' | 'authority'>,
  path: string,
  parameters: QueryParameters,
): string {
  const scheme = origin.tls ? 'https' : 'http';
  const host = authority.toLowerCase().replace(origin.tls ? /:443$/ : /:80$/, '');
  return `${method.toUpperCase()}&${percentEncodeText(`${scheme}://${host}${path}`)}&${percentEncodeText(canonicalQuery(parameters))}`;
}

/** RFC 5849, section 3.4.2, and the same with SHA-256; in base64. */
export function signatureOf(base: string, key: Buffer, method: OAuth1Settings['signature']): string {
  const algorithm = method === 'HMAC-SHA1' ? 'sha1' : 'sha256';
  return createHmac(algorithm, key).update(base).digest('base64');
}
