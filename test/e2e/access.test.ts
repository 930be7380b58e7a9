import assert from 'node:assert/strict';
import { chmod, mkdtemp, rm, stat } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';

import { loadNative } from '../../src/core/native.ts';
import { HttpOrigin } from '../support/http-origin.ts';
import { Postern } from '../support/postern.ts';
import { installPsql } from '../support/servers/install.ts';
import { capture, type Output } from '../support/servers/process.ts';
import { canary, type PostgresInfo, withServer } from '../support/servers.ts';
import { eventually, towards } from './stage.ts';

/** Nobody of this machine. */
const STRANGER = 54_321;
const root = process.getuid?.() === 0;
const { native } = loadNative();
/** To be another user takes root. */
const skip = root ? false : 'only root can be somebody else';
const env = { PASSWORD: canary.postgres };

const folder = await mkdtemp(join(tmpdir(), 'postern-access-'));
await chmod(folder, 0o755);
after(() => rm(folder, { recursive: true, force: true }));

/** Runs a program as another user, who has nothing of this one's. */
async function asUser(uid: number, program: string, args: readonly string[]): Promise<Output> {
  const identity = [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'];
  return await capture('setpriv', [...identity, program, ...args], {
    env: { PATH: process.env['PATH'], HOME: '/nonexistent', LC_ALL: 'C.UTF-8' },
  });
}

async function psqlOf(uid: number, to: string): Promise<Output> {
  const program = join(await installPsql(), 'psql');
  return await asUser(uid, program, [
    '--no-psqlrc',
    '-w',
    '-At',
    '-c',
    'select 1',
    `${to} user=me dbname=app`,
  ]);
}

function database(postgres: PostgresInfo, more: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return {
    connector: 'postgres',
    listenOn: 'tcp://127.0.0.1:0',
    credentials: { username: 'scram_user', password: { from: 'env', get: 'PASSWORD' } },
    config: towards(postgres),
    ...more,
  };
}

function yaml(
  services: Readonly<Record<string, unknown>>,
  top: Readonly<Record<string, unknown>> = {},
): string {
  return JSON.stringify({ version: 2, services, ...top });
}

async function start(
  t: TestContext,
  services: Readonly<Record<string, unknown>>,
  top = {},
): Promise<Postern> {
  const postern = await Postern.start(yaml(services, top), { env });
  t.after(() => postern.stop());
  return postern;
}

describe('access to a port by user', { timeout: 180_000, skip }, () => {
  it('refuses PostgreSQL clients of another user over TCP and over a unix socket, and serves the one it knows', async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const path = join(folder, '.s.PGSQL.6543');
    const audit = join(folder, 'audit.jsonl');
    const access = { uids: [STRANGER] };
    const services = {
      tcp: database(postgres, { access }),
      ...(native && { unix: database(postgres, { listenOn: `unix://${path}`, socketMode: '0666', access }) }),
    };
    const postern = await start(t, services, { audit: { file: audit } });
    for (const service of Object.keys(services)) {
      const to =
        service === 'tcp' ? `host=127.0.0.1 port=${postern.port('tcp')}` : `host=${folder} port=6543`;
      assert.equal((await psqlOf(STRANGER, to)).stdout, '1\n', service);
      for (const uid of [0, STRANGER + 1]) {
        const { code, stderr } = await psqlOf(uid, to);
        assert.equal(code, 2);
        assert.match(
          stderr,
          new RegExp(`FATAL: {2}postern: service "${service}" is not open to processes of user ${uid}`),
        );
      }
      const failed = await postern.logged(
        (line) => line['service'] === service && line['outcome'] === 'ACCESS_DENIED',
      );
      assert.equal(failed['peerUid'], 0);
      assert.equal(failed['upstream'], undefined, 'nothing was asked of the server');
      assert.equal(await postern.metric('postern_refusals_total', { service, reason: 'access' }), 2);
      assert.equal(await postern.metric('postern_credential_requests_total', { service }), 1);
    }
    await eventually('the audit', async () =>
      (await capture('cat', [audit])).stdout
        .split('\n')
        .some((line) => line.includes('"refused"') && line.includes(`"peerUid":${STRANGER + 1}`)),
    );
  });

  it('goes by groups, the supplementary ones too, on a unix socket', {
    skip: native ? skip : 'no addon',
  }, async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const listenOn = `unix://${join(folder, '.s.PGSQL.6544')}`;
    await start(t, {
      app: database(postgres, { listenOn, socketMode: '0666', access: { gids: [STRANGER] } }),
    });
    const to = `host=${folder} port=6544`;
    assert.equal((await psqlOf(STRANGER, to)).stdout, '1\n');
    const other = await psqlOf(STRANGER + 1, to);
    assert.match(other.stderr, /is not open to the groups of this process/);
    const program = join(await installPsql(), 'psql');
    const { stdout } = await capture('setpriv', [
      '--reuid=7',
      '--regid=7',
      `--groups=9,${STRANGER}`,
      program,
      '--no-psqlrc',
      '-w',
      '-At',
      '-c',
      'select 2',
      `${to} user=me dbname=app`,
    ]);
    assert.equal(stdout, '2\n');
  });

  it('goes by programs, and refuses one it does not know', async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const { stdout: real } = await capture('realpath', [join(await installPsql(), 'psql')]);
    const postern = await start(t, {
      right: database(postgres, { access: { executables: [real.trim(), '/usr/bin/psql', '/usr/bin/perl'] } }),
      wrong: database(postgres, { access: { executables: ['/usr/bin/true'] } }),
    });
    const right = await psqlOf(0, `host=127.0.0.1 port=${postern.port('right')}`);
    const lines = postern.lines.filter(({ outcome }) => outcome === 'ACCESS_DENIED');
    assert.match(right.stdout + right.stderr, /^1\n/, JSON.stringify(lines));
    const wrong = await psqlOf(0, `host=127.0.0.1 port=${postern.port('wrong')}`);
    assert.match(wrong.stderr, /is not open to this program/);
  });

  it('answers HTTP clients of another user with 403', async (t) => {
    await using origin = await HttpOrigin.open();
    const postern = await start(t, {
      api: {
        connector: 'http',
        listenOn: 'tcp://127.0.0.1:0',
        access: { uids: [STRANGER] },
        credentials: { token: { from: 'env', get: 'PASSWORD' } },
        config: {
          upstream: `http://127.0.0.1:${origin.port}`,
          allowPlainHttp: true,
          authenticate: { bearer: 'token' },
        },
      },
    });
    const url = `http://127.0.0.1:${postern.port('api')}/`;
    const curl = async (uid: number) => (await asUser(uid, 'curl', ['-sS', '-i', url])).stdout;
    assert.match(await curl(STRANGER), /^HTTP\/1.1 200/);
    assert.match(await curl(0), /^HTTP\/1.1 403 Forbidden\r\n[^]*Postern-Error: ACCESS_DENIED/);
    assert.equal(origin.received.length, 1);
  });

  it('changes with a reload for new connections, and for those alone', async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const config = (uid: number) => yaml({ app: database(postgres, { access: { uids: [uid] } }) });
    const postern = await Postern.start(config(0), { env });
    t.after(() => postern.stop());
    const to = `host=127.0.0.1 port=${postern.port('app')}`;
    const program = join(await installPsql(), 'psql');
    const long = capture(program, [
      '--no-psqlrc',
      '-At',
      '-c',
      'select pg_sleep(5)',
      '-c',
      'select 3',
      `${to} user=me dbname=app`,
    ]);
    await eventually('the session', async () => (await postern.metric('postern_sessions_active')) === 1);
    await postern.writeConfig(config(STRANGER));
    postern.signal('SIGHUP');
    await postern.logged(({ msg }) => msg === 'configuration reloaded', 30_000);
    assert.match((await psqlOf(0, to)).stderr, /is not open to processes of user 0/);
    assert.equal((await psqlOf(STRANGER, to)).stdout, '1\n');
    assert.match((await long).stdout, /3\n$/);
  });
});

