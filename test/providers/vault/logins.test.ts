import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { generateKeyPairSync, sign } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';

import type { PosternError } from '../../../src/core/errors.ts';
import { installOpenBao } from '../../support/servers/install.ts';
import { canary, certificates, type PrivateOpenBao, startOpenBao } from '../../support/servers.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';

const password = 'secret/app/db#password';

describe('logins at a real OpenBao', () => {
  const folder = mkdtempSync(join(tmpdir(), 'postern-logins-'));
  const opened: Opened[] = [];
  let bao: PrivateOpenBao;

  before(async () => {
    bao = await startOpenBao();
  });
  after(async () => {
    for (const provider of opened) await provider.close(AbortSignal.timeout(2000));
    await bao.stop();
    rmSync(folder, { recursive: true });
  });

  function vault(auth: object, more: object = {}, environment: Record<string, string> = {}): Opened {
    const provider = open('vault', { address: bao.address, auth, ...more }, environment);
    opened.push(provider);
    return provider;
  }

  /** A failing fetch that shows `secret` nowhere. */
  async function refused(provider: Opened, secret: string): Promise<PosternError> {
    const error = await failure(provider.fetch([password], never));
    const everything = inspect(error, { depth: null, showHidden: true }) + error.stack + provider.logged();
    assert.ok(!everything.includes(secret));
    return error;
  }

  describe('by JWT', () => {
    const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const jwtFile = join(folder, 'token.jwt');

    function jwt(claims: object = {}): string {
      const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
      const now = Math.floor(Date.now() / 1000);
      const payload = { sub: 'orders', aud: 'vault', iat: now, exp: now + 600, ...claims };
      const signed = `${part({ alg: 'ES256', typ: 'JWT' })}.${part(payload)}`;
      const signature = sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' });
      return `${signed}.${signature.toString('base64url')}`;
    }

    before(async () => {
      await bao.write('sys/auth/jwt', { type: 'jwt' });
      const pem = publicKey.export({ type: 'spki', format: 'pem' });
      await bao.write('auth/jwt/config', { jwt_validation_pubkeys: [pem], default_role: 'orders' });
      await bao.write('auth/jwt/role/orders', {
        role_type: 'jwt',
        bound_audiences: 'vault',
        user_claim: 'sub',
        token_policies: 'app',
        token_ttl: '2s',
        token_max_ttl: '2s',
      });
    });

    it('reads the file at each login, with a role or with the default one', async () => {
      writeFileSync(jwtFile, `${jwt()}\n`);
      const provider = vault({ method: 'jwt', role: 'orders', jwtFile });
      assert.deepEqual(await texts(provider, password), [canary.postgres]);
      assert.deepEqual(await texts(vault({ method: 'jwt', jwtFile }), password), [canary.postgres]);
      rmSync(jwtFile);
      assert.deepEqual(await texts(provider, password), [canary.postgres], 'the token still serves');
      await sleep(2000);
      assert.match((await refused(provider, 'ey')).message, /token\.jwt": there is no such file/);
      writeFileSync(jwtFile, jwt());
      assert.deepEqual(await texts(provider, password), [canary.postgres]);
    });

    it('quotes why a token was refused, and nothing of the token', async () => {
      const cases: [object, string, RegExp][] = [
        [{ aud: 'other' }, 'orders', /HTTP 400: error validating token: invalid audience \(aud\) claim/],
        [{ exp: 1 }, 'orders', /HTTP 400: .*token is expired/],
        [{}, 'nobody', /HTTP 400: role "nobody" could not be found/],
      ];
      for (const [claims, role, message] of cases) {
        const token = jwt(claims);
        writeFileSync(jwtFile, token);
        const error = await refused(vault({ method: 'jwt', role, jwtFile }), token.split('.')[1] ?? '');
        assert.equal(error.code, 'PROVIDER_FAILED');
        assert.match(error.message, /provider "vault": jwt login: Vault refused/);
        assert.match(error.message, message);
      }
    });
  });

  it('logs in with a user name and a password, from a variable or a file, whose token lives for 32 days', async () => {
    const { username, password: right } = bao.userpass;
    const env = vault({ method: 'userpass', username, passwordEnv: 'P' }, {}, { P: right });
    assert.deepEqual(await texts(env, password), [canary.postgres]);
    const passwordFile = join(folder, 'password');
    writeFileSync(passwordFile, `${right}\n`);
    assert.deepEqual(await texts(vault({ method: 'userpass', username, passwordFile }), password), [
      canary.postgres,
    ]);
    writeFileSync(passwordFile, ' s3cr3t-wrong ');
    const error = await refused(vault({ method: 'userpass', username, passwordFile }), 's3cr3t-wrong');
    assert.match(error.message, /userpass login: Vault refused \(HTTP 400: invalid username or password\)/);
    const nobody = vault({ method: 'ldap', username, password: 's3cr3t-ldap' });
    // OpenBao has no LDAP built in; a method that is not mounted is answered like this.
    assert.match((await refused(nobody, 's3cr3t-ldap')).message, /ldap login: permission denied \(HTTP 403/);
  });

  it('logs in with the client certificate of its TLS settings, from files or from the environment', async () => {
    const { client, untrustedClient } = await certificates();
    await bao.write('sys/auth/cert', { type: 'cert' });
    await bao.write('auth/cert/certs/web', {
      certificate: readFileSync(client.ca, 'utf8'),
      token_policies: 'app',
      allowed_common_names: 'cert_user',
    });
    const address = bao.tlsAddress;
    const tls = { ca: bao.ca, cert: client.cert, key: client.key };
    for (const auth of [{ method: 'cert' }, { method: 'cert', name: 'web' }]) {
      assert.deepEqual(await texts(vault(auth, { address, tls }), password), [canary.postgres]);
    }
    const other = await refused(vault({ method: 'cert', name: 'other' }, { address, tls }), 'BEGIN');
    assert.match(other.message, /cert login: (Vault refused|permission denied)/);
    const environment = {
      BAO_CACERT: bao.ca,
      BAO_CLIENT_CERT_BYTES: readFileSync(client.cert, 'utf8'),
      BAO_CLIENT_KEY_BYTES: readFileSync(client.key, 'utf8'),
    };
    assert.deepEqual(await texts(vault({ method: 'cert' }, { address }, environment), password), [
      canary.postgres,
    ]);
    const untrusted = { ca: bao.ca, cert: untrustedClient.cert, key: untrustedClient.key };
    const error = await refused(vault({ method: 'cert' }, { address, tls: untrusted, retries: 0 }), 'BEGIN');
    assert.match(error.message, /cert login/);
  });

  describe('by AppRole with a wrapped secret id', () => {
    const secretIdFile = join(folder, 'wrapped');

    async function wrapped(path: string, body: object = {}): Promise<string> {
      const response = await fetch(`${bao.address}/v1/${path}`, {
        method: 'POST',
        headers: { 'X-Vault-Token': bao.rootToken, 'X-Vault-Wrap-TTL': '60s' },
        body: JSON.stringify(body),
      });
      const { wrap_info } = (await response.json()) as { wrap_info: { token: string } };
      return wrap_info.token;
    }
    const approle = () => ({ method: 'approle', roleId: bao.roleId, secretIdFile, secretIdWrapped: true });
    const alarms = (provider: Opened) => provider.logged().split('possible interception').length - 1;

    it('unwraps it once, keeps it for later logins, and takes the next one that is delivered', async () => {
      await bao.write('auth/approle/role/short', { token_policies: 'app', token_ttl: '1s' });
      await bao.write('auth/approle/role/short/role-id', { role_id: 'short-role' });
      writeFileSync(secretIdFile, `${await wrapped('auth/approle/role/short/secret-id')}\n`);
      const provider = vault({ ...approle(), roleId: 'short-role' });
      for (let logins = 1; logins <= 3; logins++) {
        assert.deepEqual(await texts(provider, password), [canary.postgres]);
        assert.equal(provider.logged().split('logged in to Vault').length - 1, logins);
        await sleep(1000);
      }
      writeFileSync(secretIdFile, await wrapped('auth/approle/role/short/secret-id'));
      assert.deepEqual(await texts(provider, password), [canary.postgres]);
      assert.equal(alarms(provider), 0);
    });

    it('raises the alarm when somebody has unwrapped it before, once for each token', async () => {
      const token = await wrapped('auth/approle/role/app/secret-id');
      const thief = await fetch(`${bao.address}/v1/sys/wrapping/unwrap`, {
        method: 'POST',
        headers: { 'X-Vault-Token': token },
      });
      assert.equal(thief.status, 200);
      writeFileSync(secretIdFile, token);
      const provider = vault(approle());
      for (let i = 0; i < 3; i++) {
        const error = await refused(provider, token);
        assert.equal(error.code, 'PROVIDER_FAILED');
        assert.match(
          error.message,
          /provider "vault": possible interception: the wrapping token was already used, or has expired\. Somebody else may hold the secret id/,
        );
      }
      assert.equal(alarms(provider), 1);
      assert.match(provider.logged(), /"level":50/);
      writeFileSync(secretIdFile, await wrapped('auth/approle/role/app/secret-id'));
      assert.deepEqual(await texts(provider, password), [canary.postgres]);
    });

    it('raises the alarm for something else that was wrapped in its place, without unwrapping it', async () => {
      const token = await wrapped('sys/wrapping/wrap', { secret_id: bao.secretId });
      writeFileSync(secretIdFile, token);
      const error = await refused(vault(approle()), token);
      assert.match(error.message, /possible interception: the wrapping token does not come from this role/);
      const untouched = await fetch(`${bao.address}/v1/sys/wrapping/unwrap`, {
        method: 'POST',
        headers: { 'X-Vault-Token': token },
      });
      assert.equal(untouched.status, 200);
    });
  });

  describe('by a real Agent', () => {
    const socket = join(folder, 'agent.sock');
    const sink = join(folder, 'sink');
    let stop = async () => {};

    before(async () => {
      const write = (name: string, content: string) => {
        writeFileSync(join(folder, name), content);
        return join(folder, name);
      };
      const config = write(
        'agent.hcl',
        `vault { address = "${bao.address}" }
auto_auth {
  method "approle" {
    config = {
      role_id_file_path = "${write('role', bao.roleId)}"
      secret_id_file_path = "${write('secret', bao.secretId)}"
      remove_secret_id_file_after_reading = false
    }
  }
  sink "file" { config = { path = "${sink}" } }
}
api_proxy { use_auto_auth_token = true }
listener "unix" {
  address = "${socket}"
  tls_disable = true
  require_request_header = true
}
`,
      );
      const agent = spawn(await installOpenBao(), ['agent', `-config=${config}`], {
        stdio: 'ignore',
        env: { PATH: process.env['PATH'], HOME: folder },
      });
      stop = async () => {
        agent.kill();
        await once(agent, 'exit');
      };
      await eventually(async () => assert.ok(existsSync(socket) && existsSync(sink)));
    });
    after(async () => await stop());

    it('asks over its unix socket without a token of its own, and with the header it insists on', async () => {
      const provider = open('vault', { address: `unix://${socket}`, auth: { method: 'none' } });
      assert.deepEqual(await texts(provider, password), [canary.postgres]);
      await provider.check(never);
      await provider.close(never);
      const bad = open('vault', {
        address: `unix://${socket}`,
        auth: { method: 'token', token: 's.not-a-token' },
      });
      assert.match((await failure(bad.fetch([password], never))).message, /permission denied/);
      await bad.close(never);
    });

    it('takes the token of its sink, and the next one soon after it was written', async () => {
      const path = join(folder, 'copy-of-sink');
      writeFileSync(path, '');
      const provider = vault({ method: 'tokenFile', path });
      const empty = await failure(provider.fetch([password], never));
      assert.equal(empty.code, 'PROVIDER_UNAVAILABLE');
      writeFileSync(path, readFileSync(sink));
      assert.deepEqual(await texts(provider, password), [canary.postgres]);

      // Another token, while the first is still good: seen by what only the second may read.
      const other = 'secret/other/app';
      await bao.write('secret/data/other/app', { data: { value: 'of the second' } });
      await bao.request('PUT', 'sys/policies/acl/other', {
        policy:
          'path "secret/data/other/*" { capabilities = ["read"] }\npath "secret/data/app/*" { capabilities = ["read"] }',
      });
      const { auth } = (await bao.write('auth/token/create', { policies: ['other'] })) as {
        auth: { client_token: string };
      };
      await sleep(1100);
      writeFileSync(path, '');
      assert.deepEqual(await texts(provider, password), [canary.postgres], 'the old one serves meanwhile');
      writeFileSync(`${path}.new`, auth.client_token);
      renameSync(`${path}.new`, path);
      await eventually(async () => assert.deepEqual(await texts(provider, other), ['of the second']));
    });
  });

  it('renews a token that was given to it before it ends, and never revokes it', async () => {
    const { auth } = (await bao.write('auth/token/create', {
      policies: ['app'],
      ttl: '2s',
      explicit_max_ttl: '1h',
    })) as {
      auth: { client_token: string; accessor: string };
    };
    const provider = vault({ method: 'token', token: auth.client_token });
    assert.deepEqual(await texts(provider, password), [canary.postgres]);
    await sleep(5000);
    assert.deepEqual(await texts(provider, password), [canary.postgres]);
    await provider.close(never);
    const { data } = (await bao.request('LIST', 'auth/token/accessors')) as { data: { keys: string[] } };
    assert.ok(data.keys.includes(auth.accessor));
  });

  it('is not ready with a token that is not valid, or a login that is refused, and says which', async () => {
    const bad = vault({ method: 'token', token: 's.CANARY-not-valid' });
    const error = await failure(bad.check(never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(error.message, /looking up the token: permission denied: the token is not valid/);
    assert.doesNotMatch(error.message + bad.logged(), /CANARY/);
    const login = vault({ method: 'approle', roleId: 'none', secretId: 'none' });
    assert.match((await failure(login.check(never))).message, /approle login: Vault refused/);
    await vault({ method: 'approle', roleId: bao.roleId, secretId: bao.secretId }).check(never);
  });

  it('is ready with a token whose policy does not let it look itself up, once it has worked', async () => {
    const { auth } = (await bao.write('auth/token/create', {
      policies: ['app'],
      no_default_policy: true,
    })) as { auth: { client_token: string } };
    const provider = vault({ method: 'token', token: auth.client_token });
    await failure(provider.check(never));
    assert.deepEqual(await texts(provider, 'secret/data/app/db#password'), [canary.postgres]);
    await provider.check(never);
    await bao.write('auth/token/revoke', { token: auth.client_token });
    await failure(provider.fetch([password], never));
    assert.match((await failure(provider.check(never))).message, /not valid/);
  });
});

async function eventually(attempt: () => Promise<unknown>): Promise<void> {
  for (let left = 100; ; left--) {
    try {
      await attempt();
      return;
    } catch (thrown) {
      if (left === 0) throw thrown;
      await sleep(100);
    }
  }
}
