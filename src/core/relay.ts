import type { Socket } from 'node:net';

import { PosternError } from './errors.ts';
import { saveLastWords } from './last-words.ts';
import { endLingering, type Side } from './socket.ts';

/** How a relay ended: both ends were done, one of them broke off, Postern ended it, or what a connector did in it failed. */
export type RelayEnd = 'done' | 'client-broke' | 'upstream-broke' | 'idle' | 'closed' | PosternError;

export interface RelayOptions {
  /** Milliseconds without a byte in either direction after which the relay ends; 0: never. */
  readonly idleTimeout: number;
  readonly watch?: Watch | undefined;
  readonly follower?: Follower | undefined;
}

/**
 * Follows a conversation to know when it can end without loss. Only relays that may have to end at such a moment have
 * one: it sees every byte.
 */
export interface Follower {
  fromClient(chunk: Buffer): void;
  fromUpstream(chunk: Buffer): void;
  /** Nothing is under way, as far as bytes have passed. */
  readonly atRest: boolean;
  /** Tells the client, in its protocol, why its session ends. */
  farewell(reason: PosternError): Buffer;
  /** Takes leave of the server in order. */
  goodbye(): Buffer;
}

/** Lets a connector see what a client sends, and step into the relay where it must. A relay without one looks at nothing. */
export interface Watch {
  /** Sees the client's bytes in order and returns what of them passes now. A few may be kept until more have come. */
  pass(chunk: Buffer): Buffer;
  /** What `pass` kept because the connector has to step in before it; asked after each `pass`, which may then start anew. */
  takeHeld(): Buffer | undefined;
  /**
   * The relay is at rest: both sockets are the connector's, and the next byte to read from the client is the first
   * that was held. The relay goes on when this resolves; when it rejects, the client has been told and the relay ends.
   */
  stepIn(): Promise<void>;
}

/**
 * How long a client may keep its half of a connection silently open after the server has closed the other, in
 * milliseconds. A client that waits for a server is another matter: a query may run for hours.
 */
const SERVER_GONE_TIMEOUT = 60_000;
/** How long what was already received may take to reach the client after the server broke off, in milliseconds. */
const FLUSH_TIMEOUT = 5_000;

/**
 * Copies bytes both ways until both ends are done. A half-close is passed on; what a server sent before it broke
 * off still reaches the client; a client that breaks off is a reset for the server, so that it stops working.
 */
export class Relay {
  /** Settles once both sockets are closed. Never rejects. */
  readonly done: Promise<RelayEnd>;
  readonly #client: Socket;
  readonly #upstream: Socket;
  readonly #finish: (end: RelayEnd) => void;
  #end: RelayEnd | undefined;
  readonly #open = new Set<Side>(['client', 'upstream']);
  #fromClient = 0;
  #fromUpstream = 0;
  readonly #watches: NodeJS.Timeout[] = [];
  #flush: NodeJS.Timeout | undefined;
  readonly #watch: Watch | undefined;
  readonly #follower: Follower | undefined;
  /** Why the relay is to end as soon as nothing is under way. */
  #retiring: PosternError | undefined;
  /** Take the listeners off that make the bytes flow. */
  #stopFlow: (() => void)[] = [];
  /** A connector has stepped in. */
  #steppedIn = false;

