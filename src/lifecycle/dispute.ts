import type { PosternError } from '../core/errors.ts';
import { Alarms } from './alarms.ts';

/** When one login tries the disputed values again for all that wait, as shares of the grace. */
const RETRIES = [1 / 30, 1 / 4, 0.85];
/** Pauses between two looks at the store while logins wait, in milliseconds; the last one again and again. */
export const POLLS = [50, 100, 200, 400, 500] as const;
/** How often values that are known to be bad are tried at all, in milliseconds. */
const PROBE_INTERVAL = 1000;

/** What a login hears that waits for the end of a dispute. */
export type Verdict<Loan> =
  /** The store has other values: these. */
  | { readonly kind: 'changed'; readonly loan: Loan }
  /** The upstream has taken them since. */
  | { readonly kind: 'accepted' }
  /** Try them again, for everybody, and say by `led` how it went. */
  | { readonly kind: 'lead' }
  /** They are wrong. */
  | { readonly kind: 'over'; readonly error: PosternError };

interface Waiter<Loan> {
  readonly tried: boolean;
  readonly resolve: (verdict: Verdict<Loan>) => void;
}

/**
 * The upstream rejects values that the store has. Mostly a rotation is under way and has reached one of the two: then the
 * store has other values in a moment, or the upstream takes these. All logins that have them wait here for either; one
 * at a time tries again, because servers count rejected logins and lock the account. When nothing has come of it within
 * the grace the values are bad: from then on they are tried once a second, and everybody else is refused at once.
 */
export class Dispute<Loan> {
  readonly fingerprint: string;
  /** How many questions there had been: what a later one brings was read later. */
  readonly flights: number;
  readonly openedAt = performance.now();
  /** Milliseconds; 0: the store is asked once, and that is all. */
  readonly grace: number;
  readonly #alarms = new Alarms<'retry' | 'end'>();
  readonly #waiters = new Set<Waiter<Loan>>();
  #error: PosternError;
  #retries = [...RETRIES];
  #retryDue = false;
  #leading = false;
  #graceOver = false;
  #bad = false;
  #nextProbe = 0;
  #closed = false;
  #deserted = new AbortController();
  readonly #over = new AbortController();
  /** The store has been asked since the rejection. */
  polled = false;
  polling = false;

  constructor(fingerprint: string, error: PosternError, flights: number, grace: number) {
    this.fingerprint = fingerprint;
    this.flights = flights;
    this.#error = error;
    this.grace = grace;
    if (grace === 0) return;
    this.#alarms.set('end', grace, () => this.#endGrace());
    this.#armRetry();
  }

  /** The last rejection. */
  get error(): PosternError {
    return this.#error;
  }

  /** Aborts when there is nothing more to ask the store for. */
  get over(): AbortSignal {
    return this.#over.signal;
  }

  /** Whether it still makes sense to ask the store. */
  get undecided(): boolean {
    return !this.#closed && !this.#bad;
  }

  get bad(): boolean {
    return this.#bad;
  }

  get waiting(): number {
    return this.#waiters.size;
  }

  /** Aborts when nobody waits any more, with the reason of the last one to leave. */
  get deserted(): AbortSignal {
    return this.#deserted.signal;
  }

  /** Waits for a verdict; throws the signal's reason when it aborts first. `tried`: the caller was rejected itself. */
  async hear(signal: AbortSignal, tried: boolean): Promise<Verdict<Loan>> {
    signal.throwIfAborted();
    if (this.#bad && !this.#leading && performance.now() < this.#nextProbe)
      return { kind: 'over', error: this.#error };
    if (!this.#leading && (this.#bad || this.#retryDue)) {
      this.#lead();
      return { kind: 'lead' };
    }
    if (this.#deserted.signal.aborted) this.#deserted = new AbortController();
    const { promise, resolve, reject } = Promise.withResolvers<Verdict<Loan>>();
    const waiter = { tried, resolve };
    this.#waiters.add(waiter);
    const abort = () => {
      if (!this.#waiters.delete(waiter)) return;
      if (this.#waiters.size === 0) this.#deserted.abort(signal.reason);
      reject(signal.reason as Error);
    };
    signal.addEventListener('abort', abort);
    try {
      return await promise;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  /** How the login went that was told to lead. */
  led(outcome: 'accepted' | 'undecided' | PosternError): void {
    if (this.#closed) return;
    this.#leading = false;
    if (outcome === 'accepted') this.accepted();
    else if (this.#bad) {
      if (outcome === 'undecided') this.#appoint();
      else {
        this.#error = outcome;
        this.#nextProbe = performance.now() + PROBE_INTERVAL;
        this.#tellAll(() => ({ kind: 'over', error: outcome }));
      }
    } else {
      if (outcome !== 'undecided') this.#error = outcome;
      if (this.#graceOver) this.#endGrace();
      else this.#armRetry();
    }
  }

  /** The upstream takes the values. */
  accepted(): void {
    this.#close(() => ({ kind: 'accepted' }));
  }

  /** The store has other values. */
  changed(lend: () => Loan): void {
    this.#close(() => ({ kind: 'changed', loan: lend() }));
  }

  /** The store cannot be asked. */
  failed(error: PosternError): void {
    this.#close(() => ({ kind: 'over', error }));
  }

  /** Without a grace: whoever was rejected is refused, and the others try for themselves. */
  giveUp(): void {
    this.#close(({ tried }) => (tried ? { kind: 'over', error: this.#error } : { kind: 'accepted' }));
  }

  #armRetry(): void {
    const [share] = this.#retries;
    if (share === undefined || this.#leading || this.#retryDue) return;
    const wait = this.openedAt + share * this.grace - performance.now();
    this.#alarms.set('retry', Math.max(0, wait), () => {
      this.#retryDue = true;
      this.#appoint();
    });
  }

  /** Whoever was not rejected itself goes first: the rejection may have been about something else that the other asked for. */
  #appoint(): void {
    const waiter = this.#waiters.values().find(({ tried }) => !tried) ?? this.#waiters.values().next().value;
    if (!waiter || this.#leading) return;
    this.#lead();
    this.#waiters.delete(waiter);
    waiter.resolve({ kind: 'lead' });
  }

  #lead(): void {
    this.#leading = true;
    if (this.#retryDue) this.#retries.shift();
    this.#retryDue = false;
  }

  #endGrace(): void {
    this.#graceOver = true;
    if (this.#leading) return;
    this.#bad = true;
    this.#over.abort();
    this.#retryDue = false;
    this.#nextProbe = performance.now() + PROBE_INTERVAL;
    this.#alarms.clear();
    this.#tellAll(() => ({ kind: 'over', error: this.#error }));
  }

  #close(verdict: (waiter: Waiter<Loan>) => Verdict<Loan>): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#over.abort();
    this.#alarms.clear();
    this.#tellAll(verdict);
  }

  #tellAll(verdict: (waiter: Waiter<Loan>) => Verdict<Loan>): void {
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const waiter of waiters) waiter.resolve(verdict(waiter));
  }
}
