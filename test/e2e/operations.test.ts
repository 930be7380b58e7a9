import assert from 'node:assert/strict';
import { once } from 'node:events';
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Client } from 'pg';

import { fieldsOf, readMessage, startup } from '../support/fake-postgres.ts';
import { Postern } from '../support/postern.ts';
import { capture, type Output, run } from '../support/servers/process.ts';
import { canary } from '../support/servers.ts';
import { Peer } from '../support/session.ts';
import {
  application,
  ask,
  busy,
  configuration,
  environment,
  eventually,
  keep,
  loginOf,
  refused,
  type ServiceOptions,
  stage,
  towards,
} from './stage.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'postern-operations-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const onLinux = { skip: process.platform !== 'linux' && 'needs /proc and prlimit' };

const hello = startup([
  ['user', 'anybody'],
  ['database', 'app'],
]);

/** Servers, and a configuration with one service `db` in front of them. */
async function scene(t: TestContext, more: Partial<ServiceOptions> = {}) {
  const servers = await stage(t);
  if (!servers) return undefined;
  const { openbao, postgres18 } = servers;
  const credentials = await loginOf(openbao, 'scram_user');
  const service: ServiceOptions = { credentials, config: towards(postgres18), ...more };
  const text = configuration(openbao, { db: service });
  const start = (args: readonly string[] = []) => Postern.start(text, { env: environment(openbao), args });
  return { openbao, postgres18, service, text, start };
}

/** How the program ended, which must be long before it would have stopped waiting for sessions (30 s). */
async function ending(
  postern: Postern,
  patience = 20_000,
): Promise<{ code: number | null; signal: unknown }> {
  const late = sleep(patience, undefined, { ref: false }).then(() => assert.fail('still runs'));
  return await Promise.race([postern.exited(), late]);
}

/** Waits for the end of a connection, whatever its reason. */
function ended(client: Client): Promise<void> {
  return new Promise((resolve) => client.on('end', () => resolve()));
}

const inOrder = { code: 0, signal: null };

/** Runs a command line of the program to its end. */
async function command(
  args: readonly string[],
  { text, env = {} }: { readonly text?: string; readonly env?: Record<string, string> } = {},
): Promise<Output> {
  const path = join(mkdtempSync(join(folder, 'command-')), 'postern.yaml');
  if (text !== undefined) writeFileSync(path, text);
  const config = text === undefined ? [] : ['-f', path];
  const output = await capture(program, [...args, ...config], {
    env: { PATH: process.env['PATH'], HOME: folder, POSTERN_ADMIN_LISTEN: 'off', ...env },
    timeout: 100_000,
  });
  for (const secret of Object.values(canary))
    assert.ok(!`${output.stdout}${output.stderr}`.includes(secret), 'a secret was printed');
  return output;
}

