import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import type { AddressInfo, Socket } from 'node:net';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it, mock, type TestContext } from 'node:test';
import { connect as connectTls, type SecureContext } from 'node:tls';
import { pino } from 'pino';
import type { ServiceContext } from '../../../src/connectors/connector.ts';
import {
  Authority,
  AuthorityFiles,
  type InterceptSettings,
  openAuthority,
  reviewIntercept,
} from '../../../src/connectors/http/authority.ts';
import { issueRoot } from '../../../src/connectors/http/certificate.ts';
import type { PosternError } from '../../../src/core/errors.ts';
import { Secret } from '../../../src/core/secret.ts';
import { acceptTls } from '../../../src/core/tls.ts';
import { CredentialSource } from '../../../src/lifecycle/source.ts';
import { which } from '../../support/servers/install.ts';
import { capture } from '../../support/servers/process.ts';

const log = pino({ level: 'silent' });
let folder = '';

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-authority-'));
});
after(() => rm(folder, { recursive: true, force: true }));

const pemOf = (key: KeyObject) => Buffer.from(key.export({ type: 'pkcs8', format: 'pem' }));

function newRoot(name = 'Postern test CA'): { readonly cert: Buffer; readonly key: Buffer } {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  return { cert: Buffer.from(issueRoot(privateKey, { name, days: 30, hosts: [] })), key: pemOf(privateKey) };
}

/** Serves one line over HTTPS as whoever the client asks for; gives the port. */
async function serve(
  t: TestContext,
  contextOf: (host: string) => SecureContext,
  host: string,
): Promise<number> {
  const open = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    open.add(socket);
    socket.on('error', () => {});
    void acceptTls(socket, contextOf(host), 'http/1.1', AbortSignal.timeout(5000)).then(
      (secure) => {
        secure.once('data', () =>
          secure.end('HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n'),
        );
      },
      () => socket.destroy(),
    );
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    for (const socket of open) socket.destroy();
  });
  return (server.address() as AddressInfo).port;
}

/** Node's own client; gives the certificate that it was shown and found good. */
async function shown(port: number, ca: Buffer, host: string): Promise<X509Certificate> {
  const socket = connectTls({
    host: '127.0.0.1',
    port,
    ca,
    servername: /^[\d.]+$/.test(host) ? '' : host,
    ...(/^[\d.]+$/.test(host) && { host }),
    ALPNProtocols: ['h2', 'http/1.1'],
  });
  await once(socket, 'secureConnect');
  assert.equal(socket.authorized, true);
  assert.equal(socket.alpnProtocol, 'http/1.1');
  const certificate = socket.getPeerX509Certificate();
  socket.destroy();
  assert.ok(certificate);
  return certificate;
}

