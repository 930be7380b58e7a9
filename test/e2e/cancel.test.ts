import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import postgres from 'postgres';

import { cancelRequest } from '../support/fake-postgres.ts';
import type { Postern } from '../support/postern.ts';
import { installPsql } from '../support/servers/install.ts';
import { certificates, server, sql } from '../support/servers.ts';
import { Peer } from '../support/session.ts';
import {
  application,
  busy,
  eventually,
  loginOf,
  perform,
  type ServiceOptions,
  shared,
  towards,
} from './stage.ts';
import { Wire } from './wire.ts';

const parameters = [
  ['user', 'anybody'],
  ['database', 'app'],
] as const;

/** Sends a cancel request and waits until the other end has closed, as libpq does. */
async function cancel(port: number, pid: number, key: Uint8Array): Promise<void> {
  const asking = await Peer.connect(port);
  asking.send(cancelRequest(pid, key));
  assert.equal((await asking.rest()).length, 0, 'a cancel request has no answer');
  asking.end();
}

describe('a cancel request', () => {
  let postern: Postern | undefined;

  const scene = shared(async () => {
    const [bao, pg18, pg15, pgbouncer] = [
      await server('openbao'),
      await server('postgres18'),
      await server('postgres15'),
      await server('pgbouncer'),
    ];
    const { server: leaf, client, ca } = await certificates();
    const credentials = await loginOf(bao, 'scram_user');
    const listenTls = { cert: leaf.cert, key: leaf.key };
    const { tls, ...place } = towards(pg18);
    const services: Record<string, ServiceOptions> = {
      tls: { credentials, config: towards(pg18) },
      direct: { credentials, config: { ...place, tls: { ...tls, negotiation: 'direct' } } },
      clear: { credentials, config: towards(pg15) },
      'tls-both': { listenTls, credentials, config: towards(pg18) },
      certificate: {
        credentials: await loginOf(bao, 'cert_user'),
        config: { ...place, tls: { ...tls, cert: client.cert, key: client.key } },
      },
      socket: { credentials, config: { host: pg18.socketDir ?? '', port: pg18.port } },
      pgbouncer: {
        credentials,
        config: { host: 'localhost', port: pgbouncer.port, tls: { ca: pgbouncer.ca } },
      },
      full: { credentials, config: towards(pg18), limits: { maxConnections: 1 } },
    };
    if (pg18.socketDir === undefined) delete services['socket'];
    postern = await perform(bao, services);
    return { postern, pg18, pg15, ca };
  });

  after(() => postern?.stop());

  for (const [service, sslmode] of [
    ['tls', 'disable'],
    ['tls-both', 'require'],
    ['clear', 'disable'],
    ['pgbouncer', 'disable'],
  ] as const)
    it(`ends a query of psql at Ctrl-C, and the session lives on (${service})`, async (t) => {
      if (process.platform !== 'linux') return t.skip('script(1) is another program here');
      const set = await scene(t);
      if (!set) return;
      // Only a terminal makes psql interactive: from a pipe it ends after a cancel.
      const conninfo = `host=localhost port=${set.postern.port(service)} user=anybody dbname=app sslmode=${sslmode}`;
      const command = `${join(await installPsql(), 'psql')} --no-psqlrc --no-readline -P pager=off -v PROMPT1= -qAt "${conninfo}"`;
      const terminal = spawn('script', ['-qec', command, '/dev/null'], {
        env: { PATH: process.env['PATH'], HOME: '/nonexistent', TERM: 'dumb' },
      });
      const ended = once(terminal, 'close');
      try {
        let output = '';
        for (const stream of [terminal.stdout, terminal.stderr])
          stream.on('data', (text: Buffer) => (output += text.toString()));
        const pid = () => Number(/\n(\d+)\r?\n/.exec(output)?.[1]);
        terminal.stdin.write('select pg_backend_pid();\n');
        await eventually('the process id', () => pid() > 0);
        terminal.stdin.write('select pg_sleep(30);\n');
        await busy(service === 'clear' ? set.pg15 : set.pg18, pid());
        const started = performance.now();
        terminal.stdin.write('\u0003');
        await eventually('the end of the query', () =>
          /canceling statement due to user request/.test(output),
        );
        assert.ok(performance.now() - started < 20_000, `after ${performance.now() - started} ms`);
        terminal.stdin.write("select 'still ' || 'here', pg_backend_pid();\n");
        await eventually('an answer', () => output.includes(`still here|${pid()}`));
        terminal.stdin.write('\\q\n');
        await ended;
      } finally {
        terminal.kill('SIGKILL');
      }
    });

  it('works through postgres.js', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const client = postgres({
      host: '127.0.0.1',
      port: set.postern.port('tls'),
      user: 'anybody',
      database: 'app',
      max: 1,
    });
    try {
      const [row] = await client<[{ pid: number }]>`select pg_backend_pid() as pid`;
      const sleeping = client`select pg_sleep(30)`.execute();
      const failed = assert.rejects(sleeping, { code: '57014' });
      await busy(set.pg18, row.pid);
      const started = performance.now();
      sleeping.cancel();
      await failed;
      assert.ok(performance.now() - started < 20_000);
      assert.equal((await client`select 1 as one`)[0]?.['one'], 1);
    } finally {
      await client.end();
    }
  });

  it('works through pg', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const port = set.postern.port('tls');
    const client = await application(port);
    const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
    const pid = rows[0]?.pid ?? 0;
    // What pg keeps of BackendKeyData; its own Client.cancel sends the same packet.
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    assert.equal(processID, pid);
    const sleeping = client.query('select pg_sleep(30)');
    const failed = assert.rejects(sleeping, { code: '57014' });
    await busy(set.pg18, pid);
    const key = Buffer.alloc(4);
    key.writeInt32BE(secretKey);
    await cancel(port, processID, key);
    await failed;
    assert.equal((await client.query('select 1 as one')).rows[0]?.one, 1);
    await client.end();
  });

  for (const service of ['tls', 'direct', 'clear', 'certificate', 'socket', 'pgbouncer'])
    for (const [version, number, size] of [
      ['3.0', 0x0003_0000, 4],
      ['3.2', 0x0003_0002, 32],
    ] as const)
      it(`works with a key of protocol ${version}, which has ${size} bytes (${service})`, async (t) => {
        const set = await scene(t);
        if (!set) return;
        if (service === 'socket' && set.pg18.socketDir === undefined)
          return t.skip('the server has no socket here');
        const port = set.postern.port(service);
        using wire = await Wire.open(port, parameters, number);
        assert.equal(wire.refusal, undefined);
        const { pid, key } = wire.key;
        assert.equal(key.length, size);
        const backend = Number((await wire.ask('select pg_backend_pid()'))[0]?.[0]);
        // A pooler has process ids of its own.
        if (service !== 'pgbouncer') assert.equal(pid, backend);
        wire.start('select pg_sleep(30)');
        await busy(service === 'clear' ? set.pg15 : set.pg18, backend);
        const started = performance.now();
        await cancel(port, pid, key);
        assert.equal(await wire.answer(), '57014');
        assert.ok(performance.now() - started < 20_000, `after ${performance.now() - started} ms`);
        assert.deepEqual(await wire.ask('select 1'), [['1']]);
      });

  it('goes by the key, not by the port: any listener takes it', async (t) => {
    const set = await scene(t);
    if (!set) return;
    using wire = await Wire.open(set.postern.port('tls'), parameters);
    wire.start('select pg_sleep(30)');
    await busy(set.pg18, wire.key.pid);
    await cancel(set.postern.port('clear'), wire.key.pid, wire.key.key);
    assert.equal(await wire.answer(), '57014');
  });

  it('has a key that the server itself does not know, so that nobody can go around Postern with it', async (t) => {
    const set = await scene(t);
    if (!set) return;
    using wire = await Wire.open(set.postern.port('tls'), parameters);
    wire.start("select pg_sleep(1), 'went on'");
    await busy(set.pg18, wire.key.pid);
    await cancel(set.pg18.port, wire.key.pid, wire.key.key);
    assert.deepEqual(await wire.answer(), [['', 'went on']]);
  });

  it('does nothing with a wrong key', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const port = set.postern.port('tls');
    using wire = await Wire.open(port, parameters, 0x0003_0002);
    const { pid, key } = wire.key;
    wire.start("select pg_sleep(1), 'went on'");
    await busy(set.pg18, pid);
    const wrong = Buffer.from(key);
    wrong[31] = (wrong[31] ?? 0) ^ 1;
    const tries: (readonly [number, Uint8Array])[] = [
      [pid, wrong],
      [pid, key.subarray(0, 4)],
      [pid, key.subarray(0, 31)],
      [pid, Buffer.concat([key, Buffer.alloc(1)])],
      [pid + 1, key],
      [0, key],
      [-1, key],
      [pid, Buffer.alloc(32)],
      [pid, Buffer.alloc(256)],
    ];
    for (const [each, with_] of tries) await cancel(port, each, with_);
    assert.deepEqual(await wire.answer(), [['', 'went on']]);
    const line = await set.postern.logged((each) => each['cancel'] === 'unknown key');
    assert.equal(line['service'], 'tls');
  });

  it('does nothing with the key of a session that has ended', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const port = set.postern.port('tls');
    const wire = await Wire.open(port, parameters);
    const { pid, key } = wire.key;
    wire[Symbol.dispose]();
    await eventually('the end of the server process', async () => {
      const rows = await sql(set.pg18, 'select 1 from pg_stat_activity where pid = $1', [pid]);
      return rows.length === 0;
    });
    const known = () => set.postern.lines.filter((line) => line['cancel'] === 'forwarded').length;
    const unknown = () => set.postern.lines.filter((line) => line['cancel'] === 'unknown key').length;
    const before = { known: known(), unknown: unknown() };
    await cancel(port, pid, key);
    await eventually('the line of the request', () => unknown() > before.unknown);
    assert.equal(known(), before.known);
  });

  it('works while every place of the service is taken', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const port = set.postern.port('full');
    using wire = await Wire.open(port, parameters);
    using second = await Wire.open(port, parameters);
    assert.equal(second.refusal?.['C'], '53300');
    wire.start('select pg_sleep(30)');
    await busy(set.pg18, wire.key.pid);
    await cancel(port, wire.key.pid, wire.key.key);
    assert.equal(await wire.answer(), '57014');
  });

  it('harms nobody when it comes a hundred times', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const port = set.postern.port('tls');
    using wire = await Wire.open(port, parameters);
    using other = await Wire.open(port, parameters);
    const { pid, key } = wire.key;
    other.start("select pg_sleep(1), 'went on'");
    wire.start('select pg_sleep(30)');
    await busy(set.pg18, pid);
    await Promise.all(Array.from({ length: 100 }, () => cancel(port, pid, key)));
    assert.equal(await wire.answer(), '57014');
    assert.deepEqual(await other.answer(), [['', 'went on']]);
  });
});
