import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Agent, RequestOptions } from 'node:http';
import type { Logger } from 'pino';

import { reasonOf } from '../core/errors.ts';
import type { Outcome } from '../core/session.ts';
import type { Metrics } from './metrics.ts';
import type { Distribution, Family, Registry } from './registry.ts';

/** One login, as it becomes a span. Times are those of the monotonic clock, in milliseconds. */
export interface TracedLogin {
  readonly service: string;
  readonly connector: string;
  readonly session: string;
  readonly client: string;
  /** What the session's line in the log has, too. */
  readonly facts: Readonly<Record<string, string | number | boolean>>;
  readonly startedAt: number;
  /** When the credentials were there; undefined: they never were, or nobody knows. */
  readonly lentAt: number | undefined;
  readonly endedAt: number;
  readonly outcome: Outcome;
  readonly error: string | undefined;
}

type Environment = Readonly<Record<string, string | undefined>>;
type Signal = 'metrics' | 'traces';

/** An answer that is longer is not read to its end. */
const MOST_ANSWER = 64 * 1024;
/** How long the last exports may take at the end, in milliseconds. */
const CLOSE_TIMEOUT = 2000;
/** Statuses after which the same batch may be sent again (OTLP 1.x, "Retryable Response Codes"). */
const retryable: ReadonlySet<number> = new Set([429, 502, 503, 504]);

/**
 * Sends metrics and a span for each login to an OpenTelemetry collector, as OTLP over HTTP in JSON. Nobody waits for it:
 * spans wait in a bounded queue, exports have a time limit, and what a collector does not take is counted.
 */
export class OtlpExporter {
  readonly #log: Logger;
  readonly #metrics: Metrics;
  readonly #resource: object;
  readonly #scope: object;
  readonly #targets: Readonly<Record<Signal, Target | undefined>>;
  readonly #sampled: number;
  readonly #mostQueued: number;
  readonly #batch: number;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #underWay = new Map<Signal, Promise<void>>();
  readonly #failing = new Set<Signal>();
  #spans: object[] = [];

