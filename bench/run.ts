import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import { availableParallelism, constants, cpus, loadavg, totalmem } from 'node:os';
import { join, relative } from 'node:path';
import { parseArgs } from 'node:util';

import { capture } from '../test/support/servers/process.ts';
import { Unavailable } from '../test/support/servers.ts';
import { assemble, type Cast, type Field } from './candidates.ts';
import { assembleHttp, type HttpCandidate, type HttpCast, idleHttpMemory, type Load } from './http.ts';
import { copyOut, fill, idleMemory, pgbench, type Sample } from './measure.ts';
import { assembleMySql, type MySqlCandidate, type MySqlCast } from './mysql.ts';
import { type MemoryRow, markdown, type Results, type Row } from './report.ts';
import { measureStart } from './start.ts';

const usage = `npm run bench -- [--quick] [--rounds N] [--seconds N] [--only WORD]...
  Compares a PostgreSQL, a MySQL and an HTTP server behind Postern with the same ones reached
  directly, and with PgBouncer, nginx, HAProxy and http-proxy in between. Prints the table and
  keeps it in bench/results.
    --quick      one cold round of one second, fewer rows: under a minute
    --rounds N   how often everything is measured; default 5
    --seconds N  how long each of them runs; default 5, of HTTP's 2
    --only WORD  only rows whose name contains the word; may be repeated
`;

interface Plan {
  readonly rounds: number;
  readonly seconds: number;
  /** The same for HTTP, which has many rows and long warm-ups. */
  readonly httpSeconds: number;
  readonly only: readonly string[];
  /** One cold round, to see that it works. */
  readonly quick: boolean;
  readonly megabytes: number;
  /** The same for MySQL. */
  readonly resultMegabytes: number;
  readonly idleSessions: number;
}

interface Contest {
  readonly id: string;
  readonly title: string;
  readonly unit: string;
  /** Seconds for which Postern does this before it counts; default 1. */
  readonly warmUp?: number;
  /** Seconds of each measurement, where they are not the plan's. */
  readonly seconds?: number;
  /** Who takes part, `direct` first. */
  readonly entrants: readonly Entrant[];
}

interface Entrant {
  readonly name: string;
  readonly measure: (seconds: number) => Promise<Sample>;
}

function entrants<Someone extends { readonly name: string }>(
  field: readonly Someone[],
  measure: (candidate: Someone, seconds: number) => Promise<Sample>,
): Entrant[] {
  return field.map((candidate) => ({
    name: candidate.name,
    measure: (seconds) => measure(candidate, seconds),
  }));
}

/** The rows of PostgreSQL: its servers are started when one of them is wanted. */
const postgresIds = [
  'select-c1',
  'select-c8',
  'select-c32',
  'select-c8-tls',
  'connect',
  'connect-tls',
  'connect-vault',
  'copy',
  'copy-tls',
  'memory',
];

/** The rows of a start, likewise. */
const startId = 'start';

/** The rows of MySQL, likewise. */
const mysqlIds = [
  'mysql-select-c1',
  'mysql-select-c8',
  'mysql-select-c32',
  'mysql-connect',
  'mysql-result',
  'mysql-change-user',
];

/** The rows of HTTP, likewise. */
const httpIds = [
  'http-tiny-c1',
  'http-tiny-c32',
  'http-tiny-c128',
  'http-head',
  'http-64k',
  'http-1m',
  'http-post',
  'http-tls',
  'http-tls-64k',
  'http-close',
  'http-memory',
];

function contests(cast: Cast, { megabytes }: Plan): Contest[] {
  const select = (clients: number, tls = false): Contest => ({
    id: `select-c${clients}${tls ? '-tls' : ''}`,
    title: `select-only, prepared, ${clients} ${clients === 1 ? 'client' : 'clients'}${tls ? ', TLS verify-full' : ''}`,
    unit: 'tps',
    entrants: entrants(tls ? cast.tls : cast.plain, (candidate, seconds) =>
      pgbench(candidate, { clients, seconds }),
    ),
  });
  const connect = (id: string, title: string, field: Field): Contest => ({
    id,
    title,
    unit: 'tps',
    entrants: entrants(field, (candidate, seconds) =>
      pgbench(candidate, { clients: 4, seconds, reconnect: true }),
    ),
  });
  const copy = (id: string, title: string, field: Field): Contest => ({
    id,
    title,
    unit: 'MB/s',
    entrants: entrants(field, (candidate) => copyOut(candidate, megabytes)),
  });
  return [
    select(1),
    select(8),
    select(32),
    select(8, true),
    connect('connect', 'a connection per transaction, 4 clients', cast.plain),
    connect('connect-tls', 'a connection per transaction, 4 clients, TLS verify-full', cast.tls),
    ...(cast.vault
      ? [connect('connect-vault', 'a connection per transaction, 4 clients, OpenBao', cast.vault)]
      : []),
    copy('copy', `COPY out of ${megabytes} MB`, cast.plain),
    copy('copy-tls', `COPY out of ${megabytes} MB, TLS verify-full`, cast.tls),
  ];
}

