import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { failure, never, type Opened, open, texts } from '../opening.ts';
import { assertion, clientSecret, type FakeAzure, fakeAzure, identityHeader } from './fake-azure.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-azure-'));
const scope = 'https://vault.azure.net/.default';
let azure: FakeAzure;
const opened: Opened[] = [];
beforeEach(async () => {
  azure = await fakeAzure();
  azure.secrets.set('db', { value: '{"user":"app","password":"AZURE-CANARY-value"}' });
  azure.secrets.set('db/aa11', { value: 'the former' });
});
afterEach(async () => {
  for (const provider of opened.splice(0)) {
    await provider.close(AbortSignal.timeout(2000));
    assert.doesNotMatch(provider.logged(), /CANARY/);
  }
  await azure.stop();
});
after(() => rmSync(folder, { recursive: true }));

function provider(kind: string, settings: object = {}, environment: Record<string, string> = {}): Opened {
  const store = kind === 'azure-key-vault' ? { vault: azure.url, scope } : {};
  const one = open(
    kind,
    { ...store, ...settings },
    { AZURE_POD_IDENTITY_AUTHORITY_HOST: azure.url, ...environment },
  );
  opened.push(one);
  return one;
}
const vault = (settings: object = {}, environment: Record<string, string> = {}) =>
  provider('azure-key-vault', settings, environment);
async function refusal(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const thrown = await failure(promise);
  assert.doesNotMatch(inspect(thrown, { depth: null, showHidden: true }) + thrown.stack, /CANARY/);
  return thrown;
}

