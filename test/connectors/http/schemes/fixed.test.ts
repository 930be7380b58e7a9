import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import {
  authenticate,
  openScheme,
  reviewAuthenticate,
} from '../../../../src/connectors/http/schemes/index.ts';
import { credentials, prepared, scheme } from './support.ts';

describe('what goes into every request', () => {
  it('is the pair of HTTP Basic', async () => {
    const { headers, query } = await prepared(
      { basic: {} },
      { username: 'Aladdin', password: 'open sesame' },
    );
    // The example of RFC 7617, section 2.
    assert.equal(headers.toString(), 'Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n');
    assert.equal(query.length, 0);
  });

  it('is the pair of HTTP Basic under other names, in UTF-8, and with an empty half', async () => {
    const settings = { basic: { username: 'id', password: 'key' } };
    const utf8 = await prepared(settings, { id: 'test', key: '123£' });
    // The example of RFC 7617, section 2.1.
    assert.equal(utf8.headers.toString(), 'Authorization: Basic dGVzdDoxMjPCow==\r\n');
    const empty = await prepared(settings, { id: 'sk_test', key: '' });
    assert.equal(empty.headers.toString(), `Authorization: Basic ${btoa('sk_test:')}\r\n`);
  });

  it('is a bearer token', async () => {
    const { headers } = await prepared({ bearer: 'token' }, { token: 'mF_9.B5f-4.1JqM' });
    assert.equal(headers.toString(), 'Authorization: Bearer mF_9.B5f-4.1JqM\r\n');
  });

  it("is Conjur's token in base64 and in quotes", async () => {
    const { headers } = await prepared({ conjur: 'accessToken' }, { accessToken: '{"protected":"x"}' });
    assert.equal(headers.toString(), `Authorization: Token token="${btoa('{"protected":"x"}')}"\r\n`);
  });

  it('is headers and query parameters together, percent-encoded where they have to be', async () => {
    const settings = {
      headers: { 'DD-API-KEY': '{{ .client_key }}', 'Content-Type': 'application/json' },
      query: { key: '{{ key }}', 'a b': '{{ key }}!' },
    };
    const { headers, query } = await prepared(settings, { client_key: 'ck', key: 'k&=/ü' });
    assert.equal(headers.toString(), 'DD-API-KEY: ck\r\nContent-Type: application/json\r\n');
    assert.equal(query.toString(), 'key=k%26%3D%2F%C3%BC&a%20b=k%26%3D%2F%C3%BC%21');
    const { ownedHeaders, ownedQuery } = scheme(settings);
    assert.deepEqual(
      [ownedHeaders, ownedQuery],
      [
        ['dd-api-key', 'content-type'],
        ['key', 'a b'],
      ],
    );
  });

  it('is nothing for a service whose credential is a client certificate', async () => {
    const { value } = await openScheme(undefined, { name: 'api' }).prepare(
      credentials({}),
      new AbortController().signal,
    );
    assert.deepEqual([value.headers.length, value.query.length], [0, 0]);
  });

  it('is overwritten when it is disposed of, and takes no copy of it along', async () => {
    const secret = 'c4nary-of-the-injection';
    for (const settings of [
      { bearer: 'a' },
      { basic: { username: 'a', password: 'a' } },
      { conjur: 'a' },
      { headers: { X: 'v {{ a }}' }, query: { k: '{{ a }}' } },
    ]) {
      const injection = await prepared(settings, { a: secret });
      assert.ok(injection.headers.length > 0);
      injection[Symbol.dispose]();
      assert.ok(injection.headers.every((byte) => byte === 0));
      assert.ok(injection.query.every((byte) => byte === 0));
    }
  });
});

