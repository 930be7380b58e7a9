import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { capture } from '../test/support/servers/process.ts';
import { canary, startPostgres } from '../test/support/servers.ts';
import { openSession } from './measure.ts';

/** What one program takes to start, and what it keeps: a number for each round. */
export interface StartRow {
  readonly title: string;
  /** Milliseconds from the spawn of the process to the line in which it says that it takes connections. */
  readonly ready: readonly number[];
  /** CPU milliseconds, user and system, up to then: what other work on the machine changes least. */
  readonly cpu: readonly number[];
  /** Resident KiB a second after that, and after 1 and 100 sessions that have come and gone. */
  readonly resident: readonly (readonly [idle: number, after1: number, after100: number])[];
}

interface Program {
  readonly title: string;
  readonly args: readonly string[];
  /** undefined: takes no sessions. */
  readonly port: ((output: string) => number) | undefined;
}

const root = join(import.meta.dirname, '..');
const TICKS_A_SECOND = 100;
const plainNode =
  "require('node:net').createServer().listen(0, '127.0.0.1', () => console.log('ready to listen'));";

/**
 * Starts the built package with one service of PostgreSQL, and for comparison Node.js with one listener and nothing else,
 * by turns. Builds `dist` first.
 */
export async function measureStart(rounds: number): Promise<StartRow[]> {
  const built = await capture('sh', ['scripts/build.sh'], { cwd: root, timeout: 120_000 });
  if (built.code !== 0) throw new Error(`the build failed: ${built.stderr.trim()}`);
  const postgres = await startPostgres({ version: 18 });
  const folder = await mkdtemp(join(tmpdir(), 'postern-start-'));
  try {
    const file = join(folder, 'postern.yaml');
    const login = join(folder, 'login.json');
    await writeFile(login, JSON.stringify({ username: 'scram_user', password: canary.postgres }));
    await writeFile(file, configuration(postgres.port, login));
    const main = join(root, 'dist', 'main.js');
    const programs: Program[] = [
      { title: 'Node.js, one listener', args: ['-e', plainNode], port: undefined },
      { title: 'Postern, one service', args: ['--use-system-ca', main, '-f', file], port: portOf },
    ];
    const rows = programs.map(({ title }) => ({
      title,
      ready: [] as number[],
      cpu: [] as number[],
      resident: [] as [number, number, number][],
    }));
    for (let round = 0; round < rounds; round += 1)
      for (const [i, program] of programs.entries()) {
        const { ready, cpu, resident } = await startOnce(program);
        rows[i]?.ready.push(ready);
        rows[i]?.cpu.push(cpu);
        rows[i]?.resident.push(resident);
      }
    return rows;
  } finally {
    await rm(folder, { recursive: true, force: true });
    await postgres.stop();
  }
}

function configuration(port: number, login: string): string {
  const get = (field: string) => `{ from: file, get: ${JSON.stringify(`${login}#${field}`)} }`;
  return `version: 2
admin: { listenOn: 'tcp://127.0.0.1:0' }
services:
  db:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: ${get('username')}, password: ${get('password')} }
    config: { host: 127.0.0.1, port: ${port}, tls: { mode: disable } }
`;
}

/** The environment is that of the image. */
async function startOnce({ args, port }: Program) {
  const began = performance.now();
  const child = spawn(process.execPath, args, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {
      PATH: process.env['PATH'],
      NODE_ENV: 'production',
      MALLOC_ARENA_MAX: '1',
      MALLOC_TRIM_THRESHOLD_: '131072',
    },
  });
  const { pid = 0 } = child;
  try {
    let output = '';
    for await (const line of createInterface(child.stdout)) {
      output += `${line}\n`;
      if (line.includes('ready')) break;
    }
    const ready = performance.now() - began;
    const cpu = await cpuMilliseconds(pid);
    child.stdout.resume();
    const idle = await residentLater(pid);
    const resident: [number, number, number] = [idle, idle, idle];
    if (port) {
      await comeAndGo(port(output), 1);
      resident[1] = await residentLater(pid);
      await comeAndGo(port(output), 99);
      resident[2] = await residentLater(pid);
    }
    return { ready, cpu, resident };
  } finally {
    child.kill();
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }
}

function portOf(output: string): number {
  const port = /"service":"db","address":"tcp:\/\/127\.0\.0\.1:(\d+)"/.exec(output)?.[1];
  if (port === undefined) throw new Error('Postern did not say where it listens');
  return Number(port);
}

async function comeAndGo(port: number, sessions: number): Promise<void> {
  for (let left = sessions; left > 0; left -= 1) {
    const socket: Socket = await openSession(port);
    socket.end();
    if (!socket.closed) await once(socket, 'close');
  }
}

async function residentLater(pid: number): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Number(/^Rss:\s+(\d+) kB$/m.exec(rollup)?.[1]);
}

async function cpuMilliseconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  // The name of the program, in parentheses, may hold anything.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / TICKS_A_SECOND;
}
