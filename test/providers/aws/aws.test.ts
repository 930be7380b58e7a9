import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { failure, never, type Opened, open, texts } from '../opening.ts';
import { error, type FakeAws, fakeAws, keys, podToken, temporary, webIdentity } from './fake-aws.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-aws-'));
const credentials = { AWS_ACCESS_KEY_ID: keys.id, AWS_SECRET_ACCESS_KEY: keys.secret };
const json = JSON.stringify({
  username: 'app',
  password: 'AWS-CANARY-value',
  port: 5432,
  nested: { 'a.b': true },
});

let aws: FakeAws;
const opened: Opened[] = [];
before(() => mkdirSync(join(folder, '.aws')));
beforeEach(async () => {
  aws = await fakeAws();
  aws.secrets.set('prod/db', { SecretString: json, VersionId: 'v-2' });
  aws.secrets.set('prod/db@AWSPREVIOUS', { SecretString: '{"password":"the former"}', VersionId: 'v-1' });
  aws.secrets.set('prod/db@v-1', { SecretString: '{"password":"of v-1"}', VersionId: 'v-1' });
  aws.secrets.set('binary', {
    SecretBinary: Buffer.from('\x00\xff\n', 'latin1').toString('base64'),
    VersionId: 'b',
  });
  aws.parameters.set('/app/password', { Value: 'of ssm', Version: 7 });
  aws.parameters.set('/app/password:3', { Value: '{"field":"of version 3"}', Version: 3 });
});
afterEach(async () => {
  for (const provider of opened.splice(0)) {
    await provider.close(AbortSignal.timeout(2000));
    assert.doesNotMatch(provider.logged(), /CANARY/);
  }
  await aws.stop();
});
after(() => rmSync(folder, { recursive: true }));

function provider(
  kind: string,
  settings: object = {},
  environment: Record<string, string> = credentials,
): Opened {
  const common = kind === 'rds-iam' ? {} : { endpoint: aws.url };
  const one = open(
    kind,
    { region: 'eu-central-1', ...common, ...settings },
    { HOME: folder, ...environment },
  );
  opened.push(one);
  return one;
}
const manager = (settings: object = {}, environment?: Record<string, string>) =>
  provider('aws-secrets-manager', settings, environment);
/** Refusals show neither keys nor values, in any part of the error. */
async function refusal(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const thrown = await failure(promise);
  assert.doesNotMatch(inspect(thrown, { depth: null, showHidden: true }) + thrown.stack, /CANARY/);
  return thrown;
}

