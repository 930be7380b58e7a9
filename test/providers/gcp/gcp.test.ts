import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { crc32c } from '../../../src/providers/gcp/crc32c.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';
import { email, type FakeGoogle, fakeGoogle, payload, refreshToken, subject } from './fake-google.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-gcp-'));
let google: FakeGoogle;
const opened: Opened[] = [];
beforeEach(async () => {
  google = await fakeGoogle();
  google.versions.set(
    'projects/p/secrets/db/versions/latest',
    payload('{"user":"app","password":"GCP-CANARY-value"}'),
  );
  google.versions.set('projects/p/secrets/db/versions/2', payload('the second\n'));
  google.versions.set('projects/p/locations/eu/secrets/db/versions/latest', payload('regional \x00\xff'));
});
afterEach(async () => {
  for (const provider of opened.splice(0)) {
    await provider.close(AbortSignal.timeout(2000));
    assert.doesNotMatch(provider.logged(), /CANARY/);
  }
  await google.stop();
});
after(() => rmSync(folder, { recursive: true }));

function provider(kind: string, settings: object = {}, environment: Record<string, string> = {}): Opened {
  const store = kind === 'gcp-secret-manager' ? { endpoint: google.url, project: 'p' } : {};
  const one = open(kind, { ...store, ...settings }, { GCE_METADATA_HOST: google.host, ...environment });
  opened.push(one);
  return one;
}
const manager = (settings: object = {}, environment: Record<string, string> = {}) =>
  provider('gcp-secret-manager', settings, environment);
async function refusal(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const thrown = await failure(promise);
  assert.doesNotMatch(inspect(thrown, { depth: null, showHidden: true }) + thrown.stack, /CANARY/);
  return thrown;
}
const file = (name: string, content: object) => {
  writeFileSync(join(folder, name), JSON.stringify(content));
  return join(folder, name);
};

