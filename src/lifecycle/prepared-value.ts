import type { Credentials } from '../core/credentials.ts';
import type { Prepare, Prepared } from '../core/prepared.ts';

/** How long a value is used before its credentials are fetched again, in milliseconds. */
const TTL = 5000;

type Lend = <T>(
  use: (credentials: Credentials, signal: AbortSignal) => Promise<T>,
  signal: AbortSignal,
) => Promise<T>;

/** What a connector made of the current credentials, kept until they have to be fetched again. */
export class PreparedValue<Value extends Disposable> implements Prepared<Value>, Disposable {
  readonly #make: Prepare<Value>;
  readonly #lend: Lend;
  #value: Value | undefined;
  #freshUntil = 0;
  #making: Promise<Value> | undefined;

  constructor(make: Prepare<Value>, lend: Lend) {
    this.#make = make;
    this.#lend = lend;
  }

  get current(): Value | undefined {
    return this.#value !== undefined && performance.now() < this.#freshUntil ? this.#value : undefined;
  }

  async get(signal: AbortSignal): Promise<Value> {
    const { current } = this;
    if (current) return current;
    this.#making ??= this.#renew(signal).finally(() => {
      this.#making = undefined;
    });
    return await this.#making;
  }

  reject(value: Value): void {
    if (this.#value === value) this[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.#value?.[Symbol.dispose]();
    this.#value = undefined;
  }

  async #renew(signal: AbortSignal): Promise<Value> {
    const previous = this.#value;
    const { value, expiresAt } = await this.#lend(
      async (credentials, until) => await this.#make(credentials, until, previous),
      signal,
    );
    previous?.[Symbol.dispose]();
    this.#value = value;
    const life = expiresAt ? Math.min(TTL, expiresAt.getTime() - Date.now()) : TTL;
    this.#freshUntil = performance.now() + life;
    return value;
  }
}
