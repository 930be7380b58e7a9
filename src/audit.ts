import { constants, write as writeTo } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import type { Logger } from 'pino';

import type { AuditConfig, AuditEvent } from './config/config.ts';
import { PosternError, reasonOf } from './core/errors.ts';
import { pause } from './lifecycle/alarms.ts';

/** What a record may hold. Values of secrets, queries and header fields are never among it. */
export type AuditFields = Readonly<Record<string, unknown>>;

/** Records that wait for their destination at most; those that come then are counted, and lost. */
const MOST_WAITING = 10_000;
/** Bytes of waiting records at most. */
const MOST_BYTES_WAITING = 8 * 1024 * 1024;
/** Bytes that are written together, where the destination takes more than one record. */
const BATCH_BYTES = 64 * 1024;
/** The pause before a destination that failed is tried again, in milliseconds. */
const RETRY_PAUSE = 1000;
/** How long the last records may take at the end, in milliseconds. */
const CLOSE_TIMEOUT = 2000;
/** How long the reader of a unix socket may take to accept, in milliseconds. */
const CONNECT_TIMEOUT = 5000;

/** A place that takes lines. `put` throws when it took none, or not all: the same bytes are put there again later. */
interface Destination {
  /** Whether several records may go in one piece. */
  readonly batches: boolean;
  put(bytes: Buffer): Promise<void>;
  /** Begins anew, as after the rotation of a file. Throws when that is not possible; then all stays as it was. */
  reopen(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Records of who did what, one JSON object a line, at a destination of their own. Whoever records waits for nothing:
 * what a slow or failing destination does not take is kept within bounds, and beyond them counted and lost.
 */
export class AuditTrail {
  readonly config: AuditConfig;
  readonly #destination: Destination;
  readonly #events: ReadonlySet<AuditEvent>;
  readonly #log: Logger;
  readonly #count: (outcome: 'written' | 'dropped', records: number) => void;
  #waiting: Buffer[] = [];
  #bytesWaiting = 0;
  /** Why the destination does not take anything now. */
  #failing: string | undefined;
  #writing: Promise<void> | undefined;
  readonly #closing = new AbortController();

  private constructor(
    config: AuditConfig,
    destination: Destination,
    log: Logger,
    count: (outcome: 'written' | 'dropped', records: number) => void,
  ) {
    this.config = config;
    this.#destination = destination;
    this.#events = new Set(config.events);
    this.#log = log;
    this.#count = count;
  }

  /** Opens a file; nothing else has to be there yet. Throws CONFIG_INVALID. */
  static async open(
    config: AuditConfig,
    log: Logger,
    count: (outcome: 'written' | 'dropped', records: number) => void,
  ): Promise<AuditTrail> {
    return new AuditTrail(config, await openDestination(config.to), log, count);
  }

  wants(event: AuditEvent): boolean {
    return this.#events.has(event);
  }

  /** Takes note of something, where the configuration asks for such events. */
  record(event: AuditEvent, fields: AuditFields): void {
    if (!this.#events.has(event) || this.#closing.signal.aborted) return;
    const line = Buffer.from(`${JSON.stringify({ time: new Date().toISOString(), event, ...fields })}\n`);
    if (this.#waiting.length >= MOST_WAITING || this.#bytesWaiting + line.length > MOST_BYTES_WAITING) {
      this.#count('dropped', 1);
      return;
    }
    this.#waiting.push(line);
    this.#bytesWaiting += line.length;
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
  }

  /** After the rotation of a file. Throws CONFIG_INVALID, with the old file still in use. */
  async reopen(): Promise<void> {
    await this.#destination.reopen();
  }

  /** Writes what there is, for a short time, and closes. */
  async close(): Promise<void> {
    const timer = setTimeout(() => this.#closing.abort(), CLOSE_TIMEOUT);
    // A destination that hangs is left behind.
    await Promise.race([this.#writing, aborted(this.#closing.signal)]);
    clearTimeout(timer);
    this.#closing.abort();
    if (this.#waiting.length > 0) this.#count('dropped', this.#waiting.length);
    this.#waiting = [];
    const patience = new AbortController();
    await Promise.race([
      this.#destination.close().then(() => patience.abort()),
      pause(CLOSE_TIMEOUT, patience.signal),
    ]);
  }

  async #write(): Promise<void> {
    while (this.#waiting.length > 0 && !this.#closing.signal.aborted) {
      const count = this.#batch();
      const batch = this.#waiting.slice(0, count);
      try {
        await this.#destination.put(batch.length === 1 && batch[0] ? batch[0] : Buffer.concat(batch));
      } catch (thrown) {
        this.#failed(reasonOf(thrown));
        await pause(RETRY_PAUSE, this.#closing.signal);
        continue;
      }
      if (this.#closing.signal.aborted) return;
      this.#waiting.splice(0, count);
      for (const { length } of batch) this.#bytesWaiting -= length;
      this.#count('written', count);
      if (this.#failing === undefined) continue;
      this.#failing = undefined;
      this.#log.info('the audit is written again');
    }
  }

  #batch(): number {
    if (!this.#destination.batches) return 1;
    let bytes = 0;
    const beyond = this.#waiting.findIndex(({ length }) => (bytes += length) > BATCH_BYTES);
    return beyond === -1 ? this.#waiting.length : Math.max(1, beyond);
  }

  #failed(reason: string): void {
    if (this.#failing === reason) return;
    this.#failing = reason;
    this.#log.error({ reason }, 'the audit cannot be written, its records wait');
  }
}

async function openDestination(to: AuditConfig['to']): Promise<Destination> {
  if (to === 'stdout' || to === 'stderr') return new Standard(to === 'stdout' ? 1 : 2);
  if ('socket' in to) return new SocketDestination(to.socket);
  return await LogFile.open(to.file);
}

/**
 * A file that is only appended to. What a full disk has cut off is continued where it was cut off, so that every line
 * stays a line.
 */
class LogFile implements Destination {
  readonly batches = true;
  readonly #path: string;
  #handle: FileHandle;
  /** Bytes of the piece under way that are in the file. */
  #written = 0;
  /** One thing after the other: a file is not closed while it is written to. */
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(path: string, handle: FileHandle) {
    this.#path = path;
    this.#handle = handle;
  }

  static async open(path: string): Promise<LogFile> {
    return new LogFile(path, await openForAppending(path));
  }

  async put(bytes: Buffer): Promise<void> {
    await this.#inTurn(async () => {
      while (this.#written < bytes.length) {
        const { bytesWritten } = await this.#handle.write(bytes, this.#written);
        this.#written += bytesWritten;
      }
      this.#written = 0;
    });
  }

  async reopen(): Promise<void> {
    const next = await openForAppending(this.#path);
    await this.#inTurn(async () => {
      const former = this.#handle;
      this.#handle = next;
      // The new file begins with a whole line.
      this.#written = 0;
      await former.close().catch(() => {});
    });
  }

  async close(): Promise<void> {
    await this.#inTurn(() => this.#handle.close().catch(() => {}));
  }

  async #inTurn(work: () => Promise<void>): Promise<void> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => {});
    await mine;
  }
}

async function openForAppending(path: string): Promise<FileHandle> {
  const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = constants;
  // Without O_NONBLOCK the opening of a pipe that nobody reads would never end.
  return await open(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK, 0o600).catch((cause: unknown) => {
    const message = `the file of the audit, ${path}, cannot be opened: ${reasonOf(cause)}`;
    throw new PosternError('CONFIG_INVALID', message, { cause });
  });
}

/** Standard output or error, where the log writes as well: a record is written in one piece, so that lines stay lines. */
class Standard implements Destination {
  readonly batches = false;
  readonly #descriptor: number;

  constructor(descriptor: 1 | 2) {
    this.#descriptor = descriptor;
  }

  async put(bytes: Buffer): Promise<void> {
    let written = 0;
    while (written < bytes.length) written += await this.#some(bytes.subarray(written));
  }

  async reopen(): Promise<void> {}

  async close(): Promise<void> {}

  async #some(bytes: Buffer): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    writeTo(this.#descriptor, bytes, (error, written) => (error ? reject(error) : resolve(written)));
    return await promise;
  }
}

/** A stream socket that somebody else listens on, such as a log shipper; connected to when there is something to say. */
class SocketDestination implements Destination {
  readonly batches = true;
  readonly #path: string;
  #socket: Socket | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  async put(bytes: Buffer): Promise<void> {
    const socket = await this.#connected();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const broken = () => reject(new PosternError('UPSTREAM_CLOSED', 'the reader has gone'));
    socket.once('close', broken);
    try {
      socket.write(bytes, (error) => (error ? reject(error) : resolve()));
      await promise;
    } finally {
      socket.off('close', broken);
    }
  }

  async reopen(): Promise<void> {}

  async close(): Promise<void> {
    this.#socket?.destroy();
  }

  async #connected(): Promise<Socket> {
    if (this.#socket && !this.#socket.destroyed) return this.#socket;
    const socket = connect(this.#path);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    socket.once('connect', resolve);
    socket.on('error', reject);
    // Whoever reads has nothing to say; its end is seen.
    socket.resume();
    socket.setTimeout(CONNECT_TIMEOUT, () => socket.destroy(new PosternError('TIMEOUT', 'nobody accepted')));
    await promise;
    socket.setTimeout(0);
    this.#socket = socket;
    return socket;
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  signal.addEventListener('abort', () => resolve(), { once: true });
  if (signal.aborted) resolve();
  await promise;
}
