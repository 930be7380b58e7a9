import { spawn } from 'node:child_process';
import { existsSync, readFileSync, readlinkSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import type { Logger } from 'pino';

import { type Address, formatAddress } from './core/address.ts';
import { reasonOf } from './core/errors.ts';
import { acceptance, BACKLOG } from './listener.ts';

type Environment = Readonly<Record<string, string | undefined>>;

// ── telling systemd (sd_notify(3)) ─────────────────────────────────────────────────────────────────────────────

/** What a service manager that started this process hears about it. */
export interface ServiceManager {
  /** Everything is open: units that are ordered behind this one may start. Also after a reload. */
  ready(status: string): void;
  reloading(): void;
  /** The drain has begun. Resolves when that has been said. */
  stopping(): Promise<void>;
}

/** Where systemd's own program is. On a machine without it there is nobody to tell anything. */
const programs = ['/usr/bin/systemd-notify', '/bin/systemd-notify'];
/** The program waits until its message has been taken, which systemd does at once. */
const PATIENCE = 5000;

/**
 * The service manager that `NOTIFY_SOCKET` names; undefined: none does. Node.js has no datagrams over unix sockets, so
 * systemd's own program carries the messages: the unit needs `NotifyAccess=all`. Says WATCHDOG=1 twice in each
 * `WatchdogSec` for as long as the event loop turns.
 */
export function serviceManager(environment: Environment, log: Logger): ServiceManager | undefined {
  const socket = environment['NOTIFY_SOCKET'];
  if (!socket) return undefined;
  const program = programs.find((path) => existsSync(path));
  if (program === undefined) {
    log.warn('NOTIFY_SOCKET is set and there is no systemd-notify: systemd hears nothing');
    return undefined;
  }
  // One after the other: READY=1 must not overtake RELOADING=1.
  let said: Promise<void> = Promise.resolve();
  const say = (...assignments: readonly string[]) => {
    said = said.then(() => carry(program, socket, assignments, log));
    return said;
  };
  startWatchdog(environment, () => void say('WATCHDOG=1'));
  return {
    ready: (status) => void say('READY=1', `STATUS=${status}`),
    reloading: () => {
      // systemd compares it with the moment in which it asked (Type=notify-reload): CLOCK_MONOTONIC, as hrtime is.
      const microseconds = process.hrtime.bigint() / 1000n;
      void say('RELOADING=1', `MONOTONIC_USEC=${microseconds}`, 'STATUS=reading the configuration');
    },
    stopping: () => say('STOPPING=1', 'STATUS=waiting for sessions to end'),
  };
}

async function carry(
  program: string,
  socket: string,
  assignments: readonly string[],
  log: Logger,
): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  // Nothing of Postern's environment: there may be secrets in it.
  const child = spawn(program, assignments, {
    env: { NOTIFY_SOCKET: socket },
    stdio: 'ignore',
    timeout: PATIENCE,
  });
  child.once('error', (error) => resolve(reasonOf(error)));
  child.once('exit', (code) => resolve(code === 0 ? undefined : `exit code ${code}`));
  const reason = await promise;
  if (reason !== undefined) log.warn({ reason }, 'systemd could not be told');
}

function startWatchdog(environment: Environment, beat: () => void): void {
  const microseconds = Number(environment['WATCHDOG_USEC'] ?? 0);
  const pid = environment['WATCHDOG_PID'];
  // sd_watchdog_enabled(3): it may be meant for a process that started this one.
  if (!(microseconds > 0) || (pid !== undefined && pid !== String(process.pid))) return;
  setInterval(beat, Math.max(100, microseconds / 2000)).unref();
}

// ── sockets from systemd (sd_listen_fds(3)) ────────────────────────────────────────────────────────────────────

const FIRST_DESCRIPTOR = 3;
const MOST_SOCKETS = 256;

/** A socket that listened before this process was started. Clients that come before `serve` wait for it. */
export class InheritedSocket {
  /** `FileDescriptorName=` of the unit; the name of the unit where it says nothing. */
  readonly name: string;
  readonly address: Address;
  readonly server: Server;
  readonly #early: Socket[] = [];
  #serve: ((socket: Socket) => void) | undefined;