  constructor(client: Socket, upstream: Socket, options: RelayOptions) {
    this.#client = client;
    this.#upstream = upstream;
    const { promise, resolve } = Promise.withResolvers<RelayEnd>();
    this.done = promise;
    this.#finish = resolve;

    this.#watch = options.watch;
    this.#follower = options.follower;
    if (options.idleTimeout > 0) this.#watchSilence(options.idleTimeout, 'idle');
    saveLastWords(upstream, (bytes) => {
      if (this.#steppedIn || this.#end !== undefined) return;
      this.#fromUpstream += bytes.length;
      client.write(bytes);
    });
    client.on('close', () => this.#closed('client'));
    upstream.on('close', () => this.#closed('upstream'));
    this.#flow();
  }

  /** Bytes read so far from each side. */
  get bytes(): { readonly fromClient: number; readonly fromUpstream: number } {
    return { fromClient: this.#fromClient, fromUpstream: this.#fromUpstream };
  }

  /** Ends the relay at once, both ends in order, nothing flushed. */
  close(): void {
    this.#stop('closed');
  }

  /**
   * Ends the relay as soon as nothing is under way, with a word to the client, and in any case after `patience`
   * milliseconds, then without one. A relay without a follower never knows, and has its whole patience.
   */
  retire(reason: PosternError, patience: number): void {
    if (this.#retiring) return;
    this.#retiring = reason;
    this.#watches.push(setTimeout(() => this.#stop(reason), patience).unref());
    this.#leaveAtRest();
  }

  #flow(): void {
    const client = this.#client;
    const upstream = this.#upstream;
    const watch = this.#watch;
    const follower = this.#follower;
    let toUpstream = (chunk: Buffer) => upstream.write(chunk);
    let toClient = (chunk: Buffer) => client.write(chunk);
    if (follower) {
      toUpstream = (chunk) => {
        follower.fromClient(chunk);
        return upstream.write(chunk);
      };
      toClient = (chunk) => {
        follower.fromUpstream(chunk);
        const more = client.write(chunk);
        if (this.#retiring) this.#leaveAtRest();
        return more;
      };
    }
    if (watch) toUpstream = (chunk) => this.#passWatched(watch, chunk);
    this.#pump(client, upstream, 'client', toUpstream);
    this.#pump(upstream, client, 'upstream', toClient);
  }

  #leaveAtRest(): void {
    if (!this.#retiring || this.#end !== undefined || this.#steppedIn || !this.#follower?.atRest) return;
    // Whoever has said goodbye is about to end it anyway.
    if (this.#client.readableEnded || this.#client.destroyed || this.#upstream.destroyed) return;
    this.#end = this.#retiring;
    this.#pause();
    this.#client.write(this.#follower.farewell(this.#retiring));
    endLingering(this.#client);
    this.#upstream.write(this.#follower.goodbye());
    endLingering(this.#upstream);
  }

  #pause(): void {
    for (const stop of this.#stopFlow.splice(0)) stop();
  }

  /** `write` returns whether the other end takes more at once. */
  #pump(from: Socket, to: Socket, side: Side, write: (chunk: Buffer) => boolean): void {
    const drained = () => from.resume();
    const data = (chunk: Buffer) => {
      if (side === 'client') this.#fromClient += chunk.length;
      else this.#fromUpstream += chunk.length;
      if (!write(chunk)) from.pause();
    };
    const ended = () => {
      to.end();
      if (side === 'upstream' && !this.#client.readableEnded) this.#watchSilence(SERVER_GONE_TIMEOUT, 'done');
    };
    to.on('drain', drained);
    from.on('data', data);
    from.on('end', ended);
    this.#stopFlow.push(() => {
      to.off('drain', drained);
      from.off('data', data);
      from.off('end', ended);
      from.pause();
    });
    // The login used read(); from here on data is pushed.
    from.resume();
    // A client may have half-closed during the login, when nobody listened for it.
    if (from.readableEnded) ended();
    // Whether its 'close' is over or still to come cannot be seen.
    if (from.destroyed) this.#closed(side);
  }

  #passWatched(watch: Watch, chunk: Buffer): boolean {
    const passing = watch.pass(chunk);
    this.#follower?.fromClient(passing);
    const more = passing.length === 0 || this.#upstream.write(passing);
    const held = watch.takeHeld();
    if (!held) return more;
    this.#fromClient -= held.length;
    this.#pause();
    this.#client.unshift(held);
    this.#steppedIn = true;
    watch.stepIn().then(
      () => this.#goOn(),
      (thrown: unknown) => this.#fail(PosternError.from(thrown)),
    );
    return false;
  }

  #goOn(): void {
    this.#steppedIn = false;
    this.#flow();
    this.#leaveAtRest();
  }

  #fail(error: PosternError): void {
    this.#steppedIn = false;
    this.#end ??= error;
    this.#upstream.destroy();
    endLingering(this.#client);
    if (this.#client.destroyed) this.#closed('client');
    this.#closed('upstream');
  }

  #closed(side: Side): void {
    // What the connector does then fails, and it is seen.
    if (this.#steppedIn || !this.#open.delete(side)) return;
    const socket = side === 'client' ? this.#client : this.#upstream;
    const orderly = socket.readableEnded && socket.writableFinished;
    if (this.#open.size === 1 && !orderly && this.#end === undefined) this.#broke(side);
    if (this.#open.size > 0) return;
    for (const watch of this.#watches) clearInterval(watch);
    clearTimeout(this.#flush);
    this.#finish(this.#end ?? 'done');
  }

  #broke(side: Side): void {
    if (side === 'client') {
      this.#end = 'client-broke';
      reset(this.#upstream);
      return;
    }
    // To a goodbye a reset is an answer like any other: a server that closes without a look at TLS's close_notify resets.
    this.#end = this.#client.readableEnded ? 'done' : 'upstream-broke';
    // A server that dies in the middle of its sentence: the client still gets the beginning of it.
    this.#client.on('data', () => {});
    this.#client.resume();
    if (!this.#client.writableEnded) this.#client.end();
    // A client that is still sending would get a reset, and lose what it has not read yet.
    this.#client.once('finish', () => endLingering(this.#client));
    if (this.#client.writableFinished) endLingering(this.#client);
    this.#flush = setTimeout(() => this.#client.destroy(), FLUSH_TIMEOUT);
  }

  #stop(end: RelayEnd): void {
    this.#end ??= end;
    this.#client.destroy();
    this.#upstream.destroy();
  }

  /** Compares the byte counters now and then, so that the relay itself pays nothing for an idle limit. */
  #watchSilence(limit: number, end: RelayEnd): void {
    const ticks = 4;
    let seen = -1;
    let silent = 0;
    const watch = setInterval(
      () => {
        const total = this.#fromClient + this.#fromUpstream;
        silent = total === seen ? silent + 1 : 0;
        seen = total;
        if (silent >= ticks) this.#stop(end);
      },
      Math.max(1, limit / ticks),
    );
    watch.unref();
    this.#watches.push(watch);
  }
}

/**
 * A reset, where the transport knows one: the peer learns that the data was cut off, not finished. Under TLS the
 * missing close_notify says the same, and Node throws when a TLS socket is to be reset.
 */
function reset(socket: Socket): void {
  if (socket.remotePort === undefined || 'encrypted' in socket) socket.destroy();
  else socket.resetAndDestroy();
}
