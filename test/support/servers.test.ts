import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { connect } from 'node:tls';
import { psql } from './clients/psql.ts';
import {
  canary,
  certificates,
  type PostgresInfo,
  type Role,
  roleMethods,
  server,
  serverNames,
  sql,
  startOpenBao,
  startPostgres,
  withServer,
} from './servers.ts';

/** Logs in directly with psql; gives the SQLSTATE or the beginning of the refusal, or what `current_user` says. */
async function logIn(
  at: { readonly host: string; readonly port: number },
  user: string,
  options: { password?: string; conninfo?: string } = {},
): Promise<string> {
  const { password = canary.postgres, conninfo = 'sslmode=disable' } = options;
  const where = `host=${at.host} port=${at.port} dbname=app user=${user} ${conninfo}`;
  const { code, stdout, stderr } = await psql(['-Atc', 'select current_user', where], {
    env: { PGPASSWORD: password },
  });
  return code === 0 ? stdout.trim() : stderr.trim();
}

const passwordRoles: readonly Role[] = [
  'scram_user',
  'md5_user',
  'clear_user',
  'trust_user',
  'rotate_user',
  'scram16k_user',
  'admin',
];

for (const name of ['postgres18', 'postgres15'] as const) {
  describe(`${name}, asked directly`, () => {
    for (const role of passwordRoles) {
      it(`lets ${role} in with its password`, async (t) => {
        const info = await withServer(t, name);
        if (info) assert.equal(await logIn(info, role), role);
      });
    }

    for (const role of passwordRoles.filter((each) => each !== 'trust_user')) {
      it(`refuses ${role} with another password`, async (t) => {
        const info = await withServer(t, name);
        if (!info) return;
        assert.match(
          await logIn(info, role, { password: 'wrong' }),
          /password authentication failed for user/,
        );
      });
    }

    it('lets trust_user in without a password', async (t) => {
      const info = await withServer(t, name);
      if (info) assert.equal(await logIn(info, 'trust_user', { password: '' }), 'trust_user');
    });

    it('takes the password of unicode_user in either spelling that SASLprep makes the same', async (t) => {
      const info = await withServer(t, name);
      if (!info) return;
      for (const password of [canary.postgresUnicode, 'IX s3cr3t-c\u00E4nary']) {
        assert.equal(await logIn(info, 'unicode_user', { password }), 'unicode_user');
      }
    });

    it('refuses reject_user with the right password', async (t) => {
      const info = await withServer(t, name);
      if (info) assert.match(await logIn(info, 'reject_user'), /pg_hba\.conf rejects connection/);
    });

    it('asks every role in the way its name says', async (t) => {
      const info = await withServer(t, name);
      if (!info) return;
      const stored = await sql(
        info,
        `select rolname, split_part(rolpassword, ':', 1) as verifier from pg_authid where rolpassword is not null`,
      );
      const verifier = Object.fromEntries(stored.map((row) => [row['rolname'], row['verifier']]));
      assert.equal(verifier['scram_user'], 'SCRAM-SHA-256$4096');
      assert.equal(verifier['scram16k_user'], 'SCRAM-SHA-256$16384');
      assert.match(String(verifier['md5_user']), /^md5[0-9a-f]{32}$/);
      const rules = await sql(
        info,
        `select user_name, auth_method from pg_hba_file_rules where type = 'host'`,
      );
      const method = (role: string) =>
        rules.find((rule) =>
          (rule['user_name'] as string[]).some((user) => user === role || user === 'all'),
        )?.['auth_method'];
      assert.equal(method('clear_user'), 'password');
      assert.equal(method('md5_user'), 'md5');
      assert.equal(method('trust_user'), 'trust');
      assert.equal(method('scram_user'), 'scram-sha-256');
    });

    it('lets scram_user and trust_user replicate', async (t) => {
      const info = await withServer(t, name);
      if (!info) return;
      for (const role of ['scram_user', 'trust_user']) {
        const where = `host=${info.host} port=${info.port} user=${role} replication=true`;
        const { code, stderr } = await psql(['-Atc', 'IDENTIFY_SYSTEM', where], {
          env: { PGPASSWORD: canary.postgres },
        });
        assert.equal(code, 0, stderr);
      }
    });

    it('holds a hundred notes that everybody may read', async (t) => {
      const info = await withServer(t, name);
      if (!info) return;
      const where = `host=${info.host} port=${info.port} dbname=app user=trust_user sslmode=disable`;
      assert.equal((await psql(['-Atc', 'select count(*) from notes', where])).stdout.trim(), '100');
    });
  });
}