describe('the provider "azure-key-vault"', () => {
  it('gives a whole secret, fields of its JSON, and another version', async () => {
    const { secrets, version } = await vault().fetch(['db#password', 'db#user', 'db/aa11'], never);
    assert.deepEqual(
      secrets.map((secret) => secret.reveal().toString()),
      ['AZURE-CANARY-value', 'app', 'the former'],
    );
    assert.equal(version, 'db@0123abcd, db/aa11@0123abcd');
  });

  it('names what is missing, forbidden, or too much', async () => {
    const missing = await refusal(vault().fetch(['none'], never));
    assert.equal(missing.code, 'PROVIDER_FAILED');
    assert.match(
      missing.message,
      /reading "none": there is no such secret or version \(HTTP 404, SecretNotFound: A secret/,
    );
    assert.match(
      (await refusal(vault().fetch(['db#none'], never))).message,
      /"db#none": the secret has no field/,
    );
    for (const [status, inner, code, text] of [
      [403, 'SecretDisabled', 'PROVIDER_FAILED', /\(HTTP 403, SecretDisabled/],
      [429, 'Throttled', 'PROVIDER_UNAVAILABLE', /no more requests/],
      [500, 'x', 'PROVIDER_UNAVAILABLE', /Key Vault failed/],
    ] as const) {
      azure.fault = ({ path }) =>
        path.startsWith('/secrets')
          ? { status, json: { error: { code: 'F', innererror: { code: inner } } } }
          : undefined;
      const refused = await refusal(vault({ retries: 0 }).fetch(['db'], never));
      assert.equal(refused.code, code);
      assert.match(refused.message, text);
    }
  });

  it('obeys Retry-After when it is short, and gives up at once when it is long', async () => {
    let count = 0;
    azure.fault = ({ path }) =>
      path.startsWith('/secrets') && count++ === 0
        ? { status: 429, headers: { 'retry-after': '1' } }
        : undefined;
    const started = performance.now();
    assert.deepEqual(await texts(vault(), 'db#user'), ['app']);
    assert.ok(performance.now() - started >= 990);
    azure.fault = ({ path }) =>
      path.startsWith('/secrets') ? { status: 429, headers: { 'retry-after': '60' } } : undefined;
    const before = azure.seen.length;
    assert.equal((await refusal(vault().fetch(['db'], never))).code, 'PROVIDER_UNAVAILABLE');
    assert.equal(azure.seen.length - before, 2);
  });

  it('sends its token to hosts of Key Vault only, unless a scope is set', async () => {
    for (const url of [
      'https://vault.azure.net.evil.example',
      'https://evilvault.azure.net',
      'http://name.vault.azure.net',
    ]) {
      const refused = await refusal(open('azure-key-vault', { vault: url }, {}).fetch(['db'], never));
      assert.match(refused.message, /is no host of Key Vault/);
    }
  });

  it('gets a new token once, and never follows the challenge of a vault', async () => {
    const one = vault();
    await texts(one, 'db#user');
    azure.accepted.clear();
    assert.deepEqual(await texts(one, 'db#user'), ['app']);
    azure.fault = ({ path }) =>
      path.startsWith('/secrets')
        ? {
            status: 401,
            headers: {
              'www-authenticate': `Bearer authorization="${azure.url}/evil", resource="https://evil.example"`,
            },
          }
        : undefined;
    const refused = await refusal(one.fetch(['db'], never));
    assert.equal(refused.code, 'PROVIDER_FAILED');
    assert.match(refused.message, /asks for one for evil\.example, which is not the domain of 127\.0\.0\.1/);
    assert.ok(azure.seen.every(({ path }) => !path.includes('evil')));
  });

  for (const bad of ['', 'a_b', 'a/b/c', '../x', 'a/', 'a#'])
    it(`refuses the reference ${JSON.stringify(bad)} unasked`, async () => {
      assert.equal((await refusal(vault().fetch([bad], never))).code, 'PROVIDER_FAILED');
      assert.equal(azure.seen.length, 0);
    });
});

describe("Entra ID's access tokens", () => {
  const tenant = { AZURE_TENANT_ID: 'tenant', AZURE_CLIENT_ID: 'client' };

  it('come for a client secret, from the authority of the environment', async () => {
    const environment = { ...tenant, AZURE_CLIENT_SECRET: clientSecret, AZURE_AUTHORITY_HOST: azure.url };
    assert.deepEqual(await texts(vault({}, environment), 'db#user'), ['app']);
    assert.deepEqual(azure.asked, [scope]);
    const refused = await refusal(
      vault({}, { ...environment, AZURE_CLIENT_SECRET: 'AZURE-CANARY-wrong' }).fetch(['db'], never),
    );
    assert.match(refused.message, /logging in to the tenant tenant: refused \(HTTP 401, invalid_client\)$/);
  });

  it('come for the federated token of a file that is read each time', async () => {
    const path = join(folder, 'federated');
    writeFileSync(path, `${assertion}\n`);
    const environment = { ...tenant, AZURE_FEDERATED_TOKEN_FILE: path, AZURE_AUTHORITY_HOST: azure.url };
    assert.deepEqual(await texts(vault({}, environment), 'db#user'), ['app']);
    assert.deepEqual(
      await texts(
        vault({ tenantId: 'tenant', clientId: 'client' }, { ...environment, AZURE_CLIENT_ID: 'x' }),
        'db#user',
      ),
      ['app'],
    );
    writeFileSync(path, 'AZURE-CANARY.old');
    assert.equal((await refusal(vault({}, environment).fetch(['db'], never))).code, 'PROVIDER_FAILED');
  });

  it('come from App Service, and from the identity of the machine, for a resource', async () => {
    const environment = { IDENTITY_ENDPOINT: `${azure.url}/msi/token`, IDENTITY_HEADER: identityHeader };
    assert.deepEqual(await texts(vault({}, environment), 'db#user'), ['app']);
    assert.deepEqual(await texts(vault({ clientId: 'one' }), 'db#user'), ['app']);
    assert.deepEqual(azure.asked, ['https://vault.azure.net', 'https://vault.azure.net']);
    const [machine] = azure.seen.filter(({ path }) => path.startsWith('/metadata'));
    assert.match(machine?.path ?? '', /&client_id=one$/);
  });

  it('go over plain http to this machine and its hypervisor only', async () => {
    const environment = {
      ...tenant,
      AZURE_CLIENT_SECRET: clientSecret,
      AZURE_AUTHORITY_HOST: 'http://192.0.2.1',
    };
    assert.match((await refusal(vault({}, environment).fetch(['db'], never))).message, /plain http/);
  });
});

describe('the provider "entra"', () => {
  const resource = 'https://ossrdbms-aad.database.windows.net';

  it('gives a token for databases, or for another scope, and its end', async () => {
    azure.tokenFor.set(resource, `AZURE-CANARY-${'x'.repeat(3000)}`);
    const grant = await provider('entra').fetch(['token', 'https://example.com/.default'], never);
    assert.equal(grant.secrets[0]?.reveal().toString(), azure.tokenFor.get(resource));
    assert.deepEqual(azure.asked, [resource, 'https://example.com']);
    assert.ok(Math.abs(Number(grant.expiresAt) - Date.now() - 3_599_000) < 5000);
  });

  it('says which way it tried when there is no identity at all', async () => {
    const refused = await refusal(
      provider('entra', { retries: 0 }, { AZURE_POD_IDENTITY_AUTHORITY_HOST: 'http://127.0.0.1:1' }).fetch(
        ['token'],
        never,
      ),
    );
    assert.equal(refused.code, 'PROVIDER_UNAVAILABLE');
    assert.match(refused.message, /there is neither a client secret nor a workload identity/);
  });
});
