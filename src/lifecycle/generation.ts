import type { Retirement, Tenure } from '../core/tenure.ts';
import type { HeldLease } from './leases.ts';

/** What a generation tells its source. */
export interface GenerationEvents {
  /** Its last tenant has left. */
  idle(generation: Generation): void;
  /** A lease of it will not be renewed any more. */
  exhausted(generation: Generation): void;
  /** A lease of it is over. */
  ended(generation: Generation): void;
  /** It gives up its leases. */
  released(generation: Generation, leases: readonly HeldLease[]): void;
}

/**
 * One set of values that a service's credentials have had: who still uses them, and the leases that they live under,
 * which are kept until it is retired and its last tenant has left. The values themselves are not in here.
 */
export class Generation {
  readonly number: number;
  readonly fingerprint: string;
  readonly leases: readonly HeldLease[];
  readonly #events: GenerationEvents;
  readonly #tenants = new Set<(why: Retirement) => void>();
  #versions: string;
  #retired: Retirement | undefined;
  #released = false;

  constructor(
    facts: {
      readonly number: number;
      readonly fingerprint: string;
      readonly versions: string;
      readonly leases: readonly HeldLease[];
    },
    events: GenerationEvents,
  ) {
    this.number = facts.number;
    this.fingerprint = facts.fingerprint;
    this.leases = facts.leases;
    this.#versions = facts.versions;
    this.#events = events;
    for (const lease of this.leases) lease.hold(this);
  }

  /** The same values may be stored again as another version. */
  set versions(versions: string) {
    this.#versions = versions;
  }

  get versions(): string {
    return this.#versions;
  }

  get tenants(): number {
    return this.#tenants.size;
  }

  get retired(): Retirement | undefined {
    return this.#retired;
  }

  /** By the monotonic clock: the end of the first lease to end; infinite without leases. */
  get endsAt(): number {
    return Math.min(...this.leases.map(({ endsAt }) => endsAt), Number.POSITIVE_INFINITY);
  }

  /** By the monotonic clock: until when the leases leave time enough to fetch others; infinite without leases. */
  get goodUntil(): number {
    return Math.min(...this.leases.map(({ goodUntil }) => goodUntil), Number.POSITIVE_INFINITY);
  }

  tenure(): Tenure {
    const callbacks: ((why: Retirement) => void)[] = [];
    const tell = (why: Retirement) => {
      for (const callback of callbacks.splice(0)) callback(why);
    };
    this.#tenants.add(tell);
    return {
      generation: this.number,
      versions: this.#versions,
      leases: this.leases.map(({ id }) => id),
      retired: () => this.#retired,
      onRetired: (callback) => {
        if (!this.#tenants.has(tell)) return;
        if (this.#retired) callback(this.#retired);
        else callbacks.push(callback);
      },
      release: () => {
        if (!this.#tenants.delete(tell)) return;
        callbacks.length = 0;
        if (this.#tenants.size > 0) return;
        this.#events.idle(this);
        this.#releaseUnused();
      },
    };
  }

  /** No new tenant comes. */
  retire(why: Retirement): void {
    if (this.#retired) return;
    this.#retired = why;
    for (const tell of this.#tenants) tell(why);
    this.#releaseUnused();
  }

  exhausted(): void {
    this.#events.exhausted(this);
  }

  ended(): void {
    this.#events.ended(this);
  }

  #releaseUnused(): void {
    if (!this.#retired || this.#tenants.size > 0 || this.#released) return;
    this.#released = true;
    for (const lease of this.leases) lease.letGo(this);
    if (this.leases.length > 0) this.#events.released(this, this.leases);
  }
}
