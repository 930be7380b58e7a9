import type { Socket } from 'node:net';
import type { SecureContext } from 'node:tls';
import type { Logger } from 'pino';

import type { OpenAccess } from './access.ts';
import type { ServiceConfig } from './config/config.ts';
import type { Protocol } from './connectors/connector.ts';
import { connectors } from './connectors/index.ts';
import { Admission } from './core/admission.ts';
import { Deadline } from './core/deadline.ts';
import { PosternError } from './core/errors.ts';
import type { Relays } from './core/relay.ts';
import type { RequestCounters } from './core/request-counters.ts';
import { ClientSession, type ServiceRuntime } from './core/session.ts';
import { loadOne } from './core/table.ts';
import { loadServerContext } from './core/tls.ts';
import type { LeaseOffice } from './lifecycle/leases.ts';
import { CredentialSource, type SourceOptions } from './lifecycle/source.ts';
import type { Observations, ObservedCredential, ObservedService } from './observations.ts';
import type { Provider } from './providers/provider.ts';

/** Clients beyond `maxConnections` that may be told so at the same time; the rest are cut off unheard. */
const MOST_REFUSED = 128;

/** One configured service while it runs: serves the clients that its listener accepts. */
export class Service {
  readonly config: ServiceConfig;
  readonly source: CredentialSource;
  readonly #protocol: Protocol;
  /** Where the local password comes from, if there is one. */
  readonly #localSource: CredentialSource | undefined;
  readonly #runtime: ServiceRuntime;
  readonly #observations: Observations;
  readonly #observed: ObservedService;
  readonly #admission: Admission;
  readonly #sessions = new Map<ClientSession, Promise<void>>();
  readonly #gone = Promise.withResolvers<void>();
  #outOfTime = false;
  #finished = false;

