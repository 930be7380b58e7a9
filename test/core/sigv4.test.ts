import assert from 'node:assert/strict';
import { hash } from 'node:crypto';
import { describe, it } from 'node:test';
import { Sha256 } from '@aws-crypto/sha256-js';
import { SignatureV4 } from '@smithy/signature-v4';
import fc from 'fast-check';

import { percentEncodeText } from '../../src/core/bytes.ts';
import {
  amzDate,
  authorizationOf,
  canonicalPath,
  canonicalQuery,
  emptyHash,
  presignedQuery,
  type QueryParameters,
  type SignedField,
  SigningKeys,
} from '../../src/core/sigv4.ts';

/** AWS's own public example. */
const example = {
  accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
  secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
};

const at = '20260102T030405Z';
/** UTF-8 as a text of bytes. */
const latin1 = (text: string) => Buffer.from(text).toString('latin1');

function authorizationFor(about: {
  readonly method?: string;
  readonly path: string;
  readonly parameters?: QueryParameters;
  readonly headers: readonly SignedField[];
  readonly payload?: string;
  readonly time: string;
  readonly region: string;
  readonly service: string;
}): string {
  using keys = new SigningKeys(Buffer.from(example.secretAccessKey));
  const { time, region, service } = about;
  return authorizationOf(
    {
      method: about.method ?? 'GET',
      path: canonicalPath(about.path, service),
      query: canonicalQuery(about.parameters ?? []),
      headers: about.headers,
      payload: about.payload ?? emptyHash,
      time,
      scope: { region, service },
    },
    example.accessKeyId,
    keys,
  );
}

function signatureOf(about: Parameters<typeof authorizationFor>[0]): string | undefined {
  return /Signature=(.*)/.exec(authorizationFor(about))?.[1];
}

