import type { ErrorCode } from '../core/errors.ts';
import type { RequestCounters } from '../core/request-counters.ts';
import type { Outcome, SessionReport } from '../core/session.ts';
import { type Counter, type Gauge, type Histogram, Registry } from './registry.ts';

/** What the metrics ask of the running program at the moment of a scrape. */
export interface LiveState {
  /** Whether Postern takes new sessions. */
  ready(): boolean;
  /** Sessions and bytes of one service that are not in a report yet. */
  services(): Iterable<LiveService>;
}

/** One service at this moment, those sessions included that a reload left behind. */
export interface LiveService {
  readonly name: string;
  readonly active: number;
  /** Places, of which the active sessions have one each. */
  readonly limit: number;
  readonly bytesFromClient: number;
  readonly bytesFromUpstream: number;
  readonly credential: {
    readonly generation: number;
    /** Seconds since the values were last seen in the store; undefined: never. */
    readonly age: number | undefined;
    readonly stale: boolean;
  };
  readonly leases: readonly { readonly provider: string; readonly secondsLeft: number }[];
  /** Of the protocols of that name that count requests. */
  readonly requests: readonly RequestCounters[];
}

/** Why a client was turned away, by the code that it got; whoever is dropped gets none. */
const refusals = {
  LIMIT_REACHED: 'limit',
  RATE_LIMITED: 'rate',
  ACCESS_DENIED: 'access',
  CLIENT_REFUSED: 'policy',
  SHUTDOWN: 'shutdown',
} as const satisfies Partial<Record<ErrorCode, string>>;

/** Every metric that Postern exposes; docs/metrics.md describes them, and a test holds the two together. */
export class Metrics {
  readonly registry = new Registry();
  readonly #relayedByEnded = new Map<string, { fromClient: number; fromUpstream: number }>();
  readonly #requestsOfEnded = new Map<string, RequestCounters[]>();
  readonly #relayEngine: Gauge<'engine'>;
  readonly #sessions: Counter<'service' | 'outcome'>;
  readonly #sessionDuration: Histogram<'service'>;
  readonly #loginOutcomes: Counter<'service' | 'outcome'>;
  readonly #logins: Histogram<'service'>;
  readonly #refusals: Counter<'service' | 'reason'>;
  readonly #fetches: Counter<'provider' | 'outcome'>;
  readonly #fetchDuration: Histogram<'provider'>;
  readonly #providerUp: Gauge<'provider'>;
  readonly #providerSuccess: Gauge<'provider'>;
  readonly #providerFailures: Gauge<'provider'>;
  readonly #lent: Counter<'service' | 'from'>;
  readonly #rejections: Counter<'service' | 'outcome'>;
  readonly #leaseOperations: Counter<'provider' | 'operation' | 'outcome'>;
  readonly #acceptErrors: Counter<'service'>;
  readonly #dropped: Counter<'service'>;
  readonly #reloads: Counter<'outcome'>;
  readonly #reloaded: Gauge<never>;
  readonly #followed: Gauge<never>;
  readonly #auditRecords: Counter<'outcome'>;
  readonly #exports: Counter<'signal' | 'outcome'>;

