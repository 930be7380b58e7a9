import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

import { psql } from '../support/clients/psql.ts';
import { FakePostgres } from '../support/fake-postgres.ts';
import {
  canary,
  type PrivateOpenBao,
  type PrivatePostgres,
  server,
  startOpenBao,
  startPostgres,
} from '../support/servers.ts';
import {
  application,
  ask,
  busy,
  eventually,
  keep,
  loginOf,
  perform,
  type Refusal,
  refused,
  shared,
  stage,
  towards,
} from './stage.ts';

/** What a pool calls a failure of the moment, and a person an immediate answer. */
function atOnce({ code, ms }: Refusal, expected: '57P03' | '28000'): void {
  assert.equal(code, expected);
  assert.ok(ms < 8000, `refused after ${Math.round(ms)} ms`);
}

/** A TCP port where nobody listens. */
async function nobody(): Promise<number> {
  await using fake = await FakePostgres.start(() => {});
  return fake.port;
}

/** Reads whatever comes and never says a word. */
async function silence(): Promise<FakePostgres> {
  return await FakePostgres.start(async (peer) => {
    await peer.rest();
  });
}

async function served(port: number): Promise<void> {
  assert.deepEqual(await ask(port, 'select 42 as answer'), { answer: 42 });
}

describe('a secret store', () => {
  let bao: PrivateOpenBao | undefined;
  after(() => bao?.stop());
  const scene = shared(async () => {
    const postgres = await server('postgres18');
    bao = await startOpenBao();
    return { bao, postgres };
  });

  for (const [what, breaks, mends] of [
    ['is sealed', 'seal', 'unseal'],
    ['has died', 'kill', 'restart'],
  ] as const)
    it(`that ${what} refuses new sessions at once, ends none, and is used again without a restart`, async (t) => {
      const servers = await scene(t);
      if (!servers) return;
      const { bao, postgres } = servers;
      const { path, references } = await keep(bao, { username: 'scram_user', password: canary.postgres });
      await using postern = await perform(bao, {
        db: { credentials: references, config: towards(postgres) },
      });
      const port = postern.port('db');
      const session = await application(port);

      await bao[breaks]();
      for (let i = 0; i < 3; i++) {
        const refusal = await refused(port);
        atOnce(refusal, '57P03');
        assert.match(refusal.message, /^postern: provider "bao": /);
      }
      assert.equal((await session.query('select 1')).rowCount, 1);
      assert.equal((await postern.admin('/readyz')).status, 200);
      assert.match((await postern.admin('/readyz?verbose')).text, /^provider bao: provider "bao": /m);

      await bao[mends]();
      // What lived in its memory is gone after a restart.
      if (mends === 'restart')
        await bao.write(path, { data: { username: 'scram_user', password: canary.postgres } });
      // Attempts back off: the next one may be a moment away.
      await eventually('the store to be asked again', () =>
        served(port).then(
          () => true,
          () => false,
        ),
      );
      assert.equal((await session.query('select 1')).rowCount, 1);
      await session.end();
      const failures = { provider: 'bao', outcome: 'PROVIDER_UNAVAILABLE' };
      const attempts = await postern.metric('postern_provider_requests_total', failures);
      assert.ok(attempts >= 1 && attempts <= 5, `${attempts} attempts`);
    });

  it('that takes the connection and says nothing is given up before the login is', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, postgres } = servers;
    await using silent = await silence();
    const secret = { from: 'quiet', get: 'secret/app/db#password' };
    await using postern = await perform(
      bao,
      {
        patient: {
          credentials: { username: secret, password: secret },
          config: towards(postgres),
          limits: { loginTimeout: '500ms' },
        },
      },
      {
        top: {
          providers: {
            quiet: {
              kind: 'vault',
              address: `http://127.0.0.1:${silent.port}`,
              auth: { method: 'token', tokenEnv: 'E2E_SECRET_ID' },
            },
          },
        },
      },
    );
    const refusal = await refused(postern.port('patient'));
    assert.equal(refusal.code, '57P03');
    assert.ok(refusal.ms >= 450 && refusal.ms < 8000, `refused after ${Math.round(refusal.ms)} ms`);
    assert.match(refusal.message, /provider "quiet" did not answer in time/);
  });

  it('that has revoked the token is logged in to again, and nobody notices', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, postgres } = servers;
    const credentials = await loginOf(bao, 'scram_user');
    await using postern = await perform(bao, { db: { credentials, config: towards(postgres) } });
    await served(postern.port('db'));
    for (let i = 0; i < 3; i++) {
      await bao.request('PUT', 'sys/leases/revoke-prefix/auth/approle/login');
      await served(postern.port('db'));
    }
    assert.equal(
      await postern.metric('postern_provider_requests_total', { provider: 'bao', outcome: 'ok' }),
      4,
    );
  });

  it('that takes no login any more refuses with 28000 at once, until it takes one again', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, postgres } = servers;
    const credentials = await loginOf(bao, 'scram_user');
    await using postern = await perform(bao, { db: { credentials, config: towards(postgres) } });
    const port = postern.port('db');
    const session = await application(port);

    await bao.write('auth/approle/role/app/secret-id/destroy', { secret_id: bao.secretId });
    await bao.request('PUT', 'sys/leases/revoke-prefix/auth/approle/login');
    const refusal = await refused(port);
    atOnce(refusal, '28000');
    for (const word of [bao.secretId, bao.roleId, bao.rootToken])
      assert.ok(!refusal.whole.includes(word) && !postern.output.includes(word), 'shows an identifier');
    assert.equal((await session.query('select 1')).rowCount, 1);

    await bao.write('auth/approle/role/app/custom-secret-id', { secret_id: bao.secretId });
    // A login that was refused is not sent again with the same values for a second or two.
    await eventually('the store to be asked to log in again', () =>
      served(port).then(
        () => true,
        () => false,
      ),
    );
    await session.end();
  });

  it('whose token comes from a file is asked with the new one as soon as the old one is revoked', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, postgres } = servers;
    const folder = mkdtempSync(join(tmpdir(), 'postern-token-'));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    const path = join(folder, 'token');
    const newToken = async () => {
      const answer = await bao.write('auth/token/create', { policies: ['app'], ttl: '5m' });
      return (answer as { auth: { client_token: string } }).auth.client_token;
    };
    const first = await newToken();
    writeFileSync(path, `${first}\n`, { mode: 0o600 });
    const auth = { method: 'tokenFile', path };
    await using postern = await perform(
      bao,
      { db: { credentials: await loginOf(bao, 'scram_user'), config: towards(postgres) } },
      { top: { providers: { bao: { kind: 'vault', address: bao.address, auth } } } },
    );
    await served(postern.port('db'));

    await bao.write('auth/token/revoke', { token: first });
    atOnce(await refused(postern.port('db')), '28000');
    const second = await newToken();
    writeFileSync(path, `${second}\n`);
    await served(postern.port('db'));
    await postern.stop();
    for (const token of [first, second])
      assert.ok(!postern.output.includes(token), 'the token is in the output');
    // It was given to Postern, so it is not Postern's to revoke.
    await bao.write('auth/token/revoke', { token: second });
  });

  for (const [what, get] of [
    ['has nothing at the path', 'secret/app/missing#password'],
    ['lacks the field', 'secret/app/db#passwort'],
    ['denies the path', 'secret/elsewhere/db#password'],
  ] as const)
    it(`that ${what} refuses with 28000 at once, and says so`, async (t) => {
      const servers = await scene(t);
      if (!servers) return;
      const { bao, postgres } = servers;
      const { references } = await keep(bao, { username: 'scram_user' });
      const credentials = { ...references, password: { from: 'bao', get } };
      await using postern = await perform(bao, { db: { credentials, config: towards(postgres) } });
      const refusal = await refused(postern.port('db'));
      atOnce(refusal, '28000');
      const [path = '', field = ''] = get.split('#');
      assert.ok(refusal.message.includes(path), refusal.message);
      if (get.endsWith('#passwort')) assert.ok(refusal.message.includes(field), refusal.message);
      const line = await postern.logged(({ msg }) => msg === 'session failed');
      assert.equal(line['outcome'], 'PROVIDER_FAILED');
    });

  it('that gets the missing secret later needs no restart of Postern', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, postgres } = servers;
    const name = `app/late-${process.pid}`;
    const reference = (field: string) => ({ from: 'bao', get: `secret/${name}#${field}` });
    const credentials = { username: reference('username'), password: reference('password') };
    await using postern = await perform(bao, { db: { credentials, config: towards(postgres) } });
    const write = (data: Record<string, string>) => bao.write(`secret/data/${name}`, { data });

    atOnce(await refused(postern.port('db')), '28000');
    await write({ username: 'scram_user' });
    atOnce(await refused(postern.port('db')), '28000');
    await write({ username: 'scram_user', password: canary.postgres });
    await served(postern.port('db'));
    await bao.remove(`secret/data/${name}`);
    atOnce(await refused(postern.port('db')), '28000');
  });
});

