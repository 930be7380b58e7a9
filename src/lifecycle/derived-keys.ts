/** A server that shows a new salt each time must not fill the memory. */
const MOST_KEYS = 16;

/**
 * Bytes that cost much to derive from a service's credentials (SCRAM's PBKDF2), kept while the credentials stay
 * the same and wiped as soon as they change: a derived key logs in just as the password does.
 */
export class DerivedKeys {
  #fingerprint: Buffer = Buffer.alloc(0);
  readonly #keys = new Map<string, Buffer>();
  /** Computations under way; each settles when its key is kept, or was not to be had. */
  readonly #computing = new Map<string, Promise<void>>();

  /** The bytes kept under `label`, computed when there are none. A copy, which the caller wipes. */
  async get(fingerprint: Buffer, label: string, compute: () => Promise<Buffer>): Promise<Buffer> {
    if (!fingerprint.equals(this.#fingerprint)) {
      this.wipe();
      this.#fingerprint = fingerprint;
    }
    const kept = this.#keys.get(label);
    if (kept) {
      // Most recently used last.
      this.#keys.delete(label);
      this.#keys.set(label, kept);
      return Buffer.from(kept);
    }
    // Five hundred logins at once are one computation: the others wait for it and take what it has left here.
    const underWay = this.#computing.get(label);
    if (underWay) {
      await underWay;
      return await this.get(fingerprint, label, compute);
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#computing.set(label, promise);
    try {
      const computed = await compute();
      // The credentials may have changed meanwhile.
      if (fingerprint.equals(this.#fingerprint) && !this.#keys.has(label))
        this.#keep(label, Buffer.from(computed));
      return computed;
    } finally {
      if (this.#computing.get(label) === promise) this.#computing.delete(label);
      resolve();
    }
  }

  wipe(): void {
    for (const key of this.#keys.values()) key.fill(0);
    this.#keys.clear();
    this.#computing.clear();
    this.#fingerprint = Buffer.alloc(0);
  }

  #keep(label: string, key: Buffer): void {
    for (const [oldest, bytes] of this.#keys) {
      if (this.#keys.size < MOST_KEYS) break;
      bytes.fill(0);
      this.#keys.delete(oldest);
    }
    this.#keys.set(label, key);
  }
}
