import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

import { type Effective, settings, withEnvironment } from '../../../src/providers/conjur/settings.ts';
import { failure, never, open, texts } from '../opening.ts';
import { fakeConjur } from './fake-conjur.ts';

const home = mkdtempSync(join(tmpdir(), 'postern-conjur-home-'));
after(() => rmSync(home, { recursive: true }));

const basics = { CONJUR_APPLIANCE_URL: 'https://conjur.internal/', CONJUR_ACCOUNT: 'demo' };
const none = join(home, 'none');

/** What is used for an entry under `providers:` in an environment without files. */
const used = (entry: object, environment: Record<string, string> = {}, systemFile = none): Effective =>
  withEnvironment(
    settings.parse(entry),
    { name: 'conjur', environment: { HOME: home, CONJURRC: none, ...environment } },
    systemFile,
  );
const invalid = (message: RegExp) => ({ code: 'CONFIG_INVALID', message });

describe('what Conjur is asked with', () => {
  it('comes from the entry, before the variables, before ~/.conjurrc, before /etc/conjur.conf', () => {
    const [system, own] = [join(home, 'conjur.conf'), join(home, 'own.yml')];
    writeFileSync(
      system,
      'account: system\nappliance_url: https://system\ncert_file: /system.pem\nplugins: []\n',
    );
    writeFileSync(own, '---\naccount: own\nappliance_url: https://own/path\nhttp_timeout: 30\n');
    const outside = { CONJURRC: own, CONJUR_ACCOUNT: 'variable' };
    const seen = used({}, outside, system);
    assert.deepEqual(
      [seen.account, seen.base, seen.ca, seen.timeout],
      ['variable', 'https://own/path', { file: '/system.pem' }, 30_000],
    );
    const entry = { account: 'entry', url: 'https://entry', tls: { ca: '/e.pem' }, timeout: '2s' };
    const given = used(entry, outside, system);
    assert.deepEqual(
      [given.account, given.base, given.ca, given.timeout],
      ['entry', 'https://entry', { file: '/e.pem' }, 2000],
    );
    assert.equal(used({}, { CONJURRC: '' }, system).account, 'system', 'an empty variable is none');
    writeFileSync(join(home, '.conjurrc'), 'conjur_account: python\nconjur_url: https://python\n');
    const python = used({}, { CONJURRC: '' }, system);
    assert.deepEqual([python.account, python.base], ['python', 'https://python']);
    rmSync(join(home, '.conjurrc'));
  });

  it('is wrong without a URL or an account, with a URL that is none, and with files that are not theirs', () => {
    assert.throws(() => used({}), invalid(/give `url`, or set CONJUR_APPLIANCE_URL/));
    assert.throws(() => used({ url: 'https://x' }), invalid(/give `account`/));
    for (const url of ['conjur.internal', 'ftp://x', 'https://me:pass@x', 'https://x/?a=b'])
      assert.throws(() => used({ url, account: 'a' }), invalid(/url must be/));
    for (const account of ['a/b', '..', 'a:b'])
      assert.throws(() => used({}, { ...basics, CONJUR_ACCOUNT: account }), invalid(/account is no name/));
    const odd = join(home, 'odd');
    for (const content of ['- CANARY', 'CANARY', '{CANARY', 'a: &x [*x, *x'])
      assert.throws(
        () => {
          writeFileSync(odd, content);
          used({}, { ...basics, CONJURRC: odd });
        },
        invalid(
          /^provider "conjur": the file ".*odd" is not one of Conjur's clients \(YAML with keys such as appliance_url\)$/,
        ),
      );
    for (const seconds of ['0', '601', '1.5', 'x'])
      assert.throws(() => used({}, { ...basics, CONJUR_HTTP_TIMEOUT: seconds }), invalid(/from 1 to 600/));
  });

  it('knows where the hosted service has its API, and its account', () => {
    const hosted = used({ url: 'https://acme.secretsmgr.cyberark.cloud' });
    assert.deepEqual([hosted.base, hosted.account], ['https://acme.secretsmgr.cyberark.cloud/api', 'conjur']);
    assert.equal(
      used({ url: 'https://acme-secretsmanager.cyberark.cloud/api/' }).base,
      'https://acme-secretsmanager.cyberark.cloud/api',
    );
    assert.throws(() => used({ url: 'https://secretsmgr.cyberark.cloud.evil.example' }), invalid(/account/));
  });
});

