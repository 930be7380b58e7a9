import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { authenticate } from '../../../../src/connectors/http/schemes/index.ts';
import { credentials, scheme } from './support.ts';
import { type Said, saying, TokenServer } from './token-server.ts';

const client = { clientId: 'the client', clientSecret: 'c4nary:of the+client' };
const start = Date.parse('2026-01-02T03:04:05Z');

const settingsFor = (server: { url: string; ca?: string }, more: object = {}) => ({
  oauth2: {
    tokenUrl: `${server.url}/oauth2/token`,
    clientSecret: 'clientSecret',
    ...(server.ca !== undefined && { ca: server.ca }),
    ...more,
  },
});
const refreshing = { grant: 'refresh_token', refreshToken: 'refreshToken' };
const none = () => new AbortController().signal;

/** Asks a server that always says this, once. */
async function answered(said: Said, more: object = {}) {
  await using server = await TokenServer.start(() => said);
  return await scheme(settingsFor(server, more), () => start).prepare(credentials(client), none());
}

const good = { access_token: 'at-1', token_type: 'Bearer', expires_in: 3600 };

describe('the scheme oauth2', () => {
  it('asks for a token with the client as HTTP Basic, both halves form-encoded first', async () => {
    await using server = await TokenServer.start(() => ({ body: good }));
    const settings = settingsFor(server, {
      scope: 'read write',
      audience: 'https://api.example',
      resource: 'urn:x',
    });
    const { value, expiresAt } = await scheme(settings, () => start).prepare(credentials(client), none());
    assert.equal(value.headers.toString(), 'Authorization: Bearer at-1\r\n');
    assert.equal(expiresAt?.getTime(), start + 3600_000 - 360_000);
    const [asked] = server.asked;
    assert.equal(asked?.method, 'POST');
    assert.equal(asked?.path, '/oauth2/token');
    assert.equal(asked?.headers['accept'], 'application/json');
    assert.equal(asked?.headers['content-type'], 'application/x-www-form-urlencoded');
    assert.equal(asked?.headers['authorization'], `Basic ${btoa('the+client:c4nary%3Aof+the%2Bclient')}`);
    assert.equal(
      asked?.body,
      'grant_type=client_credentials&scope=read+write&audience=https%3A%2F%2Fapi.example&resource=urn%3Ax',
    );
    assert.equal(server.asked.length, 1);
  });

  it('asks with the client in the body, and never in both places', async () => {
    await using server = await TokenServer.start(() => ({ body: good }));
    await scheme(settingsFor(server, { clientAuth: 'body' })).prepare(credentials(client), none());
    assert.equal(
      server.asked[0]?.body,
      'grant_type=client_credentials&client_id=the+client&client_secret=c4nary%3Aof+the%2Bclient',
    );
    assert.equal(server.asked[0]?.headers['authorization'], undefined);
  });

  it('puts the token into the header that it is told', async () => {
    const { value } = await answered({ body: good }, { header: 'X-Access-Token' });
    assert.equal(value.headers.toString(), 'X-Access-Token: at-1\r\n');
  });

  for (const [what, body, seconds] of [
    ['a text', { ...good, expires_in: '3600' }, 3240],
    ['a short life', { ...good, expires_in: 100 }, 70],
    ['a very short life', { ...good, expires_in: 20 }, 10],
    ['none', { access_token: 'x', token_type: 'bearer' }, 270],
    ['null', { ...good, expires_in: null }, 270],
    ['a life beyond all measure', { ...good, expires_in: 999_999_999_999 }, 30 * 24 * 3600 * 0.9],
    ['a bearer in capitals', { ...good, token_type: 'BEARER' }, 3240],
  ] as const)
    it(`uses a token until shortly before its end: ${what}`, async () => {
      const { expiresAt } = await answered({ body });
      assert.equal(((expiresAt?.getTime() ?? 0) - start) / 1000, seconds);
    });

  for (const [what, said, code, why] of [
    [
      'invalid_client',
      { status: 401, body: { error: 'invalid_client' } },
      'PROVIDER_FAILED',
      /gives no token: invalid_client$/,
    ],
    [
      'an error with 200',
      { body: { error: 'incorrect_client_credentials' } },
      'PROVIDER_FAILED',
      /incorrect_client_credentials$/,
    ],
    [
      'a word that nobody knows',
      { status: 400, body: { error: 'c4nary' } },
      'PROVIDER_FAILED',
      /an error of its own, status 400$/,
    ],
    [
      'temporarily_unavailable',
      { status: 400, body: { error: 'temporarily_unavailable' } },
      'PROVIDER_UNAVAILABLE',
      /cannot give a token now/,
    ],
    ['429', { status: 429, body: { error: 'invalid_client' } }, 'PROVIDER_UNAVAILABLE', /answered 429/],
    ['503', { status: 503, body: '<html>' }, 'PROVIDER_UNAVAILABLE', /answered 503/],
    [
      'a redirect',
      { status: 307, headers: { location: 'https://evil.example/' }, body: '' },
      'PROVIDER_FAILED',
      /redirect \(307\)/,
    ],
    ['404', { status: 404, body: 'no' }, 'PROVIDER_FAILED', /answered 404/],
    ['a page', { body: '<html>login</html>' }, 'PROVIDER_FAILED', /not with JSON/],
    ['a list', { body: '[]' }, 'PROVIDER_FAILED', /not with JSON/],
    ['half a JSON', { body: '{"access_token": "x' }, 'PROVIDER_FAILED', /not with JSON/],
    [
      'no token',
      { body: { token_type: 'bearer', expires_in: 3 } },
      'PROVIDER_FAILED',
      /without an access_token/,
    ],
    ['an empty token', { body: { ...good, access_token: '' } }, 'PROVIDER_FAILED', /without an access_token/],
    ['no type', { body: { access_token: 'x' } }, 'PROVIDER_FAILED', /token of no type/],
    ['another type', { body: { ...good, token_type: 'DPoP' } }, 'PROVIDER_FAILED', /another type/],
    [
      'an end that is no number',
      { body: { ...good, expires_in: 'soon' } },
      'PROVIDER_FAILED',
      /no number of seconds/,
    ],
    ['an end in the past', { body: { ...good, expires_in: 0 } }, 'PROVIDER_FAILED', /no number of seconds/],
    ['a negative end', { body: { ...good, expires_in: -5 } }, 'PROVIDER_FAILED', /no number of seconds/],
    [
      'a token with a line break',
      { body: { ...good, access_token: 'a\r\nEvil:1' } },
      'PROVIDER_FAILED',
      /line break/,
    ],
    ['a token with a blank', { body: { ...good, access_token: 'a b' } }, 'PROVIDER_FAILED', /holds a blank/],
    [
      'an answer without end',
      { body: 'x'.repeat(600_000) },
      'PROVIDER_FAILED',
      /more than it can have to say/,
    ],
  ] as const)
    it(`sends nothing when the server answers with ${what}`, async () => {
      await assert.rejects(answered(said), (error: Error & { code?: string }) => {
        assert.deepEqual([error.code, why.test(error.message)], [code, true], error.message);
        assert.doesNotMatch(error.message, /c4nary/);
        return true;
      });
    });

  it('asks only a server whose certificate is good', async () => {
    await using server = await TokenServer.start(() => ({ body: good }));
    const untrusting = scheme(settingsFor({ url: server.url }));
    await assert.rejects(async () => await untrusting.prepare(credentials(client), none()), {
      code: 'PROVIDER_UNAVAILABLE',
      message: /no token from localhost:\d+: TLS handshake with localhost failed/,
    });
    const missing = scheme(settingsFor({ url: server.url, ca: '/nowhere/ca.pem' }));
    await assert.rejects(async () => await missing.prepare(credentials(client), none()), {
      code: 'PROVIDER_FAILED',
      message: 'the CA file /nowhere/ca.pem cannot be read (ENOENT)',
    });
    assert.equal(server.asked.length, 0);
  });

  it('does not wait longer than its time, and tells a server that is not there', async () => {
    await using server = await TokenServer.start(() => ({ body: good, after: 2000 }));
    const controller = new AbortController();
    setTimeout(() => controller.abort(new Error('too late')), 50);
    const waiting = scheme(settingsFor(server)).prepare(credentials(client), controller.signal);
    await assert.rejects(async () => await waiting, { message: 'too late' });
    const nobody = scheme(settingsFor({ url: 'http://127.0.0.1:1' }, { allowPlainHttp: true }));
    await assert.rejects(async () => await nobody.prepare(credentials(client), none()), {
      code: 'PROVIDER_UNAVAILABLE',
      message: /no token from 127\.0\.0\.1:1: cannot connect/,
    });
  });

  const json = JSON.stringify(good);
  const chunked = json.replaceAll(/[^]/g, (letter) => `1\r\n${letter}\r\n`);
  for (const [what, bytes] of [
    ['a length', `HTTP/1.1 200 OK\r\nContent-Length: ${json.length}\r\n\r\n${json}`],
    ['chunks', `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunked}0\r\n\r\n`],
    ['neither', `HTTP/1.0 200 OK\r\n\r\n${json}`],
    [
      'a hint before',
      `HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: ${json.length}\r\n\r\n${json}`,
    ],
  ] as const)
    for (const pieces of [1, bytes.length])
      it(`reads an answer with ${what}, ${pieces === 1 ? 'a byte at a time' : 'at once'}`, async () => {
        await using server = await saying(bytes, { pieces });
        const { value } = await scheme(settingsFor(server, { allowPlainHttp: true })).prepare(
          credentials(client),
          none(),
        );
        assert.equal(value.headers.toString(), 'Authorization: Bearer at-1\r\n');
      });

  for (const [what, bytes, code] of [
    ['nothing', '', 'PROVIDER_UNAVAILABLE'],
    ['half a head', 'HTTP/1.1 200 OK\r\nContent-Le', 'PROVIDER_UNAVAILABLE'],
    ['half a body', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"access', 'PROVIDER_UNAVAILABLE'],
    [
      'half of its chunks',
      `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"acc`,
      'PROVIDER_UNAVAILABLE',
    ],
    ['another protocol', 'SSH-2.0-OpenSSH_9.2\r\n', 'PROVIDER_FAILED'],
    ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}', 'PROVIDER_FAILED'],
    [
      'chunks that are none',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
      'PROVIDER_FAILED',
    ],
    ['a head without end', `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(100_000)}`, 'PROVIDER_FAILED'],
    ['a body without end', `HTTP/1.1 200 OK\r\n\r\n${'x'.repeat(600_000)}`, 'PROVIDER_FAILED'],
    [
      'a length beyond all measure',
      'HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n',
      'PROVIDER_FAILED',
    ],
  ] as const)
    it(`sends nothing when the server says ${what}`, async () => {
      await using server = await saying(bytes);
      const asking = scheme(settingsFor(server, { allowPlainHttp: true }));
      await assert.rejects(async () => await asking.prepare(credentials(client), none()), {
        code,
      });
    });
});