  private constructor(name: string, address: Address, server: Server) {
    this.name = name;
    this.address = address;
    this.server = server;
    server.on('connection', (socket) => {
      if (this.#serve) this.#serve(socket);
      else this.#early.push(socket);
    });
  }

  /** undefined when the descriptor is no listening stream socket. */
  static adopt(fd: number, name: string): InheritedSocket | undefined {
    const server = createServer(acceptance);
    // Told by `address()` in the same turn; without a listener the event would end the process.
    server.on('error', () => {});
    try {
      server.listen({ fd, backlog: BACKLOG });
    } catch {
      return undefined;
    }
    // Nothing that waits for a service keeps the process from ending.
    server.unref();
    const found = server.address();
    if (found !== null && typeof found !== 'string')
      return new InheritedSocket(name, { kind: 'tcp', host: found.address, port: found.port }, server);
    const path = server.listening ? pathOf(fd) : undefined;
    if (path !== undefined) return new InheritedSocket(name, { kind: 'unix', path }, server);
    if (server.listening) server.close();
    return undefined;
  }

  /** From here on `serve` owns every client. */
  serve(serve: (socket: Socket) => void): void {
    this.#serve = serve;
    this.server.ref();
    for (const socket of this.#early.splice(0)) serve(socket);
  }

  /** Lets go of it: the service manager keeps its own end. */
  close(): void {
    this.server.close();
    for (const socket of this.#early.splice(0)) socket.destroy();
  }
}

/** The path of a unix socket, which Node.js does not ask a descriptor for: proc(5), `/proc/net/unix`. */
function pathOf(fd: number): string | undefined {
  try {
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
    const lines = readFileSync('/proc/net/unix', 'utf8').split('\n');
    // Num RefCount Protocol Flags Type St Inode Path
    const line = lines.find((each) => each.trim().split(/\s+/)[6] === inode);
    return /^(?:\S+\s+){7}(\/.*)$/.exec(line?.trim() ?? '')?.[1];
  } catch {
    return undefined;
  }
}

/** The sockets that a service manager gave this process, until a service takes them. */
export class InheritedSockets {
  readonly #log: Logger;
  readonly #sockets: InheritedSocket[] = [];

  private constructor(log: Logger) {
    this.#log = log;
  }

  /** Takes over what `LISTEN_FDS` counts. Others' descriptors, which came with a copied environment, are left alone. */
  static open(environment: Environment, log: Logger): InheritedSockets {
    const inherited = new InheritedSockets(log);
    const count = Number(environment['LISTEN_FDS'] ?? 0);
    if (environment['LISTEN_PID'] !== String(process.pid) || !Number.isInteger(count)) return inherited;
    const names = (environment['LISTEN_FDNAMES'] ?? '').split(':');
    for (let i = 0; i < Math.min(count, MOST_SOCKETS); i++) {
      const name = names[i] || 'unknown';
      const socket = InheritedSocket.adopt(FIRST_DESCRIPTOR + i, name);
      if (socket) inherited.#sockets.push(socket);
      else log.warn({ name }, 'a descriptor from systemd is no listening socket, and is not used');
    }
    return inherited;
  }

  /** The socket of a service: the one at its address, or else the one with its name. */
  take(service: string, address: Address): InheritedSocket | undefined {
    const wanted = formatAddress(address);
    const byAddress = this.#sockets.findIndex((socket) => formatAddress(socket.address) === wanted);
    const at = byAddress === -1 ? this.#sockets.findIndex(({ name }) => name === service) : byAddress;
    return at === -1 ? undefined : this.#sockets.splice(at, 1)[0];
  }

  /** Lets go of what no service wanted. */
  closeRest(): void {
    for (const socket of this.#sockets.splice(0)) {
      const { name, address } = socket;
      this.#log.warn({ name, address: formatAddress(address) }, 'no service wants a socket from systemd');
      socket.close();
    }
  }
}
