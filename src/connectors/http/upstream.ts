import { PosternError } from '../../core/errors.ts';
import { type ChunkData, Chunks } from './chunked.ts';
import type { Client } from './client.ts';
import { handleOf } from './direct.ts';
import { BODY_CHUNKED, BODY_CLOSE, BODY_LENGTH, BODY_NONE, Head, INCOMPLETE, parseResponse } from './head.ts';
import { Held } from './held.ts';
import { responseNames } from './names.ts';
import type { Pool } from './pool.ts';
import { reach } from './reach.ts';
import { slab } from './slab.ts';
import { SocketWire, type WireUser } from './wire.ts';

const MAX_HEAD = 64 * 1024;
/** What may come behind a head that waits, until reading has stopped. */
const MOST_BEHIND = 256 * 1024;
/** As much of a body as goes into one write with its head. */
export const INLINE = 64 * 1024;

/** Responses of the kind 1xx that one request may have. */
const MOST_INTERIMS = 256;

const CLOSE_LINE = Buffer.from('Connection: close\r\n');
const KEEP_LINE = Buffer.from('Connection: keep-alive\r\n');
/** What both sides are told of a WebSocket: our own spelling of what they said (RFC 6455). */
export const UPGRADE_LINES = Buffer.from('Connection: Upgrade\r\nUpgrade: websocket\r\n');
const CRLF = Buffer.from('\r\n');

const head = new Head();
const names = responseNames();

/** One connection to an origin: sends one request at a time and reads its response. */
export class Upstream implements WireUser, ChunkData {
  readonly pool: Pool;
  readonly wire: SocketWire;
  /** Whose request is under way. */
  client: Client | undefined;
  /** It has done a request before: then it may be stale without anybody having noticed. */
  used = false;
  /** On the plane's clock. */
  idleSince = 0;
  /** The last response leaves it fit for another request. */
  reusable = true;
  /** Bytes of a response have come. */
  heard = false;
  #inBody = false;
  /** The response is complete, while the client may still be sending the request. */
  #answered = false;
  /** Responses of the kind 1xx that have come. */
  #interims = 0;
  #body = BODY_NONE;
  #left = 0;
  readonly #chunks = new Chunks();
  /** The client knows no chunks (HTTP/1.0): it gets their data alone. */
  #unframe = false;
  #paused = false;
  #gone = false;
  #held: Held | undefined;
  readonly #connecting = new AbortController();

  constructor(pool: Pool) {
    this.pool = pool;
    this.wire = new SocketWire(this);
  }

