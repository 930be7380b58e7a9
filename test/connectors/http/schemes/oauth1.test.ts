import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import {
  baseString,
  type OAuth1Settings,
  oauth1,
  signatureOf,
} from '../../../../src/connectors/http/schemes/oauth1.ts';
import { parametersOf } from '../../../../src/connectors/http/schemes/query.ts';
import { Template } from '../../../../src/connectors/http/schemes/template.ts';
import { credentials, fields, request } from './support.ts';

/** The photographs of RFC 5849, section 1.2. */
const printer = {
  key: 'dpf43f3p2l4k3l03',
  secret: 'kd94hf93k423kf44',
  token: 'nnch734d00sl2jdk',
  tokenSecret: 'pfkkdhi9sl3r4s00',
};
const names: Omit<OAuth1Settings, 'signature'> = {
  consumerKey: Template.of('key'),
  consumerSecret: Template.of('secret'),
  token: Template.of('token'),
  tokenSecret: Template.of('tokenSecret'),
};

async function open(settings: OAuth1Settings, values: Record<string, string> = printer, at = 137131202) {
  const scheme = oauth1(settings, { now: () => at * 1000, nonce: () => 'chapoH' });
  const { value } = await scheme.prepare(credentials(values), new AbortController().signal);
  assert.ok(value.signer);
  return { injection: value, signer: value.signer };
}

describe('a signature of OAuth 1', () => {
  // RFC 5849 shows its requests without oauth_version, which section 3.1 lets a client leave out.
  for (const [method, expected] of [
    ['HMAC-SHA1', 'MdpQcU8iPSUjWoN/UDMsK2sui9I='],
    ['HMAC-SHA256', 'HtMwoX2zenlFjgGg/SNEoKEQmL7CzxYFEKzs7er044Y='],
  ] as const)
    it(`is that of the photograph of RFC 5849 with ${method}`, () => {
      const view = request({ url: 'http://photos.example.net/photos?file=vacation.jpg&size=original' });
      const base = baseString(view, '/photos', [
        ...parametersOf('file=vacation.jpg&size=original'),
        ['oauth_consumer_key', printer.key],
        ['oauth_token', printer.token],
        ['oauth_signature_method', 'HMAC-SHA1'],
        ['oauth_timestamp', '137131202'],
        ['oauth_nonce', 'chapoH'],
      ]);
      const theirs = method === 'HMAC-SHA1' ? base : base.replace('HMAC-SHA1', 'HMAC-SHA256');
      assert.equal(
        signatureOf(theirs, Buffer.from(`${printer.secret}&${printer.tokenSecret}`), method),
        expected,
      );
    });

  it('covers the odd parameters of RFC 5849, section 3.4.1.1', () => {
    const view = request({
      method: 'POST',
      url: 'http://example.com/request?b5=%3D%253D&a3=a&c%40=&a2=r%20b',
    });
    const base = baseString(view, '/request', [
      ...parametersOf('b5=%3D%253D&a3=a&c%40=&a2=r%20b'),
      ...parametersOf('c2&a3=2+q'),
      ['oauth_consumer_key', '9djdj82h48djs9d2'],
      ['oauth_token', 'kkk9d7dh3k39sjv7'],
      ['oauth_signature_method', 'HMAC-SHA1'],
      ['oauth_timestamp', '137131201'],
      ['oauth_nonce', '7d8f3e4a'],
    ]);
    assert.equal(
      base,
      'POST&http%3A%2F%2Fexample.com%2Frequest&a2%3Dr%2520b%26a3%3D2%2520q%26a3%3Da%26b5%3D%253D%25253D%26c%2540%3D%26c2%3D%26oauth_consumer_key%3D9djdj82h48djs9d2%26oauth_nonce%3D7d8f3e4a%26oauth_signature_method%3DHMAC-SHA1%26oauth_timestamp%3D137131201%26oauth_token%3Dkkk9d7dh3k39sjv7',
    );
  });

  it('names the host in lower case and without the port that its scheme has anyhow', () => {
    const base = (url: string, authority: string) =>
      decodeURIComponent(baseString({ ...request({ url }), authority }, '/r', []).split('&')[1] ?? '');
    assert.equal(base('http://example.com/r', 'EXAMPLE.com:80'), 'http://example.com/r');
    assert.equal(base('https://example.com/r', 'example.com:443'), 'https://example.com/r');
    assert.equal(base('https://example.com/r', 'example.com:80'), 'https://example.com:80/r');
    assert.equal(base('http://example.com/r', 'example.com:8080'), 'http://example.com:8080/r');
  });
});