describe('a signature of version 4', () => {
  it("is that of AWS's example of a GET from S3", () => {
    const signature = signatureOf({
      path: '/test.txt',
      headers: [
        ['host', 'examplebucket.s3.amazonaws.com'],
        ['range', 'bytes=0-9'],
        ['x-amz-content-sha256', emptyHash],
        ['x-amz-date', '20130524T000000Z'],
      ],
      time: '20130524T000000Z',
      region: 'us-east-1',
      service: 's3',
    });
    assert.equal(signature, 'f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41');
  });

  it("is that of AWS's example of a PUT in chunks to S3", () => {
    const signature = signatureOf({
      method: 'PUT',
      path: '/examplebucket/chunkObject.txt',
      headers: [
        ['content-encoding', 'aws-chunked'],
        ['content-length', '66824'],
        ['host', 's3.amazonaws.com'],
        ['x-amz-content-sha256', 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD'],
        ['x-amz-date', '20130524T000000Z'],
        ['x-amz-decoded-content-length', '66560'],
        ['x-amz-storage-class', 'REDUCED_REDUNDANCY'],
      ],
      payload: 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD',
      time: '20130524T000000Z',
      region: 'us-east-1',
      service: 's3',
    });
    assert.equal(signature, '4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9');
  });

  it('is that of a question to Secrets Manager', () => {
    const signature = signatureOf({
      method: 'POST',
      path: '/',
      headers: [
        ['content-type', 'application/x-amz-json-1.1'],
        ['host', 'secretsmanager.us-east-1.amazonaws.com'],
        ['x-amz-date', '20260102T030405Z'],
        ['x-amz-target', 'secretsmanager.GetSecretValue'],
      ],
      payload: hash('sha256', '{"SecretId":"prod/db"}'),
      time: '20260102T030405Z',
      region: 'us-east-1',
      service: 'secretsmanager',
    });
    assert.equal(signature, 'e87bfb1876436a3d488c0904a281228dc9823c1797cf014e2859df8fb3ee8790');
  });

  for (const [user, port, sessionToken, signature] of [
    ['app_user', 5432, undefined, 'dcd9728e1cb895cbbd678fe79d6bf34bfa9d11c0c34ca43a098fc5c93e187084'],
    [
      'app user',
      3306,
      'SESSION/TOKEN+==',
      'fb0e66d2ac26dc6273330fea4bd07f5b9f3f2f943685993ff98c6d8ecee6e3af',
    ],
  ] as const)
    it(`is that of RDS's token of "${user}"`, () => {
      const host = `db1.cabc.us-east-1.rds.amazonaws.com:${port}`;
      const parameters = [['Action', 'connect'] as const, ['DBUser', user] as const];
      const scope = { region: 'us-east-1', service: 'rds-db' };
      using keys = new SigningKeys(Buffer.from(example.secretAccessKey));
      const query = presignedQuery(
        { method: 'GET', path: '/', host, parameters, expires: 900, sessionToken, time: at, scope },
        example.accessKeyId,
        keys,
      );
      assert.equal(query.split('&X-Amz-Signature=')[1], signature);
    });

  it('overwrites the keys that it has made', () => {
    const keys = new SigningKeys(Buffer.from('c4nary'));
    const made = Array.from({ length: 20 }, (_, day) =>
      keys.get(String(20130500 + day), { region: 'us-east-1', service: 's3' }),
    );
    assert.ok(made.slice(0, 16).every((key) => key.every((byte) => byte === 0)));
    assert.ok(made.slice(16).every((key) => key.some((byte) => byte !== 0)));
    keys[Symbol.dispose]();
    assert.ok(made.every((key) => key.every((byte) => byte === 0)));
  });

  it('signs the wire path of S3, and of all others one that is normalised and encoded once more', () => {
    assert.equal(canonicalPath('/my%20dir/x%2Fy', 's3'), '/my%20dir/x%2Fy');
    assert.equal(canonicalPath('/a//b/../c', 's3'), '/a//b/../c');
    assert.equal(canonicalPath('/a+b(%c3)', 's3'), '/a%2Bb%28%C3%29');
    assert.equal(canonicalPath('', 's3'), '/');
    assert.equal(canonicalPath('/my%20dir/x%2Fy', 'ssm'), '/my%2520dir/x%252Fy');
    assert.equal(canonicalPath('/a//b/./../c/', 'ssm'), '/a/c/');
    assert.equal(canonicalPath('', 'ssm'), '/');
    assert.equal(canonicalPath('/', 'ssm'), '/');
  });

  it('encodes and sorts a query by bytes', () => {
    assert.equal(
      canonicalQuery([
        ['b', ''],
        ['a', "!'()* ~"],
        ['a', 'Z'],
        ['B', latin1('é')],
      ]),
      'B=%C3%A9&a=%21%27%28%29%2A%20~&a=Z&b=',
    );
  });

  it('agrees with the reference signer on any request', async () => {
    const segment = fc.string({ minLength: 1, maxLength: 8, unit: 'grapheme' });
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom('GET', 'POST'),
        fc.array(segment, { maxLength: 4 }),
        fc.dictionary(segment, fc.string({ maxLength: 8, unit: 'grapheme' }), { maxKeys: 4 }),
        fc.dictionary(fc.stringMatching(/^x-amz-[a-z]{1,6}$/), fc.stringMatching(/^[!-~]( ?[!-~]){0,6}$/), {
          maxKeys: 3,
        }),
        fc.string(),
        fc.constantFrom('s3', 'ssm'),
        async (method, segments, query, extra, body, service) => {
          // As an SDK writes it: of S3's path the reference signs what it is given.
          const path = `/${segments.map((text) => percentEncodeText(latin1(text))).join('/')}`;
          const headers = { host: 'example.amazonaws.com', ...extra };
          const reference = new SignatureV4({
            credentials: example,
            region: 'eu-west-1',
            service,
            sha256: Sha256,
            applyChecksum: false,
            uriEscapePath: service !== 's3',
          });
          const theirs = await reference.sign(
            { method, protocol: 'https:', hostname: 'example.amazonaws.com', path, query, headers, body },
            { signingDate: new Date('2026-01-02T03:04:05Z') },
          );
          const ours = authorizationFor({
            method,
            path,
            parameters: Object.entries(query).map(([name, value]) => [latin1(name), latin1(value)]),
            headers: Object.entries({ ...headers, 'x-amz-date': at }),
            payload: hash('sha256', body),
            time: at,
            region: 'eu-west-1',
            service,
          });
          assert.equal(ours, theirs.headers['authorization']);
        },
      ),
      { numRuns: 200 },
    );
  });

  it('writes the time as AWS wants it', () => {
    assert.equal(amzDate(Date.parse('2026-01-02T03:04:05.678Z')), at);
  });
});
