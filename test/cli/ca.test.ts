import assert from 'node:assert/strict';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { exitCodes } from '../../src/cli/exit-codes.ts';
import { capture, type Output } from '../support/servers/process.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
let folder = '';

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-ca-'));
});
after(() => rm(folder, { recursive: true, force: true }));

async function postern(words: readonly string[], env: Record<string, string> = {}): Promise<Output> {
  return await capture(program, words, {
    cwd: folder,
    timeout: 20_000,
    env: { PATH: process.env['PATH'], HOME: folder, ...env },
  });
}

describe('postern ca create', () => {
  it('makes an authority whose key is for its owner alone', async () => {
    const { code, stdout } = await postern(['ca', 'create', '--out', 'made/here', '--days', '3']);
    assert.equal(code, exitCodes.clean);
    const key = await readFile(join(folder, 'made/here/ca.key'), 'utf8');
    const certificate = new X509Certificate(await readFile(join(folder, 'made/here/ca.crt')));
    assert.ok(certificate.ca);
    assert.ok(certificate.checkPrivateKey(createPrivateKey(key)));
    assert.equal((await stat(join(folder, 'made/here/ca.key'))).mode & 0o777, 0o600);
    assert.equal((await stat(join(folder, 'made/here/ca.crt'))).mode & 0o777, 0o644);
    assert.ok(Math.abs(certificate.validToDate.getTime() - Date.now() - 3 * 86_400_000) < 60_000);
    assert.ok(stdout.includes(certificate.fingerprint256));
    assert.ok(!stdout.includes('PRIVATE'));
  });

  it('leaves an authority that is there alone, whichever half of it', async () => {
    for (const half of ['ca.key', 'ca.crt']) {
      const out = join(folder, `taken-${half}`);
      await postern(['ca', 'create', '--out', out]);
      const there = await readFile(join(out, half), 'utf8');
      await rm(join(out, half === 'ca.key' ? 'ca.crt' : 'ca.key'));
      const { code, stderr } = await postern(['ca', 'create', '--out', out]);
      assert.equal(code, exitCodes.configuration);
      assert.match(stderr, /which is left alone/);
      assert.equal(await readFile(join(out, half), 'utf8'), there);
      await assert.rejects(stat(join(out, half === 'ca.key' ? 'ca.crt' : 'ca.key')), { code: 'ENOENT' });
    }
  });

  it('limits an authority to the hosts it is told', async () => {
    const { code, stdout } = await postern([
      'ca',
      'create',
      '--out',
      'limited',
      '--host',
      'API.example.com',
      '--host',
      '10.0.0.1',
    ]);
    assert.equal(code, exitCodes.clean);
    assert.match(stdout, /vouches for api\.example\.com, 10\.0\.0\.1 and nothing else/);
    const text = await capture('openssl', ['x509', '-noout', '-text', '-in', 'limited/ca.crt'], {
      cwd: folder,
    });
    assert.match(
      text.stdout,
      /Name Constraints: critical\s+Permitted:\s+DNS:api\.example\.com\s+IP:10\.0\.0\.1/,
    );
  });

  for (const [words, why] of [
    [[], /`postern ca create` or `postern ca show`/],
    [['make'], /`postern ca create` or `postern ca show`/],
    [['create'], /needs `--out FOLDER`/],
    [['create', '--out', 'x', '--host', '*.example.com'], /`--host` takes a name/],
    [['create', '--out', 'x', '--days', '-1'], /days/],
    [['create', '--out', 'x', '--days', '0'], /whole number/],
    [['create', '--nonsense'], /--nonsense/],
  ] as const)
    it(`does not understand "${words.join(' ')}"`, async () => {
      const { code, stderr } = await postern(['ca', ...words]);
      assert.equal(code, exitCodes.usage);
      assert.match(stderr, why);
      await assert.rejects(stat(join(folder, 'x')), { code: 'ENOENT' });
    });

  it('says why it cannot write', async () => {
    await writeFile(join(folder, 'file'), '');
    const { code, stderr } = await postern(['ca', 'create', '--out', 'file/below']);
    assert.equal(code, exitCodes.configuration);
    assert.match(stderr, /cannot make the folder file\/below: ENOTDIR/);
  });
});