function mysqlContests(cast: MySqlCast, { resultMegabytes, quick, only }: Plan): Contest[] {
  const { label, generator } = cast;
  const selects = (id: string, clients: number, field: readonly MySqlCandidate[], more = ''): Contest => ({
    id,
    title: `${label}, select by primary key, prepared, ${clients} ${clients === 1 ? 'client' : 'clients'}${more} (${generator})`,
    unit: 'tps',
    entrants: entrants(field, (candidate, seconds) => cast.pointSelects(candidate, { clients, seconds })),
  });
  return [
    selects('mysql-select-c8', 8, cast.field),
    ...(quick && only.length === 0
      ? []
      : [selects('mysql-select-c1', 1, cast.field), selects('mysql-select-c32', 32, cast.field)]),
    {
      id: 'mysql-connect',
      title: `${label}, a connection per query, 4 clients (${generator})`,
      unit: 'tps',
      entrants: entrants(cast.field, (candidate, seconds) =>
        cast.pointSelects(candidate, { clients: 4, seconds, reconnect: true }),
      ),
    },
    {
      id: 'mysql-result',
      title: `${label}, a result of ${resultMegabytes} MB (command line client)`,
      unit: 'MB/s',
      entrants: entrants(cast.field, (candidate) => cast.bigResult(candidate, resultMegabytes)),
    },
    selects('mysql-change-user', 8, cast.withRelay, ', COM_CHANGE_USER looked for or not'),
  ];
}

function httpContests(cast: HttpCast, { quick, only, httpSeconds }: Plan): Contest[] {
  const row = (
    id: string,
    title: string,
    load: Omit<Load, 'seconds'>,
    field: readonly HttpCandidate[] = cast.plain,
  ): Contest => ({
    id,
    title: `HTTP, ${title}, ${load.connections} ${load.connections === 1 ? 'connection' : 'connections'}`,
    unit: 'requests/s',
    seconds: httpSeconds,
    // V8 compiles what has run for tens of thousands of requests, which these rows take longer to make.
    warmUp: field === cast.tls || load.close ? 10 : 6,
    entrants: entrants(field, (candidate, seconds) => cast.load(candidate, { ...load, seconds })),
  });
  const few = [
    row('http-tiny-c32', '12 bytes', { connections: 32, path: '/tiny' }),
    row('http-1m', '1 MiB', { connections: 32, path: '/1m' }),
    row('http-tls', '12 bytes, TLS upstream', { connections: 32, path: '/tiny' }, cast.tls),
  ];
  if (quick && only.length === 0) return few;
  return [
    ...few,
    row('http-tiny-c1', '12 bytes', { connections: 1, path: '/tiny' }),
    row('http-tiny-c128', '12 bytes', { connections: 128, path: '/tiny' }),
    row('http-head', '12 bytes, heads of a browser', { connections: 32, path: '/tiny', realHead: true }),
    row('http-64k', '64 KiB', { connections: 32, path: '/64k' }),
    row('http-post', 'POST of 16 KiB', { connections: 32, path: '/sink', post: 16 * 1024 }),
    row('http-tls-64k', '64 KiB, TLS upstream', { connections: 32, path: '/64k' }, cast.tls),
    row('http-close', '12 bytes, a connection for each', { connections: 32, path: '/tiny', close: true }),
  ];
}

async function warmUp(chosen: readonly Contest[]): Promise<void> {
  say('warming up');
  // What is compiled while it runs needs it most; the others once, for the caches of the server.
  for (const [i, contest] of chosen.entries())
    for (const { name, measure } of contest.entrants)
      if (name === 'Postern' || name === 'relay') await measure(contest.warmUp ?? 1);
      else if (i === 0) await measure(1);
}

