import { type Section, sectionOf, sections } from './contest.ts';
import { QUIET_CORES } from './machine.ts';
import type { Recorded } from './record.ts';
import {
  cpuOf,
  foreignOf,
  type GrowthRow,
  isNoisy,
  isQuiet,
  type MemoryRow,
  NOISY,
  noiseOf,
  type Row,
  ratios,
  spreadOf,
} from './rows.ts';
import type { StartRow } from './start.ts';
import { perSessionBeyond, type Verdict, verdictsOn } from './verdicts.ts';

/** Everything that one run found out. */
export interface Results {
  readonly command: string;
  readonly facts: Readonly<Record<string, string>>;
  readonly rows: readonly Row[];
  /** Of HTTP. */
  readonly memory: readonly MemoryRow[];
  readonly growth?: readonly GrowthRow[];
  readonly start?: readonly StartRow[];
  readonly missing: readonly string[];
}

/** All tables of a run, in Markdown. */
export function markdown(results: Results): string {
  return [...heading(results, results.rows), ...sections.flatMap((name) => tablesOf(name, results))].join(
    '\n',
  );
}

/** The tables of some sections, each with the facts of the run. */
export function recordOf(results: Results, names: readonly Section[]): Recorded[] {
  return names.map((name) => {
    const rows = results.rows.filter(({ id }) => sectionOf(id) === name);
    return { section: name, text: [...heading(results, rows), ...tablesOf(name, results)].join('\n') };
  });
}

function heading({ command, facts, missing }: Results, rows: readonly Row[]): string[] {
  return [
    `Command: \`${command}\``,
    '',
    ...Object.entries(facts).map(([name, value]) => `- ${name}: ${value}`),
    ...missing.map((what) => `- not here: ${what}`),
    ...(rows.length > 0 ? [`- noise: ${noiseTold(rows)}`] : []),
    '',
  ];
}

function noiseTold(rows: readonly Row[]): string {
  if (rows.every(({ samples }) => (samples['direct']?.length ?? 0) < 2))
    return 'one round says nothing about it';
  const noisy = rows.filter(isNoisy);
  const measure = `direct runs differ by more than a factor of ${NOISY}, or others took more than ${QUIET_CORES} of a core`;
  if (noisy.length === 0)
    return `the direct runs of every row are within a factor of ${NOISY}, and others took no more than ${QUIET_CORES} of a core`;
  const which = noisy.length === rows.length ? 'every row' : noisy.map(({ title }) => title).join('; ');
  return `too noisy to tell in ${which} (${measure})`;
}

function tablesOf(name: Section, results: Results): string[] {
  const rows = results.rows.filter(({ id }) => sectionOf(id) === name);
  const { growth = [], start = [] } = results;
  if (name === 'database')
    return [...databaseTables(rows), ...verdicts(verdictsOn(rows, [], [])), ...limits(rows)];
  if (name === 'mysql') return [...mysqlTables(rows), ...limits(rows)];
  if (name === 'http') return [...httpTables(rows, results.memory), ...limits(rows)];
  return [...startTables(start), ...growthTables(growth), ...verdicts(verdictsOn([], growth, start))];
}

/** In the order of the columns; `Postern` is what a user gets who sets nothing. */
const databasePeers = ['Postern', 'epoll', 'TypeScript', 'HAProxy', 'PgBouncer', 'Go'];

function databaseTables(rows: readonly Row[]): string[] {
  const peers = databasePeers.filter((name) => rows.some(({ samples }) => samples[name]));
  return [
    ...section(
      'Medians. `Postern` is native with its default of 32 sessions that have two threads each, `epoll` native with none (`dedicatedSessions: 0`), `TypeScript` without the addon, as always with TLS; all have the same login.',
      ['', 'direct', ...peers, 'direct, most/least', 'others, cores', 'quiet rounds'],
      rows.map((row) => [
        `${row.title}, ${row.unit}`,
        median(row, 'direct'),
        ...peers.map((name) => median(row, name)),
        noise(row),
        foreign(row),
        quietRounds(row),
      ]),
    ),
    ...section(
      'Their ratios to direct within each round: median (least to most).',
      ['', ...peers],
      rows.map((row) => [row.title, ...peers.map((name) => ratio(row, name))]),
    ),
    ...section(
      'CPU seconds of the process in between, for 100,000 transactions: median (least to most).',
      ['', ...peers],
      rows
        .filter((row) => peers.some((name) => cpuOf(row, name).length > 0))
        .map((row) => [row.title, ...peers.map((name) => cpu(row, name))]),
    ),
  ];
}