describe('postern ca show', () => {
  const configuration = (intercept: string, more = '') => `version: 2
services:
  plain: { connector: http, listenOn: "tcp://127.0.0.1:18081", credentials: { token: x }, config: { upstream: "https://a.example", authenticate: { bearer: token } } }
  api:
    connector: http
    listenOn: tcp://127.0.0.1:18080
    credentials: { token: x ${more} }
    config: { match: ["https://api.example/**"], authenticate: { bearer: token }, intercept: ${intercept} }
`;

  it('prints lines for a shell that name the proxy and the certificate', async () => {
    await postern(['ca', 'create', '--out', "it's"]);
    const files = { caCert: join(folder, "it's", 'ca.crt'), caKey: join(folder, "it's", 'ca.key') };
    await writeFile(join(folder, 'show.yaml'), configuration(JSON.stringify(files)));
    const { code, stdout } = await postern(['ca', 'show', '-f', 'show.yaml']);
    assert.equal(code, exitCodes.clean);
    await writeFile(join(folder, 'lines.sh'), `${stdout}\nenv`);
    const { stdout: seen } = await capture('sh', ['lines.sh'], {
      cwd: folder,
      env: { PATH: process.env['PATH'] },
    });
    for (const variable of ['http_proxy', 'HTTPS_PROXY'])
      assert.ok(seen.includes(`${variable}=http://127.0.0.1:18080\n`));
    for (const variable of [
      'SSL_CERT_FILE',
      'NODE_EXTRA_CA_CERTS',
      'REQUESTS_CA_BUNDLE',
      'CURL_CA_BUNDLE',
      'GIT_SSL_CAINFO',
      'DENO_CERT',
    ])
      assert.ok(seen.includes(`${variable}=${files.caCert}\n`), variable);
    assert.match(seen, /^NODE_USE_ENV_PROXY=1$/m);
    assert.match(seen, /^NO_PROXY=localhost,127\.0\.0\.1,::1$/m);

    const bundled = await postern(['ca', 'show', '-f', 'show.yaml', '--bundle', 'bundle.pem']);
    assert.match(bundled.stdout, new RegExp(`^export CURL_CA_BUNDLE='${join(folder, 'bundle.pem')}'$`, 'm'));
    const own = (await readFile(files.caCert, 'utf8')).trim();
    const bundle = await readFile(join(folder, 'bundle.pem'), 'utf8');
    assert.ok(bundle.startsWith(own) && (bundle.match(/BEGIN CERTIFICATE/g)?.length ?? 0) > 20);

    const pem = await postern(['ca', 'show', '-f', 'show.yaml', '--pem', '--service', 'api']);
    assert.equal(pem.stdout.trim(), own);
    const none = await postern(['ca', 'show', '-f', 'show.yaml', '--service', 'plain']);
    assert.equal(none.code, exitCodes.configuration);
    assert.match(none.stderr, /the service "plain" has no `intercept:`/);
  });

  it('fetches a certificate that is a credential, and never its key', async () => {
    await postern(['ca', 'create', '--out', 'held']);
    const more = `, caCert: { from: file, get: ${join(folder, 'held/ca.crt')} }, caKey: { from: file, get: /nowhere/ca.key }`;
    await writeFile(join(folder, 'held.yaml'), configuration('{}', more));
    const pem = await postern(['ca', 'show', '-f', 'held.yaml', '--pem']);
    assert.equal(pem.stdout.trim(), (await readFile(join(folder, 'held/ca.crt'), 'utf8')).trim(), pem.stderr);
    const nameless = await postern(['ca', 'show', '-f', 'held.yaml']);
    assert.equal(nameless.code, exitCodes.usage);
    assert.match(nameless.stderr, /--file PATH/);
    const named = await postern(['ca', 'show', '-f', 'held.yaml', '--file', '/app/ca.crt']);
    assert.match(named.stdout, /^export SSL_CERT_FILE='\/app\/ca\.crt'$/m);
  });
});
