import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, describe, it } from 'node:test';
import { createSecureContext } from 'node:tls';

import { FakePostgres, greeting, loginWith, trust } from '../support/fake-postgres.ts';
import type { Postern } from '../support/postern.ts';
import {
  type Certificates,
  canary,
  certificates,
  type PostgresInfo,
  type PrivatePostgres,
  type ServerCertificate,
  server,
  startPostgres,
} from '../support/servers.ts';
import { application, ask, loginOf, perform, refused, type ServiceOptions, shared } from './stage.ts';

/** Servers of these tests: what is wrong (or right) with each. */
const ownServers = {
  'wrong host': { certificate: 'wrong-host' },
  expired: { certificate: 'expired' },
  'other CA': { certificate: 'other-ca' },
  Ed25519: { certificate: 'ed25519' },
  'TLS 1.2': { certificate: 'server', settings: { ssl_max_protocol_version: 'TLSv1.2' } },
} as const satisfies Record<string, { certificate: ServerCertificate; settings?: Record<string, string> }>;
type ServerWord = keyof typeof ownServers | 'PG18' | 'no TLS';

type Role = 'scram_user' | 'cert_user' | 'trust_user';

interface Case {
  readonly server: ServerWord;
  readonly role?: Role;
  readonly host?: string;
  readonly connector?: 'pg';
  readonly tls?: Readonly<Record<string, string>>;
  readonly config?: Readonly<Record<string, unknown>>;
  readonly credentials?: Readonly<Record<string, string>>;
}

interface Success extends Case {
  readonly version: 'TLSv1.3' | 'TLSv1.2' | 'none';
  readonly auth?: string;
}

interface Failure extends Case {
  /** What the log says; the client hears one general sentence. */
  readonly log: RegExp;
  readonly sqlstate?: string;
}

