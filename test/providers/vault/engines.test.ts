import assert from 'node:assert/strict';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { after, before, describe, it } from 'node:test';

import { type PrivateOpenBao, startOpenBao } from '../../support/servers.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';

describe('engines of a real OpenBao beside KV and databases', () => {
  let bao: PrivateOpenBao;
  let provider: Opened;

  before(async () => {
    bao = await startOpenBao();
    provider = open('vault', { address: bao.address, auth: { method: 'token', token: bao.rootToken } });
    await bao.write('sys/mounts/pki', { type: 'pki', config: { max_lease_ttl: '24h' } });
    await bao.write('pki/root/generate/internal', { common_name: 'Test CA', ttl: '24h' });
    const role = { allowed_domains: 'internal', allow_subdomains: true, max_ttl: '12h' };
    await bao.write('pki/roles/web', role);
    await bao.write('pki/roles/leased', { ...role, generate_lease: true });
  });
  after(async () => {
    await provider.close(AbortSignal.timeout(2000));
    await bao.stop();
  });

  it('issues a certificate with its key by a reference with parameters: one write for all fields', async () => {
    const path = 'pki/issue/web?common_name=app.internal&alt_names=b.internal%2Cc.internal&ttl=1h';
    const { secrets, expiresAt, leases } = await provider.fetch(
      [`${path}#certificate`, `${path}#private_key`, `${path}#issuing_ca`],
      never,
    );
    const [certificate = '', key = '', ca = ''] = secrets.map((secret) => secret.reveal().toString());
    const parsed = new X509Certificate(certificate);
    assert.equal(parsed.subject, 'CN=app.internal');
    assert.match(parsed.subjectAltName ?? '', /DNS:b\.internal, DNS:c\.internal/);
    assert.ok(parsed.checkPrivateKey(createPrivateKey(key)), 'the key belongs to the certificate');
    assert.ok(parsed.verify(new X509Certificate(ca).publicKey));
    assert.equal(expiresAt?.getTime(), parsed.validToDate.getTime());
    assert.equal(leases, undefined);
    const { data } = (await bao.request('LIST', 'pki/certs')) as { data: { keys: string[] } };
    assert.equal(data.keys.length, 2, 'the root and this one');
  });

  it('gives the lease of a certificate where the role makes one; it is not renewable, and revoking it revokes the certificate', async () => {
    const path = 'pki/issue/leased?common_name=app.internal&ttl=1h';
    const grant = await provider.fetch([`${path}#certificate`, `${path}#serial_number`], never);
    const [lease] = grant.leases ?? [];
    assert.equal(lease?.renewable, false);
    assert.ok(Math.abs((lease?.expiresAt.getTime() ?? 0) - Date.now() - 3_600_000) < 60_000);
    const error = await failure(lease.renew(never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    assert.match(error.message, /it is not renewable/);
    await lease.revoke(never);
    const serial = grant.secrets[1]?.reveal().toString();
    const { data } = (await bao.read(`pki/cert/${serial}`)) as { data: { revocation_time: number } };
    assert.ok(data.revocation_time > 0);
  });

  it('makes one-time passwords and signed keys of ssh, codes of totp and keys of transit', async () => {
    await bao.write('sys/mounts/ssh', { type: 'ssh' });
    await bao.write('ssh/roles/otp', { key_type: 'otp', default_user: 'app', cidr_list: '127.0.0.0/8' });
    await bao.write('sys/mounts/totp', { type: 'totp' });
    await bao.write('totp/keys/app', { generate: true, issuer: 'test', account_name: 'app' });
    await bao.write('sys/mounts/transit', { type: 'transit' });
    await bao.write('transit/keys/app');
    const [otp = '', code = '', plaintext = ''] = await texts(
      provider,
      'ssh/creds/otp?ip=127.0.0.1#key',
      'totp/code/app#code',
      // No parameters, and written all the same.
      'transit/datakey/plaintext/app?#plaintext',
    );
    assert.match(otp, /^[0-9a-f-]{36}$/);
    assert.match(code, /^\d{6}$/);
    assert.equal(Buffer.from(plaintext, 'base64').length, 32);

    await bao.write('ssh/config/ca', { generate_signing_key: true });
    await bao.write('ssh/roles/signed', {
      key_type: 'ca',
      allow_user_certificates: true,
      allowed_users: 'app',
      default_extensions: {},
      ttl: '10m',
    });
    const issue = 'ssh/issue/signed?key_type=ed25519&valid_principals=app';
    const [privateKey = '', signed = ''] = await texts(
      provider,
      `${issue}#private_key`,
      `${issue}#signed_key`,
    );
    assert.match(privateKey, /^-----BEGIN OPENSSH PRIVATE KEY-----/);
    assert.match(signed, /^ssh-ed25519-cert-v01@openssh.com /);
  });

  it('reads an identity token, whose engine has no mount of its own to choose', async () => {
    await bao.write('identity/oidc/key/app', { allowed_client_ids: '*' });
    await bao.write('identity/oidc/role/app', { key: 'app' });
    // The root token has no entity, for whom the token would speak.
    const error = await failure(provider.fetch(['identity/oidc/token/app#token'], never));
    assert.equal(error.code, 'PROVIDER_FAILED');
    const login = open('vault', {
      address: bao.address,
      auth: { method: 'userpass', username: 'ann', password: 'pw' },
    });
    await bao.write('sys/policies/acl/identity', {
      policy: 'path "identity/oidc/token/app" { capabilities = ["read"] }',
    });
    await bao.write('auth/userpass/users/ann', { password: 'pw', token_policies: 'identity' });
    const [token = ''] = await texts(login, 'identity/oidc/token/app#token');
    assert.equal(token.split('.').length, 3);
    await login.close(never);
  });

  it('has a sentence for a parameter that is missing, an unknown role, a field that is a list, and no data at all', async () => {
    const cases: [string, RegExp][] = [
      ['pki/issue/web#certificate', /pki\/issue\/web#certificate": .*\(HTTP 40\d/],
      ['pki/issue/none?common_name=x#certificate', /Vault refused \(HTTP 400: unknown role: none\)/],
      ['pki/cert/ca_chain#ca_chain_none', /has no field "ca_chain_none"/],
      ['pki/issue/web?common_name=app.internal#ca_chain', /the field is a list, not a text/],
      ['transit/keys/app/rotate/nothing#x', /there is nothing at this path|Vault refused/],
    ];
    for (const [reference, message] of cases) {
      const error = await failure(provider.fetch([reference], never));
      assert.equal(error.code, 'PROVIDER_FAILED', error.message);
      assert.match(error.message, message);
      assert.ok(error.message.includes(`"${reference}"`), error.message);
    }
  });
});
