import type { PosternError } from '../../core/errors.ts';
import type { Follower } from '../../core/relay.ts';
import { encodeMessage } from './messages.ts';
import { farewell } from './replies.ts';

// PostgreSQL 18 documentation, 54.2 "Message Flow" and 54.7 "Message Formats". Every message after the login is a type
// letter and a length that counts itself; only those, and the one byte of a ReadyForQuery, are looked at.

const HEADER = 5;
const IDLE = letter('I');

const READY_FOR_QUERY = letter('Z');
const ERROR = letter('E');
const COPY_IN = letter('G');
const COPY_BOTH = letter('W');

const QUERY = letter('Q');
const FUNCTION_CALL = letter('F');
const SYNC = letter('S');
const EXECUTE = letter('E');
const COPY_DONE = letter('c');
const COPY_FAIL = letter('f');
/** Parse, Bind, Describe, Execute, Close, Flush: they wait for a Sync. */
const extended: ReadonlySet<number> = new Set(['P', 'B', 'D', 'E', 'C', 'H'].map(letter));

/**
 * Follows a relayed session just far enough to know when nothing is under way: no question without its ReadyForQuery,
 * no batch without its Sync, no transaction. Where it cannot be sure it says that something is.
 */
export class IdleFollower implements Follower {
  readonly #client = new Messages((type) => this.#asked(type));
  readonly #server = new Messages((type, status) => this.#answered(type, status));
  /** ReadyForQuery messages that the server still has to send. */
  #owed = 0;
  #unsynced = false;
  #copyingIn = false;
  /** Whether the last question was a simple Query, whose COPY needs no Sync. */
  #simple = true;
  #status = IDLE;
  /** It goes on in a way that has no end to be seen (replication), or something did not fit. */
  #lost = false;
  readonly #session: string;

  constructor(session: string) {
    this.#session = session;
  }

  fromClient(chunk: Buffer): void {
    this.#client.pass(chunk);
  }

  fromUpstream(chunk: Buffer): void {
    this.#server.pass(chunk);
  }

  get atRest(): boolean {
    return (
      this.#owed === 0 &&
      this.#status === IDLE &&
      !this.#unsynced &&
      !this.#copyingIn &&
      !this.#lost &&
      this.#client.between &&
      this.#server.between
    );
  }

  farewell(reason: PosternError): Buffer {
    return farewell(reason, this.#session);
  }

  /** Terminate: else the server would log that a client was lost. */
  goodbye(): Buffer {
    return encodeMessage('X');
  }

  #asked(type: number): void {
    if (type === QUERY || type === FUNCTION_CALL) {
      this.#simple = true;
      this.#owed += 1;
    } else if (type === SYNC) {
      this.#unsynced = false;
      this.#owed += 1;
    } else if (extended.has(type)) {
      this.#unsynced = true;
      if (type === EXECUTE) this.#simple = false;
    } else if ((type === COPY_DONE || type === COPY_FAIL) && this.#copyingIn) this.#leaveCopy();
  }

  #answered(type: number, status: number): void {
    if (type === READY_FOR_QUERY) {
      this.#owed -= 1;
      this.#status = status;
      this.#lost ||= this.#owed < 0;
    } else if (type === COPY_IN) this.#copyingIn = true;
    else if (type === COPY_BOTH) this.#lost = true;
    else if (type === ERROR && this.#copyingIn) this.#leaveCopy();
  }

  /** A server that takes in a COPY ignores each Sync (54.2.6): in the extended protocol there has to be another one. */
  #leaveCopy(): void {
    this.#copyingIn = false;
    if (this.#simple) return;
    this.#owed = 0;
    this.#unsynced = true;
  }
}

/** The messages in one direction. */
class Messages {
  readonly #saw: (type: number, firstByte: number) => void;
  /** Bytes of the message's head that were seen: a type and a length. */
  #seen = 0;
  #type = 0;
  #length = 0;
  /** Bytes of its body still to come. */
  #left = 0;
  #told = false;

  constructor(saw: (type: number, firstByte: number) => void) {
    this.#saw = saw;
  }

  /** Whether the last byte was the last one of a message. */
  get between(): boolean {
    return this.#seen === 0;
  }

  pass(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#seen < HEADER) {
        const byte = chunk[at] ?? 0;
        at += 1;
        if (this.#seen === 0) this.#type = byte;
        else this.#length = this.#length * 256 + byte;
        this.#seen += 1;
        if (this.#seen === HEADER) this.#left = Math.max(0, this.#length - 4);
        if (this.#seen === HEADER && (this.#left === 0 || this.#type !== READY_FOR_QUERY)) this.#tell(0);
      } else {
        if (!this.#told) this.#tell(chunk[at] ?? 0);
        const skipped = Math.min(this.#left, chunk.length - at);
        this.#left -= skipped;
        at += skipped;
      }
      if (this.#seen === HEADER && this.#left === 0) this.#next();
    }
  }

  #tell(firstByte: number): void {
    this.#told = true;
    this.#saw(this.#type, firstByte);
  }

  #next(): void {
    this.#seen = 0;
    this.#length = 0;
    this.#told = false;
  }
}

function letter(text: string): number {
  return text.charCodeAt(0);
}
