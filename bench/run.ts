import { once } from 'node:events';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { availableParallelism, constants, cpus, loadavg, totalmem } from 'node:os';
import { join, relative } from 'node:path';
import { parseArgs } from 'node:util';

import { capture } from '../test/support/servers/process.ts';
import { Unavailable } from '../test/support/servers.ts';
import { assemble, type Cast } from './candidates.ts';
import {
  type Contest,
  compete,
  entrants,
  type Plan,
  type Section,
  sectionOf,
  sections,
  wanted,
} from './contest.ts';
import { countDatabaseMemory, databaseContests, databaseIds } from './database.ts';
import { assembleHttp, type HttpCandidate, type HttpCast, idleHttpMemory, type Load } from './http.ts';
import { hurry } from './machine.ts';
import { fill } from './measure.ts';
import { assembleMySql, type MySqlCandidate, type MySqlCast } from './mysql.ts';
import { record } from './record.ts';
import { markdown, type Results, recordOf } from './report.ts';
import type { GrowthRow, MemoryRow, Row } from './rows.ts';
import { measureStart } from './start.ts';

const usage = `npm run bench -- [--quick] [--rounds N] [--seconds N] [--only WORD]... [--record]
  Compares a PostgreSQL, a MySQL and an HTTP server behind Postern with the same ones reached
  directly, and with PgBouncer, HAProxy, a relay in Go, nginx and http-proxy in between. Prints
  the tables and keeps them in bench/results.
    --quick      one cold round of one second, fewer rows: less than 90 seconds
    --rounds N   how often everything is measured; default 5
    --seconds N  how long each run of a load takes; default 1, of HTTP's 2
    --only WORD  only the rows of a section (database, mysql, http, start), rows whose name begins
                 with the word, or rows of PostgreSQL that have it anywhere; may be repeated
    --record     puts the tables of each section that was measured whole into docs/performance.md
`;

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

function mysqlContests(cast: MySqlCast, { megabytes, quick, only }: Plan): Contest[] {
  const { label, generator } = cast;
  const selects = (
    id: string,
    clients: number,
    limit: string,
    field: readonly MySqlCandidate[] = cast.field,
    more = '',
  ): Contest => ({
    id,
    title: `${label}, select by primary key, prepared, ${clients} ${clients === 1 ? 'client' : 'clients'}${more} (${generator})`,
    unit: 'tps',
    limit,
    entrants: entrants(field, (candidate, seconds) => cast.pointSelects(candidate, { clients, seconds })),
  });
  return [
    selects(
      'mysql-select-c8',
      8,
      "The cores. Postern relays in JavaScript, because it follows the client's bytes from one packet header to the next for COM_CHANGE_USER; what the server sends is not looked at.",
    ),
    ...(quick && only.length === 0
      ? []
      : [
          selects('mysql-select-c1', 1, 'Latency, as with PostgreSQL.'),
          selects('mysql-select-c32', 32, "As with 8, and the one thread of Postern's JavaScript."),
        ]),
    {
      id: 'mysql-connect',
      title: `${label}, a connection per query, 4 clients (${generator})`,
      unit: 'tps',
      limit:
        'A direct login is cheap: MySQL checks a cached hash with three rounds of SHA-256 and starts a thread, not a process. So what Postern adds shows more than with PostgreSQL.',
      entrants: entrants(cast.field, (candidate, seconds) =>
        cast.pointSelects(candidate, { clients: 4, seconds, reconnect: true }),
      ),
    },
    {
      id: 'mysql-result',
      title: `${label}, a result of ${megabytes} MB (command line client)`,
      unit: 'MB/s',
      limit: 'The server, which makes the rows, and its client, which takes them apart.',
      entrants: entrants(cast.field, (candidate) => cast.bigResult(candidate, megabytes)),
    },
    selects(
      'mysql-change-user',
      8,
      'With `changeUser: relay` nobody looks at what the client sends, and the native engine may relay.',
      cast.withRelay,
      ', COM_CHANGE_USER looked for or not',
    ),
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

async function countHttpMemory(cast: HttpCast, plan: Plan): Promise<MemoryRow[]> {
  if (process.platform !== 'linux' || !wanted('http-memory', plan)) return [];
  const rows: MemoryRow[] = [];
  for (const name of ['Postern', 'nginx', 'HAProxy'] as const) {
    await using newcomer = await cast.newcomer(name);
    if (!newcomer) continue;
    const title = `${name}, HTTP`;
    say(`memory of ${title} with ${plan.idle.http} idle connections`);
    const resident = await idleHttpMemory(newcomer, plan.idle.http);
    rows.push({ title, sessions: plan.idle.http, resident });
  }
  return rows;
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
        record: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    });
    if (values.help) return '';
    const rounds = Number(values.rounds ?? (values.quick ? 1 : 5));
    const seconds = Number(values.seconds ?? 1);
    const httpSeconds = Number(values.seconds ?? (values.quick ? 1 : 2));
    for (const [name, number] of Object.entries({ rounds, seconds }))
      if (!Number.isInteger(number) || number < 1 || number > 1000)
        return `--${name} is a whole number from 1 to 1000`;
    if (values.quick && values.record) return '--record needs more than the one cold round of --quick';
    return {
      rounds,
      seconds,
      httpSeconds,
      only: values.only ?? [],
      quick: values.quick,
      record: values.record,
      megabytes: values.quick ? 50 : 300,
      idle: values.quick
        ? { http: 100, postgres: [0, 50, 100], trusting: [0, 100, 500] }
        : { http: 1000, postgres: [0, 1000, 2000], trusting: [0, 1000, 2000, 10_000] },
    };
  } catch (error) {
    return (error as Error).message;
  }
}