/** Everything once, a round at a time; the order of the candidates is reversed from one round to the next. */
async function compete(chosen: readonly Contest[], plan: Plan): Promise<Row[]> {
  const samples = new Map(chosen.map(({ id }) => [id, {} as Record<string, Sample[]>]));
  if (!plan.quick) await warmUp(chosen);
  for (let round = 1; round <= plan.rounds; round += 1)
    for (const { id, title, unit, seconds = plan.seconds, entrants: all } of chosen) {
      const told: string[] = [];
      for (const { name, measure } of round % 2 === 1 ? all : all.toReversed()) {
        const sample = await measure(seconds);
        ((samples.get(id) ?? {})[name] ??= []).push(sample);
        told.push(`${name} ${Math.round(sample.value)}`);
      }
      say(`round ${round} of ${plan.rounds}: ${title}: ${told.join(', ')} ${unit}`);
    }
  return chosen.map(({ id, title, unit }) => ({ id, title, unit, samples: samples.get(id) ?? {} }));
}

async function countHttpMemory(cast: HttpCast, plan: Plan): Promise<MemoryRow[]> {
  if (process.platform !== 'linux' || !wanted('http-memory', plan)) return [];
  const rows: MemoryRow[] = [];
  for (const name of ['Postern', 'nginx', 'HAProxy'] as const) {
    await using newcomer = await cast.newcomer(name);
    if (!newcomer) continue;
    const title = `${name}, HTTP`;
    say(`memory of ${title} with ${plan.idleSessions} idle connections`);
    const resident = await idleHttpMemory(newcomer, plan.idleSessions);
    rows.push({ title, sessions: plan.idleSessions, resident });
  }
  return rows;
}

async function countMemory(cast: Cast, plan: Plan): Promise<MemoryRow[]> {
  if (process.platform !== 'linux' || !wanted('memory', plan)) return [];
  const rows: MemoryRow[] = [];
  for (const name of ['Postern', 'PgBouncer'] as const)
    for (const tls of [false, true]) {
      await using newcomer = await cast.newcomer(name, tls);
      if (!newcomer) continue;
      const title = `${name}${tls ? ', TLS verify-full' : ''}`;
      say(`memory of ${title} with ${plan.idleSessions} idle sessions`);
      const resident = await idleMemory(newcomer, plan.idleSessions);
      rows.push({ title, sessions: plan.idleSessions, resident });
    }
  return rows;
}

function wanted(id: string, { only }: Plan): boolean {
  return only.length === 0 || only.some((word) => id.includes(word));
}

function plan(words: readonly string[]): Plan | string {
  try {
    const { values } = parseArgs({
      args: [...words],
      options: {
        quick: { type: 'boolean', default: false },
        rounds: { type: 'string' },
        seconds: { type: 'string' },
        only: { type: 'string', multiple: true },
        help: { type: 'boolean', default: false },
      },
    });
    if (values.help) return '';
    const rounds = Number(values.rounds ?? (values.quick ? 1 : 5));
    const seconds = Number(values.seconds ?? (values.quick ? 1 : 5));
    const httpSeconds = Number(values.seconds ?? (values.quick ? 1 : 2));
    for (const [name, number] of Object.entries({ rounds, seconds }))
      if (!Number.isInteger(number) || number < 1 || number > 1000)
        return `--${name} is a whole number from 1 to 1000`;
    return {
      rounds,
      seconds,
      httpSeconds,
      only: values.only ?? [],
      quick: values.quick,
      megabytes: values.quick ? 50 : 200,
      resultMegabytes: values.quick ? 50 : 300,
      idleSessions: values.quick ? 100 : 1000,
    };
  } catch (error) {
    return (error as Error).message;
  }
}

/** What the machine was like before anything was started. */
interface Before {
  readonly load: readonly number[];
  readonly commit: string | undefined;
}

/** Now: somebody may commit while it runs, and what is measured is what was there when it started. */
async function lookAround(): Promise<Before> {
  const commit = await capture('git', ['rev-parse', '--short', 'HEAD'], { cwd: import.meta.dirname }).catch(
    () => undefined,
  );
  return { load: loadavg(), commit: commit?.code === 0 ? commit.stdout.trim() : undefined };
}