describe('SIGTERM', { timeout: 240_000 }, () => {
  it('lets a running query and an open transaction finish, refuses who comes now, and ends with 0', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    const port = postern.port('db');
    const [asking, inTransaction] = [await application(port), await application(port)];
    await inTransaction.query('begin');
    const { rows } = await asking.query<{ pid: number }>('select pg_backend_pid() as pid');
    const answer = asking.query<{ answer: number }>('select 42 as answer, pg_sleep(1)');
    await busy(at.postgres18, rows[0]?.pid ?? 0);
    assert.equal((await postern.admin('/readyz')).status, 200);

    postern.signal('SIGTERM');
    await postern.logged((line) => line.msg === 'stopping');
    // The listener stays for cancel requests: whoever wants a session is told that there are no new ones.
    assert.equal((await refused(port)).code, '57P03');
    assert.deepEqual(await postern.admin('/readyz'), { status: 503, text: 'draining\n' });
    assert.equal((await postern.admin('/livez')).status, 200);
    assert.equal(await postern.metric('postern_sessions_active', { service: 'db' }), 2);
    const status = JSON.parse((await postern.admin('/status')).text) as Record<string, unknown>;
    assert.equal(status['state'], 'draining');
    assert.match((await postern.admin('/')).text, /Draining/);
    assert.equal((await answer).rows[0]?.answer, 42);
    await asking.end();
    assert.equal((await inTransaction.query('select 1')).rowCount, 1);
    await inTransaction.query('commit');
    await inTransaction.end();
    assert.deepEqual(await ending(postern), inOrder);
    assert.equal(postern.lines.at(-1)?.msg, 'stopped');
  });

  it('ends at once when there is no session', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    await ask(postern.port('db'), 'select 1');
    postern.signal('SIGTERM');
    assert.deepEqual(await ending(postern), inOrder);
  });

  it('is the same as SIGINT', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    postern.signal('SIGINT');
    assert.deepEqual(await ending(postern), inOrder);
  });

  it('cuts what is not done after drainTimeout, and still ends with 0', async (t) => {
    const at = await scene(t, { limits: { drainTimeout: '600ms' } });
    if (!at) return;
    await using postern = await at.start();
    const [asking, idle] = [await application(postern.port('db')), await application(postern.port('db'))];
    const gone = ended(idle);
    const { rows } = await asking.query<{ pid: number }>('select pg_backend_pid() as pid');
    const query = assert.rejects(asking.query('select pg_sleep(60)'));
    await busy(at.postgres18, rows[0]?.pid ?? 0);
    const started = performance.now();
    postern.signal('SIGTERM');
    await Promise.all([query, gone]);
    const waited = performance.now() - started;
    assert.ok(waited >= 550 && waited < 20_000, `cut after ${Math.round(waited)} ms`);
    assert.deepEqual(await ending(postern), inOrder);
    const cut = postern.lines.filter(({ outcome }) => outcome === 'SHUTDOWN');
    assert.equal(cut.length, 2);
  });

  it('tells a client that was about to ask for a session that it does not get one now', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    const peer = await Peer.connect(postern.port('db'));
    // Whoever is served after it shows that it was accepted.
    await ask(postern.port('db'), 'select 1');
    postern.signal('SIGTERM');
    await postern.logged((line) => line.msg === 'stopping');
    peer.send(hello);
    const { type, body } = await readMessage(peer);
    assert.deepEqual([type, fieldsOf(body)['C']], ['E', '57P03']);
    peer.end();
    assert.deepEqual(await ending(postern), inOrder);
  });

  it('that comes a second time ends the program at once, and says so in the exit code', async (t) => {
    const at = await scene(t);
    if (!at) return;
    for (const [second, code] of [
      ['SIGTERM', 143],
      ['SIGINT', 130],
    ] as const) {
      await using postern = await at.start();
      const client = await application(postern.port('db'));
      const gone = ended(client);
      postern.signal('SIGTERM');
      await postern.logged((line) => line.msg === 'stopping');
      assert.equal((await client.query('select 1')).rowCount, 1);
      postern.signal(second);
      assert.deepEqual(await ending(postern), { code, signal: null });
      await gone;
      assert.ok(postern.lines.some((line) => line.msg === 'ended without waiting for sessions'));
    }
  });

  it('is not disturbed by a SIGHUP while sessions finish', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    const client = await application(postern.port('db'));
    postern.signal('SIGTERM');
    await postern.logged((line) => line.msg === 'stopping');
    await postern.writeConfig(configuration(at.openbao, { db: at.service, late: at.service }));
    postern.signal('SIGHUP');
    // Two round trips: the signal has long been delivered.
    await client.query('select pg_sleep(0.2)');
    assert.equal((await client.query('select 1')).rowCount, 1);
    await client.end();
    assert.deepEqual(await ending(postern), inOrder);
    assert.ok(!postern.lines.some(({ service }) => service === 'late'), 'opened a listener while it drained');
  });
});