async function successes(known: Certificates): Promise<Record<string, Success>> {
  const { ca, client } = known;
  const pem = async (path: string) => (await readFile(path, 'utf8')).toString();
  const otherCa = known['other-ca'].ca;
  return {
    'disable, to a server that has TLS': { server: 'PG18', tls: { mode: 'disable' }, version: 'none' },
    'disable, to a server without TLS': { server: 'no TLS', tls: { mode: 'disable' }, version: 'none' },
    'require without a CA': { server: 'PG18', tls: { mode: 'require' }, version: 'TLSv1.3' },
    'require with the right CA': { server: 'PG18', tls: { mode: 'require', ca }, version: 'TLSv1.3' },
    'require to an expired certificate': { server: 'expired', tls: { mode: 'require' }, version: 'TLSv1.3' },
    'require to a wrong host': { server: 'wrong host', tls: { mode: 'require' }, version: 'TLSv1.3' },
    'require to a strange CA': { server: 'other CA', tls: { mode: 'require' }, version: 'TLSv1.3' },
    'verify-ca': { server: 'PG18', tls: { mode: 'verify-ca', ca }, version: 'TLSv1.3' },
    'verify-ca to a wrong host': { server: 'wrong host', tls: { mode: 'verify-ca', ca }, version: 'TLSv1.3' },
    'verify-full': {
      server: 'PG18',
      tls: { mode: 'verify-full', ca },
      version: 'TLSv1.3',
      auth: 'scram-sha-256-plus',
    },
    'verify-full by default': { server: 'PG18', tls: { ca }, version: 'TLSv1.3' },
    'verify-full to an IP address': { server: 'PG18', host: '127.0.0.1', tls: { ca }, version: 'TLSv1.3' },
    'verify-full to another CA': {
      server: 'other CA',
      tls: { mode: 'verify-full', ca: otherCa },
      version: 'TLSv1.3',
    },
    'verify-full with serverName': {
      server: 'wrong host',
      tls: { ca, serverName: 'wrong.example' },
      version: 'TLSv1.3',
    },
    'direct negotiation': {
      server: 'PG18',
      tls: { ca, negotiation: 'direct' },
      version: 'TLSv1.3',
      auth: 'scram-sha-256-plus',
    },
    'TLS 1.2': { server: 'TLS 1.2', tls: { ca }, version: 'TLSv1.2', auth: 'scram-sha-256-plus' },
    'an Ed25519 certificate, which nothing can be bound to': {
      server: 'Ed25519',
      tls: { ca: known.ed25519.ca },
      version: 'TLSv1.3',
      auth: 'scram-sha-256',
    },
    'a client certificate': {
      server: 'PG18',
      role: 'cert_user',
      tls: { ca, cert: client.cert, key: client.key },
      version: 'TLSv1.3',
      auth: 'none',
    },
    'a client certificate with an encrypted key': {
      server: 'PG18',
      role: 'cert_user',
      tls: { ca, cert: client.cert, key: known.encryptedClientKey },
      credentials: { sslpassword: canary.passphrase },
      version: 'TLSv1.3',
      auth: 'none',
    },
    'a client certificate with direct negotiation': {
      server: 'PG18',
      role: 'cert_user',
      tls: { ca, cert: client.cert, key: client.key, negotiation: 'direct' },
      version: 'TLSv1.3',
    },
    // Secretless: everything is a credential, certificates are PEM texts, and the default is `require`.
    'Secretless: no sslmode': { connector: 'pg', server: 'PG18', version: 'TLSv1.3' },
    'Secretless: disable': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'disable' },
      version: 'none',
    },
    'Secretless: disable, to a server without TLS': {
      connector: 'pg',
      server: 'no TLS',
      credentials: { sslmode: 'disable' },
      version: 'none',
    },
    'Secretless: require': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'require' },
      version: 'TLSv1.3',
    },
    'Secretless: verify-ca with the root': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'verify-ca', sslrootcert: await pem(ca) },
      version: 'TLSv1.3',
    },
    'Secretless: verify-ca with certificate and key': {
      connector: 'pg',
      server: 'PG18',
      role: 'cert_user',
      version: 'TLSv1.3',
      auth: 'none',
      credentials: {
        sslmode: 'verify-ca',
        sslrootcert: await pem(ca),
        sslcert: await pem(client.cert),
        sslkey: await pem(client.key),
      },
    },
    'Secretless: verify-ca with an encrypted key': {
      connector: 'pg',
      server: 'PG18',
      role: 'cert_user',
      version: 'TLSv1.3',
      auth: 'none',
      credentials: {
        sslmode: 'verify-ca',
        sslrootcert: await pem(ca),
        sslcert: await pem(client.cert),
        sslkey: await pem(known.encryptedClientKey),
        sslpassword: canary.passphrase,
      },
    },
    'Secretless: verify-full with sslhost': {
      connector: 'pg',
      server: 'wrong host',
      version: 'TLSv1.3',
      credentials: { sslmode: 'verify-full', sslrootcert: await pem(ca), sslhost: 'wrong.example' },
    },
    'Secretless: empty values are as good as none': {
      connector: 'pg',
      server: 'PG18',
      version: 'TLSv1.3',
      credentials: { sslmode: '', sslrootcert: '', sslcert: '', sslkey: '' },
    },
  };
}

