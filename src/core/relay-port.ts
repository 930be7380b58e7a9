import type { Socket } from 'node:net';
import { getSystemErrorName } from 'node:util';

import { BulkBuffers, type Lease } from './bulk-buffers.ts';
import { saveLastWords } from './last-words.ts';
import { endLingering } from './socket.ts';

/** Who uses a port. */
export interface PortUser {
  /** Bytes that have come. They are lent: what is not put or copied when this returns is overwritten. */
  onBytes(bytes: Buffer): void;
  /** The peer is done sending. */
  onEnd(): void;
  /** More can be put, where `put` has said that it cannot. */
  onDrain(): void;
}

/** One end of a relay: what its socket reads is pushed to a user, and what is put goes out in order. */
export interface Port {
  /** Starts, or goes on after `stop`. */
  start(user: PortUser): void;
  /** Sends bytes, or keeps them; false: no more of them before `onDrain`. */
  put(bytes: Buffer): boolean;
  pause(): void;
  resume(): void;
  /** Half-closes after what was put. */
  end(): void;
  /** Ends after what was put, so that the peer gets to read it; what still comes is thrown away. */
  endLingering(): void;
  /** Leaves the socket to somebody else, at rest. A port that reads into buffers of ours cannot. */
  stop?(): void;
  /** What the socket held when it broke: see `saveLastWords`. */
  saveLastWords(heard: (bytes: Buffer) => void): void;
}

