import { decodeBase64 } from '../../core/bytes.ts';
import type { Member } from './member.ts';
import { Needle } from './needle.ts';
import { Pool } from './pool.ts';
import type { UpstreamTls } from './reach.ts';
import type { Origin } from './route.ts';
import type { Injection } from './schemes/scheme.ts';
import { slab } from './slab.ts';

/** What of a credential is looked for in responses has at least this many bytes: less is found by chance. */
const SHORTEST_NEEDLE = 8;
/** Where a rule allows many hosts, a client could have a pool made for each of them. */
const MOST_POOLS = 256;

/** All that belongs to one generation of a service's credentials: what goes into requests, and the connections they went over. */
export class Generation implements Disposable {
  readonly member: Member;
  readonly injection: Injection;
  /** The client certificate, with the rest of what TLS to the upstream needs; wiped with the generation. */
  readonly tls: UpstreamTls;
  /** Values that a response's head must not carry back. */
  readonly needles: readonly Needle[];
  /** It was disposed of: what goes into requests is wiped. */
  ended = false;
  #pools = new Map<string, Pool>();
  /** Most services have one origin. */
  #last: Pool | undefined;

  constructor(member: Member, injection: Injection, tls: UpstreamTls) {
    this.member = member;
    this.injection = injection;
    this.tls = tls;
    this.needles = member.settings.scrub ? needlesOf(injection) : [];
  }

  /** Whether a request shows something that a server could reject. */
  get carries(): boolean {
    const { headers, query, signer } = this.injection;
    return headers.length > 0 || query.length > 0 || signer !== undefined || this.tls.key !== undefined;
  }

  poolOf(origin: Origin): Pool {
    const last = this.#last;
    if (last !== undefined && last.origin === origin) return last;
    let pool = this.#pools.get(origin.pool);
    if (pool === undefined) {
      if (this.#pools.size >= MOST_POOLS)
        for (const [key, each] of this.#pools) if (each.unused) this.#pools.delete(key);
      pool = new Pool(this, origin);
      this.#pools.set(origin.pool, pool);
    }
    this.#last = pool;
    return pool;
  }

  /**
   * Takes the connections of the one before it over, where its credentials are the very same: they were fetched again and
   * had not changed, so it is the same generation under another name.
   */
  adopt(previous: Generation): void {
    if (!sameInjection(this.injection, previous.injection) || !sameTls(this.tls, previous.tls)) return;
    this.#pools = previous.#pools;
    previous.#pools = new Map();
    previous.#last = undefined;
    for (const pool of this.#pools.values()) pool.generation = this;
  }

  [Symbol.dispose](): void {
    this.ended = true;
    this.injection[Symbol.dispose]();
    for (const needle of this.needles) needle[Symbol.dispose]();
    for (const secret of [this.tls.key, this.tls.passphrase]) secret?.fill(0);
    const pools = [...this.#pools.values()];
    this.#pools.clear();
    this.#last = undefined;
    for (const pool of pools) pool.close();
    slab.wipe();
  }
}

function sameInjection(a: Injection, b: Injection): boolean {
  // What a signer knows cannot be seen from here.
  if (a.signer || b.signer) return false;
  return a.headers.equals(b.headers) && a.query.equals(b.query);
}

function sameTls(a: UpstreamTls, b: UpstreamTls): boolean {
  return (['ca', 'cert', 'key', 'passphrase'] as const).every((part) => {
    const [one, other] = [a[part], b[part]];
    return one && other ? one.equals(other) : one === other;
  });
}

/**
 * The secret part of what is added: of a header its value without the scheme in front (`Bearer`), of a query its values;
 * of Basic also what it encodes; of a signer what it shows. They are copies, to be wiped.
 */
function needlesOf({ headers, query, shown = [] }: Injection): Needle[] {
  const found: Needle[] = [];
  const add = (bytes: Buffer): boolean => {
    if (bytes.length < SHORTEST_NEEDLE) return false;
    found.push(new Needle(bytes));
    return true;
  };
  for (let line = 0; line < headers.length; ) {
    const end = headers.indexOf('\r\n', line, 'latin1');
    const value = headers.subarray(headers.indexOf(': ', line, 'latin1') + 2, end);
    const space = value.indexOf(0x20);
    // Where the part behind the scheme is found, so is the whole.
    if (space < 0 || !add(value.subarray(space + 1))) add(value);
    if (space > 0) {
      if (space === 5 && value.toString('latin1', 0, 5).toLowerCase() === 'basic') {
        const pair = decodeBase64(value.subarray(6));
        if (pair) add(pair.subarray(pair.indexOf(0x3a) + 1));
        pair?.fill(0);
      }
    }
    line = end + 2;
  }
  for (let at = 0; at < query.length; ) {
    const ampersand = query.indexOf(0x26, at);
    const end = ampersand < 0 ? query.length : ampersand;
    add(query.subarray(query.indexOf(0x3d, at) + 1, end));
    at = end + 1;
  }
  for (const value of shown) add(value);
  return found;
}
