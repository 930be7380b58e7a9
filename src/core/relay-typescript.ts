import type { Socket } from 'node:net';

import { PosternError } from './errors.ts';
import type { Follower, Relay, RelayEnd, RelayOptions, Watch } from './relay.ts';
import { type Port, portsOf } from './relay-port.ts';
import { watchSilence } from './relay-silence.ts';
import { endLingering, type Side } from './socket.ts';

/**
 * How long a client may keep its half of a connection silently open after the server has closed the other, in
 * milliseconds. A client that waits for a server is another matter: a query may run for hours.
 */
const SERVER_GONE_TIMEOUT = 60_000;
/** How long what was already received may take to reach the client after the server broke off, in milliseconds. */
const FLUSH_TIMEOUT = 5_000;

/**
 * Passes every byte through JavaScript: for TLS, for connectors that watch or follow, and where there is no native
 * relay.
 */
export class TypeScriptRelay implements Relay {
  readonly done: Promise<RelayEnd>;
  readonly #client: Socket;
  readonly #upstream: Socket;
  readonly #clientPort: Port;
  readonly #upstreamPort: Port;
  readonly #finish: (end: RelayEnd) => void;
  #end: RelayEnd | undefined;
  #clientOpen = true;
  #upstreamOpen = true;
  #fromClient = 0;
  #fromUpstream = 0;
  /** Give up what would end the relay some day. */
  readonly #endings: (() => void)[] = [];
  readonly #watch: Watch | undefined;
  readonly #follower: Follower | undefined;
  /** Why the relay is to end as soon as nothing is under way. */
  #retiring: PosternError | undefined;
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
    // Who steps in reads and writes the sockets as everybody does.
    const documented = options.watch !== undefined;
    [this.#clientPort, this.#upstreamPort] = portsOf(client, upstream, documented);
    if (options.idleTimeout > 0) this.#watchSilence(options.idleTimeout, 'idle');
    this.#upstreamPort.saveLastWords((bytes) => {
      if (this.#steppedIn || this.#end !== undefined) return;
      this.#fromUpstream += bytes.length;
      this.#clientPort.put(bytes);
    });
    client.on('close', () => this.#closed('client'));
    upstream.on('close', () => this.#closed('upstream'));
    this.#flow();
  }

  get bytes(): { readonly fromClient: number; readonly fromUpstream: number } {
    return { fromClient: this.#fromClient, fromUpstream: this.#fromUpstream };
  }

  close(): void {
    this.#stop('closed');
  }

  retire(reason: PosternError, patience: number): void {
    if (this.#retiring) return;
    this.#retiring = reason;
    const timer = setTimeout(() => this.#stop(reason), patience).unref();
    this.#endings.push(() => clearTimeout(timer));
    this.#leaveAtRest();
  }

  #flow(): void {
    const clientPort = this.#clientPort;
    const upstreamPort = this.#upstreamPort;
    clientPort.start({
      onBytes: (bytes) => {
        this.#fromClient += bytes.length;
        if (this.#end === undefined && !this.#passToUpstream(bytes)) clientPort.pause();
      },
      onEnd: () => {
        if (this.#end === undefined) upstreamPort.end();
      },
      onDrain: () => upstreamPort.resume(),
    });
    // Whether its 'close' is over or still to come cannot be seen.
    if (this.#client.destroyed) this.#closed('client');
    upstreamPort.start({
      onBytes: (bytes) => {
        this.#fromUpstream += bytes.length;
        if (this.#end === undefined && !this.#passToClient(bytes)) upstreamPort.pause();
      },
      onEnd: () => {
        if (this.#end !== undefined) return;
        clientPort.end();
        if (!this.#client.readableEnded) this.#watchSilence(SERVER_GONE_TIMEOUT, 'done');
      },
      onDrain: () => clientPort.resume(),
    });
    if (this.#upstream.destroyed) this.#closed('upstream');
  }

  /** Returns whether the server takes more at once. */
  #passToUpstream(bytes: Buffer): boolean {
    if (this.#watch) return this.#passWatched(this.#watch, bytes);
    this.#follower?.fromClient(bytes);
    return this.#upstreamPort.put(bytes);
  }

  #passToClient(bytes: Buffer): boolean {
    if (!this.#follower) return this.#clientPort.put(bytes);
    this.#follower.fromUpstream(bytes);
    const more = this.#clientPort.put(bytes);
    if (this.#retiring) this.#leaveAtRest();
    return more;
  }

  #passWatched(watch: Watch, bytes: Buffer): boolean {
    const passing = watch.pass(bytes);
    this.#follower?.fromClient(passing);
    const more = passing.length === 0 || this.#upstreamPort.put(passing);
    const held = watch.takeHeld();
    if (!held) return more;
    this.#fromClient -= held.length;
    this.#clientPort.stop?.();
    this.#upstreamPort.stop?.();
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

  #leaveAtRest(): void {
    if (!this.#retiring || this.#end !== undefined || this.#steppedIn || !this.#follower?.atRest) return;
    // Whoever has said goodbye is about to end it anyway.
    if (this.#client.readableEnded || this.#client.destroyed || this.#upstream.destroyed) return;
    this.#end = this.#retiring;
    this.#clientPort.put(this.#follower.farewell(this.#retiring));
    this.#clientPort.endLingering();
    this.#upstreamPort.put(this.#follower.goodbye());
    this.#upstreamPort.endLingering();
  }

  #closed(side: Side): void {
    // What the connector does then fails, and it is seen.
    if (this.#steppedIn) return;
    const others = side === 'client' ? this.#upstreamOpen : this.#clientOpen;
    if (side === 'client') {
      if (!this.#clientOpen) return;
      this.#clientOpen = false;
    } else {
      if (!this.#upstreamOpen) return;
      this.#upstreamOpen = false;
    }
    const socket = side === 'client' ? this.#client : this.#upstream;
    const orderly = socket.readableEnded && socket.writableFinished;
    if (others && !orderly && this.#end === undefined) this.#broke(side);
    if (this.#clientOpen || this.#upstreamOpen) return;
    for (const giveUp of this.#endings) giveUp();
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
    this.#client.resume();
    this.#clientPort.end();
    // A client that is still sending would get a reset, and lose what it has not read yet.
    this.#client.once('finish', () => endLingering(this.#client));
    if (this.#client.writableFinished) endLingering(this.#client);
    const flush = setTimeout(() => this.#client.destroy(), FLUSH_TIMEOUT);
    this.#endings.push(() => clearTimeout(flush));
  }

  #stop(end: RelayEnd): void {
    this.#end ??= end;
    this.#client.destroy();
    this.#upstream.destroy();
  }

  #watchSilence(limit: number, end: RelayEnd): void {
    const total = () => this.#fromClient + this.#fromUpstream;
    this.#endings.push(watchSilence(limit, total, () => this.#stop(end)));
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