describe('postgres18 with TLS, asked directly', () => {
  it('shows a certificate of the test authority for localhost', async (t) => {
    const info = await withServer(t, 'postgres18');
    if (!info) return;
    const conninfo = `sslmode=verify-full sslrootcert=${info.ca} channel_binding=require`;
    assert.equal(await logIn({ ...info, host: 'localhost' }, 'scram_user', { conninfo }), 'scram_user');
  });

  it('lets tls_only_user in over TLS only', async (t) => {
    const info = await withServer(t, 'postgres18');
    if (!info) return;
    assert.equal(await logIn(info, 'tls_only_user', { conninfo: 'sslmode=require' }), 'tls_only_user');
    assert.match(await logIn(info, 'tls_only_user'), /rejects connection.*no encryption/);
  });

  it('lets cert_user in with its certificate, plain or encrypted key, and not without', async (t) => {
    const info = await withServer(t, 'postgres18');
    if (!info) return;
    const { client, encryptedClientKey, untrustedClient } = await certificates();
    const withKey = (key: string, cert = client.cert) =>
      logIn(info, 'cert_user', {
        conninfo: `sslmode=require sslcert=${cert} sslkey=${key} sslpassword=${canary.passphrase}`,
      });
    assert.equal(await withKey(client.key), 'cert_user');
    assert.equal(await withKey(encryptedClientKey), 'cert_user');
    assert.match(await withKey(untrustedClient.key, untrustedClient.cert), /unknown ca|server closed/);
    assert.match(
      await logIn(info, 'cert_user', { conninfo: 'sslmode=require' }),
      /requires a valid client cert/,
    );
    assert.match(await logIn(info, 'cert_user'), /rejects connection/);
  });
});

describe('postgres15, asked directly', () => {
  it('has no TLS', async (t) => {
    const info = await withServer(t, 'postgres15');
    if (!info) return;
    assert.match(
      await logIn(info, 'scram_user', { conninfo: 'sslmode=require' }),
      /server does not support SSL, but SSL was required/,
    );
  });
});

describe('pgbouncer, asked directly', () => {
  it('lets scram_user through to PostgreSQL 18, with and without TLS, and nobody else', async (t) => {
    const info = await withServer(t, 'pgbouncer');
    if (!info) return;
    assert.equal(await logIn(info, 'scram_user'), 'scram_user');
    const conninfo = `sslmode=verify-full sslrootcert=${info.ca}`;
    assert.equal(await logIn({ ...info, host: 'localhost' }, 'scram_user', { conninfo }), 'scram_user');
    assert.match(await logIn(info, 'scram_user', { password: 'wrong' }), /SASL authentication failed/);
    assert.match(await logIn(info, 'md5_user'), /SASL authentication failed/);
  });
});

describe('openbao, asked directly', () => {
  const logInAs = async (address: string, path: string, body: unknown) => {
    const response = await fetch(`${address}/v1/auth/${path}`, {
      method: 'POST',
      body: JSON.stringify(body),
    });
    const { auth } = (await response.json()) as { auth?: { client_token: string } };
    return auth?.client_token;
  };

  it('gives the database login to whoever logs in by approle or userpass, and no more than that', async (t) => {
    const bao = await withServer(t, 'openbao');
    if (!bao) return;
    const { address, roleId, secretId, userpass } = bao;
    const tokens = [
      await logInAs(address, 'approle/login', { role_id: roleId, secret_id: secretId }),
      await logInAs(address, `userpass/login/${userpass.username}`, { password: userpass.password }),
    ];
    for (const token of tokens) {
      assert.ok(token);
      const read = (path: string) => fetch(`${address}/v1/${path}`, { headers: { 'X-Vault-Token': token } });
      const [v1, v2] = [await read('kv1/app/db'), await read('secret/data/app/db')];
      const login = { username: 'scram_user', password: canary.postgres };
      assert.deepEqual(((await v1.json()) as { data: unknown }).data, login);
      assert.deepEqual(((await v2.json()) as { data: { data: unknown } }).data.data, login);
      assert.equal((await read('sys/mounts')).status, 403);
    }
    assert.equal(await logInAs(address, 'approle/login', { role_id: roleId, secret_id: 'wrong' }), undefined);
  });

  it('shows a certificate of the test authority on its second listener', async (t) => {
    const bao = await withServer(t, 'openbao');
    if (!bao) return;
    const { hostname, port } = new URL(bao.tlsAddress);
    const socket = connect({ host: hostname, port: Number(port), ca: await readFile(bao.ca) });
    await new Promise((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject));
    assert.equal(socket.authorized, true);
    socket.destroy();
  });
});

