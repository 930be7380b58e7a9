import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';

import { psql } from '../test/support/clients/psql.ts';
import { canary, type PrivatePostgres, sql } from '../test/support/servers.ts';
import type { Candidate, Newcomer } from './candidates.ts';
import { ticksPerSecond } from './machine.ts';
import type { Sample } from './rows.ts';

export type { Sample } from './rows.ts';

export interface PgbenchOptions {
  readonly clients: number;
  readonly seconds: number;
  /** A new connection for every transaction. */
  readonly reconnect?: boolean;
}

/** Makes pgbench's tables, and one of about `megabytes` for COPY. */
export async function fill(postgres: PrivatePostgres, direct: Candidate, megabytes: number): Promise<void> {
  const made = await psql(['-i', '-q', '-s', '5'], { program: 'pgbench', env: direct.env, timeout: 120_000 });
  if (made.code !== 0) throw new Error(`pgbench -i failed: ${made.stderr.trim().split('\n').at(-1)}`);
  // Rows of 1000 bytes: COPY then is moving bytes, more than making text of numbers.
  await sql(
    postgres,
    `CREATE UNLOGGED TABLE wide AS SELECT repeat('x', 999) AS line FROM generate_series(1, ${megabytes * 1000})`,
  );
  await sql(postgres, 'GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC');
  await sql(postgres, 'VACUUM ANALYZE');
}

/** Transactions a second of pgbench's select-only script, prepared. */
export async function pgbench(candidate: Candidate, options: PgbenchOptions): Promise<Sample> {
  // Its time runs while it connects: many clients on a busy machine may have none left for a transaction.
  for (const patience of [0, 5, 20]) {
    const sample = await runPgbench(candidate, { ...options, seconds: options.seconds + patience });
    if (sample) return sample;
  }
  throw new Error(`pgbench through ${candidate.name} came to no transaction`);
}

async function runPgbench(candidate: Candidate, options: PgbenchOptions): Promise<Sample | undefined> {
  const { clients, seconds, reconnect = false } = options;
  const args = ['-n', '-S', '-M', 'prepared', '-c', String(clients), '-j', String(Math.min(clients, 2))];
  const before = await cpuSeconds(candidate.pid);
  const { code, stdout, stderr } = await psql(
    [...args, '-T', String(seconds), ...(reconnect ? ['-C'] : [])],
    { program: 'pgbench', env: candidate.env, timeout: (seconds + 60) * 1000 },
  );
  const after = await cpuSeconds(candidate.pid);
  if (code !== 0) throw new Error(`pgbench through ${candidate.name} failed: ${withoutSecrets(stderr)}`);
  const value = Number(/^tps = ([\d.]+)/m.exec(stdout)?.[1]);
  const transactions = Number(/transactions actually processed: (\d+)/.exec(stdout)?.[1]);
  if (!(value > 0 && transactions > 0)) return undefined;
  return {
    value,
    transactions,
    ...(before !== undefined && after !== undefined && { cpuSeconds: after - before }),
  };
}

/** Megabytes a second of one COPY to a client that throws everything away. */
export async function copyOut(candidate: Candidate, megabytes: number): Promise<Sample> {
  const { code, stderr, ms } = await psql(['-q', '-o', '/dev/null', '-c', 'COPY wide TO STDOUT'], {
    env: candidate.env,
    timeout: 120_000,
  });
  if (code !== 0) throw new Error(`COPY through ${candidate.name} failed: ${withoutSecrets(stderr)}`);
  return { value: megabytes / (ms / 1000) };
}

/** Resident memory of a process with none, half and all of the sessions, in KiB. */
export async function residentGrowth(
  newcomer: Newcomer,
  sessions: number,
  openOne: (port: number) => Promise<Socket>,
): Promise<[number, number, number]> {
  const [none, half, all] = await residentAt(newcomer, [0, sessions / 2, sessions], openOne);
  return [none?.[1] ?? 0, half?.[1] ?? 0, all?.[1] ?? 0];
}

/** Resident memory, in KiB, at each of these counts of sessions, which come and stay. */
export async function residentAt(
  newcomer: Newcomer,
  counts: readonly number[],
  openOne: (port: number) => Promise<Socket>,
): Promise<[sessions: number, kibibytes: number][]> {
  const open: Socket[] = [];
  const points: [number, number][] = [];
  try {
    for (const count of counts) {
      while (open.length < count) {
        const some = Array.from({ length: Math.min(10, count - open.length) }, () => openOne(newcomer.port));
        open.push(...(await Promise.all(some)));
      }
      points.push([count, await settledKiB(newcomer.pid)]);
    }
    return points;
  } finally {
    await leave(open);
  }
}

/** Waits for the last: what is measured next shall not find the server still at work. */
async function leave(sockets: readonly Socket[]): Promise<void> {
  await Promise.all(
    sockets.map(async (socket) => {
      socket.destroy();
      if (!socket.closed) await once(socket, 'close');
    }),
  );
}

/**
 * The smallest client there is: a StartupMessage, no password to be asked for, and one query, because a pooler that
 * has seen none has no server for the client yet.
 */
export async function openSession(port: number): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port, noDelay: true });
  await once(socket, 'connect');
  const startup = Buffer.from('\0\x03\0\0user\0scram_user\0database\0app\0\0', 'latin1');
  socket.write(Buffer.concat([int32(startup.length + 4), startup]));
  await untilIdle(socket);
  const query = Buffer.from('select 1\0', 'latin1');
  socket.write(Buffer.concat([Buffer.from('Q'), int32(query.length + 4), query]));
  await untilIdle(socket);
  return socket;
}

/** Reads up to ReadyForQuery, which is the last message of a login and of an answer. */
async function untilIdle(socket: Socket): Promise<void> {
  const idle = Buffer.from('Z\0\0\0\x05I', 'latin1');
  let seen = Buffer.alloc(0);
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    seen = Buffer.concat([seen, chunk]);
    if (seen.subarray(-idle.length).equals(idle)) return;
    if (seen[0] === 0x45) break;
  }
  throw new Error(`a session for counting memory was refused: ${withoutSecrets(seen.toString('latin1'))}`);
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
}

/** The number once it has stopped moving: a heap grows and shrinks for a while after a burst of logins. */
async function settledKiB(pid: number): Promise<number> {
  let last = await residentKiB(pid);
  for (let i = 0; i < 10; i += 1) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    const now = await residentKiB(pid);
    if (i >= 3 && Math.abs(now - last) < last / 200) return now;
    last = now;
  }
  return last;
}

async function residentKiB(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]);
}

/** User and system time of a process and all its threads so far; undefined where the kernel does not tell. */
export async function cpuSeconds(pid: number | undefined): Promise<number | undefined> {
  if (pid === undefined || process.platform !== 'linux') return undefined;
  const ticks = await ticksPerSecond();
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  // The second field is the program's name in parentheses, which may hold anything; count from behind it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / ticks;
}

/** The end of what a program said, without the passwords that it was given. */
export function withoutSecrets(text: string): string {
  return text.replaceAll(canary.postgres, '[secret]').replaceAll(canary.mysql, '[secret]').trim().slice(-500);
}
