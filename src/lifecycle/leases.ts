import type { Logger } from 'pino';

import { PosternError } from '../core/errors.ts';
import type { Lease } from '../providers/provider.ts';
import { Alarms, jittered, pause } from './alarms.ts';
import type { GivenLease } from './answer.ts';
import type { LeaseJournal } from './journal.ts';

/** Told about every renewal and revocation, for metrics and the audit. */
export type ObserveLease = (
  provider: string,
  operation: 'renew' | 'revoke',
  outcome: 'ok' | PosternError['code'],
  /** The id of the lease. */
  lease: string,
) => void;

/** How long one renewal or revocation may take, in milliseconds. */
const REQUEST_TIMEOUT = 10_000;
/** Revocations under way at once. */
const MOST_AT_ONCE = 16;
/** How often a revocation is tried while the process lives, with pauses that double up to half a minute. */
const MOST_TRIES = 8;
/** A lease that is renewed to less than this comes to its end, unless it was never longer. */
const SHORT = 30_000;

/** What whoever holds a lease has to hear of it. */
export interface LeaseHolder {
  /** It will not be renewed any further, and is still good: time to fetch another one. */
  exhausted(): void;
  /** It is over. */
  ended(): void;
}

/** A lease that this process holds. It is renewed as far as it can be until its last holder lets go of it. */
export class HeldLease {
  readonly provider: string;
  readonly id: string;
  readonly renewable: boolean;
  readonly #log: Logger;
  readonly #observe: ObserveLease;
  readonly #onOver: () => void;
  readonly #alarms = new Alarms<'renew' | 'end'>();
  readonly #holders = new Set<LeaseHolder>();
  readonly #stopped = new AbortController();
  #lease: Lease;
  /** How long it lived at first, in milliseconds. */
  readonly #firstLife: number;
  /** By the monotonic clock. */
  #endsAt: number;
  #exhausted = false;
  #failures = 0;

  constructor({ provider, lease }: GivenLease, log: Logger, observe: ObserveLease, onOver: () => void) {
    this.provider = provider;
    this.id = lease.id;
    this.renewable = lease.renewable;
    this.#lease = lease;
    this.#log = log;
    this.#observe = observe;
    this.#onOver = onOver;
    this.#firstLife = lifeUntil(lease.expiresAt);
    this.#endsAt = performance.now() + this.#firstLife;
    this.#watch();
  }