describe('the exit code', { timeout: 240_000 }, () => {
  const credentials = { username: { from: 'env', get: 'ROLE' } };
  const service = (listenOn: string) => ({
    version: 2,
    services: {
      db: {
        connector: 'postgres',
        listenOn,
        credentials,
        config: { host: '127.0.0.1', tls: { mode: 'disable' } },
      },
    },
  });
  const good = JSON.stringify(service('tcp://127.0.0.1:0'));

  it('is 1 for a configuration that cannot be used, with every problem and its place', async () => {
    for (const args of [['run'], ['check'], []]) {
      const bad = service('tcp://127.0.0.1:0');
      const text = JSON.stringify(
        { ...bad, services: { db: { ...bad.services.db, listenOm: 'x', connector: 'postgre' } } },
        null,
        1,
      );
      const { code, stdout, stderr } = await command(args, { text });
      assert.equal(code, 1, `postern ${args.join(' ')}`);
      assert.match(stdout + stderr, /listenOm/);
      assert.match(stdout + stderr, /postern\.yaml:\d+:\d+/);
    }
    assert.equal((await command(['run', '-f', join(folder, 'no-such-file.yaml')])).code, 1);
    assert.equal((await command(['run'], { text: 'version: [' })).code, 1);
  });

  it('is 2 for a command line that cannot be understood, with the usage', async () => {
    for (const args of [['walk'], ['run', '--fast'], ['check', 'this'], ['run', '--log-level', 'loud']]) {
      const { code, stderr } = await command(args);
      assert.equal(code, 2, args.join(' '));
      assert.match(stderr, /postern \[COMMAND\] \[OPTIONS\]/);
    }
  });

  it('is 3 for an address that another program listens on', async () => {
    const other = createServer();
    await once(other.listen(0, '127.0.0.1'), 'listening');
    const { port } = other.address() as AddressInfo;
    try {
      for (const [text, env] of [
        [JSON.stringify(service(`tcp://127.0.0.1:${port}`)), {}],
        [good, { POSTERN_ADMIN_LISTEN: `tcp://127.0.0.1:${port}` }],
      ] as const) {
        const { code, stdout } = await command(['run'], { text, env });
        assert.equal(code, 3);
        assert.match(stdout, new RegExp(`cannot listen on tcp://127\\.0\\.0\\.1:${port}`));
      }
    } finally {
      other.close();
    }
  });

  it('is 70 for a bug, also where that leaves something open', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const bug = join(folder, 'bug.ts');
    const broker = new URL('../../src/broker.ts', import.meta.url).href;
    writeFileSync(
      bug,
      `import { Broker } from '${broker}';\nBroker.prototype.stop = () => Promise.reject(new Error('a bug'));\n`,
    );
    await using postern = await Postern.start(at.text, {
      env: environment(at.openbao),
      nodeOptions: `--import=${bug}`,
    });
    postern.signal('SIGTERM');
    assert.deepEqual(await ending(postern), { code: 70, signal: null });
    assert.match(postern.output, /^postern: unexpected failure$/m);
  });

  it('is 0 for what only prints', async () => {
    for (const args of [['version'], ['--version'], ['help'], ['schema'], ['run', '--help']])
      assert.equal((await command(args)).code, 0, args.join(' '));
    const { code, stdout } = await command(['check'], { text: good });
    assert.equal(code, 0);
    assert.match(stdout, /^ok: 1 service\(s\), 1 provider\(s\)$/m);
  });
});

