import { PosternError } from '../core/errors.ts';
import { refuseAborted, untilAborted } from './deadline.ts';

/** How long a value that could not be renewed in time is used on before the next attempt, in milliseconds. */
const pauseAfterFailure = 10_000;
/** What is about to expire on its way to the server is of no use, in milliseconds. */
const lastMoments = 5000;

/** A value that was obtained, and until when it may be used. */
export interface Obtained<Value> {
  readonly value: Value;
  /** By the wall clock, which is what stores name the end in; Infinity where they say none. */
  readonly expiresAt: number;
  /** How long before its end to replace this one, where it is not as for all. */
  readonly early?: number;
}

interface Options {
  /** How long before its end a value is replaced, in milliseconds; of a short life, half of it. */
  readonly early: number;
  /** What obtaining it is called in a message. */
  readonly doing: string;
}

/**
 * A token, or other credentials, that a store is asked with: obtained when first needed, by one flight for all who
 * need it, and replaced shortly before its end. Wiped when it is replaced and nobody uses it any more. There are no
 * timers: the end is looked at when the value is used.
 */
export class Expiring<Value extends Disposable> {
  readonly #obtain: (signal: AbortSignal) => Promise<Obtained<Value>>;
  readonly #options: Options;
  #current: Held<Value> | undefined;
  #flight: Flight<Value> | undefined;
  #closed = false;

  constructor(obtain: (signal: AbortSignal) => Promise<Obtained<Value>>, options: Options) {
    this.#obtain = obtain;
    this.#options = options;
  }

  /** Lends the value to `use`; it must not be kept beyond that. */
  async lend<T>(use: (value: Value, expiresAt: number) => Promise<T>, signal: AbortSignal): Promise<T> {
    const held = await this.#borrow(signal);
    try {
      return await use(held.value, held.expiresAt);
    } finally {
      held.giveBack();
    }
  }

  /** The store refused it: the next who asks gets another one. */
  discard(value: Value): void {
    const current = this.#current;
    if (current?.value !== value) return;
    this.#current = undefined;
    current.retire();
  }

  close(): void {
    this.#closed = true;
    this.#flight?.controller.abort(this.#closedError());
    this.#current?.retire();
    this.#current = undefined;
  }

  async #borrow(signal: AbortSignal): Promise<Held<Value>> {
    for (;;) {
      refuseAborted(signal);
      const current = this.#current;
      if (current && Date.now() < current.replaceAt && current.borrow()) return current;
      try {
        const fresh = await this.#board(signal);
        if (fresh.borrow()) return fresh;
      } catch (thrown) {
        // A store of tokens that is down does no harm while the one in hand is good.
        const usable = current && current === this.#current && Date.now() < current.expiresAt - lastMoments;
        if (!usable || signal.aborted || !current.borrow()) throw thrown;
        current.replaceAt = Math.min(Date.now() + pauseAfterFailure, current.expiresAt - lastMoments);
        return current;
      }
    }
  }

  /** The flight goes on while one of those who boarded it still waits. */
  async #board(signal: AbortSignal): Promise<Held<Value>> {
    const flight = this.#flight ?? this.#takeOff();
    flight.waiting++;
    try {
      return await untilAborted(flight.landing, signal, this.#options.doing);
    } finally {
      if (--flight.waiting === 0 && this.#flight === flight) {
        this.#flight = undefined;
        flight.controller.abort();
      }
    }
  }

  #takeOff(): Flight<Value> {
    if (this.#closed) throw this.#closedError();
    const controller = new AbortController();
    const landing = this.#obtain(controller.signal).then(({ value, expiresAt, early }) => {
      const held = new Held(value, expiresAt, early ?? this.#options.early);
      if (controller.signal.aborted) {
        held.retire();
        refuseAborted(controller.signal);
      }
      this.#current?.retire();
      this.#current = held;
      return held;
    });
    const flight: Flight<Value> = { landing, controller, waiting: 0 };
    this.#flight = flight;
    const land = () => {
      if (this.#flight === flight) this.#flight = undefined;
    };
    landing.then(land, land);
    return flight;
  }

  #closedError(): PosternError {
    return new PosternError('SHUTDOWN', `${this.#options.doing}: the provider was closed`);
  }
}

interface Flight<Value extends Disposable> {
  readonly landing: Promise<Held<Value>>;
  readonly controller: AbortController;
  waiting: number;
}

/** A value and who uses it. */
class Held<Value extends Disposable> {
  readonly value: Value;
  readonly expiresAt: number;
  replaceAt: number;
  #users = 0;
  #retired = false;

  constructor(value: Value, expiresAt: number, early: number) {
    this.value = value;
    this.expiresAt = expiresAt;
    // A value that is short of life already (some servers hand out one of theirs) must not be asked for in a loop.
    this.replaceAt = expiresAt - Math.min(early, Math.max(0, expiresAt - Date.now()) / 2);
    if (expiresAt === Infinity) this.replaceAt = Infinity;
  }

  borrow(): boolean {
    if (!this.#retired) this.#users++;
    return !this.#retired;
  }

  giveBack(): void {
    this.#users--;
    this.#wipeWhenUnused();
  }

  retire(): void {
    this.#retired = true;
    this.#wipeWhenUnused();
  }

  #wipeWhenUnused(): void {
    if (this.#retired && this.#users === 0) this.value[Symbol.dispose]();
  }
}
