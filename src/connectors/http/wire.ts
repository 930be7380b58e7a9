import type { Socket } from 'node:net';

import { BulkBuffers, type Lease } from '../../core/bulk-buffers.ts';
import { saveLastWords } from '../../core/last-words.ts';
import { endLingering } from '../../core/socket.ts';
import { type FindHandle, type Handle, type WriteRequest, writeDirectly } from './direct.ts';

/** One end's connection as the engine sees it: plain, under TLS, or a test's double. */
export interface Wire {
  /** Sends `bytes[from..to)`. While `backlog` is above 0 that part may not be written to, or is kept as a copy. */
  put(bytes: Buffer, from: number, to: number): void;
  /** The same with all of `bytes`, which are not ones that a wire has handed out. */
  putWhole(bytes: Buffer): void;
  /** Bytes that the kernel has not taken yet. */
  backlog(): number;
  /** So many of them that no more should be put. */
  readonly full: boolean;
  pause(): void;
  resume(): void;
  /** Half-closes after what was put. */
  end(): void;
  /**
   * Ends after what was put, and goes on reading so that the peer's kernel does not throw it away. Whoever calls it
   * destroys the wire of a peer that takes too long.
   */
  endLingering(): void;
  /** Closes at once; as a reset where the transport has one, so that what came so far does not look whole. */
  reset(): void;
  destroy(): void;
}

/** Who uses a wire. `bytes` belong to the wire again when `onBytes` returns. */
export interface WireUser {
  onBytes(bytes: Buffer, from: number, to: number): void;
  /** The peer is done sending. */
  onEnd(): void;
  /** All that was put has gone. */
  onDrain(): void;
  onClose(): void;
}

/** How much is read at once of messages; more than this at once is a body in flow. */
const MESSAGE_READ = 64 * 1024;
const BULK_READ = 256 * 1024;
const MOST_SPARE_LEASES = 32;
/** Bodies beyond these are read in small pieces and copied: a thousand clients that do not read would have a lease each. */
const MOST_LEASES = 96;
/** So much may wait for a slow reader before the other side is no longer read. */
const HIGH_WATER = 256 * 1024;
/** The same where there are many of them. */
const LOW_WATER = 32 * 1024;

/** All wires read messages into this one: what is in it is used or copied before the next read. */
const shared = Buffer.allocUnsafeSlow(MESSAGE_READ);

const bulk = new BulkBuffers(BULK_READ, MOST_SPARE_LEASES, MOST_LEASES);

/** Leases that wires have or writes refer to. */
export function leasesInUse(): number {
  return bulk.inUse;
}

/** The wire whose bytes are being handed out. */
let reading: SocketWire | undefined;

/** A wire over a socket, which may come later: until then what is put waits. */
export class SocketWire implements Wire {
  readonly #user: WireUser;
  #socket: Socket | undefined;
  /** What is written to instead of the socket, where that works. */
  #handle: Handle | undefined;
  #find: FindHandle | undefined;
  /** Writes to it that are queued. */
  #underway = 0;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #paused = false;
  #current: Buffer = shared;
  #lease: Lease | undefined;
  /** A write still refers to the lease: the next read needs another one. */
  #leaseTaken = false;
  #bulk = false;
  /** The socket reads into our buffers. */
  #direct = false;
  /** The socket asks for a buffer behind a read, and not for its first. */
  #hasRead = false;

  constructor(user: WireUser) {
    this.#user = user;
  }