describe('limits of a port', { timeout: 180_000 }, () => {
  it('gives one peer no more than its places, and them back', async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const postern = await start(t, { app: database(postgres, { access: { maxConnectionsPerPeer: 1 } }) });
    const to = `host=127.0.0.1 port=${postern.port('app')} user=me dbname=app`;
    const program = join(await installPsql(), 'psql');
    const args = ['--no-psqlrc', '-At', '-c'];
    const long = capture(program, [...args, 'select pg_sleep(3)', to]);
    await eventually('the session', async () => (await postern.metric('postern_sessions_active')) === 1);
    const second = await capture(program, [...args, 'select 1', to]);
    assert.match(
      second.stderr,
      /postern: service "app" has its 1 connections for one peer \(uid \d+\) in use/,
    );
    assert.equal((await long).code, 0);
    await eventually(
      'the place to be free',
      async () => (await capture(program, [...args, 'select 1', to])).stdout === '1\n',
    );
  });

  it('lets clients log in no more often than the rate says, and tells them so', async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const slow = { perSecond: 0.001, burst: 2 };
    const postern = await start(t, {
      all: database(postgres, { access: { loginRate: slow } }),
      each: database(postgres, { access: { loginRatePerPeer: slow } }),
    });
    const program = join(await installPsql(), 'psql');
    for (const [service, what] of [
      ['all', /more often than loginRate allows/],
      ['each', /more often than loginRatePerPeer allows/],
    ] as const) {
      const to = `host=127.0.0.1 port=${postern.port(service)} user=me dbname=app`;
      const answers: Output[] = [];
      for (let i = 0; i < 3; i += 1)
        answers.push(await capture(program, ['--no-psqlrc', '-At', '-c', 'select 1', to]));
      assert.deepEqual(
        answers.map(({ code }) => code),
        [0, 0, 2],
      );
      assert.match(answers[2]?.stderr ?? '', what);
      assert.equal(await postern.metric('postern_refusals_total', { service, reason: 'rate' }), 1);
    }
  });
});

