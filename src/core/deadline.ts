/** A signal with a clock: aborts after a time, or when its parent does. Disposing it stops the clock. */
export class Deadline implements Disposable {
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #parent: AbortSignal | undefined;

  /** Aborts after `milliseconds` with the error that `late` makes. */
  constructor(milliseconds: number, late: () => Error, parent?: AbortSignal) {
    this.#timer = setTimeout(() => this.#controller.abort(late()), milliseconds);
    this.#parent = parent;
    if (parent?.aborted) this.abort(parent.reason as Error);
    else parent?.addEventListener('abort', this.#parentAborted);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  abort(reason: Error): void {
    this.#controller.abort(reason);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#parent?.removeEventListener('abort', this.#parentAborted);
  }

  readonly #parentAborted = () => this.abort(this.#parent?.reason as Error);
}
