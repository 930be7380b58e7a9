import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import type { SecureContext } from 'node:tls';
import type { Logger } from 'pino';

import type { Access, LocalLogin, Visitor } from './access.ts';
import type { Admission } from './admission.ts';
import type { Credentials } from './credentials.ts';
import { Deadline } from './deadline.ts';
import { type ErrorCode, PosternError, reasonOf } from './errors.ts';
import type { Follower, Relay, RelayEnd, Relays, Watch } from './relay.ts';
import type { Retirement, Tenure } from './tenure.ts';

/** One client connection, and all that a connector may use to serve it. */
export interface Session {
  /** Unique within this process; the same in every log line about the session. */
  readonly id: string;
  readonly client: Socket;
  readonly log: Logger;
  /** The certificate that the service shows its clients (`listenTls`), when it has one. */
  readonly localTls: SecureContext | undefined;
  /** What the client has to prove before anything is done for it (`access.password`); undefined: nothing. */
  readonly localLogin: LocalLogin | undefined;

  /**
   * Takes one of the service's places. Called once, as soon as the client has said that it wants a session
   * (a cancel request does not) and has proved what `localLogin` asks for. Throws ACCESS_DENIED, RATE_LIMITED, LIMIT_REACHED or
   * SHUTDOWN, to be told to the client like any failure.
   */
  admit(): void;

  /**
   * A fresh signal for one step ("the start-up message", "the login"), in place of the one given before: aborts
   * after the service's login timeout with a TIMEOUT error that names the step, and at shutdown with SHUTDOWN.
   */
  deadline(step: string): AbortSignal;

  /**
   * Calls `tell` when Postern ends the session (the end of a drain, or of the time that an expired one gets), in place of what
   * it was to call before: for a connector that carries the bytes itself.
   */
  whenEnded(tell: (error: PosternError) => void): void;

  /** The session is older than it may grow: a connector that carries the bytes itself ends it at its next rest. */
  readonly expired: boolean;

  /** Says how many bytes a connector that does not use `relay` has carried so far. */
  meter(read: () => CarriedBytes): void;

  /** Adds facts to the session's one log line: names, never values. */
  note(facts: Readonly<Record<string, string | number | boolean>>): void;

  /**
   * Lends the service's credentials to `use`; they are wiped when it settles. `use` may run twice: when it throws
   * UPSTREAM_REJECTED and the provider has a newer credential by then. So it dials and logs in, and keeps nothing
   * of a first run.
   */
  withCredentials<T>(use: (credentials: Credentials, signal: AbortSignal) => Promise<T>): Promise<T>;

  /**
   * Relays until both ends are done and closed. Throws UPSTREAM_CLOSED or CLIENT_CLOSED when one of them broke
   * off, TIMEOUT when both were silent for too long, SHUTDOWN or SESSION_EXPIRED when Postern ended it, and what `watch`
   * failed with.
   */
  relay(client: Socket, upstream: Socket, ways?: RelayWays): Promise<void>;
}

/** How a connector takes part in the relay of its session; without any the relay looks at nothing. */
export interface RelayWays {
  readonly watch?: Watch | undefined;
  /** Called for a service that ends sessions between two questions (`onRotation: drain`, `maxSessionAge`). */
  readonly follow?: () => Follower;
}

export interface CarriedBytes {
  readonly fromClient: number;
  readonly fromUpstream: number;
}

/** What a connector needs to try one login without a client, for `check --connect`. */
export type Probe = Pick<Session, 'log' | 'withCredentials' | 'note'>;

/** A service as its sessions see it. */
export interface ServiceRuntime {
  readonly name: string;
  readonly log: Logger;
  readonly localTls: SecureContext | undefined;
  /** Milliseconds. */
  readonly loginTimeout: number;
  /** Milliseconds; 0: never. */
  readonly idleTimeout: number;
  /** Milliseconds after which a session ends as soon as nothing is under way in it; 0: never. */
  readonly maxSessionAge: number;
  /** Milliseconds that such a session has for what is under way. */
  readonly drainTimeout: number;
  /** What becomes of a session whose credential has been replaced. */
  readonly onRotation: 'keep' | 'drain';
  readonly admission: Admission;
  /** Who may use the port; undefined: whoever can reach it. */
  readonly access?: Access | undefined;
  readonly relay: Relays['relay'];
  /** Told when a client is logged in, before its first byte is relayed. */
  readonly loggedIn?: (login: LoginReport) => void;
  serve(session: Session): Promise<void>;
  lend<T>(
    use: (credentials: Credentials, signal: AbortSignal) => Promise<T>,
    signal: AbortSignal,
    /** Told before each run of `use` with which credentials it is; keeps the tenure of the run that succeeds. */
    onLent: (tenure: Tenure) => void,
  ): Promise<T>;
}

