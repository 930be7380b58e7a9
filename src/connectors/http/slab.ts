const SIZE = 256 * 1024;
/** Regions at the beginning that are shorter than this have a view that is used again: nearly all heads do. */
const VIEWED = 4096;
/** Below this a loop is faster than a call into C++. */
const SMALL = 40;

/**
 * Where heads are put together before they are written. A region is used again as soon as the kernel has its bytes;
 * when it took only a part, the region is left behind for the socket that still needs it.
 */
export class Slab {
  bytes = Buffer.allocUnsafeSlow(SIZE);
  /** Where the region begins that is being written. */
  from = 0;
  /** Where its next byte goes. */
  at = 0;
  #views: (Buffer | undefined)[] = [];
  /** Regions with a credential that somebody still writes. */
  readonly #left: Left[] = [];

  /** Begins a region of at most `size` bytes. */
  begin(size: number): void {
    if (this.#left.length > 0) this.#sweep();
    if (this.from + size > this.bytes.length) {
      this.bytes.fill(0, this.from);
      this.bytes = Buffer.allocUnsafeSlow(Math.max(SIZE, size));
      this.from = 0;
      this.#views = [];
    }
    this.at = this.from;
  }

  copy(bytes: Buffer, from: number, to: number): void {
    const length = to - from;
    if (length < SMALL) {
      const target = this.bytes;
      let at = this.at;
      for (let i = from; i < to; i++) target[at++] = bytes[i] as number;
      this.at = at;
    } else {
      bytes.copy(this.bytes, this.at, from, to);
      this.at += length;
    }
  }

  byte(value: number): void {
    this.bytes[this.at++] = value;
  }

  /** What was put into the region. */
  view(): Buffer {
    const { from, at } = this;
    if (from > 0 || at >= VIEWED) return this.bytes.subarray(from, at);
    return (this.#views[at] ??= this.bytes.subarray(0, at));
  }

  /** Leaves the region to whoever still writes it. */
  keep(): void {
    this.from = this.at;
  }

  /** The same with a region that has a credential in it: it is overwritten some time after `isWritten` says so. */
  keepSecret(isWritten: () => boolean): void {
    this.#left.push({ region: this.bytes.subarray(this.from, this.at), isWritten });
    this.keep();
  }

  /** Overwrites what is free: old regions held the credentials of earlier requests. */
  wipe(): void {
    this.bytes.fill(0, this.from);
    this.#sweep();
  }

  #sweep(): void {
    let still = 0;
    for (const each of this.#left)
      if (each.isWritten()) each.region.fill(0);
      else this.#left[still++] = each;
    this.#left.length = still;
  }
}

interface Left {
  readonly region: Buffer;
  readonly isWritten: () => boolean;
}

/** One for the process: a region lives from `begin` to the write, with nothing between that could begin another. */
export const slab = new Slab();
