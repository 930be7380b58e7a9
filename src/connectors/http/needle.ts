/** Above this the call into C++ is worth its price. */
const SHORT = 1024;

/**
 * A secret value that is looked for in the head of every response. Such heads are short, and there a call into C++ costs
 * more than looking at every n-th byte for a value of n (Horspool's search: `#skips` has, for each byte, how far the
 * value can be moved on when that byte is under its end).
 */
export class Needle implements Disposable {
  readonly #bytes: Buffer;
  readonly #skips: Uint16Array;
  #wiped = false;

  /** Copies the value, which must be shorter than 64 KiB to be found in a head. */
  constructor(value: Buffer) {
    this.#bytes = Buffer.allocUnsafe(value.length);
    value.copy(this.#bytes);
    const last = value.length - 1;
    this.#skips = new Uint16Array(256).fill(Math.min(value.length, 0xffff));
    for (let i = 0; i < last; i++) this.#skips[value[i] as number] = Math.min(last - i, 0xffff);
  }

  get length(): number {
    return this.#bytes.length;
  }

  /** Whether it is in `bytes[from..to)`. Never, when it has been wiped. */
  isIn(bytes: Buffer, from: number, to: number): boolean {
    if (this.#wiped) return false;
    const needle = this.#bytes;
    if (to - from > SHORT) return bytes.subarray(from, to).includes(needle);
    const last = needle.length - 1;
    const skips = this.#skips;
    const end = needle[last] as number;
    for (let at = from + last; at < to; ) {
      const byte = bytes[at] as number;
      if (byte === end) {
        let i = 1;
        while (i <= last && bytes[at - i] === needle[last - i]) i++;
        if (i > last) return true;
      }
      at += skips[byte] as number;
    }
    return false;
  }

  /** The skips tell which bytes the value has, and where. */
  [Symbol.dispose](): void {
    this.#wiped = true;
    this.#bytes.fill(0);
    this.#skips.fill(0);
  }
}
