import { generateKeyPairSync, verify } from 'node:crypto';

import { type FakeHttp, fakeHttp, type Said, type Seen } from '../../support/fake-http.ts';

/** A FAKE of Google's metadata server, token endpoints and Secret Manager in one place. */
export interface FakeGoogle extends FakeHttp {
  /** By what stands behind /v1/: `projects/p/secrets/s/versions/latest`. */
  readonly versions: Map<string, object>;
  readonly privateKey: string;
  /** Tokens that it accepts, and those that it hands out by scope; the end is a number or a text, in seconds. */
  readonly accepted: Set<string>;
  readonly tokenFor: Map<string, string>;
  expiresIn: number | string;
  fault: ((seen: Seen, count: number) => Said | undefined) | undefined;
}

export const email = 'app@project.iam.gserviceaccount.com';
export const subject = 'GCP-CANARY.federated.token';
export const refreshToken = 'GCP-CANARY/refresh&token';

export async function fakeGoogle(): Promise<FakeGoogle> {
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const fake = await fakeHttp((seen, _response, count) => self.fault?.(seen, count) ?? answer(seen));
  const self: FakeGoogle = Object.assign(fake, {
    versions: new Map<string, object>(),
    privateKey: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    accepted: new Set<string>(),
    tokenFor: new Map<string, string>(),
    expiresIn: 3599,
    fault: undefined,
  });
  let made = 0;

  function token(scope: string): { status: number; json: { access_token: string } } {
    const access_token = self.tokenFor.get(scope) ?? `GCP-CANARY-token-${made++}`;
    self.accepted.add(access_token);
    const json = { access_token, expires_in: self.expiresIn, token_type: 'Bearer' };
    return { status: 200, json };
  }

  function answer(seen: Seen): Said {
    const url = new URL(seen.path, fake.url);
    if (url.pathname === '/computeMetadata/v1/instance/service-accounts/default/token') {
      if (seen.headers['metadata-flavor'] !== 'Google') return { status: 403 };
      const scope = url.searchParams.get('scopes') ?? '';
      if (scope.includes('nothing')) return refuse(400, 'invalid_scope', { 'metadata-flavor': 'Google' });
      return { ...token(scope), headers: { 'metadata-flavor': 'Google' } };
    }
    if (seen.method === 'POST' && url.pathname === '/token') return grant(new URLSearchParams(seen.body));
    if (seen.method === 'POST' && url.pathname === '/impersonate') {
      if (!isAccepted(seen)) return { status: 401 };
      const { scope } = JSON.parse(seen.body) as { scope: string[] };
      const { json } = token(scope[0] ?? '');
      return { status: 200, json: { accessToken: json.access_token, expireTime: '2099-01-01T00:00:00Z' } };
    }
    if (url.pathname === '/subject') return { status: 200, json: { wrapped: subject } };
    if (seen.method === 'GET' && url.pathname.startsWith('/v1/')) return access(seen, url.pathname);
    return { status: 404, json: {} };
  }

  function grant(form: URLSearchParams): Said {
    switch (form.get('grant_type')) {
      case 'urn:ietf:params:oauth:grant-type:jwt-bearer': {
        const [header = '', claims = '', signature = ''] = (form.get('assertion') ?? '').split('.');
        const read = (part: string) =>
          JSON.parse(Buffer.from(part, 'base64url').toString()) as Record<string, unknown>;
        const { iss, aud, scope, iat, exp } = read(claims) as Record<string, string & number>;
        const valid =
          read(header)['alg'] === 'RS256' &&
          iss === email &&
          aud === `${fake.url}/token` &&
          Math.abs(Number(iat) - Date.now() / 1000) < 60 &&
          Number(exp) - Number(iat) <= 3600 &&
          verify(
            'RSA-SHA256',
            Buffer.from(`${header}.${claims}`),
            publicKey,
            Buffer.from(signature, 'base64url'),
          );
        return valid ? token(String(scope)) : refuse(400, 'invalid_grant');
      }
      case 'refresh_token':
        return form.get('refresh_token') === refreshToken && form.get('client_secret') === 'GCP-CANARY=client'
          ? token('')
          : refuse(400, 'invalid_grant');
      case 'urn:ietf:params:oauth:grant-type:token-exchange':
        return form.get('subject_token') === subject &&
          form.get('audience') === '//iam.example' &&
          form.get('subject_token_type') === 'urn:ietf:params:oauth:token-type:jwt'
          ? token(form.get('scope') ?? '')
          : refuse(400, 'invalid_request');
      default:
        return refuse(400, 'unsupported_grant_type');
    }
  }

  function access(seen: Seen, path: string): Said {
    if (!isAccepted(seen)) return { status: 401, json: { error: { code: 401, status: 'UNAUTHENTICATED' } } };
    const [, name = ''] = /^\/v1\/(.*):access$/.exec(path) ?? [];
    const found = self.versions.get(name);
    if (!found) {
      const message = `Secret [${name}] not found or has no versions.`;
      return { status: 404, json: { error: { code: 404, status: 'NOT_FOUND', message } } };
    }
    return { status: 200, json: { name: name.replace(/latest$/, '4'), ...found } };
  }

  function isAccepted({ headers }: Seen): boolean {
    return self.accepted.has(/^Bearer (.*)$/.exec(headers.authorization ?? '')?.[1] ?? '');
  }

  return self;
}

/** The payload of a value, its checksum computed bit by bit. */
export function payload(value: string): object {
  const bytes = Buffer.from(value, 'latin1');
  let crc = 0xffffffffn;
  for (const byte of bytes) {
    crc ^= BigInt(byte);
    for (let bit = 0; bit < 8; bit++) crc = crc & 1n ? (crc >> 1n) ^ 0x82f63b78n : crc >> 1n;
  }
  return { payload: { data: bytes.toString('base64'), dataCrc32c: String(crc ^ 0xffffffffn) } };
}

function refuse(status: number, error: string, headers: Record<string, string> = {}): Said {
  return { status, json: { error, error_description: 'GCP-CANARY: what was sent' }, headers };
}
