import type { Logger } from 'pino';
import { pino } from 'pino';

import { Credentials } from '../core/credentials.ts';
import { Deadline } from '../core/deadline.ts';
import { type ErrorCode, PosternError } from '../core/errors.ts';
import type { Prepare, Prepared } from '../core/prepared.ts';
import type { Secret } from '../core/secret.ts';
import type { Retirement, Tenure } from '../core/tenure.ts';
import type { Provider } from '../providers/provider.ts';
import { Alarms, jittered, pause } from './alarms.ts';
import { type Answer, type Asking, askAll, copyOf, type SourceReference, wipeAll } from './answer.ts';
import { DerivedKeys } from './derived-keys.ts';
import { Dispute, POLLS, type Verdict } from './dispute.ts';
import { Flight } from './flight.ts';
import { Generation } from './generation.ts';
import { type HeldLease, LeaseOffice } from './leases.ts';
import { Outage } from './outage.ts';
import { type Follower, type Loan, PreparedValue } from './prepared-value.ts';

export type { SourceReference } from './answer.ts';

/** How long the credentials of a service are kept, in milliseconds; see `cache` of the configuration. */
export interface Policy {
  readonly ttl: number | undefined;
  readonly maxStale: number;
  readonly linger: number;
  readonly rotationGrace: number;
  /** How often to look for other values while sessions live on these; 0: never. */
  readonly rotationCheck: number;
}

/** What a source tells the metrics. */
export interface SourceObserver {
  asked(provider: string, outcome: 'ok' | ErrorCode, seconds: number, error?: string): void;
  /** Where the credentials of a login came from. */
  lent(from: 'provider' | 'cache' | 'stale'): void;
  /** How a login ended that the upstream rejected at first, or that waited because another one was. */
  rejected(outcome: 'recovered' | 'refused'): void;
}

export interface SourceOptions {
  readonly policy?: Partial<Policy>;
  readonly observer?: Partial<SourceObserver>;
  readonly log?: Logger;
  readonly leases?: LeaseOffice;
  /** How long a question may take that no login waits for, in milliseconds. */
  readonly fetchTimeout?: number;
}

/** State of a source for people and programs: names and numbers, nothing secret. Times are in seconds. */
export interface SourceState {
  /** `kept`: for an outage; `stale`: used in one. */
  readonly state: 'empty' | 'fresh' | 'kept' | 'stale';
  readonly providers: readonly string[];
  /** 0: nothing was fetched yet. */
  readonly generation: number;
  readonly versions: string;
  /** Since the values were last seen in the store. */
  readonly age: number | undefined;
  readonly failing:
    | {
        readonly code: ErrorCode;
        readonly error: string;
        readonly since: number;
        readonly failures: number;
        readonly nextAttempt: number;
      }
    | undefined;
  /** The upstream rejects what the store has. */
  readonly rejected: boolean;
  readonly leases: readonly {
    readonly provider: string;
    readonly id: string;
    readonly secondsLeft: number;
    readonly renewable: boolean;
    /** Of the generation that new logins get. */
    readonly current: boolean;
    readonly sessions: number;
  }[];
}

const defaultPolicy: Policy = {
  ttl: undefined,
  maxStale: 0,
  linger: 10_000,
  rotationGrace: 3000,
  rotationCheck: 0,
};
/** For connectors that need the credential with every request, in milliseconds. */
const TTL_OF_PREPARED = 5000;
/** How long a client waits for a provider that may not answer, where there is an alternative, in milliseconds. */
const PATIENCE = 1000;
/** How long it waits where the last attempt has failed and there is no alternative: whoever waits hears of it within a second. */
const PATIENCE_WITHOUT_HOPE = 750;
/** How often one login tries at most, whatever changes meanwhile, and how often with values that it was rejected with. */
const MOST_TRIES = 10;
const MOST_REPEATED = 3;
/** A rejected lease is replaced at most this often, in milliseconds: each replacement is a new user in the database. */
const REPLACEMENT_INTERVAL = 5000;
/** Disputes about different values that are remembered. */
const MOST_DISPUTES = 8;