describe('check --connect', { timeout: 240_000 }, () => {
  it('logs in everywhere once, beside a program that serves the same file', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { openbao, service } = at;
    await using postern = await at.start();
    const listenOn = `tcp://127.0.0.1:${postern.port('db')}`;
    const text = configuration(openbao, { db: { ...service, listenOn }, other: service });
    const { code, stdout, stderr } = await command(['check', '--connect'], {
      text,
      env: environment(openbao),
    });
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, /^db: logged in .* scram_user/m);
    assert.match(stdout, /^other: logged in .* scram_user/m);
    await ask(postern.port('db'), 'select 1');
  });

  it('ends with 4 and a line for each service when one of them cannot log in', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const { openbao, postgres18, service } = at;
    const wrong = await keep(openbao, { username: 'scram_user', password: 'wrong-s3cr3t' });
    const missing = { from: 'bao', get: 'secret/app/no-such-thing#password' };
    const text = configuration(openbao, {
      good: service,
      rejected: { ...service, credentials: wrong.references },
      missing: { ...service, credentials: { ...wrong.references, password: missing } },
      down: { ...service, config: { ...towards(postgres18), port: 1 } },
      untrusted: {
        ...service,
        config: { host: 'localhost', port: postgres18.port, tls: { mode: 'verify-full' } },
      },
    });
    const { code, stdout } = await command(['check', '--connect'], { text, env: environment(openbao) });
    assert.equal(code, 4, stdout);
    assert.match(stdout, /^good: logged in /m);
    assert.match(stdout, /^rejected: FAILED UPSTREAM_REJECTED: /m);
    assert.match(stdout, /^missing: FAILED PROVIDER_FAILED: .*secret\/app\/no-such-thing/m);
    assert.match(stdout, /^down: FAILED UPSTREAM_UNREACHABLE: .*ECONNREFUSED/m);
    if (postgres18.ca !== undefined) assert.match(stdout, /^untrusted: FAILED UPSTREAM_TLS: /m);
    assert.ok(!stdout.includes('wrong-s3cr3t'), 'the password was printed');
  });

  it('ends with 4 when the store cannot be asked', async (t) => {
    const at = await scene(t);
    if (!at) return;
    const text = configuration({ ...at.openbao, address: 'http://127.0.0.1:1' }, { db: at.service });
    const { code, stdout } = await command(['check', '--connect'], { text, env: environment(at.openbao) });
    assert.equal(code, 4, stdout);
    assert.match(stdout, /^db: FAILED PROVIDER_UNAVAILABLE: provider "bao": /m);
  });
});

