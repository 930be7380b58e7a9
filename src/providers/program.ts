import { type ChildProcess, spawn } from 'node:child_process';

import { PosternError, reasonOf } from '../core/errors.ts';
import { refuseAborted, untilAborted, whyAborted } from './deadline.ts';

/** No secret is longer than this. */
const maxOutput = 64 * 1024;
/** Programs of one provider at once; more wait for their turn. */
const mostAtOnce = 8;
/** Milliseconds that a program gets to end after SIGTERM. */
const grace = 1000;
/**
 * Milliseconds that a program's output may stay open after its end. Another one that is started at that moment holds it, too,
 * between its fork and its exec, which on a busy machine takes a while.
 */
const outputGrace = 3000;

/** A program to run for what it prints. */
export interface Program {
  /** The program and its arguments; no shell reads them. */
  readonly command: readonly string[];
  /** All of its environment. */
  readonly environment: Readonly<Record<string, string>>;
  /** Milliseconds until it is stopped. */
  readonly timeout: number;
}

/** A program that ended by itself: its exit code, and its standard output, which is wiped when this is disposed of. */
export interface Ended extends Disposable {
  readonly code: number;
  readonly output: Buffer;
}

/**
 * Runs programs for a provider, and leaves none behind.
 *
 * Standard input and standard error are closed to them: what a program says of its failure may hold the secret, so
 * nothing of it is read. Each is the leader of a process group of its own, which is stopped as a whole.
 */
export class Programs {
  readonly #provider: string;
  /** Programs that run, each with a promise of its end. */
  readonly #running = new Map<ChildProcess, Promise<void>>();
  readonly #closed = new AbortController();

  /** `provider` is its name in messages. */
  constructor(provider: string) {
    this.#provider = provider;
  }

