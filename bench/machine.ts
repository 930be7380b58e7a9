import { readdir, readFile } from 'node:fs/promises';
import { setPriority } from 'node:os';

import { capture } from '../test/support/servers/process.ts';
import { readRecord, recordNames } from '../test/support/servers/state.ts';

/** What the whole machine did while something was measured. */
export interface Surroundings {
  /** Cores that others kept busy: other programs, and other guests of the same host. */
  readonly foreignCores: number;
}

/** More of others than this, and a measurement says too much about them. */
export const QUIET_CORES = 0.2;

/** Runs something and says what others did with the machine meanwhile; undefined where the kernel does not tell. */
export async function watching<T>(work: () => Promise<T>): Promise<readonly [T, Surroundings | undefined]> {
  if (process.platform !== 'linux') return [await work(), undefined];
  const before = await look();
  const result = await work();
  const after = await look();
  const seconds = (after.time - before.time) / 1000;
  const others = after.busy - before.busy - (after.own - before.own);
  return [result, { foreignCores: Math.max(0, others / seconds) }];
}

/** Raises the priority of this process and all that it starts; false where that is not permitted. */
export function hurry(): boolean {
  try {
    setPriority(-10);
    return true;
  } catch {
    return false;
  }
}

/** Asks for room for this many open files in this process and all that it starts, and says how many it is. */
export async function allowOpenFiles(count: number): Promise<number> {
  const now = await openFiles();
  if (now >= count) return now;
  // Only with CAP_SYS_RESOURCE, which root in a container need not have.
  await capture('prlimit', ['--pid', String(process.pid), `--nofile=${count}:${count}`]).catch(() => {});
  return await openFiles();
}

async function openFiles(): Promise<number> {
  const text = await readFile('/proc/self/limits', 'utf8');
  return Number(/^Max open files\s+(\d+)/m.exec(text)?.[1]);
}

interface Look {
  readonly time: number;
  /** CPU seconds of everything, and of what belongs to this run. */
  readonly busy: number;
  readonly own: number;
}

async function look(): Promise<Look> {
  const ticks = await ticksPerSecond();
  const own = ownTicks(await processes(), await roots());
  const stat = await readFile('/proc/stat', 'utf8');
  return { time: performance.now(), busy: busyTicks(stat) / ticks, own: own / ticks };
}

/**
 * Ticks of all cores in user and system mode, and those taken by the host. Interrupts are left out: where the kernel counts
 * them by themselves, those that carry the bytes of loopback are in nobody's own time.
 */
export function busyTicks(stat: string): number {
  const [, user = 0, nice = 0, system = 0, , , , , steal = 0] = (stat.split('\n')[0] ?? '')
    .split(/\s+/)
    .map(Number);
  return user + nice + system + steal;
}

/** One process of /proc. */
export interface ProcessTicks {
  readonly pid: number;
  readonly parent: number;
  /** User and system time, its own and that of its children that have ended. */
  readonly ticks: number;
}

/** The fields of /proc/PID/stat that count here. */
export function parseStat(stat: string): ProcessTicks {
  // The second field is the program's name in parentheses, which may hold anything; count from behind it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ticks = [11, 12, 13, 14].reduce((sum, i) => sum + Number(fields[i]), 0);
  return { pid: Number.parseInt(stat, 10), parent: Number(fields[1]), ticks };
}

/**
 * The time of `roots` and everything below them. A process that ends between two looks does not take its time away:
 * whoever waited for it has it.
 */
export function ownTicks(all: readonly ProcessTicks[], roots: readonly number[]): number {
  const children = Map.groupBy(all, ({ parent }) => parent);
  const byPid = new Map(all.map((each) => [each.pid, each]));
  const seen = new Set<number>();
  let sum = 0;
  for (const waiting = [...roots]; waiting.length > 0; ) {
    const pid = waiting.pop() ?? 0;
    if (seen.has(pid)) continue;
    seen.add(pid);
    sum += byPid.get(pid)?.ticks ?? 0;
    for (const child of children.get(pid) ?? []) waiting.push(child.pid);
  }
  return sum;
}

/** Every process that there is. */
export async function processes(): Promise<ProcessTicks[]> {
  const names = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const stats = await Promise.all(
    names.map((name) => readFile(`/proc/${name}/stat`, 'utf8').catch(() => undefined)),
  );
  return stats.flatMap((stat) => (stat === undefined ? [] : [parseStat(stat)]));
}

let shared: Promise<number[]> | undefined;

/** This process, and the servers that are shared with the tests: somebody else may have started them. */
async function roots(): Promise<number[]> {
  const others = await (shared ??= sharedServers());
  return [process.pid, ...others];
}

async function sharedServers(): Promise<number[]> {
  const records = await Promise.all((await recordNames()).map((name) => readRecord(name)));
  return records.flatMap((record) =>
    record?.process && (record.owner === undefined || record.owner.pid === process.pid)
      ? [record.process.pid]
      : [],
  );
}

let ticksOfSecond: Promise<number> | undefined;

/** The unit of CPU times in /proc. */
export async function ticksPerSecond(): Promise<number> {
  return await (ticksOfSecond ??= capture('getconf', ['CLK_TCK']).then(({ stdout }) => Number(stdout)));
}