function mysqlTables(rows: readonly Row[]): string[] {
  return [
    ...section(
      'Median (least to most). "of direct" is the ratio within each round; CPU is in seconds of Postern for 100,000 transactions.',
      ['', 'direct', 'Postern', 'of direct', 'CPU', 'direct, most/least'],
      rows.map((row) => [
        `${row.title}, ${row.unit}`,
        amount(row, 'direct'),
        amount(row, 'Postern'),
        ratio(row, 'Postern'),
        cpu(row, 'Postern'),
        noise(row),
      ]),
    ),
    ...section(
      'What it costs to look for COM_CHANGE_USER (`changeUser: intercept`, the default), by Postern with `changeUser: relay`, which does not:',
      ['', 'intercept', 'relay', 'of relay', 'CPU, intercept', 'CPU, relay'],
      rows
        .filter(({ samples }) => samples['relay'])
        .map((row) => [
          `${row.title}, ${row.unit}`,
          amount(row, 'Postern'),
          amount(row, 'relay'),
          ratio(row, 'Postern', 'relay'),
          cpu(row, 'Postern'),
          cpu(row, 'relay'),
        ]),
    ),
  ];
}

function httpTables(rows: readonly Row[], memory: readonly MemoryRow[]): string[] {
  return [
    ...section(
      'HTTP: requests a second, and their ratio to direct within each round.',
      ['', 'direct', 'Postern', 'nginx', 'HAProxy', 'http-proxy', 'Postern of nginx', 'direct, most/least'],
      rows.map((row) => [
        row.title,
        amount(row, 'direct'),
        ...httpPeers.map((name) => `${amount(row, name)} ${ratio(row, name)}`.trim()),
        ratio(row, 'Postern', 'nginx'),
        noise(row),
      ]),
    ),
    ...section(
      'HTTP: CPU seconds of the process in between, for 100,000 requests; "of nginx" is the ratio of the medians.',
      ['', ...httpPeers, 'Postern of nginx'],
      rows.map((row) => [
        row.title,
        ...httpPeers.map((name) => cpu(row, name)),
        (spreadOf(cpuOf(row, 'Postern')).median / spreadOf(cpuOf(row, 'nginx')).median).toFixed(2),
      ]),
    ),
    ...section(
      'Memory of the process in between, resident, with idle connections:',
      ['', 'none', 'half', 'all', 'sessions', 'for each'],
      memory.map(({ title, sessions, resident: [none, half, all] }) => [
        title,
        megabytes(none),
        megabytes(half),
        megabytes(all),
        String(sessions),
        `${((all - none) / sessions).toFixed(1)} KiB`,
      ]),
    ),
  ];
}

function startTables(start: readonly StartRow[]): string[] {
  return section(
    'From the start of the process to ready, and what is resident a second later, after one session and after 100:',
    ['', 'ready, ms', 'CPU, ms', 'idle', 'after 1', 'after 100'],
    start.map(({ title, ready, cpu: spent, resident }) => [
      title,
      told(ready, whole),
      told(spent, whole),
      ...[0, 1, 2].map((i) =>
        told(
          resident.map((each) => each[i] ?? 0),
          megabytes,
        ),
      ),
    ]),
  );
}