  /**
   * Makes a socket read into our buffers instead of a new one for each read: given to `net.connect`, which documents it,
   * or told to an open socket (`readInto`).
   */
  readonly onread = {
    buffer: (): Buffer => {
      const before = this.#current;
      const next = this.#nextBuffer();
      const same = this.#hasRead && next === before;
      this.#hasRead = false;
      // A socket that gets nothing goes on with what it has, and saves the calls that look a buffer up. Its first it needs,
      // and `onread` of one wire may be given to several sockets, until one of them connects.
      return same ? (undefined as unknown as Buffer) : next;
    },
    callback: (length: number, bytes: Uint8Array): boolean => {
      this.#hasRead = true;
      this.#bulk = length >= MESSAGE_READ;
      handOut(this, this.#user, bytes as Buffer, length);
      return true;
    },
  };

  /**
   * The socket is there. `pushed`: it has no `onread` of this wire and says what it reads as events. `find` finds the handle
   * that it may be written to by: at any time, because a connection that is kept may be older than the news that this works.
   */
  attach(socket: Socket, pushed: boolean, find?: FindHandle): void {
    this.#socket = socket;
    this.#find = find;
    this.#direct = !pushed;
    socket.on('error', ignore);
    socket.on('end', this.#ended);
    socket.on('close', this.#closed);
    socket.on('drain', this.#drained);
    if (pushed) socket.on('data', this.#data);
    saveLastWords(socket, this.#data, pushed ? undefined : () => this.#current);
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#waitingBytes = 0;
    for (const bytes of waiting) this.#write(socket, bytes);
    // Small writes that the kernel takes at once are followed by no 'drain'.
    if (waiting.length > 0 && this.backlog() === 0) this.#user.onDrain();
    if (this.#paused) socket.pause();
    else if (!pushed) socket.resume();
  }

  get socket(): Socket | undefined {
    return this.#socket;
  }

  /** The private buffer that is read into, if there is one. */
  get leased(): Buffer | undefined {
    return this.#lease?.bytes;
  }

  put(bytes: Buffer, from: number, to: number): void {
    const socket = this.#socket;
    if (socket === undefined) {
      const reused = bytes === shared || bytes === reading?.leased;
      const kept = reused ? copied(bytes, from, to) : bytes.subarray(from, to);
      this.#waiting.push(kept);
      this.#waitingBytes += kept.length;
      return;
    }
    if (bytes === shared) {
      this.#write(socket, copied(bytes, from, to));
      return;
    }
    const source = reading;
    const lease = source === undefined ? undefined : source.#lease;
    if (source !== undefined && lease !== undefined && bytes === lease.bytes) {
      lease.writes += 1;
      this.#write(socket, bytes.subarray(from, to), lease.written);
      if (this.backlog() > 0) source.#leaseTaken = true;
      return;
    }
    this.#write(socket, bytes.subarray(from, to));
  }

  putWhole(bytes: Buffer): void {
    const socket = this.#socket;
    if (socket !== undefined) this.#write(socket, bytes);
    else {
      this.#waiting.push(bytes);
      this.#waitingBytes += bytes.length;
    }
  }

  backlog(): number {
    const socket = this.#socket;
    if (socket === undefined) return this.#waitingBytes;
    if (this.#handle === undefined) return socket.writableLength;
    return this.#underway === 0 ? 0 : this.#handle.writeQueueSize;
  }

  get full(): boolean {
    const backlog = this.backlog();
    if (backlog <= LOW_WATER) return false;
    if (backlog > HIGH_WATER) return true;
    if (!bulk.exhausted) return false;
    // Behind less than a stream's own mark there comes no 'drain', and whoever pauses would wait for ever.
    return this.#handle !== undefined || this.#socket?.writableNeedDrain === true;
  }

  pause(): void {
    this.#paused = true;
    this.#socket?.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#socket?.resume();
  }

  end(): void {
    this.#socket?.end();
  }

  endLingering(): void {
    const socket = this.#socket;
    if (socket === undefined || socket.destroyed) return;
    if (this.backlog() === 0) {
      socket.resume();
      if (!socket.writableEnded) socket.end();
      return;
    }
    socket.end();
    socket.once('finish', () => endLingering(socket));
  }

  reset(): void {
    const socket = this.#socket;
    if (socket === undefined) return;
    // A unix socket knows no reset, and Node throws when a TLS socket is to be reset; there the missing close_notify says it.
    if (socket.remotePort === undefined || 'encrypted' in socket) socket.destroy();
    else socket.resetAndDestroy();
  }

  destroy(): void {
    this.#socket?.destroy();
  }

  /** Gives the socket back, at rest (to be resumed), with `unread` in front of what is still to come. The wire is of no use any more. */
  detach(unread: Buffer): Socket {
    const socket = this.#socket as Socket;
    socket.pause();
    socket.off('end', this.#ended);
    socket.off('close', this.#closed);
    socket.off('drain', this.#drained);
    socket.off('data', this.#data);
    this.#leave();
    if (this.#direct) readIntoStream(socket);
    if (unread.length > 0) socket.unshift(unread);
    return socket;
  }

  #write(socket: Socket, bytes: Buffer, written?: () => void): void {
    if (socket.destroyed) {
      written?.();
      return;
    }
    const handle = this.#handle ?? this.#findHandle(socket);
    if (handle === undefined) {
      socket.write(bytes, written);
      return;
    }
    let queued: WriteRequest | undefined;
    try {
      queued = writeDirectly(handle, bytes);
    } catch (error) {
      written?.();
      // Not now: whoever writes does not expect to hear of it, nor the server's last words, before it returns.
      process.nextTick(() => socket.destroy(error as Error));
      return;
    }
    if (queued === undefined) {
      written?.();
      return;
    }
    this.#underway += 1;
    queued.oncomplete = (status) => {
      this.#underway -= 1;
      written?.();
      if (status < 0) socket.destroy(new Error(`write failed with ${status}`));
      else if (this.#underway === 0) this.#user.onDrain();
    };
  }

  #findHandle(socket: Socket): Handle | undefined {
    // What its stream still has comes first.
    if (socket.writableLength === 0) this.#handle = this.#find?.(socket);
    return this.#handle;
  }

  readonly #data = (bytes: Buffer): void => this.#user.onBytes(bytes, 0, bytes.length);
  readonly #ended = (): void => this.#user.onEnd();
  readonly #closed = (): void => {
    this.#leave();
    this.#user.onClose();
  };
  readonly #drained = (): void => this.#user.onDrain();

  /** Called by the socket behind each read. */
  #nextBuffer(): Buffer {
    if (this.#bulk) {
      if (this.#lease !== undefined && !this.#leaseTaken) return this.#current;
      this.#leave();
      this.#lease = bulk.lease();
      this.#current = this.#lease?.bytes ?? shared;
    } else if (this.#lease !== undefined) {
      this.#leave();
      this.#current = shared;
    }
    return this.#current;
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

function handOut(wire: SocketWire, user: WireUser, bytes: Buffer, length: number): void {
  const before = reading;
  reading = wire;
  user.onBytes(bytes, 0, length);
  reading = before;
}

function ignore(): void {}

/** `Buffer.from` copies into a pool of 8 KiB where it can, which is what makes it fast. */
function copied(bytes: Buffer, from: number, to: number): Buffer {
  return Buffer.from(bytes.subarray(from, to));
}

/** Node's names for what `onread` of `net.connect` sets. */
interface Names {
  readonly buffer: symbol;
  readonly callback: symbol;
  readonly generator: symbol;
}

/** What of the handle beneath a socket is needed. */
interface ReadHandle {
  /** Reads into this buffer from now on, instead of a new one for each read. */
  useUserBuffer?(buffer: Buffer): void;
}

let names: Names | undefined;

/**
 * Has an open socket read into the buffers of `onread`. Node documents `onread` only for connections that it makes, and
 * keeps it in the socket by names of its own; so whether this works for accepted ones is tried out at the start
 * (accelerator.ts). Returns false where the names are others.
 */
export function readInto(socket: Socket, { buffer, callback }: SocketWire['onread']): boolean {
  const handle = (socket as unknown as { _handle: ReadHandle | null })._handle;
  names ??= namesIn(socket);
  if (names === undefined || !handle?.useUserBuffer) return false;
  const told = socket as Socket & Record<symbol, unknown>;
  const first = buffer();
  told[names.buffer] = first;
  told[names.callback] = callback;
  told[names.generator] = buffer;
  handle.useUserBuffer(first);
  return true;
}

function namesIn(socket: Socket): Names | undefined {
  const symbols = Object.getOwnPropertySymbols(socket);
  const named = (name: string) => symbols.find(({ description }) => description === name);
  const [buffer, callback, generator] = [named('kBuffer'), named('kBufferCb'), named('kBufferGen')];
  return buffer && callback && generator && { buffer, callback, generator };
}

/**
 * An ordinary socket again. Its handle goes on reading into a buffer that it is given, which cannot be taken back, so
 * what comes is copied from there into the stream.
 */
function readIntoStream(socket: Socket): void {
  const buffer = Buffer.allocUnsafeSlow(MESSAGE_READ);
  readInto(socket, {
    buffer: () => buffer,
    callback: (length, bytes) => socket.push(Buffer.from(bytes.subarray(0, length))),
  });
}