async function failures(known: Certificates): Promise<Record<string, Failure>> {
  const { ca, client, untrustedClient } = known;
  const pem = async (path: string) => (await readFile(path, 'utf8')).toString();
  const otherCa = known['other-ca'].ca;
  const untrusted = /comes from a CA that is not trusted/;
  const noTls = /does not support TLS, which this service requires/;
  const malformed = '-----BEGIN CERTIFICATE-----\nthis is none\n-----END CERTIFICATE-----\n';
  return {
    'require with a wrong CA': { server: 'PG18', tls: { mode: 'require', ca: otherCa }, log: untrusted },
    'verify-ca with a wrong CA': { server: 'PG18', tls: { mode: 'verify-ca', ca: otherCa }, log: untrusted },
    'verify-ca with the CAs of the machine': { server: 'PG18', tls: { mode: 'verify-ca' }, log: untrusted },
    'verify-ca to a strange CA': { server: 'other CA', tls: { mode: 'verify-ca', ca }, log: untrusted },
    'verify-ca to an expired certificate': {
      server: 'expired',
      tls: { mode: 'verify-ca', ca },
      log: /has expired/,
    },
    'verify-full with a wrong CA': { server: 'PG18', tls: { ca: otherCa }, log: untrusted },
    'verify-full with the CAs of the machine': { server: 'PG18', log: untrusted },
    'verify-full to a wrong host': { server: 'wrong host', tls: { ca }, log: /not valid for this name/ },
    'verify-full to a wrong host by its address': {
      server: 'wrong host',
      host: '127.0.0.1',
      tls: { ca },
      log: /not valid for this name/,
    },
    'verify-full with a serverName that is not in the certificate': {
      server: 'PG18',
      tls: { ca, serverName: 'wrong.example' },
      log: /not valid for this name/,
    },
    'verify-full to an expired certificate': { server: 'expired', tls: { ca }, log: /has expired/ },
    'require to a server without TLS': { server: 'no TLS', tls: { mode: 'require' }, log: noTls },
    'verify-ca to a server without TLS': { server: 'no TLS', tls: { mode: 'verify-ca', ca }, log: noTls },
    'verify-full to a server without TLS': { server: 'no TLS', tls: { ca }, log: noTls },
    'direct negotiation with a server without TLS': {
      server: 'no TLS',
      tls: { ca, negotiation: 'direct' },
      log: /TLS handshake|closed the connection/,
    },
    'TLS 1.2 where 1.3 is the least': {
      server: 'TLS 1.2',
      tls: { ca, minVersion: 'TLSv1.3' },
      log: /only TLS versions that are not accepted|handshake/,
    },
    'channel binding required of an Ed25519 certificate': {
      server: 'Ed25519',
      tls: { ca: known.ed25519.ca },
      config: { channelBinding: 'require' },
      sqlstate: '28000',
      log: /channel binding is required/,
    },
    'a wrong passphrase of the key': {
      server: 'PG18',
      role: 'cert_user',
      tls: { ca, cert: client.cert, key: known.encryptedClientKey },
      credentials: { sslpassword: 's3cr3t-canary-wrong' },
      log: /client certificate or key cannot be used/,
    },
    'an encrypted key without its passphrase': {
      server: 'PG18',
      role: 'cert_user',
      tls: { ca, cert: client.cert, key: known.encryptedClientKey },
      log: /client certificate or key cannot be used/,
    },
    'a key of another certificate': {
      server: 'PG18',
      role: 'cert_user',
      tls: { ca, cert: client.cert, key: untrustedClient.key },
      log: /client certificate or key cannot be used/,
    },
    'a client certificate of a CA that the server does not know': {
      server: 'PG18',
      role: 'cert_user',
      tls: { ca, cert: untrustedClient.cert, key: untrustedClient.key },
      sqlstate: '08006',
      log: /closed the connection/,
    },
    'a CA file that is not there': { server: 'PG18', tls: { ca: `${ca}.gone` }, log: /cannot read the file/ },
    'Secretless: require with a wrong root': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'require', sslrootcert: await pem(otherCa) },
      log: untrusted,
    },
    'Secretless: require with a malformed root': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'require', sslrootcert: malformed },
      log: /CA, client certificate or key cannot be used/,
    },
    'Secretless: a root that is no PEM at all': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'verify-ca', sslrootcert: 'invalid' },
      log: /CA, client certificate or key cannot be used/,
    },
    'Secretless: verify-ca without a root': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'verify-ca' },
      log: untrusted,
    },
    'Secretless: verify-ca with a wrong root': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'verify-ca', sslrootcert: await pem(otherCa) },
      log: untrusted,
    },
    'Secretless: no sslmode, to a server without TLS': { connector: 'pg', server: 'no TLS', log: noTls },
    'Secretless: malformed certificate and key': {
      connector: 'pg',
      server: 'PG18',
      log: /CA, client certificate or key cannot be used/,
      credentials: {
        sslmode: 'verify-ca',
        sslrootcert: await pem(ca),
        sslcert: malformed,
        sslkey: 'malformed',
      },
    },
    'Secretless: verify-full with a wrong sslhost': {
      connector: 'pg',
      server: 'PG18',
      log: /not valid for this name/,
      credentials: { sslmode: 'verify-full', sslrootcert: await pem(ca), sslhost: 'invalid' },
    },
    'Secretless: an unknown sslmode': {
      connector: 'pg',
      server: 'PG18',
      credentials: { sslmode: 'allow' },
      sqlstate: 'XX000',
      log: /"sslmode" must be one of/,
    },
  };
}

