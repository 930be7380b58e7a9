import { Socket } from 'node:net';

import { descriptorOf, type Native, type NativeEngine, type NativeEvent } from './native.ts';
import { watchSilence } from './relay-silence.ts';

/** A session that the addon relays. */
export interface NativeHandle {
  /** Settles once both descriptors are closed: which end broke off, if any, and with what error of the system. Never rejects. */
  readonly ended: Promise<{ readonly side: 'none' | 'client' | 'upstream'; readonly errno: number }>;
  /** Bytes read so far from each side. */
  readonly bytes: { readonly fromClient: number; readonly fromUpstream: number };
  /** Ends both connections at once, in order, nothing flushed. */
  close(): void;
}

/**
 * How long a client may keep its half of a connection silently open after the server has closed the other, in
 * milliseconds: as in the relay of TypeScript.
 */
const SERVER_GONE_TIMEOUT = 60_000;
/** How long what was already received may take to reach the client after the server broke off, in milliseconds. */
const FLUSH_TIMEOUT = 5_000;
/** How long a server that does not read may take to notice that its client is gone, in milliseconds. */
const RESET_TIMEOUT = 1_000;

/** Relays on threads of the addon: after the login no byte passes through JavaScript. */
export class NativeRelays {
  readonly #engine: NativeEngine;
  readonly #live = new Map<number, Handed>();
  /** Sessions keep the process alive as sockets do; the addon's threads do not. */
  #alive: NodeJS.Timeout | undefined;

  private constructor(native: Native, dedicated: number) {
    this.#engine = new native.Relays(dedicated, () => this.#takeEvents());
  }

  /** Starts the thread for the many; `dedicated` sessions at once get two threads each, which is faster and costs memory. */
  static start(native: Native, options: { readonly dedicated: number }): NativeRelays {
    return new NativeRelays(native, options.dedicated);
  }

  /**
   * Takes both connections over, and destroys the sockets without a word to their peers. Whoever called must have taken its
   * listeners off: what the sockets hold unread is sent first. Undefined, and nothing changed, when they cannot be handed
   * over: not plain sockets, no longer open, or with bytes to write.
   */
  adopt(client: Socket, upstream: Socket): NativeHandle | undefined {
    const clientFd = descriptorToHandOver(client);
    const upstreamFd = descriptorToHandOver(upstream);
    if (clientFd === undefined || upstreamFd === undefined) return undefined;
    // From here to destroy() in one go: Node must not read again in between, or those bytes would be lost.
    const fromClient = client.read() as Buffer | null;
    const fromUpstream = upstream.read() as Buffer | null;
    let id: number;
    try {
      id = this.#engine.relay(clientFd, upstreamFd, fromClient, fromUpstream);
    } catch {
      // No descriptor or no memory left: what Node does needs neither.
      if (fromClient) client.unshift(fromClient);
      if (fromUpstream) upstream.unshift(fromUpstream);
      return undefined;
    }
    // The duplicate keeps the connection open, so this sends nothing; end() would send a FIN.
    client.destroy();
    upstream.destroy();
    const handed = new Handed(this.#engine, id);
    this.#live.set(id, handed);
    this.#alive ??= setInterval(() => {}, 2 ** 30);
    return handed;
  }

  /** Ends every session and the threads. */
  stop(): void {
    this.#engine.stop();
    this.#takeEvents();
  }

  #takeEvents(): void {
    for (const event of this.#engine.take()) {
      const handed = this.#live.get(event.id);
      if (event.kind === 'upstreamEnded') handed?.watchSilence();
      else if (event.kind === 'broke')
        handed?.closeAfter(event.side === 'client' ? RESET_TIMEOUT : FLUSH_TIMEOUT);
      else {
        this.#live.delete(event.id);
        handed?.end(event);
      }
    }
    if (this.#live.size > 0) return;
    clearInterval(this.#alive);
    this.#alive = undefined;
  }
}

function descriptorToHandOver(socket: Socket): number | undefined {
  // Node's own queue of writes, and a FIN that waits behind it, could not be handed over. Nor could what a subclass does: TLS.
  if (Object.getPrototypeOf(socket) !== Socket.prototype || 'encrypted' in socket) return undefined;
  if (socket.destroyed || socket.connecting || socket.writableLength > 0 || socket.writableEnded)
    return undefined;
  return descriptorOf(socket);
}

class Handed implements NativeHandle {
  readonly ended: NativeHandle['ended'];
  readonly #engine: NativeEngine;
  readonly #id: number;
  readonly #settle: (end: Awaited<NativeHandle['ended']>) => void;
  #final: NativeHandle['bytes'] | undefined;
  #stopWatch: (() => void) | undefined;
  #patience: NodeJS.Timeout | undefined;

  constructor(engine: NativeEngine, id: number) {
    this.#engine = engine;
    this.#id = id;
    const { promise, resolve } = Promise.withResolvers<Awaited<NativeHandle['ended']>>();
    this.ended = promise;
    this.#settle = resolve;
  }

  get bytes(): NativeHandle['bytes'] {
    if (this.#final) return this.#final;
    const [fromClient, fromUpstream] = this.#engine.bytes(this.#id) ?? [0, 0];
    return { fromClient, fromUpstream };
  }

  close(): void {
    this.#engine.close(this.#id);
  }

  end({ side, errno, fromClient, fromUpstream }: NativeEvent): void {
    this.#stopWatch?.();
    clearTimeout(this.#patience);
    this.#final = { fromClient, fromUpstream };
    this.#settle({ side, errno });
  }

  closeAfter(milliseconds: number): void {
    this.#patience ??= setTimeout(() => this.close(), milliseconds).unref();
  }

  /** Whoever waits for a server waits for nothing now. */
  watchSilence(): void {
    const total = () => this.bytes.fromClient + this.bytes.fromUpstream;
    this.#stopWatch ??= watchSilence(SERVER_GONE_TIMEOUT, total, () => this.close());
  }
}
