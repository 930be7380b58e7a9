import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

import { observeProcess } from '../admin/process-metrics.ts';
import { contentTypes, formatFor, Registry } from '../admin/registry.ts';
import type { Address } from '../core/address.ts';
import { listening } from '../core/listening.ts';
import type { RequestOutcome } from './server.ts';

/** What is counted of the injector; docs/injector.md lists it. */
export class InjectorMetrics {
  readonly registry = new Registry();
  readonly request: (outcome: RequestOutcome, seconds: number) => void;
  readonly renewed: () => void;
  readonly lookFailed: () => void;
  readonly close: () => void;

  constructor(
    version: string,
    { expiry, ready }: { readonly expiry: () => number | undefined; readonly ready: () => boolean },
  ) {
    const { registry } = this;
    const build = registry.gauge({
      name: 'postern_build_info',
      help: 'Always 1; the version is a label.',
      labels: ['version'],
    });
    build.set({ version }, 1);
    registry.lookup(
      'gauge',
      { name: 'postern_inject_ready', help: '1 while the webhook can be called.' },
      () => [[{}, ready() ? 1 : 0]],
    );
    const requests = registry.counter({
      name: 'postern_inject_requests_total',
      help: 'Requests of the API server, by what became of them.',
      labels: ['outcome'],
    });
    const seconds = registry.histogram(
      {
        name: 'postern_inject_request_duration_seconds',
        help: 'How long they took, from the head to the answer.',
      },
      [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
    );
    this.request = (outcome, took) => {
      requests.inc({ outcome });
      seconds.observe({}, took);
    };
    const renewals = registry.counter({
      name: 'postern_inject_certificates_total',
      help: 'Certificates that this replica has shown, with the first.',
    });
    this.renewed = () => renewals.inc({});
    const failures = registry.counter({
      name: 'postern_inject_certificate_failures_total',
      help: 'Looks at the certificate, the Secret or the webhook configuration that failed.',
    });
    this.lookFailed = () => failures.inc({});
    registry.lookup(
      'gauge',
      {
        name: 'postern_inject_certificate_expiry_timestamp_seconds',
        help: 'When the certificate that is shown ends.',
      },
      () => {
        const end = expiry();
        return end === undefined ? [] : [[{}, end / 1000]];
      },
    );
    this.close = observeProcess(registry);
  }
}

const timeout = 5000;

/** `/livez`, `/readyz` and `/metrics` of the injector. */
export class InjectorAdmin {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** `notReady` says why the webhook cannot be called. Throws LISTEN_FAILED. */
  static async open(
    address: Extract<Address, { kind: 'tcp' }>,
    { registry, notReady }: { readonly registry: Registry; readonly notReady: () => string | undefined },
  ): Promise<InjectorAdmin> {
    const server = createServer(
      { requestTimeout: timeout, headersTimeout: timeout, keepAliveTimeout: timeout },
      (request, response) => {
        const reply = (status: number, body: string, type = 'text/plain; charset=utf-8') => {
          response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' });
          response.end(request.method === 'HEAD' ? undefined : body);
          request.resume();
        };
        if (request.method !== 'GET' && request.method !== 'HEAD') return reply(405, 'only GET\n');
        switch ((request.url ?? '').split('?', 1)[0]) {
          case '/livez':
            return reply(200, 'ok\n');
          case '/readyz': {
            const why = notReady();
            return reply(why === undefined ? 200 : 503, `${why ?? 'ok'}\n`);
          }
          case '/metrics': {
            const format = formatFor(request.headers.accept);
            return reply(200, registry.text(format), contentTypes[format]);
          }
          default:
            return reply(404, 'there is /livez, /readyz and /metrics\n');
        }
      },
    );
    server.maxConnections = 64;
    server.on('clientError', (_error, socket) => socket.destroy());
    await listening(server, address, 'health and metrics');
    return new InjectorAdmin(server);
  }

  get address(): Address {
    const { address, port } = this.#server.address() as AddressInfo;
    return { kind: 'tcp', host: address, port };
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}