  constructor(
    environment: Environment,
    { log, version, metrics }: { readonly log: Logger; readonly version: string; readonly metrics: Metrics },
  ) {
    this.#log = log;
    this.#metrics = metrics;
    this.#resource = { attributes: resourceAttributes(environment, version) };
    this.#scope = { name: 'postern', version };
    this.#targets = {
      metrics: target('metrics', environment, log),
      traces: target('traces', environment, log),
    };
    this.#sampled = sampledShare(environment);
    this.#mostQueued = numberOf(environment, 'OTEL_BSP_MAX_QUEUE_SIZE', 2048, 1, 100_000);
    this.#batch = numberOf(environment, 'OTEL_BSP_MAX_EXPORT_BATCH_SIZE', 512, 1, 10_000);
    if (this.#targets.metrics)
      this.#every(numberOf(environment, 'OTEL_METRIC_EXPORT_INTERVAL', 60_000, 100, 86_400_000), 'metrics');
    if (this.#targets.traces)
      this.#every(numberOf(environment, 'OTEL_BSP_SCHEDULE_DELAY', 5000, 100, 3_600_000), 'traces');
  }

  /** Takes note of a login, with a span of its own for fetching the credentials. */
  trace(login: TracedLogin): void {
    if (!this.#targets.traces || Math.random() >= this.#sampled) return;
    const traceId = randomBytes(16).toString('hex');
    const spanId = randomBytes(8).toString('hex');
    const spans = [loginSpan(login, traceId, spanId)];
    if (login.lentAt !== undefined) {
      spans.push(childSpan('fetch credentials', traceId, spanId, login.startedAt, login.lentAt));
      spans.push(childSpan('log in to the server', traceId, spanId, login.lentAt, login.endedAt));
    }
    // What comes in a flood is the same over and over: the newest are the ones that are lost.
    if (this.#spans.length + spans.length <= this.#mostQueued) this.#spans.push(...spans);
  }

  /** Sends what there is, for a short time. */
  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    const patience = AbortSignal.timeout(CLOSE_TIMEOUT);
    await Promise.all(this.#underWay.values());
    await Promise.all([this.#exportMetrics(patience), this.#exportSpans(patience)]);
    for (const each of Object.values(this.#targets)) each?.agent.destroy();
  }

  #every(interval: number, signal: Signal): void {
    const timer = setInterval(() => {
      // A collector that is slower than the interval is asked less often.
      if (this.#underWay.has(signal)) return;
      const work = (signal === 'metrics' ? this.#exportMetrics() : this.#exportSpans()).finally(() =>
        this.#underWay.delete(signal),
      );
      this.#underWay.set(signal, work);
    }, interval);
    this.#timers.push(timer.unref());
  }

  async #exportMetrics(patience?: AbortSignal): Promise<void> {
    if (!this.#targets.metrics) return;
    const metrics = metricsOf(this.#metrics.registry);
    const body = {
      resourceMetrics: [{ resource: this.#resource, scopeMetrics: [{ scope: this.#scope, metrics }] }],
    };
    await this.#export('metrics', this.#targets.metrics, body, patience);
  }

  async #exportSpans(patience?: AbortSignal): Promise<void> {
    const to = this.#targets.traces;
    while (to && this.#spans.length > 0) {
      const spans = this.#spans.slice(0, this.#batch);
      const body = {
        resourceSpans: [{ resource: this.#resource, scopeSpans: [{ scope: this.#scope, spans }] }],
      };
      const taken = await this.#export('traces', to, body, patience);
      // The batch stays for the next time, as long as there is room.
      if (taken === 'later') return;
      this.#spans.splice(0, spans.length);
    }
  }

  async #export(
    signal: Signal,
    to: Target,
    body: object,
    patience: AbortSignal | undefined,
  ): Promise<'taken' | 'refused' | 'later'> {
    const answer = await post(to, Buffer.from(JSON.stringify(body)), patience);
    const taken = typeof answer === 'number' && answer >= 200 && answer < 300;
    this.#metrics.exported(signal, taken ? 'ok' : 'failed');
    if (taken) {
      if (this.#failing.delete(signal))
        this.#log.info({ signal }, 'the OpenTelemetry collector answers again');
      return 'taken';
    }
    if (!this.#failing.has(signal)) {
      this.#failing.add(signal);
      const reason = typeof answer === 'number' ? `status ${answer}` : answer;
      this.#log.warn({ signal, reason }, 'an export to the OpenTelemetry collector failed');
    }
    return typeof answer === 'string' || retryable.has(answer) ? 'later' : 'refused';
  }
}

// ── the environment ──────────────────────────────────────────────────────────────────────────────────────────

/** Where one signal goes. The headers may hold a token: they are in no message. */
interface Target {
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly timeout: number;
  readonly agent: Agent;
  readonly tls: Pick<RequestOptions & { ca?: Buffer; cert?: Buffer; key?: Buffer }, 'ca' | 'cert' | 'key'>;
}

function target(signal: Signal, environment: Environment, log: Logger): Target | undefined {
  const own = `OTEL_EXPORTER_OTLP_${signal.toUpperCase()}`;
  const of = (name: string) =>
    environment[`${own}_${name}`] || environment[`OTEL_EXPORTER_OTLP_${name}`] || undefined;
  const exporter = environment[`OTEL_${signal.toUpperCase()}_EXPORTER`] || 'otlp';
  if (exporter !== 'otlp') return undefined;
  const base = environment['OTEL_EXPORTER_OTLP_ENDPOINT'];
  const wanted = environment[`${own}_ENDPOINT`] || (base && `${base.replace(/\/+$/, '')}/v1/${signal}`);
  if (!wanted) return undefined;
  const refuse = (error: string) => {
    log.warn({ signal, error }, 'OpenTelemetry is not exported');
    return undefined;
  };
  if (of('PROTOCOL') === 'grpc')
    return refuse('gRPC is not spoken: OTEL_EXPORTER_OTLP_PROTOCOL=http/json, mostly at port 4318');
  const url = URL.parse(wanted);
  if (!url || !/^https?:$/.test(url.protocol)) return refuse('the endpoint is no URL with http or https');
  // Built-in modules, not imports: what nobody uses of them stays unloaded (decision 0012).
  const { Agent } = process.getBuiltinModule(url.protocol === 'https:' ? 'node:https' : 'node:http');
  try {
    return {
      url,
      headers: headersOf(of('HEADERS') ?? ''),
      timeout: numberOf({ timeout: of('TIMEOUT') }, 'timeout', 10_000, 1, 600_000),
      agent: new Agent({ keepAlive: true, maxSockets: 1 }),
      tls: {
        ...fileOf('ca', of('CERTIFICATE')),
        ...fileOf('cert', of('CLIENT_CERTIFICATE')),
        ...fileOf('key', of('CLIENT_KEY')),
      },
    };
  } catch (error) {
    return refuse(`the variables OTEL_EXPORTER_OTLP_* cannot be used: ${reasonOf(error)}`);
  }
}

function fileOf<Name extends string>(name: Name, path: string | undefined): Partial<Record<Name, Buffer>> {
  return (path === undefined ? {} : { [name]: readFileSync(path) }) as Partial<Record<Name, Buffer>>;
}

/** `name=value,name=value`, percent-encoded, as in W3C Baggage. */
function pairsOf(text: string): [name: string, value: string][] {
  return text.split(',').flatMap((pair): [string, string][] => {
    const at = pair.indexOf('=');
    return at > 0 ? [[pair.slice(0, at).trim(), decodeURIComponent(pair.slice(at + 1).trim())]] : [];
  });
}

function headersOf(text: string): Record<string, string> {
  const { validateHeaderName, validateHeaderValue } = process.getBuiltinModule('node:http');
  const pairs = pairsOf(text);
  for (const [name, value] of pairs) {
    validateHeaderName(name);
    validateHeaderValue(name, value);
  }
  return Object.fromEntries(pairs.map(([name, value]) => [name.toLowerCase(), value]));
}

function resourceAttributes(environment: Environment, version: string): object[] {
  let given: [string, string][] = [];
  try {
    given = pairsOf(environment['OTEL_RESOURCE_ATTRIBUTES'] ?? '');
  } catch {
    // "In case of any error, the entire environment variable value SHOULD be discarded" (Resource SDK).
  }
  const attributes = {
    'service.name': 'postern',
    'service.version': version,
    'process.pid': process.pid,
    'telemetry.sdk.name': 'postern',
    'telemetry.sdk.language': 'nodejs',
    'telemetry.sdk.version': version,
    ...Object.fromEntries(given),
    ...(environment['OTEL_SERVICE_NAME'] && { 'service.name': environment['OTEL_SERVICE_NAME'] }),
  };
  return attributesOf(attributes);
}

function sampledShare(environment: Environment): number {
  const sampler = (environment['OTEL_TRACES_SAMPLER'] ?? '').replace(/^parentbased_/, '');
  if (sampler === 'always_off') return 0;
  if (sampler !== 'traceidratio') return 1;
  const share = Number(environment['OTEL_TRACES_SAMPLER_ARG'] ?? 1);
  return share >= 0 && share <= 1 ? share : 1;
}

/** What is no number, or out of bounds, is as good as not there. */
function numberOf(
  environment: Environment,
  name: string,
  usual: number,
  least: number,
  most: number,
): number {
  const number = Number(environment[name] || usual);
  return Number.isFinite(number) && number >= least && number <= most ? number : usual;
}

// ── OTLP's JSON ──────────────────────────────────────────────────────────────────────────────────────────────
// https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding: 64-bit integers are text, ids are hexadecimal.

const CUMULATIVE = 2;
const SPAN_KIND_SERVER = 2;
const SPAN_KIND_INTERNAL = 1;
const STATUS_OK = 1;
const STATUS_ERROR = 2;

function metricsOf(registry: Registry): object[] {
  const now = nanosecondsAt(performance.now());
  const start = nanosecondsAt(0);
  return [...registry.families].flatMap((family) => {
    const points = [...family.points()].map(({ labels, value }) => ({
      attributes: attributesOf(Object.fromEntries(family.labels.map((label, i) => [label, labels[i] ?? '']))),
      timeUnixNano: now,
      ...(family.type !== 'gauge' && { startTimeUnixNano: start }),
      ...(typeof value === 'number' ? { asDouble: value } : distributionOf(family, value)),
    }));
    if (points.length === 0) return [];
    const { name, help, type } = family;
    return [
      {
        name: name.replace(/_total$/, ''),
        description: help,
        unit: /_seconds(_total)?$/.test(name) ? 's' : /_bytes(_total)?$/.test(name) ? 'By' : '1',
        ...(type === 'gauge' && { gauge: { dataPoints: points } }),
        ...(type === 'counter' && {
          sum: { dataPoints: points, aggregationTemporality: CUMULATIVE, isMonotonic: true },
        }),
        ...(type === 'histogram' && {
          histogram: { dataPoints: points, aggregationTemporality: CUMULATIVE },
        }),
      },
    ];
  });
}

function distributionOf({ bounds }: Family, { counts, sum }: Distribution): object {
  return {
    count: String(counts.reduce((total, count) => total + count, 0)),
    sum,
    bucketCounts: counts.map(String),
    explicitBounds: bounds,
  };
}

function loginSpan(login: TracedLogin, traceId: string, spanId: string): object {
  const { service, connector, session, client, facts, startedAt, endedAt, outcome, error } = login;
  const [, host, port] = /^(.*):(\d+)$/.exec(String(facts['upstream'] ?? '')) ?? [];
  return {
    traceId,
    spanId,
    name: 'login',
    kind: SPAN_KIND_SERVER,
    startTimeUnixNano: nanosecondsAt(startedAt),
    endTimeUnixNano: nanosecondsAt(endedAt),
    attributes: attributesOf({
      'postern.service': service,
      'postern.connector': connector,
      'postern.session': session,
      'postern.outcome': outcome,
      'client.address': client,
      ...(host !== undefined && { 'server.address': host, 'server.port': Number(port) }),
      ...(facts['credential'] !== undefined && { 'postern.credential': facts['credential'] }),
      ...(facts['auth'] !== undefined && { 'postern.auth': facts['auth'] }),
      ...(facts['database'] !== undefined && { 'db.namespace': facts['database'] }),
    }),
    status: outcome === 'ok' ? { code: STATUS_OK } : { code: STATUS_ERROR, message: error ?? outcome },
  };
}

function childSpan(name: string, traceId: string, parentSpanId: string, from: number, to: number): object {
  return {
    traceId,
    spanId: randomBytes(8).toString('hex'),
    parentSpanId,
    name,
    kind: SPAN_KIND_INTERNAL,
    startTimeUnixNano: nanosecondsAt(from),
    endTimeUnixNano: nanosecondsAt(to),
  };
}

function attributesOf(values: Readonly<Record<string, string | number | boolean>>): object[] {
  return Object.entries(values).map(([key, value]) => ({ key, value: valueOf(value) }));
}

function valueOf(value: string | number | boolean): object {
  if (typeof value === 'string') return { stringValue: value };
  if (typeof value === 'boolean') return { boolValue: value };
  return Number.isInteger(value) ? { intValue: String(value) } : { doubleValue: value };
}

/** Of the monotonic clock, since 1970; as text, because it is beyond what a number holds. */
function nanosecondsAt(milliseconds: number): string {
  return String(BigInt(Math.round((performance.timeOrigin + milliseconds) * 1000)) * 1000n);
}

// ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────

/** The status of the answer, or why there was none. No redirect is followed: the headers are for this server. */
async function post(
  { url, headers, timeout, agent, tls }: Target,
  body: Buffer,
  patience: AbortSignal | undefined,
): Promise<number | string> {
  const { promise, resolve } = Promise.withResolvers<number | string>();
  const late = AbortSignal.timeout(timeout);
  const { request } = process.getBuiltinModule(url.protocol === 'https:' ? 'node:https' : 'node:http');
  const sent = request(url, {
    method: 'POST',
    agent,
    ...tls,
    signal: patience ? AbortSignal.any([late, patience]) : late,
    headers: { ...headers, 'content-type': 'application/json', 'content-length': body.length },
  });
  sent.on('error', (error) => resolve(late.aborted || patience?.aborted ? 'timeout' : reasonOf(error)));
  sent.on('response', (response) => {
    let size = 0;
    response.on('data', ({ length }: Buffer) => {
      size += length;
      if (size > MOST_ANSWER) response.destroy();
    });
    response.on('error', () => {});
    response.on('close', () => resolve(response.statusCode ?? 0));
  });
  sent.end(body);
  return await promise;
}