  private constructor(
    config: ServiceConfig,
    protocol: Protocol,
    source: CredentialSource,
    localTls: SecureContext | undefined,
    log: Logger,
    observed: ObservedService,
    observations: Observations,
    relays: Relays,
    access: OpenAccess | undefined,
  ) {
    this.config = config;
    this.source = source;
    this.#protocol = protocol;
    this.#observations = observations;
    this.#observed = observed;
    this.#localSource = access?.source;
    this.#admission = new Admission(config.name, config.limits.maxConnections);
    this.#runtime = {
      name: config.name,
      log: log.child({ service: config.name }),
      localTls,
      loginTimeout: config.limits.loginTimeout,
      idleTimeout: config.limits.idleTimeout,
      maxSessionAge: config.limits.maxSessionAge,
      drainTimeout: config.limits.drainTimeout,
      onRotation: config.onRotation,
      admission: this.#admission,
      access: access?.access,
      relay: relays.relay,
      loggedIn: (login) => observations.loggedIn(observed, login),
      serve: (session) => protocol.serve(session),
      lend: (use, signal, onLent) => source.lend(use, signal, onLent),
    };
  }

  /** Reads what the service needs from files. Throws CONFIG_INVALID. */
  static async prepare(
    config: ServiceConfig,
    credentials: readonly ObservedCredential[],
    provider: (name: string) => Provider,
    log: Logger,
    observations: Observations,
    leases: LeaseOffice,
    relays: Relays,
  ): Promise<Service> {
    const connector = await loadOne(connectors, config.connector);
    if (!connector) throw new PosternError('INTERNAL', `no connector is called "${config.connector}"`);
    const localTls = config.listenTls && (await loadServerContext(config.listenTls));
    const { loginTimeout, idleTimeout } = config.limits;
    const options: SourceOptions = {
      policy: { ...config.cache, ...(config.onRotation === 'keep' && { rotationCheck: 0 }) },
      log: log.child({ service: config.name }),
      leases,
      fetchTimeout: loginTimeout,
      observer: {
        asked: (name, outcome, seconds, error) => observations.providerAsked(name, outcome, seconds, error),
        lent: (from) => observations.metrics.credentialLent(config.name, from),
        rejected: (outcome) => observations.metrics.credentialRejected(config.name, outcome),
      },
    };
    const access =
      config.access &&
      (await (await import('./access.ts')).openAccess(config, config.access, provider, options));
    const source = new CredentialSource(config.credentials, provider, options);
    const about = { name: config.name, connector: config.connector, credentials };
    const protocol = connector.open(config.settings, {
      name: config.name,
      log: log.child({ service: config.name }),
      loginTimeout,
      idleTimeout,
      prepare: (make) => source.prepare(make),
      asksPassword: config.access?.password !== undefined,
      requestAudit: observations.requestAudit({ ...about, logsIn: false }),
    });
    const observed = { ...about, logsIn: protocol.counters === undefined };
    return new Service(config, protocol, source, localTls, log, observed, observations, relays, access);
  }

  /** Tells services that listen on one address, in the order of the configuration, of each other. */
  static join(services: readonly Service[]): void {
    const members = services.map((service) => service.#protocol);
    for (const member of members) member.join?.(members);
  }

  /** Sessions that have a place, and what they have relayed so far. */
  get live(): { active: number; limit: number; bytesFromClient: number; bytesFromUpstream: number } {
    let bytesFromClient = 0;
    let bytesFromUpstream = 0;
    for (const { bytes } of this.#sessions.keys()) {
      bytesFromClient += bytes.fromClient;
      bytesFromUpstream += bytes.fromUpstream;
    }
    const { active, max: limit } = this.#admission;
    return { active, limit, bytesFromClient, bytesFromUpstream };
  }

  /** Of a protocol that counts requests, until the metrics have got them for good. */
  get counters(): RequestCounters | undefined {
    return this.#finished ? undefined : this.#protocol.counters?.();
  }

  /** Serves one accepted client to its end. */
  accept(client: Socket): void {
    if (this.#sessions.size >= this.config.limits.maxConnections + MOST_REFUSED) {
      this.#observations.metrics.connectionDropped(this.config.name);
      client.on('error', () => {});
      client.destroy();
      return;
    }
    const session = new ClientSession(client, this.#runtime);
    if (this.#outOfTime) session.stop();
    const ended = session.run().then((report) => {
      this.#sessions.delete(session);
      this.#observations.sessionEnded(this.#observed, report);
    });
    this.#sessions.set(session, ended);
  }

  /** Logs in upstream once, as a session would; see `Protocol.probe`. */
  async probe(): Promise<string> {
    const { loginTimeout } = this.config.limits;
    const late = () => new PosternError('TIMEOUT', `the login took longer than ${loginTimeout / 1000} s`);
    using deadline = new Deadline(loginTimeout, late);
    return await this.#protocol.probe({
      log: this.#runtime.log,
      note: () => {},
      withCredentials: (use) => this.source.lend(use, deadline.signal),
    });
  }

  /** Resolves when nothing is left of the service: no session, and no lease that could still be revoked. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }

  /**
   * Waits for the sessions of a service that no listener gives clients any more. Those that have connected and not yet
   * said what they want are among them, and are served.
   */
  async finish(): Promise<void> {
    this.#protocol.drain?.();
    await Promise.all(this.#sessions.values());
    if (this.#finished) return;
    const { counters } = this;
    this.#finished = true;
    this.#protocol.close?.();
    if (counters) this.#observations.metrics.requestsEnded(this.config.name, counters);
    this.#gone.resolve(Promise.all([this.source.close(), this.#localSource?.close()]).then(() => {}));
  }

  /** Whether clients connect also for the sake of sessions that live: while there are any, the listener is of use. */
  get hearsOfSessions(): boolean {
    return this.#protocol.hearsOfSessions === true;
  }

  /**
   * Takes no more sessions, and gives those it has `milliseconds` to finish; then they are ended. `unused` is called when they
   * are gone: whoever connects from then on does so in vain.
   */
  async drain(milliseconds: number, unused = () => {}): Promise<void> {
    this.#admission.close();
    const cut = setTimeout(() => {
      this.#outOfTime = true;
      for (const session of this.#sessions.keys()) session.stop();
    }, milliseconds);
    this.#protocol.drain?.();
    for (const session of this.#sessions.keys()) session.leave();
    await Promise.all(this.#sessions.values());
    unused();
    await this.finish();
    clearTimeout(cut);
  }
}
