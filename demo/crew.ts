import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';

import type { Identity } from '../test/support/servers/process.ts';
import { Trouble } from './trouble.ts';

interface Job {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  readonly identity?: Identity | undefined;
  /** What asks it to end. */
  readonly endSignal?: NodeJS.Signals;
}

const LONGEST_OUTPUT = 1024 * 1024;
/** How long a process may take to end when it is asked to, in milliseconds. */
const GRACE = 5000;

/** A process that the demo started. */
export class Member {
  readonly child: ChildProcess;
  readonly ended: Promise<number>;
  readonly #endSignal: NodeJS.Signals;
  #stdout = '';
  #stderr = '';

  constructor(job: Job) {
    this.#endSignal = job.endSignal ?? 'SIGTERM';
    this.child = spawn(job.command, job.args, {
      env: job.env ?? { PATH: process.env['PATH'] },
      cwd: job.cwd,
      stdio: ['pipe', 'pipe', 'pipe'],
      // A group of its own: Ctrl-C at the terminal reaches the demo alone, which then ends everything in order.
      detached: true,
      ...job.identity,
    });
    this.child.stdin?.on('error', () => {});
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout = (this.#stdout + text).slice(-LONGEST_OUTPUT);
    });
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-LONGEST_OUTPUT);
    });
    this.ended = once(this.child, 'close').then(([code]) => (code as number | null) ?? 128);
    // Whoever asks hears of it; a process that nobody waits for must not end the demo.
    this.ended.catch(() => {});
  }

  get running(): boolean {
    return this.child.pid !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** The end of what it printed. */
  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  /** The last thing it said: what a failure is about. */
  get lastWords(): string {
    if (this.child.pid === undefined) return 'it could not be started';
    return (this.#stderr.trim() || this.#stdout.trim()).split('\n').at(-1) || 'it said nothing';
  }

  async end(): Promise<void> {
    const { pid } = this.child;
    if (pid === undefined) return;
    if (this.running) {
      this.child.kill(this.#endSignal);
      const kill = setTimeout(() => this.child.kill('SIGKILL'), GRACE);
      await this.ended;
      clearTimeout(kill);
    }
    // Children of one that was killed, or of an initdb that was stopped half-way.
    try {
      process.kill(-pid, 'SIGKILL');
    } catch {
      // It had none.
    }
  }
}

/** Everything the demo started, so that all of it ends, at whatever moment that is. */
export class Crew {
  readonly #members: Member[] = [];
  #dismissed = false;

  /** Starts a process that runs until the demo ends. */
  start(job: Job): Member {
    if (this.#dismissed) throw new Trouble('the demo was interrupted');
    const member = new Member(job);
    this.#members.push(member);
    return member;
  }

  /** Runs a process to its end and returns what it printed. Throws when it fails. */
  async run(what: string, job: Job, input = ''): Promise<string> {
    const member = this.start(job);
    member.child.stdin?.end(input);
    const code = await member.ended.catch((error: unknown) => {
      throw new Trouble(`${what} could not be started (${(error as NodeJS.ErrnoException).code ?? 'error'})`);
    });
    if (code === 0) return member.stdout;
    throw new Trouble(`${what} failed: ${member.lastWords}`);
  }

  /** Waits until `check` gives a value; fails as soon as the process has ended, or when that takes too long. */
  async until<T>(
    what: string,
    member: Member,
    check: () => Promise<T | undefined> | T | undefined,
  ): Promise<T> {
    for (const deadline = Date.now() + 15_000; ; ) {
      const value = await Promise.resolve(check()).catch(() => undefined);
      if (value !== undefined) return value;
      if (!member.running) throw new Trouble(`${what} ended: ${member.lastWords}`);
      if (Date.now() > deadline) throw new Trouble(`${what} did not get ready within 15 s`);
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }

  /** Ends all of it, the last one first. */
  async dismiss(): Promise<void> {
    this.#dismissed = true;
    for (const member of this.#members.toReversed()) await member.end();
  }
}
