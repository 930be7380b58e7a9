import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

import { type Address, formatAddress } from '../core/address.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { contentTypes, formatFor, type Registry } from './registry.ts';

/** What the health endpoints ask of the running program. */
export interface Health {
  /** Why Postern does not take new sessions (starting, draining); undefined when it does. */
  notReady(): string | undefined;
  /** The state of each listener and provider, a line each, for people. Bounded in time. */
  detail(): Promise<string[]>;
}

const REQUEST_TIMEOUT = 5000;
const MOST_CONNECTIONS = 64;

/**
 * The admin listener: `/livez` (the process answers), `/startupz` and `/readyz` (it takes sessions; `?verbose` for
 * detail), `/metrics`. It shows names and numbers, never a value, and changes nothing.
 */
export class AdminServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Throws LISTEN_FAILED. */
  static async open(address: Address, health: Health, metrics: Registry): Promise<AdminServer> {
    const server = createServer(
      { requestTimeout: REQUEST_TIMEOUT, headersTimeout: REQUEST_TIMEOUT, keepAliveTimeout: REQUEST_TIMEOUT },
      (request, response) => {
        answer(request, health, metrics).then(
          ({ status, type, body }) => send(response, status, type, body),
          () => send(response, 500, 'text/plain', 'unexpected failure\n'),
        );
      },
    );
    server.maxConnections = MOST_CONNECTIONS;
    server.on('clientError', (_error, socket) => socket.destroy());
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    server.once('listening', resolve);
    server.once('error', reject);
    server.listen(
      address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port },
    );
    try {
      await promise;
    } catch (cause) {
      const message = `cannot listen on ${formatAddress(address)} for health and metrics: ${reasonOf(cause)}`;
      throw new PosternError('LISTEN_FAILED', message, { cause });
    }
    server.off('error', reject);
    server.on('error', () => {});
    return new AdminServer(server);
  }

  get address(): Address {
    const address = this.#server.address() as AddressInfo | string;
    return typeof address === 'string'
      ? { kind: 'unix', path: address }
      : { kind: 'tcp', host: address.address, port: address.port };
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

interface Answer {
  readonly status: number;
  readonly type: string;
  readonly body: string;
}

async function answer(request: IncomingMessage, health: Health, metrics: Registry): Promise<Answer> {
  const text = (status: number, body: string): Answer => ({
    status,
    type: 'text/plain; charset=utf-8',
    body,
  });
  if (request.method !== 'GET' && request.method !== 'HEAD') return text(405, 'only GET\n');
  const [path, query = ''] = (request.url ?? '').split('?', 2);
  switch (path) {
    case '/livez':
      return text(200, 'ok\n');
    case '/startupz':
    case '/readyz': {
      const why = health.notReady();
      const lines = query.split('&').includes('verbose') ? await health.detail() : [];
      return text(why === undefined ? 200 : 503, [...lines, why ?? 'ok', ''].join('\n'));
    }
    case '/metrics': {
      const format = formatFor(request.headers.accept);
      return { status: 200, type: contentTypes[format], body: metrics.text(format) };
    }
    default:
      return text(404, 'there is /livez, /startupz, /readyz and /metrics\n');
  }
}

function send(response: ServerResponse, status: number, type: string, body: string): void {
  response.writeHead(status, {
    'content-type': type,
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  });
  response.end(response.req.method === 'HEAD' ? undefined : body);
}
