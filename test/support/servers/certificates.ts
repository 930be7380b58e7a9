import { existsSync } from 'node:fs';
import { chmod, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { canary } from './canary.ts';
import { run } from './process.ts';
import { home, withLock } from './state.ts';

/** Paths of a certificate, its key, and the certificate of who signed it. */
export interface Leaf {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
}

/** Server certificates to choose from; all for localhost, 127.0.0.1 and ::1 unless the name says otherwise. */
export const serverCertificates = [
  'server',
  'wrong-host',
  'expired',
  'other-ca',
  'sha384',
  'ed25519',
  'rsa-pss',
] as const;
export type ServerCertificate = (typeof serverCertificates)[number];

/** All test certificates. */
export interface Certificates extends Readonly<Record<ServerCertificate, Leaf>> {
  readonly folder: string;
  readonly ca: string;
  /** CN=cert_user. */
  readonly client: Leaf;
  /** The same key as `client`, encrypted with `canary.passphrase`. */
  readonly encryptedClientKey: string;
  /** CN=cert_user too, signed by an authority that no server trusts. */
  readonly untrustedClient: Leaf;
}

/** Makes the test certificates once, with the openssl command. */
export async function certificates(): Promise<Certificates> {
  const folder = join(home(), 'certificates');
  if (!existsSync(folder)) {
    await withLock('certificates', async () => {
      if (!existsSync(folder)) await make(folder);
    });
  }
  const leaf = (name: string, ca = 'ca'): Leaf => ({
    cert: join(folder, `${name}.crt`),
    key: join(folder, `${name}.key`),
    ca: join(folder, `${ca}.crt`),
  });
  return {
    folder,
    ca: join(folder, 'ca.crt'),
    server: leaf('server'),
    'wrong-host': leaf('wrong-host'),
    expired: leaf('expired'),
    sha384: leaf('sha384'),
    'other-ca': leaf('other-server', 'other-ca'),
    ed25519: leaf('ed25519', 'ed25519-ca'),
    'rsa-pss': leaf('rsa-pss', 'rsa-pss-ca'),
    client: leaf('client'),
    encryptedClientKey: join(folder, 'client-encrypted.key'),
    untrustedClient: leaf('other-client', 'other-ca'),
  };
}

const p256 = '-newkey ec -pkeyopt ec_paramgen_curve:P-256';
const ed25519 = '-newkey ed25519';
const rsa = '-newkey rsa:2048';
const pss = '-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1';

async function make(folder: string): Promise<void> {
  const draft = `${folder}.new`;
  await rm(draft, { recursive: true, force: true });
  await mkdir(draft, { mode: 0o755 });
  const openssl = (command: string, input = '') =>
    run('openssl', command.trim().split(/\s+/), { cwd: draft, input });

  const authority = (name: string, algorithm: string, signing = '') =>
    openssl(`req -x509 ${algorithm} -nodes -days 3650 -subj /CN=postern-test-${name}
      -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
      -keyout ${name}.key -out ${name}.crt ${signing}`);

  const leaf = async (
    name: string,
    subject: string,
    extensions: readonly string[],
    { ca = 'ca', algorithm = p256, days = 3650, signing = '' } = {},
  ) => {
    await writeFile(join(draft, `${name}.ext`), extensions.join('\n'));
    await openssl(`req ${algorithm} -nodes -subj /CN=${subject} -keyout ${name}.key -out ${name}.csr`);
    await openssl(`x509 -req -in ${name}.csr -CA ${ca}.crt -CAkey ${ca}.key -days ${days}
      -set_serial 0x${Buffer.from(name).toString('hex')} -extfile ${name}.ext -out ${name}.crt ${signing}`);
    await rm(join(draft, `${name}.csr`));
    await rm(join(draft, `${name}.ext`));
  };
  const local = [
    'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1',
    'extendedKeyUsage=serverAuth,clientAuth',
  ];
  const wrong = ['subjectAltName=DNS:wrong.example', 'extendedKeyUsage=serverAuth'];
  const client = ['extendedKeyUsage=clientAuth'];

  await authority('ca', p256);
  await authority('other-ca', p256);
  await authority('ed25519-ca', ed25519);
  await authority('rsa-pss-ca', rsa, pss);
  await leaf('server', 'localhost', local);
  await leaf('wrong-host', 'wrong.example', wrong);
  // `-days -1`: its end lies one day back.
  await leaf('expired', 'localhost', local, { days: -1 });
  await leaf('sha384', 'localhost', local, { signing: '-sha384' });
  await leaf('other-server', 'localhost', local, { ca: 'other-ca' });
  await leaf('ed25519', 'localhost', local, { ca: 'ed25519-ca', algorithm: ed25519 });
  await leaf('rsa-pss', 'localhost', local, { ca: 'rsa-pss-ca', algorithm: rsa, signing: pss });
  await leaf('client', 'cert_user', client);
  await leaf('other-client', 'cert_user', client, { ca: 'other-ca' });
  await openssl(
    'pkcs8 -topk8 -v2 aes-256-cbc -in client.key -out client-encrypted.key -passout stdin',
    `${canary.passphrase}\n`,
  );
  await chmod(join(draft, 'client-encrypted.key'), 0o600);
  await rename(draft, folder);
}
