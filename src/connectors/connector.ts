import type * as z from 'zod';

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
  open(settings: unknown): Protocol;
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

/** An opened connector: serves the clients of one service. */
export interface Protocol {
  serve(session: Session): Promise<void>;
  /** Logs in upstream once and says in a few words as whom and how. Throws what a session would. */
  probe(probe: Probe): Promise<string>;
}

/** Ties a connector's settings schema to the code that receives the parsed settings. */
export function defineConnector<Schema extends z.ZodType>(connector: {
  summary: string;
  settings: Schema;
  credentials: CredentialNames;
  review(settings: z.output<Schema>, credentials: ReadonlySet<string>): Review;
  open(settings: z.output<Schema>): Protocol;
}): Connector {
  return {
    summary: connector.summary,
    settings: connector.settings,
    credentials: connector.credentials,
    review: (settings, credentials) => connector.review(settings as z.output<Schema>, credentials),
    open: (settings) => connector.open(settings as z.output<Schema>),
  };
}