  constructor(version: string, live: LiveState) {
    const { registry } = this;
    registry
      .gauge({
        name: 'postern_build_info',
        help: 'Always 1; the labels say which version runs on which Node.js.',
        labels: ['version', 'node'],
      })
      .set({ version, node: process.version }, 1);
    this.#relayEngine = registry.gauge({
      name: 'postern_relay_engine',
      help: 'Always 1; the label says what relays plain connections.',
      labels: ['engine'],
    });
    registry.lookup(
      'gauge',
      { name: 'postern_ready', help: 'Whether Postern takes new sessions: 1 or 0.' },
      () => [[{}, live.ready() ? 1 : 0] as const],
    );
    this.#countSessions(live);
    this.#sessions = registry.counter({
      name: 'postern_sessions_total',
      help: 'Ended sessions by outcome: ok, or a code of docs/errors.md.',
      labels: ['service', 'outcome'],
    });
    this.#sessionDuration = registry.histogram(
      {
        name: 'postern_session_duration_seconds',
        help: 'From the connection of a client that got a place to its end.',
        labels: ['service'],
      },
      [0.01, 0.1, 1, 10, 60, 600, 3600, 21_600, 86_400],
    );
    this.#loginOutcomes = registry.counter({
      name: 'postern_logins_total',
      help: 'Logins by outcome: ok, or a code of docs/errors.md.',
      labels: ['service', 'outcome'],
    });
    this.#logins = registry.histogram(
      {
        name: 'postern_login_duration_seconds',
        help: 'From a client that has said what it wants to one that is logged in.',
        labels: ['service'],
      },
      [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    );
    this.#refusals = registry.counter({
      name: 'postern_refusals_total',
      help: 'Clients that were turned away, by the reason.',
      labels: ['service', 'reason'],
    });
    this.#countRequests(live);
    this.#fetches = registry.counter({
      name: 'postern_provider_requests_total',
      help: 'Questions to a provider by outcome: ok, or a code of docs/errors.md.',
      labels: ['provider', 'outcome'],
    });
    this.#fetchDuration = registry.histogram(
      {
        name: 'postern_provider_request_duration_seconds',
        help: 'How long a provider took to answer.',
        labels: ['provider'],
      },
      [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    );
    this.#providerUp = registry.gauge({
      name: 'postern_provider_up',
      help: 'Whether the provider answered the last question, be it with a refusal: 1 or 0.',
      labels: ['provider'],
    });
    this.#providerSuccess = registry.gauge({
      name: 'postern_provider_last_success_timestamp_seconds',
      help: 'When the provider last gave what it was asked for.',
      labels: ['provider'],
    });
    this.#providerFailures = registry.gauge({
      name: 'postern_provider_consecutive_failures',
      help: 'Questions since then that the provider did not answer with what it was asked for.',
      labels: ['provider'],
    });
    this.#lent = registry.counter({
      name: 'postern_credential_requests_total',
      help: 'Credentials that logins or requests were given, by where they came from: provider, cache, or stale where the provider could not be asked.',
      labels: ['service', 'from'],
    });
    this.#rejections = registry.counter({
      name: 'postern_credential_rejections_total',
      help: 'Logins that met a rejected credential, by their end: recovered, where another try was accepted, or refused.',
      labels: ['service', 'outcome'],
    });
    this.#describeCredentials(live);
    this.#leaseOperations = registry.counter({
      name: 'postern_lease_operations_total',
      help: 'Renewals and revocations of leases by outcome: ok, or a code of docs/errors.md.',
      labels: ['provider', 'operation', 'outcome'],
    });
    this.#acceptErrors = registry.counter({
      name: 'postern_accept_errors_total',
      help: 'Connections that could not be accepted, for example for lack of descriptors.',
      labels: ['service'],
    });
    this.#dropped = registry.counter({
      name: 'postern_connections_dropped_total',
      help: 'Connections closed unheard because too many others were still waiting to be refused.',
      labels: ['service'],
    });
    this.#reloads = registry.counter({
      name: 'postern_config_reloads_total',
      help: 'Reloads of the configuration by outcome: ok or failed.',
      labels: ['outcome'],
    });
    this.#reloaded = registry.gauge({
      name: 'postern_config_last_load_timestamp_seconds',
      help: 'When the configuration in force was loaded.',
    });
    this.#followed = registry.gauge({
      name: 'postern_config_source_up',
      help: 'Whether the resource with the configuration is there and watched (1) or the last one stays in force (0).',
    });
    this.#auditRecords = registry.counter({
      name: 'postern_audit_records_total',
      help: 'Records of the audit by outcome: written, or dropped because their destination took none for too long.',
      labels: ['outcome'],
    });
    this.#exports = registry.counter({
      name: 'postern_otlp_exports_total',
      help: 'Exports to an OpenTelemetry collector by outcome: ok or failed.',
      labels: ['signal', 'outcome'],
    });
  }

  /** A protocol is closed: what it counted stays. */
  requestsEnded(service: string, counters: RequestCounters): void {
    const before = this.#requestsOfEnded.get(service) ?? [];
    this.#requestsOfEnded.set(service, [total([...before, counters])]);
  }

  /** A session is logged in, after so many seconds. */
  loggedIn(service: string, seconds: number): void {
    this.#loginOutcomes.inc({ service, outcome: 'ok' });
    this.#logins.observe({ service }, seconds);
  }

  /** `logsIn`: its protocol has one login for each session. */
  sessionEnded(service: string, report: SessionReport, logsIn: boolean): void {
    const { outcome, admitted } = report;
    this.#sessions.inc({ service, outcome });
    if (admitted) this.#sessionDuration.observe({ service }, report.seconds);
    const failedLogin = admitted && report.loginSeconds === undefined && outcome !== 'ok';
    if (logsIn && failedLogin) this.#loginOutcomes.inc({ service, outcome });
    if (report.loginSeconds === undefined && Object.hasOwn(refusals, outcome))
      this.#refusals.inc({ service, reason: refusals[outcome as keyof typeof refusals] });
    const relayed = this.#relayedByEnded.get(service) ?? { fromClient: 0, fromUpstream: 0 };
    relayed.fromClient += report.bytesFromClient;
    relayed.fromUpstream += report.bytesFromUpstream;
    this.#relayedByEnded.set(service, relayed);
  }

  providerAsked(provider: string, outcome: Outcome, seconds: number): void {
    this.#fetches.inc({ provider, outcome });
    this.#fetchDuration.observe({ provider }, seconds);
    // A refusal is an answer.
    this.#providerUp.set({ provider }, outcome === 'ok' || outcome === 'PROVIDER_FAILED' ? 1 : 0);
    if (outcome === 'ok') {
      this.#providerSuccess.set({ provider }, Date.now() / 1000);
      this.#providerFailures.set({ provider }, 0);
    } else this.#providerFailures.inc({ provider });
  }

  credentialLent(service: string, from: 'provider' | 'cache' | 'stale'): void {
    this.#lent.inc({ service, from });
  }

  credentialRejected(service: string, outcome: 'recovered' | 'refused'): void {
    this.#rejections.inc({ service, outcome });
  }

  leaseOperation(provider: string, operation: 'renew' | 'revoke', outcome: Outcome): void {
    this.#leaseOperations.inc({ provider, operation, outcome });
  }

  relayEngine(engine: 'native' | 'typescript'): void {
    this.#relayEngine.set({ engine }, 1);
  }

  acceptFailed(service: string): void {
    this.#acceptErrors.inc({ service });
  }

  connectionDropped(service: string): void {
    this.#dropped.inc({ service });
    this.#refusals.inc({ service, reason: 'dropped' });
  }

  configLoaded(outcome: 'first' | 'ok' | 'failed'): void {
    if (outcome !== 'first') this.#reloads.inc({ outcome });
    if (outcome !== 'failed') this.#reloaded.set({}, Date.now() / 1000);
  }

  configFollowed(current: boolean): void {
    this.#followed.set({}, current ? 1 : 0);
  }

  auditRecords(outcome: 'written' | 'dropped', count: number): void {
    this.#auditRecords.inc({ outcome }, count);
  }

  exported(signal: 'metrics' | 'traces', outcome: 'ok' | 'failed'): void {
    this.#exports.inc({ signal, outcome });
  }

  /** Bytes relayed for a service since the start, those of its live sessions included. */
  relayed({ name, bytesFromClient, bytesFromUpstream }: LiveService): {
    fromClient: number;
    fromUpstream: number;
  } {
    const before = this.#relayedByEnded.get(name);
    return {
      fromClient: bytesFromClient + (before?.fromClient ?? 0),
      fromUpstream: bytesFromUpstream + (before?.fromUpstream ?? 0),
    };
  }

  /** What a service's requests have come to since the start; undefined: its protocol counts none. */
  requests({ name, requests }: LiveService): RequestCounters | undefined {
    const all = [...requests, ...(this.#requestsOfEnded.get(name) ?? [])];
    return all.length > 0 ? total(all) : undefined;
  }

  #countSessions(live: LiveState): void {
    const { registry } = this;
    const active = {
      name: 'postern_sessions_active',
      help: 'Sessions that have a place now.',
      labels: ['service'],
    } as const;
    registry.lookup('gauge', active, function* () {
      for (const { name, active } of live.services()) yield [{ service: name }, active];
    });
    const limit = {
      name: 'postern_sessions_limit',
      help: 'Places for sessions.',
      labels: ['service'],
    } as const;
    registry.lookup('gauge', limit, function* () {
      for (const { name, limit } of live.services()) yield [{ service: name }, limit];
    });
    const relayed = {
      name: 'postern_relayed_bytes_total',
      help: 'Bytes relayed after the login, by the side they came from.',
      labels: ['service', 'from'],
    } as const;
    const bytes = (service: LiveService) => this.relayed(service);
    registry.lookup('counter', relayed, function* () {
      for (const service of live.services()) {
        const { fromClient, fromUpstream } = bytes(service);
        yield [{ service: service.name, from: 'client' }, fromClient];
        yield [{ service: service.name, from: 'upstream' }, fromUpstream];
      }
    });
  }

  #describeCredentials(live: LiveState): void {
    const gauge = (name: string, help: string, read: (service: LiveService) => number | undefined) =>
      this.registry.lookup('gauge', { name, help, labels: ['service'] }, function* () {
        for (const service of live.services()) {
          const value = read(service);
          if (value !== undefined) yield [{ service: service.name }, value];
        }
      });
    gauge(
      'postern_credential_generation',
      "How often the values of the service's credentials have changed since the start, plus one.",
      ({ credential }) => credential.generation || undefined,
    );
    gauge(
      'postern_credential_age_seconds',
      "Since the values of the service's credentials were last seen in the store.",
      ({ credential }) => credential.age,
    );
    gauge(
      'postern_credential_stale',
      'Whether the service uses an old credential because its provider cannot be asked: 1 or 0.',
      ({ credential }) => (credential.stale ? 1 : 0),
    );
    gauge(
      'postern_lease_remaining_seconds',
      'What is left of that lease of the service that ends first.',
      ({ leases }) =>
        leases.length > 0 ? Math.min(...leases.map(({ secondsLeft }) => secondsLeft)) : undefined,
    );
    const leases = {
      name: 'postern_leases_active',
      help: 'Leases that are held now.',
      labels: ['service', 'provider'],
    } as const;
    this.registry.lookup('gauge', leases, function* () {
      for (const { name, leases } of live.services())
        for (const { provider } of leases) yield [{ service: name, provider }, 1];
    });
  }

  /** Metrics of protocols whose sessions carry many requests: read at a scrape, so that a request costs none. */
  #countRequests(live: LiveState): void {
    const totals = (service: LiveService) => this.requests(service);
    const counter = <Label extends string>(
      name: string,
      help: string,
      label: Label,
      read: (requests: RequestCounters) => Iterable<readonly [value: string, count: number]>,
    ) =>
      this.registry.lookup<Label | 'service'>(
        'counter',
        { name, help, labels: ['service', label] },
        function* () {
          for (const service of live.services()) {
            const requests = totals(service);
            if (!requests) continue;
            for (const [value, count] of read(requests))
              yield [{ service: service.name, [label]: value } as Record<Label | 'service', string>, count];
          }
        },
      );
    counter(
      'postern_http_responses_total',
      'Responses that clients got from servers, by the first digit of their status.',
      'class',
      ({ responses }) => [1, 2, 3, 4, 5].map((digit) => [`${digit}xx`, responses[digit] ?? 0]),
    );
    counter(
      'postern_http_failures_total',
      'Requests that Postern answered itself, or cut off, by their code of docs/errors.md.',
      'code',
      ({ failures }) => failures,
    );
    counter(
      'postern_http_upstream_connections_total',
      'Connections for requests: opened for one, or reused.',
      'kind',
      ({ upstreamOpened, upstreamReused }) => [
        ['opened', upstreamOpened],
        ['reused', upstreamReused],
      ],
    );
    counter(
      'postern_http_requests_repeated_total',
      'Requests sent once more, because their connection was stale or their credential rejected.',
      'reason',
      ({ retries, replays }) => [
        ['stale', retries],
        ['rejected', replays],
      ],
    );
    this.registry.lookup(
      'counter',
      {
        name: 'postern_http_blind_tunnels_total',
        help: 'Tunnels (CONNECT) to servers without a rule, that nobody looks into.',
        labels: ['service'],
      } as const,
      function* () {
        for (const service of live.services()) {
          const requests = totals(service);
          if (requests) yield [{ service: service.name }, requests.tunnelsBlind];
        }
      },
    );
  }
}

function total(all: readonly RequestCounters[]): RequestCounters {
  const failures = new Map<ErrorCode, number>();
  for (const each of all)
    for (const [code, count] of each.failures) failures.set(code, (failures.get(code) ?? 0) + count);
  const sum = (value: (each: RequestCounters) => number) =>
    all.reduce((before, each) => before + value(each), 0);
  return {
    responses: [0, 1, 2, 3, 4, 5].map((digit) => sum(({ responses }) => responses[digit] ?? 0)),
    failures,
    upstreamOpened: sum((each) => each.upstreamOpened),
    upstreamReused: sum((each) => each.upstreamReused),
    retries: sum((each) => each.retries),
    replays: sum((each) => each.replays),
    tunnelsBlind: sum((each) => each.tunnelsBlind),
  };
}
