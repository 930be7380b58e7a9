import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as fc from 'fast-check';

import { type Issuer, issueLeaf, issueRoot, readIssuer } from '../../../src/connectors/http/certificate.ts';
import type { PosternError } from '../../../src/core/errors.ts';
import { capture, run } from '../../support/servers/process.ts';

let folder = '';

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-certificate-'));
});
after(() => rm(folder, { recursive: true, force: true }));

const ec = (namedCurve: string) => generateKeyPairSync('ec', { namedCurve });
const pemOf = (key: KeyObject) => Buffer.from(key.export({ type: 'pkcs8', format: 'pem' }));
const leafKey = ec('prime256v1').publicKey;

function newIssuer(
  hosts: readonly string[] = [],
  { privateKey } = ec('prime256v1'),
): Issuer & { pem: string } {
  const pem = issueRoot(privateKey, { name: 'Postern test CA', days: 30, hosts });
  return { ...readIssuer(Buffer.from(pem), pemOf(privateKey)), pem };
}

/** What `openssl verify`, as strict as it can be, says of a leaf for a host. */
async function verify(
  issuer: { pem: string },
  leaf: string,
  host: string,
  ...more: string[]
): Promise<string> {
  await writeFile(join(folder, 'ca.pem'), issuer.pem);
  await writeFile(join(folder, 'leaf.pem'), leaf);
  const name = /^[\d.]+$|:/.test(host) ? ['-verify_ip', host] : ['-verify_hostname', host];
  const strict = ['verify', '-x509_strict', '-check_ss_sig', '-purpose', 'sslserver', ...name, ...more];
  const { stdout, stderr } = await capture('openssl', [...strict, '-CAfile', 'ca.pem', 'leaf.pem'], {
    cwd: folder,
  });
  return stdout + stderr;
}