describe('a unix socket', { timeout: 60_000 }, () => {
  it('belongs to whom the configuration says, and to nobody who may not be made so', { skip }, async (t) => {
    const service = (more: object) => ({
      app: {
        connector: 'postgres',
        listenOn: `unix://${join(folder, 'owned.sock')}`,
        credentials: { username: 'x' },
        config: { host: 'localhost' },
        ...more,
      },
    });
    await start(t, service({ socketOwner: STRANGER, socketGroup: 'daemon', socketMode: '0660' }));
    const { uid, gid, mode } = await stat(join(folder, 'owned.sock'));
    assert.deepEqual([uid, gid, mode & 0o777], [STRANGER, 1, 0o660]);
    await assert.rejects(
      Postern.start(
        yaml(service({ listenOn: `unix://${join(folder, 'b.sock')}`, socketOwner: 'no-such-user' })),
        { env },
      ),
      /no user in \/etc\/passwd is called \\?"no-such-user/,
    );
  });

  it('cannot be kept to some users without the addon, so it is not opened', async () => {
    const path = join(folder, 'c.sock');
    const config = yaml({
      app: {
        connector: 'postgres',
        listenOn: `unix://${path}`,
        credentials: { username: 'x' },
        config: { host: 'localhost' },
        access: { uids: [0] },
      },
    });
    await assert.rejects(
      Postern.start(config, { env: { POSTERN_NATIVE: 'off' } }),
      /needs the native addon to ask the kernel about unix sockets/,
    );
    const probe = connect({ path });
    await assert.rejects(
      new Promise((resolve, reject) => probe.once('connect', resolve).once('error', reject)),
      { code: 'ENOENT' },
    );
  });
});