/** What new logins get, as long as it is kept. */
interface Holding {
  readonly generation: Generation;
  /** undefined: not kept, or not any more. */
  values: Map<string, Secret> | undefined;
  fetchedAt: number;
  /** All by the monotonic clock; of leased values the leases say more. */
  freshUntil: number;
  staleUntil: number;
  refreshAt: number;
}

/** What a flight brought, for those aboard. */
interface Arrival extends Disposable {
  readonly secrets: ReadonlyMap<string, Secret>;
  readonly generation: Generation;
}

/**
 * Where the credentials of one service come from, and how long they are used: asked of the providers once for all who
 * ask at the same time, kept as the service's policy and the leases say, replaced before they end, asked for again when
 * the upstream rejects them, and used a while longer when the providers cannot be asked.
 */
export class CredentialSource implements Disposable {
  readonly #policy: Policy;
  readonly #observer: Partial<SourceObserver>;
  readonly #log: Logger;
  readonly #office: LeaseOffice;
  readonly #fetchTimeout: number;
  readonly #asking: Asking;
  readonly #derived = new DerivedKeys();
  readonly #prepared: Follower[] = [];
  readonly #alarms = new Alarms<'refresh' | 'wipe' | 'linger' | 'check'>();
  readonly #outage = new Outage();
  readonly #disputes = new Map<string, Dispute<Loan>>();
  /** Generations with leases that somebody still uses. */
  readonly #leased = new Set<Generation>();
  readonly #returning = new Set<Promise<void>>();
  readonly #closing = new AbortController();
  #flights = 0;
  #flight: Flight<Arrival> | undefined;
  /** The flight that goes on though no login waits for it. */
  #aloft: Flight<Arrival> | undefined;
  /** The newest flight that has landed. */
  #landed = 0;
  #holding: Holding | undefined;
  #generations = 0;
  /** Whether anybody has used the values since they were fetched. */
  #used = false;
  #lastReplacement = Number.NEGATIVE_INFINITY;
  /** Whether the upstream has taken credentials of this service before. */
  #everAccepted = false;

