import {
  authenticate,
  type Injection,
  openScheme,
  type RequestView,
  type Scheme,
} from '../../../../src/connectors/http/schemes/index.ts';
import { Credentials } from '../../../../src/core/credentials.ts';
import { Secret } from '../../../../src/core/secret.ts';

/** Credentials as a provider would have brought them. */
export function credentials(values: Readonly<Record<string, string>>): Credentials {
  return new Credentials(
    new Map(Object.entries(values).map(([name, value]) => [name, new Secret(Buffer.from(value))])),
  );
}

/** The scheme of a service with this `authenticate:`. */
export function scheme(settings: unknown, now?: () => number): Scheme {
  return openScheme(authenticate.parse(settings), { name: 'api', ...(now && { now }) });
}

/** What a scheme makes of credentials. */
export async function prepared(
  settings: unknown,
  values: Readonly<Record<string, string>>,
  now?: () => number,
): Promise<Injection> {
  const { value } = await scheme(settings, now).prepare(credentials(values), new AbortController().signal);
  return value;
}

/** A request as the engine shows it to a signer. */
export function request(about: {
  readonly method?: string;
  readonly url: string;
  readonly headers?: readonly (readonly [string, string])[];
  readonly cut?: readonly (readonly [string, string])[];
  readonly body?: Buffer;
  readonly chunked?: boolean;
}): RequestView {
  const { origin, host, protocol, hostname, port } = new URL(about.url);
  const tls = protocol === 'https:';
  return {
    method: about.method ?? 'GET',
    origin: { tls, host: hostname, port: port === '' ? (tls ? 443 : 80) : Number(port) },
    authority: host,
    // Not the path that URL has made of it: dot segments and escapes are what some tests are about.
    target: about.url.slice(origin.length) || '/',
    headers: about.headers ?? [],
    cut: about.cut ?? [],
    framing: about.chunked ? 'chunked' : about.body ? 'length' : 'none',
    contentLength: about.chunked ? undefined : about.body?.length,
  };
}

/** The lines of a header block by name, in lower case. */
export function fields(headers: Buffer): Map<string, string> {
  return new Map(
    headers
      .toString('latin1')
      .split('\r\n')
      .slice(0, -1)
      .map((line) => {
        const colon = line.indexOf(': ');
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 2)];
      }),
  );
}
