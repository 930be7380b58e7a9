/**
 * What a session keeps of the credentials that it logged in with: which they were, and that they are still in use.
 * Nothing in it is secret. While anybody holds a tenure the leases of its generation are kept alive as far as they can be;
 * when the last one is released they are revoked, at once or after `cache.linger`.
 */
export interface Tenure {
  /** Grows by one each time the values of the service's credentials change; starts at 1. */
  readonly generation: number;
  /** Providers that were asked, each with the version of the secret where it has one: `vault@3, env`. */
  readonly versions: string;
  /** Ids of the leases that the values live under. */
  readonly leases: readonly string[];
  /** Why the generation is not the service's any more; undefined: it is. */
  retired(): Retirement | undefined;
  /** Calls back once, when the generation is retired; at once when it is already. Never after `release`. */
  onRetired(callback: (why: Retirement) => void): void;
  /** The session is over. Can be called again, to no effect. */
  release(): void;
}

/**
 * Why a generation is not used for new logins any more. `replaced`: the provider has other values, or new ones were
 * fetched because the lease comes to its end. `rejected`: the upstream did not take it any more. `lapsed`: its lease is over
 * and nothing has taken its place. `closed`: the service is gone, or configured anew.
 */
export type Retirement = 'replaced' | 'rejected' | 'lapsed' | 'closed';