  /**
   * Waits for the program's end, whatever its exit code. Throws PROVIDER_FAILED when it cannot be started or prints
   * more than 64 KiB, PROVIDER_UNAVAILABLE when it takes too long or is ended by a signal, and why `signal` aborted.
   */
  async run(program: Program, signal: AbortSignal): Promise<Ended> {
    const either = AbortSignal.any([signal, this.#closed.signal]);
    refuseAborted(either);
    while (this.#running.size >= mostAtOnce) {
      const oneEnds = Promise.race(this.#running.values());
      await untilAborted(oneEnds, either, `provider "${this.#provider}": waiting for other programs`);
    }
    return await this.#start(program, either);
  }

  /** Stops what runs, and waits until it is gone. */
  async close(signal: AbortSignal): Promise<void> {
    this.#closed.abort(new PosternError('SHUTDOWN', `provider "${this.#provider}" was closed`));
    const gone = Promise.all(this.#running.values()).then(() => undefined);
    await untilAborted(gone, signal, `provider "${this.#provider}": stopping its programs`);
  }

  #start({ command, environment, timeout }: Program, signal: AbortSignal): Promise<Ended> {
    const [program = '', ...words] = command;
    const error = (code: 'PROVIDER_FAILED' | 'PROVIDER_UNAVAILABLE', text: string) =>
      new PosternError(code, `provider "${this.#provider}": ${program} ${text}`);

    let child: ChildProcess;
    try {
      child = spawn(program, words, {
        env: { ...environment },
        stdio: ['ignore', 'pipe', 'ignore'],
        detached: true,
      });
    } catch (thrown) {
      throw error('PROVIDER_FAILED', `cannot be started (${reasonOf(thrown)})`);
    }
    const { promise, resolve, reject } = Promise.withResolvers<Ended>();
    const gone = Promise.withResolvers<void>();
    this.#running.set(child, gone.promise);
    const chunks: Buffer[] = [];
    let size = 0;
    let settled = false;
    let held: NodeJS.Timeout | undefined;

    const settle = () => {
      settled = true;
      clearTimeout(late);
      clearTimeout(held);
      signal.removeEventListener('abort', abort);
    };
    const fail = (why: PosternError) => {
      if (settled) return;
      settle();
      for (const chunk of chunks) chunk.fill(0);
      child.stdout?.destroy();
      reject(why);
    };
    const stop = (why: PosternError) => {
      if (settled) return;
      fail(why);
      terminate(child);
    };
    const abort = () => stop(whyAborted(signal, `provider "${this.#provider}": running ${program}`));
    const late = setTimeout(
      () => stop(error('PROVIDER_UNAVAILABLE', `did not end within ${timeout} ms, and was stopped`)),
      timeout,
    );
    signal.addEventListener('abort', abort);

    child.stdout?.on('data', (chunk: Buffer) => {
      if (settled) {
        chunk.fill(0);
        return;
      }
      size += chunk.length;
      chunks.push(chunk);
      if (size > maxOutput)
        stop(error('PROVIDER_FAILED', `printed more than ${maxOutput / 1024} KiB, and was stopped`));
    });
    child.stdout?.on('error', (thrown) =>
      stop(error('PROVIDER_UNAVAILABLE', `cannot be read from (${reasonOf(thrown)})`)),
    );
    child.on('error', (thrown) => {
      fail(error('PROVIDER_FAILED', explainStart(reasonOf(thrown))));
      if (child.pid === undefined) this.#forget(child, gone.resolve);
    });
    child.on('exit', () => {
      this.#forget(child, gone.resolve);
      // What it has printed is in the pipe by now; only a process that it left behind can keep the pipe open.
      const leftOpen = () =>
        stop(error('PROVIDER_FAILED', 'left a process behind that keeps its output open'));
      // A busy event loop looks at its timers before its pipes, so the time alone proves nothing.
      const lookOnce = () =>
        setImmediate(() => {
          if (!settled) held = setTimeout(leftOpen, outputGrace / 10);
        });
      held = setTimeout(lookOnce, outputGrace);
      if (settled) clearTimeout(held);
    });
    child.on('close', (code, killedBy) => {
      if (settled) return;
      if (code === null) return fail(error('PROVIDER_UNAVAILABLE', `was ended by ${killedBy}`));
      settle();
      const output = gather(chunks, size);
      resolve({ code, output, [Symbol.dispose]: () => void output.fill(0) });
    });
    return promise;
  }

  #forget(child: ChildProcess, gone: () => void): void {
    this.#running.delete(child);
    gone();
  }
}

function gather(chunks: readonly Buffer[], size: number): Buffer {
  const output = Buffer.allocUnsafe(size);
  let at = 0;
  for (const chunk of chunks) {
    at += chunk.copy(output, at);
    chunk.fill(0);
  }
  return output;
}

/** Asks the whole group to end, and makes it. */
function terminate(child: ChildProcess): void {
  const { pid } = child;
  if (pid === undefined) return;
  const kill = () => {
    clearTimeout(timer);
    signalGroup(pid, 'SIGKILL');
  };
  const timer = setTimeout(kill, grace);
  if (child.exitCode !== null || child.signalCode !== null) return kill();
  // Behind its leader's end at once: later, another group might have the same number.
  child.once('exit', kill);
  signalGroup(pid, 'SIGTERM');
}

function signalGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal);
  } catch {
    // Nobody of the group is left.
  }
}

function explainStart(reason: string): string {
  if (reason === 'ENOENT') return 'is not there';
  if (reason === 'EACCES') return 'may not be run (permission denied)';
  return `cannot be started (${reason})`;
}

/** What a program needs of the environment to find itself, and what holds no secret. */
const harmless = ['PATH', 'HOME', 'USER', 'LOGNAME', 'LANG', 'LC_ALL', 'TZ', 'TMPDIR'];

/** The harmless variables of an environment, and those that are named. */
export function environmentOf(
  all: Readonly<Record<string, string | undefined>>,
  named: readonly string[],
): Record<string, string> {
  const entries = [...harmless, ...named].flatMap((name) => {
    const value = Object.hasOwn(all, name) ? all[name] : undefined;
    return value === undefined ? [] : [[name, value] as const];
  });
  return Object.fromEntries(entries);
}
