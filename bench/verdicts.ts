import { cpuOfSample, type GrowthRow, isQuiet, type Row, type Sample, spreadOf } from './rows.ts';
import type { StartRow } from './start.ts';

/** Whether one of the aims was met. */
export interface Verdict {
  readonly aim: string;
  readonly outcome: 'holds' | 'level' | 'misses' | 'cannot tell' | 'not measured';
  /** The number, and how far it can be trusted. */
  readonly detail: string;
}

/** One number that is to be so large, or so small, beside somebody else's. */
interface Comparison {
  readonly row: string;
  readonly who: string;
  /** Beside the best of these in each round. */
  readonly beside: readonly string[];
  readonly of: 'rate' | 'cpu';
  readonly bound: number;
}

const comparisons: readonly Comparison[] = [
  { row: 'select-c8', who: 'Postern', beside: ['PgBouncer'], of: 'rate', bound: 1.1 },
  { row: 'select-c8', who: 'Postern', beside: ['HAProxy'], of: 'rate', bound: 1.15 },
  ...['select-c1', 'select-c32'].flatMap((row) =>
    ['PgBouncer', 'HAProxy'].map(
      (peer): Comparison => ({ row, who: 'Postern', beside: [peer], of: 'rate', bound: 1 }),
    ),
  ),
  ...['select-c1', 'select-c8', 'select-c32'].map(
    (row): Comparison => ({ row, who: 'epoll', beside: ['PgBouncer'], of: 'cpu', bound: 1 }),
  ),
  { row: 'copy', who: 'Postern', beside: ['HAProxy', 'PgBouncer', 'Go'], of: 'rate', bound: 1 },
  { row: 'select-c8-tls', who: 'TypeScript', beside: ['Go'], of: 'rate', bound: 1 },
  { row: 'copy-tls', who: 'TypeScript', beside: ['Go'], of: 'rate', bound: 1 },
  { row: 'connect', who: 'Postern', beside: ['direct'], of: 'rate', bound: 2 },
];

/** Fewer quiet rounds than this are not enough to say anything. */
const ENOUGH_ROUNDS = 3;
/** Runs that differ by less cannot be told apart. */
const LEVEL = 0.05;
/** KiB for each idle session beyond the first 1,000. */
const MOST_PER_SESSION = 8;
const MOST_READY_MS = 250;
const MOST_IDLE_MIB = 60;

/** Holds what was measured against the aims. Rounds in which others used the machine do not count. */
export function verdictsOn(
  rows: readonly Row[],
  growth: readonly GrowthRow[],
  start: readonly StartRow[],
): Verdict[] {
  return [
    ...comparisons.map((comparison) => compare(comparison, rows)),
    sessionsVerdict(growth),
    ...startVerdicts(start),
  ].filter(({ outcome }) => outcome !== 'not measured');
}

function compare({ row: id, who, beside, of, bound }: Comparison, rows: readonly Row[]): Verdict {
  const against = beside.length === 1 ? (beside[0] ?? '') : `the best of ${beside.join(', ')}`;
  const aim = `${id}: ${of === 'cpu' ? 'CPU of ' : ''}${who} at ${of === 'cpu' ? 'most' : 'least'} ${bound.toFixed(2)} x ${against}`;
  const row = rows.find((each) => each.id === id);
  const present = beside.filter((name) => row?.samples[name]);
  const own = row?.samples[who];
  if (!row || !own || present.length === 0) return { aim, outcome: 'not measured', detail: '' };
  const others = present.map((name) => row.samples[name] ?? []);
  const counted = own.flatMap((sample, round) => {
    const peers = others.flatMap((samples) => samples[round] ?? []);
    return [sample, ...peers].every(isQuiet) ? (ratioOf(sample, peers, of) ?? []) : [];
  });
  if (counted.length < ENOUGH_ROUNDS)
    return {
      aim,
      outcome: 'cannot tell',
      detail: `${counted.length} of ${own.length} rounds were quiet enough, ${ENOUGH_ROUNDS} are needed`,
    };
  const { median, least, most } = spreadOf(counted);
  const detail = `${median.toFixed(2)} (${least.toFixed(2)} to ${most.toFixed(2)}) in ${counted.length} quiet rounds`;
  return { aim, outcome: of === 'cpu' ? atMost(median, bound) : atLeast(median, bound), detail };
}

function ratioOf(sample: Sample, peers: readonly Sample[], of: 'rate' | 'cpu'): number | undefined {
  if (of === 'rate') return sample.value / Math.max(...peers.map(({ value }) => value));
  const own = cpuOfSample(sample);
  const best = Math.min(...peers.flatMap((peer) => cpuOfSample(peer) ?? []));
  return own === undefined || !Number.isFinite(best) ? undefined : own / best;
}

/** Only an aim of being no worse can be level: one of being better by so much is met or not. */
function atLeast(value: number, bound: number): Verdict['outcome'] {
  if (value >= bound) return 'holds';
  return bound === 1 && value >= 1 - LEVEL ? 'level' : 'misses';
}

function atMost(value: number, bound: number): Verdict['outcome'] {
  if (value <= bound) return 'holds';
  return bound === 1 && value <= 1 + LEVEL ? 'level' : 'misses';
}

function sessionsVerdict(growth: readonly GrowthRow[]): Verdict {
  const aim = `memory: at most ${MOST_PER_SESSION} KiB for each idle session of Postern beyond the first 1,000`;
  const row = growth.findLast(({ name }) => name === 'Postern');
  const each = row && perSessionBeyond(row, 1000);
  if (each === undefined) return { aim, outcome: 'not measured', detail: '' };
  const sessions = row?.points.at(-1)?.[0] ?? 0;
  return {
    aim,
    outcome: each <= MOST_PER_SESSION ? 'holds' : 'misses',
    detail: `${each.toFixed(1)} KiB up to ${sessions.toLocaleString('en-US')}`,
  };
}

/** KiB for each session after the first so many; undefined where there were none after them. */
export function perSessionBeyond({ points }: GrowthRow, first: number): number | undefined {
  const from = points.find(([sessions]) => sessions === first);
  const to = points.at(-1);
  return from && to && to[0] > first ? (to[1] - from[1]) / (to[0] - first) : undefined;
}

function startVerdicts(start: readonly StartRow[]): Verdict[] {
  const row = start.find(({ title }) => title.startsWith('Postern'));
  if (!row) return [];
  const ready = spreadOf(row.ready);
  const cpu = spreadOf(row.cpu);
  const idle = spreadOf(row.resident.map(([kibibytes]) => kibibytes / 1024));
  return [
    {
      aim: `start: ready within ${MOST_READY_MS} ms`,
      outcome: readyOutcome(ready.median, cpu.median),
      detail: `${ready.median.toFixed(0)} ms (${ready.least.toFixed(0)} to ${ready.most.toFixed(0)}), of CPU ${cpu.median.toFixed(0)} ms`,
    },
    {
      aim: `start: less than ${MOST_IDLE_MIB} MiB resident`,
      outcome: idle.median < MOST_IDLE_MIB ? 'holds' : 'misses',
      detail: `${idle.median.toFixed(1)} MiB`,
    },
  ];
}

/** A start that waited for a core longer than it ran says more about the machine. */
function readyOutcome(ready: number, cpu: number): Verdict['outcome'] {
  if (ready < MOST_READY_MS) return 'holds';
  return cpu >= MOST_READY_MS || ready < 2 * cpu ? 'misses' : 'cannot tell';
}
