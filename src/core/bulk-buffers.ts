/** A read buffer of one socket while bulk flows through it: read into again only when no write refers to it. */
export class Lease {
  readonly bytes: Buffer;
  writes = 0;
  /** Its socket reads into another by now. */
  left = false;
  readonly #buffers: BulkBuffers;

  constructor(buffers: BulkBuffers, size: number) {
    this.#buffers = buffers;
    this.bytes = Buffer.allocUnsafeSlow(size);
  }

  /** A write that referred to it is done. */
  readonly written = (): void => {
    this.writes -= 1;
    if (this.writes > 0 || !this.left) return;
    this.left = false;
    this.#buffers.takeBack(this);
  };
}

/** Buffers for bulk, which are used again; at most so many, because thousands of peers that do not read would have one each. */
export class BulkBuffers {
  readonly #size: number;
  readonly #mostSpare: number;
  readonly #most: number;
  readonly #spare: Lease[] = [];
  /** How many there are, with the spare ones. */
  #leases = 0;

  constructor(size: number, mostSpare: number, most: number) {
    this.#size = size;
    this.#mostSpare = mostSpare;
    this.#most = most;
  }

  /** Those that somebody reads into or writes refer to. */
  get inUse(): number {
    return this.#leases - this.#spare.length;
  }

  /** Whether `lease` would give none. */
  get exhausted(): boolean {
    return this.#leases >= this.#most && this.#spare.length === 0;
  }

  lease(): Lease | undefined {
    const used = this.#spare.pop();
    if (used !== undefined) return used;
    if (this.#leases >= this.#most) return undefined;
    this.#leases += 1;
    return new Lease(this, this.#size);
  }

  takeBack(lease: Lease): void {
    if (this.#spare.length < this.#mostSpare) this.#spare.push(lease);
    else this.#leases -= 1;
  }
}