describe('a unix socket', { timeout: 240_000 }, () => {
  let sockets = 0;
  /** The folder is the host that clients name, the file has the name they expect. */
  function place(): { readonly host: string; readonly path: string; readonly listenOn: string } {
    sockets += 1;
    const host = mkdtempSync(join(folder, `socket-${sockets}-`));
    const path = join(host, '.s.PGSQL.5432');
    return { host, path, listenOn: `unix://${path}` };
  }
  const via = (host: string) => ask(5432, 'select 42 as answer', { host });
  const mode = (path: string) => (lstatSync(path).mode & 0o777).toString(8);

  it('serves its owner only, unless told otherwise, and is gone with the program', async (t) => {
    for (const [socketMode, expected] of [
      [undefined, '600'],
      ['0660', '660'],
      ['0666', '666'],
    ] as const) {
      const { host, path, listenOn } = place();
      const at = await scene(t, { listenOn, ...(socketMode && { socketMode }) });
      if (!at) return;
      await using postern = await at.start();
      assert.equal(mode(path), expected);
      assert.deepEqual(await via(host), { answer: 42 });
      const line = await postern.logged(({ msg }) => msg === 'session ended');
      assert.equal(line['client'], 'unix');
      assert.equal(await postern.stop(), 0);
      assert.ok(!existsSync(path), 'the socket is gone');
    }
  });

  it('that a killed program left behind is replaced', async (t) => {
    const { host, path, listenOn } = place();
    const at = await scene(t, { listenOn });
    if (!at) return;
    const first = await at.start();
    first.signal('SIGKILL');
    await first.exited();
    await first.stop();
    assert.ok(lstatSync(path).isSocket(), 'the dead socket is there');
    await using second = await at.start();
    assert.deepEqual(await via(host), { answer: 42 });
    assert.equal(await second.stop(), 0);
  });

  it('that a killed program left behind is replaced, where it was the one for health and metrics', async (t) => {
    const { path, listenOn } = place();
    const at = await scene(t);
    if (!at) return;
    const first = await at.start(['--admin-listen', listenOn]);
    first.signal('SIGKILL');
    await first.exited();
    await first.stop();
    assert.ok(lstatSync(path).isSocket(), 'the dead socket is there');
    await using second = await at.start(['--admin-listen', listenOn]);
    assert.equal(await second.stop(), 0);
  });

  it('that another program listens on is left alone, and the exit code is 3', async (t) => {
    const { host, path, listenOn } = place();
    const at = await scene(t, { listenOn });
    if (!at) return;
    await using postern = await at.start();
    const { code, stdout } = await command(['run'], { text: at.text, env: environment(at.openbao) });
    assert.equal(code, 3, stdout);
    assert.match(stdout, /another process listens there/);
    assert.ok(lstatSync(path).isSocket());
    assert.deepEqual(await via(host), { answer: 42 });
    assert.equal(await postern.stop(), 0);
  });

  it('is not made where there is a file or a symbolic link, which is left alone, and the exit code is 3', async (t) => {
    for (const make of [
      (path: string) => writeFileSync(path, 'precious'),
      (path: string) => {
        writeFileSync(`${path}.target`, 'precious');
        symlinkSync(`${path}.target`, path);
      },
    ]) {
      const { path, listenOn } = place();
      const at = await scene(t, { listenOn });
      if (!at) return;
      make(path);
      const { code, stdout } = await command(['run'], { text: at.text, env: environment(at.openbao) });
      assert.equal(code, 3, stdout);
      assert.match(stdout, /a file of another kind/);
      assert.equal(readFileSync(path, 'utf8'), 'precious');
    }
  });

  it('cannot be made in a folder that is not there: exit code 3', async (t) => {
    const { host } = place();
    const at = await scene(t, { listenOn: `unix://${host}/missing/.s.PGSQL.5432` });
    if (!at) return;
    const { code, stdout } = await command(['run'], { text: at.text, env: environment(at.openbao) });
    assert.equal(code, 3, stdout);
    assert.match(stdout, /cannot listen on unix:.*missing/);
  });
});

describe('health and metrics', { timeout: 240_000 }, () => {
  it('answer what is asked, and nothing else', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    await ask(postern.port('db'), 'select 1');
    assert.deepEqual(await postern.admin('/livez'), { status: 200, text: 'ok\n' });
    assert.deepEqual(await postern.admin('/startupz'), { status: 200, text: 'ok\n' });
    assert.deepEqual(await postern.admin('/readyz'), { status: 200, text: 'ok\n' });
    const { text } = await postern.admin('/readyz?verbose');
    assert.match(
      text,
      new RegExp(`^service db: listening on tcp://127\\.0\\.0\\.1:${postern.port('db')}, 0 of`, 'm'),
    );
    assert.match(text, /^provider bao: ok$/m);
    assert.equal((await postern.admin('/')).status, 200);
    assert.equal((await postern.admin('/nowhere')).status, 404);
    assert.equal((await fetch(`${postern.adminUrl}/metrics`, { method: 'POST' })).status, 405);
    assert.equal((await fetch(`${postern.adminUrl}/livez`, { method: 'HEAD' })).status, 200);
    await eventually(
      'the session to be counted',
      async () => (await postern.metric('postern_sessions_total', { service: 'db', outcome: 'ok' })) === 1,
    );
    assert.equal(await postern.metric('postern_login_duration_seconds_count', { service: 'db' }), 1);
    assert.ok((await postern.metric('postern_relayed_bytes_total', { service: 'db', from: 'upstream' })) > 0);
  });
});