describe('the provider "gcp-secret-manager"', () => {
  it('gives whole secrets, fields of their JSON, versions and regional secrets', async () => {
    const { secrets, version } = await manager().fetch(
      [
        'db#password',
        'db#user',
        'db/versions/2',
        'projects/p/locations/eu/secrets/db',
        'projects/p/secrets/db/versions/latest#user',
      ],
      never,
    );
    assert.deepEqual(
      secrets.map((secret) => secret.reveal().toString('latin1')),
      ['GCP-CANARY-value', 'app', 'the second\n', 'regional \x00\xff', 'app'],
    );
    assert.match(version ?? '', /^db@4, /);
  });

  it('takes the project from the environment, and asks for one', async () => {
    assert.deepEqual(await texts(manager({ project: undefined }, { GOOGLE_CLOUD_PROJECT: 'p' }), 'db#user'), [
      'app',
    ]);
    assert.match(
      (await refusal(manager({ project: undefined }).fetch(['db'], never))).message,
      /"db" names no project/,
    );
  });

  it('refuses a value that is not that of its checksum', async () => {
    google.versions.set('projects/p/secrets/bad/versions/latest', {
      payload: { data: Buffer.from('GCP-CANARY').toString('base64'), dataCrc32c: '1' },
    });
    const refused = await refusal(manager().fetch(['bad'], never));
    assert.equal(refused.code, 'PROVIDER_UNAVAILABLE');
    assert.match(refused.message, /reading "bad": the value is not that of its checksum/);
  });

  it('names what is missing, forbidden, disabled, or too much', async () => {
    assert.match(
      (await refusal(manager().fetch(['none'], never))).message,
      /reading "none": there is no such secret or version \(HTTP 404, NOT_FOUND: Secret \[projects\/p\/secrets\/none\/versions\/latest\] not found/,
    );
    assert.match(
      (await refusal(manager().fetch(['db#none'], never))).message,
      /"db#none": the secret has no field/,
    );
    for (const [http, status, code, text] of [
      [403, 'PERMISSION_DENIED', 'PROVIDER_FAILED', /permission denied/],
      [400, 'FAILED_PRECONDITION', 'PROVIDER_FAILED', /disabled or destroyed/],
      [429, 'RESOURCE_EXHAUSTED', 'PROVIDER_UNAVAILABLE', /no more requests/],
      [503, 'UNAVAILABLE', 'PROVIDER_UNAVAILABLE', /unavailable/],
      [400, 'constructor', 'PROVIDER_FAILED', /Google refused \(HTTP 400\)/],
    ] as const) {
      google.fault = ({ path }) =>
        path.startsWith('/v1') ? { status: http, json: { error: { status } } } : undefined;
      const refused = await refusal(manager({ retries: 0 }).fetch(['db'], never));
      assert.equal(refused.code, code);
      assert.match(refused.message, text);
    }
  });

  it('gets a new token once when Google does not accept its own', async () => {
    const one = manager();
    await texts(one, 'db#user');
    google.accepted.clear();
    assert.deepEqual(await texts(one, 'db#user'), ['app']);
    google.fault = ({ path }) => (path.startsWith('/v1') ? { status: 401, json: {} } : undefined);
    const before = google.seen.length;
    assert.match((await refusal(one.fetch(['db'], never))).message, /HTTP 401/);
    assert.equal(google.seen.length - before, 3);
  });

  for (const bad of ['', 'a/b', '../x', 'db/versions/', 'projects/P/secrets/db', 'db#'])
    it(`refuses the reference ${JSON.stringify(bad)} unasked`, async () => {
      assert.equal((await refusal(manager().fetch([bad], never))).code, 'PROVIDER_FAILED');
      assert.equal(google.seen.length, 0);
    });

  it('computes the checksum of RFC 3720', () => {
    assert.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
    assert.equal(crc32c(Buffer.alloc(32)), 0x8a9136aa);
  });
});

describe("Google's access tokens", () => {
  it('come from the metadata server, whose answer must say that it is one', async () => {
    await texts(manager(), 'db#user');
    assert.match(
      google.seen[0]?.path ?? '',
      /^\/computeMetadata\/v1\/.*\?scopes=https%3A%2F%2Fwww\.googleapis\.com%2Fauth%2Fcloud-platform$/,
    );
    google.fault = ({ path }) =>
      path.startsWith('/computeMetadata') ? { status: 200, json: { access_token: 'GCP-CANARY' } } : undefined;
    assert.match(
      (await refusal(manager().fetch(['db'], never))).message,
      /not one of Google's metadata server/,
    );
  });

  it('come for an assertion that the key of a service account signs', async () => {
    const account = {
      type: 'service_account',
      client_email: email,
      private_key_id: 'kid',
      private_key: google.privateKey,
      token_uri: `${google.url}/token`,
    };
    const path = file('account.json', account);
    assert.deepEqual(await texts(manager({ credentialsFile: path }), 'db#user'), ['app']);
    assert.deepEqual(await texts(manager({}, { GOOGLE_APPLICATION_CREDENTIALS: path }), 'db#user'), ['app']);
    file('account.json', { ...account, client_email: 'other@project' });
    const refused = await refusal(manager({ credentialsFile: path }).fetch(['db'], never));
    assert.match(refused.message, /getting a token for other@project: refused \(HTTP 400, invalid_grant\)$/);
    file('account.json', { ...account, private_key: 'GCP-CANARY' });
    assert.match(
      (await refusal(manager({ credentialsFile: path }).fetch(['db'], never))).message,
      /private key .* cannot be used/,
    );
    file('account.json', { ...account, token_uri: 'http://192.0.2.1/token' });
    assert.match(
      (await refusal(manager({ credentialsFile: path }).fetch(['db'], never))).message,
      /plain http/,
    );
  });

  it('come for the refresh token of a user', async () => {
    const user = {
      type: 'authorized_user',
      client_id: 'c',
      client_secret: 'GCP-CANARY=client',
      refresh_token: refreshToken,
    };
    const path = file('user.json', { ...user, token_uri: `${google.url}/token` });
    assert.deepEqual(await texts(manager({ credentialsFile: path }), 'db#user'), ['app']);
  });

  it('come for a federated token from a file or a URL, also by impersonation', async () => {
    writeFileSync(join(folder, 'subject'), `${subject}\n`);
    const federation = {
      type: 'external_account',
      audience: '//iam.example',
      subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
      token_url: `${google.url}/token`,
    };
    const json = { type: 'json', subject_token_field_name: 'wrapped' };
    for (const extra of [
      { credential_source: { file: join(folder, 'subject') } },
      { credential_source: { url: `${google.url}/subject`, headers: { A: 'b' }, format: json } },
      {
        credential_source: { file: join(folder, 'subject') },
        service_account_impersonation_url: `${google.url}/impersonate`,
      },
    ]) {
      const path = file('federation.json', { ...federation, ...extra });
      assert.deepEqual(await texts(manager({ credentialsFile: path }), 'db#user'), ['app']);
    }
    const path = file('federation.json', { ...federation, credential_source: { executable: {} } });
    assert.match(
      (await refusal(manager({ credentialsFile: path }).fetch(['db'], never))).message,
      /another credential_source/,
    );
  });

  it('are kept until shortly before their end, which may be written as a text', async () => {
    const asked = () => google.seen.filter(({ path }) => path.startsWith('/computeMetadata')).length;
    google.expiresIn = '3599';
    const one = manager();
    await Promise.all(Array.from({ length: 10 }, () => texts(one, 'db#user')));
    await texts(one, 'db#user');
    assert.equal(asked(), 1);
    google.expiresIn = '0';
    const late = manager();
    await texts(late, 'db#user');
    await texts(late, 'db#user');
    assert.equal(asked(), 3);
  });
});

describe('the provider "cloudsql-iam"', () => {
  const scope = 'https://www.googleapis.com/auth/sqlservice.login';

  it('gives a token of the scope of database logins, and its end', async () => {
    google.tokenFor.set(scope, `GCP-CANARY-${'x'.repeat(1500)}`);
    const before = Date.now();
    const grant = await provider('cloudsql-iam').fetch(['token'], never);
    assert.equal(grant.secrets[0]?.reveal().toString(), google.tokenFor.get(scope));
    assert.ok(
      Number(grant.expiresAt) >= before + 3_599_000 && Number(grant.expiresAt) <= Date.now() + 3_599_000,
    );
  });

  it('names a scope that Google refuses, and a reference that is none', async () => {
    const refused = await refusal(provider('cloudsql-iam').fetch(['https://example.com/nothing'], never));
    assert.match(refused.message, /invalid_scope/);
    assert.match(
      (await refusal(provider('cloudsql-iam').fetch(['password'], never))).message,
      /must be `token`/,
    );
  });
});