describe('certificates of the local authority', () => {
  for (const host of [
    'api.example.com',
    'localhost',
    '127.0.0.1',
    '::1',
    '2001:db8::7',
    'x'.repeat(63) + '.example',
  ])
    it(`makes one for ${host} that openssl verifies in its strictest mode`, async () => {
      const issuer = newIssuer();
      assert.match(await verify(issuer, issueLeaf(issuer, host, leafKey).pem, host), /leaf\.pem: OK/);
    });

  it('makes one that is good for no other host, and for no client', async () => {
    const issuer = newIssuer();
    const { pem } = issueLeaf(issuer, 'api.example.com', leafKey);
    assert.match(await verify(issuer, pem, 'api.example.org'), /hostname mismatch/i);
    assert.match(await verify(issuer, pem, 'x.api.example.com'), /hostname mismatch/i);
    assert.match(await verify(issuer, pem, 'api.example.com', '-purpose', 'sslclient'), /purpose/i);
  });

  it('works with P-384 and RSA authorities, also when openssl made them', async () => {
    for (const pair of [ec('secp384r1'), generateKeyPairSync('rsa', { modulusLength: 2048 })]) {
      const issuer = newIssuer([], pair);
      assert.match(await verify(issuer, issueLeaf(issuer, 'a.example', leafKey).pem, 'a.example'), /OK/);
      await writeFile(join(folder, 'own.key'), pemOf(pair.privateKey));
      const subject = '/C=NZ/O=Some "Company", Ltd/CN=Root \u00E4';
      await run(
        'openssl',
        [
          'req',
          '-x509',
          '-new',
          '-key',
          'own.key',
          '-utf8',
          '-addext',
          'keyUsage=critical,keyCertSign',
          '-subj',
          subject,
          '-days',
          '2',
          '-out',
          'own.pem',
        ],
        { cwd: folder },
      );
      const { stdout: pem } = await capture('cat', ['own.pem'], { cwd: folder });
      const own = { ...readIssuer(Buffer.from(pem), pemOf(pair.privateKey)), pem };
      const leaf = issueLeaf(own, 'a.example', leafKey);
      assert.match(await verify(own, leaf.pem, 'a.example'), /OK/);
      assert.equal(new X509Certificate(leaf.pem).issuer, own.certificate.subject);
    }
  });

  it('shows the chain of an authority that is not a root', async () => {
    const root = newIssuer();
    const pair = ec('prime256v1');
    await writeFile(join(folder, 'sub.key'), pemOf(pair.privateKey));
    await writeFile(join(folder, 'root.key'), pemOf(root.key));
    await writeFile(join(folder, 'root.pem'), root.pem);
    // Ours may sign no further authority, so this root is openssl's.
    const rooting =
      'req -x509 -new -key root.key -subj /CN=root -addext keyUsage=critical,keyCertSign -days 2';
    await run('openssl', [...rooting.split(' '), '-out', 'root.pem'], { cwd: folder });
    await writeFile(
      join(folder, 'sub.ext'),
      'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n',
    );
    await run('openssl', 'req -new -key sub.key -subj /CN=sub -out sub.csr'.split(' '), { cwd: folder });
    const signing =
      'x509 -req -in sub.csr -CA root.pem -CAkey root.key -days 2 -set_serial 7 -extfile sub.ext';
    await run('openssl', [...signing.split(' '), '-out', 'sub.pem'], { cwd: folder });
    const pem = (await capture('cat', ['sub.pem', 'root.pem'], { cwd: folder })).stdout;
    const issuer = readIssuer(Buffer.from(pem), pemOf(pair.privateKey));
    assert.equal(issuer.chain.match(/BEGIN CERTIFICATE/g)?.length, 1);
    await writeFile(join(folder, 'chain.pem'), issuer.chain);
    const rootPem = (await capture('cat', ['root.pem'], { cwd: folder })).stdout;
    const leaf = issueLeaf(issuer, 'a.example', leafKey);
    assert.match(await verify({ pem: rootPem }, leaf.pem, 'a.example', '-untrusted', 'chain.pem'), /OK/);
    assert.match(await verify({ pem: rootPem }, leaf.pem, 'a.example'), /unable to get/);
  });

  it('lets a constrained authority vouch for its hosts and for nothing else', async () => {
    const issuer = newIssuer(['example.com', '10.0.0.7']);
    for (const host of ['example.com', 'api.example.com', '10.0.0.7'])
      assert.match(await verify(issuer, issueLeaf(issuer, host, leafKey).pem, host), /OK/, host);
    for (const host of ['example.org', 'notexample.com', '10.0.0.8', '::1', '::ffff:10.0.0.7'])
      assert.match(
        await verify(issuer, issueLeaf(issuer, host, leafKey).pem, host),
        /(permitted|excluded) subtree/i,
        host,
      );
    const onlyNames = newIssuer(['example.com']);
    assert.match(
      await verify(onlyNames, issueLeaf(onlyNames, '10.0.0.7', leafKey).pem, '10.0.0.7'),
      /excluded subtree/i,
    );
    const onlyAddress = newIssuer(['::1']);
    assert.match(await verify(onlyAddress, issueLeaf(onlyAddress, '::1', leafKey).pem, '::1'), /OK/);
    assert.match(
      await verify(onlyAddress, issueLeaf(onlyAddress, 'a.example', leafKey).pem, 'a.example'),
      /excluded subtree/i,
    );
  });

  it('ends with its authority, and a week from now at the latest', () => {
    const { privateKey } = ec('prime256v1');
    const short = readIssuer(
      Buffer.from(issueRoot(privateKey, { name: 'short', days: 1, hosts: [] })),
      pemOf(privateKey),
    );
    const leaf = new X509Certificate(issueLeaf(short, 'a.example', leafKey).pem);
    assert.equal(leaf.validTo, short.certificate.validTo);
    const long = new X509Certificate(issueLeaf(newIssuer(), 'a.example', leafKey).pem);
    const day = 86_400_000;
    assert.ok(Math.abs(long.validToDate.getTime() - Date.now() - 7 * day) < 60_000);
    assert.ok(Math.abs(long.validFromDate.getTime() - Date.now() + 3_600_000) < 60_000);
  });

  it('writes dates beyond 2049 as openssl reads them', async () => {
    const { privateKey } = ec('prime256v1');
    const pem = issueRoot(privateKey, { name: 'old', days: 36_500, hosts: [] });
    await writeFile(join(folder, 'old.pem'), pem);
    const { stdout } = await capture('openssl', ['x509', '-in', 'old.pem', '-noout', '-enddate'], {
      cwd: folder,
    });
    assert.match(stdout, new RegExp(`${new Date(Date.now() + 36_500 * 86_400_000).getUTCFullYear()} GMT`));
  });

  it('never gives the same serial number twice, nor a negative one', () => {
    const issuer = newIssuer();
    const numbers = Array.from(
      { length: 200 },
      () => new X509Certificate(issueLeaf(issuer, 'a', leafKey).pem).serialNumber,
    );
    assert.equal(new Set(numbers).size, 200);
    for (const number of numbers) assert.match(number, /^[4-7][0-9A-F]{31}$/);
  });

  it('writes every address and name as OpenSSL reads it', () => {
    const issuer = newIssuer();
    const label = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?$/);
    const name = fc.array(label, { minLength: 1, maxLength: 6 }).map((labels) => labels.join('.'));
    fc.assert(
      fc.property(fc.oneof(name, fc.ipV4(), fc.ipV6()), (host) => {
        fc.pre(!/^[\d.]+$/.test(host) || /^\d+\.\d+\.\d+\.\d+$/.test(host));
        const certificate = new X509Certificate(issueLeaf(issuer, host, leafKey).pem);
        const known =
          host.includes(':') || /^[\d.]+$/.test(host)
            ? certificate.checkIP(host)
            : certificate.checkHost(host);
        assert.notEqual(known, undefined, host);
      }),
      { numRuns: 200 },
    );
  });

  it('says what is wrong with an authority that cannot be used, and nothing of what is in it', async () => {
    const good = ec('prime256v1');
    const root = (days: number) => issueRoot(good.privateKey, { name: 'x', days, hosts: [] });
    const ordinary = newIssuer();
    const leaf = issueLeaf(ordinary, 'a.example', good.publicKey).pem;
    const noSigning =
      'req -x509 -new -key bad.key -subj /CN=x -addext keyUsage=critical,digitalSignature -out bad.pem';
    await writeFile(join(folder, 'bad.key'), pemOf(good.privateKey));
    await run('openssl', noSigning.split(' '), { cwd: folder });
    const { stdout: mayNotSign } = await capture('cat', ['bad.pem'], { cwd: folder });
    const ed = generateKeyPairSync('ed25519').privateKey;
    await writeFile(join(folder, 'ed.key'), pemOf(ed));
    await run('openssl', 'req -x509 -new -key ed.key -subj /CN=x -out ed.pem'.split(' '), { cwd: folder });
    const { stdout: edwards } = await capture('cat', ['ed.pem'], { cwd: folder });
    const secret = pemOf(good.privateKey);
    for (const [certificate, key, why] of [
      ['', secret, /there is no certificate in it/],
      ['-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----', secret, /certificate cannot be read/],
      [root(30), Buffer.from('s3cr3t but no key'), /key cannot be read/],
      [root(30), pemOf(ec('prime256v1').privateKey), /key belongs to another certificate/],
      [root(-1), secret, /has expired on/],
      [leaf, secret, /may not sign certificates/],
      [mayNotSign, secret, /may not sign certificates/],
      [edwards, pemOf(ed), /must be an elliptic one/],
    ] as const)
      assert.throws(
        () => readIssuer(Buffer.from(certificate), key),
        (error: PosternError) => {
          assert.equal(error.code, 'CONFIG_INVALID');
          assert.match(error.message, why);
          assert.doesNotMatch(error.message, /s3cr3t|BEGIN/);
          return true;
        },
      );
  });
});
