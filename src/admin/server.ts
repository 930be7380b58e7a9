import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { type AddressInfo, isIP } from 'node:net';

import type { Address } from '../core/address.ts';
import { listening } from '../core/listening.ts';
import { type Health, healthJson, healthText } from './health.ts';
import { contentTypes, formatFor } from './registry.ts';
import { type Operation, statusOf } from './status.ts';

/** What the admin listener serves, and to whom. */
export interface AdminOptions {
  readonly health: Health;
  readonly operation: Operation;
  /** Names by which it may be called, beside addresses, `localhost` and the host it listens on. */
  readonly hosts: readonly string[];
  /** Ends Postern in order; undefined: nobody may ask for that. */
  readonly quit: (() => void) | undefined;
}

const REQUEST_TIMEOUT = 5000;
const MOST_CONNECTIONS = 64;

/**
 * The admin listener: `/livez` (the process answers), `/startupz` and `/readyz` (it takes sessions; `?verbose` for
 * detail), `/metrics`, `/status` and a page of that for people. It shows names and numbers, never a value, and changes
 * nothing, but for `POST /quit` where the configuration allows that.
 */
export class AdminServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Throws LISTEN_FAILED. */
  static async open(address: Address, options: AdminOptions): Promise<AdminServer> {
    // An import of node:http as an ES module loads what only fetch and WebSocket need, and takes 17 MB for 3.5.
    const { createServer } = process.getBuiltinModule('node:http');
    const mayBeCalled = hostCheck(address, options.hosts);
    const server = createServer(
      { requestTimeout: REQUEST_TIMEOUT, headersTimeout: REQUEST_TIMEOUT, keepAliveTimeout: REQUEST_TIMEOUT },
      (request, response) => {
        const answered = mayBeCalled(request.headers.host) ? answer(request, options) : misdirected();
        answered.then(
          (ready) => send(response, ready),
          () => send(response, text(500, 'unexpected failure\n')),
        );
      },
    );
    server.maxConnections = MOST_CONNECTIONS;
    server.on('clientError', (_error, socket) => socket.destroy());
    await listening(server, address, 'health and metrics');
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
  readonly headers?: Readonly<Record<string, string>>;
  /** Done when the answer has been sent. */
  readonly afterwards?: () => void;
}

function text(status: number, body: string, more: Pick<Answer, 'headers' | 'afterwards'> = {}): Answer {
  return { status, type: 'text/plain; charset=utf-8', body, ...more };
}

function json(status: number, body: string): Answer {
  return { status, type: 'application/json; charset=utf-8', body };
}

/**
 * A page of another origin reaches this port when its own name is made to lead to this machine (DNS rebinding): its
 * requests then carry that name. An address cannot be bent so, and no browser reaches a unix socket.
 */
function hostCheck(address: Address, hosts: readonly string[]): (host: string | undefined) => boolean {
  if (address.kind === 'unix') return () => true;
  const names = new Set(['localhost', address.host, ...hosts].map((name) => name.toLowerCase()));
  return (host) => {
    // Every browser sends one; HTTP/1.0 has none.
    if (host === undefined) return true;
    const [, bracketed, bare = ''] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d+)?$/.exec(host.toLowerCase()) ?? [];
    const name = bracketed ?? bare;
    return isIP(name) !== 0 || names.has(name.replace(/\.$/, ''));
  };
}

async function misdirected(): Promise<Answer> {
  return text(421, 'this listener does not go by that name: call it by its address, or see admin.hosts\n');
}

async function answer(request: IncomingMessage, options: AdminOptions): Promise<Answer> {
  const [path = '', query = ''] = (request.url ?? '').split('?', 2);
  if (path === '/quit') return quit(request, options);
  if (request.method !== 'GET' && request.method !== 'HEAD')
    return text(405, 'only GET\n', { headers: { allow: 'GET, HEAD' } });
  switch (path) {
    case '/livez':
      return text(200, 'ok\n');
    case '/startupz':
    case '/readyz':
      return await probed(request, new URLSearchParams(query), options.health);
    case '/metrics': {
      const format = formatFor(request.headers.accept);
      const body = options.operation.metrics.registry.text(format);
      return { status: 200, type: contentTypes[format], body, headers: { vary: 'accept' } };
    }
    case '/status':
      return json(200, `${JSON.stringify(statusOf(options.operation))}\n`);
    case '/': {
      // Only who looks at the page loads it.
      const { statusPage, statusParts } = await import('./page.ts');
      if (query === 'parts')
        return {
          status: 200,
          type: 'text/html; charset=utf-8',
          body: statusParts(statusOf(options.operation)),
        };
      const { html, policy } = statusPage(statusOf(options.operation));
      return {
        status: 200,
        type: 'text/html; charset=utf-8',
        body: html,
        headers: { 'content-security-policy': policy },
      };
    }
    default:
      return text(404, 'there is /, /livez, /startupz, /readyz, /metrics and /status\n');
  }
}

async function probed(request: IncomingMessage, query: URLSearchParams, health: Health): Promise<Answer> {
  const why = health.notReady();
  const status = why === undefined ? 200 : 503;
  const found = query.has('verbose') ? await health.detail() : undefined;
  const asJson = query.get('format') === 'json' || request.headers.accept?.includes('application/json');
  return asJson ? json(status, healthJson(why, found)) : text(status, healthText(why, found));
}

/**
 * Ends Postern. A browser sends a header field of its own, or the type of JSON, to another origin only after it has asked
 * there (CORS), which nobody here answers; and it says where a request comes from.
 */
function quit({ method, headers }: IncomingMessage, options: AdminOptions): Answer {
  const { quit: end } = options;
  if (!end) return text(404, 'say `admin: { quit: true }` in the configuration to allow this\n');
  if (method !== 'POST') return text(405, 'only POST\n', { headers: { allow: 'POST' } });
  const meant =
    headers['x-postern'] === 'quit' || /^application\/json\s*(;|$)/i.test(headers['content-type'] ?? '');
  if (!meant || headers.origin !== undefined)
    return text(403, 'send the header field `x-postern: quit`, and not from a web page\n');
  return text(202, 'stopping\n', { headers: { connection: 'close' }, afterwards: end });
}

function send(response: ServerResponse, { status, type, body, headers, afterwards }: Answer): void {
  response.writeHead(status, {
    'content-type': type,
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    'cross-origin-resource-policy': 'same-origin',
    'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
    ...headers,
  });
  // Also when whoever asked does not wait for the answer.
  if (afterwards) response.once('close', afterwards);
  response.end(response.req.method === 'HEAD' ? undefined : body);
  // What was sent with a request that has none to be sent.
  response.req.resume();
}
