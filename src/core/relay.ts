import type { Socket } from 'node:net';

import { PosternError } from './errors.ts';
import { loadNative, type NativeFound } from './native.ts';
import { type NativeHandle, NativeRelays } from './relay-native.ts';
import { watchSilence } from './relay-silence.ts';
import { proveDirect } from './relay-trial.ts';
import { TypeScriptRelay } from './relay-typescript.ts';

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
 * one: it sees every byte, each of them for as long as the call.
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
 * Copies bytes both ways until both ends are done. A half-close is passed on; what a server sent before it broke
 * off still reaches the client; a client that breaks off is a reset for the server, so that it stops working.
 */
export interface Relay {
  /** Settles once both connections are closed. Never rejects. */
  readonly done: Promise<RelayEnd>;
  /** Bytes read so far from each side. */
  readonly bytes: { readonly fromClient: number; readonly fromUpstream: number };
  /** Ends the relay at once, both ends in order, nothing flushed. */
  close(): void;
  /**
   * Ends the relay as soon as nothing is under way, with a word to the client, and in any case after `patience`
   * milliseconds, then without one. A relay without a follower never knows, and has its whole patience.
   */
  retire(reason: PosternError, patience: number): void;
}

/** What relays: threads of a native addon, or JavaScript. */
export type RelayEngine = 'native' | 'typescript';

export interface RelaySettings {
  /** `auto`: native where there is a binary for this platform that works. */
  readonly engine: 'auto' | RelayEngine;
  /** How many sessions at once have two threads of their own. */
  readonly dedicatedSessions: number;
}

/**
 * The relays of a process. The native ones take plain connections into which nobody has to look; JavaScript has the rest: TLS
 * on either side, and connectors that watch or follow.
 */
export class Relays {
  readonly engine: RelayEngine;
  /** Why it is not the native one, where `auto` has looked for it. */
  readonly fellBack: string | undefined;
  readonly #native: NativeRelays | undefined;

  private constructor(native: NativeRelays | undefined, fellBack: string | undefined) {
    this.engine = native ? 'native' : 'typescript';
    this.#native = native;
    this.fellBack = fellBack;
  }

  /** Throws CONFIG_INVALID where the native engine is asked for and there is none. */
  static start({ engine, dedicatedSessions }: RelaySettings, load: () => NativeFound = loadNative): Relays {
    if (engine === 'typescript') return new Relays(undefined, undefined);
    const found = load();
    if (found.native)
      return new Relays(NativeRelays.start(found.native, { dedicated: dedicatedSessions }), undefined);
    if (engine === 'native')
      throw new PosternError('CONFIG_INVALID', `relay.engine is "native": ${found.reason}`);
    return new Relays(undefined, found.reason);
  }

  /** Relays from now on; nobody else may use the sockets any more, except a connector that steps in. */
  readonly relay = (client: Socket, upstream: Socket, options: RelayOptions): Relay => {
    const handle = options.watch || options.follower ? undefined : this.#native?.adopt(client, upstream);
    if (handle) return new NativeRelay(handle, options.idleTimeout);
    // With the first one, and not at the start: who has no need of it does not wait for it.
    void proveDirect();
    return new TypeScriptRelay(client, upstream, options);
  };

  /** Ends every native relay that is left, and its threads. */
  close(): void {
    this.#native?.stop();
  }
}

/** A relay whose bytes JavaScript does not see. */
class NativeRelay implements Relay {
  readonly done: Promise<RelayEnd>;
  readonly #handle: NativeHandle;
  #end: RelayEnd | undefined;
  #stopWatch: (() => void) | undefined;
  #patience: NodeJS.Timeout | undefined;

  constructor(handle: NativeHandle, idleTimeout: number) {
    this.#handle = handle;
    this.done = handle.ended.then(({ side }) => this.#ended(side));
    if (idleTimeout > 0)
      this.#stopWatch = watchSilence(
        idleTimeout,
        () => this.#total,
        () => this.#stop('idle'),
      );
  }

  get bytes(): Relay['bytes'] {
    return this.#handle.bytes;
  }

  close(): void {
    this.#stop('closed');
  }

  retire(reason: PosternError, patience: number): void {
    this.#patience ??= setTimeout(() => this.#stop(reason), patience).unref();
  }

  get #total(): number {
    const { fromClient, fromUpstream } = this.#handle.bytes;
    return fromClient + fromUpstream;
  }

  #stop(end: RelayEnd): void {
    this.#end ??= end;
    this.#handle.close();
  }

  #ended(side: 'none' | 'client' | 'upstream'): RelayEnd {
    clearTimeout(this.#patience);
    this.#stopWatch?.();
    if (this.#end !== undefined) return this.#end;
    return side === 'none' ? 'done' : `${side}-broke`;
  }
}
