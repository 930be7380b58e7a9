import { Ledger } from './admin/ledger.ts';
import type { Metrics } from './admin/metrics.ts';
import type { TracedLogin } from './admin/otlp.ts';
import type { AuditFields, AuditTrail } from './audit.ts';
import type { AuditEvent } from './config/config.ts';
import type { RequestAudit } from './connectors/connector.ts';
import type { ErrorCode } from './core/errors.ts';
import type { LoginReport, Outcome, SessionFacts, SessionReport } from './core/session.ts';

/** A service as whoever watches it has to know it. */
export interface ObservedService {
  readonly name: string;
  readonly connector: string;
  /** Where its credentials come from, for the audit; never a value. */
  readonly credentials: readonly ObservedCredential[];
  /** Its protocol has one login for each session; else its sessions carry many requests. */
  readonly logsIn: boolean;
}

export interface ObservedCredential {
  readonly name: string;
  readonly provider: string;
  /** What the provider is asked for; undefined where that is the value itself. */
  readonly reference: string | undefined;
}

/** Of these outcomes Postern itself has turned the client away. */
const refusals: ReadonlySet<Outcome> = new Set<ErrorCode>([
  'LIMIT_REACHED',
  'RATE_LIMITED',
  'ACCESS_DENIED',
  'CLIENT_REFUSED',
  'SHUTDOWN',
]);

/** Whatever happens is told here once, and goes on to the metrics, the status page, the audit and the traces. */
export class Observations {
  readonly metrics: Metrics;
  readonly ledger = new Ledger();
  /** undefined: nobody asked for one. A reload may change it. */
  audit: AuditTrail | undefined;
  /** undefined: nobody collects traces. */
  trace: ((login: TracedLogin) => void) | undefined;

  constructor(metrics: Metrics) {
    this.metrics = metrics;
  }

  loggedIn(service: ObservedService, login: LoginReport): void {
    const seconds = (login.loggedInAt - login.admittedAt) / 1000;
    this.metrics.loggedIn(service.name, seconds);
    this.ledger.loggedIn(service.name, seconds);
    this.trace?.({
      ...tracedPart(service, login),
      startedAt: login.admittedAt,
      lentAt: login.lentAt,
      endedAt: login.loggedInAt,
      outcome: 'ok',
      error: undefined,
    });
    if (this.audit?.wants('login'))
      this.audit.record('login', {
        ...partOf(service, login),
        decision: 'allowed',
        fetchMs: Math.round(login.lentAt - login.admittedAt),
        loginMs: Math.round(seconds * 1000),
      });
  }

  sessionEnded(service: ObservedService, report: SessionReport): void {
    const { name, logsIn } = service;
    this.metrics.sessionEnded(name, report, logsIn);
    this.ledger.sessionEnded(name, report, logsIn);
    const { outcome, admitted, loginSeconds } = report;
    if (this.trace && logsIn && admitted && loginSeconds === undefined && outcome !== 'ok') {
      const endedAt = performance.now();
      const startedAt = endedAt - report.seconds * 1000;
      const { error } = report;
      this.trace({ ...tracedPart(service, report), startedAt, lentAt: undefined, endedAt, outcome, error });
    }
    if (this.audit) this.#auditSession(this.audit, service, report);
  }

  /** Takes the requests of a service, when a reload asks for them also from then on. */
  requestAudit({ name, connector, credentials }: ObservedService): RequestAudit {
    const wanted = () => this.audit?.wants('request') === true;
    return {
      get wanted() {
        return wanted();
      },
      ended: (session, client, facts) =>
        this.audit?.record('request', {
          service: name,
          connector,
          session,
          client,
          credentials,
          ...facts,
        }),
    };
  }

  providerAsked(provider: string, outcome: Outcome, seconds: number, error: string | undefined): void {
    this.metrics.providerAsked(provider, outcome, seconds);
    this.ledger.providerAsked(provider, outcome, seconds, error);
  }

  leaseOperation(provider: string, operation: 'renew' | 'revoke', outcome: Outcome, lease: string): void {
    this.metrics.leaseOperation(provider, operation, outcome);
    this.audit?.record('lease', { provider, operation, lease, outcome });
  }

  /** Something about Postern itself. */
  note(event: Extract<AuditEvent, 'start' | 'stop' | 'reload'>, facts: AuditFields): void {
    this.audit?.record(event, facts);
  }

  #auditSession(audit: AuditTrail, service: ObservedService, report: SessionReport): void {
    const { outcome, admitted, loginSeconds, seconds, bytesFromClient, bytesFromUpstream, error } = report;
    const refused = loginSeconds === undefined && refusals.has(outcome) && service.logsIn;
    const turnedAway = refused || (!admitted && refusals.has(outcome));
    // Port probes connect and leave without a word.
    const unheard = !admitted && !turnedAway && (outcome === 'ok' || outcome === 'CLIENT_CLOSED');
    if (unheard && report.facts['cancel'] === undefined) return;
    const event = turnedAway ? 'refused' : 'session';
    if (!audit.wants(event)) return;
    audit.record(event, {
      ...partOf(service, report),
      decision: turnedAway ? 'refused' : 'allowed',
      outcome,
      ...(error !== undefined && { error }),
      ...(loginSeconds !== undefined && { loginMs: Math.round(loginSeconds * 1000) }),
      durationMs: Math.round(seconds * 1000),
      bytesFromClient,
      bytesFromUpstream,
    });
  }
}

function tracedPart({ name, connector }: ObservedService, { id, client, facts }: SessionFacts) {
  return { service: name, connector, session: id, client, facts };
}

/** What login and session have in common. `versions` is what the log calls `credential`. */
function partOf(
  { name, connector, credentials }: ObservedService,
  { id, client, facts }: SessionFacts,
): AuditFields {
  const { credential: versions, ...others } = facts;
  return {
    service: name,
    connector,
    session: id,
    client,
    credentials,
    ...(versions !== undefined && { versions }),
    ...others,
  };
}