describe('the scheme oauth1', () => {
  /** The request of the documentation of Twitter's API, "Creating a signature". */
  const tweet = {
    values: {
      key: 'xvz1evFS4wEEPTGEFPHBog',
      secret: 'kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw',
      token: '370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb',
      tokenSecret: 'LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE',
    },
    url: 'https://api.twitter.com/1.1/statuses/update.json?include_entities=true',
    body: Buffer.from('status=Hello%20Ladies%20%2b%20Gentlemen%2c%20a%20signed%20OAuth%20request%21'),
  };
  const form: [string, string] = ['Content-Type', 'application/x-www-form-urlencoded; charset=UTF-8'];

  it('signs a form with its fields, and says so in the header', async () => {
    const scheme = oauth1(
      { ...names, signature: 'HMAC-SHA1', realm: 'Statuses' },
      { now: () => 1318622958_000, nonce: () => 'kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg' },
    );
    const { value } = await scheme.prepare(credentials(tweet.values), new AbortController().signal);
    const view = request({ method: 'POST', url: tweet.url, headers: [form], body: tweet.body });
    assert.equal(value.signer?.needsBody(view), true);
    assert.equal(
      fields(value.signer?.sign(view, tweet.body).headers ?? Buffer.alloc(0)).get('authorization'),
      'OAuth realm="Statuses", oauth_consumer_key="xvz1evFS4wEEPTGEFPHBog", oauth_token="370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb", oauth_signature_method="HMAC-SHA1", oauth_timestamp="1318622958", oauth_nonce="kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg", oauth_version="1.0", oauth_signature="hCtSmYh%2BiHYCEqBWrE7C7hYmtUk%3D"',
    );
  });

  it('looks into no body but a form', async () => {
    const { signer } = await open({ ...names, signature: 'HMAC-SHA1' });
    const body = Buffer.from('a=1');
    for (const [headers, needed] of [
      [[form], true],
      [[['content-type', 'application/x-www-form-urlencoded']], true],
      [[['content-type', 'application/x-www-form-urlencodedx']], false],
      [[['content-type', 'application/json']], false],
      [[['content-type', 'multipart/form-data; boundary=x']], false],
      [[], false],
      [[form, form], false],
    ] as readonly [[string, string][], boolean][])
      assert.equal(signer.needsBody(request({ method: 'POST', url: tweet.url, headers, body })), needed);
    assert.equal(signer.needsBody(request({ url: tweet.url, headers: [form] })), false);
  });

  it('goes without a token, and takes another nonce for each request', async () => {
    const { consumerKey, consumerSecret } = names;
    const scheme = oauth1({ consumerKey, consumerSecret, signature: 'HMAC-SHA256' });
    const { value } = await scheme.prepare(credentials(printer), new AbortController().signal);
    const sent = () =>
      fields(
        value.signer?.sign(request({ url: 'https://api.example/x' }), undefined).headers ?? Buffer.alloc(0),
      ).get('authorization') ?? '';
    const [first, second] = [sent(), sent()];
    assert.doesNotMatch(first, /oauth_token/);
    assert.match(first, /oauth_nonce="[0-9a-f]{32}"/);
    assert.notEqual(first, second);
  });

  it('refuses a request that brings parameters of OAuth along', async () => {
    const { signer } = await open({ ...names, signature: 'HMAC-SHA1' });
    for (const view of [
      request({ url: 'https://api.example/x?oauth_nonce=1' }),
      request({ url: 'https://api.example/x?oauth%5Fnonce=1' }),
      request({
        method: 'POST',
        url: 'https://api.example/x',
        headers: [form],
        body: Buffer.from('oauth_token=x'),
      }),
    ])
      assert.throws(() => signer.sign(view, Buffer.from('oauth_token=x')), { code: 'CLIENT_REFUSED' });
  });

  it('sends nothing with secrets that are empty or missing', async () => {
    const settings = { ...names, signature: 'HMAC-SHA1' as const };
    for (const [name, why] of [
      ['key', /"key" is empty/],
      ['secret', /"secret" is empty/],
      ['token', /"token" is empty/],
    ] as const)
      await assert.rejects(open(settings, { ...printer, [name]: '' }), {
        code: 'PROVIDER_FAILED',
        message: why,
      });
    const { tokenSecret: _, ...without } = printer;
    await assert.rejects(open(settings, without), {
      code: 'PROVIDER_FAILED',
      message: /"tokenSecret" has no value/,
    });
  });

  it('signs every form that a fast-check can write in the same way, however it is escaped', async () => {
    const { signer } = await open({ ...names, signature: 'HMAC-SHA1' });
    const of = (body: string) => {
      const bytes = Buffer.from(body);
      const view = request({ method: 'POST', url: 'https://api.example/x', headers: [form], body: bytes });
      return fields(signer.sign(view, bytes).headers).get('authorization');
    };
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.string({ minLength: 1 }), fc.string())), (pairs) => {
        const written = (escape: (text: string) => string) =>
          pairs.map(([name, value]) => `${escape(`f${name}`)}=${escape(value)}`).join('&');
        const everything = (text: string) =>
          [...Buffer.from(text)].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('');
        assert.equal(of(written(encodeURIComponent)), of(written(everything)));
      }),
    );
  });
});
