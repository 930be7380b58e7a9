import type { Client } from './client.ts';
import type { Generation } from './generation.ts';
import type { Origin } from './route.ts';
import { clock, type Timed } from './timeouts.ts';
import { Upstream } from './upstream.ts';

/** The connections to one origin with one generation of one service's credentials. They are never shared beyond that. */
export class Pool implements Timed {
  /** Changes when the same credentials were fetched again. */
  generation: Generation;
  readonly origin: Origin;
  /** TLS session of the last handshake: the next one is shorter with it. */
  tlsSession: Buffer | undefined;
  /** The one used last is used next, so that the others can become idle enough to be closed. */
  readonly #idle: Upstream[] = [];
  readonly #waiting = new Set<Client>();
  #open = 0;
  #closed = false;

  constructor(generation: Generation, origin: Origin) {
    this.generation = generation;
    this.origin = origin;
  }

  /** A connection for `client`; undefined when all that there may be are in use. */
  take(client: Client): Upstream | undefined {
    const { member } = this.generation;
    let upstream = this.#idle.pop();
    if (upstream !== undefined) member.counters.upstreamReused += 1;
    else {
      if (this.#open >= member.settings.pool.maxConnections) return undefined;
      upstream = this.#connect();
    }
    upstream.client = client;
    return upstream;
  }

  /** A connection that nobody has used yet, for a request whose connection turned out to be stale. */
  takeFresh(client: Client): Upstream {
    const upstream = this.#connect();
    upstream.client = client;
    return upstream;
  }

  /** Whether there are neither connections nor requests that wait for one. */
  get unused(): boolean {
    return this.#open === 0 && this.#waiting.size === 0;
  }

  /** `client.proceed()` is called when there is a connection. Returns false when too many wait already. */
  wait(client: Client): boolean {
    if (this.#waiting.size >= this.generation.member.settings.pool.maxWaiting) return false;
    this.#waiting.add(client);
    return true;
  }

  leave(client: Client): void {
    this.#waiting.delete(client);
  }

  /** The connection has done its request and can do another one. */
  give(upstream: Upstream): void {
    upstream.client = undefined;
    upstream.used = true;
    if (this.#closed) {
      upstream.destroy();
      return;
    }
    upstream.idleSince = clock.now;
    this.#idle.push(upstream);
    this.#next();
  }

  /** The connection is closed. */
  forget(upstream: Upstream): void {
    this.#open -= 1;
    const at = this.#idle.indexOf(upstream);
    if (at >= 0) this.#idle.splice(at, 1);
    if (this.#open === 0) clock.delete(this);
    this.#next();
  }

  /** Closes the idle connections now and the others when they have done their request. */
  close(): void {
    this.#closed = true;
    this.tlsSession = undefined;
    while (this.#idle.length > 0) (this.#idle.at(-1) as Upstream).destroy();
    while (this.#waiting.size > 0) this.#next();
  }

  /** The oldest are in front. */
  onTick(now: number): void {
    const { idleTimeout } = this.generation.member.settings.pool;
    while (this.#idle.length > 0) {
      const oldest = this.#idle[0] as Upstream;
      if (now - oldest.idleSince < idleTimeout) return;
      oldest.destroy();
    }
  }

  #connect(): Upstream {
    this.generation.member.counters.upstreamOpened += 1;
    this.#open += 1;
    if (this.#open === 1) clock.add(this);
    const upstream = new Upstream(this);
    void upstream.connect();
    return upstream;
  }

  #next(): void {
    if (this.#waiting.size === 0) return;
    for (const client of this.#waiting) {
      this.#waiting.delete(client);
      if (client.proceed()) return;
    }
  }
}