/** What the machine was like before anything was started. */
interface Before {
  readonly load: readonly number[];
  readonly commit: string | undefined;
  readonly priority: string;
}

/** Now: somebody may commit while it runs, and what is measured is what was there when it started. */
async function lookAround({ quick }: Plan): Promise<Before> {
  const git = async (...args: readonly string[]) => {
    const answer = await capture('git', args, { cwd: import.meta.dirname }).catch(() => undefined);
    return answer?.code === 0 ? answer.stdout.trim() : undefined;
  };
  const commit = await git('rev-parse', '--short', 'HEAD');
  const changed = await git('status', '--porcelain', '--untracked-files=no', '--', '../src', '../native');
  const priority = !quick && hurry() ? 'nice -10 for all that it starts' : 'the usual';
  return { load: loadavg(), commit: commit && `${commit}${changed ? ', with changes' : ''}`, priority };
}

function facts(versions: Readonly<Record<string, string>>, before: Before): Record<string, string> {
  const load = (values: readonly number[]) => values.map((value) => value.toFixed(2)).join(' ');
  return {
    date: new Date().toISOString().slice(0, 16).replace('T', ' '),
    ...(before.commit !== undefined && { commit: before.commit }),
    machine: `${availableParallelism()} cores, ${cpus()[0]?.model ?? 'unknown'}, ${Math.round(totalmem() / 2 ** 30)} GiB; everything on this one machine`,
    Node: process.version,
    ...versions,
    priority: before.priority,
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
  const before = await lookAround(chosen);
  const interrupted = interruption();
  try {
    await using stack = new AsyncDisposableStack();
    const postgres = databaseIds.some((id) => wanted(id, chosen)) && stack.use(await startCast());
    const missing = postgres ? [...postgres.missing] : [];
    const mysql = mysqlIds.some((id) => wanted(id, chosen)) && (await startMySqlCast(stack, missing));
    const http = httpIds.some((id) => wanted(id, chosen)) && (await startHttpCast(stack, missing));
    const entered = [
      ...(postgres ? databaseContests(postgres, chosen) : []),
      ...(mysql ? mysqlContests(mysql, chosen) : []),
      ...(http ? httpContests(http, chosen) : []),
    ].filter(({ id }) => wanted(id, chosen));
    const casts = { postgres: postgres || undefined, http: http || undefined };
    const start =
      process.platform === 'linux' && wanted(startId, chosen) && (await measureStart(chosen.rounds));
    const results = await Promise.race([interrupted, measureAll(casts, entered, chosen, missing)]);
    if (typeof results === 'number') return 128 + results;
    const versions = {
      ...(postgres && postgres.versions),
      ...(mysql && mysql.versions),
      ...(http && http.versions),
    };
    const found: Results = {
      command: ['npm run bench', ...(words.length > 0 ? ['--', ...words] : [])].join(' '),
      facts: facts(versions, before),
      missing,
      ...(start && { start }),
      ...results,
    };
    await keep(found);
    if (chosen.record) await recordWhole(found, chosen);
    return 0;
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    say(`the benchmark cannot run here: ${error.message}`);
    return 1;
  }
}

async function startCast(): Promise<Cast> {
  say('building Postern; starting PostgreSQL, Postern, PgBouncer, HAProxy and the relay in Go');
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
  missing: string[],
): Promise<{ rows: Row[]; growth: GrowthRow[]; memory: MemoryRow[] }> {
  const [direct] = postgres?.plain ?? [];
  if (postgres && direct && entered.some(({ id }) => databaseIds.includes(id)))
    await fill(postgres.postgres, direct, chosen.megabytes);
  const rows = await compete(entered, chosen, say);
  const growth = postgres ? await countDatabaseMemory(postgres, chosen, say, missing) : [];
  const memory = http ? await countHttpMemory(http, chosen) : [];
  return { rows, growth, memory };
}

/** Only whole sections: a table that lacks rows would take the place of one that has them. */
async function recordWhole(results: Results, chosen: Plan): Promise<void> {
  const ids = [...databaseIds, ...mysqlIds, ...httpIds, startId];
  const whole = sections.filter(
    (name) => ids.every((id) => sectionOf(id) !== name || wanted(id, chosen)) && hasRows(name, results),
  );
  const page = join(import.meta.dirname, '..', 'docs', 'performance.md');
  await writeFile(page, record(await readFile(page, 'utf8'), recordOf(results, whole)));
  say(
    `docs/performance.md: ${whole.length > 0 ? whole.join(', ') : 'nothing; no section was measured whole'}`,
  );
}

function hasRows(name: Section, { rows, start = [] }: Results): boolean {
  return rows.some(({ id }) => sectionOf(id) === name) || (name === 'start' && start.length > 0);
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
