import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';

import { PosternError } from '../../../src/core/errors.ts';
import { providers } from '../../support/plugins.ts';
import { certificates } from '../../support/servers.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';
import { type FakeConjur, type FakeOptions, fakeConjur } from './fake-conjur.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-conjur-'));
after(() => rmSync(folder, { recursive: true }));

const app = 'host/orders/app';
const apiKey = 'CANARY-api-key-3x2y';
const values = (...texts: readonly string[]) => texts.map((value) => Buffer.from(value));
const binary = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
const policy: FakeOptions = {
  keys: { [app]: apiKey, 'alice@devops': 'CANARY-alice' },
  variables: {
    'prod/db/username': { values: values('app'), execute: [app] },
    'prod/db/password': { values: values('CANARY-old', 'CANARY-new'), execute: [app] },
    'odd name+&?#%/é@x': { values: values('odd'), execute: [app] },
    'with,comma': { values: values('comma'), execute: [app] },
    'with:colon': { values: values('colon'), execute: [app] },
    binary: { values: [binary], execute: [app] },
    long: { values: [Buffer.alloc(3000, 'x')], execute: [app] },
    empty: { values: [], execute: [app] },
    'seen-only': { values: values('CANARY-seen'), execute: [], read: [app] },
    hidden: { values: values('CANARY-hidden'), execute: ['host/other'] },
    accessToken: { values: values('a variable'), execute: [app] },
  },
};
const auth = { method: 'apiKey', login: app, apiKey };

interface Setting {
  readonly fake?: FakeOptions;
  readonly settings?: object;
  readonly environment?: Record<string, string>;
}

/** Runs `use` with a fake and a provider, which must have logged nothing that is secret. */
async function using<T>(
  { fake = {}, settings, environment = {} }: Setting,
  use: (provider: Opened, conjur: FakeConjur) => Promise<T>,
): Promise<T> {
  const conjur = await fakeConjur({ ...policy, ...fake });
  const provider = open('conjur', settings ?? { url: conjur.url, account: 'demo', auth }, {
    ...environment,
    ...(settings && { CONJUR_APPLIANCE_URL: conjur.url, CONJUR_ACCOUNT: 'demo' }),
  });
  try {
    return await use(provider, conjur);
  } finally {
    await provider.close(AbortSignal.timeout(2000));
    await conjur.stop();
    assert.doesNotMatch(provider.logged(), /CANARY|payload/);
  }
}

const ask = (setting: Setting, ...references: string[]) =>
  using(setting, (provider) => texts(provider, ...references));
const refused = async (setting: Setting, ...references: string[]) => {
  const error = await using(setting, (provider) => failure(provider.fetch(references, never)));
  assert.doesNotMatch(inspect(error, { depth: null, showHidden: true }), /CANARY/);
  return error;
};

