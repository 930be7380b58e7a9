import { encodeBase64, join, percentEncode, wipe } from '../../../core/bytes.ts';
import type { Credentials } from '../../../core/credentials.ts';
import { PosternError } from '../../../core/errors.ts';
import type { Injection, Scheme } from './scheme.ts';
import { type Template, valueOf } from './template.ts';

/** The same header fields and query parameters for every request of one generation of credentials. */
export class FixedInjection implements Injection {
  readonly headers: Buffer;
  readonly query: Buffer;

  /** Takes ownership of both buffers. */
  constructor(headers: Buffer, query: Buffer = Buffer.allocUnsafe(0)) {
    this.headers = headers;
    this.query = query;
  }

  [Symbol.dispose](): void {
    wipe(this.headers, this.query);
  }
}

/** RFC 7617: `Authorization: Basic` with a user and a password. */
export function basic(names: { readonly username: string; readonly password: string }): Scheme {
  return fixed(['authorization'], (credentials) => {
    const username = valueOf(names.username, credentials);
    const password = valueOf(names.password, credentials);
    if (username.includes(':'))
      throw unusable(names.username, 'holds a ":", which no user of HTTP Basic can have');
    for (const [name, bytes] of [
      [names.username, username],
      [names.password, password],
    ] as const)
      if (bytes.some(isControl)) throw unusable(name, 'holds a control character, such as a line break');
    if (username.length + password.length === 0) throw unusable(names.username, 'is empty');
    return new FixedInjection(basicLine(username, password));
  });
}

/** The whole line; the caller has checked what may not be in it. */
export function basicLine(username: Buffer, password: Buffer): Buffer {
  const pair = join([username, Buffer.from(':'), password]);
  const encoded = encodeBase64(pair);
  const line = join([Buffer.from('Authorization: Basic '), encoded, lineEnd]);
  wipe(pair, encoded);
  return line;
}

/** RFC 6750: `Authorization: Bearer`. */
export function bearer(name: string): Scheme {
  return fixed(
    ['authorization'],
    (credentials) => new FixedInjection(bearerLine(valueOf(name, credentials), `the credential "${name}"`)),
  );
}

/** The whole line. Throws PROVIDER_FAILED for a token that no header can carry; `what` names it in the message. */
export function bearerLine(token: Buffer, what: string): Buffer {
  // RFC 6750 has one word here; a blank in it would be read as the end of the token.
  if (token.includes(0x20) || token.includes(0x09))
    throw new PosternError('PROVIDER_FAILED', `${what} holds a blank; nothing was sent`);
  const value = join([Buffer.from('Bearer '), token]);
  try {
    return headerLine('Authorization', value, what);
  } finally {
    value.fill(0);
  }
}

/**
 * Conjur's access token. Its server reads the header with a pattern that wants the quotes, though its OpenAPI shows
 * none; without them the answer is 401 "Authorization missing".
 */
export function conjur(name: string): Scheme {
  return fixed(['authorization'], (credentials) => {
    const token = valueOf(name, credentials);
    if (token.length === 0) throw unusable(name, 'is empty');
    const encoded = encodeBase64(token);
    const line = join([Buffer.from('Authorization: Token token="'), encoded, Buffer.from('"\r\n')]);
    encoded.fill(0);
    return new FixedInjection(line);
  });
}

/** Header fields and query parameters from templates. */
export function templates(
  headers: Readonly<Record<string, Template>>,
  query: Readonly<Record<string, Template>>,
): Scheme {
  const scheme = fixed(
    Object.keys(headers).map((name) => name.toLowerCase()),
    (credentials) => {
      const lines: Buffer[] = [];
      const parameters: Buffer[] = [];
      try {
        for (const [name, template] of Object.entries(headers)) {
          const value = template.render(credentials);
          try {
            lines.push(headerLine(name, value, `the value of the header "${name}"`));
          } finally {
            value.fill(0);
          }
        }
        for (const [name, template] of Object.entries(query)) {
          const value = template.render(credentials);
          try {
            parameters.push(queryParameter(name, value));
          } finally {
            value.fill(0);
          }
        }
        const separated = parameters.flatMap((each, index) => (index === 0 ? [each] : [ampersand, each]));
        return new FixedInjection(join(lines), join(separated));
      } finally {
        wipe(...lines, ...parameters);
      }
    },
  );
  return { ...scheme, ownedQuery: Object.keys(query) };
}

/** For a service whose credential is not in its requests (a client certificate). */
export function nothing(): Scheme {
  return fixed([], () => new FixedInjection(Buffer.allocUnsafe(0)));
}

function fixed(ownedHeaders: readonly string[], make: (credentials: Credentials) => FixedInjection): Scheme {
  return {
    ownedHeaders,
    ownedQuery: [],
    prepare: (credentials) => ({ value: make(credentials) }),
  };
}

const lineEnd = Buffer.from('\r\n');
const ampersand = Buffer.from('&');

/**
 * `Name: value\r\n`. Throws PROVIDER_FAILED for a value that would end the line (a request of its own could follow),
 * that a server would read as another one because it trims blanks, or that is empty. `what` names it in the message.
 */
export function headerLine(name: string, value: Buffer, what: string): Buffer {
  const bad = (why: string) => new PosternError('PROVIDER_FAILED', `${what} ${why}; nothing was sent`);
  if (value.length === 0) throw bad('is empty');
  if (value.some((byte) => isControl(byte) && byte !== 0x09))
    throw bad('holds a line break or another control character, which no header can carry');
  if (isBlank(value[0]) || isBlank(value.at(-1)))
    throw bad('begins or ends with a blank, which servers cut away (is a credential empty?)');
  return join([Buffer.from(`${name}: `), value, lineEnd]);
}

function queryParameter(name: string, value: Buffer): Buffer {
  if (value.length === 0)
    throw new PosternError(
      'PROVIDER_FAILED',
      `the value of the query parameter "${name}" is empty; nothing was sent`,
    );
  const key = percentEncode(Buffer.from(name, 'utf8'));
  const encoded = percentEncode(value);
  const parameter = join([key, Buffer.from('='), encoded]);
  encoded.fill(0);
  return parameter;
}

/** A credential that was fetched and cannot be used where it belongs. */
export function unusable(name: string, why: string): PosternError {
  return new PosternError('PROVIDER_FAILED', `the credential "${name}" ${why}; nothing was sent`);
}

function isControl(byte: number): boolean {
  return byte < 0x20 || byte === 0x7f;
}

function isBlank(byte: number | undefined): boolean {
  return byte === 0x20 || byte === 0x09;
}
