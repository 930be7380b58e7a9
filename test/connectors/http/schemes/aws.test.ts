import assert from 'node:assert/strict';
import { hash } from 'node:crypto';
import { describe, it } from 'node:test';
import { Sha256 } from '@aws-crypto/sha256-js';
import { SignatureV4 } from '@smithy/signature-v4';
import fc from 'fast-check';

import { awsHostOf, awsScopeOf } from '../../../../src/connectors/http/schemes/aws-hosts.ts';
import type { Injection, Signed } from '../../../../src/connectors/http/schemes/index.ts';
import { emptyHash } from '../../../../src/core/sigv4.ts';
import { fields, prepared, request } from './support.ts';

/** AWS's own public example. */
const example = {
  accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
  secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
};

it("a request is signed as AWS's own signer signs any", async () => {
  const text = fc.string({ unit: 'binary-ascii', maxLength: 12 });
  const segment = fc.string({
    unit: fc.constantFrom('a', 'Z', '0', '-', '.', '%20', '%2F', '%C3%BC', '~', '_'),
    maxLength: 4,
  });
  const value = fc
    .string({
      unit: fc.constantFrom('a', 'B', ' ', '  ', ',', '"', '=', ';', '\t', 'ÿ', 'à'),
      minLength: 1,
      maxLength: 8,
    })
    .map((raw) => `x${raw}y`);
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        method: fc.constantFrom('GET', 'POST', 'PUT', 'DELETE'),
        service: fc.constantFrom('s3', 'execute-api', 'dynamodb', 'es'),
        region: fc.constantFrom('us-east-1', 'eu-central-1'),
        path: fc.array(segment, { maxLength: 5 }).map((parts) => `/${parts.join('/')}`),
        query: fc.dictionary(
          fc.string({
            unit: fc.constantFrom('a', 'b', ' ', '+', '&', '=', '/', 'ü', '~', '*'),
            minLength: 1,
            maxLength: 4,
          }),
          fc.oneof(text, fc.array(text, { minLength: 1, maxLength: 3 })),
          { maxKeys: 4 },
        ),
        meta: fc.dictionary(
          fc.constantFrom('x-amz-meta-a', 'x-amz-acl', 'content-type', 'content-md5'),
          value,
        ),
        body: fc.string({ maxLength: 30 }),
        token: fc.option(fc.constantFrom('SESSION/TOKEN+==', 'short'), { nil: undefined }),
        day: fc.date({ min: new Date('2013-01-01'), max: new Date('2040-01-01'), noInvalidDate: true }),
      }),
      async (about) => {
        const host = 'api.example.com:8443';
        const payload = hash('sha256', about.body);
        const oracle = new SignatureV4({
          credentials: { ...example, ...(about.token !== undefined && { sessionToken: about.token }) },
          region: about.region,
          service: about.service,
          sha256: Sha256,
          uriEscapePath: about.service !== 's3',
          applyChecksum: about.service === 's3',
        });
        const signed = await oracle.sign(
          {
            method: about.method,
            protocol: 'https:',
            hostname: 'api.example.com',
            port: 8443,
            path: about.path,
            query: about.query,
            headers: { host, ...about.meta },
            body: about.body,
          },
          { signingDate: about.day },
        );
        const pairs = Object.entries(about.query).flatMap(([name, values]) =>
          [values].flat().map((each) => `${encodeURIComponent(name)}=${encodeURIComponent(each)}`),
        );
        const view = request({
          method: about.method,
          url: `https://${host}${about.path}${pairs.length > 0 ? `?${pairs.join('&')}` : ''}`,
          headers: Object.entries(about.meta).map(([name, text]) => [
            name,
            Buffer.from(text).toString('latin1'),
          ]),
          cut: about.service === 's3' ? [['x-amz-content-sha256', payload]] : [],
          body: Buffer.from(about.body),
        });
        const injection = await prepared(
          {
            aws: {
              region: about.region,
              service: about.service,
              ...(about.token !== undefined && { sessionToken: 'sessionToken' }),
            },
          },
          { ...example, ...(about.token !== undefined && { sessionToken: about.token }) },
          () => about.day.getTime(),
        );
        const ours = fields(signedBy(injection, view, Buffer.from(about.body)).headers);
        for (const name of ['authorization', 'x-amz-date', 'x-amz-security-token'])
          assert.equal(ours.get(name), signed.headers[name], name);
      },
    ),
    { numRuns: 300 },
  );
});