  /** Milliseconds that it has left. */
  get left(): number {
    return Math.max(0, this.#endsAt - performance.now());
  }

  /** By the monotonic clock: how long values under it may be handed out without asking for new ones. */
  get goodUntil(): number {
    return this.#endsAt - Math.min(this.#firstLife / 10, SHORT);
  }

  /** By the monotonic clock. */
  get endsAt(): number {
    return this.#endsAt;
  }

  get exhausted(): boolean {
    return this.#exhausted;
  }

  get held(): boolean {
    return this.#holders.size > 0;
  }

  hold(holder: LeaseHolder): void {
    this.#holders.add(holder);
  }

  letGo(holder: LeaseHolder): void {
    this.#holders.delete(holder);
  }

  /** A store that hands the same lease out again may say a new end. */
  adopt(lease: Lease): void {
    this.#lease = lease;
    this.#extend(lease.expiresAt);
  }

  /** Renews it no more. */
  stop(): void {
    this.#alarms.clear();
    this.#stopped.abort();
  }

  /** Throws the signal's reason when that aborts, also where the provider does not hear of it. */
  async revoke(signal: AbortSignal): Promise<void> {
    const patience = AbortSignal.any([signal, AbortSignal.timeout(REQUEST_TIMEOUT)]);
    const { promise: aborted, reject } = Promise.withResolvers<never>();
    patience.addEventListener('abort', () => reject(late()), { once: true });
    await Promise.race([this.#lease.revoke(patience), aborted]);
  }

  #watch(): void {
    this.#alarms.set('end', this.left, () => this.#end());
    if (this.#exhausted) return;
    // What cannot be renewed is replaced later: each replacement is a new user in the database.
    const share = this.renewable ? 2 / 3 : 0.8;
    this.#alarms.set('renew', jittered(this.left * share), () => void this.#renew());
  }

  async #renew(): Promise<void> {
    if (!this.renewable) {
      this.#exhaust();
      return;
    }
    const { signal } = this.#stopped;
    const patience = AbortSignal.timeout(Math.max(1, Math.min(REQUEST_TIMEOUT, Math.floor(this.left))));
    try {
      const end = await this.#lease.renew(AbortSignal.any([signal, patience]));
      if (signal.aborted) return;
      this.#observe(this.provider, 'renew', 'ok', this.id);
      this.#failures = 0;
      this.#extend(end);
    } catch (thrown) {
      if (signal.aborted) return;
      const error = PosternError.from(thrown);
      this.#observe(this.provider, 'renew', error.code, this.id);
      this.#failures += 1;
      const forGood = error.code === 'PROVIDER_FAILED';
      this.#log.warn(
        {
          provider: this.provider,
          lease: this.id,
          error: error.message,
          secondsLeft: Math.round(this.left / 1000),
        },
        'a lease could not be renewed',
      );
      if (forGood) this.#exhaust();
      else {
        const pause = jittered(Math.min(30_000, 500 * 2 ** (this.#failures - 1)));
        this.#alarms.set('renew', pause, () => void this.#renew());
      }
    }
  }

  #extend(end: Date): void {
    const life = lifeUntil(end);
    this.#endsAt = performance.now() + life;
    // The store gives less than it is asked for when the longest life of the lease, or of the login behind it, is near.
    const shortened = life < this.#firstLife / 2 || (life < SHORT && this.#firstLife > SHORT);
    if (shortened) this.#exhaust();
    this.#watch();
  }

  #exhaust(): void {
    if (this.#exhausted) return;
    this.#exhausted = true;
    this.#alarms.clear('renew');
    for (const holder of this.#holders) holder.exhausted();
  }

  #end(): void {
    this.stop();
    this.#exhausted = true;
    this.#onOver();
    for (const holder of this.#holders) holder.ended();
  }
}

export interface LeaseOfficeOptions {
  readonly log: Logger;
  readonly observe: ObserveLease;
  /** undefined: there is no folder for one. */
  readonly journal: LeaseJournal | undefined;
}

/** All leases of the process: noted before anybody uses their values, renewed while they are held, revoked after that. */
export class LeaseOffice {
  readonly #log: Logger;
  readonly #observe: ObserveLease;
  readonly #journal: LeaseJournal | undefined;
  readonly #held = new Map<string, HeldLease>();
  readonly #revoking = new Map<HeldLease, Promise<void>>();
  readonly #closing = new AbortController();
  readonly #queue: (() => void)[] = [];
  #underWay = 0;
  #warned = false;

  constructor({ log, observe, journal }: LeaseOfficeOptions) {
    this.#log = log;
    this.#observe = observe;
    this.#journal = journal;
  }

  /** Resolves when they are noted. A lease that is held already is the same one again. */
  async take(given: readonly GivenLease[]): Promise<HeldLease[]> {
    const held = given.map((each) => this.#take(each));
    if (given.length > 0 && !this.#journal && !this.#warned) {
      this.#warned = true;
      this.#log.warn('no stateFolder: after a crash, leases live until they expire');
    }
    if (given.length > 0) await this.#journal?.add(held);
    return held;
  }

  /** Revokes what nobody holds any more, in the background. Resolves when it is revoked, or given up. */
  async giveBack(leases: readonly HeldLease[]): Promise<void> {
    await Promise.all(
      leases.map(async (lease) => {
        if (lease.held) return;
        const underWay = this.#revoking.get(lease) ?? this.#revoke(lease);
        this.#revoking.set(lease, underWay);
        await underWay;
      }),
    );
  }

  /** No time is left: what is being revoked is given up, and named. */
  abandon(): void {
    this.#closing.abort();
  }

  #take(given: GivenLease): HeldLease {
    const key = `${given.provider}\0${given.lease.id}`;
    const known = this.#held.get(key);
    if (known && !this.#revoking.has(known)) {
      known.adopt(given.lease);
      return known;
    }
    const lease: HeldLease = new HeldLease(given, this.#log, this.#observe, () => {
      if (this.#held.get(key) === lease) this.#held.delete(key);
      void this.#journal?.remove([lease]);
    });
    this.#held.set(key, lease);
    return lease;
  }

  async #revoke(lease: HeldLease): Promise<void> {
    lease.stop();
    const key = `${lease.provider}\0${lease.id}`;
    const { signal } = this.#closing;
    let failure: PosternError | undefined;
    for (let attempt = 0; attempt < MOST_TRIES; attempt++) {
      if (attempt > 0) await pause(jittered(Math.min(30_000, 500 * 2 ** (attempt - 1))), signal);
      failure = lease.left > 0 ? await this.#tryRevoke(lease, signal) : undefined;
      if (!failure || failure.code === 'PROVIDER_FAILED' || signal.aborted) break;
    }
    const { provider, id } = lease;
    if (failure)
      this.#log.warn(
        { provider, lease: id, error: failure.message, secondsLeft: Math.round(lease.left / 1000) },
        'a lease could not be revoked, it lives until it expires',
      );
    // What may be revoked later stays noted for the next start.
    if (!failure || failure.code === 'PROVIDER_FAILED') await this.#journal?.remove([lease]);
    if (this.#held.get(key) === lease) this.#held.delete(key);
    this.#revoking.delete(lease);
  }

  async #tryRevoke(lease: HeldLease, signal: AbortSignal): Promise<PosternError | undefined> {
    await this.#turn();
    try {
      // What is closed out of turn fails like what is closed under way, and stays noted.
      if (signal.aborted) return late();
      await lease.revoke(signal);
      this.#observe(lease.provider, 'revoke', 'ok', lease.id);
      return undefined;
    } catch (thrown) {
      const error = PosternError.from(thrown);
      this.#observe(lease.provider, 'revoke', error.code, lease.id);
      return error;
    } finally {
      this.#underWay -= 1;
      this.#queue.shift()?.();
    }
  }

  async #turn(): Promise<void> {
    if (this.#underWay >= MOST_AT_ONCE) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#queue.push(resolve);
      await promise;
    }
    this.#underWay += 1;
  }
}

function late(): PosternError {
  return new PosternError('TIMEOUT', 'there was no time left');
}

function lifeUntil(end: Date): number {
  return Math.max(0, end.getTime() - Date.now());
}
