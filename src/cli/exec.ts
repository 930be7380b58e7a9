import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { isatty } from 'node:tty';
import type { Logger } from 'pino';

import { Broker } from '../broker.ts';
import type { Config, ServiceConfig } from '../config/config.ts';
import { loadConfig } from '../config/load.ts';
import { formatProblem } from '../config/report.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { describeFailure } from '../core/session.ts';
import { durationOf } from './admin-client.ts';
import { describeLogin } from './check.ts';
import { childEnvironment, protocolOf, type Trust } from './child-environment.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import { createLog } from './log.ts';
import { commonFlags, type Options, optionsOf, parseFlags, UsageError } from './options.ts';
import { packageVersion } from './version.ts';

/** The flags of `postern exec`. */
export const execFlags = {
  ...commonFlags,
  sockets: { type: 'boolean' },
  tcp: { type: 'boolean' },
  'keep-env': { type: 'string', multiple: true },
  'kill-after': { type: 'string' },
} as const;

interface Wish {
  readonly options: Options;
  readonly command: readonly [string, ...string[]];
  readonly keep: readonly string[];
  /** Which database services listen in a private folder. */
  readonly sockets: 'all' | 'those on port 0' | 'none';
  /** Milliseconds that the child gets to obey a SIGTERM. */
  readonly killAfter: number;
}

/**
 * `postern exec [OPTIONS] -- COMMAND [ARG...]`: serves one child process for as long as it runs. The child starts when
 * everything listens, finds the services in its environment, which has no credential, and its exit code is the result.
 */
export async function exec(words: readonly string[], environment: NodeJS.ProcessEnv): Promise<number> {
  const wish = parse(words, environment);
  const log = await createLog(wish.options, 2);
  const child = new Child(log, wish.killAfter);
  const folder = new PrivateFolder();
  let broker: Broker | undefined;
  try {
    const config = place(await load(wish.options, log), wish.sockets, folder);
    broker = await Broker.start(config, { log, version: await packageVersion(), environment });
    if (wish.options.connect) await requireLogins(broker);
    const trust = await writeTrust(config, folder, environment);
    const prepared = childEnvironment(environment, {
      services: openServices(config, broker),
      providers: config.providers,
      keep: wish.keep,
      trust,
    });
    log.debug({ variables: prepared.removed }, 'variables that the child does not get');
    const code = await child.run(wish.command, prepared.environment);
    await broker.stop();
    return code;
  } catch (thrown) {
    await broker?.stop(() => 0);
    if (thrown instanceof CannotStart) return thrown.code;
    return explain(PosternError.from(thrown), log);
  } finally {
    folder.remove();
    child.forget();
  }
}

function parse(words: readonly string[], environment: NodeJS.ProcessEnv): Wish {
  const dashes = words.indexOf('--');
  const [program, ...rest] = dashes === -1 ? [] : words.slice(dashes + 1);
  if (program === undefined)
    throw new UsageError('write the command behind two dashes: `postern exec [OPTIONS] -- COMMAND [ARG...]`');
  const values = parseFlags(words.slice(0, dashes), execFlags);
  if (values.sockets && values.tcp) throw new UsageError('give either --sockets or --tcp');
  const options = optionsOf(values, environment, {
    logLevel: 'warn',
    logFormat: isatty(2) ? 'pretty' : 'json',
  });
  return {
    options: quietAdmin(options, environment),
    command: [program, ...rest],
    keep: values['keep-env'] ?? [],
    sockets: values.sockets ? 'all' : values.tcp ? 'none' : 'those on port 0',
    killAfter: durationOf(values['kill-after'] ?? '30s', '--kill-after'),
  };
}

/** Nobody probes a command that ends by itself, and two of them would want the same port: only who asks for it gets it. */
function quietAdmin(options: Options, environment: NodeJS.ProcessEnv): Options {
  const { overrides } = options.context;
  if (overrides?.admin !== undefined || environment['POSTERN_ADMIN_LISTEN']) return options;
  return { ...options, context: { ...options.context, overrides: { ...overrides, admin: 'off' } } };
}

