import assert from 'node:assert/strict';
import { generateKeyPairSync, verify } from 'node:crypto';
import { describe, it } from 'node:test';

import { authenticate } from '../../../../src/connectors/http/schemes/index.ts';
import { credentials, scheme } from './support.ts';
import { type Said, TokenServer } from './token-server.ts';

const now = Date.parse('2026-01-02T03:04:05Z');
const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const pem = (type: 'pkcs1' | 'pkcs8') => privateKey.export({ type, format: 'pem' }) as string;
const created: Said = {
  status: 201,
  body: { token: 'ghs_1', expires_at: '2026-01-02T04:04:05Z', permissions: { contents: 'read' } },
};

async function answered(said: Said, more: object = {}, key = pem('pkcs1')) {
  await using server = await TokenServer.start(() => said);
  const settings = {
    githubApp: {
      clientId: 'Iv23liabcdef',
      installationId: 42,
      apiUrl: `${server.url}/api/v3`,
      ca: server.ca,
      ...more,
    },
  };
  const made = await scheme(settings, () => now).prepare(
    credentials({ privateKey: key }),
    new AbortController().signal,
  );
  return { ...made, asked: server.asked };
}

describe('the scheme githubApp', () => {
  for (const type of ['pkcs1', 'pkcs8'] as const)
    it(`shows a statement signed with the app's key (${type}), and uses the token that it gets`, async () => {
      const { value, expiresAt, asked } = await answered(created, {}, pem(type));
      assert.equal(value.headers.toString(), 'Authorization: Bearer ghs_1\r\n');
      assert.equal(expiresAt?.toISOString(), '2026-01-02T03:58:05.000Z');
      const [request] = asked;
      assert.deepEqual(
        [request?.method, request?.path, request?.body],
        ['POST', '/api/v3/app/installations/42/access_tokens', '{}'],
      );
      assert.equal(request?.headers['accept'], 'application/vnd.github+json');
      assert.equal(request?.headers['user-agent'], 'postern');
      const jwt = /^Bearer (.*)$/.exec(String(request?.headers['authorization']))?.[1] ?? '';
      const [header = '', payload = '', signature = ''] = jwt.split('.');
      const parsed = (part: string) => JSON.parse(Buffer.from(part, 'base64url').toString()) as unknown;
      assert.deepEqual(parsed(header), { alg: 'RS256', typ: 'JWT' });
      const seconds = now / 1000;
      assert.deepEqual(parsed(payload), { iat: seconds - 60, exp: seconds + 540, iss: 'Iv23liabcdef' });
      const signed = Buffer.from(`${header}.${payload}`);
      assert.ok(verify('RSA-SHA256', signed, publicKey, Buffer.from(signature, 'base64url')));
    });

  it('asks for some repositories and permissions only, and is a password for git', async () => {
    const { value, asked } = await answered(created, {
      clientId: undefined,
      appId: 7,
      repositories: ['one', 'two.git'],
      permissions: { contents: 'read' },
      as: 'git',
    });
    assert.equal(value.headers.toString(), `Authorization: Basic ${btoa('x-access-token:ghs_1')}\r\n`);
    assert.equal(asked[0]?.body, '{"repositories":["one","two.git"],"permissions":{"contents":"read"}}');
  });

  it('takes a token of any length', async () => {
    const token = `ghs_${'x'.repeat(4000)}`;
    const { value } = await answered({ ...created, body: { token, expires_at: '2026-01-02T04:04:05Z' } });
    assert.equal(value.headers.toString(), `Authorization: Bearer ${token}\r\n`);
  });

  for (const [what, said, code, why] of [
    ['200', { ...created, status: 200 }, 'PROVIDER_FAILED', /answered 200/],
    [
      '401',
      { status: 401, body: { message: 'c4nary' } },
      'PROVIDER_FAILED',
      /does not know the app or its key/,
    ],
    ['404', { status: 404 }, 'PROVIDER_FAILED', /no such installation/],
    ['422', { status: 422 }, 'PROVIDER_FAILED', /does not have these repositories/],
    ['429', { status: 429 }, 'PROVIDER_UNAVAILABLE', /answered 429/],
    ['502', { status: 502 }, 'PROVIDER_UNAVAILABLE', /answered 502/],
    [
      'no token',
      { status: 201, body: { expires_at: '2026-01-02T04:04:05Z' } },
      'PROVIDER_FAILED',
      /without a token/,
    ],
    [
      'no end',
      { status: 201, body: { token: 'x' } },
      'PROVIDER_FAILED',
      /without a token and its expires_at/,
    ],
    [
      'a token that has ended',
      { status: 201, body: { token: 'x', expires_at: '2026-01-02T03:04:05Z' } },
      'PROVIDER_FAILED',
      /has ended already/,
    ],
    ['a page', { status: 201, body: '<html>' }, 'PROVIDER_FAILED', /without a token/],
  ] as const)
    it(`sends nothing when GitHub answers with ${what}`, async () => {
      await assert.rejects(answered(said), (error: Error & { code?: string }) => {
        assert.deepEqual([error.code, why.test(error.message)], [code, true], error.message);
        assert.doesNotMatch(error.message, /c4nary/);
        return true;
      });
    });

  it('says that a key cannot be used, and nothing of it', async () => {
    const { privateKey: curve } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    for (const [key, why] of [
      ['c4nary', /"privateKey" is no private key in PEM/],
      [curve.export({ type: 'pkcs8', format: 'pem' }) as string, /is no RSA key/],
    ] as const)
      await assert.rejects(answered(created, {}, key), (error: Error & { code?: string }) => {
        assert.equal(error.code, 'PROVIDER_FAILED');
        assert.match(error.message, why);
        assert.doesNotMatch(error.message, /c4nary/);
        return true;
      });
  });

  for (const [githubApp, why] of [
    [{ installationId: 1 }, /or `appId` in its place/],
    [{ installationId: 1, appId: 1, clientId: 'x' }, /or `appId` in its place/],
    [{ installationId: '../x', appId: 1 }, /installationId/],
    [{ installationId: 1, appId: 1, repositories: ['owner/name'] }, /without its owner/],
    [{ installationId: 1, appId: 1, apiUrl: 'http://github.internal' }, /in clear/],
  ] as const)
    it(`is a configuration error: ${JSON.stringify(githubApp)}`, () => {
      assert.match(JSON.stringify(authenticate.safeParse({ githubApp }).error?.issues), why);
    });
});
