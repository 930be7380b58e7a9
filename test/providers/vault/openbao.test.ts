import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpsServer } from 'node:https';
import { type AddressInfo, connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import {
  canary,
  certificates,
  type OpenBao,
  type PrivateOpenBao,
  startOpenBao,
} from '../../support/servers.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';

const username = 'secret/app/db#username';
const password = 'secret/app/db#password';
const folder = mkdtempSync(join(tmpdir(), 'postern-vault-'));

describe('the provider "vault" and a real OpenBao', () => {
  let bao: PrivateOpenBao;
  const opened: Opened[] = [];

  before(async () => {
    bao = await startOpenBao();
  });
  after(async () => {
    for (const provider of opened) await provider.close(AbortSignal.timeout(2000));
    await bao.stop();
    rmSync(folder, { recursive: true });
  });

  function vault(settings: object = {}, environment: Record<string, string> = {}): Opened {
    const provider = open('vault', { address: bao.address, ...settings }, environment);
    opened.push(provider);
    return provider;
  }
  const asRoot = (settings: object = {}) =>
    vault({ auth: { method: 'token', token: bao.rootToken }, ...settings });
  const approle = () => ({ method: 'approle', roleId: bao.roleId, secretId: bao.secretId });

  it('reads KV version 1 and 2, in the style of the command line, of the API and of Secretless', async () => {
    assert.deepEqual(
      await texts(
        asRoot(),
        password,
        'secret/data/app/db#password',
        'secret/data/app/db#data.password',
        'kv1/app/db#password',
        username,
      ),
      [canary.postgres, canary.postgres, canary.postgres, canary.postgres, 'scram_user'],
    );
  });

  it('takes the field "value" where the reference names none', async () => {
    await bao.write('secret/data/plain', { data: { value: 'a plain value' } });
    assert.deepEqual(await texts(asRoot(), 'secret/plain'), ['a plain value']);
  });

  it('reads any text unchanged, numbers and booleans as JSON, and nested fields by their dots', async () => {
    const odd = '"\\\u0000\u001f é 😀 </script> \u2028\n';
    const data = {
      odd,
      n: 5432,
      b: false,
      a: { b: { c: 'deep' } },
      'x.y': 'literal',
      x: { y: 'nested' },
      z: null,
    };
    await bao.write('secret/data/odd', { data });
    assert.deepEqual(await texts(asRoot(), 'secret/odd#odd', 'secret/odd#n', 'secret/odd#b'), [
      odd,
      '5432',
      'false',
    ]);
    assert.deepEqual(await texts(asRoot(), 'secret/odd#a.b.c', 'secret/odd#x.y'), ['deep', 'literal']);
    for (const [field, message] of [
      ['a', /is an object, not a text/],
      ['z', /is null, not a text/],
      ['none', /has no field "none"/],
    ] as const) {
      const error = await failure(asRoot().fetch([`secret/odd#${field}`], never));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, message);
      assert.match(error.message, new RegExp(`"secret/odd#${field}"`));
    }
  });

  it('reads paths with spaces, percent signs and other letters', async () => {
    const path = 'app/a b/50%/ä';
    await bao.write(`secret/data/${encodeURI(path)}`, { data: { value: 'found' } });
    assert.deepEqual(await texts(asRoot(), `secret/${path}`), ['found']);
  });

  it('says which version it read, reads a fixed one, and sees a rotation at the next fetch', async () => {
    const provider = asRoot();
    await bao.write('secret/data/turning', { data: { value: 'one' } });
    assert.equal((await provider.fetch(['secret/turning'], never)).version, '1');
    await bao.write('secret/data/turning', { data: { value: 'two' } });
    const now = await provider.fetch(['secret/turning', 'secret/turning?version=1'], never);
    assert.deepEqual(
      now.secrets.map((secret) => secret.reveal().toString()),
      ['two', 'one'],
    );
    assert.equal(now.version, 'secret/turning@2, secret/turning@1');
  });

  it('has its own sentence for each way a secret is not there', async () => {
    await bao.write('secret/data/gone', { data: { value: 'x' } });
    await bao.write('secret/data/gone', { data: { value: 'y' } });
    await bao.write('secret/destroy/gone', { versions: [1] });
    await bao.remove('secret/data/gone');
    const cases: [string, RegExp][] = [
      ['secret/gone', /version 2 of the secret was deleted \(HTTP 404\)/],
      ['secret/gone?version=1', /version 1 of the secret was destroyed \(HTTP 404\)/],
      ['secret/gone?version=9', /there is no version 9 of the secret at "secret\/gone"/],
      ['secret/never', /there is no secret at "secret\/never"/],
      ['kv1/never', /there is no secret at "kv1\/never"/],
      ['kv1/app/db?version=1#password', /"kv1\/" is KV version 1, which keeps none/],
      ['nowhere/x', /permission denied: there is no such mount/],
      ['sys/x', /what is below "sys\/" is no secret of an engine, and is not read/],
      [
        'secret/app/db?list=true#password',
        /of the KV engine at "secret\/" only "\?version=N" can be asked for/,
      ],
      ['secret/app/db?#password', /of the KV engine at "secret\/" only "\?version=N" can be asked for/],
    ];
    for (const [reference, message] of cases) {
      const error = await failure(asRoot().fetch([reference], never));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, message);
      assert.ok(error.message.includes(`"${reference}"`), error.message);
    }
  });

  it('finds the mount of a path by itself, also where its name has slashes', async () => {
    await bao.write('sys/mounts/team/kv', { type: 'kv', options: { version: '2' } });
    await bao.write('team/kv/data/app', { data: { value: 'of the team' } });
    assert.deepEqual(await texts(asRoot(), 'team/kv/app', 'team/kv/data/app'), [
      'of the team',
      'of the team',
    ]);
  });

  it('notices that a mount was replaced by one of another version', async () => {
    const provider = asRoot();
    await bao.write('sys/mounts/changing', { type: 'kv', options: { version: '1' } });
    await bao.write('changing/app', { value: 'old' });
    assert.deepEqual(await texts(provider, 'changing/app'), ['old']);
    await bao.remove('sys/mounts/changing');
    await bao.write('sys/mounts/changing', { type: 'kv', options: { version: '2' } });
    await eventually(async () => await bao.write('changing/data/app', { data: { value: 'new' } }));
    assert.deepEqual(await texts(provider, 'changing/app'), ['new']);
  });

  it('reads in a namespace', async () => {
    await bao.write('sys/namespaces/team1');
    const inside = (method: string, path: string, body: unknown) =>
      bao.request(method, `team1/${path}`, body);
    await inside('POST', 'sys/mounts/kv', { type: 'kv', options: { version: '2' } });
    await eventually(async () => await inside('POST', 'kv/data/app', { data: { value: 'of team1' } }));
    assert.deepEqual(await texts(asRoot({ namespace: 'team1' }), 'kv/app'), ['of team1']);
    const error = await failure(asRoot({ namespace: 'nobody' }).fetch(['kv/app'], never));
    assert.match(error.message, /namespace not found/);
    await asRoot({ namespace: 'team1' }).check(never);
  });

  it('logs in by AppRole and may read what the policy allows, and nothing else', async () => {
    const provider = vault({ auth: approle() });
    assert.deepEqual(await texts(provider, username, password), ['scram_user', canary.postgres]);
    const error = await failure(provider.fetch(['secret/other#x'], never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(
      error.message,
      /reading "secret\/other#x": permission denied \(HTTP 403: 1 error occurred: \* permission denied\)$/,
    );
  });

  it('says that a login was refused, without the secret id', async () => {
    const provider = vault({ auth: { ...approle(), secretId: 'wrong-secret-id' } });
    const error = await failure(provider.fetch([password], never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(error.message, /approle login: Vault refused \(HTTP 400: invalid role or secret ID\)/);
    assert.ok(!error.message.includes('wrong-secret-id'));
  });

  it('logs in anew when its token was revoked, and revokes its token at the end', async () => {
    const before = await accessors(bao);
    const provider = open('vault', { address: bao.address, auth: approle() });
    await texts(provider, password);
    const [mine] = (await accessors(bao)).filter((accessor) => !before.includes(accessor));
    await bao.write('auth/token/revoke-accessor', { accessor: mine });
    assert.deepEqual(await texts(provider, password), [canary.postgres]);
    await provider.close(AbortSignal.timeout(2000));
    assert.deepEqual((await accessors(bao)).sort(), before.sort());
    assert.doesNotMatch(provider.logged(), /not revoked/);
  });

  it('reads the secret id file at each login', async () => {
    const secretIdFile = join(folder, 'secret-id');
    writeFileSync(secretIdFile, 'not one\n');
    const auth = { method: 'approle', roleIdEnv: 'ROLE', secretIdFile };
    const provider = vault({ auth }, { ROLE: bao.roleId });
    await failure(provider.fetch([password], never));
    writeFileSync(secretIdFile, `${bao.secretId}\n`);
    assert.deepEqual(await texts(provider, password), [canary.postgres]);
  });

  it('reads a token file again when its token is refused, also when it was replaced by a rename', async () => {
    const path = join(folder, 'token');
    const first = await newToken(bao);
    writeFileSync(path, `${first}\n`);
    const provider = vault({ auth: { method: 'tokenFile', path } });
    assert.deepEqual(await texts(provider, password), [canary.postgres]);

    await bao.write('auth/token/revoke', { token: first });
    const refused = await failure(provider.fetch([password], never));
    assert.match(refused.message, /permission denied/);
    writeFileSync(`${path}.new`, await newToken(bao));
    renameSync(`${path}.new`, path);
    assert.deepEqual(await texts(provider, password), [canary.postgres]);

    // Nothing in it yet: an Agent that has just started.
    for (const [content, problem, code] of [
      ['\n', /is empty/, 'PROVIDER_UNAVAILABLE'],
      ['two words', /is not a line of printable ASCII/, 'PROVIDER_FAILED'],
      ['b\0nary', /is not a line of printable ASCII/, 'PROVIDER_FAILED'],
    ] as const) {
      writeFileSync(path, content);
      const error = await failure(vault({ auth: { method: 'tokenFile', path } }).fetch([password], never));
      assert.equal(error.code, code);
      assert.match(error.message, problem);
    }
  });

  it('needs no settings where the environment has those of the command line', async () => {
    const plain = open('vault', {}, { VAULT_ADDR: bao.address, VAULT_TOKEN: bao.rootToken });
    assert.deepEqual(await texts(plain, password), [canary.postgres]);
    const openBaoFirst = {
      BAO_ADDR: bao.address,
      VAULT_ADDR: 'http://127.0.0.1:1',
      BAO_TOKEN: bao.rootToken,
    };
    assert.deepEqual(await texts(open('vault', {}, openBaoFirst), password), [canary.postgres]);

    writeFileSync(join(folder, '.vault-token'), bao.rootToken);
    const loggedIn = { VAULT_AGENT_ADDR: bao.address, VAULT_ADDR: 'http://127.0.0.1:1', HOME: folder };
    assert.deepEqual(await texts(open('vault', {}, loggedIn), password), [canary.postgres]);
    const nobody = await failure(open('vault', {}, { VAULT_ADDR: bao.address }).fetch([password], never));
    assert.equal(nobody.code, 'PROVIDER_FAILED');
    assert.match(nobody.message, /no token: set `auth`, or VAULT_TOKEN/);
  });

  it('verifies the certificate of the server, by file, text, folder, and by another name', async () => {
    const auth = { method: 'token', token: bao.rootToken };
    const address = bao.tlsAddress;
    assert.deepEqual(await texts(vault({ address, auth, tls: { ca: bao.ca } }), password), [canary.postgres]);
    const text = { VAULT_CACERT_BYTES: readFileSync(bao.ca, 'utf8') };
    assert.deepEqual(await texts(vault({ address, auth }, text), password), [canary.postgres]);
    const certs = mkdtempSync(join(folder, 'ca-'));
    writeFileSync(join(certs, 'ca.pem'), readFileSync(bao.ca));
    writeFileSync(join(certs, 'README'), 'no certificate');
    assert.deepEqual(await texts(vault({ address, auth }, { VAULT_CAPATH: certs }), password), [
      canary.postgres,
    ]);
    const named = { ca: bao.ca, serverName: 'localhost' };
    assert.deepEqual(await texts(vault({ address, auth, tls: named }), password), [canary.postgres]);

    const cases: [object, Record<string, string>, RegExp][] = [
      [{}, {}, /TLS with 127\.0\.0\.1:\d+ failed \((UNABLE_TO_|SELF_SIGNED_)/],
      [
        { tls: { ca: bao.ca, serverName: 'vault.example.com' } },
        {},
        /failed \(ERR_TLS_CERT_ALTNAME_INVALID\)/,
      ],
      [{}, { VAULT_SKIP_VERIFY: 'false' }, /TLS with .* failed/],
      [{ tls: {} }, text, /TLS with .* failed/],
    ];
    for (const [settings, environment, message] of cases) {
      const error = await failure(
        vault({ address, auth, ...settings }, environment).fetch([password], never),
      );
      assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
      assert.match(error.message, message);
    }
    const careless = vault({ address, auth, tls: { skipVerify: true } });
    assert.deepEqual(await texts(careless, password), [canary.postgres]);
    assert.match(careless.logged(), /TLS is not verified \(skipVerify\)/);
  });

  it('takes a renewed CA file into use without being opened again', async () => {
    const ca = join(folder, 'renewed-ca.pem');
    const other = (await certificates())['other-ca'].ca;
    writeFileSync(ca, readFileSync(other));
    const provider = vault({
      address: bao.tlsAddress,
      auth: { method: 'token', token: bao.rootToken },
      tls: { ca },
    });
    assert.match((await failure(provider.fetch([password], never))).message, /TLS with .* failed/);
    writeFileSync(ca, 'in the middle of being written');
    await failure(provider.fetch([password], never));
    writeFileSync(ca, readFileSync(bao.ca));
    assert.deepEqual(await texts(provider, password), [canary.postgres]);
  });

  it('asks over a unix socket, as a Vault Agent has one, with a token of its own or without', async () => {
    // A FAKE of the Agent, which only passes bytes on; a real one would add its token to the request without one.
    const path = join(folder, 'agent.sock');
    const agent = createServer((client) => {
      const upstream = connect(bao.port, bao.host);
      client.on('error', () => upstream.destroy()).pipe(upstream);
      upstream.on('error', () => client.destroy()).pipe(client);
    }).listen(path);
    await once(agent, 'listening');
    const provider = vault({ address: `unix://${path}`, auth: { method: 'token', token: bao.rootToken } });
    assert.deepEqual(await texts(provider, password), [canary.postgres]);
    const without = await failure(
      vault({ address: `unix://${path}`, auth: { method: 'none' } }).fetch([password], never),
    );
    assert.equal(without.code, 'PROVIDER_FAILED');
    await provider.close(never);
    agent.close();
  });

  it('logs in by Kubernetes with the service account token of that moment', async () => {
    const review = await fakeTokenReview();
    try {
      await bao.write('sys/auth/kubernetes', { type: 'kubernetes' });
      await bao.write('auth/kubernetes/config', {
        kubernetes_host: review.address,
        kubernetes_ca_cert: readFileSync(bao.ca, 'utf8'),
        token_reviewer_jwt: jwt('reviewer'),
        disable_local_ca_jwt: true,
      });
      await bao.write('auth/kubernetes/role/orders', {
        bound_service_account_names: 'orders',
        bound_service_account_namespaces: 'shop',
        token_policies: 'app',
        token_ttl: '1s',
      });
      const jwtFile = join(folder, 'jwt');
      writeFileSync(jwtFile, `${jwt('one')}\n`);
      const provider = vault({ auth: { method: 'kubernetes', role: 'orders', jwtFile } });
      assert.deepEqual(await texts(provider, password), [canary.postgres]);
      writeFileSync(jwtFile, jwt('two'));
      await new Promise((later) => setTimeout(later, 1000));
      assert.deepEqual(await texts(provider, password), [canary.postgres]);
      assert.deepEqual(review.reviewed, [jwt('one'), jwt('two')]);

      writeFileSync(jwtFile, jwt('stranger'));
      await new Promise((later) => setTimeout(later, 1000));
      const error = await failure(provider.fetch([password], never));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, /kubernetes login: permission denied \(HTTP 403/);
      rmSync(jwtFile);
      assert.match((await failure(provider.fetch([password], never))).message, /jwt": there is no such file/);
    } finally {
      await review.stop();
    }
  });

  it('is ready when Vault is, says so when it is sealed or gone, and recovers', async () => {
    const provider = vault({ auth: { method: 'token', token: bao.rootToken }, retries: 0 });
    await provider.check(never);
    await bao.seal();
    const sealed = await failure(provider.fetch([password], never));
    assert.equal(sealed.code, 'PROVIDER_UNAVAILABLE');
    assert.match(
      sealed.message,
      /"secret\/app\/db#password": Vault is sealed or unavailable \(HTTP 503: Vault is sealed\)/,
    );
    const unready = await failure(provider.check(never));
    assert.equal(unready.code, 'PROVIDER_UNAVAILABLE');
    assert.match(unready.message, /Vault is sealed/);
    await bao.unseal();
    await eventually(async () => assert.deepEqual(await texts(provider, password), [canary.postgres]));

    await bao.kill();
    const gone = await failure(provider.fetch([password], never));
    assert.equal(gone.code, 'PROVIDER_UNAVAILABLE');
    assert.match(gone.message, /cannot be asked \(ECONN(REFUSED|RESET)\)/);
    await failure(provider.check(never));
    await bao.restart();
    assert.deepEqual(await texts(provider, password), [canary.postgres]);
  });
});

async function accessors(bao: OpenBao): Promise<string[]> {
  const { data } = (await bao.request('LIST', 'auth/token/accessors')) as { data: { keys: string[] } };
  return data.keys;
}

async function newToken(bao: OpenBao): Promise<string> {
  const { auth } = (await bao.write('auth/token/create', { policies: ['app'] })) as {
    auth: { client_token: string };
  };
  return auth.client_token;
}

/** A mount is there a moment after it was asked for. */
async function eventually(attempt: () => Promise<unknown>): Promise<void> {
  for (let left = 50; ; left--) {
    try {
      await attempt();
      return;
    } catch (thrown) {
      if (left === 0) throw thrown;
      await new Promise((later) => setTimeout(later, 100));
    }
  }
}

/** A token of the form of a service account's; its signature is looked at by nobody but the fake below. */
function jwt(name: string): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const payload = {
    iss: 'kubernetes/serviceaccount',
    sub: 'system:serviceaccount:shop:orders',
    'kubernetes.io': { namespace: 'shop', serviceaccount: { name: 'orders', uid: 'uid-1' } },
    jti: name,
    iat: 1_700_000_000,
    nbf: 1_700_000_000,
    exp: 4_102_444_800,
  };
  return `${part({ alg: 'RS256' })}.${part(payload)}.${Buffer.from(name).toString('base64url')}`;
}

/** A FAKE of the Kubernetes API server's TokenReview, which knows every token but the stranger's. */
async function fakeTokenReview(): Promise<{
  address: string;
  reviewed: string[];
  stop: () => Promise<void>;
}> {
  const { server: leaf } = await certificates();
  const reviewed: string[] = [];
  const server = createHttpsServer(
    { cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) },
    (request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const { spec } = JSON.parse(Buffer.concat(chunks).toString()) as { spec: { token: string } };
        const known = spec.token !== jwt('stranger');
        if (known) reviewed.push(spec.token);
        const user = {
          username: 'system:serviceaccount:shop:orders',
          uid: 'uid-1',
          groups: ['system:serviceaccounts'],
        };
        const status = known ? { authenticated: true, user } : { authenticated: false };
        response.writeHead(201, { 'content-type': 'application/json' });
        response.end(
          JSON.stringify({ apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', spec, status }),
        );
      });
    },
  );
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    address: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
    reviewed,
    stop: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}