export type Outcome = 'ok' | ErrorCode;

/** What a session has to say of itself for the audit: names, never values. */
export interface SessionFacts {
  readonly id: string;
  /** Address and port of the client, or `unix`. */
  readonly client: string;
  /** What the connector has noted. */
  readonly facts: Readonly<Record<string, string | number | boolean>>;
}

/** What is known of a session when its client is logged in. The times are those of the monotonic clock. */
export interface LoginReport extends SessionFacts {
  readonly admittedAt: number;
  /** When the credentials were there with which the login succeeded. */
  readonly lentAt: number;
  readonly loggedInAt: number;
}

/** What is known of a session when it has ended: for the log, the audit and the metrics. */
export interface SessionReport extends SessionFacts {
  readonly outcome: Outcome;
  /** Why it failed. */
  readonly error: string | undefined;
  /** Whether the client asked for a session at all and got a place. */
  readonly admitted: boolean;
  /** Seconds from the admission to the end of the login; undefined when there was none. */
  readonly loginSeconds: number | undefined;
  readonly seconds: number;
  readonly bytesFromClient: number;
  readonly bytesFromUpstream: number;
}

const processTag = randomBytes(3).toString('hex');
let lastSession = 0;
/** How long an ended session waits for its client's socket to close by itself, in milliseconds. */
const CLOSE_TIMEOUT = 2000;
/** What setTimeout takes at most, in milliseconds. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Runs one session from its first byte to its last. This is the one place where a session's failure is logged. */
export class ClientSession implements Session {
  readonly id: string;
  readonly client: Socket;
  readonly localTls: SecureContext | undefined;
  #childLog: Logger | undefined;
  localLogin: LocalLogin | undefined;
  readonly #service: ServiceRuntime;
  readonly #started = performance.now();
  readonly #peer: string;
  #facts: Record<string, string | number | boolean> = {};
  #visitor: Visitor | undefined;
  #admitted: number | undefined;
  #lent: number | undefined;
  #loggedIn: number | undefined;
  #deadline: Deadline | undefined;
  #relay: Relay | undefined;
  #meter: (() => CarriedBytes) | undefined;
  #tellEnded: ((error: PosternError) => void) | undefined;
  #stopped = false;
  #leaving = false;
  #followed = false;
  #expiry: string | undefined;
  #oldAge: NodeJS.Timeout | undefined;
  /** Until a session that no relay carries is ended, which has expired. */
  #patience: NodeJS.Timeout | undefined;
  /** Of the credentials that the session has logged in with. */
  #tenure: Tenure | undefined;

  constructor(client: Socket, service: ServiceRuntime) {
    lastSession += 1;
    this.id = `${processTag}-${lastSession}`;
    this.client = client;
    this.#service = service;
    this.localTls = service.localTls;
    this.#peer = peerOf(client);
    // A broken client connection always ends in 'close', which whoever reads or writes then notices.
    client.on('error', (error) => this.log.trace({ reason: reasonOf(error) }, 'client connection failed'));
  }

