import type { ErrorCode } from '../core/errors.ts';
import type { Outcome, SessionReport } from '../core/session.ts';

/** Logins of a service from which its quantiles are taken: the latest ones. */
const LOGINS_REMEMBERED = 256;

/** Something that failed, for people: a code, a message that names no value, and when. */
export interface LastError {
  readonly code: ErrorCode;
  readonly message: string;
  /** Milliseconds since 1970. */
  readonly at: number;
}

/** How long logins took of late, in seconds; undefined: there was none. */
export interface Latency {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
}

/** What is remembered of one service since the start. */
export interface ServiceRecord {
  sessions: number;
  loginsOk: number;
  loginsFailed: number;
  lastError: LastError | undefined;
  readonly latency: Latency | undefined;
}

/** What is remembered of one provider since the start. */
export interface ProviderRecord {
  asked: number;
  failed: number;
  /** Whether it answered the last question, be it with a refusal; undefined: it was never asked. */
  up: boolean | undefined;
  /** Milliseconds since 1970. */
  lastSuccess: number | undefined;
  lastError: LastError | undefined;
  readonly latency: Latency | undefined;
}

/** What the status page shows and no metric holds: the last error of each service and provider, and how long things took of late. */
export class Ledger {
  readonly #services = new Map<string, ServiceRecord & { readonly recent: Recent }>();
  readonly #providers = new Map<string, ProviderRecord & { readonly recent: Recent }>();

  service(name: string): ServiceRecord {
    return this.#service(name);
  }

  provider(name: string): ProviderRecord {
    return this.#provider(name);
  }

  loggedIn(service: string, seconds: number): void {
    const record = this.#service(service);
    record.loginsOk += 1;
    record.recent.add(seconds);
  }

  /** `logsIn`: its protocol has one login for each session. */
  sessionEnded(service: string, report: SessionReport, logsIn: boolean): void {
    const { outcome, error, admitted, loginSeconds } = report;
    const record = this.#service(service);
    record.sessions += 1;
    if (logsIn && admitted && loginSeconds === undefined && outcome !== 'ok') record.loginsFailed += 1;
    // Clients come and go, and sessions are ended in order, without a failure.
    const inOrder = outcome === 'ok' || outcome === 'SESSION_EXPIRED' || outcome === 'CLIENT_CLOSED';
    if (!inOrder) record.lastError = { code: outcome, message: error ?? '', at: Date.now() };
  }

  providerAsked(provider: string, outcome: Outcome, seconds: number, error: string | undefined): void {
    const record = this.#provider(provider);
    record.asked += 1;
    record.recent.add(seconds);
    record.up = outcome === 'ok' || outcome === 'PROVIDER_FAILED';
    if (outcome === 'ok') {
      record.lastSuccess = Date.now();
      return;
    }
    record.failed += 1;
    record.lastError = { code: outcome, message: error ?? '', at: Date.now() };
  }

  #service(name: string) {
    let record = this.#services.get(name);
    if (!record) {
      const recent = new Recent();
      record = {
        sessions: 0,
        loginsOk: 0,
        loginsFailed: 0,
        lastError: undefined,
        recent,
        get latency() {
          return recent.latency;
        },
      };
      this.#services.set(name, record);
    }
    return record;
  }

  #provider(name: string) {
    let record = this.#providers.get(name);
    if (!record) {
      const recent = new Recent();
      record = {
        asked: 0,
        failed: 0,
        up: undefined,
        lastSuccess: undefined,
        lastError: undefined,
        recent,
        get latency() {
          return recent.latency;
        },
      };
      this.#providers.set(name, record);
    }
    return record;
  }
}

/** The latest of many durations. */
class Recent {
  #seconds: Float64Array | undefined;
  #added = 0;

  add(seconds: number): void {
    this.#seconds ??= new Float64Array(LOGINS_REMEMBERED);
    this.#seconds[this.#added % LOGINS_REMEMBERED] = seconds;
    this.#added += 1;
  }

  get latency(): Latency | undefined {
    const count = Math.min(this.#added, LOGINS_REMEMBERED);
    if (!this.#seconds || count === 0) return undefined;
    const sorted = this.#seconds.slice(0, count).sort();
    const at = (share: number) => sorted[Math.min(count - 1, Math.floor(share * count))] ?? 0;
    return { p50: at(0.5), p90: at(0.9), p99: at(0.99) };
  }
}
