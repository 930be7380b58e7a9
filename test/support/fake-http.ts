import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

/** A request as a fake saw it. */
export interface Seen {
  readonly method: string;
  /** With its query. */
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** What a fake answers: a status and a JSON value or a text, or `by hand` when it has done so itself, or never will. */
export type Said =
  | {
      readonly status: number;
      readonly json?: unknown;
      readonly text?: string;
      readonly headers?: Record<string, string>;
    }
  | 'by hand';

/** A FAKE of some HTTP service on loopback. */
export interface FakeHttp {
  readonly url: string;
  readonly host: string;
  readonly seen: Seen[];
  readonly stop: () => Promise<void>;
}

/** Starts one that answers as `behave` says. */
export async function fakeHttp(
  behave: (seen: Seen, response: ServerResponse, count: number) => Said | Promise<Said>,
): Promise<FakeHttp> {
  const seen: Seen[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('error', () => undefined);
    request.on('end', () => {
      const { method = '', url = '', headers } = request;
      const now: Seen = { method, path: url, headers, body: Buffer.concat(chunks).toString('latin1') };
      seen.push(now);
      void (async () => {
        const said = await behave(now, response, seen.length);
        if (said === 'by hand') return;
        const text = said.text ?? JSON.stringify(said.json ?? {});
        response.writeHead(said.status, { 'content-type': 'application/json', ...said.headers });
        response.end(text);
      })();
    });
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => undefined);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url: `http://${host}`,
    host,
    seen,
    stop: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}