/** Ports of 127.0.0.1 that a process listens on. */
function listeningPorts(pid: number): number[] {
  const inodes = new Set(
    readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1] ?? [];
      } catch {
        return [];
      }
    }),
  );
  return ['tcp', 'tcp6']
    .flatMap((table) => readFileSync(`/proc/net/${table}`, 'utf8').split('\n').slice(1))
    .map((line) => line.trim().split(/\s+/))
    .filter(([, , , state, , , , , , inode]) => state === '0A' && inodes.has(inode ?? ''))
    .map(([, local = '']) => Number.parseInt(local.split(':')[1] ?? '', 16))
    .toSorted((a, b) => a - b);
}

/** Seconds of processor time that a process has used. */
async function processorTime(pid: number): Promise<number> {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ticks = Number((await run('getconf', ['CLK_TCK'])).stdout);
  return (Number(fields[11]) + Number(fields[12])) / ticks;
}

describe('the running program', { timeout: 60_000, ...onLinux }, () => {
  it('reloads when it is sent SIGUSR1, as Secretless does, and opens no debugger', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    const admin = Number(new URL(postern.adminUrl).port);
    const expected = [postern.port('db'), admin].toSorted((a, b) => a - b);
    for (let i = 0; i < 3; i++) {
      postern.signal('SIGUSR1');
      await eventually(
        'the reload',
        () => postern.lines.filter(({ msg }) => msg === 'configuration reloaded').length > i,
      );
    }
    assert.deepEqual(listeningPorts(postern.pid), expected);
    assert.doesNotMatch(postern.output, /debugger/i);
    await ask(postern.port('db'), 'select 1');
  });

  it('survives the lack of descriptors: it does not spin, and accepts again as soon as it has some', async (t) => {
    const at = await scene(t);
    if (!at) return;
    await using postern = await at.start();
    const port = postern.port('db');
    const session = await application(port);
    const used = readdirSync(`/proc/${postern.pid}/fd`).length;
    const limit = async (soft: number | string) => {
      await run('prlimit', [`--pid=${postern.pid}`, `--nofile=${soft}:`]);
    };
    const usual = /^Max open files\s+(\d+)/m.exec(readFileSync(`/proc/${postern.pid}/limits`, 'utf8'))?.[1];
    await limit(used + 10);

    const sockets: Socket[] = [];
    let closed = 0;
    for (let i = 0; i < 60; i++) {
      const socket = connect({ host: '127.0.0.1', port });
      socket.on('error', () => {});
      socket.on('close', () => (closed += 1));
      socket.resume();
      sockets.push(socket);
    }
    // Whom it has no descriptor for is not left waiting.
    await eventually('those beyond the limit to be cut off', () => closed >= 40);
    const [before, started] = [await processorTime(postern.pid), performance.now()];
    await sleep(1500);
    const busyness = (await processorTime(postern.pid)) - before;
    const share = busyness / ((performance.now() - started) / 1000);
    t.diagnostic(`${closed} of 60 cut off; then ${Math.round(share * 100)} % of a processor`);
    assert.ok(share < 0.25, `used ${Math.round(share * 100)} % of a processor`);
    assert.ok(postern.lines.length < 500, `${postern.lines.length} lines in the log`);
    assert.equal((await session.query('select 1')).rowCount, 1);

    for (const socket of sockets) socket.destroy();
    await eventually(
      'the places to be free again',
      () => readdirSync(`/proc/${postern.pid}/fd`).length <= used + 1,
    );
    // Each needs a second descriptor for the server: some are refused in so many words, and nobody hangs.
    const crowd = await Promise.allSettled(Array.from({ length: 30 }, () => ask(port, 'select 1')));
    const turned = crowd.filter(({ status }) => status === 'rejected').length;
    t.diagnostic(`${30 - turned} of 30 that came at once were served`);
    assert.ok(turned > 0, 'there were descriptors for all of them');
    await limit(usual ?? 1024);
    await eventually('to be served again', async () => {
      try {
        return (await ask(port, 'select 42 as answer'))['answer'] === 42;
      } catch {
        return false;
      }
    });
    assert.equal((await session.query('select 1')).rowCount, 1);
    await session.end();
  });
});
