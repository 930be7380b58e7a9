import {
  Agent,
  type ClientRequest,
  type ClientRequestArgs,
  type IncomingHttpHeaders,
  type IncomingMessage,
  request as requestPlain,
} from 'node:http';
import { request as requestTls } from 'node:https';
import { connect, type NetConnectOpts, type Socket } from 'node:net';

import { reasonOf } from '../core/errors.ts';
import { refuseAborted, whyAborted } from './deadline.ts';

/** No answer with a secret in it comes near this, unless its store says so. */
const usualMaxBody = 1024 * 1024;

/** One request to a secret store. */
export interface Exchange {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH';
  readonly url: URL;
  /** Unix socket to connect to in place of the URL's host. */
  readonly socketPath: string | undefined;
  readonly agent: Agent;
  readonly headers: Readonly<Record<string, string>>;
  /** Stays the caller's, who wipes it afterwards. */
  readonly body: Buffer | undefined;
  /** Milliseconds for the whole exchange. */
  readonly timeout: number;
  /** Bytes that an answer may have, where it is not 1 MiB. */
  readonly maxBody?: number | undefined;
  /** The one Content-Encoding that the caller understands beside none. */
  readonly contentEncoding?: string | undefined;
}

/** An answer of any status; its body may hold secrets and is wiped when the answer is disposed of. */
export class Answer implements Disposable {
  readonly status: number;
  readonly location: string | undefined;
  readonly retryAfter: string | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  readonly #confidential: readonly string[];

  constructor(response: IncomingMessage, body: Buffer, sent: Exchange['headers']) {
    this.#confidential = Object.entries(sent).flatMap(([name, value]) => confidentialIn(name, value));
    this.status = response.statusCode ?? 0;
    this.location = response.headers.location;
    this.retryAfter = response.headers['retry-after'];
    this.headers = response.headers;
    this.body = body;
  }

  /**
   * Whether a line has something in it that the request said in confidence, or a piece of that: a store, or whatever
   * answers in its place, may repeat the request when it says what is wrong with it.
   */
  repeats(line: string): boolean {
    return this.#confidential.some((secret) => {
      const piece = Math.min(smallestPiece, secret.length);
      for (let at = 0; at + piece <= line.length; at++)
        if (secret.includes(line.slice(at, at + piece))) return true;
      return false;
    });
  }

  [Symbol.dispose](): void {
    this.body.fill(0);
  }
}

/** So many characters of a secret in a row are no accident. */
const smallestPiece = 12;

/** What of a header field must not be seen elsewhere. The rest of a signature (region, service) is in messages by right. */
function confidentialIn(name: string, value: string): string[] {
  const lower = name.toLowerCase();
  if (lower.endsWith('token') || lower === 'x-identity-header') return [value];
  if (lower !== 'authorization') return [];
  return [/\bSignature=(\w+)/.exec(value)?.[1] ?? value.replace(/^\w+ /, '')];
}

/** Why there is no answer: a system code, a code of Node's HTTP parser or TLS, or a few words of our own. */
export interface NoAnswer {
  readonly reason: string;
}

/**
 * Sends one request and collects its whole answer. Throws only when `signal` ends it.
 *
 * Foreign errors end here: Node's own carry the request with its headers, and a parse error carries the raw bytes
 * of the answer (`rawPacket`). Only their code goes on.
 *
 * What Postern can wipe of an answer is wiped: the chunks that the socket read, the chunks that the parser cut out
 * of them (llhttp copies), and in the end the body. Header values are strings in node:http, so a token that goes
 * into a header stays in V8's heap until it is collected.
 */
export function exchange(wanted: Exchange, signal: AbortSignal): Promise<Answer | NoAnswer> {
  refuseAborted(signal);
  const { promise, resolve, reject } = Promise.withResolvers<Answer | NoAnswer>();
  const chunks: Buffer[] = [];
  const maxBody = wanted.maxBody ?? usualMaxBody;
  let size = 0;
  let settled = false;
  let socket: Socket | undefined;

  const send = wanted.url.protocol === 'https:' ? requestTls : requestPlain;
  const request: ClientRequest = send(wanted.url, {
    method: wanted.method,
    agent: wanted.agent,
    headers: wanted.headers,
    ...(wanted.socketPath === undefined ? {} : { socketPath: wanted.socketPath }),
  });
  const timer = setTimeout(() => fail('timeout'), wanted.timeout);
  const abort = () => {
    if (!finish()) return;
    request.destroy();
    reject(whyAborted(signal, `a request to ${wanted.url.host}`));
  };
  signal.addEventListener('abort', abort);

  function finish(): boolean {
    if (settled) return false;
    settled = true;
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
    for (const chunk of chunks) chunk.fill(0);
    chunks.length = 0;
    return true;
  }

  function fail(reason: string): void {
    if (!finish()) return;
    request.destroy();
    resolve({ reason });
  }

  function take(chunk: Buffer): void {
    if (settled) {
      chunk.fill(0);
      return;
    }
    size += chunk.length;
    chunks.push(chunk);
    if (size > maxBody) fail(`the answer is larger than ${maxBody / 1024 / 1024} MiB`);
  }

  // The parser's listener was added before this one, on a fresh socket and on a reused one alike, and has copied
  // the body out of the chunk by now.
  const wipe = (chunk: Buffer) => chunk.fill(0);
  request.on('socket', (connected) => {
    socket = connected;
    socket.on('data', wipe);
  });
  request.on('response', (response) => {
    response.on('data', take);
    response.on('error', (thrown) => fail(reasonOf(thrown)));
    response.on('end', () => {
      socket?.off('data', wipe);
      if (settled) return;
      if (!response.complete) return fail('the answer ended early');
      const encoding = response.headers['content-encoding'];
      if (encoding && encoding.toLowerCase() !== wanted.contentEncoding)
        return fail('the answer is compressed');
      const body = Buffer.allocUnsafe(size);
      let at = 0;
      for (const chunk of chunks) at += chunk.copy(body, at);
      finish();
      resolve(new Answer(response, body, wanted.headers));
    });
  });
  // Also after the promise has settled: an error that nobody listens to would end the process.
  request.on('error', (thrown) => fail(reasonOf(thrown)));
  request.on('close', () => fail('the connection closed without an answer'));
  request.end(wanted.body);
  return promise;
}

/** What a socket of `PlainAgent` reads at most at once. */
const readSize = 16 * 1024;

/**
 * Connections without TLS that leave no copy of what they read. Node reads a plain socket into a fresh 64 KiB block,
 * copies out what came and frees the block as it is: the answer stays in free memory until something else is put
 * there (seen by test/providers/vault/memory.test.ts). Reading into a buffer of our own avoids the block.
 */
export class PlainAgent extends Agent {
  override createConnection(options: ClientRequestArgs): Socket {
    const socket: Socket = connect({
      ...(options as NetConnectOpts),
      onread: {
        buffer: Buffer.alloc(readSize),
        callback: (length, buffer): boolean => {
          // From the pool: V8 keeps a short one of its own on its heap, and copies it about.
          const chunk = Buffer.allocUnsafe(length);
          chunk.set(buffer.subarray(0, length));
          buffer.fill(0, 0, length);
          return socket.push(chunk);
        },
      },
    });
    return socket;
  }
}
