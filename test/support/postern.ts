import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { canary } from './servers.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));

/** One line of the program's log. */
export type LogLine = Readonly<Record<string, unknown>> & { readonly level: string; readonly msg: string };

/** The program as a user runs it: a process of its own, with a configuration file. */
export class Postern implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #folder: string;
  readonly configPath: string;
  readonly #exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  #stdout = '';
  #stderr = '';

  private constructor(child: ChildProcess, folder: string, configPath: string) {
    this.#child = child;
    this.#folder = folder;
    this.configPath = configPath;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.#stdout += text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#stderr += text));
    this.#exited = once(child, 'close').then(([code, signal]) => ({
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
    }));
  }

  /**
   * Starts the program and waits until it is ready. Listeners on port 0 get a free port; ask `port(service)`.
   * The log is written at `trace`, so that the canary check of `stop` sees everything there is.
   */
  static async start(
    yaml: string,
    options: {
      readonly env?: Record<string, string>;
      readonly args?: readonly string[];
      readonly nodeOptions?: string;
      /** Another `bin/postern` than that of the checkout. */
      readonly program?: string;
    } = {},
  ): Promise<Postern> {
    const folder = await mkdtemp(join(tmpdir(), 'postern-test-'));
    const configPath = join(folder, 'postern.yaml');
    await writeFile(configPath, yaml);
    const args = ['run', '-f', configPath, '--admin-listen', 'tcp://127.0.0.1:0', '--log-level', 'trace'];
    const child = spawn(options.program ?? program, [...args, ...(options.args ?? [])], {
      env: {
        PATH: process.env['PATH'],
        HOME: folder,
        ...(options.nodeOptions && { NODE_OPTIONS: options.nodeOptions }),
        ...options.env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const postern = new Postern(child, folder, configPath);
    await Promise.race([postern.logged((line) => line.msg === 'ready', 60_000), postern.#exited]);
    if (child.exitCode !== null) {
      await rm(folder, { recursive: true, force: true });
      throw new Error(`postern ended with ${child.exitCode}:\n${postern.#stdout}${postern.#stderr}`);
    }
    return postern;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Everything it has printed. */
  get output(): string {
    return this.#stdout + this.#stderr;
  }

  get lines(): LogLine[] {
    return this.#stdout
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as LogLine);
  }

  /** Waits for a line of the log. */
  async logged(wanted: (line: LogLine) => boolean, timeout = 60_000): Promise<LogLine> {
    const end = Date.now() + timeout;
    for (;;) {
      const found = this.lines.find(wanted);
      if (found) return found;
      if (Date.now() > end || this.#child.exitCode !== null)
        throw new Error(`no such line in the log of postern:\n${this.output.slice(-4000)}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  port(service: string): number {
    const line = this.lines.findLast((each) => each.msg === 'listening' && each['service'] === service);
    return Number(/:(\d+)$/.exec(String(line?.['address']))?.[1]);
  }

  get adminUrl(): string {
    const line = this.lines.find((each) => each.msg === 'health and metrics');
    return String(line?.['address']).replace('tcp://', 'http://');
  }

  async admin(path: string): Promise<{ status: number; text: string }> {
    const response = await fetch(this.adminUrl + path);
    return { status: response.status, text: await response.text() };
  }

  /** One metric's value; 0 when it has no such labels yet. */
  async metric(name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
    const { text } = await this.admin('/metrics');
    const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
    const line = text
      .split('\n')
      .find((each) => each.startsWith(name) && wanted.every((label) => each.includes(label)));
    return Number(line?.split(' ').at(-1) ?? 0);
  }

  async writeConfig(yaml: string): Promise<void> {
    await writeFile(this.configPath, yaml);
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Waits for the end of the process. */
  async exited(): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
    return await this.#exited;
  }

  /** SIGTERM, or SIGKILL after a while; returns the exit code. Fails when a canary was printed anywhere. */
  async stop(timeout = 10_000): Promise<number | null> {
    this.#child.kill('SIGTERM');
    const kill = setTimeout(() => this.#child.kill('SIGKILL'), timeout);
    const { code } = await this.#exited;
    clearTimeout(kill);
    await rm(this.#folder, { recursive: true, force: true });
    this.assertNoCanary();
    return code;
  }

  assertNoCanary(): void {
    for (const secret of Object.values(canary))
      assert.ok(!this.output.includes(secret), 'a secret is in the output of postern');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await this.stop();
    else this.assertNoCanary();
  }
}
