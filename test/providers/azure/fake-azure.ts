import { type FakeHttp, fakeHttp, type Said, type Seen } from '../../support/fake-http.ts';

/** A FAKE of Entra ID, of managed identities and of a Key Vault in one place. */
export interface FakeAzure extends FakeHttp {
  /** By name, or name/version. */
  readonly secrets: Map<string, object>;
  readonly accepted: Set<string>;
  /** By scope, or by resource. */
  readonly tokenFor: Map<string, string>;
  readonly asked: string[];
  challenge: string;
  fault: ((seen: Seen, count: number) => Said | undefined) | undefined;
}

export const assertion = 'AZURE-CANARY.federated.token';
export const clientSecret = 'AZURE-CANARY~secret&=';
export const identityHeader = 'AZURE-CANARY-header';

export async function fakeAzure(): Promise<FakeAzure> {
  const fake = await fakeHttp((seen, _response, count) => self.fault?.(seen, count) ?? answer(seen));
  const self: FakeAzure = Object.assign(fake, {
    secrets: new Map<string, object>(),
    accepted: new Set<string>(),
    tokenFor: new Map<string, string>(),
    asked: [] as string[],
    challenge:
      'Bearer authorization="https://login.microsoftonline.com/some-tenant", resource="https://vault.azure.net"',
    fault: undefined,
  });
  let made = 0;

  function token(wanted: string, end: object): Said {
    self.asked.push(wanted);
    if (wanted.includes('nothing')) return { status: 400, json: { error: 'invalid_resource' } };
    const access_token = self.tokenFor.get(wanted) ?? `AZURE-CANARY-token-${made++}`;
    self.accepted.add(access_token);
    return { status: 200, json: { access_token, token_type: 'Bearer', ...end } };
  }

  function answer(seen: Seen): Said {
    const url = new URL(seen.path, fake.url);
    const query = url.searchParams;
    const resource = query.get('resource') ?? '';
    const expiresOn = { expires_on: String(Math.floor(Date.now() / 1000) + 3600) };
    if (url.pathname === '/tenant/oauth2/v2.0/token' && seen.method === 'POST')
      return login(new URLSearchParams(seen.body));
    if (url.pathname === '/metadata/identity/oauth2/token') {
      const right = seen.headers['metadata'] === 'true' && query.get('api-version') === '2018-02-01';
      return right ? token(resource, { ...expiresOn, expires_in: '3599' }) : { status: 400 };
    }
    if (url.pathname === '/msi/token') {
      const right =
        seen.headers['x-identity-header'] === identityHeader && query.get('api-version') === '2019-08-01';
      return right ? token(resource, expiresOn) : { status: 401 };
    }
    if (url.pathname.startsWith('/secrets/')) return secret(seen, url);
    return { status: 404 };
  }

  function login(form: URLSearchParams): Said {
    const client = form.get('client_id') === 'client' && form.get('grant_type') === 'client_credentials';
    const proven =
      form.get('client_secret') === clientSecret ||
      (form.get('client_assertion') === assertion &&
        form.get('client_assertion_type') === 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer');
    if (client && proven) return token(form.get('scope') ?? '', { expires_in: 3599 });
    return {
      status: 401,
      json: { error: 'invalid_client', error_description: `AADSTS7000215: ${form.toString()}` },
    };
  }

  function secret(seen: Seen, url: URL): Said {
    const bearer = /^Bearer (.*)$/.exec(seen.headers.authorization ?? '')?.[1] ?? '';
    if (!self.accepted.has(bearer)) {
      return {
        status: 401,
        json: { error: { code: 'Unauthorized' } },
        headers: { 'www-authenticate': self.challenge },
      };
    }
    if (url.searchParams.get('api-version') !== '7.4')
      return { status: 400, json: { error: { code: 'BadParameter' } } };
    const name = url.pathname.slice('/secrets/'.length);
    const found = self.secrets.get(name);
    if (!found) {
      const message = `A secret with (name/id) ${name} was not found in this key vault.`;
      return { status: 404, json: { error: { code: 'SecretNotFound', message } } };
    }
    return {
      status: 200,
      json: {
        id: `${fake.url}/secrets/${name.split('/')[0]}/0123abcd`,
        attributes: { enabled: true },
        ...found,
      },
    };
  }

  return self;
}