function growthTables(growth: readonly GrowthRow[]): string[] {
  const before = (server: GrowthRow['server'], title: string) => {
    const rows = growth.filter((row) => row.server === server);
    const counts = rows[0]?.points.map(([sessions]) => sessions) ?? [];
    const [, first = 0] = counts;
    return section(
      title,
      [
        '',
        ...counts.map((count) => (count === 0 ? 'none' : count.toLocaleString('en-US'))),
        'for each after the first',
      ],
      rows.map((row) => {
        const each = perSessionBeyond(row, first);
        return [
          row.title,
          ...row.points.map(([, kibibytes]) => megabytes(kibibytes)),
          each === undefined ? '' : `${each.toFixed(1)} KiB`,
        ];
      }),
    );
  };
  return [
    ...before(
      'PostgreSQL',
      'Memory of the process in between, resident, with idle sessions of PostgreSQL; the last column counts those after the first number of them:',
    ),
    ...before(
      'trusting',
      'The same with idle sessions of a small program that answers logins and queries as PostgreSQL with `trust` does, in one process:',
    ),
  ];
}

function verdicts(all: readonly Verdict[]): string[] {
  if (all.length === 0) return [];
  const lines = all.map(({ aim, outcome, detail }) => `- **${outcome}**: ${aim}: ${detail}`);
  return [
    'What was aimed at, by the rounds in which nobody else used the machine; "level" is within 5 %, which such runs cannot tell apart:',
    '',
    ...lines,
    '',
  ];
}

function limits(rows: readonly Row[]): string[] {
  const lines = rows.flatMap(({ title, limit }) => (limit === undefined ? [] : [`- ${title}: ${limit}`]));
  return lines.length === 0 ? [] : ['What limits each row:', '', ...lines, ''];
}

const httpPeers = ['Postern', 'nginx', 'HAProxy', 'http-proxy'];

function section(title: string, heads: readonly string[], lines: readonly (readonly string[])[]): string[] {
  return lines.length === 0 ? [] : [title, '', table(heads, lines), ''];
}

function table(heads: readonly string[], lines: readonly (readonly string[])[]): string {
  const widths = heads.map((head, i) =>
    Math.max(head.length, 3, ...lines.map((line) => line[i]?.length ?? 0)),
  );
  const row = (cells: readonly string[]) =>
    `| ${cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join(' | ')} |`;
  const rule = widths.map((width, i) => (i === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`));
  return [row(heads), row(rule), ...lines.map(row)].join('\n');
}

function noise(row: Row): string {
  if ((row.samples['direct']?.length ?? 0) < 2) return '';
  return `${noiseOf(row).toFixed(2)}${noiseOf(row) > NOISY ? ' (too noisy)' : ''}`;
}

function foreign(row: Row): string {
  const cores = foreignOf(row);
  return cores.length === 0 ? '' : spreadOf(cores).median.toFixed(2);
}

/** Those in which nobody was disturbed. */
function quietRounds(row: Row): string {
  const all = Object.values(row.samples);
  const rounds = row.samples['direct']?.length ?? 0;
  const quiet = Array.from({ length: rounds }, (_, round) =>
    all.every((samples) => samples[round] === undefined || isQuiet(samples[round])),
  );
  return `${quiet.filter(Boolean).length} of ${rounds}`;
}

function median(row: Row, name: string): string {
  const values = (row.samples[name] ?? []).map(({ value }) => value);
  return values.length === 0 ? '' : whole(spreadOf(values).median);
}

function amount(row: Row, name: string): string {
  return told(
    (row.samples[name] ?? []).map(({ value }) => value),
    whole,
  );
}

function ratio(row: Row, name: string, other?: string): string {
  return told(ratios(row, name, other), (value) => value.toFixed(2));
}

function cpu(row: Row, name: string): string {
  return told(cpuOf(row, name), (value) => value.toFixed(2));
}

function told(values: readonly number[], shown: (value: number) => string): string {
  if (values.length === 0) return '';
  const { median, least, most } = spreadOf(values);
  return values.length === 1 ? shown(median) : `${shown(median)} (${shown(least)} to ${shown(most)})`;
}

function whole(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

function megabytes(kibibytes: number): string {
  return `${(kibibytes / 1024).toFixed(1)} MiB`;
}
