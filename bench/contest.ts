import { watching } from './machine.ts';
import type { Row, Sample } from './rows.ts';

/** What one run of the benchmark is to do. */
export interface Plan {
  readonly rounds: number;
  readonly seconds: number;
  /** The same for HTTP, which has many rows and long warm-ups. */
  readonly httpSeconds: number;
  readonly only: readonly string[];
  /** One cold round, to see that it works. */
  readonly quick: boolean;
  /** Whether the tables go into docs/performance.md. */
  readonly record: boolean;
  readonly megabytes: number;
  /** Idle sessions, whose memory is counted. */
  readonly idle: {
    readonly http: number;
    /** Counted at each of these, before the real server and before one that trusts everybody. */
    readonly postgres: readonly number[];
    readonly trusting: readonly number[];
  };
}

/** The tables that are kept in docs/performance.md, each by itself. */
export const sections = ['database', 'mysql', 'http', 'start'] as const;
export type Section = (typeof sections)[number];

/** One row in the making. */
export interface Contest {
  readonly id: string;
  readonly title: string;
  readonly unit: string;
  /** What ends the growth of its numbers, in a sentence. */
  readonly limit?: string;
  /** Seconds for which Postern does this before it counts; default 1. */
  readonly warmUp?: number;
  /** Seconds of each measurement, where they are not the plan's. */
  readonly seconds?: number;
  /** Who takes part, `direct` first. */
  readonly entrants: readonly Entrant[];
}

export interface Entrant {
  readonly name: string;
  readonly measure: (seconds: number) => Promise<Sample>;
}

export function entrants<Someone extends { readonly name: string }>(
  field: readonly Someone[],
  measure: (candidate: Someone, seconds: number) => Promise<Sample>,
): Entrant[] {
  return field.map((candidate) => ({
    name: candidate.name,
    measure: (seconds) => measure(candidate, seconds),
  }));
}

/** The section that a row belongs to. */
export function sectionOf(id: string): Section {
  if (id.startsWith('mysql-')) return 'mysql';
  if (id.startsWith('http-')) return 'http';
  return id === 'start' || id === 'memory' ? 'start' : 'database';
}

/** Whether `--only` lets a row in: by its section, by the beginning of its name, and rows of PostgreSQL by any part of theirs. */
export function wanted(id: string, { only }: Pick<Plan, 'only'>): boolean {
  const section = sectionOf(id);
  const anywhere = section === 'database' || section === 'start';
  return (
    only.length === 0 ||
    only.some((word) => section === word || id.startsWith(word) || (anywhere && id.includes(word)))
  );
}

/** Everything once, a round at a time; the order of the candidates is reversed from one round to the next. */
export async function compete(
  chosen: readonly Contest[],
  plan: Plan,
  say: (line: string) => void,
): Promise<Row[]> {
  const samples = new Map(chosen.map(({ id }) => [id, {} as Record<string, Sample[]>]));
  if (!plan.quick) await warmUp(chosen, say);
  for (let round = 1; round <= plan.rounds; round += 1)
    for (const { id, title, unit, seconds = plan.seconds, entrants: all } of chosen) {
      const told: string[] = [];
      for (const { name, measure } of round % 2 === 1 ? all : all.toReversed()) {
        const [sample, around] = await watching(() => measure(seconds));
        ((samples.get(id) ?? {})[name] ??= []).push({ ...sample, ...around });
        told.push(`${name} ${Math.round(sample.value)}`);
      }
      say(`round ${round} of ${plan.rounds}: ${title}: ${told.join(', ')} ${unit}`);
    }
  return chosen.map(({ id, title, unit, limit }) => ({
    id,
    title,
    unit,
    limit,
    samples: samples.get(id) ?? {},
  }));
}

/** Those that are compiled while they run; each is warm after one row, and the others after the first. */
const compiled = ['Postern', 'epoll', 'TypeScript', 'relay', 'http-proxy'];

async function warmUp(chosen: readonly Contest[], say: (line: string) => void): Promise<void> {
  say('warming up');
  for (const [i, contest] of chosen.entries())
    for (const { name, measure } of contest.entrants)
      if (i === 0 || (compiled.includes(name) && !alikeBefore(chosen, i)))
        await measure(name === 'Postern' ? (contest.warmUp ?? 1) : 1);
}

/** Whether the same kind of work was warmed up before: its rows differ in the number of clients alone. */
function alikeBefore(chosen: readonly Contest[], index: number): boolean {
  const kind = ({ id }: Contest) => id.replace(/-c\d+/, '');
  const own = chosen[index];
  return own !== undefined && chosen.slice(0, index).some((other) => kind(other) === kind(own));
}