describe('how Postern logs in when the entry does not say', () => {
  const auth = (environment: Record<string, string>) => used({}, { ...basics, ...environment }).auth;
  const login = { CONJUR_AUTHN_LOGIN: 'host/app', CONJUR_AUTHN_API_KEY: 'CANARY' };
  const jwtUrl = 'https://conjur.internal/authn-jwt/k8s';
  const account = '/var/run/secrets/kubernetes.io/serviceaccount/token';

  it('is the order of Secretless: key, token file, authenticator URL; then a token, then JWT', () => {
    const all = {
      ...login,
      CONJUR_AUTHN_TOKEN_FILE: '/token',
      CONJUR_AUTHN_URL: `${jwtUrl}/`,
      CONJUR_AUTHN_TOKEN: 'CANARY',
      CONJUR_AUTHN_JWT_SERVICE_ID: 'other',
    };
    const { CONJUR_AUTHN_API_KEY: _, ...withoutKey } = all;
    const { CONJUR_AUTHN_TOKEN_FILE: __, ...withoutFile } = withoutKey;
    const { CONJUR_AUTHN_URL: ___, ...withoutUrl } = withoutFile;
    const { CONJUR_AUTHN_TOKEN: ____, ...withoutToken } = withoutUrl;
    assert.deepEqual(auth(all), {
      method: 'apiKey',
      login: 'host/app',
      key: { variable: 'CONJUR_AUTHN_API_KEY' },
    });
    assert.deepEqual(auth(withoutKey), { method: 'tokenFile', path: '/token' });
    const jwt = { file: account };
    assert.deepEqual(auth(withoutFile), { method: 'jwt', url: jwtUrl, hostId: 'host/app', jwt });
    assert.deepEqual(auth(withoutUrl), { method: 'token', token: { variable: 'CONJUR_AUTHN_TOKEN' } });
    const other = 'https://conjur.internal/authn-jwt/other';
    assert.deepEqual(auth(withoutToken), { method: 'jwt', url: other, hostId: 'host/app', jwt });
  });

  it('reads the token of the sidecar where the URL is that of authn-k8s', () => {
    const found = auth({
      CONJUR_AUTHN_URL: 'https://conjur.internal/authn-k8s/prod',
      CONJUR_AUTHN_LOGIN: 'x',
    });
    assert.deepEqual(found, { method: 'tokenFile', path: '/run/conjur/access-token' });
  });

  it('takes the parts of a JWT login from their variables', () => {
    const found = auth({
      CONJUR_AUTHN_TYPE: 'jwt',
      CONJUR_SERVICE_ID: 'a/b',
      CONJUR_AUTHN_JWT_HOST_ID: 'orders',
      JWT_TOKEN_PATH: '/jwt',
    });
    const url = 'https://conjur.internal/authn-jwt/a%2Fb';
    assert.deepEqual(found, { method: 'jwt', url, hostId: 'orders', jwt: { file: '/jwt' } });
    const inline = auth({ CONJUR_AUTHN_JWT_SERVICE_ID: 's', CONJUR_AUTHN_JWT_TOKEN: 'CANARY' });
    assert.deepEqual(inline.method === 'jwt' && inline.jwt, { variable: 'CONJUR_AUTHN_JWT_TOKEN' });
  });

  it('says that it does not know an authenticator', () => {
    assert.throws(() => auth({ CONJUR_AUTHN_TYPE: 'ldap' }), invalid(/authenticator "ldap"/));
    assert.throws(() => auth({ CONJUR_AUTHN_TYPE: 'jwt' }), invalid(/JWT \(with a service id\)/));
  });

  it('takes last what the command line of Conjur stored', async (t) => {
    const conjur = await fakeConjur({
      keys: { 'host/app': 'key' },
      variables: { x: { values: [Buffer.from('v')], execute: ['host/app'] } },
    });
    t.after(conjur.stop);
    const netrc = join(home, '.netrc');
    const environment = {
      HOME: home,
      CONJUR_APPLIANCE_URL: conjur.url,
      CONJUR_ACCOUNT: 'demo',
      CONJURRC: none,
    };
    const provider = open('conjur', {}, environment);
    t.after(() => provider.close(never));
    const missing = await failure(provider.fetch(['x'], never));
    assert.equal(missing.code, 'PROVIDER_FAILED');
    assert.match(missing.message, /no way to log in: give `auth`, or set CONJUR_AUTHN_LOGIN/);
    writeFileSync(
      netrc,
      `machine other login me password CANARY\nmachine ${conjur.url}/authn\n  login host/app\n  password key\ndefault login x password y\n`,
    );
    assert.deepEqual(await texts(provider, 'x'), ['v']);
    writeFileSync(netrc, 'machine https://elsewhere/authn login host/app password CANARY\n');
    const foreign = open('conjur', {}, environment);
    t.after(() => foreign.close(never));
    const error = await failure(foreign.fetch(['x'], never));
    assert.match(error.message, /\.netrc" has no login for http:/);
    assert.doesNotMatch(error.message, /CANARY/);
  });

  it('runs an unchanged Secretless set-up: `from: conjur` with its variables', async (t) => {
    const conjur = await fakeConjur({
      keys: { 'host/app': 'key' },
      variables: { 'prod/db/username': { values: [Buffer.from('v')], execute: ['host/app'] } },
    });
    t.after(conjur.stop);
    const provider = open(
      'conjur',
      {},
      {
        CONJUR_APPLIANCE_URL: conjur.url,
        CONJUR_ACCOUNT: 'demo',
        CONJUR_VERSION: '5',
        CONJUR_AUTHN_LOGIN: 'host/app',
        CONJUR_AUTHN_API_KEY: 'key',
      },
    );
    t.after(() => provider.close(never));
    assert.deepEqual(await texts(provider, 'prod/db/username'), ['v']);
  });
});

describe('an entry under providers', () => {
  it('is refused when it says a thing twice, or not at all', () => {
    const wrong = (entry: object) => assert.equal(settings.safeParse(entry).success, false);
    wrong({ auth: { method: 'apiKey', login: 'x' } });
    wrong({ auth: { method: 'apiKey', login: 'x', apiKey: 'a', apiKeyFile: '/b' } });
    wrong({ auth: { method: 'apiKey', login: '..', apiKey: 'a' } });
    wrong({ auth: { method: 'jwt' } });
    wrong({ auth: { method: 'oidc' } });
    wrong({ account: 'a/b' });
    wrong({ tls: { ca: '/a', caPem: 'b' } });
    wrong({ timeout: '0s' });
    wrong({ addres: 'https://x' });
  });
});