  constructor(
    references: ReadonlyMap<string, SourceReference>,
    provider: (name: string) => Provider,
    options: SourceOptions = {},
  ) {
    this.#policy = { ...defaultPolicy, ...options.policy };
    this.#observer = options.observer ?? {};
    this.#log = options.log ?? pino({ level: 'silent' });
    this.#fetchTimeout = options.fetchTimeout ?? 10_000;
    this.#office =
      options.leases ?? new LeaseOffice({ log: this.#log, observe: () => {}, journal: undefined });
    this.#asking = {
      references,
      provider,
      observe: (name, outcome, seconds, error) => this.#observer.asked?.(name, outcome, seconds, error),
      giveBack: (leases) =>
        this.#track(
          this.#office.take(leases).then(async (held) => {
            await this.#office.giveBack(held);
          }),
        ),
    };
  }

  /**
   * Lends the credentials to `use` and wipes them when it settles. When the upstream rejects them (UPSTREAM_REJECTED) a
   * rotation may be under way: they are asked for again, and `use` runs again with others, or after a while with the same
   * ones; a few times at most, and with unchanged ones within `rotationGrace`. `onLent` is told before each run with which credentials it is;
   * the tenure of the run that succeeds is the caller's to release.
   */
  async lend<T>(
    use: (credentials: Credentials, signal: AbortSignal) => Promise<T>,
    signal: AbortSignal,
    onLent?: (tenure: Tenure) => void,
  ): Promise<T> {
    const login: Login = { tried: new Set(), tries: 0, repeated: 0, rejection: undefined };
    for (;;) {
      const loan = await this.#worthTrying(login, signal);
      const started = performance.now();
      onLent?.(loan.tenure);
      try {
        const result = await use(loan.credentials, signal);
        this.#accepted(loan.generation, login, started);
        if (!onLent) loan.tenure.release();
        return result;
      } catch (error) {
        loan.tenure.release();
        if (!(error instanceof PosternError && error.code === 'UPSTREAM_REJECTED')) {
          login.leading?.led('undecided');
          throw error;
        }
        this.#rejected(loan.generation, login, error);
      } finally {
        loan.credentials[Symbol.dispose]();
      }
    }
  }

  /** Keeps what `make` makes of the credentials while they are current. */
  prepare<Value extends Disposable>(make: Prepare<Value>): Prepared<Value> {
    const prepared = new PreparedValue(make, {
      borrow: (signal) => this.#acquire(signal),
      borrowAnew: (signal, generation) => this.#acquireAnew(signal, generation),
      fetchTimeout: this.#fetchTimeout,
      linger: this.#policy.linger,
    });
    this.#prepared.push(prepared);
    return prepared;
  }

  /** How it stands with the credentials: nothing secret. */
  describe(): SourceState {
    const now = performance.now();
    const seconds = (milliseconds: number) => Math.round(milliseconds / 1000);
    const held = this.#holding;
    const { error, failures, since, nextAttempt } = this.#outage;
    const kept = held?.values !== undefined && now < this.#staleUntil(held);
    return {
      state: !kept ? 'empty' : now < this.#freshUntil(held) ? 'fresh' : error ? 'stale' : 'kept',
      providers: this.#providerNames,
      generation: held?.generation.number ?? this.#generations,
      versions: held?.generation.versions ?? '',
      age: held && seconds(now - held.fetchedAt),
      failing: error && {
        code: error.code,
        error: error.message,
        since: seconds(now - since),
        failures,
        nextAttempt: Math.max(0, seconds(nextAttempt - now)),
      },
      rejected: this.#disputes.values().some(({ bad }) => bad),
      leases: [...this.#leased].flatMap((generation) =>
        generation.leases.map(({ provider, id, left, renewable }) => ({
          provider,
          id,
          secondsLeft: seconds(left),
          renewable,
          current: generation === held?.generation,
          sessions: generation.tenants,
        })),
      ),
    };
  }

  /** Whether leases of this provider are held, or on their way back. */
  needs(provider: string): boolean {
    const held = this.#leased
      .values()
      .some(({ leases }) => leases.some((lease) => lease.provider === provider));
    return held || this.#returning.size > 0;
  }

  /**
   * Nobody borrows any more, and all sessions have ended: wipes what is kept and gives up the leases. Resolves when they
   * are revoked, or given up.
   */
  async close(): Promise<void> {
    // A question under way may bring a lease, which is then known and can be revoked.
    const flight = this.#flight;
    if (flight) {
      const timer = setTimeout(() => this.#closing.abort(closed()), PATIENCE);
      await flight.settled;
      clearTimeout(timer);
    }
    this.#closing.abort(closed());
    this[Symbol.dispose]();
    await Promise.all(this.#returning);
  }

  /** Wipes what is kept, and stops every timer. */
  [Symbol.dispose](): void {
    for (const value of this.#prepared) value[Symbol.dispose]();
    for (const dispute of this.#disputes.values()) dispute.failed(closed());
    this.#disputes.clear();
    this.#drop('closed');
    this.#derived.wipe();
  }

  // ── lending ──────────────────────────────────────────────────────────────────────────────────────────────────

  /** The next credentials that a login may be tried with; throws when there are none. */
  async #worthTrying(login: Login, signal: AbortSignal): Promise<Loan> {
    for (;;) {
      const verdict = login.dispute && (await this.#hear(login.dispute, login, signal));
      login.leading = verdict?.kind === 'lead' ? login.dispute : undefined;
      login.dispute = undefined;
      const { leading } = login;
      const loan =
        verdict?.kind === 'changed'
          ? verdict.loan
          : await this.#acquire(signal).catch((error: unknown) => {
              leading?.led('undecided');
              throw error;
            });
      const dispute = this.#disputes.get(loan.generation.fingerprint);
      if (leading && dispute === leading) return loan;
      // The store has other values by now.
      leading?.led('undecided');
      login.leading = undefined;
      if (!dispute) return loan;
      loan.giveBack();
      login.dispute = dispute;
    }
  }

  async #hear(dispute: Dispute<Loan>, login: Login, signal: AbortSignal): Promise<Verdict<Loan>> {
    try {
      const hearing = dispute.hear(signal, login.tried.has(dispute.fingerprint));
      void this.#poll(dispute);
      const verdict = await hearing;
      if (verdict.kind !== 'over') return verdict;
      throw verdict.error.code === 'UPSTREAM_REJECTED' ? (login.rejection ?? verdict.error) : verdict.error;
    } catch (thrown) {
      const error = thrown === signal.reason ? this.#late(thrown) : thrown;
      if (login.rejection || error !== thrown) this.#observer.rejected?.('refused');
      // The deadline came while the login waited for a rotation: the rejection says more.
      throw error !== thrown && dispute.polled && login.rejection ? login.rejection : error;
    }
  }

  /** Where the upstream has never taken anything, no rotation is under way: it is set up wrongly, and says so at once. */
  get #grace(): number {
    return this.#everAccepted ? this.#policy.rotationGrace : 0;
  }

  #accepted({ fingerprint }: Generation, login: Login, started: number): void {
    this.#everAccepted = true;
    const dispute = this.#disputes.get(fingerprint);
    // A login that began before the first rejection proves nothing.
    if (dispute && dispute.openedAt <= started) {
      this.#disputes.delete(fingerprint);
      dispute.accepted();
    }
    login.leading?.led('accepted');
    if (login.rejection || login.leading) this.#observer.rejected?.('recovered');
  }

  /** Notes a rejection; throws it when the login has had its tries. */
  #rejected(generation: Generation, login: Login, error: PosternError): void {
    const grace = this.#grace;
    const { fingerprint } = generation;
    login.rejection = error;
    login.tries += 1;
    // How often one may lead, the dispute says.
    if (login.tried.has(fingerprint) && !login.leading) login.repeated += 1;
    login.tried.add(fingerprint);
    login.leading?.led(error);
    login.leading = undefined;
    // Values that have been replaced meanwhile are not worth a dispute.
    const known = this.#disputes.get(fingerprint);
    // Leased values that stay bad are replaced, now and then.
    const replace = known?.bad === true && generation.leases.length > 0 && this.#mayReplace();
    if (known && !replace) login.dispute = known;
    else if (known || this.#holding?.generation === generation) login.dispute = this.#open(generation, error);
    // Others may be accepted with what this login is rejected with: it is about what it asks for, then.
    const over = grace > 0 ? login.tries >= MOST_TRIES || login.repeated >= MOST_REPEATED : login.tries >= 2;
    if (!over) return;
    this.#observer.rejected?.('refused');
    throw error;
  }

  // ── disputes ─────────────────────────────────────────────────────────────────────────────────────────────────

  #open({ fingerprint, leases }: Generation, error: PosternError): Dispute<Loan> {
    for (const [oldest, dispute] of this.#disputes) {
      if (this.#disputes.size < MOST_DISPUTES) break;
      this.#disputes.delete(oldest);
      dispute.failed(dispute.error);
    }
    const dispute = new Dispute<Loan>(fingerprint, error, this.#flights, this.#grace);
    this.#disputes.set(fingerprint, dispute);
    if (leases.length === 0 && this.#holding?.generation.fingerprint === fingerprint) this.#forget();
    return dispute;
  }

  /** Asks the store again and again while logins wait for it to have other values. What it brings is told by `#takeOver`. */
  async #poll(dispute: Dispute<Loan>): Promise<void> {
    if (dispute.polling || !dispute.undecided) return;
    dispute.polling = true;
    const leased = this.#holding?.generation.fingerprint === dispute.fingerprint && this.#isLeased;
    for (let round = 0; dispute.undecided && dispute.waiting > 0; round++) {
      // Every question for a leased credential makes a new one.
      if (leased && this.#mayReplace()) {
        this.#lastReplacement = performance.now();
        await this.#askFor(dispute);
      } else if (!leased) await this.#askFor(dispute);
      dispute.polled = true;
      if (!dispute.undecided) break;
      if (dispute.grace === 0) {
        this.#disputes.delete(dispute.fingerprint);
        dispute.giveUp();
      }
      await pause(POLLS[Math.min(round, POLLS.length - 1)] ?? 0, dispute.over);
    }
    dispute.polling = false;
  }

  async #askFor(dispute: Dispute<Loan>): Promise<void> {
    const inOutage = this.#outage.error && performance.now() < this.#outage.nextAttempt && this.#outage.error;
    try {
      if (inOutage) throw inOutage;
      const flight =
        this.#flight && (dispute.polled || this.#flight.number > dispute.flights)
          ? this.#flight
          : this.#takeOff();
      using _ = await flight.board(dispute.deserted);
    } catch (error) {
      // Whoever left has heard why already. Later on a rejection says more than a store that cannot be asked.
      if (dispute.polled || dispute.deserted.aborted || !dispute.undecided) return;
      this.#disputes.delete(dispute.fingerprint);
      dispute.failed(PosternError.from(error));
    }
  }

  #mayReplace(): boolean {
    return performance.now() >= this.#lastReplacement + REPLACEMENT_INTERVAL;
  }

  // ── having or getting them ───────────────────────────────────────────────────────────────────────────────────

  /** Credentials as good as they are to be had now, and a tenure of them. */
  async #acquire(signal: AbortSignal): Promise<Loan> {
    const began = performance.now();
    for (;;) {
      if (signal.aborted) throw this.#late(signal.reason);
      const now = performance.now();
      const held = this.#holding;
      if (held?.values && now < this.#freshUntil(held)) {
        if (now >= held.refreshAt) this.#refresh();
        return this.#lendKept(held, held.values, 'cache');
      }
      if (held?.values && now < this.#staleUntil(held)) return await this.#acquireOrStale(signal);

      const { error, nextAttempt } = this.#outage;
      if (!error) return await this.#board(this.#flight ?? this.#takeOff(), signal);
      if (this.#flight || now >= nextAttempt) {
        // It may hang again: whoever comes waits for it a moment, and the next ones will find it landed.
        const flight = this.#flight ?? this.#takeOff();
        this.#keepAloft(flight);
        return await this.#boardFor(began + PATIENCE_WITHOUT_HOPE - now, flight, signal, error);
      }
      if (nextAttempt > began + PATIENCE_WITHOUT_HOPE) throw error;
      await pause(nextAttempt - now, signal);
    }
  }

  /** The values are not fresh any more, and may be used when their providers cannot be asked. */
  async #acquireOrStale(signal: AbortSignal): Promise<Loan> {
    const failing = this.#outage.error;
    const underWay = this.#flight;
    if (!underWay && performance.now() >= this.#outage.nextAttempt) this.#keepAloft(this.#takeOff());
    if (!failing && this.#flight) {
      this.#keepAloft(this.#flight);
      const late = new PosternError(
        'PROVIDER_UNAVAILABLE',
        `provider ${this.#quotedNames} is slow to answer`,
      );
      try {
        return await this.#boardFor(PATIENCE, this.#flight, signal, late);
      } catch (error) {
        const leased = (this.#holding?.generation.leases.length ?? 0) > 0;
        if (signal.aborted || !(leased || isOutage(error))) throw error;
      }
    }
    const held = this.#holding;
    if (!held?.values || performance.now() >= this.#staleUntil(held)) {
      throw (
        this.#outage.error ??
        new PosternError('PROVIDER_UNAVAILABLE', `provider ${this.#quotedNames} cannot be asked`)
      );
    }
    if (this.#outage.servedStale()) {
      const seconds = Math.round((this.#staleUntil(held) - performance.now()) / 1000);
      const error = this.#outage.error?.message ?? 'no answer yet';
      this.#log.warn(
        { error, credential: held.generation.versions, secondsLeft: seconds },
        'using an old credential: its provider cannot be asked',
      );
    }
    return this.#lendKept(held, held.values, 'stale');
  }

  /** What a question brings that is asked from now on; the same as before where a lease was replaced only just now. */
  async #acquireAnew(signal: AbortSignal, generation: Generation): Promise<Loan> {
    const leased = generation.leases.length > 0;
    if (this.#holding?.generation !== generation || (leased && !this.#mayReplace()))
      return await this.#acquire(signal);
    if (this.#outage.error && performance.now() < this.#outage.nextAttempt) throw this.#outage.error;
    if (leased) this.#lastReplacement = performance.now();
    return await this.#board(this.#takeOff(), signal);
  }

  #lendKept(held: Holding, values: ReadonlyMap<string, Secret>, from: 'cache' | 'stale'): Loan {
    this.#observer.lent?.(from);
    return this.#loan(held.generation, values);
  }

  #loan(generation: Generation, secrets: ReadonlyMap<string, Secret>): Loan {
    this.#used = true;
    const { fingerprint } = generation;
    const credentials = new Credentials(copyOf(secrets), (label, compute) =>
      this.#derived.get(Buffer.from(fingerprint, 'base64'), label, compute),
    );
    const tenure = generation.tenure();
    return {
      credentials,
      generation,
      tenure,
      usableUntil: this.#usableUntil(generation),
      giveBack: () => {
        tenure.release();
        credentials[Symbol.dispose]();
      },
    };
  }

  async #board(flight: Flight<Arrival>, signal: AbortSignal): Promise<Loan> {
    try {
      using boarded = await flight.board(signal);
      this.#observer.lent?.('provider');
      return this.#loan(boarded.answer.generation, boarded.answer.secrets);
    } catch (thrown) {
      throw thrown === signal.reason ? this.#late(thrown) : thrown;
    }
  }

  /** Waits for no longer than that, and then throws `late`. */
  async #boardFor(
    milliseconds: number,
    flight: Flight<Arrival>,
    signal: AbortSignal,
    late: PosternError,
  ): Promise<Loan> {
    using deadline = new Deadline(Math.max(0, milliseconds), () => late, signal);
    return await this.#board(flight, deadline.signal);
  }

  /** A provider that runs into the login's deadline is a provider's failure: say which, and let clients retry. */
  #late(thrown: unknown): unknown {
    if (!(thrown instanceof PosternError && thrown.code === 'TIMEOUT')) return thrown;
    return new PosternError('PROVIDER_UNAVAILABLE', `provider ${this.#quotedNames} did not answer in time`, {
      cause: thrown,
    });
  }

  get #providerNames(): string[] {
    return [...new Set(this.#asking.references.values().map(({ provider }) => provider))];
  }

  get #quotedNames(): string {
    return this.#providerNames.map((name) => `"${name}"`).join(', ');
  }

  // ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────

  #takeOff(): Flight<Arrival> {
    this.#flights += 1;
    const number = this.#flights;
    const flight: Flight<Arrival> = new Flight(
      number,
      (signal) => this.#fetch(number, signal),
      () => {
        if (this.#flight === flight) this.#flight = undefined;
      },
    );
    this.#flight = flight;
    return flight;
  }

  async #fetch(number: number, signal: AbortSignal): Promise<Arrival> {
    // Nobody waits any more, for lack of time: that is a failure although nobody hears of it.
    const calledOff = () => {
      const error = this.#late(signal.reason);
      if (isOutage(error)) this.#failed(error);
    };
    signal.addEventListener('abort', calledOff);
    try {
      const answer = await askAll(this.#asking, signal);
      signal.removeEventListener('abort', calledOff);
      return this.#takeOver(number, answer, await this.#office.take(answer.leases));
    } catch (thrown) {
      if (!signal.aborted) this.#failed(PosternError.from(thrown));
      throw thrown;
    } finally {
      signal.removeEventListener('abort', calledOff);
    }
  }

  #failed(error: PosternError): void {
    if (isOutage(error)) {
      this.#outage.failed(error);
      // Whoever is served an old value now does not wait for the new one.
      if (this.#holding?.values && this.#inUse())
        this.#alarms.set('refresh', this.#outage.nextAttempt - performance.now(), () => this.#refresh());
      return;
    }
    this.#providersAnswer();
    // The store has said no: what it had before is good for as long as it was said to be, and no longer.
    const held = this.#holding;
    if (!held || held.generation.leases.length > 0) return;
    held.staleUntil = held.freshUntil;
    if (performance.now() >= held.freshUntil) this.#forget();
  }

  #providersAnswer(): void {
    const told = this.#outage.over();
    if (told) this.#log.warn(told, 'the provider answers again, no old credential is used any more');
  }

  /** Lets it go on for a time though nobody waits for it. */
  #keepAloft(flight: Flight<Arrival>): void {
    if (this.#aloft === flight) return;
    this.#aloft = flight;
    const late = () =>
      new PosternError('TIMEOUT', `the question took longer than ${this.#fetchTimeout / 1000} s`);
    const deadline = new Deadline(this.#fetchTimeout, late, this.#closing.signal);
    void flight
      .board(deadline.signal)
      .then(
        (boarded) => boarded[Symbol.dispose](),
        () => {},
      )
      .finally(() => deadline[Symbol.dispose]());
  }

  /** Fetches in the background what is used. */
  #refresh(): void {
    if (this.#closing.signal.aborted) return;
    const wait = this.#outage.nextAttempt - performance.now();
    if (this.#flight || wait <= 0) this.#keepAloft(this.#flight ?? this.#takeOff());
    else if (!this.#alarms.has('refresh')) this.#alarms.set('refresh', wait, () => this.#refresh());
  }

  #inUse(): boolean {
    const prepared = this.#prepared.filter((each) => each.takeUsed());
    return this.#used || prepared.length > 0;
  }

  // ── keeping ──────────────────────────────────────────────────────────────────────────────────────────────────

  /** An answer is there: it is the service's from now on, whether somebody waits for it or not. */
  #takeOver(number: number, answer: Answer, leases: readonly HeldLease[]): Arrival {
    this.#providersAnswer();
    const outdated = number < this.#landed;
    this.#landed = Math.max(this.#landed, number);
    const before = this.#holding;
    const same = before?.generation.fingerprint === answer.fingerprint;
    const generation = same ? before.generation : this.#newGeneration(answer, leases);
    generation.versions = answer.versions;
    // Those aboard come before the generation counts as unused.
    const stay = generation.tenure();
    if (this.#closing.signal.aborted) generation.retire('closed');
    else if (outdated && !same) generation.retire('replaced');
    else this.#hold(generation, answer, before);
    if (!outdated) {
      for (const [fingerprint, dispute] of this.#disputes)
        if (fingerprint !== answer.fingerprint && number > dispute.flights) {
          this.#disputes.delete(fingerprint);
          dispute.changed(() => this.#loan(generation, answer.secrets));
        }
    }
    return {
      secrets: answer.secrets,
      generation,
      [Symbol.dispose]: () => {
        answer[Symbol.dispose]();
        stay.release();
      },
    };
  }

  #newGeneration({ fingerprint, versions }: Answer, leases: readonly HeldLease[]): Generation {
    this.#generations += 1;
    const generation = new Generation(
      { number: this.#generations, fingerprint, versions, leases },
      {
        idle: (each) => this.#idle(each),
        exhausted: (each) => this.#exhausted(each),
        ended: (each) => {
          if (this.#holding?.generation === each) this.#drop('lapsed');
        },
        released: (each, given) => {
          this.#leased.delete(each);
          this.#track(this.#office.giveBack(given));
        },
      },
    );
    if (leases.length > 0) this.#leased.add(generation);
    return generation;
  }

  #hold(generation: Generation, { secrets, expiresAt }: Answer, before: Holding | undefined): void {
    const now = performance.now();
    const leased = generation.leases.length > 0;
    const ttl = this.#policy.ttl ?? (this.#prepared.length > 0 ? TTL_OF_PREPARED : 0);
    const end = expiresAt ? now + Math.max(0, expiresAt.getTime() - Date.now()) : Number.POSITIVE_INFINITY;
    const freshUntil = leased ? Number.POSITIVE_INFINITY : Math.min(now + ttl, end);
    const staleUntil = leased ? Number.POSITIVE_INFINITY : Math.min(freshUntil + this.#policy.maxStale, end);
    // What is disputed may be lent, and is not kept.
    const keeps = staleUntil > now && (leased || !this.#disputes.has(generation.fingerprint));
    if (before?.values) wipeAll(before.values);
    this.#holding = {
      generation,
      values: keeps ? copyOf(secrets) : undefined,
      fetchedAt: now,
      freshUntil,
      staleUntil,
      refreshAt: leased ? Number.POSITIVE_INFINITY : now + jittered((freshUntil - now) * 0.8),
    };
    this.#used = false;
    this.#alarms.clear();
    if (before && before.generation !== generation) before.generation.retire('replaced');
    if (keeps && !leased) {
      this.#alarms.set('wipe', staleUntil - now, () => this.#forget());
      if (freshUntil > now)
        this.#alarms.set('refresh', this.#holding.refreshAt - now, () => {
          if (this.#inUse()) this.#refresh();
        });
    }
    if (!leased) this.#checkLater(generation);
    for (const prepared of this.#prepared) prepared.follow(generation, this.#usableUntil(generation));
  }

  /** Sessions that have to end for other values would else live on until somebody logs in. */
  #checkLater(generation: Generation): void {
    const { rotationCheck } = this.#policy;
    if (rotationCheck === 0) return;
    this.#alarms.set('check', jittered(rotationCheck), () => {
      if (generation.tenants === 0) return;
      this.#refresh();
      // Until an answer is there, which sets the next alarm.
      this.#checkLater(generation);
    });
  }

  /** Wipes the values; which ones they were is still known. */
  #forget(): void {
    const held = this.#holding;
    if (!held?.values) return;
    wipeAll(held.values);
    held.values = undefined;
    this.#alarms.clear('refresh');
    this.#alarms.clear('wipe');
  }

  /** New logins get others. */
  #drop(why: Retirement): void {
    this.#forget();
    this.#alarms.clear();
    const held = this.#holding;
    this.#holding = undefined;
    held?.generation.retire(why);
  }

  #idle(generation: Generation): void {
    if (this.#holding?.generation !== generation || generation.leases.length === 0) return;
    this.#alarms.set('linger', this.#policy.linger, () => {
      if (this.#holding?.generation === generation && generation.tenants === 0) this.#drop('lapsed');
    });
  }

  #exhausted(generation: Generation): void {
    if (this.#holding?.generation !== generation) return;
    this.#holding.refreshAt = 0;
    this.#used = true;
    this.#refresh();
  }

  get #isLeased(): boolean {
    return (this.#holding?.generation.leases.length ?? 0) > 0;
  }

  #freshUntil({ generation, freshUntil }: Holding): number {
    return Math.min(freshUntil, generation.goodUntil);
  }

  #staleUntil({ generation, staleUntil }: Holding): number {
    return Math.min(staleUntil, generation.endsAt);
  }

  /** Until when what was made of the values may be used without asking again. */
  #usableUntil(generation: Generation): number {
    const held = this.#holding;
    const now = performance.now();
    if (held?.generation !== generation || !held.values) return now;
    const fresh = this.#freshUntil(held);
    return now < fresh ? fresh : Math.min(now + PATIENCE, this.#staleUntil(held));
  }

  #track(work: Promise<void>): void {
    this.#returning.add(work);
    void work.finally(() => this.#returning.delete(work));
  }
}

/** One login, which may try several credentials. */
interface Login {
  /** Fingerprints of those that it was rejected with. */
  readonly tried: Set<string>;
  tries: number;
  rejection: PosternError | undefined;
  /** Rejections with what it had been rejected with before, and others were accepted with since. */
  repeated: number;
  /** What is to be heard before the next try. */
  dispute?: Dispute<Loan> | undefined;
  /** The dispute that the next try decides for everybody. */
  leading?: Dispute<Loan> | undefined;
}

/** Whether asking again later may help. */
function isOutage(error: unknown): error is PosternError {
  return error instanceof PosternError && (error.code === 'PROVIDER_UNAVAILABLE' || error.code === 'TIMEOUT');
}

function closed(): PosternError {
  return new PosternError('SHUTDOWN', 'Postern is shutting down');
}
