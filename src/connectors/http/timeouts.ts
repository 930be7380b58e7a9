/** Milliseconds between two ticks: how exact these timeouts are. */
const TICK = 200;

/** Something that has timeouts. */
export interface Timed {
  /** What was due at `now` is over. */
  onTick(now: number): void;
}

/**
 * One coarse clock for all timeouts of the plane. Setting a timeout is writing a number (`now` plus some milliseconds),
 * so that a request costs no timer. It runs while somebody is in it.
 */
export class Clock {
  /** Milliseconds, of no particular beginning; as old as the last tick. */
  now = performance.now();
  readonly #timed = new Set<Timed>();
  #timer: NodeJS.Timeout | undefined;

  add(timed: Timed): void {
    this.#timed.add(timed);
    if (this.#timer) return;
    this.now = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK);
  }

  /** How many have timeouts. */
  get size(): number {
    return this.#timed.size;
  }

  delete(timed: Timed): void {
    if (!this.#timed.delete(timed) || this.#timed.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #tick(): void {
    this.now = performance.now();
    // Who set a timeout since the last tick did so with a `now` that was too old: nothing may be over before its time.
    for (const timed of this.#timed) timed.onTick(this.now - TICK);
  }
}

export const clock = new Clock();
