import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';

import { join, wipe } from '../../../core/bytes.ts';
import { Deadline } from '../../../core/deadline.ts';
import { dial } from '../../../core/dial.ts';
import { PosternError, reasonOf } from '../../../core/errors.ts';
import { JsonBytes } from '../../../core/json-bytes.ts';
import { startTls } from '../../../core/tls.ts';
import { Chunks } from '../chunked.ts';
import { BODY_CHUNKED, BODY_LENGTH, Head, INCOMPLETE, parseResponse } from '../head.ts';
import { responseNames } from '../names.ts';

/** A server that gives out tokens. */
export interface TokenEndpoint {
  readonly url: URL;
  /** File with the CA certificates to trust; undefined: those of the system. */
  readonly ca: string | undefined;
}

/** An answer of any status. Disposing overwrites its body. */
export interface TokenAnswer extends Disposable {
  readonly status: number;
  /** undefined: the body is no JSON object. */
  readonly json: JsonBytes | undefined;
}

/** No token endpoint says more than this. */
const LARGEST = 256 * 1024;
const LARGEST_HEAD = 32 * 1024;
/** Milliseconds for connecting, asking and the whole answer. */
const PATIENCE = 20_000;

/**
 * Sends one POST on a connection of its own and reads the whole answer. Redirects are not followed: the secret is for
 * this server. Throws PROVIDER_UNAVAILABLE when there is no answer, PROVIDER_FAILED when it is none of HTTP, and the
 * signal's reason.
 *
 * Written on the parser of the plane, because node:http and fetch take header fields as strings and keep the bytes of
 * answers where nobody can overwrite them: see docs/decisions/0005-oauth-client.md.
 */
export async function post(
  endpoint: TokenEndpoint,
  headers: readonly Buffer[],
  body: Buffer,
  signal: AbortSignal,
): Promise<TokenAnswer> {
  const { url } = endpoint;
  const late = () =>
    new PosternError('PROVIDER_UNAVAILABLE', `${url.host} gave no token within ${PATIENCE / 1000} s`);
  using deadline = new Deadline(PATIENCE, late, signal);
  const request = join([
    Buffer.from(
      `POST ${url.pathname}${url.search} HTTP/1.1\r\nHost: ${url.host}\r\nUser-Agent: postern\r\n` +
        `Accept-Encoding: identity\r\nContent-Length: ${body.length}\r\nConnection: close\r\n`,
    ),
    ...headers,
    Buffer.from('\r\n'),
    body,
  ]);
  let socket: Socket | undefined;
  const abort = () => socket?.destroy();
  deadline.signal.addEventListener('abort', abort);
  try {
    socket = await connectTo(endpoint, deadline.signal);
    deadline.signal.throwIfAborted();
    return await exchange(socket, request, url.host);
  } catch (thrown) {
    deadline.signal.throwIfAborted();
    if (thrown instanceof PosternError && thrown.code.startsWith('PROVIDER')) throw thrown;
    const why = thrown instanceof PosternError ? thrown.message : reasonOf(thrown);
    throw new PosternError('PROVIDER_UNAVAILABLE', `no token from ${url.host}: ${why}`, { cause: thrown });
  } finally {
    deadline.signal.removeEventListener('abort', abort);
    socket?.destroy();
    request.fill(0);
  }
}

async function connectTo({ url, ca }: TokenEndpoint, signal: AbortSignal): Promise<Socket> {
  const tls = url.protocol === 'https:';
  const host = url.hostname.replaceAll(/^\[|\]$/g, '');
  const port = url.port === '' ? (tls ? 443 : 80) : Number(url.port);
  const trusted = ca === undefined ? undefined : await certificatesIn(ca);
  const { socket } = await dial({ kind: 'tcp', host, port }, signal);
  if (!tls) return socket;
  return await startTls(
    socket,
    { verify: 'verify-full', serverName: host, minVersion: 'TLSv1.2', ca: trusted },
    signal,
  );
}

async function certificatesIn(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (cause) {
    throw new PosternError('PROVIDER_FAILED', `the CA file ${file} cannot be read (${reasonOf(cause)})`, {
      cause,
    });
  }
}

async function exchange(socket: Socket, request: Buffer, host: string): Promise<TokenAnswer> {
  socket.write(request);
  const reader = new AnswerReader(host);
  try {
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      const complete = reader.take(chunk);
      chunk.fill(0);
      if (complete) return complete;
    }
    return reader.end();
  } catch (error) {
    reader[Symbol.dispose]();
    throw error;
  }
}

