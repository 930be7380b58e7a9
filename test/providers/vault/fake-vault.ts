import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

/** A request as the fake saw it. */
export interface Seen {
  readonly method: string;
  readonly path: string;
  readonly token: string | undefined;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

/** What to answer: a status and JSON, or anything by hand. undefined: as a Vault that has what is asked for. */
type Behaviour = (seen: Seen, response: ServerResponse, count: number) => Said | 'by hand' | undefined;

interface Said {
  readonly status: number;
  readonly json: unknown;
  readonly headers?: Record<string, string>;
}

/** A FAKE of Vault for the faults that a real one cannot be made to have. */
export interface FakeVault {
  readonly address: string;
  readonly seen: Seen[];
  readonly stop: () => Promise<void>;
}

/**
 * Answers mount look-ups as KV version 2 at `secret/`, and reads of it with `values`, unless `behave` has other ideas.
 * A token looks itself up beside the first request that it is used for: that is answered as for a root token, and
 * neither seen nor counted, except where `lookups` says so.
 */
export async function fakeVault(
  values: object,
  behave: Behaviour = () => undefined,
  { lookups = false } = {},
): Promise<FakeVault> {
  const seen: Seen[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const { method = '', url = '', headers } = request;
      const body = Buffer.concat(chunks).toString();
      const token = headers['x-vault-token'] as string | undefined;
      const now: Seen = { method, path: url, token, headers, body };
      if (!lookups && url.endsWith('/v1/auth/token/lookup-self')) {
        response.writeHead(200, { 'content-type': 'application/json' });
        response.end('{"data":{"ttl":0,"renewable":false,"num_uses":0}}');
        return;
      }
      seen.push(now);
      const answer = behave(now, response, seen.length) ?? usual(url, values);
      if (answer === 'by hand') return;
      const text = JSON.stringify(answer.json);
      response.writeHead(answer.status, { 'content-type': 'application/json', ...answer.headers });
      response.end(text);
    });
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => undefined);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    seen,
    stop: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

function usual(url: string, values: object): Said {
  if (url.startsWith('/v1/sys/internal/ui/mounts/')) {
    return { status: 200, json: { data: { path: 'secret/', type: 'kv', options: { version: '2' } } } };
  }
  if (url.startsWith('/v1/sys/health')) return { status: 200, json: { initialized: true, sealed: false } };
  return { status: 200, json: { data: { data: values, metadata: { version: 7, destroyed: false } } } };
}