describe('Authority', () => {
  it('is believed by Node, by name and by address', async (t) => {
    const { cert, key } = newRoot();
    const authority = Authority.open(cert, key);
    for (const host of ['api.example.com', 'localhost', '127.0.0.1']) {
      const port = await serve(t, (name) => authority.contextFor(name), host);
      assert.ok(await shown(port, cert, host));
    }
  });

  it('is not believed by who does not have its certificate', async (t) => {
    const { cert, key } = newRoot();
    const authority = Authority.open(cert, key);
    const port = await serve(t, (name) => authority.contextFor(name), 'a.example');
    // The same name, another key.
    await assert.rejects(shown(port, newRoot().cert, 'a.example'), /certificate|self-signed/);
  });

  for (const client of [
    {
      name: 'curl',
      args: (port: number, ca: string) => [
        '-sS',
        '--max-time',
        '10',
        '--cacert',
        ca,
        '--resolve',
        `api.example.com:${port}:127.0.0.1`,
        `https://api.example.com:${port}/`,
      ],
    },
    {
      name: 'python3',
      args: (port: number, ca: string) => [
        '-c',
        [
          'import socket, ssl, sys',
          `c = ssl.create_default_context(cafile=${JSON.stringify(ca)})`,
          'c.verify_flags |= ssl.VERIFY_X509_STRICT',
          `s = c.wrap_socket(socket.create_connection(("127.0.0.1", ${port})), server_hostname="api.example.com")`,
          's.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")',
          'print(s.makefile("rb").read().decode().split("\\r\\n\\r\\n")[1], end="")',
        ].join('\n'),
      ],
    },
  ])
    it(`is believed by ${client.name}`, async (t) => {
      if (!(await which(client.name))) return t.skip(`install ${client.name}`);
      const { cert, key } = newRoot();
      const ca = join(folder, `${client.name}.pem`);
      await writeFile(ca, cert);
      const authority = Authority.open(cert, key);
      const port = await serve(t, (name) => authority.contextFor(name), 'api.example.com');
      const { code, stdout, stderr } = await capture(client.name, client.args(port, ca), { timeout: 20_000 });
      assert.deepEqual([code, stdout], [0, 'hello\n'], stderr);
    });

  it('makes one certificate for each host, once', () => {
    const { cert, key } = newRoot();
    const authority = Authority.open(cert, key);
    const contexts = Array.from({ length: 100 }, () => authority.contextFor('a.example'));
    assert.equal(new Set(contexts).size, 1);
    assert.notEqual(authority.contextFor('b.example'), contexts[0]);
    assert.equal(authority.size, 2);
  });

  it('keeps the contexts that were used last, and not more of them than it says', () => {
    const { cert, key } = newRoot();
    const authority = Authority.open(cert, key);
    const first = authority.contextFor('first.example');
    for (let i = 0; i < 400; i++) {
      authority.contextFor(`h${i}.example`);
      assert.equal(authority.contextFor('first.example'), first);
    }
    assert.equal(authority.size, 256);
  });

  it('makes a certificate anew before it ends', () => {
    const { cert, key } = newRoot();
    const authority = Authority.open(cert, key);
    const first = authority.contextFor('a.example');
    const day = 86_400_000;
    mock.timers.enable({ apis: ['Date'], now: Date.now() + 4 * day });
    try {
      assert.equal(authority.contextFor('a.example'), first);
      mock.timers.tick(day);
      assert.notEqual(authority.contextFor('a.example'), first);
    } finally {
      mock.timers.reset();
    }
  });

  it('takes the certificates of the one before it over when it is the same', () => {
    const { cert, key } = newRoot();
    const before = Authority.open(cert, key);
    const context = before.contextFor('a.example');
    const same = Authority.open(Buffer.from(cert), Buffer.from(key), before);
    before[Symbol.dispose]();
    assert.equal(same.contextFor('a.example'), context);
    assert.ok(same.contextFor('b.example'));
    const other = newRoot();
    const next = Authority.open(other.cert, other.key, same);
    assert.equal(next.size, 0);
    assert.throws(() => before.contextFor('a.example'), { code: 'INTERNAL' });
  });
});

