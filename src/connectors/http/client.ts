import type { Socket } from 'node:net';

import type { KnownPassword, LocalLogin } from '../../core/access.ts';
import { Deadline } from '../../core/deadline.ts';
import { PosternError } from '../../core/errors.ts';
import type { Prepared } from '../../core/prepared.ts';
import type { Session } from '../../core/session.ts';
import { Chunks } from './chunked.ts';
import type { Generation } from './generation.ts';
import {
  BODY_CHUNKED,
  BODY_LENGTH,
  BODY_NONE,
  Head,
  INCOMPLETE,
  METHOD_CONNECT,
  METHOD_GET,
  METHOD_HEAD,
  METHOD_PATCH,
  METHOD_POST,
  METHOD_PUT,
  parseRequest,
} from './head.ts';
import { Held } from './held.ts';
import { putTarget, roomForTarget } from './inject.ts';
import { refusalOf } from './local-login.ts';
import type { Member } from './member.ts';
import { pathEnd } from './path.ts';
import type { Pool } from './pool.ts';
import { errorReply, refusal } from './replies.ts';
import type { Front, Route } from './route.ts';
import type { Signer } from './schemes/scheme.ts';
import { BODY_NEEDED, type SignedRequest, signRequest } from './signing.ts';
import { slab } from './slab.ts';
import { clock, type Timed } from './timeouts.ts';
import { INLINE, UPGRADE_LINES, type Upstream } from './upstream.ts';
import { SocketWire, type WireUser } from './wire.ts';

const MAX_HEAD = 64 * 1024;
/** Bytes that may come after a request that is under way: pipelined ones, until reading has stopped. */
const MOST_HELD = MAX_HEAD + 256 * 1024;
/** The longest request that is kept to be sent once more. */
const MOST_KEPT = 64 * 1024;
/** Room that an idle connection may hold for the next one. */
const SPARE_KEPT = 4 * 1024;
/** Larger room goes round among all connections: one that needs it has it for a request only. */
const spareRoom: Buffer[] = [];
const MOST_SPARE_ROOM = 32;
/** How long a client may take to read the end of a connection that is closed, in milliseconds. */
const CLOSING = 30_000;
/** How long one to which all has been sent may take to close its side. */
const LINGER = 1000;

const VERSION = Buffer.from(' HTTP/1.1\r\n');
const CRLF = Buffer.from('\r\n');
const CONTINUE = Buffer.from('HTTP/1.1 100 Continue\r\n\r\n');

/** Between two requests. */
const IDLE = 0;
/** A part of a head is there. */
const HEAD = 1;
/** A request waits for the credential, or for a connection. */
const WAITING = 2;
/** The body of a request is awaited that has to be signed with it. */
const COLLECTING = 3;
/** A request is under way. */
const BUSY = 4;
/** A WebSocket: bytes both ways. */
const TUNNEL = 5;
const CLOSED = 6;

const head = new Head();

/** One connection of a client: its requests one after the other, each sent upstream with the credential in it. */
export class Client implements WireUser, Timed {
  readonly wire: SocketWire;
  /** Settles when the connection is closed: rejects with what its last request failed with. */
  readonly done: Promise<void>;
  fromUpstream = 0;

  // Of the request under way.
  /** HTTP/1.`minor`. */
  minor = 1;
  isHead = false;
  wantsUpgrade = false;
  /** It has said `Expect: 100-continue` and was not told to go on. */
  expecting = false;
  /** Whether another request may follow. */
  keep = true;

