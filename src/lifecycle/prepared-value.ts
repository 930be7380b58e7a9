import type { Credentials } from '../core/credentials.ts';
import { Deadline } from '../core/deadline.ts';
import { PosternError } from '../core/errors.ts';
import type { Prepare, Prepared } from '../core/prepared.ts';
import type { Tenure } from '../core/tenure.ts';
import { Alarms, jittered } from './alarms.ts';
import type { Generation } from './generation.ts';

/** Credentials in buffers of their own, and a tenure of their generation. */
export interface Loan {
  readonly credentials: Credentials;
  readonly generation: Generation;
  readonly tenure: Tenure;
  /** By the monotonic clock: until when what is made of them may be used without asking again. */
  readonly usableUntil: number;
  /** Wipes them, and releases the tenure. */
  readonly giveBack: () => void;
}

/** What a source tells its prepared values, and asks of them. */
export interface Follower extends Disposable {
  /** The source has these credentials now, usable until then. */
  follow(generation: Generation, usableUntil: number): void;
  /** Whether it was asked for since this was asked last. */
  takeUsed(): boolean;
}

/** What a prepared value needs of the source of its credentials. */
export interface Lender {
  borrow(signal: AbortSignal): Promise<Loan>;
  /** Asks the providers again, where that may bring others than this generation. */
  borrowAnew(signal: AbortSignal, generation: Generation): Promise<Loan>;
  /** How long making a value may take, in milliseconds. */
  readonly fetchTimeout: number;
  /** How long a value whose credentials are leased is kept when nobody asks for it, in milliseconds. */
  readonly linger: number;
}

/** After a failure the next attempt waits as long, in milliseconds: requests come by the thousand. */
const FAILURE_HOLDS = 500;
/** A value that the upstream rejects is looked into at most this often, in milliseconds. */
const REJECTION_HOLDS = 1000;
/** How long a value is kept at least, for those who ask each time, in milliseconds. */
const SHORTEST_LIFE = 1000;

/** What a connector made of the current credentials, kept while they are current. */
export class PreparedValue<Value extends Disposable> implements Prepared<Value>, Follower {
  readonly #make: Prepare<Value>;
  readonly #lender: Lender;
  readonly #alarms = new Alarms<'lapse' | 'remake' | 'unused'>();
  readonly #closing = new AbortController();
  #value: Value | undefined;
  #tenure: Tenure | undefined;
  #generation: Generation | undefined;
  /** All by the monotonic clock. */
  #usableUntil = 0;
  /** When the value itself ends though the credentials stay the same; infinite: never. */
  #expires = Number.POSITIVE_INFINITY;
  #used = false;
  #making: Promise<Value> | undefined;
  #failure: { readonly error: unknown; readonly until: number } | undefined;
  #rejectedAt = Number.NEGATIVE_INFINITY;

  constructor(make: Prepare<Value>, lender: Lender) {
    this.#make = make;
    this.#lender = lender;
  }

