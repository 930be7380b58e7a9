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
  /** Revokes leases that a former process left behind, by their ids; where there are leases at all. */
  revokeLeases?(ids: readonly string[], signal: AbortSignal): Promise<void>;
  /** Gives up what it was given (its login) and closes its connections. Leases have been revoked before by whoever held them. */
  close(signal: AbortSignal): Promise<void>;
}

/** What a provider answered. */
export interface Grant {
  readonly secrets: readonly Secret[];
  /** Which version of the secret this is, for the audit line: a number or a time, never a value. */
  readonly version?: string;
  /** When the values stop working, where the provider knows. */
  readonly expiresAt?: Date;
  /** The leases that the values live under: one for each answer of the store that came with one. */
  readonly leases?: readonly Lease[];
}

/** The right to use what was handed out, for a time. */
export interface Lease {
  /** Says nothing about the secret: it is logged, audited and journalled. */
  readonly id: string;
  readonly renewable: boolean;
  /** When it ends unless it is renewed; never later than the login at the store that it hangs on. */
  readonly expiresAt: Date;
  /**
   * The new end; no later than the old one where the lease comes to its longest life. Throws PROVIDER_FAILED when it
   * cannot be renewed any more: the caller fetches new values.
   */
  renew(signal: AbortSignal): Promise<Date>;
  /** Ends it now. Not an error when it has ended already. */
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
