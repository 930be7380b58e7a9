import type { Socket } from 'node:net';
import type { SecureContext } from 'node:tls';
import type { Logger } from 'pino';

import type { Credentials } from './credentials.ts';

/** One client connection, and all that a connector may use to serve it. */
export interface Session {
  /** Unique within this process; the same in every log line about the session. */
  readonly id: string;
  readonly client: Socket;
  readonly log: Logger;
  /** The certificate that the service shows its clients (`listenTls`), when it has one. */
  readonly localTls: SecureContext | undefined;

  /**
   * Takes one of the service's places. Called once, as soon as the client has said that it wants a session
   * (a cancel request does not). Throws LIMIT_REACHED or SHUTDOWN, to be told to the client like any failure.
   */
  admit(): void;

  /** A fresh signal for one step (reading a start-up message, one login, one request): aborts after the service's
   *  login timeout with a TIMEOUT error, and at shutdown with a SHUTDOWN error. It replaces the one given before. */
  deadline(): AbortSignal;

  /** Adds facts to the session's one log line: names, never values. */
  note(facts: Readonly<Record<string, string | number | boolean>>): void;

  /**
   * Lends the service's credentials to `use`; they are wiped when it settles. `use` may run twice: when it throws
   * UPSTREAM_REJECTED and the provider has a newer credential by then. So it dials and logs in, and keeps nothing
   * of a first run.
   */
  withCredentials<T>(use: (credentials: Credentials, signal: AbortSignal) => Promise<T>): Promise<T>;

  /** Relays until both ends are done. Throws UPSTREAM_CLOSED or CLIENT_CLOSED when one of them broke off. */
  relay(client: Socket, upstream: Socket): Promise<void>;
}

/** What a connector needs to try one login without a client, for `check --connect`. */
export type Probe = Pick<Session, 'log' | 'withCredentials' | 'note'>;