describe('reading variables', () => {
  it('logs in with the API key, with the login as one segment, and reads with the quoted token', async () => {
    await using({}, async (provider, { seen }) => {
      assert.deepEqual(await texts(provider, 'prod/db/password'), ['CANARY-new']);
      const [login, read] = seen;
      assert.equal(login?.method, 'POST');
      assert.equal(login?.target, '/authn/demo/host%2Forders%2Fapp/authenticate');
      assert.equal(login?.body, apiKey);
      assert.equal(login?.headers['content-type'], 'text/plain');
      assert.equal(read?.target, '/secrets/demo/variable/prod%2Fdb%2Fpassword');
      assert.match(read?.headers.authorization ?? '', /^Token token="[A-Za-z0-9+/]+=*"$/);
    });
  });

  it('takes ids as Secretless writes them', async () => {
    const ids = ['prod/db/username', 'variable:prod/db/username', 'demo:variable:prod/db/username'];
    assert.deepEqual(await ask({}, ...ids), ['app', 'app', 'app']);
    assert.deepEqual(await ask({}, 'demo:variable:with:colon'), ['colon']);
  });

  it('encodes every character of an id, alone and in a batch', async () => {
    const odd = 'odd name+&?#%/é@x';
    assert.deepEqual(await ask({}, odd), ['odd']);
    assert.deepEqual(await ask({}, odd, 'prod/db/username'), ['odd', 'app']);
  });

  it('asks for several together, each once, and gives them in the order of the references', async () => {
    await using({}, async (provider, conjur) => {
      const references = ['prod/db/password', 'prod/db/username', 'variable:prod/db/password'];
      assert.deepEqual(await texts(provider, ...references), ['CANARY-new', 'app', 'CANARY-new']);
      assert.equal(conjur.count('/secrets'), 1);
      const batch = conjur.seen.at(-1);
      const ids = 'demo%3Avariable%3Aprod%2Fdb%2Fpassword%2Cdemo%3Avariable%3Aprod%2Fdb%2Fusername';
      assert.equal(batch?.target, `/secrets?variable_ids=${ids}`);
      assert.equal(batch?.headers['accept-encoding'], 'base64');
    });
  });

  it('reads values that are no text, and long ones whose base64 is wrapped, from a batch as alone', async () => {
    for (const references of [['binary'], ['binary', 'long', 'prod/db/username']])
      await using({}, async (provider, conjur) => {
        const { secrets } = await provider.fetch(references, never);
        assert.deepEqual(secrets[0]?.reveal(), binary);
        if (references.length > 1) assert.equal(secrets[1]?.reveal().toString(), 'x'.repeat(3000));
        assert.equal(conjur.count('/secrets'), 1);
      });
  });

  it('reads one by one from an old server that cannot put a value into its batch', async () => {
    await using({ fake: { old: true } }, async (provider, conjur) => {
      assert.deepEqual(await texts(provider, 'prod/db/username', 'long'), ['app', 'x'.repeat(3000)]);
      assert.equal(conjur.count('/secrets'), 1);
      const { secrets } = await provider.fetch(['binary', 'prod/db/username'], never);
      assert.deepEqual(secrets[0]?.reveal(), binary);
      assert.equal(conjur.count('/secrets/demo/variable/'), 2);
    });
  });

  it('asks alone for a version, and for an id with a comma', async () => {
    await using({}, async (provider, conjur) => {
      const references = ['prod/db/password?version=1', 'with,comma', 'prod/db/password', 'prod/db/username'];
      assert.deepEqual(await texts(provider, ...references), ['CANARY-old', 'comma', 'CANARY-new', 'app']);
      assert.equal(conjur.count('/secrets?variable_ids='), 1);
      assert.equal(conjur.count('/secrets/demo/variable/prod%2Fdb%2Fpassword?version=1'), 1);
      assert.equal(conjur.count('/secrets/demo/variable/with%2Ccomma'), 1);
    });
  });

  it('splits a batch that is too long for a URL', async () => {
    const many = Array.from({ length: 120 }, (_, i) => `a/rather/long/name/of/a/variable/number-${i}`);
    const variables = Object.fromEntries(
      many.map((id, i) => [id, { values: values(`value ${i}`), execute: [app] }]),
    );
    await using({ fake: { variables } }, async (provider, conjur) => {
      assert.deepEqual(
        await texts(provider, ...many),
        Array.from(many, (_, i) => `value ${i}`),
      );
      const batches = conjur.seen.filter(({ target }) => target.startsWith('/secrets?'));
      assert.ok(batches.length > 1);
      for (const { target } of batches) assert.ok(target.length < 4200);
    });
  });

  it('gives the token of the login for the special id accessToken, with its end', async () => {
    await using({}, async (provider, conjur) => {
      const grant = await provider.fetch(['accessToken', 'variable:accessToken', 'prod/db/username'], never);
      const [token, variable, username] = grant.secrets.map((secret) => secret.reveal().toString());
      assert.deepEqual([variable, username], ['a variable', 'app']);
      assert.deepEqual(Object.keys(JSON.parse(token ?? '') as object), ['protected', 'payload', 'signature']);
      const left = (grant.expiresAt?.getTime() ?? 0) - Date.now();
      assert.ok(left > 470_000 && left <= 480_000);
      assert.equal(conjur.count('/authenticate'), 1);
      assert.equal((await provider.fetch(['prod/db/username'], never)).expiresAt, undefined);
    });
  });

  it('knows ids that cannot be meant', () => {
    const check = (reference: string) => providers['conjur']?.checkReference(reference);
    for (const wrong of [
      '',
      'host:x',
      'demo:host:x',
      'variable:',
      'demo:variable:',
      ':variable:x',
      '..',
      'a\nb',
    ])
      assert.ok(check(wrong), JSON.stringify(wrong));
    for (const wrong of ['x?version=0', 'x?version=', 'x?version=last', 'a/b:variable:x', '..:variable:x'])
      assert.ok(check(wrong), wrong);
    for (const right of ['x', 'a/../b', 'x?version=12', 'what?', 'a:variable:b:c', 'accessToken'])
      assert.equal(check(right), undefined, right);
  });

  it('serves two accounts of two servers at once', async () => {
    await using({}, async (one, first) => {
      await using(
        { fake: { account: 'other', variables: { x: { values: values('2'), execute: [app] } } } },
        async (_, second) => {
          const two = open('conjur', { url: `${second.url}/`, account: 'other', auth });
          const both = [texts(one, 'prod/db/username'), texts(two, 'x')];
          assert.deepEqual(await Promise.all(both), [['app'], ['2']]);
          assert.equal(second.seen.at(-1)?.target, '/secrets/other/variable/x');
          assert.equal(first.seen.at(-1)?.target, '/secrets/demo/variable/prod%2Fdb%2Fusername');
          await two.close(never);
        },
      );
    });
  });
});

