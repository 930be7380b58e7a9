import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { tlsServerEndPoint } from '../../../../src/connectors/postgres/auth/channel-binding.ts';
import { PosternError } from '../../../../src/core/errors.ts';

// Self-signed by OpenSSL 3.0 (`openssl req -x509 -outform DER`), one for each signature algorithm.
const folder = new URL('./fixtures/certificates/', import.meta.url);
const certificate = (name: string) => readFileSync(new URL(name, folder));
// What `openssl dgst -r` says, with the hash that RFC 5929 asks for.
const digests = readFileSync(new URL('openssl-dgst.txt', folder), 'utf8')
  .trim()
  .split('\n')
  .map((line) => line.split('  ') as [string, string]);

describe('tls-server-end-point', () => {
  for (const [digest, name] of digests) {
    it(`of ${name} is what openssl dgst says`, () => {
      assert.equal(tlsServerEndPoint(certificate(name))?.toString('hex'), digest);
    });
  }

  it('of two known certificates is the known hash', () => {
    const known = [
      [
        'MIIBBTCBraADAgECAgEBMAoGCCqGSM49BAMCMA0xCzAJBgNVBAMMAnBnMB4XDTI1MDEwMTAwMDAwMFoXDTQ1MDEwMTAwMDAwMFowDTELMAkGA1UEAwwCcGcwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAROVm4IOPE6n3IQiSkbbB+LdHpsxOxClYCS007jmw6ZTmRZSCwvQLvEJ3KIYINteO4LTUbl2cylB9NEJNmwOU7OMAoGCCqGSM49BAMCA0cAMEQCIHgUY4f6/1tzyBchh/AC61w6aFi0irF2pQ9ucbYXpjoXAiAJwXCNgTK/jt+hnRB7Jnp23qXYMHKKXRoQlZyrtxfNIA==',
        '72fd98562585b2338dc38e2c18e74e3ff400a579288815a9d8b8199b4abec6e9',
      ],
      [
        'MIIBBjCBraADAgECAgEBMAoGCCqGSM49BAMDMA0xCzAJBgNVBAMMAnBnMB4XDTI1MDEwMTAwMDAwMFoXDTQ1MDEwMTAwMDAwMFowDTELMAkGA1UEAwwCcGcwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAROVm4IOPE6n3IQiSkbbB+LdHpsxOxClYCS007jmw6ZTmRZSCwvQLvEJ3KIYINteO4LTUbl2cylB9NEJNmwOU7OMAoGCCqGSM49BAMDA0gAMEUCIDsFUJMXm4BeW+IXYcdRXPz5KkGmBPCL5m7/zVQ+95VqAiEAzNToZZz4JV8ONaSdlh2NxKnYf0hXz/gi9sogmRNq4t0=',
        'd9935bf2292babb08172fd4cb669489af9938a7c18fa5e83d3c833fcdd1c98499ee5e8f3a1628328c53bcd221d249f9f',
      ],
    ] as const;
    for (const [der, digest] of known)
      assert.equal(tlsServerEndPoint(Buffer.from(der, 'base64'))?.toString('hex'), digest);
  });

  it('does not exist for signatures without a hash of their own', () => {
    assert.equal(tlsServerEndPoint(certificate('ed25519.der')), undefined);
    assert.equal(tlsServerEndPoint(certificate('ed448.der')), undefined);
  });

  it('does not exist for an algorithm that is not known', () => {
    assert.equal(tlsServerEndPoint(der(0x30, tbs, der(0x30, der(0x06, [0x2a, 0x03])), signature)), undefined);
  });

  it('does not exist for RSA-PSS with a hash that is not known', () => {
    const hashAlgorithm = der(0xa0, der(0x30, der(0x06, [0x2a, 0x03])));
    const algorithm = der(0x30, rsaPss, der(0x30, hashAlgorithm));
    assert.equal(tlsServerEndPoint(der(0x30, tbs, algorithm, signature)), undefined);
  });

  it('takes SHA-256 for RSA-PSS that names SHA-1 aloud', () => {
    const sha1 = der(0x06, [0x2b, 0x0e, 0x03, 0x02, 0x1a]);
    const algorithm = der(0x30, rsaPss, der(0x30, der(0xa0, der(0x30, sha1))));
    assert.equal(tlsServerEndPoint(der(0x30, tbs, algorithm, signature))?.length, 32);
  });

  it('is an error where the bytes are not a DER certificate, never a silent "cannot bind"', () => {
    const good = certificate('rsa-sha256.der');
    const notDer: Record<string, Buffer> = {
      nothing: Buffer.alloc(0),
      'a tag alone': Buffer.from([0x30]),
      'indefinite length': Buffer.concat([Buffer.from([0x30, 0x80]), good.subarray(4), Buffer.alloc(2)]),
      'a length longer than needed': der(0x30, Buffer.from([0x30, 0x81, 0x01, 0x00]), tbs),
      'a length with a leading zero': Buffer.concat([
        Buffer.from([0x30, 0x83, 0x00]),
        good.subarray(2, 4),
        good.subarray(4),
      ]),
      'a length of five bytes': Buffer.from([0x30, 0x85, 0, 0, 0, 0, 1, 0]),
      'a length beyond the end': Buffer.from([0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0]),
      'cut short': good.subarray(0, -1),
      'bytes behind the end': Buffer.concat([good, Buffer.alloc(1)]),
      'no signature': der(0x30, tbs, der(0x30, der(0x06, [0x2a, 0x03]))),
      'a fourth field': der(0x30, tbs, der(0x30, der(0x06, [0x2a, 0x03])), signature, signature),
      'an algorithm without identifier': der(0x30, tbs, der(0x30), signature),
      'RSA-PSS without parameters': der(0x30, tbs, der(0x30, rsaPss), signature),
    };
    for (const [why, bytes] of Object.entries(notDer))
      assert.throws(() => tlsServerEndPoint(bytes), { code: 'UPSTREAM_PROTOCOL' }, why);
  });

  it('gives a hash, nothing or UPSTREAM_PROTOCOL for any bytes and any change of a certificate', () => {
    const originals = ['rsa-pss-sha384.der', 'ecdsa-sha256.der', 'ed25519.der'].map(certificate);
    const changed = fc
      .tuple(fc.constantFrom(...originals), fc.nat(1000), fc.nat(255))
      .map(([original, position, byte]) => {
        const copy = Buffer.from(original);
        copy[position % copy.length] = byte;
        return copy;
      });
    const anything = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes));
    fc.assert(
      fc.property(fc.oneof(anything, changed), (bytes) => {
        try {
          const data = tlsServerEndPoint(bytes);
          assert.ok(data === undefined || [28, 32, 48, 64].includes(data.length));
        } catch (thrown) {
          assert.ok(thrown instanceof PosternError && thrown.code === 'UPSTREAM_PROTOCOL');
        }
      }),
      { numRuns: 1000 },
    );
  });
});

const rsaPss = der(0x06, [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a]);
const tbs = der(0x30);
const signature = der(0x03, [0x00]);

/** One DER element with a short length. */
function der(tag: number, ...contents: (Buffer | number[])[]): Buffer {
  const body = Buffer.concat(contents.map((part) => Buffer.from(part)));
  assert.ok(body.length < 0x80);
  return Buffer.concat([Buffer.from([tag, body.length]), body]);
}
