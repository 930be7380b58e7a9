import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { WebSocketServer } from 'ws';

import type { Leaf } from './servers/certificates.ts';

/** A request as the origin got it. */
export interface Received {
  readonly method: string;
  readonly url: string;
  readonly host: string;
  readonly authorization: string | undefined;
  readonly headers: IncomingMessage['headers'];
  readonly rawHeaders: readonly string[];
  readonly length: number;
  readonly sha256: string;
}

/** The body of `/big`: 4 MiB in which no two pages are alike. */
export const big = Buffer.alloc(4 * 1024 * 1024);
for (let at = 0; at < big.length; at += 4) big.writeUInt32BE(Math.imul(at, 2_654_435_761) >>> 0, at);

/**
 * A server that remembers what it got and answers with it (JSON). `/big` answers with `big`, `/status/N` with that status,
 * `/redirect?URL` with a redirect there, `/ws` echoes over a WebSocket.
 */
export class HttpOrigin implements AsyncDisposable {
  readonly received: Received[] = [];
  readonly #server: ReturnType<typeof createServer>;
  readonly #sockets = new Set<Socket>();
  /** Connections that were made. */
  connections = 0;
  handle: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;

  private constructor(server: ReturnType<typeof createServer>) {
    this.#server = server;
    server.on(
      'request',
      (request: IncomingMessage, response: ServerResponse) => void this.#answer(request, response),
    );
    const sockets = new WebSocketServer({ noServer: true });
    server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
      this.#remember(request, Buffer.alloc(0));
      if (request.url !== '/ws')
        return void socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n');
      sockets.handleUpgrade(request, socket, head, (each) => {
        each.on('message', (data, binary) => each.send(data, { binary }));
        each.on('error', () => {});
      });
    });
    for (const event of ['connection', 'secureConnection'])
      server.on(event, (socket: Socket) => {
        this.#sockets.add(socket);
        socket.once('close', () => this.#sockets.delete(socket));
      });
    server.on('connection', () => (this.connections += 1));
  }

  /** With a certificate it speaks TLS. */
  static async open(leaf?: Leaf, { host = '127.0.0.1' } = {}): Promise<HttpOrigin> {
    const server = leaf
      ? createTlsServer({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) })
      : createServer();
    const origin = new HttpOrigin(server as ReturnType<typeof createServer>);
    server.listen(0, host);
    await once(server, 'listening');
    return origin;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get last(): Received | undefined {
    return this.received.at(-1);
  }

  #remember(request: IncomingMessage, body: Buffer): Received {
    const received = {
      method: request.method ?? '',
      url: request.url ?? '',
      host: request.headers.host ?? '',
      authorization: request.headers.authorization,
      headers: request.headers,
      rawHeaders: request.rawHeaders,
      length: body.length,
      sha256: createHash('sha256').update(body).digest('hex'),
    };
    this.received.push(received);
    return received;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.handle?.(request, response)) return;
    const body: Buffer[] = [];
    try {
      for await (const chunk of request) body.push(chunk as Buffer);
    } catch {
      return;
    }
    const received = this.#remember(request, Buffer.concat(body));
    const { pathname, search } = new URL(received.url, 'http://origin');
    if (pathname === '/big')
      return void response.setHeader('content-type', 'application/octet-stream').end(big);
    const status = Number(/^\/status\/(\d{3})$/.exec(pathname)?.[1] ?? 200);
    if (pathname === '/redirect')
      response.writeHead(302, { location: decodeURIComponent(search.slice(1)) }).end();
    else {
      // What a careless server would do with the credential is not for the tests to see.
      const { authorization: _, headers: _headers, rawHeaders: _raw, ...shown } = received;
      {
        const text = JSON.stringify(shown);
        const length = Buffer.byteLength(text);
        response
          .writeHead(status, { 'content-type': 'application/json', 'content-length': length })
          .end(text);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await once(this.#server, 'close').catch(() => {});
  }
}
