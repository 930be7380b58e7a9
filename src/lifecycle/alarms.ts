/** Beyond this Node's timers overflow and fire at once: a lease of 32 days would be renewed without a pause. */
const LONGEST = 2 ** 31 - 1;

/** The timers of one owner. None keeps the process alive, none fires early however far away, none is left after `clear`. */
export class Alarms<Name extends string> {
  readonly #timers = new Map<Name, NodeJS.Timeout>();

  /** Calls back in `milliseconds`, by the monotonic clock. An alarm of the same name is replaced. */
  set(name: Name, milliseconds: number, ring: () => void): void {
    this.clear(name);
    this.#arm(name, performance.now() + milliseconds, ring);
  }

  has(name: Name): boolean {
    return this.#timers.has(name);
  }

  /** All of them where no name is given. */
  clear(name?: Name): void {
    for (const each of name === undefined ? [...this.#timers.keys()] : [name]) {
      clearTimeout(this.#timers.get(each));
      this.#timers.delete(each);
    }
  }

  #arm(name: Name, at: number, ring: () => void): void {
    const left = at - performance.now();
    const timer = setTimeout(
      () => {
        this.#timers.delete(name);
        // Timers of Node may fire a moment early.
        if (performance.now() < at - 1) this.#arm(name, at, ring);
        else ring();
      },
      Math.min(Math.max(left, 0), LONGEST),
    );
    this.#timers.set(name, timer.unref());
  }
}

/** `value`, up to a tenth more or less: many sidecars that started together do not come back together. */
export function jittered(value: number): number {
  return value * (0.9 + Math.random() / 5);
}

/** Waits, or no longer once `signal` aborts. Never rejects, and keeps no process alive. */
export async function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds).unref();
  const wake = () => resolve();
  signal.addEventListener('abort', wake);
  await promise;
  clearTimeout(timer);
  signal.removeEventListener('abort', wake);
}
