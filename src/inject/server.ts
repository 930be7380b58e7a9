import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Logger } from 'pino';

import type { Address } from '../core/address.ts';
import { PosternError } from '../core/errors.ts';
import { listening } from '../core/listening.ts';
import { describeFailure } from '../core/session.ts';
import type { Identity } from './certificates.ts';
import type { Surroundings } from './pod.ts';
import { type Outcome, type Reviewed, review } from './review.ts';

/** What became of a request: a review's outcome, or why it was none. */
export type RequestOutcome = Outcome | 'invalid' | 'overloaded' | 'failed';

/** What the webhook needs to answer. */
export interface WebhookOptions {
  readonly maxRequests: number;
  readonly log: Logger;
  /** What decides at this moment about pods that do not say anything themselves (`everyPod`), and the others. */
  readonly surroundings: (everyPod: boolean) => Surroundings;
  readonly observe: (outcome: RequestOutcome, seconds: number) => void;
}

/** An object is 1.5 MiB at most in etcd; a review has it once, and little more. */
const largestBody = 4 * 1024 * 1024;
/** The API server waits for timeoutSeconds, 5 in our manifests; whoever else calls gets no longer. */
const requestTimeout = 10_000;
/** Longer than the API server keeps an idle connection (90 s), so that it closes first and no request meets a closed one. */
const keepAliveTimeout = 120_000;
const mostConnections = 512;

/**
 * The webhook: `POST /pods` adds the sidecar to pods that ask for it, `POST /namespaces` to all that do not refuse it.
 * Nothing that a request says is kept.
 */
export class WebhookServer {
  readonly #server: Server;
  #stopping = false;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Throws LISTEN_FAILED. Takes the identity over. */
  static async open(address: Address, identity: Identity, options: WebhookOptions): Promise<WebhookServer> {
    const server = createServer({
      cert: identity.cert,
      key: identity.key,
      minVersion: 'TLSv1.2',
      handshakeTimeout: requestTimeout,
      headersTimeout: requestTimeout,
      requestTimeout,
      keepAliveTimeout,
      maxHeaderSize: 16 * 1024,
    });
    const own = new WebhookServer(server);
    let current = 0;
    server.on('request', (request: IncomingMessage, response: ServerResponse) => {
      const started = performance.now();
      const seconds = () => (performance.now() - started) / 1000;
      if (own.#stopping) response.setHeader('connection', 'close');
      if (current >= options.maxRequests) {
        options.observe('overloaded', seconds());
        return refuse(request, response, 503, 'too many requests at once');
      }
      current++;
      answer(request, options)
        .then(
          (answered) => {
            options.observe(answered.outcome, seconds());
            if ('body' in answered) return send(response, answered.body);
            refuse(request, response, answered.status, answered.text);
          },
          (thrown: unknown) => {
            options.observe('failed', seconds());
            options.log.error(describeFailure(PosternError.from(thrown)), 'review of a pod failed');
            refuse(request, response, 500, 'unexpected failure');
          },
        )
        .finally(() => current--);
    });
    server.maxConnections = mostConnections;
    server.on('clientError', (_error, socket) => socket.destroy());
    try {
      await listening(server, address, 'the webhook');
    } finally {
      identity.key.fill(0);
    }
    return own;
  }

  get address(): Address {
    const { address, port } = this.#server.address() as AddressInfo;
    return { kind: 'tcp', host: address, port };
  }

  /** Shows another certificate from the next connection on; those that are open go on. Takes the identity over. */
  show(identity: Identity): void {
    this.#server.setSecureContext({ cert: identity.cert, key: identity.key, minVersion: 'TLSv1.2' });
    identity.key.fill(0);
  }

  /** Ends: requests under way are answered, idle connections are closed. */
  async close(): Promise<void> {
    this.#stopping = true;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    this.#server.closeIdleConnections();
    const timer = setTimeout(() => this.#server.closeAllConnections(), requestTimeout);
    await promise;
    clearTimeout(timer);
  }
}

interface Refused {
  readonly outcome: 'invalid';
  readonly status: number;
  readonly text: string;
}

async function answer(request: IncomingMessage, options: WebhookOptions): Promise<Reviewed | Refused> {
  const invalid = (status: number, text: string): Refused => ({ outcome: 'invalid', status, text });
  const [path] = (request.url ?? '').split('?', 1);
  // The API server adds `?timeout=5s`.
  if (path !== '/pods' && path !== '/namespaces') return invalid(404, 'there is /pods and /namespaces');
  if (request.method !== 'POST') return invalid(405, 'only POST');
  if (!/^application\/json\s*(;|$)/i.test(request.headers['content-type'] ?? ''))
    return invalid(415, 'only application/json');
  if (Number(request.headers['content-length'] ?? 0) > largestBody) return invalid(413, 'too large');
  const text = await bodyOf(request).catch(() => 'gone' as const);
  if (text === 'gone') return invalid(400, 'the request ended early');
  if (text === undefined) return invalid(413, 'too large');
  const reviewed = review(text, options.surroundings(path === '/namespaces'));
  if (!reviewed) return invalid(400, 'no AdmissionReview of admission.k8s.io/v1');
  const { namespace, pod, outcome, reason } = reviewed;
  const line = { namespace, pod, outcome, ...(reason !== undefined && { reason }) };
  if (outcome === 'unasked' || outcome === 'other') options.log.debug(line, 'pod reviewed');
  else options.log.info(line, 'pod reviewed');
  return reviewed;
}

/** The whole body; undefined when it is too large. */
async function bodyOf(request: IncomingMessage): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  // Not destroyed at the end: there is an answer to send.
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > largestBody) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

function send(response: ServerResponse, body: string): void {
  response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
  response.end(body);
}

function refuse(request: IncomingMessage, response: ServerResponse, status: number, text: string): void {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(status, {
    'content-type': 'text/plain; charset=utf-8',
    // What is left of the request is not read.
    connection: 'close',
    ...(status === 405 && { allow: 'POST' }),
    ...(status === 503 && { 'retry-after': '1' }),
  });
  response.end(`${text}\n`);
  request.resume();
}
