import type { Logger } from 'pino';
import type * as z from 'zod';

import type { Secret } from '../core/secret.ts';

/**
 * A place secrets come from, opened once per entry under `providers:`.
 *
 * Its life: 1. `settings` parses the entry of the configuration. 2. `open` builds the provider and touches
 * no network, so that a secret store that is down cannot keep the program from starting. 3. `fetch` and
 * `check` are called any number of times, side by side. 4. `close` is called once; nothing is called after it.
 *
 * A failure is a `PosternError`: PROVIDER_UNAVAILABLE when asking again later may help (unreachable, sealed,
 * overloaded, timed out), PROVIDER_FAILED when it will not (no such secret, no such field, permission denied).
 * The message names the reference that was asked for, never a value.
 */
export interface Provider {
  /**
   * One consistent read of several references: a user name and a password that belong together come from the
   * same answer. The secrets are in the order of `references`, each in a buffer of its own that the caller wipes.
   * On failure nothing that was already read is left unwiped.
   */
  fetch(references: readonly string[], signal: AbortSignal): Promise<Grant>;
  /** Can it be asked now (reachable, authenticated)? For readiness: cheap, throws why not. */
  check(signal: AbortSignal): Promise<void>;
  /** Revokes what it was given and what it handed out, and closes its connections. */
  close(signal: AbortSignal): Promise<void>;
}

/** What a provider answered. */
export interface Grant {
  readonly secrets: readonly Secret[];
  /** Which version of the secret this is, for the audit line: a number or a time, never a value. */
  readonly version?: string;
  /** When the values stop working, where the provider knows. */
  readonly expiresAt?: Date;
  /** The lease that the values live under, where there is one. */
  readonly lease?: Lease;
}

export interface Lease {
  readonly id: string;
  readonly renewable: boolean;
  renew(signal: AbortSignal): Promise<Date>;
  revoke(signal: AbortSignal): Promise<void>;
}

/** What a provider gets from the program when it is opened. */
export interface ProviderContext {
  /** Its name in the configuration, for messages. */
  readonly name: string;
  readonly log: Logger;
  readonly environment: Readonly<Record<string, string | undefined>>;
}

/** A kind of provider, as the configuration sees it. Written with `defineProvider`. */
export interface ProviderKind {
  /** One sentence for the documentation. */
  readonly summary: string;
  /** What follows `get:`, for the documentation. */
  readonly reference: string;
  /** The schema of an entry under `providers:`, without its `kind`. */
  readonly settings: z.ZodType;
  /** Says what is wrong with a reference before it is ever fetched; undefined when it is well formed. */
  checkReference(reference: string): string | undefined;
  /** Takes settings that `settings` has parsed. */
  open(settings: unknown, context: ProviderContext): Provider;
}

/** Ties a provider's settings schema to the code that receives the parsed settings. */
export function defineProvider<Schema extends z.ZodType>(kind: {
  summary: string;
  reference: string;
  settings: Schema;
  checkReference?: (reference: string) => string | undefined;
  open(settings: z.output<Schema>, context: ProviderContext): Provider;
}): ProviderKind {
  return {
    summary: kind.summary,
    reference: kind.reference,
    settings: kind.settings,
    checkReference: kind.checkReference ?? (() => undefined),
    open: (settings, context) => kind.open(settings as z.output<Schema>, context),
  };
}
