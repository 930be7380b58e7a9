import { type FieldNames, responseNames, TOKEN, VALUE } from './names.ts';

/** Digits of a chunk's size: 4 GiB in one chunk. More is how a parser is made to overflow. */
const SIZE_DIGITS = 8;
/** All trailer lines together, in bytes. */
const TRAILER_BYTES = 8192;
const TRAILER_NAME_BYTES = 128;

// What comes next.
const SIZE = 0;
const SIZE_LF = 1;
const DATA = 2;
const DATA_CR = 3;
const DATA_LF = 4;
const TRAILER_OR_END = 5;
const TRAILER_NAME = 6;
const TRAILER_VALUE = 7;
const TRAILER_LF = 8;
const END_LF = 9;

/** Gets the data of a body without its framing. */
export interface ChunkData {
  data(bytes: Buffer, from: number, to: number): void;
}

/**
 * Follows the framing of a chunked body (RFC 9112 7.1) through whatever pieces it comes in. Strict: CRLF only, no
 * extensions, at most 8 digits. Trailer fields are checked and left out: hardly anyone reads them, and a server that
 * merges them into the head would take a field from the client that the head was searched for (RFC 9110 6.5.1).
 */
export class Chunks {
  /** The whole body has been seen. */
  done = false;
  /** Why this body is refused; empty: it is not. */
  reason = '';
  /** After `scan`: up to where its bytes may be passed on as they are. */
  pass = 0;
  /** There were trailers and `pass` ended before them: when the body is done, the empty line is still to be written. */
  closeLine = false;
  #next = SIZE;
  #size = 0;
  #digits = 0;
  #names: FieldNames = noOwner;
  #trailerBytes = 0;
  #nameLength = 0;
  /** A trailer's name may come in two pieces. Made with the first trailer: most bodies have none. */
  #name: Uint8Array | undefined;

  /** Whether this body is refused. */
  get bad(): boolean {
    return this.reason !== '';
  }

  /** Begins a new body. `names`: those of its direction; a trailer that has one of them is refused. */
  reset(names: FieldNames = noOwner): void {
    this.done = false;
    this.reason = '';
    this.pass = 0;
    this.closeLine = false;
    this.#next = SIZE;
    this.#size = 0;
    this.#digits = 0;
    this.#names = names;
    this.#trailerBytes = 0;
  }

  /**
   * Goes on with `bytes` from `at`. Returns the offset behind the last byte that belongs to this body, or `to`. Bytes
   * behind a fault are not to be passed on.
   */
  scan(bytes: Buffer, at: number, to: number, sink?: ChunkData): number {
    this.pass = at;
    while (at < to) {
      switch (this.#next) {
        case SIZE: {
          const digit = hexDigit(bytes[at] as number);
          if (digit >= 0) {
            if (++this.#digits > SIZE_DIGITS) return this.#refuse('chunk size of more than 8 digits', at);
            this.#size = this.#size * 16 + digit;
          } else {
            if (this.#digits === 0) return this.#refuse('chunk without a size', at);
            if (bytes[at] !== 13) return this.#refuse('chunk size not followed by CRLF', at);
            this.#next = SIZE_LF;
          }
          at++;
          break;
        }
        case SIZE_LF:
          if (bytes[at] !== 10) return this.#refuse('chunk size not followed by CRLF', at);
          this.#digits = 0;
          this.#next = this.#size === 0 ? TRAILER_OR_END : DATA;
          at++;
          break;
        case DATA: {
          const length = Math.min(this.#size, to - at);
          sink?.data(bytes, at, at + length);
          this.#size -= length;
          at += length;
          if (this.#size === 0) this.#next = DATA_CR;
          break;
        }
        case DATA_CR:
          if (bytes[at] !== 13) return this.#refuse('chunk not followed by CRLF', at);
          this.#next = DATA_LF;
          at++;
          break;
        case DATA_LF:
          if (bytes[at] !== 10) return this.#refuse('chunk not followed by CRLF', at);
          this.#next = SIZE;
          at++;
          break;
        case TRAILER_OR_END:
          if (bytes[at] === 13) {
            this.#next = END_LF;
            at++;
            break;
          }
          if (!this.closeLine) {
            this.closeLine = true;
            this.pass = at;
          }
          this.#nameLength = 0;
          this.#next = TRAILER_NAME;
          break;
        case TRAILER_NAME: {
          const byte = bytes[at] as number;
          if (++this.#trailerBytes > TRAILER_BYTES) return this.#refuse('too many trailer fields', at);
          if (byte === 0x3a) {
            if (this.#nameLength === 0) return this.#refuse('trailer field without a name', at);
            if (this.#names.kindOf(this.#trailerName(), 0, this.#nameLength) !== 0)
              return this.#refuse('trailer field that may not be one', at);
            this.#next = TRAILER_VALUE;
          } else {
            if (TOKEN[byte] === 0) return this.#refuse('trailer field with a malformed name', at);
            if (this.#nameLength === TRAILER_NAME_BYTES)
              return this.#refuse('trailer field with a long name', at);
            this.#trailerName()[this.#nameLength++] = byte;
          }
          at++;
          break;
        }
        case TRAILER_VALUE: {
          const byte = bytes[at] as number;
          if (++this.#trailerBytes > TRAILER_BYTES) return this.#refuse('too many trailer fields', at);
          if (byte === 13) this.#next = TRAILER_LF;
          else if (VALUE[byte] === 0) return this.#refuse('control character in a trailer field', at);
          at++;
          break;
        }
        case TRAILER_LF:
          if (bytes[at] !== 10) return this.#refuse('trailer field not followed by CRLF', at);
          this.#next = TRAILER_OR_END;
          at++;
          break;
        case END_LF:
          if (bytes[at] !== 10) return this.#refuse('chunked body not followed by CRLF', at);
          at++;
          this.done = true;
          if (!this.closeLine) this.pass = at;
          return at;
      }
    }
    if (!this.closeLine) this.pass = at;
    return at;
  }

  #refuse(reason: string, at: number): number {
    this.reason = reason;
    if (!this.closeLine) this.pass = at;
    return at;
  }

  #trailerName(): Uint8Array {
    this.#name ??= new Uint8Array(TRAILER_NAME_BYTES);
    return this.#name;
  }
}

const noOwner = responseNames();

function hexDigit(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const lower = byte | 32;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}
