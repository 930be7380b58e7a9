import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

import type { ErrorCode } from '../core/errors.ts';
import type { RequestCounters } from '../core/request-counters.ts';
import type { Outcome, SessionReport } from '../core/session.ts';

/** What the metrics ask of the running program at the moment of a scrape. */
export interface LiveState {
  /** Sessions and bytes of one service that are not in a report yet. */
  services(): Generator<{
    readonly name: string;
    readonly active: number;
    readonly bytesFromClient: number;
    readonly bytesFromUpstream: number;
    readonly credential: {
      readonly generation: number;
      /** Seconds since the values were last seen in the store; undefined: never. */
      readonly age: number | undefined;
      readonly stale: boolean;
    };
    readonly leases: readonly { readonly provider: string }[];
    /** Of the protocols of that name that count requests. */
    readonly requests: readonly RequestCounters[];
  }>;
}

/** Every metric that Postern exposes; docs/metrics.md describes them, and a test holds the two together. */
export class Metrics {
  readonly registry = new Registry();
  readonly #relayedByEnded = new Map<string, { fromClient: number; fromUpstream: number }>();
  readonly #requestsOfEnded = new Map<string, RequestCounters[]>();
  readonly #sessions: Counter;
  readonly #logins: Histogram;
  readonly #fetches: Counter;
  readonly #fetchDuration: Histogram;
  readonly #providerUp: Gauge;
  readonly #providerSuccess: Gauge;
  readonly #providerFailures: Gauge;
  readonly #lent: Counter;
  readonly #rejections: Counter;
  readonly #leaseOperations: Counter;
  readonly #acceptErrors: Counter;
  readonly #dropped: Counter;
  readonly #reloads: Counter;
  readonly #reloaded: Gauge;