  readonly #front: Front;
  readonly #session: Session;
  /** What each request has to show; not those inside of a tunnel, whose CONNECT has shown it. */
  readonly #localLogin: LocalLogin | undefined;
  readonly #settled = Promise.withResolvers<void>();
  #member: Member;
  #phase = IDLE;
  #admitted: boolean;
  /** The peer is done sending. */
  #ended = false;
  #paused = false;
  #held: Held | undefined;
  #upstream: Upstream | undefined;
  #generation: Generation | undefined;
  /** Was fetched for the request that waits, in case that it is not kept. */
  #lent: Generation | undefined;
  /** The local password, fetched for the request that waits. */
  #known: KnownPassword | undefined;
  #waitsIn: Pool | undefined;
  /** The wait for a credential. */
  #patience: Deadline | undefined;
  #body = BODY_NONE;
  #left = 0;
  readonly #chunks = new Chunks();
  /** A body that some servers do not read: what they leave unread would be their next request. */
  #suspect = false;
  /** The response's head has gone to the client. */
  #begun = false;
  /** The response is complete and the request is not. */
  #early = false;
  /** The whole request as it came, for sending it once more; `#keptLength` is 0 when it cannot be. */
  #kept: Buffer = nothing;
  #keptLength = 0;
  /** Of a body that is awaited, where its length is known; else 0. */
  #missing = 0;
  #toldToGoOn = false;
  #idempotent = false;
  /** The request is sent once more, on a connection of its own. */
  #fresh = false;
  #retried = false;
  #replayed = false;
  #again = false;
  #requests = 0;
  /** What the log will say of the request under way, where it is to say something. */
  #access: Access | undefined;
  #upstreamKey = '';
  #fromClient = 0;
  #status = 0;
  #failure: PosternError | undefined;
  /** On the plane's clock; 0: never. */
  #due: number;