  /** Never rejects: a failure is told to whoever waits for the response. */
  async connect(): Promise<void> {
    const { origin, generation, tlsSession } = this.pool;
    const { member, tls } = generation;
    // The generation may end, and be wiped, before the handshake has come to them.
    const [key, passphrase] = [tls.key, tls.passphrase].map((secret) => secret && Buffer.concat([secret]));
    try {
      const socket = await reach(
        origin,
        member.settings,
        { ...tls, key, passphrase, session: tlsSession },
        this.#connecting.signal,
        this.wire.onread,
      );
      socket.on('session', (session: Buffer) => {
        this.pool.tlsSession = session;
      });
      if (this.#gone) socket.destroy();
      else this.wire.attach(socket, false, member.settings.reads === 'data' ? undefined : handleOf);
    } catch (thrown) {
      if (!this.#gone) this.#fail(PosternError.from(thrown));
    } finally {
      for (const secret of [key, passphrase]) secret?.fill(0);
    }
  }

  /** Nobody reads any more from what was put so far. */
  readonly hasWritten = (): boolean => this.#gone || this.wire.backlog() === 0;

  /** The connection closed, was reset, or had garbage: whoever waits is told. */
  destroy(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.client = undefined;
    this.#held = undefined;
    this.pool.forget(this);
    this.#connecting.abort(abandoned);
    this.wire.destroy();
  }

  /** A new request was sent. */
  begin(): void {
    this.reusable = true;
    this.heard = false;
    this.#inBody = false;
    this.#answered = false;
    this.#interims = 0;
  }

  /** The client can take more. */
  resume(): void {
    if (!this.#paused || this.#held) return;
    this.#paused = false;
    this.wire.resume();
  }

  /** Goes on with a response that was held back. */
  release(): void {
    const held = this.#held;
    this.#held = undefined;
    this.resume();
    if (held) this.#read(held.bytes, 0, held.length);
  }

  onBytes(bytes: Buffer, from: number, to: number): void {
    const { client } = this;
    // Nobody asked: what came could be taken for the answer to the next request.
    if (client === undefined || this.#gone) {
      this.destroy();
      return;
    }
    if (this.#answered) {
      this.#over(client);
      return;
    }
    this.heard = true;
    client.fromUpstream += to - from;
    if (client.inTunnel) {
      client.heardUpstream();
      client.wire.put(bytes, from, to);
      this.#flow(client);
      return;
    }
    const held = this.#held;
    if (held === undefined) {
      this.#read(bytes, from, to);
      return;
    }
    held.add(bytes, from, to);
    if (held.length > MAX_HEAD + MOST_BEHIND) {
      this.#fail(garbled('head too large'));
      return;
    }
    if (this.#paused || !held.ripe(to - from)) return;
    this.#held = undefined;
    this.#read(held.bytes, 0, held.length);
  }

  onEnd(): void {
    const { client } = this;
    if (client === undefined) this.destroy();
    else if (client.inTunnel) client.wire.end();
    else if (this.#answered) this.#over(client);
    else if (this.#inBody && this.#body === BODY_CLOSE) {
      this.reusable = false;
      this.#done(client, false);
    } else this.#lost(client);
  }

  onDrain(): void {
    this.client?.upstreamDrained();
  }

  onClose(): void {
    if (this.#gone) return;
    const { client } = this;
    if (client === undefined) this.destroy();
    else if (this.#answered) this.#over(client);
    else this.#lost(client);
  }

  /** The data of a chunk, for a client that knows no chunks. */
  data(bytes: Buffer, from: number, to: number): void {
    this.client?.wire.put(bytes, from, to);
  }

  #read(bytes: Buffer, from: number, to: number): void {
    const client = this.client as Client;
    client.heardUpstream();
    while (from < to) {
      if (!this.#inBody) {
        const end = parseResponse(bytes, from, to, head, names, MAX_HEAD);
        if (end < 0) {
          this.#fail(garbled(head.reason));
          return;
        }
        if (end === INCOMPLETE) {
          this.#held = new Held(bytes, from, to);
          return;
        }
        const next = this.#respond(bytes, from, end, to, client);
        if (next < 0) return;
        from = next;
        continue;
      }
      if (this.#body === BODY_LENGTH) {
        const length = Math.min(this.#left, to - from);
        this.#left -= length;
        client.wire.put(bytes, from, from + length);
        from += length;
        if (this.#left === 0) {
          this.#done(client, from < to);
          return;
        }
      } else if (this.#body === BODY_CHUNKED) {
        const chunks = this.#chunks;
        const next = chunks.scan(bytes, from, to, this.#unframe ? this : undefined);
        if (chunks.bad) {
          this.#fail(garbled(chunks.reason));
          return;
        }
        if (!this.#unframe) {
          if (chunks.pass > from) client.wire.put(bytes, from, chunks.pass);
          if (chunks.done && chunks.closeLine) client.wire.putWhole(CRLF);
        }
        if (chunks.done) {
          this.#done(client, next < to);
          return;
        }
        from = next;
      } else {
        client.wire.put(bytes, from, to);
        from = to;
      }
      this.#flow(client);
    }
  }

  /** Passes a response's head on. Returns where its body begins, or -1 when there is nothing more to read. */
  #respond(bytes: Buffer, from: number, bodyAt: number, to: number, client: Client): number {
    const { status } = head;
    if (status < 200) return this.#interim(bytes, from, bodyAt, to, client);
    if (client.rejects(status) && client.askAgain(this)) {
      this.#held = new Held(bytes, from, to);
      this.#pause();
      return -1;
    }

    let body = head.body;
    if (client.isHead || status === 204 || status === 304) {
      // RFC 9110 8.6: a 204 has no length. Some servers say 0; anything else would be read as a body by somebody.
      if (status === 204 && (body === BODY_CHUNKED || head.length > 0)) {
        this.#fail(garbled('204 with a body'));
        return -1;
      }
      body = BODY_NONE;
    } else if (body === BODY_NONE) body = BODY_CLOSE;
    this.#body = body;
    this.#left = body === BODY_LENGTH ? head.length : 0;
    this.#unframe = body === BODY_CHUNKED && client.minor === 0;
    this.reusable = body !== BODY_CLOSE && (head.minor === 1 ? !head.close : head.keepAlive && !head.close);
    client.answered(status, body === BODY_CLOSE || this.#unframe, this.reusable);

    const inline = body === BODY_LENGTH ? Math.min(this.#left, to - bodyAt, INLINE) : 0;
    slab.begin(bodyAt - from + CLOSE_LINE.length + KEEP_LINE.length + inline);
    this.#putHead(
      bytes,
      from,
      bodyAt,
      client.keep ? (client.minor === 0 ? KEEP_LINE : undefined) : CLOSE_LINE,
    );
    if (inline > 0) slab.copy(bytes, bodyAt, bodyAt + inline);
    client.sendSlab();

    this.#left -= inline;
    this.#inBody = true;
    if (body === BODY_CHUNKED) this.#chunks.reset(names);
    const next = bodyAt + inline;
    if (body === BODY_NONE || (body === BODY_LENGTH && this.#left === 0)) {
      this.#done(client, next < to);
      return -1;
    }
    this.#flow(client);
    return next;
  }

  /** 100, 103 and the like are passed on and the response is still to come; 101 ends HTTP on this connection. */
  #interim(bytes: Buffer, from: number, bodyAt: number, to: number, client: Client): number {
    const switching = head.status === 101;
    if (head.body !== BODY_NONE || (switching && !(client.wantsUpgrade && head.upgrade))) {
      this.#fail(garbled(switching ? '101 that nobody asked for' : '1xx with a body'));
      return -1;
    }
    if (++this.#interims > MOST_INTERIMS) {
      this.#fail(garbled('too many responses of the kind 1xx'));
      return -1;
    }
    if (head.status === 100) client.expecting = false;
    // RFC 9110 15.2: HTTP/1.0 has no 1xx.
    if (client.minor === 0) return bodyAt;
    slab.begin(bodyAt - from + UPGRADE_LINES.length);
    this.#putHead(bytes, from, bodyAt, switching ? UPGRADE_LINES : undefined);
    client.sendSlab();
    this.#flow(client);
    if (!switching) return bodyAt;
    this.reusable = false;
    client.enterTunnel();
    if (bodyAt < to) client.wire.put(bytes, bodyAt, to);
    return -1;
  }

  #putHead(bytes: Buffer, from: number, bodyAt: number, extra: Buffer | undefined): void {
    const { cut, cuts } = head;
    const start = slab.at;
    let at = from;
    const echo = this.#echoed(bytes, from, bodyAt);
    if (echo || this.#unframe) at = this.#putScrubbed(bytes, from, bodyAt);
    else
      for (let i = 0; i < cuts; i += 2) {
        slab.copy(bytes, at, cut[i] as number);
        at = cut[i + 1] as number;
      }
    slab.copy(bytes, at, bodyAt - 2);
    // The version is that of whoever sends the message (RFC 9110 2.5): HTTP/1.0 would make a client close.
    slab.bytes[start + 7] = 0x31;
    if (extra !== undefined) slab.copy(extra, 0, extra.length);
    slab.byte(13);
    slab.byte(10);
  }

  /** Whether a value that was sent upstream with the request comes back in the head. */
  #echoed(bytes: Buffer, from: number, to: number): boolean {
    const { needles } = this.pool.generation;
    // A wiped one is in nothing: a newer generation is in force, and what is looked for is not known any more.
    for (let i = 0; i < needles.length; i++)
      if ((needles[i] as (typeof needles)[number]).isIn(bytes, from, to)) return true;
    return false;
  }

  /** The slow road, line by line: without those that repeat the credential, and the framing that a client does not know. */
  #putScrubbed(bytes: Buffer, from: number, bodyAt: number): number {
    const { cut, cuts } = head;
    let next = 0;
    for (let line = from; line < bodyAt - 2; ) {
      const end = line === from ? head.lineEnd : bytes.indexOf('\r\n', line, 'latin1') + 2;
      let drop = this.#echoed(bytes, line, end);
      if (line === from) {
        // The status is needed; what the server calls it is not.
        slab.copy(bytes, line, drop ? line + 12 : end - 2);
        if (drop) slab.byte(32);
        slab.copy(CRLF, 0, 2);
        line = end;
        continue;
      }
      if (next < cuts && cut[next] === line) {
        drop = true;
        next += 2;
      }
      if (this.#unframe && isTransferEncoding(bytes, line)) drop = true;
      if (!drop) slab.copy(bytes, line, end);
      line = end;
    }
    return bodyAt - 2;
  }

  #done(client: Client, surplus: boolean): void {
    this.#inBody = false;
    this.#body = BODY_NONE;
    this.#held = undefined;
    // Bytes behind the response would be taken for the answer to the next request.
    if (surplus) this.reusable = false;
    this.resume();
    this.#answered = true;
    client.finish();
  }

  /**
   * The server has answered before it had the whole request, and now it closes, or says more, which nobody asked for and a
   * client would take for the answer to its next request. The client has all it will get.
   */
  #over(client: Client): void {
    this.reusable = false;
    client.finish();
  }

  #flow(client: Client): void {
    if (!this.#paused && client.wire.full) this.#pause();
  }

  #pause(): void {
    this.#paused = true;
    this.wire.pause();
  }

  /** The connection ended where it should not. */
  #lost(client: Client): void {
    const { used, heard } = this;
    const begun = this.#inBody || client.inTunnel;
    const broke = new PosternError(
      'UPSTREAM_CLOSED',
      begun
        ? 'the server closed the connection in the middle of its response'
        : 'the server closed the connection before it answered',
    );
    this.destroy();
    if (used && !heard && client.retry(this)) return;
    client.upstreamFailed(this, broke);
  }

  #fail(error: PosternError): void {
    const { client } = this;
    this.destroy();
    client?.upstreamFailed(this, error);
  }
}

const abandoned = new PosternError('UPSTREAM_CLOSED', 'the connection is not needed any more');

function garbled(reason: string): PosternError {
  return new PosternError('UPSTREAM_PROTOCOL', `the server's response is not valid HTTP/1.1: ${reason}`);
}

function isTransferEncoding(bytes: Buffer, line: number): boolean {
  return bytes.toString('latin1', line, line + 18).toLowerCase() === 'transfer-encoding:';
}
