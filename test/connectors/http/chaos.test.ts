import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { clock } from '../../../src/connectors/http/timeouts.ts';
import { leasesInUse } from '../../../src/connectors/http/wire.ts';
import { until } from '../../support/session.ts';
import { inFrontOf, secret } from './origin.ts';

const SEED = Number(process.env['POSTERN_TEST_SEED'] ?? Date.now() % 1_000_000);
const CLIENTS = 100;
const REQUESTS = Number(process.env['POSTERN_TEST_CHAOS'] ?? 1000);

/** The same numbers for the same seed (mulberry32). */
function randomness(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) % below;
  };
}

const digest = (text: string) => createHash('md5').update(text).digest('hex');

/** What the origin says of a request: only the right answer to it can be taken for one. */
const answerTo = (id: string, size: number) =>
  `${id}:${digest(id)
    .repeat(Math.ceil(size / 32))
    .slice(0, size)}`;

/** How an origin answers: with bytes, and what it does with the connection then. */
type Manner = (
  answer: string,
  random: (below: number) => number,
) => { said: string; after?: 'end' | 'reset' | 'stall' };

const length = (body: string) => `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
const chunked = (body: string) => {
  const middle = body.length >> 1;
  const pieces = [body.slice(0, middle), body.slice(middle)].filter((piece) => piece !== '');
  const framed = pieces.map((piece) => `${piece.length.toString(16)}\r\n${piece}\r\n`).join('');
  return `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${framed}0\r\n\r\n`;
};

const manners: readonly Manner[] = [
  ...Array.from({ length: 6 }, (): Manner => (answer) => ({ said: length(answer) })),
  ...Array.from({ length: 4 }, (): Manner => (answer) => ({ said: chunked(answer) })),
  (answer) => ({ said: `HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n${length(answer)}` }),
  (answer) => ({ said: length(answer), after: 'end' }),
  (answer) => ({ said: length(answer), after: 'reset' }),
  (answer) => ({ said: `HTTP/1.0 200 OK\r\n\r\n${answer}`, after: 'end' }),
  // Cut off, in whatever place.
  (answer, random) => ({ said: length(answer).slice(0, random(answer.length + 30)), after: 'end' }),
  (answer, random) => ({ said: chunked(answer).slice(0, random(answer.length + 30)), after: 'reset' }),
  (answer, random) => ({ said: length(answer).slice(0, random(answer.length + 30)), after: 'stall' }),
  // More than was asked for.
  (answer) => ({ said: `${length(answer)}${length('poison')}` }),
  (answer) => ({ said: `${chunked(answer)}poison` }),
  // Not HTTP, or not strictly.
  () => ({ said: '\x16\x03\x01\x00\xff\x00\x00garbage\r\n\r\n' }),
  (answer) => ({ said: length(answer).replaceAll('\r\n', '\n'), after: 'stall' }),
  (answer) => ({ said: chunked(answer).replace(/\r\n0\r\n\r\n$/, '\r\n-1\r\n\r\n'), after: 'stall' }),
  () => ({ said: '', after: 'reset' }),
  () => ({ said: '', after: 'stall' }),
];

/** A server of no constancy. It knows who asks, and has seen whether the credential was there. */
class Unruly implements AsyncDisposable {
  readonly #server: Server;
  readonly #random: (below: number) => number;
  readonly sockets = new Set<Socket>();
  readonly wrong: string[] = [];

  private constructor(server: Server, random: (below: number) => number) {
    this.#server = server;
    this.#random = random;
    server.on('connection', (socket) => this.#serve(socket));
  }

  static async start(random: (below: number) => number): Promise<Unruly> {
    const server = createServer({ noDelay: true });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    return new Unruly(server, random);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  #serve(socket: Socket): void {
    this.sockets.add(socket);
    socket.on('error', () => {}).on('close', () => this.sockets.delete(socket));
    let text = '';
    socket.setEncoding('latin1').on('data', (more: string) => {
      text += more;
      for (;;) {
        const end = text.indexOf('\r\n\r\n');
        if (end < 0) return;
        const head = text.slice(0, end + 4);
        const size = Number(/\r\ncontent-length: (\d+)\r\n/i.exec(head)?.[1] ?? 0);
        const inChunks = /\r\ntransfer-encoding: chunked\r\n/i.test(head);
        const close = text.indexOf('\r\n0\r\n\r\n', end);
        if (inChunks ? close < 0 : text.length < end + 4 + size) return;
        text = text.slice(inChunks ? close + 7 : end + 4 + size);
        void this.#answer(socket, head);
      }
    });
    // It may close an idle connection at any time, and at the worst one.
    if (this.#random(10) === 0) setTimeout(() => socket.destroy(), this.#random(300)).unref();
  }

  async #answer(socket: Socket, head: string): Promise<void> {
    const random = this.#random;
    const [, id = '', size = '0'] = /^\w+ \/(\S+?)\/(\d+) HTTP\/1\.1\r\n/.exec(head) ?? [];
    if (id === '' || head.split(`\r\nAuthorization: Bearer ${secret}\r\n`).length !== 2)
      this.wrong.push(head);
    const { said, after } = (manners[random(manners.length)] as Manner)(answerTo(id, Number(size)), random);
    if (random(4) === 0) await sleep(random(20));
    for (let at = 0; at < said.length && !socket.destroyed; ) {
      const next = random(3) === 0 ? at + 1 + random(2000) : said.length;
      socket.write(said.slice(at, next), 'latin1');
      at = next;
      if (at < said.length) await new Promise((resolve) => setImmediate(resolve));
    }
    if (after === 'end') socket.end();
    else if (after === 'reset') socket.resetAndDestroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }
}

type Fate = 'right' | 'refused' | 'broken' | 'left';

/** One connection of a client that is no better than the origin. Counts what became of its requests. */
async function client(
  port: number,
  name: string,
  count: number,
  random: (below: number) => number,
  fates: Map<Fate, number>,
): Promise<void> {
  const told = (fate: Fate) => fates.set(fate, (fates.get(fate) ?? 0) + 1);
  for (let number = 0; number < count; ) {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true });
    const reader = new Reader(socket);
    try {
      while (number < count && !reader.closed) {
        const ahead = 1 + (random(4) === 0 ? random(4) : 0);
        const asked = Array.from({ length: ahead }, (_, i) => ({
          id: `${name}-${number + i}`,
          size: random(8) === 0 ? random(400_000) : random(2000),
        }));
        number += ahead;
        const bytes = asked.map(({ id, size }) => requestOf(id, size, random)).join('');
        const leaves = random(12) === 0;
        const upTo = leaves ? random(bytes.length) : bytes.length;
        for (let at = 0; at < upTo; ) {
          const next = Math.min(upTo, random(3) === 0 ? at + 1 + random(500) : upTo);
          socket.write(bytes.slice(at, next), 'latin1');
          at = next;
          if (at < upTo) await new Promise((resolve) => setImmediate(resolve));
        }
        if (leaves) {
          await sleep(random(30));
          for (const _ of asked) told('left');
          if (random(2) === 0) socket.resetAndDestroy();
          else socket.destroy();
          break;
        }
        if (random(10) === 0) {
          socket.pause();
          await sleep(random(100));
          socket.resume();
        }
        for (const { id, size } of asked) {
          const answer = reader.closed ? undefined : await reader.response();
          if (answer === undefined) told('broken');
          else if (answer.status !== 200) {
            assert.ok([502, 503, 504].includes(answer.status), `${id}: ${answer.status} ${answer.body}`);
            told('refused');
          } else {
            const right = answerTo(id, size);
            // Nobody can tell whether a body is whole that only the end of the connection ends (RFC 9112 6.3).
            const good = answer.untilClose ? right.startsWith(answer.body) : answer.body === right;
            assert.ok(good, `${id} got ${answer.body.slice(0, 100)}`);
            told('right');
          }
        }
      }
    } finally {
      socket.destroy();
    }
  }
}

function requestOf(id: string, size: number, random: (below: number) => number): string {
  const line = (method: string) => `${method} /${id}/${size} HTTP/1.1\r\nHost: localhost\r\n`;
  const body = 'b'.repeat(random(5000) + 1);
  switch (random(4)) {
    case 0:
      return `${line('POST')}Content-Length: ${body.length}\r\n\r\n${body}`;
    case 1:
      return `${line('PUT')}Transfer-Encoding: chunked\r\n\r\n${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`;
    default:
      return `${line('GET')}\r\n`;
  }
}

/** Reads as a strict client does: an answer that is not whole is none. */
class Reader {
  #bytes = Buffer.alloc(0);
  closed = false;
  /** It ended in order, and not with a reset. */
  #inOrder = false;

  constructor(socket: Socket) {
    socket.on('data', (bytes: Buffer) => (this.#bytes = Buffer.concat([this.#bytes, bytes])));
    socket.on('error', () => {});
    socket.on('end', () => (this.#inOrder = true));
    socket.on('close', () => (this.closed = true));
  }

  async response(): Promise<{ status: number; body: string; untilClose?: true } | undefined> {
    for (;;) {
      const head = await this.#until('\r\n\r\n');
      if (head === undefined) return undefined;
      const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(head)?.[1] ?? assert.fail(head.slice(0, 100)));
      if (status < 200) continue;
      const size = /\r\ncontent-length: (\d+)\r\n/i.exec(head)?.[1];
      if (size !== undefined) {
        const body = await this.#take(Number(size));
        return body === undefined ? undefined : { status, body };
      }
      if (!/\r\ntransfer-encoding: chunked\r\n/i.test(head)) {
        await until('the end of a body without a length', () => this.closed);
        const body = this.#bytes.toString('latin1');
        return this.#inOrder ? { status, body, untilClose: true } : undefined;
      }
      let body = '';
      for (;;) {
        const line = await this.#until('\r\n');
        if (line === undefined) return undefined;
        const piece = await this.#take(Number.parseInt(line, 16) + 2);
        if (piece === undefined) return undefined;
        if (line.startsWith('0')) return { status, body };
        body += piece.slice(0, -2);
      }
    }
  }

  async #until(mark: string): Promise<string | undefined> {
    await until('a line', () => this.closed || this.#bytes.includes(mark));
    const at = this.#bytes.indexOf(mark);
    return at < 0 ? undefined : await this.#take(at + mark.length);
  }

  async #take(count: number): Promise<string | undefined> {
    await until(`${count} bytes`, () => this.closed || this.#bytes.length >= count);
    if (this.#bytes.length < count) return undefined;
    const taken = this.#bytes.toString('latin1', 0, count);
    this.#bytes = this.#bytes.subarray(count);
    return taken;
  }
}

for (const reads of ['onread', 'data'] as const)
  describe(`${CLIENTS} clients and an origin that do what they like, read by ${reads}`, {
    timeout: 60_000,
  }, () => {
    it('never hear the answer to another request, nor half of one that looks whole, and leave nothing behind', async (t) => {
      t.diagnostic(`POSTERN_TEST_SEED=${SEED}`);
      const random = randomness(SEED);
      await using origin = await Unruly.start(random);
      const fates = new Map<Fate, number>();
      {
        await using served = await inFrontOf(
          origin,
          {
            reads,
            timeouts: { response: '700ms', requestBody: '2s' },
            pool: { maxConnections: 60, idleTimeout: '1s' },
          },
          { maxConnections: 2 * CLIENTS, loginTimeout: 30_000 },
        );
        await Promise.all(
          Array.from({ length: CLIENTS }, (_, i) =>
            client(served.port, `c${i}`, Math.ceil(REQUESTS / CLIENTS), random, fates),
          ),
        );
        assert.deepEqual(origin.wrong, []);
        // Who did what he should is served as if nothing were.
        await until('the sessions to end', () => served.sessions.size === 0);
        assert.equal(served.admission.active, 0);
        assert.equal(await served.openSockets(), 0);
        await until('idle connections to be closed', () => origin.sockets.size === 0);
      }
      await until('the clock to stop', () => clock.size === 0);
      assert.equal(leasesInUse(), 0);
      t.diagnostic([...fates].map(([fate, count]) => `${fate}: ${count}`).join(', '));
      for (const fate of ['right', 'refused', 'broken', 'left'] as const)
        assert.ok((fates.get(fate) ?? 0) > 0, `none was ${fate}`);
    });
  });