describe('what Conjur refuses', () => {
  for (const others of [[], ['prod/db/username', 'prod/db/password']])
    for (const [id, status, said] of [
      ['nothing/here', 404, /not found, empty, or not permitted/],
      ['empty', 404, /not found, empty, or not permitted/],
      ['hidden', 404, /not found, empty, or not permitted/],
      ['seen-only', 403, /permission denied: the role lacks "execute"/],
      ['prod/db/password?version=9', 404, /not found, empty, or not permitted/],
    ] as const)
      it(`is named by its id: ${id}, ${others.length > 0 ? 'in a batch' : 'alone'}`, async () => {
        const error = await refused({}, ...others, id);
        assert.equal(error.code, 'PROVIDER_FAILED');
        assert.match(error.message, said);
        assert.ok(error.message.startsWith(`provider "conjur": reading "${id}": `), error.message);
        assert.ok(error.message.includes(`(HTTP ${status}`));
      });

  it('is a wrong key, an unknown login or a wrong account: one sentence for the 401 that does not say which', async () => {
    for (const [login, key, account] of [
      [app, 'CANARY-wrong', 'demo'],
      ['host/unknown', apiKey, 'demo'],
      [app, apiKey, 'elsewhere'],
    ] as const) {
      const settings = { account, auth: { method: 'apiKey', login, apiKey: key } };
      const error = await refused({ settings }, 'prod/db/username');
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, /logging in as ".*": Conjur refused: the key or token is wrong/);
    }
  });

  it('is asked once more after a 401 with a new token, and not for ever', async () => {
    await using({}, async (provider, conjur) => {
      await texts(provider, 'prod/db/username');
      conjur.revokeTokens();
      assert.deepEqual(await texts(provider, 'prod/db/username', 'prod/db/password'), ['app', 'CANARY-new']);
      assert.equal(conjur.count('/authenticate'), 2);
    });
    const behave: FakeOptions['behave'] = (seen, response) => {
      if (seen.target.startsWith('/authn')) return false;
      response.writeHead(401, { 'content-type': 'text/plain' });
      response.end('Unauthorized: Invalid token');
      return true;
    };
    await using({ fake: { behave } }, async (provider, conjur) => {
      const error = await failure(provider.fetch(['prod/db/username'], never));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, /refuses the token, also a new one/);
      assert.equal(conjur.count('/authenticate'), 2);
      assert.equal(conjur.count('/secrets'), 2);
    });
  });

  it('leaves no answer that is taken for one of Conjur', async () => {
    for (const [body, headers] of [
      ['<html>', {}],
      ['{"demo:variable:prod/db/username":{"x":"CANARY"}}', {}],
      [
        '{"demo:variable:prod/db/username":"@@@","demo:variable:binary":"AAAA"}',
        { 'content-encoding': 'base64' },
      ],
      ['{"demo:variable:prod/db/username":"app"}', {}],
    ] as const) {
      const behave: FakeOptions['behave'] = (seen, response) => {
        if (!seen.target.startsWith('/secrets?')) return false;
        response.writeHead(200, headers);
        response.end(body);
        return true;
      };
      const error = await refused({ fake: { behave } }, 'prod/db/username', 'binary');
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE', body);
      assert.match(error.message, /the answer is not one of Conjur/);
    }
    const login: FakeOptions['behave'] = (_seen, response) => {
      response.end('{"CANARY":1}');
      return true;
    };
    const error = await refused({ fake: { behave: login } }, 'prod/db/username');
    assert.match(error.message, /logging in as "host\/orders\/app": the answer is not one of Conjur/);
  });

  it('is never followed to where a redirect leads, which would get the token', async () => {
    const elsewhere = await fakeConjur(policy);
    const behave: FakeOptions['behave'] = (seen, response) => {
      if (!seen.target.startsWith('/secrets')) return false;
      response.writeHead(302, { location: `${elsewhere.url}${seen.target}` });
      response.end();
      return true;
    };
    const error = await refused({ fake: { behave } }, 'prod/db/username');
    await elsewhere.stop();
    assert.match(error.message, /redirected, where the token must not go/);
    assert.equal(elsewhere.seen.length, 0);
  });

  it('passes when it was for the moment: 503 is asked again, and called unavailable when it stays', async () => {
    for (const [failures, outcome] of [
      [2, 'ok'],
      [99, 'PROVIDER_UNAVAILABLE'],
    ] as const) {
      let left: number = failures;
      const behave: FakeOptions['behave'] = (_seen, response) => {
        if (left-- <= 0) return false;
        response.writeHead(503);
        response.end();
        return true;
      };
      await using({ fake: { behave } }, async (provider) => {
        if (outcome === 'ok') return assert.deepEqual(await texts(provider, 'prod/db/username'), ['app']);
        const error = await failure(provider.fetch(['prod/db/username'], never));
        assert.equal(error.code, outcome);
        assert.match(error.message, /cannot do it now \(HTTP 503\)/);
      });
    }
  });
});

