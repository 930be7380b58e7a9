import type { PosternError } from '../../core/errors.ts';
import type { Follower } from '../../core/relay.ts';
import { type Capabilities, capability, has } from './capabilities.ts';
import { encodePacket } from './packets.ts';
import { errorReply } from './replies.ts';

// MySQL 9 source documentation, "Command Phase" and "Text Resultset"; MariaDB documentation, "Result Set Packets". Every
// packet is three bytes of length, a sequence id and a payload, whose beginning says what it is.

const HEADER = 4;
/** A payload of this length goes on in the next packet. */
const FULL = 0xffffff;
/** As much of a payload as any packet needs to show what it is: an OK with two length-encoded integers and its status. */
const PREFIX = 24;

const OK = 0x00;
const LOCAL_INFILE = 0xfb;
const END = 0xfe;
const ERR = 0xff;
/** MariaDB reports progress in ERR packets with this number, which end nothing. */
const PROGRESS = 0xffff;

/** Status flags of the server. */
const IN_TRANSACTION = 0x0001;
const MORE_RESULTS = 0x0008;
const CURSOR_EXISTS = 0x0040;

/** What a server answers to a command. */
type Answer = 'one packet' | 'result' | 'prepared' | 'rows' | 'login';

const COM_QUIT = 0x01;
/** COM_QUIT, COM_STMT_SEND_LONG_DATA, COM_STMT_CLOSE. */
const unanswered: ReadonlySet<number> = new Set([COM_QUIT, 0x18, 0x19]);
/** COM_BINLOG_DUMP, COM_TABLE_DUMP, COM_BINLOG_DUMP_GTID, COM_CLONE: streams whose end is not to be seen. */
const endless: ReadonlySet<number> = new Set([0x12, 0x13, 0x1e, 0x20]);
const answers: ReadonlyMap<number, Answer> = new Map([
  [0x03, 'result'], // COM_QUERY
  [0x04, 'rows'], // COM_FIELD_LIST
  [0x0a, 'result'], // COM_PROCESS_INFO
  [0x11, 'login'], // COM_CHANGE_USER
  [0x16, 'prepared'], // COM_STMT_PREPARE
  [0x17, 'result'], // COM_STMT_EXECUTE
  [0x1c, 'rows'], // COM_STMT_FETCH
  [0xfa, 'result'], // MariaDB's COM_STMT_BULK_EXECUTE
]);

/** Commands that a client may send ahead of the answers before they are no longer followed. */
const MOST_PENDING = 10_000;

/** Bit 36 of MariaDB's capabilities: the column definitions of a result may be left out. */
const CACHE_METADATA = 1 << 4;

/**
 * Follows a relayed session just far enough to know when nothing is under way: no command without its whole answer, no
 * file on its way to the server, no transaction. Where it cannot be sure it says that something is.
 */
export class IdleFollower implements Follower {
  readonly #client = new Packets((prefix, length, sequence) => this.#asked(prefix, length, sequence));
  readonly #server = new Packets((prefix, length) => this.#answered(prefix, length));
  readonly #session: string;
  readonly #deprecateEof: boolean;
  readonly #cacheMetadata: boolean;
  /** The answers that are still to come, or to end. */
  readonly #pending: Answer[] = [];
  /** Where in the answer to the oldest command the server is. */
  #at: 'beginning' | 'definitions' | 'rows' = 'beginning';
  /** Column definitions still to come, and the EOF behind them. */
  #definitions = 0;
  #uploading = false;
  #inTransaction = false;
  #lost = false;

  constructor(session: string, agreed: Capabilities) {
    this.#session = session;
    this.#deprecateEof = has(agreed.flags, capability.deprecateEof);
    this.#cacheMetadata = (agreed.extended & CACHE_METADATA) !== 0;
    // Then a result begins with another byte, and the capability is for clients that nobody has seen.
    this.#lost = has(agreed.flags, capability.optionalMetadata);
  }

  fromClient(chunk: Buffer): void {
    this.#client.pass(chunk);
  }

  fromUpstream(chunk: Buffer): void {
    this.#server.pass(chunk);
  }

  get atRest(): boolean {
    return (
      this.#pending.length === 0 &&
      !this.#inTransaction &&
      !this.#uploading &&
      !this.#lost &&
      this.#client.between &&
      this.#server.between
    );
  }