describe('a refresh token', () => {
  const values = { ...client, refreshToken: 'rt-0' };
  const rotating = (nth: number): Said => ({
    body: { ...good, access_token: `at-${nth}`, refresh_token: `rt-${nth}` },
  });
  const tokenIn = (body: string) => new URLSearchParams(body).get('refresh_token');

  it('is the one that the server has exchanged it for', async () => {
    await using server = await TokenServer.start((_, nth) => rotating(nth));
    const asking = scheme(settingsFor(server, refreshing));
    for (const nth of [1, 2, 3]) {
      const { value } = await asking.prepare(credentials(values), none());
      assert.equal(value.headers.toString(), `Authorization: Bearer at-${nth}\r\n`);
    }
    assert.deepEqual(
      server.asked.map(({ body }) => tokenIn(body)),
      ['rt-0', 'rt-1', 'rt-2'],
    );
  });

  it('stays when the server does not exchange it', async () => {
    await using server = await TokenServer.start(() => ({ body: good }));
    const asking = scheme(settingsFor(server, refreshing));
    for (const _ of [1, 2]) await asking.prepare(credentials(values), none());
    assert.deepEqual(
      server.asked.map(({ body }) => tokenIn(body)),
      ['rt-0', 'rt-0'],
    );
  });

  it('is the configured one again when that changes', async () => {
    await using server = await TokenServer.start((_, nth) => rotating(nth));
    const asking = scheme(settingsFor(server, refreshing));
    await asking.prepare(credentials(values), none());
    await asking.prepare(credentials({ ...values, refreshToken: 'new' }), none());
    await asking.prepare(credentials({ ...values, refreshToken: 'new' }), none());
    assert.deepEqual(
      server.asked.map(({ body }) => tokenIn(body)),
      ['rt-0', 'new', 'rt-2'],
    );
  });

  it('is not lost when nobody waits for the answer that has it', async () => {
    await using server = await TokenServer.start((_, nth) => ({ ...rotating(nth), after: 100 }));
    const asking = scheme(settingsFor(server, refreshing));
    const controller = new AbortController();
    const first = asking.prepare(credentials(values), controller.signal);
    setTimeout(() => controller.abort(new Error('the client has gone')), 20);
    await assert.rejects(async () => await first, { message: 'the client has gone' });
    // The question that is under way is this one's, too.
    const { value } = await asking.prepare(credentials(values), none());
    assert.equal(value.headers.toString(), 'Authorization: Bearer at-1\r\n');
    await asking.prepare(credentials(values), none());
    assert.deepEqual(
      server.asked.map(({ body }) => tokenIn(body)),
      ['rt-0', 'rt-1'],
    );
  });

  it('that the server does not take any more is not tried again until it changes', async () => {
    await using server = await TokenServer.start(({ body }) =>
      tokenIn(body) === 'rt-0' ? { status: 400, body: { error: 'invalid_grant' } } : { body: good },
    );
    const asking = scheme(settingsFor(server, refreshing));
    for (const _ of [1, 2, 3])
      await assert.rejects(async () => await asking.prepare(credentials(values), none()), {
        code: 'PROVIDER_FAILED',
        message: /gives no token: invalid_grant$/,
      });
    assert.equal(server.asked.length, 1);
    await asking.prepare(credentials({ ...values, refreshToken: 'new' }), none());
    assert.equal(server.asked.length, 2);
  });

  it('goes with a public client, which has no secret', async () => {
    await using server = await TokenServer.start(() => ({ body: good }));
    const settings = settingsFor(server, { ...refreshing, clientSecret: undefined });
    await scheme(settings).prepare(credentials(values), none());
    assert.equal(server.asked[0]?.body, 'grant_type=refresh_token&refresh_token=rt-0&client_id=the+client');
    assert.equal(server.asked[0]?.headers['authorization'], undefined);
  });

  it('of credentials that have changed meanwhile is not taken from a late answer', async () => {
    await using server = await TokenServer.start((_, nth) => ({
      ...rotating(nth),
      after: nth === 1 ? 150 : 0,
    }));
    const asking = scheme(settingsFor(server, refreshing));
    const controller = new AbortController();
    const first = asking.prepare(credentials(values), controller.signal);
    await new Promise((resolve) => setTimeout(resolve, 30));
    controller.abort(new Error('gone'));
    await assert.rejects(async () => await first);
    const changed = { ...values, refreshToken: 'new' };
    await asking.prepare(credentials(changed), none());
    await new Promise((resolve) => setTimeout(resolve, 250));
    await asking.prepare(credentials(changed), none());
    assert.deepEqual(
      server.asked.map(({ body }) => tokenIn(body)),
      ['rt-0', 'new', 'rt-2'],
    );
  });
});

describe('authenticate.oauth2', () => {
  const url = 'https://login.example.com/token';
  for (const [oauth2, why] of [
    [{ tokenUrl: 'http://login.example.com/token', clientSecret: 's' }, /would send the secret in clear/],
    [{ tokenUrl: 'ftp://x/', clientSecret: 's' }, /invalid_format/],
    [{ tokenUrl: 'https://u:p@login.example.com/', clientSecret: 's' }, /which do not belong there/],
    [{ tokenUrl: url }, /required by this grant/],
    [{ tokenUrl: url, clientSecret: 's', grant: 'refresh_token' }, /required by this grant/],
    [{ tokenUrl: url, clientSecret: 's', refreshToken: 'r' }, /grant: refresh_token/],
    [{ tokenUrl: url, clientSecret: 's', scope: 'a\nb' }, /one line/],
    [{ tokenUrl: url, clientSecret: 's', header: 'Host' }, /Postern itself/],
    [{ tokenUrl: url, clientSecret: 's', defaultLifetime: 'long' }, /duration/],
  ] as const)
    it(`is a configuration error: ${JSON.stringify(oauth2)}`, () => {
      assert.match(JSON.stringify(authenticate.safeParse({ oauth2 }).error?.issues), why);
    });
});