describe('openAuthority', () => {
  /** A service whose lifecycle has these credentials. */
  function service(values: Readonly<Record<string, Buffer>>): ServiceContext {
    const source = new CredentialSource(
      new Map(Object.keys(values).map((name) => [name, { provider: 'test', get: name }])),
      () => ({
        fetch: async (references) => ({
          secrets: references.map((name) => new Secret(Buffer.from(values[name] ?? ''))),
        }),
        check: async () => {},
        close: async () => {},
      }),
    );
    return { name: 's', log, loginTimeout: 1000, idleTimeout: 0, prepare: (make) => source.prepare(make) };
  }
  const unmatched = 'refuse' as const;
  const soon = () => AbortSignal.timeout(5000);

  it('makes one of credentials, and keeps its certificates when they are fetched again', async (t) => {
    const { cert, key } = newRoot();
    let now = performance.now();
    t.mock.method(performance, 'now', () => now);
    const source = openAuthority({ unmatched }, service({ caCert: cert, caKey: key }));
    const authority = await source.get(soon());
    const context = authority.contextFor('a.example');
    assert.equal(source.current, authority);
    now += 3_600_000;
    assert.equal(source.current, undefined);
    assert.equal((await source.get(soon())).contextFor('a.example'), context);
  });

  it('makes one of a certificate in a file and a key in a secret store', async () => {
    const { cert, key } = newRoot();
    const caCert = join(folder, 'half.crt');
    await writeFile(caCert, cert);
    const source = openAuthority({ caCert, unmatched }, service({ caKey: key }));
    assert.ok((await source.get(soon())).contextFor('a.example'));
  });

  it('makes one of two files, at once', async () => {
    const { cert, key } = newRoot();
    const [caCert, caKey] = [join(folder, 'both.crt'), join(folder, 'both.key')];
    await writeFile(caCert, cert);
    await writeFile(caKey, key);
    assert.ok(openAuthority({ caCert, caKey, unmatched }, service({})).current);
    assert.throws(() => openAuthority({ caCert, caKey: caCert, unmatched }, service({})), {
      code: 'CONFIG_INVALID',
    });
  });

  it('says what of an authority is missing, is given twice, or is of no use', () => {
    const review = (settings: InterceptSettings | undefined, ...credentials: string[]) =>
      reviewIntercept(settings, new Set(credentials)).map(
        ({ path, message }) => `${path.join('.')} ${message}`,
      );
    assert.deepEqual(review(undefined, 'token'), []);
    assert.deepEqual(review({ caCert: 'a', caKey: 'b', unmatched }, 'token'), []);
    assert.deepEqual(review({ caCert: 'a', unmatched }, 'caKey'), []);
    assert.deepEqual(review({ unmatched }, 'caCert'), [
      'config.intercept.caKey missing: give a file here, or the credential "caKey"',
    ]);
    assert.deepEqual(review({ caCert: 'a', caKey: 'b', unmatched }, 'caKey'), [
      'config.intercept.caKey given twice: here and as a credential',
    ]);
    assert.deepEqual(review(undefined, 'caKey'), [
      'credentials.caKey is of no use without `intercept:` in config',
    ]);
  });
});

describe('AuthorityFiles', () => {
  const write = async (name: string, { cert, key }: { cert: Buffer; key: Buffer }) => {
    const files = { cert: join(folder, `${name}.crt`), key: join(folder, `${name}.key`) };
    for (const [path, bytes] of [
      [files.cert, cert],
      [files.key, key],
    ] as const) {
      await writeFile(`${path}.new`, bytes);
      await rename(`${path}.new`, path);
    }
    return files;
  };

  it('uses a new authority that takes the place of the old one, and keeps the old one where it cannot', async (t) => {
    const files = await write('rotated', newRoot('first'));
    let now = performance.now();
    t.mock.method(performance, 'now', () => now);
    const source = new AuthorityFiles(files, log);
    const first = source.current;
    assert.ok(first);
    assert.equal(await source.get(), first);
    const next = newRoot('second');
    await write('rotated', next);
    assert.equal(source.current, first);
    now += 60_001;
    assert.equal(source.current, undefined);
    const second = await source.get();
    assert.notEqual(second, first);
    assert.equal(source.current, second);
    await write('rotated', { ...next, key: newRoot().key });
    now += 60_001;
    assert.equal(await source.get(), second);
    await rm(files.key);
    now += 60_001;
    assert.equal(await source.get(), second);
  });

  it('cannot be opened where a file is missing, is none, or is no authority', async () => {
    const files = await write('good', newRoot());
    const refused = (why: RegExp, paths: { cert: string; key: string }) =>
      assert.throws(
        () => new AuthorityFiles(paths, log),
        (error: PosternError) => error.code === 'CONFIG_INVALID' && why.test(error.message),
      );
    refused(/cannot be read|cannot read the file .* \(ENOENT\)/, { ...files, key: join(folder, 'none') });
    refused(/is not a small regular file/, { ...files, cert: folder });
    refused(/key cannot be read/, { ...files, key: files.cert });
    refused(/there is no certificate in it/, { ...files, cert: files.key });
  });
});
