import type { SourceState } from '../lifecycle/source.ts';
import type { LastError, Latency, Ledger } from './ledger.ts';
import type { LiveService, Metrics } from './metrics.ts';
import { processState } from './process-metrics.ts';

/** What the status asks of the running program. */
export interface Operation {
  readonly version: string;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  state(): 'starting' | 'serving' | 'draining';
  services(): Iterable<OperatedService>;
  providers(): Iterable<{ readonly name: string; readonly kind: string }>;
  /** When the configuration in force was loaded (milliseconds since 1970), and why the last reload failed, if it did. */
  configuration(): { readonly loadedAt: number; readonly lastFailure: LastError | undefined };
}

/** One service with what only its page shows. */
export interface OperatedService extends LiveService {
  readonly connector: string;
  /** Where it listens; undefined: a reload took it away, and only its sessions live on. */
  readonly address: string | undefined;
  /** Of the service that takes new sessions. */
  readonly source: SourceState;
}

/** The answer of `/status`: names and numbers, never a value. Times are in ISO 8601, durations in the unit of their name. */
export interface Status {
  readonly version: string;
  readonly node: string;
  readonly pid: number;
  readonly state: 'starting' | 'serving' | 'draining';
  readonly now: string;
  readonly uptimeSeconds: number;
  readonly configuration: { readonly loadedAt: string; readonly lastFailure: ErrorStatus | null };
  readonly process: {
    readonly residentBytes: number;
    readonly cpuSeconds: number;
    readonly descriptors: number | null;
    readonly mostDescriptors: number | null;
  };
  readonly services: readonly ServiceStatus[];
  readonly providers: readonly ProviderStatus[];
}

export interface ErrorStatus {
  readonly code: string;
  readonly message: string;
  readonly at: string;
}

export interface ServiceStatus {
  readonly name: string;
  readonly connector: string;
  readonly address: string | null;
  readonly sessions: { readonly active: number; readonly limit: number; readonly total: number };
  /** null: a protocol whose sessions carry many requests. */
  readonly logins: {
    readonly ok: number;
    readonly failed: number;
    readonly milliseconds: Latency | null;
  } | null;
  /** null: a protocol that has logins instead. */
  readonly requests: {
    readonly responses: Readonly<Record<string, number>>;
    readonly failed: number;
  } | null;
  readonly bytes: { readonly fromClient: number; readonly fromUpstream: number };
  readonly credential: {
    readonly state: SourceState['state'];
    readonly providers: readonly string[];
    readonly versions: string;
    readonly generation: number;
    readonly ageSeconds: number | null;
    readonly rejected: boolean;
    readonly failing: SourceState['failing'] | null;
  };
  readonly leases: SourceState['leases'];
  readonly lastError: ErrorStatus | null;
}

export interface ProviderStatus {
  readonly name: string;
  readonly kind: string;
  /** null: it was not asked yet. */
  readonly up: boolean | null;
  readonly asked: number;
  readonly failed: number;
  readonly milliseconds: Latency | null;
  readonly lastSuccess: string | null;
  readonly lastError: ErrorStatus | null;
}

/** How it stands with everything. Asks nobody outside of this process. */
export function statusOf(operation: Operation): Status {
  const { version, metrics, ledger } = operation;
  const { loadedAt, lastFailure } = operation.configuration();
  const { residentBytes, cpuSeconds, descriptors, mostDescriptors } = processState();
  return {
    version,
    node: process.version,
    pid: process.pid,
    state: operation.state(),
    now: new Date().toISOString(),
    uptimeSeconds: Math.round(process.uptime()),
    configuration: { loadedAt: iso(loadedAt), lastFailure: errorStatus(lastFailure) },
    process: {
      residentBytes,
      cpuSeconds,
      descriptors: descriptors ?? null,
      mostDescriptors: mostDescriptors ?? null,
    },
    services: [...operation.services()].map((service) => serviceStatus(service, metrics, ledger)),
    providers: [...operation.providers()].map((provider) => providerStatus(provider, ledger)),
  };
}

function serviceStatus(service: OperatedService, metrics: Metrics, ledger: Ledger): ServiceStatus {
  const { name, connector, address, active, limit, source } = service;
  const record = ledger.service(name);
  const requests = metrics.requests(service);
  return {
    name,
    connector,
    address: address ?? null,
    sessions: { active, limit, total: record.sessions + active },
    logins: requests
      ? null
      : { ok: record.loginsOk, failed: record.loginsFailed, milliseconds: inMilliseconds(record.latency) },
    requests: requests
      ? {
          responses: Object.fromEntries(
            [1, 2, 3, 4, 5].map((digit) => [`${digit}xx`, requests.responses[digit] ?? 0]),
          ),
          failed: requests.failures.values().reduce((sum, count) => sum + count, 0),
        }
      : null,
    bytes: metrics.relayed(service),
    credential: {
      state: source.state,
      providers: source.providers,
      versions: source.versions,
      generation: source.generation,
      ageSeconds: source.age ?? null,
      rejected: source.rejected,
      failing: source.failing ?? null,
    },
    leases: source.leases,
    lastError: errorStatus(record.lastError),
  };
}

function providerStatus(
  { name, kind }: { readonly name: string; readonly kind: string },
  ledger: Ledger,
): ProviderStatus {
  const { up, asked, failed, latency, lastSuccess, lastError } = ledger.provider(name);
  return {
    name,
    kind,
    up: up ?? null,
    asked,
    failed,
    milliseconds: inMilliseconds(latency),
    lastSuccess: lastSuccess === undefined ? null : iso(lastSuccess),
    lastError: errorStatus(lastError),
  };
}

function errorStatus(error: LastError | undefined): ErrorStatus | null {
  return error ? { code: error.code, message: error.message, at: iso(error.at) } : null;
}

function iso(at: number): string {
  return new Date(at).toISOString();
}

function inMilliseconds(latency: Latency | undefined): Latency | null {
  if (!latency) return null;
  const rounded = (seconds: number) => Math.round(seconds * 10_000) / 10;
  return { p50: rounded(latency.p50), p90: rounded(latency.p90), p99: rounded(latency.p99) };
}