describe('an upstream', () => {
  let postgres: PrivatePostgres | undefined;
  after(() => postgres?.stop());
  /** A server of its own, which it may break, and the credentials for it. */
  const scene = shared(async () => {
    const bao = await server('openbao');
    const stable = await server('postgres18');
    postgres = await startPostgres();
    return { bao, stable, postgres, credentials: await loginOf(bao, 'scram_user') };
  });

  it('that refuses the connection is a 57P03 at once, which names neither host nor port', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const port = await nobody();
    await using postern = await perform(openbao, {
      db: { credentials: await loginOf(openbao, 'scram_user'), config: { ...towards(postgres18), port } },
    });
    const refusal = await refused(postern.port('db'));
    atOnce(refusal, '57P03');
    for (const word of [String(port), 'localhost', '127.0.0.1', 'scram_user'])
      assert.ok(!refusal.whole.includes(word), `names ${word}: ${refusal.whole}`);
    const line = await postern.logged(({ msg }) => msg === 'session failed');
    assert.equal(line['outcome'], 'UPSTREAM_UNREACHABLE');
    assert.match(String(line['error']), new RegExp(`localhost:${port}.*ECONNREFUSED`));
  });

  it('that is down makes libpq try the next host of its list', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const credentials = await loginOf(openbao, 'scram_user');
    const config = towards(postgres18);
    await using postern = await perform(openbao, {
      down: { credentials, config: { ...config, port: await nobody() } },
      up: { credentials, config },
    });
    const ports = `${postern.port('down')},${postern.port('up')}`;
    const connection = `host=127.0.0.1,127.0.0.1 port=${ports} user=anybody dbname=app sslmode=disable`;
    const { stdout, stderr } = await psql(['-At', '-c', 'select 42', connection]);
    assert.equal(stdout.trim(), '42', stderr);
    // It did come to the first.
    await postern.logged(({ outcome, service }) => outcome === 'UPSTREAM_UNREACHABLE' && service === 'down');
  });

  it('that is down leads Postern to the next of several hosts, in order', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const credentials = await loginOf(openbao, 'scram_user');
    const { tls, host, port } = towards(postgres18);
    const [gone, also] = [await nobody(), await nobody()];
    await using silent = await silence();
    await using postern = await perform(openbao, {
      third: {
        credentials,
        config: { tls, host: [`${host}:${gone}`, `${host}:${also}`, `${host}:${port}`] },
      },
      quiet: {
        credentials,
        config: { tls, connectTimeout: '300ms', host: [`${host}:${silent.port}`, `${host}:${port}`] },
      },
      none: { credentials, config: { tls, host: [`${host}:${gone}`, `${host}:${also}`] } },
    });
    const started = performance.now();
    await served(postern.port('third'));
    assert.ok(performance.now() - started < 8000, 'a host that refuses costs no time');
    await served(postern.port('quiet'));
    assert.equal(silent.connections, 1);
    const line = await postern.logged(({ service, outcome }) => service === 'quiet' && outcome === 'ok');
    assert.match(String(line['upstream']), new RegExp(`:${port}$`));
    atOnce(await refused(postern.port('none')), '57P03');
  });

  it('that takes the connection and says nothing is a 57P03 at the timeout', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const credentials = await loginOf(openbao, 'scram_user');
    await using silent = await silence();
    const { tls, host } = towards(postgres18);
    const { port } = silent;
    const disable = { mode: 'disable' };
    await using postern = await perform(openbao, {
      connect: { credentials, config: { host, port, tls, connectTimeout: '400ms' } },
      direct: {
        credentials,
        config: { host, port, tls: { ...tls, negotiation: 'direct' }, connectTimeout: '400ms' },
      },
      login: { credentials, config: { host, port, tls: disable }, limits: { loginTimeout: '400ms' } },
    });
    for (const [service, outcome] of [
      ['connect', 'UPSTREAM_UNREACHABLE'],
      ['direct', 'UPSTREAM_UNREACHABLE'],
      ['login', 'TIMEOUT'],
    ] as const) {
      const { code, ms } = await refused(postern.port(service));
      assert.equal(code, '57P03', service);
      assert.ok(ms >= 350 && ms < 8000, `${service} refused after ${Math.round(ms)} ms`);
      await postern.logged((line) => line['service'] === service && line['outcome'] === outcome);
    }
  });

  it('that is killed in the middle of a query ends its sessions and no other', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, stable, postgres, credentials } = servers;
    await using postern = await perform(bao, {
      doomed: { credentials, config: towards(postgres) },
      other: { credentials, config: towards(stable) },
    });
    const [asking, idle, other] = [
      await application(postern.port('doomed')),
      await application(postern.port('doomed')),
      await application(postern.port('other')),
    ];
    const gone = new Promise<void>((resolve) => idle.on('end', () => resolve()));
    const { rows } = await asking.query<{ pid: number }>('select pg_backend_pid() as pid');
    const query = assert.rejects(asking.query('select pg_sleep(60)'), /terminated unexpectedly|ECONNRESET/);
    await busy(postgres, rows[0]?.pid ?? 0);

    await postgres.kill();
    await query;
    await gone;
    assert.equal((await other.query('select 1')).rowCount, 1);
    atOnce(await refused(postern.port('doomed')), '57P03');
    await eventually(
      'both sessions to be over',
      async () => (await postern.metric('postern_sessions_active', { service: 'doomed' })) === 0,
    );

    await postgres.up();
    await served(postern.port('doomed'));
    assert.equal((await other.query('select 1')).rowCount, 1);
    await other.end();
  });

  it('that is restarted tells its sessions why they end, and is used again', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, postgres, credentials } = servers;
    await using postern = await perform(bao, { db: { credentials, config: towards(postgres) } });
    const client = await application(postern.port('db'));
    const query = assert.rejects(client.query('select pg_sleep(60)'), { code: '57P01' });
    await postgres.restart();
    await query;
    await served(postern.port('db'));
    assert.deepEqual(
      postern.lines.filter(({ level }) => level === 'error' || level === 'fatal'),
      [],
    );
  });

  it('that rejects the password in the store is a 28000 at once, without role, host or "password"', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    for (const role of ['scram_user', 'md5_user', 'clear_user'] as const) {
      const wrong = `${role}-wrong-s3cr3t`;
      const { references } = await keep(openbao, { username: role, password: wrong });
      await using postern = await perform(openbao, {
        db: { credentials: references, config: towards(postgres18) },
      });
      const refusal = await refused(postern.port('db'));
      atOnce(refusal, '28000');
      for (const word of [role, 'localhost', '127.0.0.1', String(postgres18.port), wrong])
        assert.ok(!refusal.whole.includes(word), `names ${word}: ${refusal.whole}`);
      assert.doesNotMatch(refusal.message, /password/i);
      assert.ok(!postern.output.includes(wrong), 'the password is in the output');
      // Asked once more, in case it had been rotated; not tried again, as it had not.
      const asked = { provider: 'bao', outcome: 'ok' };
      assert.equal(await postern.metric('postern_provider_requests_total', asked), 2);
    }
  });
});
