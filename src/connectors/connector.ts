import type { Logger } from 'pino';
import type * as z from 'zod';

import type { Prepare, Prepared } from '../core/prepared.ts';
import type { RequestCounters } from '../core/request-counters.ts';
import type { Probe, Session } from '../core/session.ts';

/**
 * A wire protocol, as the configuration sees it. Written with `defineConnector`.
 *
 * Its life: 1. `settings` parses a service's `config:`. 2. `review` sees settings and credential names together.
 * 3. `open` returns what serves the service's clients. 4. `serve` owns each client from its first byte to its
 * last: on failure it tells the client in the client's own protocol, then throws.
 */
export interface Connector {
  /** One sentence for the documentation. */
  readonly summary: string;
  readonly settings: z.ZodType;
  readonly credentials: CredentialNames;
  /** Problems and warnings that no schema can see. `settings` are parsed. */
  review(settings: unknown, credentials: ReadonlySet<string>): Review;
  /**
   * Problems of services that listen on one address together, in the order of the configuration; the paths start at the
   * name of a service. undefined: a listener has one service. Connectors that have the same function share listeners.
   */
  readonly reviewShared?: (services: readonly SharedService[]) => Review;
  open(settings: unknown, service: ServiceContext): Protocol;
}

/** One of several services on one listener, with the settings that its connector parsed. */
export interface SharedService {
  readonly name: string;
  readonly settings: unknown;
}

/** What an opened connector gets of its service, for as long as that lives. */
export interface ServiceContext {
  readonly name: string;
  readonly log: Logger;
  /** Milliseconds; see the limits of the configuration. */
  readonly loginTimeout: number;
  /** Milliseconds; 0: never. */
  readonly idleTimeout: number;
  /** Sets up a value that is made of the service's credentials and kept by the lifecycle. Called once, by `open`. */
  prepare<Value extends Disposable>(make: Prepare<Value>): Prepared<Value>;
  /** Clients prove a local password first (`Session.localLogin`). */
  readonly asksPassword?: boolean;
  /** Takes note of each request, for protocols whose sessions carry many. */
  readonly requestAudit?: RequestAudit;
}

/** Who wants to hear of each request when it is over. */
export interface RequestAudit {
  /** Whether anybody does now: else a request pays nothing. */
  readonly wanted: boolean;
  /** Names and numbers, never values. */
  ended(session: string, client: string, facts: Readonly<Record<string, string | number>>): void;
}

/** Names that a service may map under `credentials:`. */
export interface CredentialNames {
  readonly required: readonly string[];
  readonly optional: readonly string[];
  /** What any other name means; undefined: any other name is an error. */
  readonly others?: string;
}

/** Findings about one service, each with the path (from the service) of what it is about. */
export interface Review {
  readonly problems: readonly Finding[];
  /** Settings that work and are unsafe, each with the line that would mend it. */
  readonly warnings: readonly Finding[];
}

export interface Finding {
  readonly path: readonly string[];
  readonly message: string;
}

/** A request that nobody has made. */
export interface ExplainedRequest {
  readonly method: string;
  readonly url: URL;
  /** Path and query of `url` as they were written: a URL of the platform has tidied its own. */
  readonly path: string;
  /** `url` is the listener's own, and not what a client would ask a proxy for. */
  readonly toListener: boolean;
}

/** What would become of it: names, never values. */
export interface Explained {
  /** The service whose credential would go into it. */
  readonly service: string;
  /** The URL that would be asked for, without what the credential adds. */
  readonly upstream: string;
  /** Header fields and query parameters that the service decides about: set by it, and never taken from a client. */
  readonly headers: readonly string[];
  readonly query: readonly string[];
}

/** An opened connector: serves the clients of one service. */
export interface Protocol {
  serve(session: Session): Promise<void>;
  /** Logs in upstream once and says in a few words as whom and how. Throws what a session would. */
  probe(probe: Probe): Promise<string>;
  /**
   * The services that listen on the same address, in the order of the configuration and with this
   * one among them. Called before the first client, and again when a reload changes them. The first one serves the clients.
   */
  join?(members: readonly Protocol[]): void;
  /** What would become of a request, without asking anybody. Throws what the client would be told. */
  explain?(request: ExplainedRequest): Explained;
  /** Clients connect also for the sake of sessions that live (cancel requests): a drain keeps the listener for them. */
  readonly hearsOfSessions?: true;
  /** No new clients come. Sessions that are between two requests end now, the others after the one under way. */
  drain?(): void;
  /** Called once, when the last session has ended. */
  close?(): void;
  /** What has happened since the service was opened, for metrics; undefined: only its sessions count. */
  counters?(): RequestCounters;
}

/** Ties a connector's settings schema to the code that receives the parsed settings. */
export function defineConnector<Schema extends z.ZodType>(connector: {
  summary: string;
  settings: Schema;
  credentials: CredentialNames;
  review(settings: z.output<Schema>, credentials: ReadonlySet<string>): Review;
  reviewShared?: (services: readonly (SharedService & { readonly settings: z.output<Schema> })[]) => Review;
  open(settings: z.output<Schema>, service: ServiceContext): Protocol;
}): Connector {
  const reviewShared = connector.reviewShared as Connector['reviewShared'];
  return {
    summary: connector.summary,
    settings: connector.settings,
    credentials: connector.credentials,
    review: (settings, credentials) => connector.review(settings as z.output<Schema>, credentials),
    ...(reviewShared && { reviewShared }),
    open: (settings, service) => connector.open(settings as z.output<Schema>, service),
  };
}