/** The documented way: `data` events, and the stream's own queue of writes. */
export class StreamPort implements Port {
  readonly #socket: Socket;
  #stop: (() => void) | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  start(user: PortUser): void {
    const socket = this.#socket;
    const data = (bytes: Buffer) => user.onBytes(bytes);
    const ended = () => user.onEnd();
    const drained = () => user.onDrain();
    socket.on('data', data);
    socket.on('end', ended);
    socket.on('drain', drained);
    this.#stop = () => {
      socket.off('data', data);
      socket.off('end', ended);
      socket.off('drain', drained);
      socket.pause();
    };
    // The login used read(); from here on data is pushed.
    socket.resume();
    // A client may have half-closed during the login, when nobody listened for it.
    if (socket.readableEnded) ended();
  }

  put(bytes: Buffer): boolean {
    return this.#socket.write(bytes);
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  end(): void {
    if (!this.#socket.writableEnded) this.#socket.end();
  }

  endLingering(): void {
    endLingering(this.#socket);
  }

  stop(): void {
    this.#stop?.();
    this.#stop = undefined;
  }

  saveLastWords(heard: (bytes: Buffer) => void): void {
    saveLastWords(this.#socket, heard);
  }
}

// ── Undocumented parts of Node.js: docs/decisions/0011-relay-in-typescript.md ────────────────────────────────────

/** What of Node's handle beneath a socket is needed. */
interface Handle {
  /** Reads into this buffer from now on, instead of a new one for each read. */
  useUserBuffer(buffer: Buffer): void;
  /** Returns an error of libuv, or 0; then `request.oncomplete` is called unless the kernel took all at once. */
  writeBuffer(request: WriteRequest, bytes: Buffer): number;
  /** Bytes that the kernel has not taken yet; what TLS has encrypted and not written. */
  readonly writeQueueSize: number;
}

interface WriteRequest {
  oncomplete: (this: WriteRequest, status: number) => void;
  port: DirectPort | undefined;
  /** Keeps them alive until they are written. */
  bytes: Buffer | undefined;
  lease: Lease | undefined;
}

/** Node's names for what `onread` of `net.connect` sets (any socket can be told so, at any time), and its request of a write. */
export interface Internals {
  readonly buffer: symbol;
  readonly callback: symbol;
  readonly generator: symbol;
  readonly WriteRequest: new () => WriteRequest;
}

let internals: Internals | undefined;

/** Whether relays are read and written directly from now on: see `proveDirect`. */
export function useInternals(found: Internals | undefined): void {
  internals = found;
}

/** Looks for Node's names on an open socket, by writing a byte to it. Undefined where they are others. */
export function findInternals(socket: Socket): Internals | undefined {
  const named = (name: string) =>
    Object.getOwnPropertySymbols(socket).find(({ description }) => description === name);
  const [buffer, callback, generator] = [named('kBuffer'), named('kBufferCb'), named('kBufferGen')];
  const handle = (socket as { _handle?: Partial<Handle> | null })._handle;
  if (!buffer || !callback || !generator || !handle?.useUserBuffer || !handle.writeBuffer) return undefined;
  const write = handle.writeBuffer;
  let WriteRequest: unknown;
  handle.writeBuffer = (request, bytes) => {
    // Node.js 26 gives none: a write there is an object only when it has to wait.
    WriteRequest = (request as object | null)?.constructor;
    return write.call(handle, request, bytes);
  };
  socket.write(Buffer.from('.'));
  handle.writeBuffer = write;
  if (typeof WriteRequest !== 'function' || typeof handle.writeQueueSize !== 'number') return undefined;
  return { buffer, callback, generator, WriteRequest: WriteRequest as Internals['WriteRequest'] };
}

/**
 * How the two sockets of a relay are read and written: directly, where that was proven to work and `documented` is not
 * asked for. Both in one way: bytes that are lent cannot be queued by a stream.
 */
export function portsOf(client: Socket, upstream: Socket, documented: boolean): readonly [Port, Port] {
  const found = documented ? undefined : internals;
  const handles = [handleOf(client), handleOf(upstream)] as const;
  return found && handles[0] && handles[1]
    ? [new DirectPort(client, handles[0], found), new DirectPort(upstream, handles[1], found)]
    : [new StreamPort(client), new StreamPort(upstream)];
}

function handleOf(socket: Socket): Handle | undefined {
  if (socket.destroyed || socket.writableEnded) return undefined;
  return (socket as { _handle?: Handle | null })._handle ?? undefined;
}

/** How much is read at once of messages, by all sessions into the same buffer. */
const MESSAGE_READ = 64 * 1024;
/** A read of more than this is taken for bulk; TLS gives 16 KiB at once at most. */
const LARGE = 8 * 1024;
const BULK_READ = 128 * 1024;
const MOST_SPARE_LEASES = 16;
/** Beyond these bulk is read in small pieces and copied: thousands of peers that do not read would have a lease each. */
const MOST_LEASES = 64;
/** So much may wait for a peer before the other is no longer read. */
const HIGH_WATER = 64 * 1024;

/** What is in it is written or copied before the next read of anybody. */
const shared = Buffer.allocUnsafeSlow(MESSAGE_READ);

const bulk = new BulkBuffers(BULK_READ, MOST_SPARE_LEASES, MOST_LEASES);

/** Leases that ports have or writes refer to. */
export function leasesInUse(): number {
  return bulk.inUse;
}

/** The port whose bytes are being handed out. */
let reading: DirectPort | undefined;
/** The buffer that the socket which was just read is to read into next; undefined: the same. */
let next: Buffer | undefined;

function handOut(port: DirectPort, user: PortUser, bytes: Buffer): void {
  const before = reading;
  reading = port;
  user.onBytes(bytes);
  reading = before;
}

const nothing = Buffer.alloc(0);

/** Called by the socket behind each read. */
function nextBuffer(): Buffer | undefined {
  const buffer = next;
  next = undefined;
  return buffer;
}

/** Called by the handle for each write that the kernel did not take at once, and for each of TLS. */
function hasWritten(this: WriteRequest, status: number): void {
  const { port, lease } = this;
  lease?.written();
  port?.hasWritten(status);
}

/**
 * Reads into buffers that are used again, and writes past the stream's queue: of the two calls into C++ that a message needs
 * nothing else is left. Nobody else may write to the socket meanwhile, because TLS takes one write at a time.
 */
class DirectPort implements Port {
  readonly #socket: Socket;
  readonly #handle: Handle;
  readonly #internals: Internals;
  readonly #tls: boolean;
  #user: PortUser | undefined;
  #lease: Lease | undefined;
  /** A write still refers to the lease: the next read needs another one. */
  #leaseTaken = false;
  /** The lease is given back when the socket closes. */
  #givesBack = false;
  #writing = false;
  #queue: Buffer[] | undefined;
  #queued = 0;
  /** `put` has said that there is no room. */
  #full = false;
  #ending: 'no' | 'end' | 'linger' = 'no';

  constructor(socket: Socket, handle: Handle, internals: Internals) {
    this.#socket = socket;
    this.#handle = handle;
    this.#internals = internals;
    this.#tls = 'encrypted' in socket;
  }

  start(user: PortUser): void {
    this.#user = user;
    const socket = this.#socket as Socket & Record<symbol, unknown>;
    socket.on('end', () => user.onEnd());
    const early = socket.read() as Buffer | null;
    if (socket.writableLength > 0) this.#waitForStream();
    socket[this.#internals.buffer] = shared;
    socket[this.#internals.callback] = (length: number, buffer: Buffer) => this.#hasRead(length, buffer);
    socket[this.#internals.generator] = nextBuffer;
    this.#handle.useUserBuffer(shared);
    if (early) user.onBytes(early);
    socket.resume();
    if (socket.readableEnded) user.onEnd();
  }

  put(bytes: Buffer): boolean {
    if (this.#socket.destroyed) return true;
    if (this.#writing) this.#keep(Buffer.from(bytes));
    else if (this.#tls) this.#writeEncrypted(bytes);
    else this.#writePlain(bytes);
    // A large piece is not followed by another one before it is gone: it would have to be copied.
    // Until that is over there is no room, whatever else comes: whoever was told waits for `onDrain`.
    this.#full ||= this.#writing && (!this.#tls || bytes.length > LARGE || this.#queued > HIGH_WATER);
    return !this.#full;
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  end(): void {
    if (this.#writing && this.#ending === 'no') this.#ending = 'end';
    else if (!this.#writing && !this.#socket.writableEnded) this.#socket.end();
  }

  endLingering(): void {
    if (this.#writing) this.#ending = 'linger';
    else endLingering(this.#socket);
  }

  saveLastWords(heard: (bytes: Buffer) => void): void {
    saveLastWords(this.#socket, heard, () => this.#lease?.bytes ?? shared);
  }

  /** Called by the socket for each read. */
  #hasRead(length: number, buffer: Buffer): boolean {
    if (this.#user) handOut(this, this.#user, buffer.subarray(0, length));
    next = this.#bufferAfter(length);
    return true;
  }

  #bufferAfter(length: number): Buffer | undefined {
    if (length > LARGE) {
      if (this.#lease && !this.#leaseTaken) return undefined;
      this.#leave();
      // The close has given back what there was, and does not come again.
      if (!this.#socket.destroyed) this.#takeLease();
      return this.#lease?.bytes ?? shared;
    }
    if (!this.#lease) return undefined;
    this.#leave();
    return shared;
  }

  hasWritten(status: number): void {
    this.#writing = false;
    if (this.#socket.destroyed) return;
    if (status < 0) {
      this.#broken(status);
      return;
    }
    if (this.#queue) {
      const bytes = this.#queue.length === 1 ? (this.#queue[0] as Buffer) : Buffer.concat(this.#queue);
      this.#queue = undefined;
      this.#queued = 0;
      if (this.#tls) this.#writeEncrypted(bytes);
      else this.#write(bytes, undefined);
      if (this.#writing) return;
    }
    const ending = this.#ending;
    this.#ending = 'no';
    if (ending === 'end') this.end();
    if (ending === 'linger') this.endLingering();
    if (!this.#full) return;
    this.#full = false;
    this.#user?.onDrain();
  }

  /** What the login wrote last is still under way: under TLS every write is for a moment. */
  #waitForStream(): void {
    this.#writing = true;
    this.#socket.write(nothing, (error) => !error && this.hasWritten(0));
  }

  #takeLease(): void {
    this.#lease = bulk.lease();
    if (!this.#lease || this.#givesBack) return;
    this.#givesBack = true;
    this.#socket.once('close', () => this.#leave());
  }

  #keep(bytes: Buffer): void {
    this.#queue ??= [];
    this.#queue.push(bytes);
    this.#queued += bytes.length;
  }

  /** TLS has read all of them when this returns. */
  #writeEncrypted(bytes: Buffer): void {
    this.#write(bytes, undefined);
  }

  #writePlain(bytes: Buffer): void {
    // The kernel may take only a part, and the rest would be written from where somebody else has read to by then.
    if (bytes.buffer === shared.buffer) {
      this.#write(Buffer.from(bytes), undefined);
      return;
    }
    const source = reading;
    const lease = source === undefined ? undefined : source.#lease;
    if (source === undefined || lease === undefined || bytes.buffer !== lease.bytes.buffer) {
      this.#write(bytes, undefined);
      return;
    }
    lease.writes += 1;
    if (this.#write(bytes, lease)) source.#leaseTaken = true;
    else lease.writes -= 1;
  }

  /** Returns whether `oncomplete` will be called, or was: what it stands for is not given back twice. */
  #write(bytes: Buffer, lease: Lease | undefined): boolean {
    const request = new this.#internals.WriteRequest();
    request.oncomplete = hasWritten;
    request.port = this;
    request.lease = lease;
    this.#writing = true;
    const error = this.#handle.writeBuffer(request, bytes);
    if (error !== 0) {
      this.#writing = false;
      this.#broken(error);
      return false;
    }
    // TLS always calls back; a plain socket does only when the kernel did not take everything.
    if (!this.#tls && this.#writing && this.#handle.writeQueueSize === 0) {
      this.#writing = false;
      return false;
    }
    request.bytes = bytes;
    return true;
  }

  #broken(status: number): void {
    const code = getSystemErrorName(status);
    this.#socket.destroy(Object.assign(new Error(`write ${code}`), { code }));
  }

  #leave(): void {
    const lease = this.#lease;
    this.#lease = undefined;
    this.#leaseTaken = false;
    if (lease === undefined) return;
    lease.left = true;
    lease.writes += 1;
    lease.written();
  }
}
