import { readdirSync, readFileSync, statSync } from 'node:fs';

import type { Registry } from './registry.ts';

/** How often the event loop is asked how late it is, in milliseconds: 0.02 % of a CPU (decision 0012). */
const SAMPLE_INTERVAL = 1000;

/** What the process uses now. */
export interface ProcessState {
  readonly residentBytes: number;
  readonly cpuSeconds: number;
  readonly descriptors: number | undefined;
  readonly mostDescriptors: number | undefined;
}

const linux = process.platform === 'linux';

/** Looked up at once: nothing of it is kept. */
export function processState(): ProcessState {
  const { user, system } = process.cpuUsage();
  return {
    residentBytes: process.memoryUsage.rss(),
    cpuSeconds: (user + system) / 1e6,
    descriptors: openDescriptors(),
    mostDescriptors: mostDescriptors(),
  };
}

/** Defines the metrics of the process under their usual names, and of the event loop. Returns what ends the sampling. */
export function observeProcess(registry: Registry): () => void {
  const one = (type: 'counter' | 'gauge', name: string, help: string, read: () => number | undefined) =>
    registry.lookup(type, { name, help }, () => {
      const value = read();
      return value === undefined ? [] : [[{}, value] as const];
    });
  const startedAt = (Date.now() - process.uptime() * 1000) / 1000;
  one('counter', 'process_cpu_seconds_total', 'CPU time of the process.', () => processState().cpuSeconds);
  one('counter', 'process_cpu_user_seconds_total', 'Of it, outside of the kernel.', () => {
    return process.cpuUsage().user / 1e6;
  });
  one('counter', 'process_cpu_system_seconds_total', 'Of it, in the kernel.', () => {
    return process.cpuUsage().system / 1e6;
  });
  one('gauge', 'process_start_time_seconds', 'When the process was started.', () => startedAt);
  one('gauge', 'process_resident_memory_bytes', 'Memory that the process has in RAM.', () =>
    process.memoryUsage.rss(),
  );
  one('gauge', 'process_virtual_memory_bytes', 'Address space of the process.', virtualBytes);
  one('gauge', 'process_open_fds', 'Descriptors that are open.', openDescriptors);
  one('gauge', 'process_max_fds', 'Descriptors that may be open.', mostDescriptors);
  one('gauge', 'nodejs_heap_size_used_bytes', 'JavaScript objects.', () => process.memoryUsage().heapUsed);
  one(
    'gauge',
    'nodejs_heap_size_total_bytes',
    'Memory reserved for JavaScript objects.',
    () => process.memoryUsage().heapTotal,
  );
  one(
    'gauge',
    'nodejs_external_memory_bytes',
    'Buffers, and what else lies outside of the heap.',
    () => process.memoryUsage().external,
  );
  one(
    'counter',
    'postern_event_loop_busy_seconds_total',
    'Time in which the event loop did not wait; its rate is the share of one CPU.',
    () => performance.eventLoopUtilization().active / 1000,
  );
  return sampleDelay(registry);
}

/** Whatever holds up the event loop holds up every session; a timer that is late says by how much. */
function sampleDelay(registry: Registry): () => void {
  const delays = registry.histogram(
    {
      name: 'postern_event_loop_delay_seconds',
      help: 'How late a timer is that is due once a second.',
    },
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
  );
  let due = performance.now() + SAMPLE_INTERVAL;
  const timer = setInterval(() => {
    const now = performance.now();
    delays.observe({}, Math.max(0, now - due) / 1000);
    due = now + SAMPLE_INTERVAL;
  }, SAMPLE_INTERVAL).unref();
  return () => clearInterval(timer);
}

function openDescriptors(): number | undefined {
  if (!linux) return undefined;
  // Linux 6.2 and newer count them; a listing of twenty thousand takes tens of milliseconds.
  const counted = statSync('/proc/self/fd').size;
  return counted > 0 ? counted : readdirSync('/proc/self/fd').length - 1;
}

function mostDescriptors(): number | undefined {
  return procNumber('/proc/self/limits', /^Max open files\s+(\d+)/m);
}

function virtualBytes(): number | undefined {
  const kilobytes = procNumber('/proc/self/status', /^VmSize:\s+(\d+) kB/m);
  return kilobytes === undefined ? undefined : kilobytes * 1024;
}

function procNumber(file: string, pattern: RegExp): number | undefined {
  const found = linux ? pattern.exec(readFileSync(file, 'utf8'))?.[1] : undefined;
  return found === undefined ? undefined : Number(found);
}
