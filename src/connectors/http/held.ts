const SMALLEST = 1024;
/** No head is longer: what is wrong with such a one is not waited for. */
const LONGEST_HEAD = 64 * 1024;

/** Bytes that are kept until more have come. Grows by doubling, so that a peer that sends one at a time costs no more. */
export class Held {
  bytes: Buffer;
  length: number;
  #parsed: number;

  constructor(bytes: Buffer, from: number, to: number) {
    this.length = to - from;
    this.bytes = Buffer.allocUnsafeSlow(Math.max(SMALLEST, this.length));
    bytes.copy(this.bytes, 0, from, to);
    this.#parsed = this.length;
  }

  add(bytes: Buffer, from: number, to: number): void {
    const length = this.length + to - from;
    if (length > this.bytes.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(length, 2 * this.bytes.length));
      this.bytes.copy(larger, 0, 0, this.length);
      this.bytes = larger;
    }
    bytes.copy(this.bytes, this.length, from, to);
    this.length = length;
  }

  /**
   * Whether it is worth to parse a head that was incomplete before the last `added` bytes came: its end is there, or it
   * has doubled (then what is wrong with it is found). Else a peer could have 64 KiB parsed again for every byte.
   */
  ripe(added: number): boolean {
    const { length } = this;
    if (length < 2 * this.#parsed && length <= LONGEST_HEAD) {
      const end = this.bytes.indexOf('\r\n\r\n', Math.max(0, length - added - 3), 'latin1');
      if (end < 0 || end + 4 > length) return false;
    }
    this.#parsed = length;
    return true;
  }
}
