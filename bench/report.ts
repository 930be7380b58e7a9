import type { Sample } from './measure.ts';
import type { StartRow } from './start.ts';

/** Median, least and most. */
export interface Spread {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

/** One line of the table: all its samples, by candidate, in the order of the rounds. */
export interface Row {
  readonly id: string;
  readonly title: string;
  readonly unit: string;
  readonly samples: Readonly<Record<string, readonly Sample[]>>;
}

export interface MemoryRow {
  readonly title: string;
  readonly sessions: number;
  /** KiB with none, half and all of the sessions. */
  readonly resident: readonly [number, number, number];
}

/** Everything that one run found out. */
export interface Results {
  readonly command: string;
  readonly facts: Readonly<Record<string, string>>;
  readonly rows: readonly Row[];
  readonly memory: readonly MemoryRow[];
  readonly start?: readonly StartRow[];
  readonly missing: readonly string[];
}

/** Direct runs that differ by more than this say that the machine had other things to do. */
const NOISY = 1.5;

export function spreadOf(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const median = ((sorted[Math.ceil(middle) - 1] ?? 0) + (sorted[Math.floor(middle)] ?? 0)) / 2;
  return { median, least: sorted[0] ?? 0, most: sorted.at(-1) ?? 0 };
}

/** Each round's value by the same round's other one: what the machine did meanwhile falls out of it. */
export function ratios(row: Row, name: string, other = 'direct'): number[] {
  const base = row.samples[other] ?? [];
  return (row.samples[name] ?? []).map(({ value }, round) => value / (base[round]?.value ?? Number.NaN));
}

/** How far the direct runs of a row were apart. */
export function noiseOf(row: Row): number {
  const { least, most } = spreadOf((row.samples['direct'] ?? []).map(({ value }) => value));
  return most / least;
}

/** CPU seconds of the process in between for 100,000 transactions, one for each round. */
export function cpuOf(row: Row, name: string): number[] {
  return (row.samples[name] ?? []).flatMap(({ cpuSeconds, transactions }) =>
    cpuSeconds !== undefined && transactions ? [(cpuSeconds / transactions) * 100_000] : [],
  );
}

/** The tables, in Markdown. */
export function markdown(results: Results): string {
  const { rows, memory, start = [], facts, missing, command } = results;
  const noisy = rows.filter((row) => noiseOf(row) > NOISY);
  return [
    `Command: \`${command}\``,
    '',
    ...Object.entries(facts).map(([name, value]) => `- ${name}: ${value}`),
    ...missing.map((what) => `- not here: ${what}`),
    `- noise: ${
      rows.every(({ samples }) => (samples['direct']?.length ?? 0) < 2)
        ? 'one round says nothing about it'
        : noisy.length === 0
          ? `the direct runs of every row are within a factor of ${NOISY}`
          : `too noisy to tell in ${noisy.length === rows.length ? 'every row' : noisy.map(({ title }) => title).join('; ')} (direct runs differ by more than a factor of ${NOISY})`
    }`,
    '',
    ...section(
      'Median (least to most). "of direct" is the ratio within each round.',
      ['', 'direct', 'Postern', 'of direct', 'PgBouncer', 'of direct', 'direct, most/least'],
      rows
        .filter(isDatabase)
        .map((row) => [
          `${row.title}, ${row.unit}`,
          amount(row, 'direct'),
          amount(row, 'Postern'),
          ratio(row, 'Postern'),
          amount(row, 'PgBouncer'),
          ratio(row, 'PgBouncer'),
          noise(row),
        ]),
    ),
    ...section(
      'CPU seconds of the process in between, for 100,000 transactions:',
      ['', 'Postern', 'PgBouncer'],
      rows
        .filter((row) => isDatabase(row) && cpuOf(row, 'Postern').length > 0)
        .map((row) => [row.title, cpu(row, 'Postern'), cpu(row, 'PgBouncer')]),
    ),
    ...section(
      'HTTP: requests a second, and their ratio to direct within each round.',
      ['', 'direct', 'Postern', 'nginx', 'HAProxy', 'http-proxy', 'Postern of nginx', 'direct, most/least'],
      rows
        .filter((row) => !isDatabase(row))
        .map((row) => [
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
      rows
        .filter((row) => !isDatabase(row))
        .map((row) => [
          row.title,
          ...httpPeers.map((name) => cpu(row, name)),
          (spreadOf(cpuOf(row, 'Postern')).median / spreadOf(cpuOf(row, 'nginx')).median).toFixed(2),
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
    ...section(
      'Memory of the process in between, resident, with idle sessions:',
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
    ...section(
      'From the start of the process to ready, and what is resident a second later, after one session and after 100:',
      ['', 'ready, ms', 'CPU, ms', 'idle', 'after 1', 'after 100'],
      start.map(({ title, ready, cpu, resident }) => [
        title,
        told(ready, whole),
        told(cpu, whole),
        ...[0, 1, 2].map((i) =>
          told(
            resident.map((each) => each[i] ?? 0),
            megabytes,
          ),
        ),
      ]),
    ),
  ].join('\n');
}

const httpPeers = ['Postern', 'nginx', 'HAProxy', 'http-proxy'];

function isDatabase({ id }: Row): boolean {
  return !id.startsWith('http-');
}

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