  /** An ERR that nobody asked for, numbered so that a client that reads it late takes it for the answer to its next command. */
  farewell(reason: PosternError): Buffer {
    return encodePacket(1, errorReply(reason, this.#session));
  }

  goodbye(): Buffer {
    return encodePacket(0, Buffer.of(COM_QUIT));
  }

  #asked(prefix: Buffer, length: number, sequence: number): void {
    if (this.#uploading) {
      // The content of a file: an empty packet ends it.
      this.#uploading = length > 0;
      return;
    }
    // The client's part of COM_CHANGE_USER goes on with the server's ids.
    if (sequence !== 0) return;
    const command = prefix[0] ?? 0;
    if (unanswered.has(command)) return;
    this.#lost ||= endless.has(command) || this.#pending.length >= MOST_PENDING;
    if (!this.#lost) this.#pending.push(answers.get(command) ?? 'one packet');
  }

  #answered(prefix: Buffer, length: number): void {
    if (this.#lost) return;
    const [answer] = this.#pending;
    const first = prefix[0];
    if (answer === undefined) {
      // The last words of a server that shuts down or loses its patience.
      this.#lost = true;
    } else if (first === ERR && this.#at !== 'definitions') {
      if (length < 3 || prefix.readUInt16LE(1) !== PROGRESS) this.#done();
    } else if (this.#at === 'definitions') this.#definition(prefix);
    else if (this.#at === 'rows' || answer === 'rows') this.#row(prefix, length);
    else if (answer === 'result') this.#result(prefix, length);
    else if (answer === 'prepared') this.#prepared(prefix, length);
    // AuthSwitchRequest and AuthMoreData: the server wants more of the client.
    else if (answer === 'login' && first !== OK) return;
    else this.#done(statusOf(prefix, length));
  }

  #result(prefix: Buffer, length: number): void {
    if (prefix[0] === OK) {
      const status = statusOf(prefix, length);
      // Another result follows: the same answer begins anew.
      if ((status ?? 0) & MORE_RESULTS) return;
      this.#done(status);
    } else if (prefix[0] === LOCAL_INFILE) this.#uploading = true;
    else {
      const { value: columns, size } = readInteger(prefix);
      const leftOut = this.#cacheMetadata && size < length && prefix[size] === 0;
      this.#define((leftOut ? 0 : columns) + (this.#deprecateEof ? 0 : 1), 'rows');
    }
  }

  #prepared(prefix: Buffer, length: number): void {
    if (length < 12) return void (this.#lost = true);
    const columns = prefix.readUInt16LE(5);
    const parameters = prefix.readUInt16LE(7);
    const withEnd = (definitions: number) =>
      definitions === 0 ? 0 : definitions + (this.#deprecateEof ? 0 : 1);
    const definitions = withEnd(columns) + withEnd(parameters);
    if (definitions === 0) this.#done();
    else this.#define(definitions, 'definitions');
  }

  /** Behind the definitions there are rows, or nothing. */
  #define(definitions: number, then: 'rows' | 'definitions'): void {
    this.#definitions = definitions;
    this.#at = definitions === 0 ? then : 'definitions';
  }

  #definition(prefix: Buffer): void {
    this.#definitions -= 1;
    if (this.#definitions > 0) return;
    if (this.#pending[0] === 'prepared') return this.#done();
    this.#at = 'rows';
    // The EOF behind the definitions says that the rows wait in a cursor.
    const status = this.#deprecateEof ? undefined : statusOf(prefix, prefix.length);
    if ((status ?? 0) & CURSOR_EXISTS) this.#done(status);
  }

  #row(prefix: Buffer, length: number): void {
    // A row that begins with this byte is at least 16 MiB, or 9 bytes, long.
    if (prefix[0] !== END || length >= (this.#deprecateEof ? FULL : 9)) return;
    const status = statusOf(prefix, length);
    if ((status ?? 0) & MORE_RESULTS) this.#at = 'beginning';
    else this.#done(status);
  }

  #done(status?: number): void {
    this.#pending.shift();
    this.#at = 'beginning';
    if (status !== undefined) this.#inTransaction = (status & IN_TRANSACTION) !== 0;
  }
}

/** The packets in one direction. */
class Packets {
  readonly #saw: (prefix: Buffer, length: number, sequence: number) => void;
  /** Header and beginning of the payload. */
  readonly #head = Buffer.allocUnsafe(HEADER + PREFIX);
  #have = 0;
  #left = 0;
  #told = false;
  #continues = false;

  constructor(saw: (prefix: Buffer, length: number, sequence: number) => void) {
    this.#saw = saw;
  }

  /** Whether the last byte was the last one of a packet. */
  get between(): boolean {
    return this.#have === 0 && !this.#continues;
  }

  pass(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      const wanted = this.#have < HEADER ? HEADER : HEADER + Math.min(PREFIX, this.#length);
      const taken = Math.min(wanted - this.#have, chunk.length - at);
      chunk.copy(this.#head, this.#have, at, at + taken);
      this.#have += taken;
      at += taken;
      if (this.#have < HEADER) return;
      if (this.#have === HEADER && wanted === HEADER) {
        this.#left = this.#length;
        if (this.#left > 0) continue;
      } else this.#left -= taken;
      if (!this.#told && this.#have >= HEADER + Math.min(PREFIX, this.#length)) this.#tell();
      if (this.#told) {
        const skipped = Math.min(this.#left, chunk.length - at);
        this.#left -= skipped;
        at += skipped;
        if (this.#left === 0) this.#next();
      }
    }
  }

  get #length(): number {
    return this.#head.readUIntLE(0, 3);
  }

  #tell(): void {
    this.#told = true;
    if (this.#continues) return;
    const length = this.#length;
    this.#saw(this.#head.subarray(HEADER, HEADER + Math.min(PREFIX, length)), length, this.#head[3] ?? 0);
  }

  #next(): void {
    this.#continues = this.#length === FULL;
    this.#have = 0;
    this.#told = false;
  }
}

/** The status flags of an OK or EOF packet; undefined for what is neither. */
function statusOf(prefix: Buffer, length: number): number | undefined {
  if (prefix[0] === END && length === 5) return prefix.readUInt16LE(3);
  if (prefix[0] !== OK && prefix[0] !== END) return undefined;
  const rows = readInteger(prefix, 1);
  const lastId = readInteger(prefix, 1 + rows.size);
  const at = 1 + rows.size + lastId.size;
  return at + 2 <= prefix.length ? prefix.readUInt16LE(at) : undefined;
}

/** A length-encoded integer; one that is cut off counts as 0. */
function readInteger(bytes: Buffer, at = 0): { readonly value: number; readonly size: number } {
  const first = bytes[at] ?? 0;
  const more = first < 0xfb ? 0 : first === 0xfc ? 2 : first === 0xfd ? 3 : 8;
  if (more === 0) return { value: first, size: 1 };
  if (at + 1 + more > bytes.length) return { value: 0, size: 1 + more };
  return {
    value: more === 8 ? Number(bytes.readBigUInt64LE(at + 1)) : bytes.readUIntLE(at + 1, more),
    size: 1 + more,
  };
}