describe('the token', () => {
  it('is shared, and replaced when 85 % of its life is over, whatever the clock of the server says', async () => {
    const replaced = (clockSkew: number) =>
      using({ fake: { life: 12, clockSkew } }, async (provider, conjur) => {
        await Promise.all(Array.from({ length: 20 }, () => texts(provider, 'prod/db/username')));
        assert.equal(conjur.count('/authenticate'), 1, 'one login for all');
        await sleep(1000);
        await texts(provider, 'prod/db/username');
        assert.equal(conjur.count('/authenticate'), 1);
        await sleep(9300);
        await texts(provider, 'prod/db/username');
        assert.equal(conjur.count('/authenticate'), 2, 'before the server refuses it');
        assert.equal(conjur.count('/secrets'), 22, 'no read was refused');
      });
    await Promise.all([-3600, 3600].map(replaced));
  });

  it('lives eight minutes where it does not say how long', async () => {
    await using({ fake: { exp: false } }, async (provider) => {
      const { expiresAt } = await provider.fetch(['accessToken'], never);
      const left = (expiresAt?.getTime() ?? 0) - Date.now();
      assert.ok(left > 470_000 && left <= 480_000);
    });
  });

  it('is used on while the next one cannot be had, as long as it is good', async () => {
    let down = false;
    const behave: FakeOptions['behave'] = (seen, response) => {
      if (!down || !seen.target.endsWith('/authenticate')) return false;
      response.writeHead(503);
      response.end();
      return true;
    };
    // 85 % of 40 s are over after 34 s: the clock of the test goes there.
    await using({ fake: { life: 40, behave } }, async (provider) => {
      await texts(provider, 'prod/db/username');
      down = true;
      const now = Date.now;
      try {
        Date.now = () => now() + 34_500;
        assert.deepEqual(await texts(provider, 'prod/db/username'), ['app']);
        Date.now = () => now() + 39_000;
        const error = await failure(provider.fetch(['prod/db/username'], never));
        assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      } finally {
        Date.now = now;
      }
    });
  });

  it('comes from a JWT that is read anew for each login', async () => {
    const path = join(folder, 'jwt');
    writeFileSync(path, 'aaa.bbb.ccc\n');
    const jwts = { 'k8s/prod': { 'aaa.bbb.ccc': app, 'ddd.eee-_.fff': app } };
    const jwt = { method: 'jwt', serviceId: 'k8s/prod', jwtFile: path };
    await using({ fake: { jwts }, settings: { auth: jwt } }, async (provider, conjur) => {
      assert.deepEqual(await texts(provider, 'prod/db/username'), ['app']);
      assert.equal(conjur.seen[0]?.target, '/authn-jwt/k8s%2Fprod/demo/authenticate');
      assert.equal(conjur.seen[0]?.body, 'jwt=aaa.bbb.ccc');
      writeFileSync(path, 'ddd.eee-_.fff');
      conjur.revokeTokens();
      assert.deepEqual(await texts(provider, 'prod/db/username'), ['app']);
      assert.equal(conjur.seen.findLast(({ method }) => method === 'POST')?.body, 'jwt=ddd.eee-_.fff');
    });
    for (const hostId of ['orders/app', 'host/orders/app'])
      await using({ fake: { jwts }, settings: { auth: { ...jwt, hostId } } }, async (provider, conjur) => {
        assert.deepEqual(await texts(provider, 'prod/db/username'), ['app']);
        const place = '/authn-jwt/k8s%2Fprod/demo/host%2Forders%2Fapp/authenticate';
        assert.equal(conjur.seen[0]?.target, place);
      });
  });

  it('says why a JWT gets none', async () => {
    const path = join(folder, 'bad-jwt');
    const settings = { auth: { method: 'jwt', serviceId: 's', jwtFile: path } };
    for (const [token, code, said] of [
      ['expired.CANARY.x', 'PROVIDER_FAILED', /CONJ00016E Token expired/],
      ['not-permitted.x.y', 'PROVIDER_FAILED', /may not authenticate with this service/],
      ['unknown.x.y', 'PROVIDER_FAILED', /HTTP 401/],
      ['CANARY not a jwt', 'PROVIDER_FAILED', /bad-jwt" holds no JSON web token/],
      ['', 'PROVIDER_FAILED', /holds no JSON web token/],
    ] as const) {
      writeFileSync(path, token);
      const error = await refused({ settings }, 'prod/db/username');
      assert.equal(error.code, code);
      assert.match(error.message, said);
    }
    rmSync(path);
    assert.match(
      (await refused({ settings }, 'prod/db/username')).message,
      /bad-jwt": there is no such file/,
    );
  });

  it('comes from a file that another program renews, as JSON or in base64', async () => {
    const path = join(folder, 'access-token');
    await using({ settings: { auth: { method: 'tokenFile', path } } }, async (provider, conjur) => {
      for (const encode of [(token: string) => token, (token: string) => btoa(token)]) {
        writeFileSync(path, `${encode(conjur.token(app))}\n`);
        assert.deepEqual(await texts(provider, 'prod/db/username', 'binary').then(([one]) => one), 'app');
        conjur.revokeTokens();
      }
      assert.equal((await failure(provider.fetch(['prod/db/username'], never))).code, 'PROVIDER_FAILED');
      writeFileSync(path, conjur.token(app));
      assert.deepEqual(await texts(provider, 'prod/db/username'), ['app']);
      assert.equal(conjur.count('/authenticate'), 0);
    });
  });

  it('comes from a file that is half written, as soon as it is whole', async () => {
    const path = join(folder, 'half');
    await using({ settings: { auth: { method: 'tokenFile', path } } }, async (provider, conjur) => {
      const token = conjur.token(app);
      writeFileSync(path, token.slice(0, 40));
      const answer = texts(provider, 'prod/db/username');
      await sleep(80);
      writeFileSync(path, '');
      await sleep(80);
      writeFileSync(path, token);
      assert.deepEqual(await answer, ['app']);

      writeFileSync(path, 'CANARY is no token');
      const error = await failure(provider.fetch(['prod/db/username'], never));
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      assert.match(error.message, /half" holds no token of Conjur/);
      assert.doesNotMatch(error.message, /CANARY/);
    });
  });

  it('is not waited for beyond the signal', async () => {
    const path = join(folder, 'never-whole');
    writeFileSync(path, '{');
    await using({ settings: { auth: { method: 'tokenFile', path } } }, async (provider) => {
      const caller = new AbortController();
      const answer = failure(provider.fetch(['x'], caller.signal));
      await sleep(20);
      caller.abort(new PosternError('TIMEOUT', 'too late'));
      assert.equal((await answer).code, 'TIMEOUT');
    });
  });
});

describe('the API key', () => {
  it('comes from a file without its line end, from a variable, or from the settings', async () => {
    const path = join(folder, 'key');
    writeFileSync(path, `${apiKey}\n`);
    const environment = { MY_KEY: `${apiKey} ` };
    for (const key of [{ apiKeyFile: path }, { apiKeyEnv: 'MY_KEY' }, { apiKey }])
      assert.deepEqual(
        await ask(
          { settings: { auth: { method: 'apiKey', login: app, ...key } }, environment },
          'prod/db/username',
        ),
        ['app'],
      );
    const alice = { method: 'apiKey', login: 'alice@devops', apiKey: 'CANARY-alice' };
    await using({ settings: { auth: alice } }, async (provider, conjur) => {
      assert.equal((await failure(provider.fetch(['prod/db/username'], never))).code, 'PROVIDER_FAILED');
      assert.equal(conjur.seen[0]?.target, '/authn/demo/alice%40devops/authenticate');
    });
  });

  it('is read again for the next login, so that a rotated key is seen', async () => {
    const path = join(folder, 'rotating');
    writeFileSync(path, 'CANARY-before');
    const settings = { auth: { method: 'apiKey', login: app, apiKeyFile: path } };
    await using({ settings }, async (provider) => {
      assert.equal((await failure(provider.fetch(['prod/db/username'], never))).code, 'PROVIDER_FAILED');
      writeFileSync(path, apiKey);
      assert.deepEqual(await texts(provider, 'prod/db/username'), ['app']);
    });
  });

  it('that is missing or empty is a failure that says so', async () => {
    const path = join(folder, 'empty-key');
    writeFileSync(path, '\n');
    const settings = (key: object) => ({ settings: { auth: { method: 'apiKey', login: app, ...key } } });
    assert.match((await refused(settings({ apiKeyFile: path }), 'x')).message, /API key of .* is empty/);
    assert.match((await refused(settings({ apiKeyEnv: 'NONE' }), 'x')).message, /variable NONE is not set/);
    assert.match(
      (await refused(settings({ apiKeyFile: '/none' }), 'x')).message,
      /"\/none": there is no such file/,
    );
  });
});

describe('the check of readiness', () => {
  it('asks who is logged in, logging in for it', async () => {
    await using({}, async (provider, conjur) => {
      await provider.check(never);
      assert.deepEqual(
        conjur.seen.map(({ target }) => target),
        ['/authn/demo/host%2Forders%2Fapp/authenticate', '/whoami'],
      );
      conjur.revokeTokens();
      await provider.check(never);
      assert.equal(conjur.count('/authenticate'), 2);
    });
  });

  it('says that the login is refused, and that nobody is there', async () => {
    const settings = { auth: { ...auth, apiKey: 'CANARY-wrong' } };
    await using({ settings }, async (provider) => {
      assert.equal((await failure(provider.check(never))).code, 'PROVIDER_FAILED');
    });
    const nobody = open('conjur', { url: 'http://127.0.0.1:1', account: 'demo', auth });
    const error = await failure(nobody.check(never));
    assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
    assert.match(error.message, /127\.0\.0\.1:1 cannot be asked \(ECONNREFUSED\)/);
    await nobody.close(never);
  });
});

describe('TLS towards Conjur', () => {
  it('trusts the given CA, as a file or as text, and nobody else', async () => {
    const { server, ca, otherCa } = await tlsFiles();
    const tls = { cert: readFileSync(server.cert), key: readFileSync(server.key) };
    for (const settings of [{ tls: { ca } }, { tls: { caPem: readFileSync(ca, 'utf8') } }])
      assert.deepEqual(await ask({ fake: { tls }, settings: { auth, ...settings } }, 'prod/db/username'), [
        'app',
      ]);
    for (const settings of [{}, { tls: { ca: otherCa } }]) {
      const error = await refused({ fake: { tls }, settings: { auth, ...settings } }, 'prod/db/username');
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      assert.match(error.message, /TLS with localhost:\d+ failed/);
    }
  });

  it('takes CONJUR_SSL_CERTIFICATE before CONJUR_CERT_FILE', async () => {
    const { server, ca, otherCa } = await tlsFiles();
    const tls = { cert: readFileSync(server.cert), key: readFileSync(server.key) };
    const text = { CONJUR_SSL_CERTIFICATE: readFileSync(ca, 'utf8'), CONJUR_CERT_FILE: otherCa };
    assert.deepEqual(
      await ask({ fake: { tls }, settings: { auth }, environment: text }, 'prod/db/username'),
      ['app'],
    );
    assert.deepEqual(
      await ask(
        { fake: { tls }, settings: { auth }, environment: { CONJUR_CERT_FILE: ca } },
        'prod/db/username',
      ),
      ['app'],
    );
  });

  it('says at the start that a CA cannot be used, and that plain http to another machine is not had', () => {
    const bad = join(folder, 'bad-ca.pem');
    writeFileSync(bad, 'CANARY');
    const openWith = (more: object) => () =>
      open('conjur', { url: 'https://conjur.internal', account: 'demo', auth, ...more });
    for (const ca of [bad, '/nonexistent.pem'])
      assert.throws(openWith({ tls: { ca } }), {
        code: 'CONFIG_INVALID',
        message: /TLS files cannot be used/,
      });
    assert.throws(openWith({ url: 'http://conjur.internal' }), {
      code: 'CONFIG_INVALID',
      message: /plain http/,
    });
    openWith({})();
  });
});

async function tlsFiles() {
  const all = await certificates();
  return { server: all.server, ca: all.ca, otherCa: all.untrustedClient.ca };
}
