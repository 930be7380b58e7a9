import { QUIET_CORES } from './machine.ts';

/** One number, and what the process in between spent on it. */
export interface Sample {
  readonly value: number;
  /** CPU seconds, user and system, of the process in between. */
  readonly cpuSeconds?: number;
  readonly transactions?: number;
  /** Cores that others kept busy meanwhile; undefined where the kernel does not tell. */
  readonly foreignCores?: number | undefined;
}

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
  /** What ends the growth of its numbers, in a sentence. */
  readonly limit?: string | undefined;
  readonly samples: Readonly<Record<string, readonly Sample[]>>;
}

/** Memory with none, half and all of the sessions. */
export interface MemoryRow {
  readonly title: string;
  readonly sessions: number;
  /** KiB. */
  readonly resident: readonly [number, number, number];
}

/** Memory of one process while sessions come and stay. */
export interface GrowthRow {
  readonly title: string;
  readonly name: string;
  readonly server: 'PostgreSQL' | 'trusting';
  /** How many sessions there were, and how many KiB, in the order in which they came. */
  readonly points: readonly (readonly [sessions: number, kibibytes: number])[];
}

/** Direct runs that differ by more than this say that the machine had other things to do. */
export const NOISY = 1.5;

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

/** Whether nobody else took more of the machine than a measurement can bear. */
export function isQuiet({ foreignCores = 0 }: Sample): boolean {
  return foreignCores <= QUIET_CORES;
}

/** What others took of the machine in all samples of a row, in cores; empty where the kernel does not tell. */
export function foreignOf(row: Row): number[] {
  return Object.values(row.samples).flatMap((samples) =>
    samples.flatMap(({ foreignCores }) => (foreignCores === undefined ? [] : [foreignCores])),
  );
}

/** Whether the row says more about the machine than about who was measured; never with one round, which says nothing of it. */
export function isNoisy(row: Row): boolean {
  const foreign = foreignOf(row);
  return noiseOf(row) > NOISY || (foreign.length > 0 && spreadOf(foreign).median > QUIET_CORES);
}

/** CPU seconds of the process in between for 100,000 transactions, one for each round. */
export function cpuOf(row: Row, name: string): number[] {
  return (row.samples[name] ?? []).flatMap((sample) => cpuOfSample(sample) ?? []);
}

/** CPU seconds for 100,000 transactions. */
export function cpuOfSample({ cpuSeconds, transactions }: Sample): number | undefined {
  return cpuSeconds !== undefined && transactions ? (cpuSeconds / transactions) * 100_000 : undefined;
}