describe('TLS towards the server', async () => {
  const known = await certificates();
  const good = await successes(known);
  const bad = await failures(known);
  let postern: Postern | undefined;
  const own: PrivatePostgres[] = [];

  const scene = shared(async () => {
    const bao = await server('openbao');
    const running = Object.entries(ownServers).map(async ([word, options]) => {
      const started = await startPostgres(options);
      own.push(started);
      return [word, started] as const;
    });
    const servers = new Map<string, PostgresInfo>(await Promise.all(running));
    servers.set('PG18', await server('postgres18')).set('no TLS', await server('postgres15'));
    const logins = {
      scram_user: await loginOf(bao, 'scram_user'),
      cert_user: await loginOf(bao, 'cert_user'),
      trust_user: await loginOf(bao, 'trust_user'),
    };
    const services: Record<string, ServiceOptions> = {};
    for (const [i, each] of [...Object.values(good), ...Object.values(bad)].entries()) {
      const { role = 'scram_user', host = 'localhost', connector = 'postgres', tls = {}, config } = each;
      const { port } = servers.get(each.server) ?? assert.fail();
      const login = { ...logins[role], ...each.credentials };
      services[`case-${i}`] =
        connector === 'pg'
          ? { connector, credentials: { ...login, host, port } }
          : { credentials: login, config: { host, port, tls, ...config } };
    }
    postern = await perform(bao, services);
    await ask(postern.port('case-0'), 'select 1');
    return postern;
  });

  after(async () => {
    await postern?.stop();
    await Promise.all(own.map((each) => each.stop()));
  });

  for (const [i, [name, { version, auth, role = 'scram_user' }]] of Object.entries(good).entries())
    it(`logs in with ${name}`, async (t) => {
      const program = await scene(t);
      if (!program) return;
      const service = `case-${i}`;
      const { who } = await ask(program.port(service), 'select current_user::text as who');
      assert.equal(who, role);
      const line = await program.logged(
        (each) => each.msg === 'session ended' && each['service'] === service,
      );
      assert.equal(line['upstreamTls'], version);
      if (auth !== undefined) assert.equal(line['auth'], auth);
    });

  for (const [i, [name, { log, sqlstate = '08001' }]] of Object.entries(bad).entries())
    it(`does not log in with ${name}`, async (t) => {
      const program = await scene(t);
      if (!program) return;
      const service = `case-${Object.keys(good).length + i}`;
      const refusal = await refused(program.port(service));
      const line = await program.logged(
        (each) => each.msg === 'session failed' && each['service'] === service,
      );
      assert.match(String(line['error']), log);
      assert.equal(refusal.code, sqlstate);
      assert.ok(refusal.ms < 8000, `after ${refusal.ms} ms`);
      assert.doesNotMatch(refusal.whole, /localhost|127\.0\.0\.1|cert_user|scram_user|s3cr3t/);
      assert.ok(!program.output.includes('s3cr3t-canary-wrong'));
    });

  it('names the host by SNI whatever it verifies, the overriding name where one is set, and never an address', async () => {
    const { server: leaf, ca } = known;
    const secureContext = createSecureContext({
      cert: await readFile(leaf.cert),
      key: await readFile(leaf.key),
    });
    const names: unknown[] = [];
    await using fake = await FakePostgres.start(async (end) => {
      await end.packet();
      end.send(Buffer.from('S'));
      const secure = await end.acceptTls(secureContext);
      names.push(secure.servername);
      await loginWith(trust, greeting, async (client) => {
        await client.rest();
        client.end();
      })(end);
    });
    const wanted: (readonly [Record<string, unknown>, string | false])[] = [
      [{ host: 'localhost', tls: { mode: 'require' } }, 'localhost'],
      [{ host: 'localhost', tls: { mode: 'verify-ca', ca } }, 'localhost'],
      [{ host: 'localhost', tls: { mode: 'verify-full', ca } }, 'localhost'],
      [{ host: 'localhost', tls: { mode: 'require', serverName: 'db.example' } }, 'db.example'],
      [{ host: '127.0.0.1', tls: { mode: 'verify-full', ca } }, false],
      [{ host: '127.0.0.1', tls: { mode: 'verify-full', ca, serverName: 'localhost' } }, 'localhost'],
    ];
    const services = Object.fromEntries(
      wanted.map(([config], i) => [
        `sni-${i}`,
        { credentials: { username: 'x' }, config: { ...config, port: fake.port } } satisfies ServiceOptions,
      ]),
    );
    await using program = await perform(await server('openbao'), services);
    for (const [i, [, name]] of wanted.entries()) {
      const client = await application(program.port(`sni-${i}`));
      await client.end();
      assert.equal(names[i], name);
    }
  });
});
