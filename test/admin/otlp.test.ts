import assert from 'node:assert/strict';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, describe, it } from 'node:test';
import { pino } from 'pino';

import { Ledger } from '../../src/admin/ledger.ts';
import { Metrics } from '../../src/admin/metrics.ts';
import { OtlpExporter, type TracedLogin } from '../../src/admin/otlp.ts';
import { psql } from '../support/clients/psql.ts';
import { readTelemetry } from '../support/clients/telemetry.ts';
import { Postern } from '../support/postern.ts';
import { canary, server as testServer, Unavailable } from '../support/servers.ts';
import { until } from '../support/session.ts';
import { operation } from './operation.ts';

interface Received {
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  readonly text: string;
}

/** What a collector hears; it answers as `status` says, and not at all with 0. */
class Collector {
  readonly received: Received[] = [];
  status = 200;
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(): Promise<Collector> {
    const server = createServer();
    const collector = new Collector(server);
    server.on('request', (request, response) => {
      let text = '';
      request.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      request.on('end', () => {
        collector.received.push({ path: request.url ?? '', headers: request.headers, text });
        if (collector.status > 0)
          response.writeHead(collector.status, { 'content-type': 'application/json' }).end('{}');
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return collector;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  of(path: string): Received[] {
    return this.received.filter((each) => each.path === path);
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

const login: TracedLogin = {
  service: 'orders-db',
  connector: 'postgres',
  session: 'abc-1',
  client: '127.0.0.1:5',
  facts: { upstream: 'tcp://10.0.0.1:5432', credential: 'vault@3', auth: 'scram-sha-256', database: 'app' },
  startedAt: 1000,
  lentAt: 1004,
  endedAt: 1010.5,
  outcome: 'ok',
  error: undefined,
};

const token = 'a-token-of-the-collector';
const collectors: Collector[] = [];
const exporters: OtlpExporter[] = [];
after(async () => {
  await Promise.all(exporters.map((each) => each.close()));
  for (const each of collectors) each.close();
});

async function exporting(more: (url: string) => Record<string, string> = () => ({})) {
  const collector = await Collector.start();
  collectors.push(collector);
  const lines: Record<string, unknown>[] = [];
  const log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const metrics: Metrics = new Metrics('1.2.3', { ready: () => true, services: () => live.services() });
  const live = operation(metrics, new Ledger());
  const environment = {
    OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/`,
    OTEL_EXPORTER_OTLP_HEADERS: `Authorization=Bearer%20${token},x-tenant=a`,
    OTEL_METRIC_EXPORT_INTERVAL: '100',
    OTEL_BSP_SCHEDULE_DELAY: '100',
    ...more(collector.url),
  };
  const exporter = new OtlpExporter(environment, { log, version: '1.2.3', metrics });
  exporters.push(exporter);
  const exported = (signal: string, outcome: string) =>
    Number(
      new RegExp(
        `^postern_otlp_exports_total\\{signal="${signal}",outcome="${outcome}"\\} (\\d+)$`,
        'm',
      ).exec(metrics.registry.text('prometheus'))?.[1] ?? 0,
    );
  return { collector, exporter, metrics, lines, exported };
}

describe('the export to OpenTelemetry', { timeout: 120_000 }, () => {
  it("sends every metric, in what OpenTelemetry's own schema reads", async (t) => {
    const { collector, metrics, exporter } = await exporting();
    metrics.loggedIn('orders-db', 0.01);
    await until('an export', () =>
      collector.of('/v1/metrics').some(({ text }) => text.includes('login_duration')),
    );
    await exporter.close();
    const { headers, text } = collector.of('/v1/metrics').at(-1) ?? assert.fail();
    assert.equal(headers['content-type'], 'application/json');
    assert.equal(headers.authorization, `Bearer ${token}`);
    assert.equal(headers['x-tenant'], 'a');
    const [resource] = JSON.parse(text).resourceMetrics;
    const attribute = (key: string) =>
      resource.resource.attributes.find((each: { key: string }) => each.key === key)?.value.stringValue;
    assert.equal(attribute('service.name'), 'postern');
    assert.equal(attribute('service.version'), '1.2.3');
    interface Metric {
      readonly name: string;
      readonly unit: string;
      readonly sum?: { readonly isMonotonic: boolean };
      readonly histogram?: { readonly dataPoints: readonly Record<string, unknown>[] };
    }
    const all = resource.scopeMetrics[0].metrics as Metric[];
    const named = (name: string) => all.find((each) => each.name === name);
    const point = named('postern_login_duration_seconds')?.histogram?.dataPoints[0] ?? assert.fail();
    assert.equal(point['count'], '1');
    assert.equal(
      (point['bucketCounts'] as string[]).length,
      (point['explicitBounds'] as number[]).length + 1,
    );
    assert.deepEqual(point['attributes'], [{ key: 'service', value: { stringValue: 'orders-db' } }]);
    assert.match(String(point['timeUnixNano']), /^1\d{18}$/);
    assert.equal(named('postern_login_duration_seconds')?.unit, 's');
    assert.equal(named('postern_logins')?.sum?.isMonotonic, true);
    try {
      const read = await readTelemetry('otlp-metrics', text);
      assert.equal(Object.keys(read).length, all.length);
      assert.equal(read['postern_login_duration_seconds'], 'histogram');
      assert.equal(read['postern_sessions_active'], 'gauge');
    } catch (error) {
      if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
      t.diagnostic(error.message);
    }
  });

  it('sends a span for each login, with those of its steps, and of a failed one why', async (t) => {
    const { collector, exporter } = await exporting();
    exporter.trace(login);
    exporter.trace({
      ...login,
      lentAt: undefined,
      outcome: 'UPSTREAM_TLS',
      error: 'certificate of "db" is not valid',
    });
    await until('an export', () => collector.of('/v1/traces').length > 0);
    const { text } = collector.of('/v1/traces')[0] ?? assert.fail();
    const spans = JSON.parse(text).resourceSpans[0].scopeSpans[0].spans as Record<string, unknown>[];
    assert.deepEqual(
      spans.map(({ name }) => name),
      ['login', 'fetch credentials', 'log in to the server', 'login'],
    );
    const [whole, fetched, loggedIn, failed] = spans;
    assert.match(String(whole?.['traceId']), /^[0-9a-f]{32}$/);
    assert.match(String(whole?.['spanId']), /^[0-9a-f]{16}$/);
    for (const child of [fetched, loggedIn]) {
      assert.equal(child?.['traceId'], whole?.['traceId']);
      assert.equal(child?.['parentSpanId'], whole?.['spanId']);
    }
    assert.equal(fetched?.['endTimeUnixNano'], loggedIn?.['startTimeUnixNano']);
    assert.equal(
      BigInt(String(whole?.['endTimeUnixNano'])) - BigInt(String(whole?.['startTimeUnixNano'])),
      10_500_000n,
    );
    assert.deepEqual(whole?.['status'], { code: 1 });
    assert.deepEqual(failed?.['status'], { code: 2, message: 'certificate of "db" is not valid' });
    const attributes = whole['attributes'] as { key: string; value: Record<string, unknown> }[];
    const value = (key: string) => attributes.find((each) => each.key === key)?.value;
    assert.deepEqual(value('server.port'), { intValue: '5432' });
    assert.deepEqual(value('postern.credential'), { stringValue: 'vault@3' });
    try {
      assert.deepEqual(await readTelemetry('otlp-traces', text), { spans: spans.map(({ name }) => name) });
    } catch (error) {
      if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
      t.diagnostic(error.message);
    }
  });

  it('keeps spans for a collector that is overloaded, and says so once', async () => {
    const { collector, exporter, lines, exported } = await exporting(() => ({
      OTEL_METRICS_EXPORTER: 'none',
    }));
    collector.status = 503;
    exporter.trace(login);
    await until('three attempts', () => collector.of('/v1/traces').length >= 3);
    assert.equal(collector.of('/v1/metrics').length, 0);
    collector.status = 200;
    await until('the good news', () => lines.length === 2);
    assert.deepEqual(
      lines.map(({ msg, reason }) => [msg, reason]),
      [
        ['an export to the OpenTelemetry collector failed', 'status 503'],
        ['the OpenTelemetry collector answers again', undefined],
      ],
    );
    assert.ok(exported('traces', 'failed') >= 3);
    assert.equal(exported('traces', 'ok'), 1);
  });

  it('does not send again what the collector refuses, follows no redirect, and shows no token', async () => {
    const { collector, exporter, lines, exported } = await exporting(() => ({
      OTEL_METRICS_EXPORTER: 'none',
    }));
    for (const status of [400, 401, 307]) {
      collector.status = status;
      const before = collector.received.length;
      exporter.trace(login);
      await until('the attempt', () => collector.received.length > before);
    }
    await until('the count', () => exported('traces', 'failed') === 3);
    assert.equal(collector.received.length, 3);
    assert.ok(!JSON.stringify(lines).includes(token));
  });

  it('gives a silent collector its time and no more, and bounds what waits', async () => {
    const { collector, exporter, lines } = await exporting(() => ({
      OTEL_METRICS_EXPORTER: 'none',
      OTEL_EXPORTER_OTLP_TIMEOUT: '200',
      OTEL_BSP_MAX_QUEUE_SIZE: '30',
      OTEL_BSP_MAX_EXPORT_BATCH_SIZE: '30',
    }));
    collector.status = 0;
    for (let i = 0; i < 1000; i++) exporter.trace(login);
    await until('the complaint', () => lines.length === 1);
    assert.equal(lines[0]?.['reason'], 'timeout');
    const { text } = collector.of('/v1/traces')[0] ?? assert.fail();
    assert.equal(JSON.parse(text).resourceSpans[0].scopeSpans[0].spans.length, 30);
    await exporter.close();
  });

  it('speaks no gRPC, and takes an endpoint for one signal as it is', async () => {
    const one = await exporting((url) => ({
      OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${url}/own/path`,
      OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: 'grpc',
      OTEL_EXPORTER_OTLP_TRACES_HEADERS: 'x-only=traces',
    }));
    assert.deepEqual(
      one.lines.map(({ msg, signal }) => [msg, signal]),
      [['OpenTelemetry is not exported', 'metrics']],
    );
    one.exporter.trace(login);
    await until('the export', () => one.collector.of('/own/path').length > 0);
    assert.equal(one.collector.received[0]?.headers['x-only'], 'traces');
    assert.equal(one.collector.received[0]?.headers.authorization, undefined);
  });

  for (const [name, value] of [
    ['OTEL_EXPORTER_OTLP_ENDPOINT', 'not a URL'],
    ['OTEL_EXPORTER_OTLP_ENDPOINT', 'ftp://collector'],
    ['OTEL_EXPORTER_OTLP_HEADERS', `a b=${token}`],
    ['OTEL_EXPORTER_OTLP_HEADERS', `authorization=${token}%0d%0ax:y`],
    ['OTEL_EXPORTER_OTLP_HEADERS', `authorization=%zz${token}`],
    ['OTEL_EXPORTER_OTLP_CERTIFICATE', '/nowhere'],
  ] as const)
    it(`is off, with a word, when ${name} is ${value.replace(token, '...')}`, async () => {
      const { lines, exporter } = await exporting(() => ({ [name]: value }));
      assert.deepEqual(
        lines.map(({ msg, level }) => [msg, level]),
        [
          ['OpenTelemetry is not exported', 40],
          ['OpenTelemetry is not exported', 40],
        ],
      );
      assert.ok(!JSON.stringify(lines).includes(token));
      exporter.trace(login);
    });

  it('can sample, name the service and add to the resource', async () => {
    const none = await exporting(() => ({ OTEL_TRACES_SAMPLER: 'parentbased_always_off' }));
    none.exporter.trace(login);
    const some = await exporting(() => ({
      OTEL_TRACES_SAMPLER: 'traceidratio',
      OTEL_TRACES_SAMPLER_ARG: '0.5',
      OTEL_SERVICE_NAME: 'orders-sidecar',
      OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment.name=prod,team=a%20b,service.name=other',
    }));
    for (let i = 0; i < 400; i++) some.exporter.trace({ ...login, lentAt: undefined });
    await until('the export', () => some.collector.of('/v1/traces').length > 0);
    await none.exporter.close();
    assert.equal(none.collector.of('/v1/traces').length, 0);
    const [resource] = JSON.parse(some.collector.of('/v1/traces')[0]?.text ?? '').resourceSpans;
    const count = resource.scopeSpans[0].spans.length as number;
    // The chance to be outside of this is below one in a billion.
    assert.ok(count > 130 && count < 270, String(count));
    const value = (key: string) =>
      resource.resource.attributes.find((each: { key: string }) => each.key === key)?.value.stringValue;
    assert.deepEqual(['service.name', 'deployment.environment.name', 'team'].map(value), [
      'orders-sidecar',
      'prod',
      'a b',
    ]);
  });

  it('is what the program does when its environment says so', async () => {
    const postgres = await testServer('postgres18');
    const collector = await Collector.start();
    collectors.push(collector);
    await using postern = await Postern.start(
      `version: 2
services:
  orders:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: scram_user, password: { from: env, get: PASSWORD } }
    config: { host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
`,
      {
        env: {
          PASSWORD: canary.postgres,
          OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
          OTEL_EXPORTER_OTLP_HEADERS: `authorization=${token}`,
          OTEL_BSP_SCHEDULE_DELAY: '100',
        },
      },
    );
    await psql([
      `host=127.0.0.1 port=${postern.port('orders')} user=me dbname=app sslmode=disable`,
      '-c',
      'SELECT 1',
    ]);
    await until('the spans', () => collector.of('/v1/traces').length > 0);
    assert.equal(await postern.stop(), 0, postern.output.slice(-2000));
    // The last metrics are sent at the end.
    const last = collector.of('/v1/metrics').at(-1)?.text ?? '';
    assert.match(last, /"name":"postern_logins"/);
    const everything = collector.received.map(({ text }) => text).join('') + postern.output;
    assert.ok(!everything.includes(canary.postgres));
    assert.ok(!everything.includes(token));
  });
});