describe('the provider "aws-secrets-manager"', () => {
  it('gives a whole secret, or a field of its JSON, and the version', async () => {
    const grant = await manager().fetch(
      ['prod/db', 'prod/db#password', 'prod/db#port', 'prod/db#nested.a.b'],
      never,
    );
    assert.deepEqual(
      grant.secrets.map((secret) => secret.reveal().toString()),
      [json, 'AWS-CANARY-value', '5432', 'true'],
    );
    assert.equal(grant.version, 'v-2');
    assert.equal(aws.seen.length, 1);
  });

  it("works under Secretless's name", async () => {
    assert.deepEqual(await texts(provider('aws'), 'prod/db'), [json]);
  });

  it('gives another stage, another version, and the bytes of a binary secret', async () => {
    const all = ['prod/db?stage=AWSPREVIOUS#password', 'prod/db?version=v-1#password', 'binary'];
    const { secrets } = await manager().fetch(all, never);
    assert.deepEqual(
      secrets.map((secret) => secret.reveal().toString('latin1')),
      ['the former', 'of v-1', '\x00\xff\n'],
    );
  });

  it('takes the region from an ARN, and signs for it', async () => {
    const arn = 'arn:aws:secretsmanager:ap-south-1:123456789012:secret:prod/db-AbCdEf';
    aws.secrets.set(arn, { SecretString: 'by ARN' });
    assert.deepEqual(await texts(manager(), arn), ['by ARN']);
    assert.match(String(aws.seen[0]?.headers.authorization), /\/ap-south-1\/secretsmanager\//);
  });

  it('names a missing secret, a missing field and a value that is no JSON', async () => {
    const missing = await refusal(manager().fetch(['prod/none'], never));
    assert.equal(missing.code, 'PROVIDER_FAILED');
    assert.match(
      missing.message,
      /reading "prod\/none": there is no such secret or version \(ResourceNotFoundException\)/,
    );
    assert.match(
      (await refusal(manager().fetch(['prod/db#none'], never))).message,
      /"prod\/db#none": the secret has no field "none"/,
    );
    aws.secrets.set('plain', { SecretString: 'AWS-CANARY-plain' });
    assert.match((await refusal(manager().fetch(['plain#x'], never))).message, /"plain#x": .*not valid JSON/);
  });

  it('repeats what AWS throttles, by any of its codes, and then says that it is unavailable', async () => {
    let left = 2;
    aws.fault = () =>
      left-- > 0 ? error(400, 'com.amazonaws#ThrottlingException', 'Rate exceeded') : undefined;
    assert.deepEqual(await texts(manager(), 'prod/db#username'), ['app']);
    assert.equal(aws.seen.length, 3);
    aws.fault = () => error(400, 'LimitExceededException');
    const refused = await refusal(manager({ retries: 1 }).fetch(['prod/db'], never));
    assert.equal(refused.code, 'PROVIDER_UNAVAILABLE');
    aws.fault = () => error(500, 'InternalServiceError');
    assert.equal(
      (await refusal(manager({ retries: 0 }).fetch(['prod/db'], never))).code,
      'PROVIDER_UNAVAILABLE',
    );
  });

  it('quotes why AWS denies, and nothing of a refused signature', async () => {
    aws.fault = () => error(400, 'AccessDeniedException', 'User: arn:aws:iam::1:user/x is not authorized');
    const denied = await refusal(manager().fetch(['prod/db'], never));
    assert.equal(denied.code, 'PROVIDER_FAILED');
    assert.match(
      denied.message,
      /permission denied \(AccessDeniedException: User: arn:aws:iam::1:user\/x is not authorized\)/,
    );
    aws.fault = undefined;
    const wrong = { ...credentials, AWS_SECRET_ACCESS_KEY: 'AWS-CANARY-wrong' };
    const refused = await refusal(manager({}, wrong).fetch(['prod/db'], never));
    assert.equal(refused.code, 'PROVIDER_FAILED');
    assert.match(refused.message, /does not accept the signature.*\(InvalidSignatureException\)$/);
  });

  it('looks for credentials once more when its own have expired', async () => {
    let refused = 0;
    aws.fault = () => (refused++ === 0 ? error(400, 'ExpiredTokenException', 'expired') : undefined);
    assert.deepEqual(await texts(manager(), 'prod/db#username'), ['app']);
    aws.fault = (seen) => (seen.path === '/' ? error(400, 'ExpiredTokenException') : undefined);
    const before = aws.seen.length;
    assert.match((await refusal(manager().fetch(['prod/db'], never))).message, /have expired/);
    assert.equal(aws.seen.length - before, 2);
  });

  it('corrects its clock by the answer when AWS says that it is wrong', async () => {
    const ahead = Date.now() + 3_600_000;
    aws.fault = (seen) =>
      String(seen.headers['x-amz-date']).slice(0, 11) ===
      new Date(ahead).toISOString().replaceAll(/[-:]/g, '').slice(0, 11)
        ? undefined
        : error(400, 'InvalidSignatureException', 'Signature expired', {
            date: new Date(ahead).toUTCString(),
          });
    const one = manager();
    assert.deepEqual(await texts(one, 'prod/db#username'), ['app']);
    assert.match(one.logged(), /the clock of AWS differs by 3(599|600) s/);
    const asked = aws.seen.length;
    assert.deepEqual(await texts(one, 'prod/db#username'), ['app']);
    assert.equal(aws.seen.length, asked + 1);
  });

  it('does not hang, spin or show anything of an answer that is garbage, too large or a redirect', async () => {
    for (const text of ['AWS-CANARY{', '', '[]', '{"SecretString":7}', 'x'.repeat(1_100_000)]) {
      aws.fault = () => ({ status: 200, text });
      assert.equal(
        (await refusal(manager({ retries: 0 }).fetch(['prod/db'], never))).code,
        'PROVIDER_UNAVAILABLE',
      );
    }
    aws.fault = () => ({ status: 302, headers: { location: 'http://192.0.2.1/' } });
    assert.equal((await refusal(manager({ retries: 0 }).fetch(['prod/db'], never))).code, 'PROVIDER_FAILED');
  });

  it('needs a region', async () => {
    const refused = await refusal(manager({ region: undefined }).fetch(['prod/db'], never));
    assert.match(refused.message, /no region/);
    assert.deepEqual(
      await texts(
        manager({ region: undefined }, { ...credentials, AWS_REGION: 'us-east-1' }),
        'prod/db#username',
      ),
      ['app'],
    );
  });

  for (const bad of ['', '#x', 'a b', 'x?stage=', 'x?other=1', 'x#', 'arn:aws:s3:::bucket'])
    it(`refuses the reference ${JSON.stringify(bad)} unasked`, async () => {
      const refused = await refusal(manager().fetch([bad], never));
      assert.equal(refused.code, 'PROVIDER_FAILED');
      assert.equal(aws.seen.length, 0);
    });
});

describe('the provider "aws-ssm"', () => {
  it('gives parameters, decrypted, of any version, and fields of their JSON', async () => {
    const grant = await provider('aws-ssm').fetch(['/app/password', '/app/password:3#field'], never);
    assert.deepEqual(
      grant.secrets.map((secret) => secret.reveal().toString()),
      ['of ssm', 'of version 3'],
    );
    assert.equal(grant.version, '/app/password@7, /app/password:3@3');
  });

  it('names a missing parameter', async () => {
    const refused = await refusal(provider('aws-ssm').fetch(['/app/none'], never));
    assert.match(refused.message, /reading "\/app\/none": there is no such parameter \(ParameterNotFound\)/);
  });
});

describe("the chain of AWS's credentials", () => {
  const works = async (environment: Record<string, string>, settings: object = {}) => {
    assert.deepEqual(await texts(manager(settings, environment), 'prod/db#username'), ['app']);
    const signedBy = /Credential=([^/]+)/.exec(String(aws.seen.at(-1)?.headers.authorization))?.[1];
    return signedBy;
  };
  const file = (name: string, text: string) => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };
  const section = `aws_access_key_id = ${keys.id}\naws_secret_access_key=${keys.secret}\n`;

  it('takes the environment first', async () => {
    assert.equal(
      await works({ ...credentials, AWS_CONTAINER_CREDENTIALS_FULL_URI: `${aws.url}/container` }),
      keys.id,
    );
  });

  it('takes a profile of the shared files, whose region it is too', async () => {
    const AWS_CONFIG_FILE = file(
      'config',
      '[default]\n[profile other]\n# comment\nregion = eu-west-3 # here\ns3 =\n  region = x\n',
    );
    const AWS_SHARED_CREDENTIALS_FILE = file(
      'credentials',
      `[wrong]\naws_access_key_id = x\n[other]\n${section}`,
    );
    const files = { AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE };
    assert.equal(await works(files, { profile: 'other', region: undefined }), keys.id);
    assert.match(String(aws.seen.at(-1)?.headers.authorization), /\/eu-west-3\//);
    assert.equal(await works({ ...files, AWS_PROFILE: 'other' }), keys.id);
    assert.match(
      (await refusal(manager({ profile: 'none' }, files).fetch(['prod/db'], never))).message,
      /no profile "none"/,
    );
  });

  it('runs a credential_process without a shell', async () => {
    const output = JSON.stringify({
      Version: 1,
      AccessKeyId: temporary.id,
      SecretAccessKey: temporary.secret,
      SessionToken: temporary.token,
    });
    const printed = file('printed', output);
    const AWS_CONFIG_FILE = file(
      'process',
      `[default]\ncredential_process = "/bin/sh" -c 'cat "$0"' "${printed}"\n`,
    );
    assert.equal(await works({ AWS_CONFIG_FILE, PATH: process.env['PATH'] ?? '' }), temporary.id);
  });

  it('assumes a role with a web identity, with the token read anew', async () => {
    const environment = {
      AWS_WEB_IDENTITY_TOKEN_FILE: file('jwt', `${webIdentity}\n`),
      AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/app',
      AWS_ENDPOINT_URL_STS: aws.url,
    };
    assert.equal(await works(environment), temporary.id);
    file('jwt', 'AWS-CANARY.of.somebody.else');
    const refused = await refusal(manager({}, environment).fetch(['prod/db'], never));
    assert.equal(refused.code, 'PROVIDER_FAILED');
    assert.match(refused.message, /assuming the role arn:.*: STS refused \(HTTP 400, InvalidIdentityToken\)/);
  });

  it('assumes a role with the keys of another profile', async () => {
    const AWS_CONFIG_FILE = file(
      'roles',
      `[profile app]\nrole_arn = arn:aws:iam::1:role/app\nsource_profile = base\n[profile base]\n${section}[profile a]\nrole_arn = arn:aws:iam::1:role/a\nsource_profile = b\n[profile b]\nrole_arn = arn:aws:iam::1:role/b\nsource_profile = a\n[profile sso]\nsso_session = x\n`,
    );
    const environment = { AWS_CONFIG_FILE, AWS_ENDPOINT_URL_STS: aws.url };
    assert.equal(await works(environment, { profile: 'app' }), temporary.id);
    for (const [profile, problem] of [
      ['a', /goes in a circle/],
      ['sso', /logs in by SSO, which Postern does not/],
    ] as const) {
      assert.match(
        (await refusal(manager({ profile }, environment).fetch(['prod/db'], never))).message,
        problem,
      );
    }
  });

  it('asks the container, with the token of EKS Pod Identity', async () => {
    const environment = {
      AWS_CONTAINER_CREDENTIALS_FULL_URI: `${aws.url}/container`,
      AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: file('pod-token', podToken),
    };
    assert.equal(await works(environment), temporary.id);
    const outside = { ...environment, AWS_CONTAINER_CREDENTIALS_FULL_URI: 'http://192.0.2.1/steal' };
    assert.match((await refusal(manager({}, outside).fetch(['prod/db'], never))).message, /plain http/);
  });

  it('asks the instance metadata, in version 2 only, last', async () => {
    assert.equal(await works({ AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.url }), temporary.id);
    assert.deepEqual(
      aws.seen.slice(0, 3).map(({ method, path }) => `${method} ${path}`),
      [
        'PUT /latest/api/token',
        'GET /latest/meta-data/iam/security-credentials/',
        'GET /latest/meta-data/iam/security-credentials/the-role',
      ],
    );
    const nothing = await refusal(
      manager({}, { AWS_EC2_METADATA_DISABLED: 'true' }).fetch(['prod/db'], never),
    );
    assert.match(nothing.message, /no credentials: not in the environment, the shared files/);
  });

  it('is one flight for many, kept until five minutes before the end', async () => {
    aws.expiration = new Date(Date.now() + 3_600_000).toISOString();
    const environment = { AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.url };
    const one = manager({}, environment);
    await Promise.all(Array.from({ length: 20 }, () => texts(one, 'prod/db#username')));
    const sessions = () => aws.seen.filter(({ method }) => method === 'PUT').length;
    assert.equal(sessions(), 1);
    assert.equal(await texts(one, 'prod/db#username').then(sessions), 1);

    aws.expiration = new Date(Date.now() - 1000).toISOString();
    const late = manager({}, environment);
    await texts(late, 'prod/db#username');
    await texts(late, 'prod/db#username');
    assert.equal(sessions(), 3);
  });
});

describe('the provider "rds-iam"', () => {
  const reference = 'app user@DB1.cabc.us-east-1.rds.amazonaws.com:5432';

  for (const user of ['app user', 'überträger@münchen'])
    it(`makes the token of "${user}" that the reference signer would make, for the region of the host`, async (t) => {
      t.mock.timers.enable({ apis: ['Date'], now: new Date('2026-01-02T03:04:05Z') });
      const [token] = await texts(
        provider('rds-iam', { region: undefined }),
        `${user}@DB1.cabc.us-east-1.rds.amazonaws.com:5432`,
      );
      const { Sha256 } = await import('@aws-crypto/sha256-js');
      const { SignatureV4 } = await import('@smithy/signature-v4');
      const signer = new SignatureV4({
        credentials: { accessKeyId: keys.id, secretAccessKey: keys.secret },
        region: 'us-east-1',
        service: 'rds-db',
        sha256: Sha256,
      });
      const hostname = 'db1.cabc.us-east-1.rds.amazonaws.com';
      const { query = {} } = await signer.presign(
        {
          method: 'GET',
          protocol: 'https:',
          hostname,
          port: 5432,
          path: '/',
          query: { Action: 'connect', DBUser: user },
          headers: { host: `${hostname}:5432` },
        },
        { expiresIn: 900, signingDate: new Date('2026-01-02T03:04:05Z') },
      );
      assert.ok(
        token?.startsWith(
          `${hostname}:5432/?Action=connect&DBUser=${encodeURIComponent(user)}&X-Amz-Algorithm=`,
        ),
      );
      assert.deepEqual(Object.fromEntries(new URL(`https://${token}`).searchParams), query);
    });

  it('ends after fifteen minutes, or with the credentials that signed it', async () => {
    const lasting = await provider('rds-iam').fetch([reference], never);
    assert.ok(Math.abs(Number(lasting.expiresAt) - Date.now() - 900_000) < 5000);
    aws.expiration = new Date(Date.now() + 600_000).toISOString().replace(/\.\d+/, '');
    const environment = { AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.url };
    const short = await provider('rds-iam', {}, environment).fetch([reference], never);
    assert.equal(short.expiresAt?.toISOString(), new Date(aws.expiration).toISOString());
    assert.match(
      short.secrets[0]?.reveal().toString() ?? '',
      /X-Amz-Security-Token=AWS-CANARY-session%2F%2B%3D%3D/,
    );
  });

  it('takes the region of the settings for a name that is not of RDS, and asks for one', async () => {
    assert.match(
      (await texts(provider('rds-iam'), 'app@db.internal:3306'))[0] ?? '',
      /%2Feu-central-1%2Frds-db%2F/,
    );
    const refused = await refusal(
      provider('rds-iam', { region: undefined }).fetch(['app@db.internal:3306'], never),
    );
    assert.match(refused.message, /the region of "db\.internal" is not known/);
  });

  for (const bad of [
    'app',
    'app@host',
    '@host:1',
    'app@host:0',
    'app@host:70000',
    'app@ho st:1',
    'app@host:1/x',
  ])
    it(`refuses the reference ${JSON.stringify(bad)}`, async () => {
      assert.match(
        (await refusal(provider('rds-iam').fetch([bad], never))).message,
        /must be user@host:port/,
      );
    });
});
