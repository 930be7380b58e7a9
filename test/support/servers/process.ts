import { execFileSync, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** A user that a server runs as. */
export interface Identity {
  readonly uid: number;
  readonly gid: number;
}

/** One process for good: a pid alone may belong to someone else by the time it is signalled. */
export interface ProcessMark {
  readonly pid: number;
  readonly born: string;
}

/** What a finished program left. */
export interface Output {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly ms: number;
}

interface RunOptions {
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  readonly input?: string;
  readonly identity?: Identity | undefined;
  /** Milliseconds until the program is killed. */
  readonly timeout?: number;
}

/** A server that this machine does not have and cannot get; the message says what to install. */
export class Unavailable extends Error {
  override readonly name = 'Unavailable';
}

const longestOutput = 16 * 1024 * 1024;

/** Runs a program to its end, whatever its exit code; rejects only when it cannot be started or exceeds its time or output. */
export function capture(command: string, args: readonly string[], options: RunOptions = {}): Promise<Output> {
  const { timeout = 60_000 } = options;
  const started = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      env: options.env ?? process.env,
      cwd: options.cwd,
      stdio: ['pipe', 'pipe', 'pipe'],
      ...options.identity,
    });
    const output = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
    let size = 0;
    let fault: Error | undefined;
    const stop = (reason: string) => {
      fault ??= new Error(`${command} ${reason}`);
      child.kill('SIGKILL');
    };
    const timer = setTimeout(() => stop(`did not end within ${timeout} ms`), timeout);
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].on('data', (chunk: Buffer) => {
        size += chunk.length;
        if (size > longestOutput) stop('printed too much');
        else output[name].push(chunk);
      });
    }
    child.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      if (fault) reject(fault);
      else {
        resolve({
          code: code ?? (signal ? 128 : 1),
          stdout: Buffer.concat(output.stdout).toString(),
          stderr: Buffer.concat(output.stderr).toString(),
          ms: Math.round(performance.now() - started),
        });
      }
    });
    // A program that ends without reading its input closes the pipe: its exit code says what happened.
    child.stdin.on('error', () => {});
    child.stdin.end(options.input ?? '');
  });
}

/** Runs a program that must succeed; the error carries the end of what it said. */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Output> {
  const output = await capture(command, args, options);
  if (output.code === 0) return output;
  throw new Error(
    `${command} ended with ${output.code}: ${(output.stderr || output.stdout).trim().slice(-2000)}`,
  );
}

interface Launch {
  readonly command: string;
  readonly args: readonly string[];
  readonly log: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  readonly identity?: Identity | undefined;
}

/** Starts a program that outlives this process, in a process group of its own, its output in a file. */
export async function launch(program: Launch): Promise<ProcessMark> {
  const log = openSync(program.log, 'a', 0o600);
  try {
    const child = spawn(program.command, program.args, {
      env: program.env ?? process.env,
      cwd: program.cwd,
      detached: true,
      stdio: ['ignore', log, log],
      ...program.identity,
    });
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', reject);
    });
    child.unref();
    const pid = child.pid ?? 0;
    return { pid, born: born(pid) ?? '' };
  } finally {
    closeSync(log);
  }
}

/** When a process began, in the kernel's own words; undefined when there is none (or only its corpse). */
function born(pid: number): string | undefined {
  try {
    if (process.platform !== 'linux') {
      const text = execFileSync('ps', ['-o', 'lstart=', '-p', String(pid)], {
        encoding: 'utf8',
        stdio: 'pipe',
      });
      return text.trim() || undefined;
    }
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The second field is the program's name in parentheses, which may hold anything; count from behind it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

/** The mark of a running process. */
export function mark(pid: number): ProcessMark {
  return { pid, born: born(pid) ?? '' };
}

/** Whether this very process still runs. */
export function alive({ pid, born: then }: ProcessMark): boolean {
  return pid > 0 && born(pid) === then;
}

/** Signals a process, waits for its end, and kills its whole group when it does not come within `grace` milliseconds. */
export async function end(
  target: ProcessMark,
  signal: NodeJS.Signals = 'SIGTERM',
  grace = 8000,
): Promise<void> {
  if (!alive(target)) return;
  send(target.pid, signal);
  for (const deadline = Date.now() + grace; Date.now() < deadline && alive(target); ) await sleep(20);
  if (!alive(target)) return;
  send(-target.pid, 'SIGKILL');
  for (const deadline = Date.now() + grace; Date.now() < deadline && alive(target); ) await sleep(20);
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It ended by itself in the meantime.
  }
}

/** Kills the children of a process, as a crash would, and leaves the parent to notice. */
export async function killChildren(parent: ProcessMark): Promise<void> {
  const { stdout } = await run('ps', ['-A', '-o', 'pid=,ppid=']);
  for (const line of stdout.split('\n')) {
    const [pid, ppid] = line.trim().split(/\s+/).map(Number);
    if (pid && ppid === parent.pid) send(pid, 'SIGKILL');
  }
}

/** A TCP port of 127.0.0.1 that was free a moment ago. */
export async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolve, reject) => {
    probe.once('error', reject);
    probe.listen(0, '127.0.0.1', resolve);
  });
  const address = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  if (address === null || typeof address === 'string') throw new Error('no TCP port could be had');
  return address.port;
}

/** Whether something accepts connections there. */
export function answers(port: number, host = '127.0.0.1'): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, host, timeout: 2000 });
    const settle = (result: boolean) => {
      socket.destroy();
      resolve(result);
    };
    socket.once('connect', () => settle(true));
    socket.once('error', () => settle(false));
    socket.once('timeout', () => settle(false));
  });
}

/** Waits until a launched server is ready; fails at once, with the end of its log, when it has died. */
export async function ready(
  what: string,
  daemon: ProcessMark,
  log: string,
  check: () => Promise<boolean>,
): Promise<void> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const running = alive(daemon);
    if (running && (await check().catch(() => false))) return;
    if (!running || Date.now() > deadline) {
      const tail = readFileSync(log, 'utf8').slice(-1500);
      throw new Error(`${what} ${running ? 'does not answer' : 'ended'}; its log ends with:\n${tail}`);
    }
    await sleep(30);
  }
}

/** Whom servers run as that refuse root: `nobody` when we are root, else ourselves (undefined). */
export async function unprivileged(): Promise<Identity | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const [uid, gid] = await Promise.all(['-u', '-g'].map((flag) => run('id', [flag, 'nobody'])));
  return { uid: Number(uid?.stdout), gid: Number(gid?.stdout) };
}
