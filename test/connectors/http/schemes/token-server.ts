import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { createServer as createRawServer } from 'node:net';

import { certificates } from '../../../support/servers/certificates.ts';

/** What a client asked. */
export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: string;
}

export interface Said {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** An object is written as JSON. */
  readonly body?: unknown;
  /** Milliseconds. */
  readonly after?: number;
}

/** A server that gives out tokens, over TLS with a certificate for localhost. */
export class TokenServer implements AsyncDisposable {
  readonly asked: Asked[] = [];
  readonly ca: string;
  readonly #server: Server;

  private constructor(server: Server, ca: string) {
    this.#server = server;
    this.ca = ca;
  }

  static async start(answer: (asked: Asked, nth: number) => Said | Promise<Said>): Promise<TokenServer> {
    const { server: leaf, ca } = await certificates();
    const server = createServer({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) });
    const self = new TokenServer(server, ca);
    server.on('request', (request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const { method = '', url = '', headers } = request;
        const asked = { method, path: url, headers, body: Buffer.concat(chunks).toString() };
        self.asked.push(asked);
        void Promise.resolve(answer(asked, self.asked.length)).then(async (said) => {
          if (said.after) await new Promise((resolve) => setTimeout(resolve, said.after));
          response.writeHead(said.status ?? 200, { 'content-type': 'application/json', ...said.headers });
          response.end(typeof said.body === 'string' ? said.body : JSON.stringify(said.body ?? {}));
        });
      });
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return self;
  }

  get url(): string {
    return `https://localhost:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, 'close');
  }
}

/** A server without TLS that says these bytes to whoever connects, and ends unless told otherwise. */
export async function saying(
  bytes: string,
  { end = true, pieces = bytes.length }: { readonly end?: boolean; readonly pieces?: number } = {},
): Promise<{ readonly url: string } & AsyncDisposable> {
  const server = createRawServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      void (async () => {
        for (let at = 0; at < bytes.length; at += pieces) {
          socket.write(bytes.slice(at, at + pieces));
          await new Promise((resolve) => setImmediate(resolve));
        }
        if (end) socket.end();
      })();
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      server.close();
      await once(server, 'close');
    },
  };
}
