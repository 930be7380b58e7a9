import type { Cast, Field, Name } from './candidates.ts';
import { type Contest, entrants, type Plan, wanted } from './contest.ts';
import { allowOpenFiles } from './machine.ts';
import { copyOut, openSession, pgbench, residentAt } from './measure.ts';
import type { GrowthRow } from './rows.ts';

/** The rows of PostgreSQL: its servers are started when one of them is wanted. */
export const databaseIds = [
  'select-c1',
  'select-c8',
  'select-c32',
  'select-c64',
  'select-c8-tls',
  'connect',
  'connect-tls',
  'connect-vault',
  'copy',
  'copy-tls',
  'memory',
];

/** `--quick` leaves out rows that need the same programs as others. */
const quickIds = ['select-c8', 'select-c8-tls', 'connect', 'copy', 'memory'];

/** What limits a row stands beside it, and is printed below the table. */
export function databaseContests(cast: Cast, { megabytes, quick, only }: Plan): Contest[] {
  const select = (clients: number, limit: string, field: Field = cast.plain): Contest => ({
    id: `select-c${clients}${field === cast.tls ? '-tls' : ''}`,
    title: `select-only, prepared, ${clients} ${clients === 1 ? 'client' : 'clients'}${field === cast.tls ? ', TLS verify-full' : ''}`,
    unit: 'tps',
    limit,
    entrants: entrants(field, (candidate, seconds) => pgbench(candidate, { clients, seconds })),
  });
  const connect = (id: string, title: string, field: Field, limit: string): Contest => ({
    id,
    title,
    unit: 'tps',
    limit,
    entrants: entrants(field, (candidate, seconds) =>
      pgbench(candidate, { clients: 4, seconds, reconnect: true }),
    ),
  });
  const copy = (id: string, title: string, field: Field, limit: string): Contest => ({
    id,
    title,
    unit: 'MB/s',
    limit,
    entrants: entrants(field, (candidate) => copyOut(candidate, megabytes)),
  });
  const all = [
    select(
      1,
      'Latency: a statement waits for four wake-ups instead of two, and which core they are on decides more than who wakes.',
    ),
    select(
      8,
      'The cores: kernel time in TCP, for the hop about as much as for the server, and waking threads. Two threads for each session wake without asking epoll first.',
    ),
    select(
      32,
      'The cores. One wake-up of an event loop finds several sessions ready, so those with one thread spend less for each statement than at 8 clients.',
    ),
    select(
      64,
      'The cores. Beyond 32 sessions (`dedicatedSessions`) Postern relays by its epoll thread, so this row has half of each.',
    ),
    select(
      8,
      'One encryption more on the way to the server, for which Postern relays in JavaScript, in one thread; the others do it in C and Go.',
      cast.tls,
    ),
    connect(
      'connect',
      'a connection per transaction, 4 clients',
      cast.plain,
      'PostgreSQL starts a process for each connection. A client by itself, or through HAProxy or Go, derives the key of its password anew each time (4096 rounds), Postern keeps it; PgBouncer hands out connections that are open already, which is pooling.',
    ),
    connect(
      'connect-tls',
      'a connection per transaction, 4 clients, TLS verify-full',
      cast.tlsLogins,
      'A full handshake for each connection, and binding the login to the certificate; PgBouncer does it once for each connection that it keeps.',
    ),
    ...(cast.vault
      ? [
          connect(
            'connect-vault',
            'a connection per transaction, 4 clients, OpenBao',
            cast.vault,
            'As without, and one HTTP request to OpenBao for each login, over a connection that is kept.',
          ),
        ]
      : []),
    copy(
      'copy',
      `COPY out of ${megabytes} MB`,
      cast.plain,
      'PostgreSQL, which makes the rows, and psql, which takes them apart: every relay keeps up.',
    ),
    copy(
      'copy-tls',
      `COPY out of ${megabytes} MB, TLS verify-full`,
      cast.tls,
      'Encryption by PostgreSQL and decryption by whoever is in between, each in one thread.',
    ),
  ];
  return quick && only.length === 0 ? all.filter(({ id }) => quickIds.includes(id)) : all;
}

/** Who is counted before which server. HAProxy and Go know no other memory than that of plain relays. */
const counted: readonly { readonly name: Name; readonly tls: boolean }[] = [
  { name: 'Postern', tls: false },
  { name: 'TypeScript', tls: true },
  { name: 'PgBouncer', tls: false },
  { name: 'PgBouncer', tls: true },
];
const countedBeforeTrusting: readonly Name[] = ['Postern', 'TypeScript', 'HAProxy', 'PgBouncer', 'Go'];

/** What a process in between holds for each session, and some for all else and for those that are just being taken over. */
const FILES_PER_SESSION = 2;
const OTHER_FILES = 600;

/** Resident memory of fresh processes while sessions come, each with one query, and stay. */
export async function countDatabaseMemory(
  cast: Cast,
  plan: Plan,
  say: (line: string) => void,
  missing: string[],
): Promise<GrowthRow[]> {
  if (process.platform !== 'linux' || !wanted('memory', plan)) return [];
  const rows: GrowthRow[] = [];
  for (const { name, tls } of counted) {
    await using newcomer = await cast.newcomer(name, { tls });
    if (!newcomer) continue;
    const title = `${name}${tls ? ', TLS verify-full' : ''}`;
    say(`memory of ${title} with ${plan.idle.postgres.at(-1)} idle sessions`);
    const points = await residentAt(newcomer, plan.idle.postgres, openSession);
    rows.push({ title, name, server: 'PostgreSQL', points });
  }
  const wish = plan.idle.trusting.at(-1) ?? 0;
  const files = await allowOpenFiles(wish * FILES_PER_SESSION + OTHER_FILES);
  const most = Math.min(wish, Math.floor((files - OTHER_FILES) / FILES_PER_SESSION));
  if (most < wish)
    missing.push(`${wish} idle sessions: ${files} open files are allowed, which is enough for ${most}`);
  const counts = [...plan.idle.trusting.filter((count) => count < most), most];
  for (const name of countedBeforeTrusting) {
    await using trusting = await cast.trustingServer();
    await using newcomer = await cast.newcomer(name, { tls: false, upstream: trusting.port });
    if (!newcomer) continue;
    say(`memory of ${name} with ${most} idle sessions of a server that trusts everybody`);
    const points = await residentAt(newcomer, counts, openSession);
    rows.push({ title: name, name, server: 'trusting', points });
  }
  return rows;
}