describe('a private server', () => {
  const refused = async (at: PostgresInfo) => (await logIn(at, 'scram_user')).includes('Connection refused');

  it('of PostgreSQL ends, is killed and comes back with its data', async (t) => {
    if (!(await withServer(t, 'postgres18'))) return;
    const postgres = await startPostgres();
    t.after(postgres.stop);
    await sql(postgres, `insert into notes (body) values ('kept')`);
    await postgres.down();
    assert.equal(await refused(postgres), true);
    await postgres.up();
    await postgres.kill();
    assert.equal(await refused(postgres), true);
    await postgres.restart();
    assert.deepEqual(await sql(postgres, 'select count(*)::int as n from notes'), [{ n: 101 }]);
  });

  for (const certificate of ['ed25519', 'rsa-pss', 'sha384', 'wrong-host', 'expired', 'other-ca'] as const) {
    it(`of PostgreSQL shows the ${certificate} certificate`, async (t) => {
      if (!(await withServer(t, 'postgres18'))) return;
      const postgres = await startPostgres({ certificate });
      t.after(postgres.stop);
      const conninfo = `sslmode=verify-full sslrootcert=${postgres.ca} channel_binding=disable`;
      const answer = await logIn({ ...postgres, host: 'localhost' }, 'scram_user', { conninfo });
      if (certificate === 'wrong-host') assert.match(answer, /does not match host name/);
      else if (certificate === 'expired')
        assert.match(answer, /certificate verify failed|certificate has expired/);
      else assert.equal(answer, 'scram_user');
    });
  }

  it('of PostgreSQL takes settings and rules of its own', async (t) => {
    if (!(await withServer(t, 'postgres18'))) return;
    const postgres = await startPostgres({
      certificate: false,
      settings: { log_line_prefix: `it's %p` },
      hba: ['host all scram_user 127.0.0.1/32 reject'],
    });
    t.after(postgres.stop);
    assert.deepEqual(await sql(postgres, 'show log_line_prefix'), [{ log_line_prefix: `it's %p` }]);
    assert.match(await logIn(postgres, 'scram_user'), /rejects connection/);
    assert.match(
      await logIn(postgres, 'scram_user', { conninfo: 'sslmode=require' }),
      /does not support SSL/,
    );
  });

  it('of PostgreSQL writes down who came in and how', async (t) => {
    if (!(await withServer(t, 'postgres18'))) return;
    const postgres = await startPostgres({ settings: { log_connections: 'on' } });
    t.after(postgres.stop);
    for (const role of ['scram_user', 'md5_user', 'clear_user'] as const) {
      await logIn(postgres, role);
      const log = await readFile(postgres.log ?? '', 'utf8');
      assert.match(
        log,
        new RegExp(`connection authenticated: identity="${role}" method=${roleMethods[role]} `),
      );
    }
  });

  it('of OpenBao is sealed, unsealed and restarted', async (t) => {
    if (!(await withServer(t, 'openbao'))) return;
    const bao = await startOpenBao();
    t.after(bao.stop);
    await bao.write('secret/data/app/other', { data: { a: 'b' } });
    await bao.seal();
    await assert.rejects(bao.read('secret/data/app/db'), /503/);
    await bao.unseal();
    await bao.read('secret/data/app/other');
    await bao.restart();
    await bao.read('secret/data/app/db');
    await assert.rejects(bao.read('secret/data/app/other'), /404/);
  });
});

it('a server that was asked for twice is the same one', async (t) => {
  for (const name of serverNames) {
    if (await withServer(t, name)) assert.equal(server(name), server(name));
  }
});