  /** `admitted`: the session has its place already (inside of an intercepted connection). */
  constructor(front: Front, session: Session, admitted = false) {
    this.#front = front;
    this.#member = front.first;
    this.#session = session;
    this.#localLogin = admitted ? undefined : session.localLogin;
    this.#admitted = admitted;
    this.wire = new SocketWire(this);
    this.done = this.#settled.promise;
    this.#due = clock.now + front.first.loginTimeout;
    clock.add(this);
    session.whenEnded((error) => this.#end(error));
    session.meter(() => ({ fromClient: this.#fromClient, fromUpstream: this.fromUpstream }));
  }

  get inTunnel(): boolean {
    return this.#phase === TUNNEL;
  }

  onBytes(bytes: Buffer, from: number, to: number): void {
    if (this.#phase === CLOSED) return;
    this.#fromClient += to - from;
    if (this.#phase === TUNNEL) {
      this.#due = soon(this.#member.settings.timeouts.tunnel);
      this.#upstream?.wire.put(bytes, from, to);
      this.#flow();
      return;
    }
    const held = this.#held;
    if (held === undefined) {
      this.#run(bytes, from, to);
      return;
    }
    held.add(bytes, from, to);
    if (this.#phase === COLLECTING) {
      this.#collect(held, bytes, from, to);
      return;
    }
    if (held.length > MOST_HELD) {
      this.refuse(refusal(431, 'too much was sent ahead'));
      return;
    }
    if (this.#phase !== HEAD || !held.ripe(to - from)) return;
    this.#held = undefined;
    this.#run(held.bytes, 0, held.length);
  }

  onEnd(): void {
    this.#ended = true;
    if (this.#phase === TUNNEL) this.#upstream?.wire.end();
    else if (this.#phase === IDLE) this.#close();
    else if (this.#phase !== CLOSED) {
      // RFC 9112 9.6 lets a server go on. Nobody may be there to read it: stop the server's work, as others do.
      this.#failure ??= new PosternError(
        'CLIENT_CLOSED',
        'the client closed the connection before its response',
      );
      this.#abandon();
      this.#close();
    }
  }

  onDrain(): void {
    this.#upstream?.resume();
    if (this.#phase !== IDLE || this.#held === undefined) return;
    this.#resume();
    this.#goOn();
  }

  onClose(): void {
    if (this.#phase === IDLE && this.#requests === 0 && !this.#admitted)
      this.#failure ??= new PosternError(
        'CLIENT_CLOSED',
        'the client closed the connection without a request',
      );
    else if (this.#phase !== IDLE && this.#phase !== CLOSED && !(this.#phase === TUNNEL && this.#ended))
      this.#failure ??= new PosternError('CLIENT_CLOSED', 'the client broke off the connection');
    this.#phase = CLOSED;
    this.#abandon();
    clock.delete(this);
    if (this.#access !== undefined)
      this.#logAccess(this.#status === 101 ? '101' : (this.#failure?.code ?? 'CLIENT_CLOSED'));
    this.#session.note({
      requests: this.#requests,
      ...(this.#upstreamKey && { upstream: this.#upstreamKey }),
    });
    if (this.#failure) this.#settled.reject(this.#failure);
    else this.#settled.resolve();
  }

  onTick(now: number): void {
    if (this.#due !== 0 && now >= this.#due) this.#expire();
    else if (this.#phase === IDLE && this.#front.first.draining) this.#close();
  }

  /** There is a connection, or the pool is gone: try again. Returns whether anybody still waits here. */
  proceed(): boolean {
    if (this.#phase !== WAITING) return false;
    this.#waitsIn = undefined;
    this.#goOn();
    return true;
  }

  /** Answers the request under way, or the next one, with an error, and ends the connection. */
  refuse(error: PosternError): void {
    if (this.#phase === CLOSED) return;
    this.#failure = error;
    this.#member.counters.failed(error.code);
    if (this.#access !== undefined) this.#logAccess(error.code);
    // Of this request, and not of the one before it on the connection.
    const begun = (this.#begun && this.#phase === BUSY) || this.#phase === TUNNEL;
    this.#abandon();
    if (begun) {
      this.#phase = CLOSED;
      this.wire.reset();
      return;
    }
    const reply = errorReply(error, this.#session.id, !(this.isHead && this.#phase === BUSY));
    this.wire.putWhole(reply);
    this.#close();
  }

  // What the connection to the upstream says.

  /** Something came from it. */
  heardUpstream(): void {
    const { response, tunnel } = this.#member.settings.timeouts;
    this.#due = soon(this.#phase === TUNNEL ? tunnel : response);
  }

  /** Whether this status means that the credential was rejected. */
  rejects(status: number): boolean {
    return status >= 400 && this.#member.settings.rejected.includes(status);
  }

  /**
   * The credential was rejected: it is fetched again. Returns whether the request is to be sent once more, so that the
   * response has to be held back until it is known with what.
   */
  askAgain(upstream: Upstream): boolean {
    const { prepared } = this.#member;
    const rejected = this.#generation;
    if (rejected === undefined || !rejected.carries) return false;
    this.#failure = new PosternError('UPSTREAM_REJECTED', 'the server rejected the credential');
    if (this.#replayed) return false;
    this.#replayed = true;
    prepared.reject(rejected);
    if (this.#keptLength === 0) return false;
    this.#whenGiven(prepared, (generation) => {
      if (this.#upstream !== upstream) return;
      this.#patience = undefined;
      if (generation === undefined) {
        upstream.release();
        return;
      }
      this.#upstream = undefined;
      upstream.destroy();
      this.#member.counters.replays += 1;
      this.#failure = undefined;
      this.#lent = generation;
      this.#sendAgain();
    });
    return true;
  }

  /**
   * The response begins. `untilClose`: it ends with the connection. `takesBody`: the server goes on reading a request
   * that is not complete yet.
   */
  answered(status: number, untilClose: boolean, takesBody: boolean): void {
    this.#status = status;
    if (this.#access !== undefined) this.#access.answered = performance.now();
    this.#begun = true;
    this.#keptLength = 0;
    // The client was never told to go on: nobody knows whether its body comes (RFC 9110 10.1.1).
    const cutShort = this.#body !== BODY_NONE && (this.expecting || !takesBody);
    if (untilClose || cutShort || this.#front.first.draining || this.#session.expired) this.keep = false;
  }

  enterTunnel(): void {
    this.#phase = TUNNEL;
    this.#status = 101;
    this.#member.counters.responses[1] = (this.#member.counters.responses[1] as number) + 1;
    this.#keptLength = 0;
    this.#due = soon(this.#member.settings.timeouts.tunnel);
    this.#resume();
    const held = this.#held;
    this.#held = undefined;
    if (held) this.#upstream?.wire.put(held.bytes, 0, held.length);
  }

  /** Writes what is in the slab. */
  sendSlab(): void {
    this.wire.putWhole(slab.view());
    if (this.wire.backlog() > 0) slab.keep();
  }

  upstreamDrained(): void {
    if (this.#paused && (this.#phase === TUNNEL || this.#body !== BODY_NONE)) this.#resume();
  }

  /**
   * The response is complete. When the request is too, both connections can be used again; else the rest of it still
   * goes through, where the server wants it.
   */
  finish(): void {
    const upstream = this.#upstream as Upstream;
    if (this.#body !== BODY_NONE && upstream.reusable && this.keep) {
      this.#early = true;
      return;
    }
    this.#upstream = undefined;
    this.#generation = undefined;
    if (this.#access !== undefined) this.#logAccess(String(this.#status));
    const { responses } = this.#member.counters;
    const digit = (this.#status / 100) | 0;
    responses[digit] = (responses[digit] as number) + 1;
    const complete = this.#body === BODY_NONE;
    this.#body = BODY_NONE;
    if (complete && upstream.reusable && !this.#suspect) upstream.pool.give(upstream);
    else upstream.destroy();
    if (!complete || !this.keep || this.#ended) {
      this.#close();
      return;
    }
    if (this.#kept.length > SPARE_KEPT) this.#leaveRoom();
    this.#phase = IDLE;
    this.#due = clock.now + this.#member.settings.timeouts.keepAlive;
    if (this.#paused) this.#resume();
    this.#goOn();
  }

  /** A connection that was kept had been closed by its server. Returns whether the request is sent once more. */
  retry(upstream: Upstream): boolean {
    if (this.#upstream !== upstream || this.#keptLength === 0 || !this.#idempotent || this.#retried)
      return false;
    this.#retried = true;
    this.#fresh = true;
    this.#upstream = undefined;
    this.#member.counters.retries += 1;
    this.#sendAgain();
    return true;
  }

  upstreamFailed(upstream: Upstream, error: PosternError): void {
    if (this.#upstream !== upstream) return;
    this.#upstream = undefined;
    if (this.#phase === TUNNEL && this.#ended) this.#close();
    else this.refuse(error);
  }

  /** Gives the socket away, with what was not read. */
  #detach(unread: Buffer): Socket {
    this.#phase = CLOSED;
    clock.delete(this);
    return this.wire.detach(unread);
  }

  #run(bytes: Buffer, from: number, to: number): void {
    while (from < to && this.#phase !== CLOSED) {
      if (this.#body !== BODY_NONE && this.#phase === BUSY) {
        from = this.#onBody(bytes, from, to);
        continue;
      }
      if (this.#phase >= WAITING) {
        // Pipelined: one at a time and in order. Nothing more is read until the response is complete.
        this.#hold(bytes, from, to);
        this.#pause();
        return;
      }
      if (this.wire.full) {
        // It asks for more and does not read what it got: a page for each line that it sends ahead is too much to keep.
        this.#hold(bytes, from, to);
        this.#pause();
        this.#phase = IDLE;
        return;
      }
      if (!this.#admitted && !this.#admit()) return;
      const end = parseRequest(bytes, from, to, head, this.#front.first.names, MAX_HEAD);
      if (end < 0) {
        this.refuse(refusal(-end, head.reason));
        return;
      }
      if (end === INCOMPLETE) {
        this.#hold(bytes, from, to);
        if (this.#phase === IDLE) this.#due = clock.now + this.#front.first.loginTimeout;
        this.#phase = HEAD;
        return;
      }
      from = this.#start(bytes, from, to);
    }
  }

  #admit(): boolean {
    this.#admitted = true;
    try {
      this.#session.admit();
      return true;
    } catch (thrown) {
      this.refuse(PosternError.from(thrown));
      return false;
    }
  }

  /** Sends a request upstream. Returns how far its bytes were used. */
  #start(bytes: Buffer, from: number, to: number): number {
    const end = head.end;
    this.isHead = head.method === METHOD_HEAD;
    if (!this.#again) {
      this.#requests += 1;
      this.#failure = undefined;
      this.#retried = false;
      this.#replayed = false;
      this.#begun = false;
      this.#early = false;
      this.#toldToGoOn = false;
    }
    this.#again = true;
    if (this.#localLogin !== undefined && !this.#mayEnter(this.#localLogin, bytes, from, to)) return to;
    let route: Route;
    try {
      if (head.method === METHOD_CONNECT) return this.#connect(bytes, to);
      route = this.#front.route(bytes, head);
    } catch (thrown) {
      this.refuse(PosternError.from(thrown));
      return to;
    }
    const { member, origin } = route;
    this.#member = member;
    this.#upstreamKey = origin.key;
    if ((member.settings.accessLog || member.audit?.wanted === true) && this.#access === undefined)
      this.#noteAccess(bytes, route);
    // Another service of this listener has other fields of its own.
    if (member !== this.#front.first && parseRequest(bytes, from, to, head, member.names, MAX_HEAD) < 0) {
      this.refuse(refusal(400, head.reason));
      return to;
    }

    // While the request waited, the credential may have been replaced, or the rules have become other ones.
    const lent = this.#lent;
    const good = lent !== undefined && !lent.ended && lent.member === member;
    const generation = good ? lent : member.prepared.current;
    if (generation === undefined) {
      this.#awaitCredential(bytes, from, to);
      return to;
    }
    const { injection } = generation;
    let signed: SignedRequest | undefined;
    if (injection.signer !== undefined) {
      signed = this.#sign(injection.signer, generation, route, bytes, from, to);
      if (signed === undefined) return to;
    }
    const pool = generation.poolOf(origin);
    const upstream = this.#fresh ? pool.takeFresh(this) : pool.take(this);
    if (upstream === undefined) {
      this.#awaitPlace(pool, bytes, from, to);
      return to;
    }
    this.#lent = undefined;
    this.#fresh = false;
    this.#again = false;
    this.#generation = generation;
    this.#upstream = upstream;
    this.#phase = BUSY;

    this.minor = head.minor;
    this.keep =
      (head.minor === 1 ? !head.close : head.keepAlive && !head.close) &&
      this.#requests < this.#front.first.settings.requestsPerConnection;
    this.wantsUpgrade =
      head.upgrade && head.method === METHOD_GET && head.body === BODY_NONE && head.minor === 1;
    this.expecting = head.expect;
    this.#suspect =
      head.body !== BODY_NONE &&
      head.length !== 0 &&
      head.method !== METHOD_POST &&
      head.method !== METHOD_PUT &&
      head.method !== METHOD_PATCH;
    this.#body = head.body;
    this.#left = head.body === BODY_LENGTH ? head.length : 0;

    const { response, requestBody } = member.settings.timeouts;
    this.#idempotent = head.body === BODY_NONE && (head.method === METHOD_GET || this.isHead);
    upstream.begin();
    if (signed !== undefined) return this.#sendSigned(signed, bytes, from);

    const inline = Math.min(this.#left, to - end, INLINE);
    const next = end + inline;
    slab.begin(
      next -
        from +
        roomForTarget(route.prefix, injection) +
        VERSION.length +
        origin.hostLine.length +
        injection.headers.length +
        UPGRADE_LINES.length,
    );
    slab.copy(bytes, head.methodAt, head.methodEnd + 1);
    putTarget(bytes, route.targetAt, head.targetEnd, route.prefix, injection, member.scheme.ownedQuery);
    slab.copy(VERSION, 0, VERSION.length);
    slab.copy(origin.hostLine, 0, origin.hostLine.length);
    slab.copy(injection.headers, 0, injection.headers.length);
    let at = head.lineEnd;
    const { cut, cuts } = head;
    for (let i = 0; i < cuts; i += 2) {
      slab.copy(bytes, at, cut[i] as number);
      at = cut[i + 1] as number;
    }
    slab.copy(bytes, at, end - 2);
    if (this.wantsUpgrade) slab.copy(UPGRADE_LINES, 0, UPGRADE_LINES.length);
    slab.copy(CRLF, 0, 2);
    slab.copy(bytes, end, next);

    if (this.#body === BODY_LENGTH) {
      this.#left -= inline;
      if (this.#left === 0) this.#body = BODY_NONE;
    } else if (this.#body === BODY_CHUNKED) this.#chunks.reset(member.names);
    this.#keep(bytes, from, next, MOST_KEPT);
    this.#due = soon(this.#body === BODY_NONE ? response : requestBody);
    upstream.wire.putWhole(slab.view());
    if (upstream.wire.backlog() > 0) slab.keepSecret(upstream.hasWritten);
    return next;
  }

  /** Returns undefined where the request has to wait for its body, or was refused. */
  #sign(
    signer: Signer,
    generation: Generation,
    route: Route,
    bytes: Buffer,
    from: number,
    to: number,
  ): SignedRequest | undefined {
    try {
      const signed = signRequest(signer, bytes, to, head, route, generation);
      if (signed !== BODY_NEEDED) return signed;
      this.#phase = COLLECTING;
      // Nobody else can tell the client to go on: the server knows nothing of the request yet.
      if (head.expect && !this.#toldToGoOn) this.wire.putWhole(CONTINUE);
      this.#toldToGoOn = true;
      this.#missing = head.body === BODY_LENGTH ? head.length - (to - head.end) : 0;
      if (head.body === BODY_CHUNKED) {
        this.#chunks.reset(this.#member.names);
        this.#chunks.scan(bytes, head.end, to);
      }
      this.#hold(bytes, from, to);
      this.#due = soon(this.#member.settings.timeouts.requestBody);
    } catch (thrown) {
      this.refuse(PosternError.from(thrown));
    }
    return undefined;
  }

  /** More of a body that has to be seen whole. Asks again when it is there, or too long, or wrong. */
  #collect(held: Held, bytes: Buffer, from: number, to: number): void {
    const { bufferLimit, timeouts } = this.#member.settings;
    this.#due = soon(timeouts.requestBody);
    const length = this.#missing > 0;
    if (length) this.#missing -= to - from;
    else this.#chunks.scan(bytes, from, to);
    const there = length ? this.#missing <= 0 : this.#chunks.done || this.#chunks.bad;
    if (!there && held.length <= bufferLimit + MAX_HEAD) return;
    this.#phase = IDLE;
    this.#held = undefined;
    this.#run(held.bytes, 0, held.length);
  }

  #sendSigned(signed: SignedRequest, bytes: Buffer, from: number): number {
    const { wire } = this.#upstream as Upstream;
    const { response, requestBody } = this.#member.settings.timeouts;
    if (signed.body !== undefined) this.#body = BODY_NONE;
    else if (this.#body === BODY_CHUNKED) this.#chunks.reset(this.#member.names);
    else if (this.#left === 0) this.#body = BODY_NONE;
    this.#keep(bytes, from, signed.next, this.#member.settings.bufferLimit + MAX_HEAD);
    this.#due = soon(this.#body === BODY_NONE ? response : requestBody);
    wire.putWhole(signed.head);
    if (signed.body !== undefined && signed.body.length > 0) wire.putWhole(signed.body);
    return signed.next;
  }

  /** The path without the query, which may hold what is nobody's business; no fields. */
  #noteAccess(bytes: Buffer, { member, origin, targetAt }: Route): void {
    const { remoteAddress, remotePort } = this.#session.client;
    this.#access = {
      member,
      client: remoteAddress === undefined ? 'unix' : `${remoteAddress}:${remotePort}`,
      method: bytes.toString('latin1', head.methodAt, head.methodEnd),
      path: bytes.toString('latin1', targetAt, pathEnd(bytes, targetAt, head.targetEnd)) || '/',
      upstream: origin.key,
      began: performance.now(),
      answered: 0,
      fromClient: this.#fromClient,
      fromUpstream: this.fromUpstream,
    };
  }

  /** `outcome`: the status that the server answered with, or a code of docs/errors.md. */
  #logAccess(outcome: string): void {
    const access = this.#access as Access;
    this.#access = undefined;
    const { member, client, method, path, upstream, began, answered } = access;
    const { audit, settings, name } = member;
    const facts = {
      method,
      path,
      upstream,
      outcome,
      ...(answered > 0 && { answeredMs: Math.round(answered - began) }),
      durationMs: Math.round(performance.now() - began),
      bytesFromClient: this.#fromClient - access.fromClient,
      bytesFromUpstream: this.fromUpstream - access.fromUpstream,
    };
    if (audit?.wanted === true) audit.ended(this.#session.id, client, facts);
    if (!settings.accessLog) return;
    const other = name === this.#front.first.name ? {} : { member: name };
    this.#session.log.info({ ...other, ...facts }, 'request');
  }

  /** Keeps a whole request, in case that it has to be sent once more. */
  #keep(bytes: Buffer, from: number, to: number, most: number): void {
    const length = to - from;
    this.#keptLength = 0;
    if (this.#body !== BODY_NONE || length > most) return;
    this.#keptLength = length;
    if (bytes === this.#kept) return;
    if (length > this.#kept.length) this.#kept = roomFor(length);
    bytes.copy(this.#kept, 0, from, to);
  }

  #leaveRoom(): void {
    if (this.#kept.length === MOST_KEPT && spareRoom.length < MOST_SPARE_ROOM) spareRoom.push(this.#kept);
    this.#kept = nothing;
  }

  #sendAgain(): void {
    this.#again = true;
    this.#phase = IDLE;
    this.#run(this.#kept, 0, this.#keptLength);
  }

  #onBody(bytes: Buffer, from: number, to: number): number {
    const upstream = this.#upstream as Upstream;
    const { response, requestBody } = this.#member.settings.timeouts;
    let next: number;
    if (this.#body === BODY_LENGTH) {
      const length = Math.min(this.#left, to - from);
      this.#left -= length;
      if (this.#left === 0) this.#body = BODY_NONE;
      next = from + length;
      upstream.wire.put(bytes, from, next);
    } else {
      const chunks = this.#chunks;
      next = chunks.scan(bytes, from, to);
      if (chunks.bad) {
        this.refuse(refusal(400, chunks.reason));
        return to;
      }
      if (chunks.pass > from) upstream.wire.put(bytes, from, chunks.pass);
      if (chunks.done) {
        if (chunks.closeLine) upstream.wire.putWhole(CRLF);
        this.#body = BODY_NONE;
      }
    }
    this.#due = soon(this.#body === BODY_NONE ? response : requestBody);
    this.#flow();
    if (this.#body === BODY_NONE && this.#early) {
      this.#early = false;
      this.finish();
    }
    return next;
  }

  #connect(bytes: Buffer, to: number): number {
    const authority = bytes.toString('latin1', head.targetAt, head.targetEnd);
    const unread = Buffer.from(bytes.subarray(head.end, to));
    if (!this.#front.connect) throw refusal(501, 'CONNECT is not served here');
    const serve = this.#front.connect(authority, this.#session);
    serve(this.#detach(unread), this.#session).then(this.#settled.resolve, this.#settled.reject);
    return to;
  }

  /** Whether the request shows the local password; where it does not it is answered, and where that has to be fetched it waits. */
  #mayEnter(login: LocalLogin, bytes: Buffer, from: number, to: number): boolean {
    const known = this.#known ?? login.password.current;
    this.#known = undefined;
    if (known === undefined) {
      this.#wait(bytes, from, to);
      this.#due = 0;
      this.#whenGiven(login.password, (password, error) => {
        this.#known = password;
        if (error) this.refuse(error);
        else this.#goOn();
      });
      return false;
    }
    const refused = refusalOf(login, known, bytes, head);
    if (refused) this.refuse(refused);
    return refused === undefined;
  }

  #awaitCredential(bytes: Buffer, from: number, to: number): void {
    this.#wait(bytes, from, to);
    this.#due = 0;
    this.#whenGiven(this.#member.prepared, (generation, error) => {
      this.#lent = generation;
      if (error) this.refuse(error);
      else this.#goOn();
    });
  }

  /** Calls `then` unless the connection has ended meanwhile. */
  #whenGiven<Value extends Disposable>(
    prepared: Prepared<Value>,
    then: (value: Value | undefined, error?: PosternError) => void,
  ): void {
    const { loginTimeout } = this.#member;
    const late = () =>
      new PosternError('TIMEOUT', `the credential took longer than ${loginTimeout / 1000} s`);
    const patience = new Deadline(loginTimeout, late);
    this.#patience = patience;
    prepared.get(patience.signal).then(
      (value) => this.#prepared(patience, () => then(value)),
      (thrown: unknown) => this.#prepared(patience, () => then(undefined, PosternError.from(thrown))),
    );
  }

  #prepared(patience: Deadline, then: () => void): void {
    patience[Symbol.dispose]();
    if (this.#patience !== patience) return;
    this.#patience = undefined;
    if (this.#phase !== CLOSED) then();
  }

  #awaitPlace(pool: Pool, bytes: Buffer, from: number, to: number): void {
    this.#wait(bytes, from, to);
    this.#due = clock.now + this.#member.loginTimeout;
    if (pool.wait(this)) this.#waitsIn = pool;
    else this.refuse(new PosternError('LIMIT_REACHED', 'too many requests wait for a connection'));
  }

  #wait(bytes: Buffer, from: number, to: number): void {
    this.#phase = WAITING;
    this.#hold(bytes, from, to);
    this.#pause();
  }

  #goOn(): void {
    const held = this.#held;
    this.#held = undefined;
    if (this.#phase === WAITING) {
      this.#phase = IDLE;
      this.#resume();
    }
    if (held) this.#run(held.bytes, 0, held.length);
  }

  /** In front of what is held already, if there is something. */
  #hold(bytes: Buffer, from: number, to: number): void {
    const behind = this.#held;
    this.#held = new Held(bytes, from, to);
    if (behind) this.#held.add(behind.bytes, 0, behind.length);
  }

  #flow(): void {
    if (!this.#paused && this.#upstream?.wire.full) this.#pause();
  }

  #pause(): void {
    if (this.#paused) return;
    this.#paused = true;
    this.wire.pause();
  }

  #resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.wire.resume();
  }

  /** Gives up what is under way upstream. */
  #abandon(): void {
    const upstream = this.#upstream;
    this.#upstream = undefined;
    upstream?.destroy();
    this.#generation = undefined;
    this.#lent = undefined;
    this.#waitsIn?.leave(this);
    this.#waitsIn = undefined;
    const patience = this.#patience;
    this.#patience = undefined;
    patience?.abort(gone);
    patience?.[Symbol.dispose]();
  }

  #close(): void {
    if (this.#phase === CLOSED) return;
    this.#phase = CLOSED;
    this.#held = undefined;
    this.#leaveRoom();
    this.#due = clock.now + (this.wire.backlog() === 0 ? LINGER : CLOSING);
    this.wire.endLingering();
  }

  /** Postern ends the session. */
  #end(error: PosternError): void {
    if (this.#phase === IDLE) this.#close();
    else this.refuse(error);
  }

  #expire(): void {
    this.#due = 0;
    switch (this.#phase) {
      case IDLE:
        if (this.#requests > 0) return this.#close();
        return this.refuse(refusal(408, 'no request came in time', 'TIMEOUT'));
      case HEAD:
        return this.refuse(refusal(408, 'the head of the request did not come in time', 'TIMEOUT'));
      case COLLECTING:
        return this.refuse(refusal(408, 'the body of the request did not come in time', 'TIMEOUT'));
      case WAITING:
        return this.refuse(new PosternError('TIMEOUT', 'no connection to the server became free in time'));
      case BUSY:
        if (this.#body !== BODY_NONE && !this.#paused)
          return this.refuse(refusal(408, 'the body of the request did not come in time', 'TIMEOUT'));
        if (this.#begun && this.wire.backlog() > 0)
          return this.refuse(new PosternError('TIMEOUT', 'the client did not take its response in time'));
        return this.refuse(new PosternError('TIMEOUT', 'the server did not answer in time'));
      case TUNNEL:
        return this.refuse(new PosternError('TIMEOUT', 'the connection was idle for too long'));
      case CLOSED:
        return this.wire.destroy();
    }
  }
}

interface Access {
  readonly member: Member;
  readonly client: string;
  readonly method: string;
  readonly path: string;
  readonly upstream: string;
  /** Of performance.now(). */
  readonly began: number;
  /** 0: not yet. */
  answered: number;
  readonly fromClient: number;
  readonly fromUpstream: number;
}

const nothing = Buffer.alloc(0);

function roomFor(length: number): Buffer {
  const exact = 2 ** Math.ceil(Math.log2(length));
  if (exact <= SPARE_KEPT || exact > MOST_KEPT) return Buffer.allocUnsafeSlow(Math.max(512, exact));
  return spareRoom.pop() ?? Buffer.allocUnsafeSlow(MOST_KEPT);
}

const gone = new PosternError('CLIENT_CLOSED', 'the client closed the connection');

/** When a timeout of so many milliseconds from now is over; 0 ms is no timeout. */
function soon(milliseconds: number): number {
  return milliseconds === 0 ? 0 : clock.now + milliseconds;
}