describe('a value that does not belong into a request', () => {
  const bad: readonly [string, unknown, Record<string, string>, RegExp][] = [
    ['a line break in a token', { bearer: 't' }, { t: 'x\r\nHost:evil' }, /line break/],
    ['a line feed at the end of a token', { bearer: 't' }, { t: 'x\n' }, /line break/],
    ['NUL', { headers: { X: '{{ t }}' } }, { t: 'a\0b' }, /control character/],
    ['an empty token', { bearer: 't' }, { t: '' }, /begins or ends with a blank/],
    ['a blank in a token', { bearer: 't' }, { t: 'left right' }, /holds a blank/],
    ['an empty header', { headers: { X: '{{ t }}' } }, { t: '' }, /header "X" is empty/],
    ['an empty part behind a word', { headers: { X: 'Key {{ t }}' } }, { t: '' }, /is a credential empty/],
    ['an empty parameter', { query: { k: '{{ t }}' } }, { t: '' }, /parameter "k" is empty/],
    ['a colon in a user', { basic: {} }, { username: 'a:b', password: 'c' }, /holds a ":"/],
    ['a line break in a password', { basic: {} }, { username: 'a', password: 'c\n' }, /"password" holds/],
    ['neither user nor password', { basic: {} }, { username: '', password: '' }, /is empty/],
    ['no Conjur token', { conjur: 't' }, { t: '' }, /is empty/],
    ['no credential at all', { bearer: 't' }, {}, /"t" has no value/],
  ];
  for (const [what, settings, values, why] of bad)
    it(`is refused before anything is sent: ${what}`, async () => {
      await assert.rejects(prepared(settings, values), (error: Error & { code?: string }) => {
        assert.equal(error.code, 'PROVIDER_FAILED');
        assert.match(error.message, why);
        for (const value of Object.values(values))
          assert.ok(value.length < 3 || !error.message.includes(value), 'quotes the value');
        return true;
      });
    });
});

describe('authenticate', () => {
  for (const [settings, why] of [
    [{}, /must be one of basic, bearer/],
    [{ bearer: 't', basic: {} }, /only headers and query go together/],
    [{ bearer: 't', query: { a: 'b' } }, /only headers and query go together/],
    [{ headers: {} }, /names no header/],
    [{ query: {} }, /names no parameter/],
    [{ headers: { Host: 'x' } }, /Postern itself/],
    [{ headers: { 'content-LENGTH': '1' } }, /Postern itself/],
    [{ headers: { 'Proxy-Authorization': '1' } }, /Postern itself/],
    [{ headers: { 'a b': 'x' } }, /not a name that a header can have/],
    [{ headers: { 'a\r\nb': 'x' } }, /not a name that a header can have/],
    [{ headers: { A: 'x', a: 'y' } }, /names a header twice/],
    [{ headers: { A: '{{ with .x }}' } }, /with.*is not supported/],
    [{ bearer: 'to ken' }, /entry under `credentials`/],
  ] as const)
    it(`is a configuration error: ${JSON.stringify(settings)}`, () => {
      const { error } = authenticate.safeParse(settings);
      assert.match(JSON.stringify(error?.issues), why);
    });

  it('says which credentials the service lacks, at the place that names them', () => {
    const given = authenticate.parse({
      headers: { A: '{{ token }}', B: '{{ tokne }}' },
      query: { k: '{{ key }}' },
    });
    assert.deepEqual(reviewAuthenticate(given, new Set(['token'])), [
      {
        path: ['config', 'authenticate', 'headers', 'B'],
        message: 'the service has no credential "tokne"; it has token',
      },
      {
        path: ['config', 'authenticate', 'query', 'k'],
        message: 'the service has no credential "key"; it has token',
      },
    ]);
    const basic = authenticate.parse({ basic: {} });
    assert.deepEqual(
      reviewAuthenticate(basic, new Set(), ['config']).map(({ path, message }) => [path.join('.'), message]),
      [
        ['config.basic.username', 'the service has no credential "username"; it has none'],
        ['config.basic.password', 'the service has no credential "password"; it has none'],
      ],
    );
  });
});