  /** Made when it is asked for: most sessions have only their last line to say. */
  get log(): Logger {
    return (this.#childLog ??= this.#service.log.child({ session: this.id }));
  }

  /** Never rejects. */
  async run(): Promise<SessionReport> {
    let failure: PosternError | undefined;
    try {
      if (this.#service.access) await this.#meet(this.#service.access);
      await this.#service.serve(this);
    } catch (thrown) {
      failure = PosternError.from(thrown);
    } finally {
      this.#clearDeadline();
      clearTimeout(this.#oldAge);
      clearTimeout(this.#patience);
      await this.#closed();
      this.#tenure?.release();
      if (this.#admitted !== undefined) this.#service.admission.leave();
      this.#visitor?.leave();
    }
    const report = this.#report(failure);
    this.#log(report, failure);
    return report;
  }

  /** Bytes carried so far. */
  get bytes(): CarriedBytes {
    return this.#relay?.bytes ?? this.#meter?.() ?? { fromClient: 0, fromUpstream: 0 };
  }

  whenEnded(tell: (error: PosternError) => void): void {
    this.#tellEnded = tell;
    if (this.#stopped) process.nextTick(tell, shutdown());
  }

  get expired(): boolean {
    return this.#expiry !== undefined;
  }

  meter(read: () => CarriedBytes): void {
    this.#meter = read;
  }

  /** Ends the session now: a login is answered with SHUTDOWN, a relay is closed. */
  stop(): void {
    this.#stopped = true;
    this.#relay?.close();
    this.#deadline?.abort(shutdown());
    this.#tellEnded?.(shutdown());
  }

  /**
   * Postern is shutting down: a session that is followed ends as soon as nothing is under way in it. About any other one
   * nothing is known: its silence may be that of a transaction.
   */
  leave(): void {
    this.#leaving = true;
    if (!this.#followed) return;
    // It is `stop` that ends its patience.
    this.#relay?.retire(new PosternError('SESSION_EXPIRED', 'Postern is shutting down'), LONGEST_TIMER);
  }

  admit(): void {
    if (this.#stopped) throw shutdown();
    this.#visitor?.enter();
    this.#service.admission.enter();
    this.#admitted = performance.now();
    if (this.#service.maxSessionAge > 0) this.#oldAge = this.#growOld(this.#service.maxSessionAge);
  }

  deadline(step: string): AbortSignal {
    this.#clearDeadline();
    const { loginTimeout } = this.#service;
    const late = () => new PosternError('TIMEOUT', `${step} took longer than ${loginTimeout / 1000} s`);
    this.#deadline = new Deadline(loginTimeout, late);
    if (this.#stopped) this.#deadline.abort(shutdown());
    return this.#deadline.signal;
  }

  note(facts: Readonly<Record<string, string | number | boolean>>): void {
    Object.assign(this.#facts, facts);
  }

  async withCredentials<T>(use: (credentials: Credentials, signal: AbortSignal) => Promise<T>): Promise<T> {
    const signal = this.deadline('the login');
    try {
      let lent: Tenure | undefined;
      const result = await this.#service.lend(use, signal, (tenure) => {
        lent = tenure;
        this.#lent = performance.now();
        this.#noteTenure(tenure);
      });
      // A session may log in anew (MySQL's COM_CHANGE_USER).
      this.#tenure?.release();
      this.#tenure = lent;
      if (this.#service.onRotation === 'drain') lent?.onRetired((why) => this.expire(expiryOf(why)));
      return result;
    } finally {
      this.#clearDeadline();
    }
  }

  /** No async function: what such a one has in its hands stays in memory for as long as the session. */
  relay(client: Socket, upstream: Socket, { watch, follow }: RelayWays = {}): Promise<void> {
    this.#clearDeadline();
    this.#tellLogin((this.#loggedIn = performance.now()));
    const { idleTimeout, maxSessionAge, onRotation } = this.#service;
    const follower = onRotation === 'drain' || maxSessionAge > 0 ? follow?.() : undefined;
    this.#followed = follower !== undefined;
    this.#relay = this.#service.relay(client, upstream, { idleTimeout, watch, follower });
    if (this.#stopped) this.#relay.close();
    if (this.#expiry !== undefined) this.expire(this.#expiry);
    if (this.#leaving) this.leave();
    return this.#relay.done.then(orderly);
  }

  /** Finds out who the client is. That it may not be served is told by the connector, in the client's protocol. */
  async #meet(access: Access): Promise<void> {
    const visitor = await access.meet(this.client, this.deadline('finding out who connects'));
    this.#clearDeadline();
    this.#visitor = visitor;
    this.note(visitor.facts);
    const { password } = access;
    this.localLogin = password && {
      username: password.username,
      password: password.prepared,
      prove: (exchange) => visitor.prove(password, exchange, this.deadline('the local login')),
      begin: () => visitor.begin(),
      wrong: () => visitor.wrong(),
    };
  }

  /** Ends the session as soon as nothing is under way in it, at the latest after the drain timeout. */
  expire(why: string): void {
    this.#expiry = why;
    const { drainTimeout } = this.#service;
    const expired = new PosternError('SESSION_EXPIRED', why);
    clearTimeout(this.#patience);
    if (this.#relay) this.#relay.retire(expired, drainTimeout);
    else this.#patience = setTimeout(() => this.#tellEnded?.(expired), drainTimeout).unref();
  }

  #noteTenure({ versions, generation, leases }: Tenure): void {
    const lease = leases.length > 0 ? { lease: leases.join(', ') } : {};
    this.note({ credential: versions, generation, ...lease });
  }

  #tellLogin(loggedInAt: number): void {
    const admittedAt = this.#admitted ?? loggedInAt;
    this.#service.loggedIn?.({
      id: this.id,
      client: this.#peer,
      facts: this.#facts,
      admittedAt,
      lentAt: this.#lent ?? admittedAt,
      loggedInAt,
    });
  }

  /** Sessions that began together do not all end together: each at its own moment of the last tenth. */
  #growOld(age: number): NodeJS.Timeout {
    const seconds = age / 1000;
    const expire = () => this.expire(`the session was older than maxSessionAge (${seconds} s) allows`);
    return setTimeout(expire, age * (1 - Math.random() / 10)).unref();
  }

  #clearDeadline(): void {
    this.#deadline?.[Symbol.dispose]();
    this.#deadline = undefined;
  }

  /** The connector has ended the client's connection; a client that does not follow is cut off. */
  async #closed(): Promise<void> {
    if (this.client.closed) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.client.once('close', () => resolve());
    const timer = setTimeout(() => this.client.destroy(), CLOSE_TIMEOUT);
    await promise;
    clearTimeout(timer);
  }

  #report(failure: PosternError | undefined): SessionReport {
    const { bytes } = this;
    return {
      id: this.id,
      client: this.#peer,
      facts: this.#facts,
      outcome: failure?.code ?? 'ok',
      error: failure?.message,
      admitted: this.#admitted !== undefined,
      loginSeconds:
        this.#admitted === undefined || this.#loggedIn === undefined
          ? undefined
          : (this.#loggedIn - this.#admitted) / 1000,
      seconds: (performance.now() - this.#started) / 1000,
      bytesFromClient: bytes.fromClient,
      bytesFromUpstream: bytes.fromUpstream,
    };
  }

  #log(report: SessionReport, failure: PosternError | undefined): void {
    const { outcome, admitted, loginSeconds, seconds, bytesFromClient, bytesFromUpstream } = report;
    const { log } = this.#service;
    const line = {
      session: this.id,
      client: this.#peer,
      ...this.#facts,
      outcome,
      ...(failure && describeFailure(failure)),
      ...(loginSeconds !== undefined && { loginMs: Math.round(loginSeconds * 1000) }),
      durationMs: Math.round(seconds * 1000),
      ...((this.#relay ?? this.#meter) && { bytesFromClient, bytesFromUpstream }),
    };
    const inOrder = outcome === 'ok' || outcome === 'SESSION_EXPIRED';
    if (inOrder || (outcome === 'CLIENT_CLOSED' && admitted)) log.info(line, 'session ended');
    // Port probes connect and leave without a word.
    else if (outcome === 'CLIENT_CLOSED') log.debug(line, 'session ended');
    else log.warn(line, 'session failed');
  }
}

/** A unix socket has no addresses at all; a TCP client that is already gone has lost only its own. */
function peerOf(client: Socket): string {
  if (client.remoteAddress !== undefined) return `${client.remoteAddress}:${client.remotePort}`;
  return client.localAddress === undefined ? 'unix' : 'gone';
}

function expiryOf(why: Retirement): string {
  switch (why) {
    case 'replaced':
      return 'the credential of the session was replaced';
    case 'rejected':
      return 'the credential of the session is not taken any more';
    case 'lapsed':
      return 'the lease of the credential is over';
    case 'closed':
      return 'the service was configured anew';
  }
}

function shutdown(): PosternError {
  return new PosternError('SHUTDOWN', 'Postern is shutting down');
}

function orderly(end: RelayEnd): void {
  if (end !== 'done') throw brokenRelay(end);
}

function brokenRelay(end: Exclude<RelayEnd, 'done'>): PosternError {
  if (end instanceof PosternError) return end;
  switch (end) {
    case 'client-broke':
      return new PosternError('CLIENT_CLOSED', 'the client broke off the connection');
    case 'upstream-broke':
      return new PosternError('UPSTREAM_CLOSED', 'the server broke off the connection');
    case 'idle':
      return new PosternError('TIMEOUT', 'the connection was idle for too long');
    case 'closed':
      return shutdown();
  }
}

/**
 * A failure for the log: our own messages as they are; of a foreign error beneath only its code, and of an
 * unexpected one the places in the code, because its message could quote what it was given.
 */
export function describeFailure(failure: PosternError): Record<string, unknown> {
  const { cause } = failure;
  return {
    error: failure.message,
    ...(cause !== undefined && { reason: cause instanceof PosternError ? cause.message : reasonOf(cause) }),
    ...(failure.code === 'INTERNAL' && cause instanceof Error && { at: frames(cause) }),
  };
}

function frames(error: Error): string[] {
  return (error.stack ?? '')
    .split('\n')
    .filter((line) => line.startsWith('    at '))
    .slice(0, 8)
    .map((line) => line.trim());
}
