import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Sha256 } from '@aws-crypto/sha256-js';
import { SignatureV4 } from '@smithy/signature-v4';
import fc from 'fast-check';

import {
  amzDate,
  authorizationOf,
  canonicalPath,
  canonicalQuery,
  emptyPayload,
  presignedQuery,
  sha256Hex,
  signV4,
} from '../../src/core/sigv4.ts';

// The key of AWS's own published examples.
const identity = () => ({
  accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
  secretAccessKey: Buffer.from('wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY'),
});
const at = '20260102T030405Z';

describe('a signature of version 4', () => {
  it("is that of AWS's published example of S3", () => {
    const signed = signV4(
      {
        method: 'GET',
        path: canonicalPath('/test.txt', 's3'),
        query: '',
        headers: [
          ['Host', 'examplebucket.s3.amazonaws.com'],
          ['Range', 'bytes=0-9'],
          ['x-amz-content-sha256', emptyPayload],
          ['x-amz-date', '20130524T000000Z'],
        ],
        payloadHash: emptyPayload,
      },
      identity(),
      { region: 'us-east-1', service: 's3' },
      '20130524T000000Z',
    );
    assert.equal(
      authorizationOf(signed),
      'AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
    );
  });

  it('is that of a request to Secrets Manager', () => {
    const { signature } = signV4(
      {
        method: 'POST',
        path: '/',
        query: '',
        headers: [
          ['content-type', 'application/x-amz-json-1.1'],
          ['host', 'secretsmanager.us-east-1.amazonaws.com'],
          ['x-amz-date', at],
          ['x-amz-target', 'secretsmanager.GetSecretValue'],
        ],
        payloadHash: sha256Hex('{"SecretId":"prod/db"}'),
      },
      identity(),
      { region: 'us-east-1', service: 'secretsmanager' },
      at,
    );
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
      const query = presignedQuery(
        { method: 'GET', path: '/', host, parameters, expires: 900, sessionToken },
        identity(),
        { region: 'us-east-1', service: 'rds-db' },
        at,
      );
      assert.equal(query.split('&X-Amz-Signature=')[1], signature);
    });

  it('signs the wire path of S3, and of all others one that is normalised and encoded once more', () => {
    assert.equal(canonicalPath('/my%20dir/x%2Fy', 's3'), '/my%20dir/x%2Fy');
    assert.equal(canonicalPath('/a//b/../c', 's3'), '/a//b/../c');
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
        ['B', 'é'],
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
          const path = `/${segments.map((text) => encodeURIComponent(text)).join('/')}`;
          const headers = { host: 'example.amazonaws.com', ...extra };
          const reference = new SignatureV4({
            credentials: {
              accessKeyId: identity().accessKeyId,
              secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
            },
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
          const ours = signV4(
            {
              method,
              path: canonicalPath(path, service),
              query: canonicalQuery(Object.entries(query)),
              headers: Object.entries({ ...headers, 'x-amz-date': at }),
              payloadHash: sha256Hex(body),
            },
            identity(),
            { region: 'eu-west-1', service },
            at,
          );
          assert.equal(authorizationOf(ours), theirs.headers['authorization']);
        },
      ),
      { numRuns: 200 },
    );
  });

  it('writes the time as AWS wants it', () => {
    assert.equal(amzDate(new Date('2026-01-02T03:04:05.678Z')), at);
  });
});