async function load(options: Options, log: Logger): Promise<Config> {
  const config = await loadConfig(options.configPaths, options.context);
  for (const warning of config.warnings)
    log.warn({ at: formatProblem(warning) }, 'unsafe or ignored configuration');
  return config;
}

/**
 * Where the services listen. One on port 0 has an address that nobody can have written down, so it may as well be one that
 * no other user of the machine can connect to: a unix socket in a folder of this user's alone. HTTP stays on TCP,
 * because a proxy variable or a URL cannot name a socket.
 */
function place(config: Config, which: Wish['sockets'], folder: PrivateFolder): Config {
  const moves = (service: ServiceConfig) => {
    const { listenOn } = service;
    if (protocolOf(service) !== 'postgres' && protocolOf(service) !== 'mysql') return false;
    if (which === 'those on port 0') return listenOn.kind === 'tcp' && listenOn.port === 0;
    return which === 'all';
  };
  const services = config.services.map(
    (service): ServiceConfig =>
      moves(service)
        ? {
            ...service,
            listenOn: { kind: 'unix', path: folder.nextSocket(protocolOf(service)) },
            socketMode: 0o600,
          }
        : service,
  );
  return { ...config, services };
}

async function requireLogins(broker: Broker): Promise<void> {
  const failed = (await broker.tryLogins()).filter(({ outcome }) => outcome instanceof PosternError);
  if (failed.length === 0) return;
  for (const login of failed) process.stderr.write(`postern: ${describeLogin(login)}\n`);
  throw new CannotStart(exitCodes.checkFailed);
}

function openServices(config: Config, broker: Broker) {
  return config.services.flatMap((service) => {
    const address = broker.addresses.get(service.name);
    return address ? [{ config: service, address }] : [];
  });
}

/** Files with the authorities of services that look into tunnels; undefined where there is none. */
async function writeTrust(
  config: Config,
  folder: PrivateFolder,
  environment: NodeJS.ProcessEnv,
): Promise<Trust | undefined> {
  if (!config.services.some(({ settings }) => (settings as { readonly intercept?: unknown }).intercept))
    return undefined;
  const { certificateOf, interceptors, writeBundle } = await import('./ca.ts');
  const found = interceptors(config);
  const certificates = await Promise.all(found.map((each) => certificateOf(each, config, environment)));
  const text = [...new Set(certificates.map(String))].join('\n');
  const trust = { certificate: join(folder.path, 'ca.pem'), bundle: join(folder.path, 'bundle.pem') };
  await writeFile(trust.certificate, text, { mode: 0o600 });
  await writeBundle(trust.bundle, text);
  return trust;
}

/** The child was not started, and why has been said. */
class CannotStart extends Error {
  readonly code: number;

  constructor(code: number) {
    super('the command was not started');
    this.code = code;
  }
}

/** Says why the command was not started. A store that cannot be asked is what `check --connect` calls a failure. */
function explain(error: PosternError, log: Logger): number {
  if (error.code === 'INTERNAL') log.fatal(describeFailure(error), 'could not start');
  process.stderr.write(`postern: ${error.message}\n`);
  const asked = error.code === 'PROVIDER_FAILED' || error.code === 'PROVIDER_UNAVAILABLE';
  return asked ? exitCodes.checkFailed : exitCodeOf(error.code);
}

/** A terminal sends these to all processes of its foreground group: the child has them already. */
const fromTerminal: readonly NodeJS.Signals[] = ['SIGINT', 'SIGQUIT', 'SIGHUP'];
const forwarded: readonly NodeJS.Signals[] = [...fromTerminal, 'SIGTERM', 'SIGUSR1', 'SIGUSR2'];
/** What ends a program that does not know better. */
const ending: readonly NodeJS.Signals[] = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT'];

/** The command, and the signals that are meant for it. */
class Child {
  readonly #log: Logger;
  readonly #killAfter: number;
  readonly #onSignal = (signal: NodeJS.Signals, number: number) => this.#receive(signal, number);
  #process: ChildProcess | undefined;
  #state: 'to start' | 'running' | 'ended' = 'to start';
  /** The number of a signal that came before there was anybody to give it to. */
  #early: number | undefined;
  #terminations = 0;
  #kill: NodeJS.Timeout | undefined;