type View = ReturnType<typeof request>;

function signedBy(injection: Injection, view: View, body?: Buffer): Signed {
  assert.ok(injection.signer);
  return injection.signer.sign(
    view,
    injection.signer.needsBody(view) ? (body ?? Buffer.alloc(0)) : undefined,
  );
}

/** A signature with a key that means nothing, as the SDK of an application behind Postern makes it. */
const dummy = (region: string, service: string, signedHeaders = 'host;x-amz-date'): [string, string][] => [
  [
    'Authorization',
    `AWS4-HMAC-SHA256 Credential=AKIDUMMY/20130524/${region}/${service}/aws4_request, SignedHeaders=${signedHeaders}, Signature=${'0'.repeat(64)}`,
  ],
  ['X-Amz-Date', '20130524T000000Z'],
];

describe('the scheme aws', () => {
  const open = (settings: object = {}, values: Record<string, string> = example) =>
    prepared({ aws: settings }, values, () => Date.parse('2026-01-02T03:04:05Z'));

  it("signs AWS's example again as if nobody had signed it before", async () => {
    const view = request({
      url: 'https://examplebucket.s3.amazonaws.com/test.txt',
      headers: [
        ['User-Agent', 'aws-cli'],
        ['Range', 'bytes=0-9'],
      ],
      cut: [
        ...dummy('us-east-1', 's3', 'host;range;user-agent;x-amz-content-sha256;x-amz-date'),
        ['X-Amz-Content-SHA256', emptyHash],
      ],
    });
    const signed = fields(signedBy(await open(), view).headers);
    assert.deepEqual(Object.fromEntries(signed), {
      'x-amz-date': '20130524T000000Z',
      'x-amz-content-sha256': emptyHash,
      authorization:
        'AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
    });
  });

  it('reads a signature whatever stands between its parts', async () => {
    for (const between of [',', ', ', ',  ']) {
      const view = request({
        url: 'https://dynamodb.eu-west-1.amazonaws.com/',
        cut: [
          [
            'authorization',
            [
              'AWS4-HMAC-SHA256 Credential=A/20130524/eu-west-3/dynamodb/aws4_request',
              'SignedHeaders=host',
              'Signature=0',
            ].join(between),
          ],
        ],
      });
      assert.match(
        fields(signedBy(await open(), view).headers).get('authorization') ?? '',
        /Credential=AKIAIOSFODNN7EXAMPLE\/20260102\/eu-west-3\/dynamodb\/aws4_request, SignedHeaders=host;x-amz-date,/,
      );
    }
  });

  it('covers every x-amz-* field and what the client had covered, but nothing that a hop may change', async () => {
    const view = request({
      url: 'https://s3.eu-west-1.amazonaws.com/b/k',
      headers: [
        ['x-amz-acl', 'private'],
        ['X-Amz-Meta-B', '1'],
        ['Content-Type', 'text/plain'],
        ['If-Match', 'x'],
        ['If-None-Match', 'y'],
        ['Accept-Encoding', 'identity'],
        ['X-Forwarded-For', '1.2.3.4'],
        ['X-Amzn-Trace-Id', 'Root=1'],
        ['Expect', '100-continue'],
      ],
      cut: dummy('eu-west-1', 's3', 'accept-encoding;expect;host;if-match;x-amzn-trace-id;x-forwarded-for'),
    });
    assert.match(
      fields(signedBy(await open(), view).headers).get('authorization') ?? '',
      /SignedHeaders=content-type;host;if-match;x-amz-acl;x-amz-content-sha256;x-amz-date;x-amz-meta-b,/,
    );
  });

  it('signs a request without a signature for what its host says, by its own clock', async () => {
    const view = request({ url: 'https://sqs.eu-central-1.amazonaws.com/123/queue' });
    const signed = fields(signedBy(await open(), view).headers);
    assert.match(signed.get('authorization') ?? '', /\/20260102\/eu-central-1\/sqs\/aws4_request/);
    assert.equal(signed.get('x-amz-date'), '20260102T030405Z');
    assert.equal(signed.get('x-amz-content-sha256'), undefined);
  });

  it('says what to set for a host that does not say it, and signs with it', async () => {
    const view = request({ url: 'https://minio.internal:9000/bucket/key' });
    const bare = await open();
    assert.throws(() => signedBy(bare, view), {
      code: 'CLIENT_REFUSED',
      message: /minio\.internal does not say which AWS service it is of; set authenticate\.aws\.region/,
    });
    const settled = await open({ region: 'garage', service: 's3' });
    assert.match(fields(signedBy(settled, view).headers).get('authorization') ?? '', /\/garage\/s3\//);
  });

  it('lets the configuration pin the region and the service against the client', async () => {
    const view = request({ url: 'https://s3.eu-west-1.amazonaws.com/', cut: dummy('us-east-1', 'sts') });
    const pinned = await open({ region: 'eu-west-1', service: 's3' });
    assert.match(fields(signedBy(pinned, view).headers).get('authorization') ?? '', /\/eu-west-1\/s3\/aws4/);
  });

  it('signs and sends the session token of temporary keys', async () => {
    const injection = await open(
      { sessionToken: 'sessionToken' },
      { ...example, sessionToken: 'TOKEN+/=\n' },
    );
    const signed = fields(signedBy(injection, request({ url: 'https://sts.amazonaws.com/' })).headers);
    assert.equal(signed.get('x-amz-security-token'), 'TOKEN+/=');
    assert.match(signed.get('authorization') ?? '', /SignedHeaders=host;x-amz-date;x-amz-security-token,/);
  });

  it('takes a presigned URL for what it is: signed by nobody that matters', async () => {
    const query =
      'versionId=1&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDUMMY%2F20130524%2Feu-west-2%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=00&X%2DAmz-Security-Token=t';
    const view = request({ url: `https://b.example.com/k?${query}` });
    const { target, headers } = signedBy(await open(), view);
    assert.equal(target, '/k?versionId=1');
    assert.match(fields(headers).get('authorization') ?? '', /\/20130524\/eu-west-2\/s3\/aws4_request/);
  });

  it('writes a "+" of the query as the space that it means, and leaves other targets alone', async () => {
    const injection = await open();
    const plus = request({ url: 'https://s3.eu-west-1.amazonaws.com/b?prefix=a+b&list-type=2' });
    assert.equal(signedBy(injection, plus).target, '/b?prefix=a%20b&list-type=2');
    const plain = request({ url: 'https://s3.eu-west-1.amazonaws.com/b?list-type=2&prefix=a%2bb' });
    assert.equal(signedBy(injection, plain).target, undefined);
    const bad = request({ url: 'https://s3.eu-west-1.amazonaws.com/b?prefix=%zz' });
    assert.throws(() => signedBy(injection, bad), { code: 'CLIENT_REFUSED' });
  });

  describe('the body', () => {
    const s3 = 'https://b.s3.eu-west-1.amazonaws.com/k';
    const body = Buffer.from('hello');
    const cut = (sha256: string): [string, string][] => [
      ...dummy('eu-west-1', 's3'),
      ['x-amz-content-sha256', sha256],
    ];
    const cases: readonly [string, View, { needed: boolean; declared: string | undefined }][] = [
      ['none', request({ url: s3 }), { needed: false, declared: emptyHash }],
      ['of length 0', request({ url: s3, body: Buffer.alloc(0) }), { needed: false, declared: emptyHash }],
      ['to S3 over TLS', request({ url: s3, body }), { needed: false, declared: 'UNSIGNED-PAYLOAD' }],
      [
        'in chunks to S3 over TLS',
        request({ url: s3, chunked: true }),
        { needed: false, declared: 'UNSIGNED-PAYLOAD' },
      ],
      [
        'to S3 without TLS',
        request({ url: s3.replace('https', 'http'), body }),
        { needed: true, declared: hash('sha256', body) },
      ],
      [
        'with a hash of the client',
        request({ url: s3, body, cut: cut('a'.repeat(64)) }),
        { needed: false, declared: 'a'.repeat(64) },
      ],
      [
        'unsigned by the client',
        request({ url: s3, body, cut: cut('UNSIGNED-PAYLOAD') }),
        { needed: false, declared: 'UNSIGNED-PAYLOAD' },
      ],
      [
        'unsigned by the client without TLS',
        request({ url: s3.replace('https', 'http'), body, cut: cut('UNSIGNED-PAYLOAD') }),
        { needed: true, declared: hash('sha256', body) },
      ],
      [
        'with a checksum behind it',
        request({ url: s3, body, cut: cut('STREAMING-UNSIGNED-PAYLOAD-TRAILER') }),
        { needed: false, declared: 'STREAMING-UNSIGNED-PAYLOAD-TRAILER' },
      ],
      [
        'to another service',
        request({ url: 'https://sqs.eu-west-1.amazonaws.com/', body }),
        { needed: true, declared: undefined },
      ],
    ];
    for (const [what, view, expected] of cases)
      it(`is signed as it can be: ${what}`, async () => {
        const injection = await open();
        assert.equal(injection.signer?.needsBody(view), expected.needed);
        assert.equal(
          fields(signedBy(injection, view, body).headers).get('x-amz-content-sha256'),
          expected.declared,
        );
      });

    for (const [what, view, why] of [
      [
        'chunks that the client has signed',
        request({ url: s3, body, cut: cut('STREAMING-AWS4-HMAC-SHA256-PAYLOAD') }),
        /have the SDK send unsigned chunks/,
      ],
      [
        'chunks and a checksum that the client has signed',
        request({ url: s3, body, cut: cut('STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER') }),
        /have the SDK send unsigned chunks/,
      ],
      [
        'unsigned chunks without TLS',
        request({ url: s3.replace('https', 'http'), body, cut: cut('STREAMING-UNSIGNED-PAYLOAD-TRAILER') }),
        /https upstreams only/,
      ],
      [
        'a signature for several regions',
        request({
          url: s3,
          cut: [
            [
              'Authorization',
              'AWS4-ECDSA-P256-SHA256 Credential=A/20130524/s3/aws4_request, SignedHeaders=host, Signature=0',
            ],
          ],
        }),
        /SigV4A/,
      ],
      [
        'a presigned signature for several regions',
        request({ url: `${s3}?X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256` }),
        /SigV4A/,
      ],
      [
        'a session of S3 Express',
        request({ url: s3, headers: [['x-amz-s3session-token', 't']] }),
        /S3 Express/,
      ],
      [
        'a signature without a scope',
        request({
          url: s3,
          cut: [['Authorization', 'AWS4-HMAC-SHA256 Credential=A, SignedHeaders=host, Signature=0']],
        }),
        /names no region and service/,
      ],
    ] as const)
      it(`is refused with the reason: ${what}`, async () => {
        const injection = await open();
        assert.throws(() => signedBy(injection, view, body), { code: 'CLIENT_REFUSED', message: why });
        assert.ok(!/\r|\n/.test(String(why)));
      });
  });

  for (const [what, values, why] of [
    ['an empty secret', { ...example, secretAccessKey: ' \n' }, /"secretAccessKey" is empty/],
    ['an id with a line break inside', { ...example, accessKeyId: 'A\r\nB' }, /no access key id/],
    ['no id', { secretAccessKey: 'x' }, /"accessKeyId" has no value/],
  ] as const)
    it(`sends nothing with keys that cannot be used: ${what}`, async () => {
      await assert.rejects(open({}, values), { code: 'PROVIDER_FAILED', message: why });
    });

  it('makes no header that a client could put a line of its own into', async () => {
    const view = request({
      url: 'https://s3.eu-west-1.amazonaws.com/',
      cut: [
        [
          'Authorization',
          'AWS4-HMAC-SHA256 Credential=A/20130524/eu\r\nEvil:/s3/aws4_request, SignedHeaders=host, Signature=0',
        ],
      ],
    });
    const injection = await open();
    assert.throws(() => signedBy(injection, view), { code: 'CLIENT_REFUSED' });
  });
});

describe('a host of AWS', () => {
  for (const [host, service, region] of [
    ['secretsmanager.us-east-1.amazonaws.com', 'secretsmanager', 'us-east-1'],
    ['s3.amazonaws.com', 's3', 'us-east-1'],
    ['my.bucket.s3.amazonaws.com', 's3', 'us-east-1'],
    ['bucket.s3.eu-west-1.amazonaws.com', 's3', 'eu-west-1'],
    ['bucket.s3.dualstack.eu-west-1.amazonaws.com', 's3', 'eu-west-1'],
    ['s3-us-west-2.amazonaws.com', 's3', 'us-west-2'],
    ['bucket.s3-us-west-2.amazonaws.com', 's3', 'us-west-2'],
    ['s3-fips.us-gov-west-1.amazonaws.com', 's3', 'us-gov-west-1'],
    ['iam.amazonaws.com', 'iam', 'us-east-1'],
    ['sts.amazonaws.com', 'sts', 'us-east-1'],
    ['email.eu-west-1.amazonaws.com', 'ses', 'eu-west-1'],
    ['abc123.execute-api.eu-west-1.amazonaws.com', 'execute-api', 'eu-west-1'],
    ['search-logs-xyz.eu-west-1.es.amazonaws.com', 'es', 'eu-west-1'],
    ['abc.eu-west-1.aoss.amazonaws.com', 'aoss', 'eu-west-1'],
    ['eu-west-1.queue.amazonaws.com', 'sqs', 'eu-west-1'],
    ['vpce-0a.sqs.eu-west-1.vpce.amazonaws.com', 'sqs', 'eu-west-1'],
    ['dynamodb.cn-north-1.amazonaws.com.cn', 'dynamodb', 'cn-north-1'],
    ['lambda.eu-west-1.api.aws', 'lambda', 'eu-west-1'],
    ['abc.lambda-url.eu-west-1.on.aws', 'lambda', 'eu-west-1'],
    ['bedrock-runtime.us-east-1.amazonaws.com', 'bedrock', 'us-east-1'],
    ['runtime.sagemaker.us-east-1.amazonaws.com', 'sagemaker', 'us-east-1'],
    ['streams.dynamodb.us-east-1.amazonaws.com', 'dynamodb', 'us-east-1'],
    ['sts.us-gov-east-1.amazonaws.com', 'sts', 'us-gov-east-1'],
  ] as const)
    it(`says what requests are signed for: ${host}`, () =>
      assert.deepEqual(awsScopeOf(host), { service, region }));

  for (const host of [
    'example.com',
    'amazonaws.com',
    'bucket.s3-accelerate.amazonaws.com',
    'evilamazonaws.com',
    's3.eu-west-1.amazonaws.com.evil.example',
  ])
    it(`is none, or does not say it: ${host}`, () => assert.equal(awsScopeOf(host), undefined));

  it('is found for a service and a region', () => {
    assert.equal(awsHostOf('secretsmanager', 'eu-west-1'), 'secretsmanager.eu-west-1.amazonaws.com');
    assert.equal(awsHostOf('ses', 'eu-west-1'), 'email.eu-west-1.amazonaws.com');
    assert.equal(awsHostOf('iam', 'us-east-1'), 'iam.amazonaws.com');
    assert.equal(awsHostOf('s3', 'cn-north-1'), 's3.cn-north-1.amazonaws.com.cn');
  });
});