/** Puts one answer together from the pieces in which it comes. */
class AnswerReader implements Disposable {
  readonly #host: string;
  readonly #head = new Head();
  #bytes = Buffer.allocUnsafe(16 * 1024);
  #length = 0;
  /** Where the head that is being read, or the body, begins. */
  #at = 0;
  #inBody = false;
  /** The framing has to be followed from the beginning of the body each time: it is short. */
  #chunks = new Chunks();

  constructor(host: string) {
    this.#host = host;
  }

  /** The answer, when it is complete with these bytes. */
  take(chunk: Buffer): TokenAnswer | undefined {
    this.#append(chunk);
    if (!this.#inBody && !this.#readHead()) return undefined;
    const { body, length } = this.#head;
    if (this.#head.status === 204 || this.#head.status === 304) return this.#answer([]);
    if (body === BODY_LENGTH) {
      if (length > LARGEST) throw this.#failed('answers with more than it can have to say');
      const end = this.#at + length;
      return this.#length >= end ? this.#answer([[this.#at, end]]) : undefined;
    }
    if (body !== BODY_CHUNKED) return undefined;
    const ranges: [number, number][] = [];
    this.#chunks.reset();
    this.#chunks.scan(this.#bytes, this.#at, this.#length, {
      data: (_, from, to) => ranges.push([from, to]),
    });
    if (this.#chunks.bad) throw this.#failed('answers with a body that is not HTTP');
    return this.#chunks.done ? this.#answer(ranges) : undefined;
  }

  /** The server has ended the connection. */
  end(): TokenAnswer {
    const { body } = this.#head;
    if (!this.#inBody || body === BODY_LENGTH || body === BODY_CHUNKED)
      throw new PosternError(
        'PROVIDER_UNAVAILABLE',
        `${this.#host} ended the connection before its answer was complete`,
      );
    return this.#answer([[this.#at, this.#length]]);
  }

  #append(chunk: Buffer): void {
    const needed = this.#length + chunk.length;
    if (needed > LARGEST + LARGEST_HEAD) throw this.#failed('answers with more than it can have to say');
    if (needed > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(needed, this.#bytes.length * 2));
      this.#bytes.copy(larger, 0, 0, this.#length);
      this.#bytes.fill(0);
      this.#bytes = larger;
    }
    this.#length += chunk.copy(this.#bytes, this.#length);
  }

  #readHead(): boolean {
    for (;;) {
      const end = parseResponse(this.#bytes, this.#at, this.#length, this.#head, answerNames, LARGEST_HEAD);
      if (end === INCOMPLETE) return false;
      if (end < 0) throw this.#failed('answers with what is not HTTP');
      this.#at = this.#head.end;
      if (this.#head.status >= 200) break;
    }
    this.#inBody = true;
    return true;
  }

  #answer(ranges: readonly (readonly [number, number])[]): TokenAnswer {
    const { status } = this.#head;
    const body = join(ranges.map(([from, to]) => this.#bytes.subarray(from, to)));
    this[Symbol.dispose]();
    return { status, json: objectIn(body), [Symbol.dispose]: () => wipe(body) };
  }

  #failed(what: string): PosternError {
    return new PosternError('PROVIDER_FAILED', `${this.#host} ${what}`);
  }

  [Symbol.dispose](): void {
    this.#bytes.fill(0);
  }
}

const answerNames = responseNames();

function objectIn(body: Buffer): JsonBytes | undefined {
  try {
    const json = JsonBytes.parse(body);
    return json.kind === 'object' ? json : undefined;
  } catch {
    return undefined;
  }
}

/** RFC 6749, section 5.1 says seconds as a number; some servers write them as a text. undefined: none, or no such thing. */
export function secondsIn(json: JsonBytes, name: string): number | undefined {
  const text = json.get(name)?.publicText();
  return text !== undefined && /^\d{1,12}(?:\.\d{1,6})?$/.test(text) ? Number(text) : undefined;
}

/** Milliseconds that a token is used of those that it lives: it must not end on the way. */
export function usefulLife(milliseconds: number): number {
  const margin = Math.max(30_000, milliseconds / 10);
  return Math.max(milliseconds - margin, milliseconds / 2);
}