  get current(): Value | undefined {
    if (performance.now() >= this.#usableUntil) return undefined;
    this.#used = true;
    return this.#value;
  }

  async get(signal: AbortSignal): Promise<Value> {
    const { current } = this;
    if (current) return current;
    signal.throwIfAborted();
    const { promise: aborted, reject } = Promise.withResolvers<never>();
    const abort = () => reject(signal.reason as Error);
    signal.addEventListener('abort', abort);
    try {
      return await Promise.race([this.#renew(), aborted]);
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  reject(value: Value): void {
    const now = performance.now();
    const generation = this.#generation;
    if (this.#value !== value || !generation || now < this.#rejectedAt + REJECTION_HOLDS) return;
    this.#rejectedAt = now;
    const usableUntil = this.#usableUntil;
    this.#usableUntil = 0;
    this.#start(async (signal) => await this.#reconsider(value, generation, usableUntil, signal)).catch(
      () => {},
    );
  }

  takeUsed(): boolean {
    const used = this.#used;
    this.#used = false;
    return used;
  }

  follow(generation: Generation, usableUntil: number): void {
    if (!this.#value) return;
    if (this.#generation === generation) this.#use(usableUntil);
    // The old value serves until the new one is made.
    else this.#renew().catch(() => {});
  }

  [Symbol.dispose](): void {
    this.#closing.abort(new PosternError('SHUTDOWN', 'Postern is shutting down'));
    this.#discard();
  }

  /** One at a time, shared by all who ask; it goes on when they leave. */
  #renew(): Promise<Value> {
    return this.#start((signal) => this.#remake(signal, false));
  }

  #start(work: (signal: AbortSignal) => Promise<Value>): Promise<Value> {
    if (this.#making) return this.#making;
    if (this.#failure && performance.now() < this.#failure.until)
      return Promise.reject(this.#failure.error as Error);
    const { fetchTimeout } = this.#lender;
    const late = () =>
      new PosternError('TIMEOUT', `preparing the credential took longer than ${fetchTimeout / 1000} s`);
    const deadline = new Deadline(fetchTimeout, late, this.#closing.signal);
    this.#making = work(deadline.signal)
      .then(
        (value) => {
          this.#failure = undefined;
          return value;
        },
        (error: unknown) => {
          this.#failure = { error, until: performance.now() + jittered(FAILURE_HOLDS) };
          throw error;
        },
      )
      .finally(() => {
        deadline[Symbol.dispose]();
        this.#making = undefined;
      });
    return this.#making;
  }

  async #remake(signal: AbortSignal, anew: boolean): Promise<Value> {
    return await this.#makeOf(await this.#lender.borrow(signal), signal, anew);
  }

  /** The upstream did not take the value: perhaps the providers have other credentials, or an access token was revoked early. */
  async #reconsider(
    value: Value,
    generation: Generation,
    usableUntil: number,
    signal: AbortSignal,
  ): Promise<Value> {
    let loan: Loan;
    try {
      loan = await this.#lender.borrowAnew(signal, generation);
    } catch (error) {
      // Nothing better is to be had while the providers cannot be asked, and it is as good as it was.
      if (!(performance.now() < usableUntil) || this.#value !== value) throw error;
      this.#use(usableUntil);
      return value;
    }
    return await this.#makeOf(loan, signal, this.#expires !== Number.POSITIVE_INFINITY);
  }

  /** `anew`: also of the same credentials. */
  async #makeOf(loan: Loan, signal: AbortSignal, anew: boolean): Promise<Value> {
    const { credentials, generation, tenure, usableUntil } = loan;
    const previous = this.#value;
    try {
      if (!anew && previous && generation === this.#generation && performance.now() < this.#expires) {
        this.#use(usableUntil);
        loan.giveBack();
        return previous;
      }
      const { value, expiresAt } = await this.#make(credentials, signal, previous);
      if (this.#closing.signal.aborted) {
        value[Symbol.dispose]();
        throw this.#closing.signal.reason;
      }
      credentials[Symbol.dispose]();
      this.#tenure?.release();
      this.#value = value;
      this.#tenure = tenure;
      this.#generation = generation;
      previous?.[Symbol.dispose]();
      this.#expires = Number.POSITIVE_INFINITY;
      this.#alarms.clear('remake');
      if (expiresAt) this.#expireAt(Math.max(0, expiresAt.getTime() - Date.now()));
      this.#use(usableUntil);
      this.#watchUse();
      return value;
    } catch (error) {
      loan.giveBack();
      throw error;
    }
  }

  #expireAt(milliseconds: number): void {
    this.#expires = performance.now() + milliseconds;
    this.#alarms.set('remake', jittered(milliseconds * 0.8), () => {
      if (this.#used) this.#start((signal) => this.#remake(signal, true)).catch(() => {});
    });
  }

  #use(until: number): void {
    this.#usableUntil = Math.min(until, this.#expires);
    this.#armLapse();
  }

  /** What nobody asked for in time is gone. A token with an end of its own stays: its successor may be made of it. */
  #armLapse(): void {
    if (this.#expires !== Number.POSITIVE_INFINITY) this.#alarms.clear('lapse');
    else if (!this.#alarms.has('lapse'))
      this.#alarms.set('lapse', Math.max(SHORTEST_LIFE, this.#usableUntil - performance.now()), () => {
        if (performance.now() < this.#usableUntil || this.#making) this.#armLapse();
        else this.#discard();
      });
  }

  /** A lease is not kept alive for a value that nobody asks for. */
  #watchUse(): void {
    if (!this.#generation || this.#generation.leases.length === 0) return;
    this.#used = true;
    const look = () => {
      if (this.takeUsed() || this.#making) this.#alarms.set('unused', this.#lender.linger, look);
      else this.#discard();
    };
    this.#alarms.set('unused', this.#lender.linger, look);
  }

  #discard(): void {
    this.#alarms.clear();
    this.#usableUntil = 0;
    this.#value?.[Symbol.dispose]();
    this.#value = undefined;
    this.#generation = undefined;
    this.#tenure?.release();
    this.#tenure = undefined;
  }
}