  constructor(log: Logger, killAfter: number) {
    this.#log = log;
    this.#killAfter = killAfter;
    for (const signal of forwarded) process.on(signal, this.#onSignal);
  }

  /** Starts it, without a shell, and returns its exit code: 128 and the number of the signal that ended it. */
  async run([program, ...words]: Wish['command'], environment: NodeJS.ProcessEnv): Promise<number> {
    // The signal has come while everything was starting.
    if (this.#early !== undefined) return 128 + this.#early;
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    const child = spawn(program, words, { env: environment, stdio: 'inherit' });
    this.#process = child;
    this.#state = 'running';
    child.once('error', reject);
    child.once('exit', (code, signal) =>
      resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])),
    );
    try {
      return await promise;
    } catch (thrown) {
      const reason = reasonOf(thrown);
      const missing = reason === 'ENOENT';
      const why = missing ? 'there is no such command' : `it cannot be run (${reason})`;
      process.stderr.write(`postern: ${program}: ${why}\n`);
      return missing ? exitCodes.commandNotFound : exitCodes.commandNotRun;
    } finally {
      this.#state = 'ended';
      clearTimeout(this.#kill);
    }
  }

  forget(): void {
    for (const signal of forwarded) process.off(signal, this.#onSignal);
  }

  #receive(signal: NodeJS.Signals, number: number): void {
    if (this.#state === 'to start') {
      if (ending.includes(signal)) this.#early ??= number;
      return;
    }
    if (this.#state === 'ended') {
      // As with `postern run`: whoever does not want to wait for the sessions says so.
      if (ending.includes(signal)) process.exit(128 + number);
      return;
    }
    if (fromTerminal.includes(signal) && isInForeground()) return;
    this.#process?.kill(signal);
    if (signal !== 'SIGTERM') return;
    this.#terminations += 1;
    if (this.#terminations > 1) this.#process?.kill('SIGKILL');
    this.#kill ??= setTimeout(() => {
      this.#log.warn(
        { seconds: this.#killAfter / 1000 },
        'the command did not end after SIGTERM and is killed',
      );
      this.#process?.kill('SIGKILL');
    }, this.#killAfter);
  }
}

/** Whether this process is in the foreground of a terminal, where Ctrl-C reaches it and the child alike. */
function isInForeground(): boolean {
  try {
    // proc_pid_stat(5): the command's name, which may hold anything, stands in brackets; then state, ppid, pgrp,
    // session, tty_nr, tpgid.
    const [, , group, , , foreground] =
      readFileSync('/proc/self/stat', 'latin1').split(') ').at(-1)?.split(' ') ?? [];
    return group === foreground;
  } catch {
    return isatty(0) || isatty(1) || isatty(2);
  }
}

/** sockaddr_un holds 108 bytes, and the longest name in the folder has 15 of them. */
const LONGEST_FOLDER = 90;

/** A folder that only this user can enter, made when something is to be put into it. */
class PrivateFolder {
  #path: string | undefined;
  #sockets = 0;

  /** Throws LISTEN_FAILED when there is no place for one. */
  get path(): string {
    this.#path ??= makePrivateFolder();
    return this.#path;
  }

  /** The path of one more socket in it; libpq finds one by its folder and what stands for a port. */
  nextSocket(protocol: string): string {
    const name =
      protocol === 'postgres' ? `.s.PGSQL.${5432 + this.#sockets}` : `${protocol}-${this.#sockets}`;
    this.#sockets += 1;
    return join(this.path, name);
  }

  remove(): void {
    if (this.#path !== undefined) rmSync(this.#path, { recursive: true, force: true });
  }
}

function makePrivateFolder(): string {
  const places = [process.env['XDG_RUNTIME_DIR'] ?? '', tmpdir(), '/tmp'];
  let reason = 'no folder for temporary files has a name that is short enough';
  for (const place of places.filter((each) => each.startsWith('/') && each.length < LONGEST_FOLDER - 20)) {
    try {
      // mkdtemp(3) gives it the mode 0700.
      return mkdtempSync(join(place, 'postern-'));
    } catch (error) {
      reason = reasonOf(error);
    }
  }
  throw new PosternError('LISTEN_FAILED', `no private folder for the sockets can be made: ${reason}`);
}
