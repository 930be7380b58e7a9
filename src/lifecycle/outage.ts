import type { PosternError } from '../core/errors.ts';
import { jittered } from './alarms.ts';

/** The first pause after a failure, and the longest, in milliseconds. */
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;

/** The providers of a service cannot be asked: since when, why, and when they are asked again. */
export class Outage {
  #failures = 0;
  #error: PosternError | undefined;
  #since = 0;
  #nextAttempt = 0;
  #staleServes = 0;

  /** Why the last attempt failed; undefined: it did not. */
  get error(): PosternError | undefined {
    return this.#error;
  }

  get failures(): number {
    return this.#failures;
  }

  /** By the monotonic clock. */
  get since(): number {
    return this.#since;
  }

  /** By the monotonic clock; in the past while nothing fails. */
  get nextAttempt(): number {
    return this.#nextAttempt;
  }

  failed(error: PosternError): void {
    const now = performance.now();
    if (this.#failures === 0) this.#since = now;
    this.#failures += 1;
    this.#error = error;
    this.#nextAttempt = now + jittered(Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (this.#failures - 1)));
  }

  /** An old value is used in its place. Returns whether it is the first one of this outage. */
  servedStale(): boolean {
    this.#staleServes += 1;
    return this.#staleServes === 1;
  }

  /** The providers answer. Returns what there is to tell of an outage in which old values were used. */
  over(): { readonly seconds: number; readonly staleServes: number } | undefined {
    const told =
      this.#staleServes > 0
        ? { seconds: Math.round((performance.now() - this.#since) / 1000), staleServes: this.#staleServes }
        : undefined;
    this.#failures = 0;
    this.#error = undefined;
    this.#nextAttempt = 0;
    this.#staleServes = 0;
    return told;
  }
}
