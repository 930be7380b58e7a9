/**
 * One question that is under way, shared by all who ask it meanwhile: five hundred connections at the same instant
 * are one request to the secret store. What it brings belongs to nobody alone and is disposed of when the last of
 * those who came along has let go of it.
 */
export class Flight<Answer extends Disposable> {
  /** Order in which flights took off: what a later one brings was read later. */
  readonly number: number;
  readonly #answer: Promise<Answer>;
  readonly #settled: Promise<void>;
  readonly #controller = new AbortController();
  readonly #onOver: () => void;
  #aboard = 0;
  #landed: Answer | undefined;
  #over = false;

  /**
   * Asks at once. The signal given to `ask` aborts when nobody waits any more. `onOver` says that nobody may board
   * from now on: the answer is there, or nobody waits for it.
   */
  constructor(number: number, ask: (signal: AbortSignal) => Promise<Answer>, onOver: () => void) {
    this.number = number;
    this.#onOver = onOver;
    this.#answer = ask(this.#controller.signal).then((answer) => {
      this.#landed = answer;
      // Everybody may have left while the answer was on its way.
      if (this.#aboard === 0) answer[Symbol.dispose]();
      return answer;
    });
    this.#settled = this.#answer.then(
      () => this.#end(),
      () => this.#end(),
    );
  }

  /** Resolves when the question is answered, or has failed; also where nobody waits. */
  get settled(): Promise<void> {
    return this.#settled;
  }

  /** Waits for the answer; throws the signal's reason when it aborts first. Whoever gets the answer must let go of it. */
  async board(signal: AbortSignal): Promise<{ readonly answer: Answer } & Disposable> {
    this.#aboard += 1;
    const { promise: aborted, reject } = Promise.withResolvers<never>();
    const abort = () => reject(signal.reason as Error);
    signal.addEventListener('abort', abort);
    try {
      signal.throwIfAborted();
      const answer = await Promise.race([this.#answer, aborted]);
      return { answer, [Symbol.dispose]: () => this.#leave(signal) };
    } catch (error) {
      this.#leave(signal);
      throw error;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  #leave(signal: AbortSignal): void {
    this.#aboard -= 1;
    if (this.#aboard > 0) return;
    if (this.#landed) this.#landed[Symbol.dispose]();
    else if (!this.#over) {
      this.#end();
      this.#controller.abort(signal.reason);
    }
  }

  #end(): void {
    if (this.#over) return;
    this.#over = true;
    this.#onOver();
  }
}
