import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { PassThrough, type Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { after, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as tlsConnect } from 'node:tls';
import { Client } from 'pg';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';

import { psql } from '../support/clients/psql.ts';
import { cstring, fieldsOf, message, messagesOf, readUntil, startup } from '../support/fake-postgres.ts';
import type { Postern } from '../support/postern.ts';
import { certificates, type PostgresInfo, server, sql, withServer } from '../support/servers.ts';
import { Chopper, Peer } from '../support/session.ts';
import { application, ask, eventually, loginOf, perform, shared, stage, towards, viaPsql } from './stage.ts';
import { Wire } from './wire.ts';

/** A little more than 200 MiB in the text format of COPY, the same every time. */
const ROWS = 110_000;
const rows = (count: number) => `select n, repeat(md5(n::text), 60) from generate_series(1, ${count}) n`;
const MB = 1024 * 1024;
/** About what 50,000 of them are. */
const STALLED = 92 * MB;

/** How much of a stalled transfer may lie in the memory of Postern. */
const MOST_GROWTH = 64 * MB;

/** Passes a stream on and keeps its length and SHA-256. */
class Measured extends Transform {
  bytes = 0;
  readonly #hash = createHash('sha256');

  override _transform(chunk: Buffer, _: string, done: (error: null, chunk: Buffer) => void): void {
    this.bytes += chunk.length;
    this.#hash.update(chunk);
    done(null, chunk);
  }

  digest(): string {
    return this.#hash.digest('hex');
  }
}

async function measure(stream: Readable): Promise<{ bytes: number; sha256: string }> {
  const measured = new Measured();
  await pipeline(stream, measured, async (chunks) => {
    for await (const _ of chunks);
  });
  return { bytes: measured.bytes, sha256: measured.digest() };
}

/** A connection that does not go through Postern, for comparison. */
async function direct(postgres: PostgresInfo): Promise<Client> {
  const client = new Client({ host: '127.0.0.1', port: postgres.port, user: 'trust_user', database: 'app' });
  await client.connect();
  return client;
}

function residentBytes(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}

describe('a session that carries much', () => {
  let postern: Postern | undefined;

  const scene = shared(async () => {
    const [bao, pg18, pg15] = [
      await server('openbao'),
      await server('postgres18'),
      await server('postgres15'),
    ];
    const { server: leaf } = await certificates();
    const credentials = await loginOf(bao, 'scram_user');
    const listenTls = { cert: leaf.cert, key: leaf.key };
    postern = await perform(bao, {
      tls: { credentials, config: towards(pg18) },
      'tls-both': { listenTls, credentials, config: towards(pg18) },
      'tls-local': { listenTls, credentials, config: towards(pg15) },
      clear: { credentials, config: { ...towards(pg15), replication: true } },
    });
    const behind: Readonly<Record<string, PostgresInfo>> = {
      tls: pg18,
      'tls-both': pg18,
      'tls-local': pg15,
      clear: pg15,
    };
    return { postern, behind, pg18 };
  });

  after(() => postern?.stop());

  const expected = shared(async () => {
    const client = await direct(await server('postgres18'));
    try {
      return await measure(client.query(copyTo(`copy (${rows(ROWS)}) to stdout`)));
    } finally {
      await client.end();
    }
  });

  for (const service of ['tls', 'clear'])
    it(`copies 200 MB out and in again, byte for byte (${service})`, async (t) => {
      const [set, plain] = [await scene(t), await expected(t)];
      if (!set || !plain) return;
      assert.ok(plain.bytes > 200 * MB);
      const table = `bulk_${process.pid}_${service}`;
      const port = set.postern.port(service);
      const [reader, writer] = [await application(port), await application(port)];
      try {
        await writer.query(`create unlogged table ${table} (n int, words text)`);
        const out = new Measured();
        const started = performance.now();
        await pipeline(
          reader.query(copyTo(`copy (${rows(ROWS)}) to stdout`)),
          out,
          writer.query(copyFrom(`copy ${table} from stdin`)),
        );
        const seconds = (performance.now() - started) / 1000;
        assert.deepEqual({ bytes: out.bytes, sha256: out.digest() }, plain);
        const back = await measure(
          reader.query(copyTo(`copy (select * from ${table} order by n) to stdout`)),
        );
        assert.deepEqual(back, plain);
        t.diagnostic(`${(plain.bytes / MB).toFixed(0)} MB out and in at once: ${seconds.toFixed(1)} s`);
      } finally {
        await writer.query(`drop table if exists ${table}`);
        await Promise.all([reader.end(), writer.end()]);
      }
    });

  /** Logs in by hand, so that the test decides when to read. */
  const raw = async (port: number, tls: boolean): Promise<Socket> => {
    const plain = connect({ host: '127.0.0.1', port, noDelay: true });
    await once(plain, 'connect');
    let socket: Socket = plain;
    if (tls) {
      const secure = tlsConnect({ socket: plain, ALPNProtocols: ['postgresql'], rejectUnauthorized: false });
      await once(secure, 'secureConnect');
      socket = secure;
    }
    socket.on('error', () => {});
    socket.write(
      startup([
        ['user', 'anybody'],
        ['database', 'app'],
      ]),
    );
    let greeting = Buffer.alloc(0);
    while (!greeting.subarray(-6).equals(Buffer.from('5a0000000549', 'hex'))) {
      const chunk = socket.read() as Buffer | null;
      if (chunk) greeting = Buffer.concat([greeting, chunk]);
      else await once(socket, 'readable');
    }
    return socket;
  };

  /** What Postern has in memory: all of it, and the buffers alone, which may lie where freed memory was. */
  const held = async (program: Postern) => ({
    resident: residentBytes(program.pid),
    buffers: await program.metric('nodejs_external_memory_bytes'),
  });

  /** Starts a transfer and waits until no more bytes of it move; gives how much memory grew. */
  const growthOfStalled = async (
    program: Postern,
    service: string,
    from: 'client' | 'upstream',
    start: () => void,
  ): Promise<number> => {
    const moved = () => program.metric('postern_relayed_bytes_total', { service, from });
    const before = { ...(await held(program)), moved: await moved() };
    start();
    let seen = before.moved;
    await eventually('the transfer to stall', async () => {
      const now = await moved();
      const still = now === seen && now > before.moved;
      seen = now;
      await sleep(250);
      return still;
    });
    assert.ok(seen - before.moved < STALLED / 2, 'the transfer did not stall');
    const { resident, buffers } = await held(program);
    return Math.max(resident - before.resident, buffers - before.buffers);
  };

  for (const service of ['tls', 'clear', 'tls-both', 'tls-local'])
    it(`holds little of a result while its reader stalls, and loses nothing of it (${service})`, async (t) => {
      const set = await scene(t);
      if (!set) return;
      const socket = await raw(set.postern.port(service), service.startsWith('tls-'));
      // A test that fails leaves no connection open, which would keep the whole file from ending.
      using _ = { [Symbol.dispose]: () => socket.destroy() };
      const growth = await growthOfStalled(set.postern, service, 'upstream', () =>
        socket.write(message('Q', cstring(`copy (${rows(50_000)}) to stdout`))),
      );
      t.diagnostic(`grew by ${(growth / MB).toFixed(1)} MB`);
      assert.ok(growth < MOST_GROWTH, `grew by ${growth} bytes`);

      // The reader wakes up: every byte of it, in order.
      const client = await direct(set.behind[service] ?? assert.fail());
      const plain = await measure(client.query(copyTo(`copy (${rows(50_000)}) to stdout`)));
      await client.end();
      const all = new PassThrough();
      socket.pipe(all);
      const data = await measure(all.pipe(new CopyData(() => socket.end(message('X')))));
      assert.deepEqual(data, plain);
    });

  for (const service of ['tls', 'clear', 'tls-local'])
    it(`holds little of what is sent while the server stalls, and loses nothing of it (${service})`, async (t) => {
      const set = await scene(t);
      if (!set) return;
      const postgres = set.behind[service] ?? assert.fail();
      const table = `stall_${process.pid}_${service.replace('-', '_')}`;
      await sql(
        postgres,
        `create unlogged table ${table} (n int, words text);
         create function ${table}() returns trigger language plpgsql as
           $$ begin if new.n = 1 then perform pg_advisory_xact_lock(${process.pid}); end if; return new; end $$;
         create trigger stall before insert on ${table} for each row execute function ${table}();
         grant all on ${table} to public`,
      );
      const holder = await direct(postgres);
      const ends: Client[] = [];
      let copying: Promise<void> | undefined;
      try {
        await holder.query('select pg_advisory_lock($1)', [process.pid]);
        const client = await application(
          set.postern.port(service),
          service === 'tls-local' ? { ssl: { rejectUnauthorized: false } } : {},
        );
        const source = await direct(postgres);
        ends.push(client, source);
        const growth = await growthOfStalled(set.postern, service, 'client', () => {
          copying = pipeline(
            source.query(copyTo(`copy (${rows(50_000)}) to stdout`)),
            client.query(copyFrom(`copy ${table} from stdin`)),
          );
        });
        t.diagnostic(`grew by ${(growth / MB).toFixed(1)} MB`);
        assert.ok(growth < MOST_GROWTH, `grew by ${growth} bytes`);
        await holder.query('select pg_advisory_unlock($1)', [process.pid]);
        await copying;
        const sums = 'count(*)::int, md5(string_agg(md5(n || words), null order by n))';
        const [there] = await sql(postgres, `select ${sums} from ${table}`);
        const [wanted] = await sql(postgres, `select ${sums} from (${rows(50_000)}) as r (n, words)`);
        assert.deepEqual(there, wanted);
      } finally {
        // Its lock goes with it, so that the copy ends also where the test has failed.
        await holder.end();
        await copying?.catch(() => {});
        await Promise.all(ends.map((client) => client.end()));
        await sql(postgres, `drop table ${table}; drop function ${table}()`);
      }
    });

  it('brings notifications at once, up to the longest there are', async (t) => {
    const set = await scene(t);
    if (!set) return;
    const port = set.postern.port('tls');
    const [ear, mouth] = [await application(port), await application(port)];
    const heard: (string | undefined)[] = [];
    ear.on('notification', ({ payload }) => heard.push(payload));
    const channel = `channel_${process.pid}`;
    await ear.query(`listen ${channel}`);
    for (const payload of ['', 'hello', 'x'.repeat(7999)]) {
      const [started, count] = [performance.now(), heard.length];
      await mouth.query('select pg_notify($1, $2)', [channel, payload]);
      await eventually('the notification', () => heard.length > count);
      assert.equal(heard.at(-1), payload);
      assert.ok(performance.now() - started < 8000);
    }
    await Promise.all([ear.end(), mouth.end()]);
  });

  it('answers a thousand queries that are sent before any answer is read', async (t) => {
    const set = await scene(t);
    if (!set) return;
    using wire = await Wire.open(set.postern.port('tls'), [
      ['user', 'anybody'],
      ['database', 'app'],
    ]);
    const parse = (text: string) => message('P', cstring(''), cstring(text), Buffer.alloc(2));
    const bind = message('B', cstring(''), cstring(''), Buffer.alloc(6));
    const execute = message('E', cstring(''), Buffer.alloc(4));
    const sync = message('S');
    wire.peer.send(
      ...Array.from({ length: 1000 }, (_, i) => [parse(`select ${i}`), bind, execute, sync]).flat(),
    );
    for (let i = 0; i < 1000; i += 1) assert.deepEqual(await wire.answer(), [[String(i)]]);
  });

  it('takes a query that comes together with the startup message, as the server does', async (t) => {
    const set = await scene(t);
    if (!set) return;
    for (const service of ['tls', 'clear']) {
      const peer = await Peer.connect(set.postern.port(service));
      const query = message('Q', cstring("select 'early'"));
      peer.send(
        startup([
          ['user', 'anybody'],
          ['database', 'app'],
        ]),
        query,
        message('X'),
      );
      const messages = messagesOf(await peer.rest());
      assert.ok(messages.some(({ type, body }) => type === 'D' && body.includes('early')));
      assert.equal(messages.filter(({ type }) => type === 'Z').length, 2);
      peer.end();
    }
  });

  it('carries pgbench, pg_dump and pg_basebackup', async (t) => {
    const set = await scene(t);
    if (!set) return;
    // The programs of Debian 12 are of version 15, and pg_dump takes no newer server.
    const port = String(set.postern.port('clear'));
    const place = ['-h', '127.0.0.1', '-p', port, '-U', 'anybody'];
    const script = 'select count(*) from notes where id = :client_id;\n';
    const bench = await psql([...place, '-n', '-c', '8', '-t', '50', '-f', '-', 'app'], {
      program: 'pgbench',
      input: script,
    });
    assert.match(bench.stdout, /number of transactions actually processed: 400\/400/, bench.stderr);
    const dump = await psql([...place, '-t', 'notes', '--no-owner', 'app'], { program: 'pg_dump' });
    assert.match(dump.stdout, /^COPY public\.notes[^]*note 100$/m, dump.stderr);
    // Streams a whole cluster over a replication connection.
    const base = await psql([...place, '-D', '-', '-F', 'tar', '-X', 'fetch', '-c', 'fast', '-z'], {
      program: 'pg_basebackup',
    });
    assert.equal(base.code, 0, base.stderr);
    assert.ok(base.stdout.length > MB);
  });

  it('works when every byte comes by itself', async (t) => {
    const set = await scene(t);
    if (!set) return;
    await using chopper = await Chopper.start(set.postern.port('tls'));
    const row = await ask(
      chopper.port,
      "select string_agg(md5(n::text), ',' order by n) as it from generate_series(1, 100) n",
    );
    const [wanted] = await sql(
      set.pg18,
      "select string_agg(md5(n::text), ',' order by n) as it from generate_series(1, 100) n",
    );
    assert.deepEqual(row, wanted);
  });
});

/** Takes the payload of CopyData out of a server's stream; calls back when the server is ready again. */
class CopyData extends Transform {
  #pending = Buffer.alloc(0);
  readonly #onReady: () => void;

  constructor(onReady: () => void) {
    super();
    this.#onReady = onReady;
  }

  override _transform(chunk: Buffer, _: string, done: (error?: Error) => void): void {
    let rest = this.#pending.length > 0 ? Buffer.concat([this.#pending, chunk]) : chunk;
    while (rest.length >= 5 && rest.length > rest.readInt32BE(1)) {
      const end = 1 + rest.readInt32BE(1);
      const type = rest.toString('latin1', 0, 1);
      if (type === 'd') this.push(rest.subarray(5, end));
      if (type === 'E') return done(new Error(JSON.stringify(fieldsOf(rest.subarray(5, end)))));
      if (type === 'Z') this.#onReady();
      rest = rest.subarray(end);
    }
    this.#pending = Buffer.from(rest);
    done();
  }
}

describe('many sessions at once', () => {
  const descriptors = (pid: number) => readdirSync(`/proc/${pid}/fd`).length;

  // Behind TLS a relay of JavaScript has the sessions, and else the one that the machine has.
  for (const [behind, name] of [
    ['TLS', 'postgres18'],
    ['no TLS', 'postgres15'],
  ] as const)
    it(`serves 500 with ${behind} behind it: all open, all ask, all leave, and nothing is left of them`, async (t) => {
      const set = await stage(t);
      const postgres = set && (await withServer(t, name));
      if (!postgres) return;
      // Nobody is to be turned away because the machine is slow: 500 logins at once take the time that it needs.
      const patience = 150_000;
      await using postern = await perform(set.openbao, {
        db: {
          credentials: await loginOf(set.openbao, 'scram_user'),
          config: { ...towards(postgres), connectTimeout: '150s' },
          limits: { loginTimeout: '150s' },
        },
      });
      const port = postern.port('db');
      await ask(port, 'select 1');
      const active = () => postern.metric('postern_sessions_active', { service: 'db' });
      await eventually('the first session to end', async () => (await active()) === 0);
      const before = descriptors(postern.pid);
      const memory = residentBytes(postern.pid);

      const started = performance.now();
      const clients = await Promise.all(
        Array.from({ length: 500 }, () => application(port, { connectionTimeoutMillis: patience })),
      );
      const opened = performance.now();
      assert.equal(await active(), 500);
      const answers = await Promise.all(
        clients.map((client, i) => client.query<{ it: number }>('select $1::int as it, pg_sleep(0.2)', [i])),
      );
      assert.deepEqual(
        answers.map((answer) => answer.rows[0]?.it),
        clients.map((_, i) => i),
      );
      const perSession = (residentBytes(postern.pid) - memory) / 500;
      await Promise.all(clients.map((client) => client.end()));
      await eventually('all sessions to end', async () => (await active()) === 0, patience);
      assert.equal(await postern.metric('postern_sessions_total', { service: 'db', outcome: 'ok' }), 501);
      // Connections of the admin listener and of the store may stay open for a while.
      await eventually(
        'the descriptors to be given back',
        () => descriptors(postern.pid) <= before + 4,
        patience,
      );
      t.diagnostic(
        `500 opened in ${((opened - started) / 1000).toFixed(1)} s; ${(perSession / 1024).toFixed(0)} KiB each`,
      );
    });

  it('tells the client beyond maxConnections so, in words that libpq shows, and has a place again later', async (t) => {
    const set = await stage(t);
    if (!set) return;
    await using postern = await perform(set.openbao, {
      db: {
        credentials: await loginOf(set.openbao, 'scram_user'),
        config: towards(set.postgres18),
        limits: { maxConnections: 2 },
      },
    });
    const port = postern.port('db');
    const place = `host=127.0.0.1 port=${port} user=anybody dbname=app`;
    const [one, two] = [await application(port), await application(port)];
    assert.match(
      await viaPsql(place, 'select 1'),
      /FATAL: {2}postern: service "db" has its 2 connections in use/,
    );
    const peer = await Peer.connect(port);
    peer.send(
      startup([
        ['user', 'anybody'],
        ['database', 'app'],
      ]),
    );
    const [error] = await readUntil(peer, 'E');
    assert.equal(fieldsOf(error?.body ?? Buffer.alloc(0))['C'], '53300');
    peer.end();
    assert.equal((await one.query('select 1 as it')).rows[0]?.it, 1);
    await one.end();
    await eventually('a place', async () => (await viaPsql(place, 'select 1')) === '1');
    await two.end();
  });
});
