import type { Watch } from '../../core/relay.ts';

const HEADER = 4;
/** A payload of this length goes on in the next packet ("Packets", MySQL protocol). */
const FULL = 0xffffff;
const COM_CHANGE_USER = 0x11;

/**
 * Follows what a client sends after its login just far enough to see where a COM_CHANGE_USER begins: the four bytes in
 * front of each packet and one behind them. Nothing of the server is read.
 *
 * A command is a packet with sequence id 0 that continues no other. What else a client sends is the content of a file
 * for LOAD DATA LOCAL: its first packet has another id, an empty packet ends it, and what is in between is no command
 * even when the ids have come round to 0. A client that lies about the ids is refused by the server (ERR 1156).
 */
export class CommandFollower implements Pick<Watch, 'pass' | 'takeHeld'> {
  /** Bytes of the current packet that are still to come. */
  #left = 0;
  /** The beginning of a packet, too little to say what it is. */
  #kept: Buffer | undefined;
  #held: Buffer | undefined;
  /** The packet before was full: the next one continues it. */
  #continues = false;
  #uploading = false;

  pass(chunk: Buffer): Buffer {
    const bytes = this.#kept ? Buffer.concat([this.#kept, chunk]) : chunk;
    this.#kept = undefined;
    let at = 0;
    for (;;) {
      const skipped = Math.min(this.#left, bytes.length - at);
      this.#left -= skipped;
      at += skipped;
      if (at === bytes.length) return bytes;
      if (!this.#knows(bytes, at)) {
        this.#kept = bytes.subarray(at);
        return bytes.subarray(0, at);
      }
      const length = bytes.readUIntLE(at, 3);
      const sequence = bytes[at + 3];
      if (this.#isCommand(sequence) && length > 0 && bytes[at + HEADER] === COM_CHANGE_USER) {
        this.#held = bytes.subarray(at);
        return bytes.subarray(0, at);
      }
      if (!this.#continues && sequence !== 0) this.#uploading = true;
      if (!this.#continues && length === 0) this.#uploading = false;
      this.#continues = length === FULL;
      this.#left = HEADER + length;
    }
  }

  takeHeld(): Buffer | undefined {
    const held = this.#held;
    this.#held = undefined;
    return held;
  }

  /** Whether enough of the packet is there: its header and, where it could be a command, the first byte of it. */
  #knows(bytes: Buffer, at: number): boolean {
    const there = bytes.length - at;
    if (there < HEADER) return false;
    return there > HEADER || bytes.readUIntLE(at, 3) === 0 || !this.#isCommand(bytes[at + 3]);
  }

  #isCommand(sequence: number | undefined): boolean {
    return sequence === 0 && !this.#continues && !this.#uploading;
  }
}