function facts(versions: Readonly<Record<string, string>>, before: Before): Record<string, string> {
  const load = (values: readonly number[]) => values.map((value) => value.toFixed(2)).join(' ');
  return {
    date: new Date().toISOString().slice(0, 16).replace('T', ' '),
    ...(before.commit !== undefined && { commit: before.commit }),
    machine: `${availableParallelism()} cores, ${cpus()[0]?.model ?? 'unknown'}, ${Math.round(totalmem() / 2 ** 30)} GiB; everything on this one machine`,
    Node: process.version,
    ...versions,
    'load average': `${load(before.load)} before, ${load(loadavg())} after (its own work included)`,
  };
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

async function main(words: readonly string[]): Promise<number> {
  const chosen = plan(words);
  if (typeof chosen === 'string') {
    process[chosen === '' ? 'stdout' : 'stderr'].write(`${chosen === '' ? '' : `${chosen}\n\n`}${usage}`);
    return chosen === '' ? 0 : 2;
  }
  const before = await lookAround();
  const interrupted = interruption();
  try {
    await using stack = new AsyncDisposableStack();
    const postgres = postgresIds.some((id) => wanted(id, chosen)) && stack.use(await startCast());
    const missing = postgres ? [...postgres.missing] : [];
    const mysql = mysqlIds.some((id) => wanted(id, chosen)) && (await startMySqlCast(stack, missing));
    const http = httpIds.some((id) => wanted(id, chosen)) && (await startHttpCast(stack, missing));
    const entered = [
      ...(postgres ? contests(postgres, chosen) : []),
      ...(mysql ? mysqlContests(mysql, chosen) : []),
      ...(http ? httpContests(http, chosen) : []),
    ].filter(({ id }) => wanted(id, chosen));
    const casts = { postgres: postgres || undefined, http: http || undefined };
    const start =
      process.platform === 'linux' && wanted(startId, chosen) && (await measureStart(chosen.rounds));
    const results = await Promise.race([interrupted, measureAll(casts, entered, chosen)]);
    if (typeof results === 'number') return 128 + results;
    const versions = {
      ...(postgres && postgres.versions),
      ...(mysql && mysql.versions),
      ...(http && http.versions),
    };
    await keep({
      command: ['npm run bench', ...(words.length > 0 ? ['--', ...words] : [])].join(' '),
      facts: facts(versions, before),
      missing,
      ...(start && { start }),
      ...results,
    });
    return 0;
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    say(`the benchmark cannot run here: ${error.message}`);
    return 1;
  }
}

async function startCast(): Promise<Cast> {
  say('starting PostgreSQL, Postern and PgBouncer');
  return await assemble();
}

/** Without MySQL and MariaDB the other rows are measured all the same. */
async function startMySqlCast(
  stack: AsyncDisposableStack,
  missing: string[],
): Promise<MySqlCast | undefined> {
  say('starting MySQL and Postern');
  try {
    return stack.use(await assembleMySql());
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    missing.push(`MySQL: ${error.message}`);
    return undefined;
  }
}

/** Likewise without nginx or wrk. */
async function startHttpCast(stack: AsyncDisposableStack, missing: string[]): Promise<HttpCast | undefined> {
  say('starting nginx, HAProxy, http-proxy and Postern');
  try {
    const cast = stack.use(await assembleHttp());
    missing.push(...cast.missing);
    return cast;
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    missing.push(`HTTP: ${error.message}`);
    return undefined;
  }
}

async function measureAll(
  { postgres, http }: { readonly postgres: Cast | undefined; readonly http: HttpCast | undefined },
  entered: readonly Contest[],
  chosen: Plan,
): Promise<{ rows: Row[]; memory: MemoryRow[] }> {
  const [direct] = postgres?.plain ?? [];
  if (postgres && direct && entered.some(({ id }) => postgresIds.includes(id)))
    await fill(postgres.postgres, direct, chosen.megabytes);
  const rows = await compete(entered, chosen);
  const memory = [
    ...(postgres ? await countMemory(postgres, chosen) : []),
    ...(http ? await countHttpMemory(http, chosen) : []),
  ];
  return { rows, memory };
}

async function keep(results: Results): Promise<void> {
  const folder = join(import.meta.dirname, 'results');
  await mkdir(folder, { recursive: true });
  const name = join(folder, new Date().toISOString().slice(0, 19).replaceAll(':', ''));
  const text = markdown(results);
  await writeFile(`${name}.md`, `# Benchmark\n\n${text}`);
  await writeFile(`${name}.json`, `${JSON.stringify(results, null, 2)}\n`);
  process.stdout.write(`\n${text}\n${relative(process.cwd(), name)}.md and .json\n`);
}

/** The number of the signal that asks to stop: what was started is then ended in order. */
async function interruption(): Promise<number> {
  const asked = (['SIGHUP', 'SIGINT', 'SIGTERM'] as const).map(async (signal) => {
    process.on(signal, () => {});
    await once(process, signal);
    return constants.signals[signal];
  });
  return await Promise.race(asked);
}

process.exitCode = await main(process.argv.slice(2));
// A measurement that was interrupted still waits for its program.
process.exit();