  constructor(version: string, live: LiveState) {
    const registers = [this.registry];
    collectDefaultMetrics({ register: this.registry });
    new Gauge({
      name: 'postern_build_info',
      help: 'Always 1; the labels say which version runs on which Node.js.',
      labelNames: ['version', 'node'],
      registers,
    }).set({ version, node: process.version }, 1);
    new Gauge({
      name: 'postern_sessions_active',
      help: 'Sessions that have a place now.',
      labelNames: ['service'],
      registers,
      collect() {
        this.reset();
        for (const { name, active } of live.services()) this.set({ service: name }, active);
      },
    });
    const ended = this.#relayedByEnded;
    new Counter({
      name: 'postern_relayed_bytes_total',
      help: 'Bytes relayed after the login, by the side they came from.',
      labelNames: ['service', 'from'],
      registers,
      collect() {
        this.reset();
        for (const { name, bytesFromClient, bytesFromUpstream } of live.services()) {
          const before = ended.get(name);
          this.inc({ service: name, from: 'client' }, bytesFromClient + (before?.fromClient ?? 0));
          this.inc({ service: name, from: 'upstream' }, bytesFromUpstream + (before?.fromUpstream ?? 0));
        }
      },
    });
    this.#countRequests(live);
    this.#sessions = new Counter({
      name: 'postern_sessions_total',
      help: 'Ended sessions by outcome: ok, or a code of docs/errors.md.',
      labelNames: ['service', 'outcome'],
      registers,
    });
    this.#logins = new Histogram({
      name: 'postern_login_duration_seconds',
      help: 'From a client that has said what it wants to one that is logged in.',
      labelNames: ['service'],
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    });
    this.#fetches = new Counter({
      name: 'postern_provider_requests_total',
      help: 'Questions to a provider by outcome: ok, or a code of docs/errors.md.',
      labelNames: ['provider', 'outcome'],
      registers,
    });
    this.#fetchDuration = new Histogram({
      name: 'postern_provider_request_duration_seconds',
      help: 'How long a provider took to answer.',
      labelNames: ['provider'],
      buckets: [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    });
    this.#providerUp = new Gauge({
      name: 'postern_provider_up',
      help: 'Whether the provider answered the last question, be it with a refusal: 1 or 0.',
      labelNames: ['provider'],
      registers,
    });
    this.#providerSuccess = new Gauge({
      name: 'postern_provider_last_success_timestamp_seconds',
      help: 'When the provider last gave what it was asked for.',
      labelNames: ['provider'],
      registers,
    });
    this.#providerFailures = new Gauge({
      name: 'postern_provider_consecutive_failures',
      help: 'Questions since then that the provider did not answer with what it was asked for.',
      labelNames: ['provider'],
      registers,
    });
    this.#lent = new Counter({
      name: 'postern_credential_requests_total',
      help: 'Credentials that logins or requests were given, by where they came from: provider, cache, or stale where the provider could not be asked.',
      labelNames: ['service', 'from'],
      registers,
    });
    this.#rejections = new Counter({
      name: 'postern_credential_rejections_total',
      help: 'Logins that met a rejected credential, by their end: recovered, where another try was accepted, or refused.',
      labelNames: ['service', 'outcome'],
      registers,
    });
    new Gauge({
      name: 'postern_credential_generation',
      help: "How often the values of the service's credentials have changed since the start, plus one.",
      labelNames: ['service'],
      registers,
      collect() {
        this.reset();
        for (const { name, credential } of live.services())
          if (credential.generation > 0) this.set({ service: name }, credential.generation);
      },
    });
    new Gauge({
      name: 'postern_credential_age_seconds',
      help: "Since the values of the service's credentials were last seen in the store.",
      labelNames: ['service'],
      registers,
      collect() {
        this.reset();
        for (const { name, credential } of live.services())
          if (credential.age !== undefined) this.set({ service: name }, credential.age);
      },
    });
    new Gauge({
      name: 'postern_credential_stale',
      help: 'Whether the service uses an old credential because its provider cannot be asked: 1 or 0.',
      labelNames: ['service'],
      registers,
      collect() {
        this.reset();
        for (const { name, credential } of live.services())
          this.set({ service: name }, credential.stale ? 1 : 0);
      },
    });
    new Gauge({
      name: 'postern_leases_active',
      help: 'Leases that are held now.',
      labelNames: ['service', 'provider'],
      registers,
      collect() {
        this.reset();
        for (const { name, leases } of live.services())
          for (const { provider } of leases) this.inc({ service: name, provider });
      },
    });
    this.#leaseOperations = new Counter({
      name: 'postern_lease_operations_total',
      help: 'Renewals and revocations of leases by outcome: ok, or a code of docs/errors.md.',
      labelNames: ['provider', 'operation', 'outcome'],
      registers,
    });
    this.#acceptErrors = new Counter({
      name: 'postern_accept_errors_total',
      help: 'Connections that could not be accepted, for example for lack of descriptors.',
      labelNames: ['service'],
      registers,
    });
    this.#dropped = new Counter({
      name: 'postern_connections_dropped_total',
      help: 'Connections closed unheard because too many others were still waiting to be refused.',
      labelNames: ['service'],
      registers,
    });
    this.#reloads = new Counter({
      name: 'postern_config_reloads_total',
      help: 'Reloads of the configuration by outcome: ok or failed.',
      labelNames: ['outcome'],
      registers,
    });
    this.#reloaded = new Gauge({
      name: 'postern_config_last_load_timestamp_seconds',
      help: 'When the configuration in force was loaded.',
      registers,
    });
  }

  /** A protocol is closed: what it counted stays. */
  requestsEnded(service: string, counters: RequestCounters): void {
    const before = this.#requestsOfEnded.get(service) ?? [];
    this.#requestsOfEnded.set(service, [total([...before, counters])]);
  }

  sessionEnded(service: string, report: SessionReport): void {
    this.#sessions.inc({ service, outcome: report.outcome });
    if (report.loginSeconds !== undefined) this.#logins.observe({ service }, report.loginSeconds);
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

  acceptFailed(service: string): void {
    this.#acceptErrors.inc({ service });
  }

  connectionDropped(service: string): void {
    this.#dropped.inc({ service });
  }

  configLoaded(outcome: 'first' | 'ok' | 'failed'): void {
    if (outcome !== 'first') this.#reloads.inc({ outcome });
    if (outcome !== 'failed') this.#reloaded.set(Date.now() / 1000);
  }

  /** Metrics of protocols whose sessions carry many requests: read at a scrape, so that a request costs none. */
  #countRequests(live: LiveState): void {
    const ended = this.#requestsOfEnded;
    const totals = function* () {
      for (const { name, requests } of live.services()) {
        const all = [...requests, ...(ended.get(name) ?? [])];
        if (all.length > 0) yield { service: name, ...total(all) };
      }
    };
    const counter = <Label extends string>(
      name: string,
      help: string,
      labels: readonly Label[],
      collect: (add: (labels: Record<Label | 'service', string>, value: number) => void) => void,
    ) =>
      new Counter({
        name,
        help,
        labelNames: ['service', ...labels],
        registers: [this.registry],
        collect() {
          this.reset();
          collect((values, value) => this.inc(values, value));
        },
      });
    counter(
      'postern_http_responses_total',
      'Responses that clients got from servers, by the first digit of their status.',
      ['class'],
      (add) => {
        for (const { service, responses } of totals())
          for (const [digit, count] of responses.entries())
            if (digit > 0) add({ service, class: `${digit}xx` }, count);
      },
    );
    counter(
      'postern_http_failures_total',
      'Requests that Postern answered itself, or cut off, by their code of docs/errors.md.',
      ['code'],
      (add) => {
        for (const { service, failures } of totals())
          for (const [code, count] of failures) add({ service, code }, count);
      },
    );
    counter(
      'postern_http_upstream_connections_total',
      'Connections for requests: opened for one, or reused.',
      ['kind'],
      (add) => {
        for (const { service, upstreamOpened, upstreamReused } of totals()) {
          add({ service, kind: 'opened' }, upstreamOpened);
          add({ service, kind: 'reused' }, upstreamReused);
        }
      },
    );
    counter(
      'postern_http_requests_repeated_total',
      'Requests sent once more, because their connection was stale or their credential rejected.',
      ['reason'],
      (add) => {
        for (const { service, retries, replays } of totals()) {
          add({ service, reason: 'stale' }, retries);
          add({ service, reason: 'rejected' }, replays);
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
  };
}
