import { inspect } from 'node:util';

/**
 * A credential value: bytes that never print themselves and can be overwritten.
 *
 * Wiping is best effort. It clears this buffer, not the copies that a protocol needs (an HTTP header is a
 * string) or that the operating system made; it shortens exposure, it does not end it.
 */
export class Secret implements Disposable {
  #bytes: Buffer | undefined;

  /** Takes ownership of `bytes`: the caller must not keep or share them. */
  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** The live bytes, not a copy. Throws when the secret was already wiped. */
  reveal(): Buffer {
    if (!this.#bytes) throw new Error('a secret was used after it was wiped');
    return this.#bytes;
  }

  wipe(): void {
    this.#bytes?.fill(0);
    this.#bytes = undefined;
  }

  [Symbol.dispose](): void {
    this.wipe();
  }

  toString(): string {
    return '[secret]';
  }

  toJSON(): string {
    return '[secret]';
  }

  [inspect.custom](): string {
    return '[secret]';
  }
}
