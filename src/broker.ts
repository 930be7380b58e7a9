import { lookup } from 'node:dns/promises';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { Logger } from 'pino';

import type { HealthDetail } from './admin/health.ts';
import type { LastError } from './admin/ledger.ts';
import { Metrics } from './admin/metrics.ts';
import type { OtlpExporter } from './admin/otlp.ts';
import { observeProcess } from './admin/process-metrics.ts';
import { AdminServer } from './admin/server.ts';
import type { OperatedService, Operation } from './admin/status.ts';
import { AuditTrail } from './audit.ts';
import type { AdminConfig, AuditConfig, Config, ProviderConfig, ServiceConfig } from './config/config.ts';
import { isLocal } from './config/listen.ts';
import { accountIds } from './core/accounts.ts';
import { type Address, formatAddress } from './core/address.ts';
import { PosternError, reasonOf } from './core/errors.ts';
import { type RelaySettings, Relays } from './core/relay.ts';
import { loadOne } from './core/table.ts';
import { LeaseJournal } from './lifecycle/journal.ts';
import { LeaseOffice } from './lifecycle/leases.ts';
import type { SourceState } from './lifecycle/source.ts';
import { Listener, type ListeningSocket, removeDeadSocket, unsafeFolderOf } from './listener.ts';
import { Observations, type ObservedCredential } from './observations.ts';
import { providers as kinds } from './providers/index.ts';
import type { Provider } from './providers/provider.ts';
import { Service } from './service.ts';

/** How long closing all providers may take at the end, in milliseconds. */
const PROVIDER_CLOSE_TIMEOUT = 5000;
/** How long revoking all leases may take at the end, in milliseconds. */
const REVOKE_TIMEOUT = 5000;
/** How long one provider may take to say for `/readyz?verbose` that it is well, in milliseconds. */
const PROVIDER_CHECK_TIMEOUT = 2000;

export interface BrokerContext {
  readonly log: Logger;
  readonly version: string;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** A socket for the service that listens already, where a service manager has opened one. */
  readonly inherited?: (service: string, listenOn: Address) => ListeningSocket | undefined;
}

/** How a login that nobody waits for has gone. */
export interface Login {
  readonly service: string;
  /** As whom and how, in a few words, or why not. */
  readonly outcome: string | PosternError;
  readonly milliseconds: number;
}

interface OpenProvider {
  readonly config: ProviderConfig;
  readonly provider: Provider;
}

/** Services that share an address, in the order of the configuration; the first one serves the clients. */
type Services = readonly [Service, ...Service[]];

/** Takes a step of a reload back that fails further on. */
type Undo = () => void | Promise<void>;

/** A listening address and the services behind it, which a reload may replace while the listener stays open. */
interface Door {
  readonly key: string;
  readonly listener: Listener;
  readonly behind: { services: Services };
}

/** The running program: opened providers, and services with their listeners. */
export class Broker {
  readonly #observations: Observations;
  readonly #stopSampling: () => void;
  readonly #context: BrokerContext;
  readonly #stateFolder: string | undefined;
  readonly #journal: LeaseJournal | undefined;
  readonly #leases: LeaseOffice;
  readonly #relays: Relays;
  readonly #relayConfigured: RelaySettings;
  #providers = new Map<string, OpenProvider>();
  /** Providers that a reload replaced and that logins may still use, each with the timer that will close it. */
  readonly #replaced = new Map<OpenProvider, NodeJS.Timeout>();
  #doors: Door[] = [];
  /** Services that a reload replaced and that still have sessions. */
  readonly #retired = new Set<Service>();
  #admin: AdminServer | undefined;
  #otlp: OtlpExporter | undefined;
  #adminConfigured: AdminConfig | undefined;
  /** Milliseconds since 1970. */
  #loadedAt = Date.now();
  #reloadFailure: LastError | undefined;
  #state: 'starting' | 'serving' | 'draining' = 'starting';

  private constructor({ stateFolder, relay }: Config, context: BrokerContext) {
    this.#context = context;
    this.#relays = Relays.start(relay);
    this.#relayConfigured = relay;
    const metrics = new Metrics(context.version, {
      ready: () => this.#state === 'serving',
      services: () => this.#live(),
    });
    this.#observations = new Observations(metrics);
    this.#stopSampling = observeProcess(metrics.registry);
    this.#stateFolder = stateFolder;
    this.#journal = stateFolder === undefined ? undefined : new LeaseJournal(stateFolder, context.log);
    this.#leases = new LeaseOffice({
      log: context.log,
      journal: this.#journal,
      observe: (provider, operation, outcome, lease) =>
        this.#observations.leaseOperation(provider, operation, outcome, lease),
    });
  }

  /** Opens everything the configuration names. Throws LISTEN_FAILED or CONFIG_INVALID, with nothing left open. */
  static async start(config: Config, context: BrokerContext): Promise<Broker> {
    const broker = new Broker(config, context);
    broker.#adminConfigured = config.admin;
    broker.#tellRelay();
    try {
      if (config.audit) broker.#observations.audit = await broker.#openAudit(config.audit);
      if (config.admin.listenOn) {
        await broker.#openAdmin(config.admin, config.admin.listenOn);
      }
      await broker.#apply(config);
      broker.#observations.metrics.configLoaded('first');
      broker.#state = 'serving';
      await broker.#exportTelemetry();
      broker.#observations.note('start', {
        version: context.version,
        node: process.version,
        pid: process.pid,
        services: config.services.map(({ name }) => name),
      });
      void broker.#journal?.sweep((provider, ids, signal) => broker.#revokeFormer(provider, ids, signal));
      return broker;
    } catch (error) {
      await broker.stop(() => 0);
      throw error;
    }
  }

  #tellRelay(): void {
    const { engine, fellBack } = this.#relays;
    this.#observations.metrics.relayEngine(engine);
    if (fellBack === undefined) return;
    this.#context.log.info({ reason: fellBack }, 'relaying in TypeScript: there is no native relay');
  }

  /** Where each service really listens, by its name. */
  get addresses(): ReadonlyMap<string, Address> {
    return new Map(
      this.#doors.flatMap(({ listener, behind }) =>
        behind.services.map(({ config }) => [config.name, listener.address] as const),
      ),
    );
  }

  /** Logs in once for every service. */
  async tryLogins(): Promise<Login[]> {
    return await Promise.all(this.#services.map(tryLogin));
  }

  /** Opens everything but the listeners, as a start would, and closes it. Throws CONFIG_INVALID. */
  static async rehearse(config: Config, context: BrokerContext): Promise<void> {
    await Broker.#prepared(config, context, async () => undefined);
  }

  /** Logs in once for every service, without listening anywhere; in the order of the configuration. */
  static async probe(config: Config, context: BrokerContext): Promise<Login[]> {
    return await Broker.#prepared(config, context, tryLogin);
  }

  static async #prepared<T>(
    config: Config,
    context: BrokerContext,
    use: (service: Service) => Promise<T>,
  ): Promise<T[]> {
    const broker = new Broker(config, context);
    const services: Service[] = [];
    try {
      for (const entry of config.providers.values())
        broker.#providers.set(entry.name, await broker.#openProvider(entry));
      for (const entry of config.services) services.push(await broker.#prepare(entry, broker.#providers));
      return await Promise.all(services.map(use));
    } finally {
      for (const service of services) broker.#retire(service);
      await broker.stop(() => 0);
    }
  }

  /**
   * Puts a new configuration in force. What did not change is not touched, what changed serves new clients from now
   * on, and sessions live on. On failure, also to load it, the old configuration stays in force, whole.
   */
  async reload(load: () => Promise<Config>): Promise<void> {
    try {
      const config = await load();
      if (!isDeepStrictEqual(config.admin, this.#adminConfigured))
        this.#context.log.warn('the admin listener changes only with a restart');
      if (!isDeepStrictEqual(config.relay, this.#relayConfigured))
        this.#context.log.warn('the engine of the relay changes only with a restart');
      if (config.stateFolder !== this.#stateFolder)
        this.#context.log.warn('the folder for the ids of leases changes only with a restart');
      await this.#auditAnew(config.audit, () => this.#apply(config));
      this.#observations.metrics.configLoaded('ok');
      this.#loadedAt = Date.now();
      this.#reloadFailure = undefined;
      this.#observations.note('reload', { outcome: 'ok', services: config.services.map(({ name }) => name) });
    } catch (thrown) {
      const { code, message } = PosternError.from(thrown);
      this.#observations.metrics.configLoaded('failed');
      this.#reloadFailure = { code, message, at: Date.now() };
      this.#observations.note('reload', { outcome: code, error: message });
      throw thrown;
    }
  }

  /** Whether it is known what the cluster has, where the configuration comes from there. */
  followed(current: boolean): void {
    this.#observations.metrics.configFollowed(current);
  }

  /**
   * Says that it is not ready any more, and serves on for the longest `minDrainDelay`: whoever chooses where clients
   * connect (the endpoints of a service of Kubernetes, a load balancer) has to hear of it first.
   */
  async linger(): Promise<void> {
    this.#state = 'draining';
    const delay = Math.max(0, ...this.#services.map(({ config }) => config.limits.minDrainDelay));
    if (delay === 0) return;
    this.#context.log.info({ seconds: delay / 1000 }, 'not ready any more, and still accepting');
    await sleep(delay);
  }

  /** Stops accepting, lets sessions finish within their service's drain timeout, closes the providers. */
  async stop(drainTimeout = (service: ServiceConfig) => service.limits.drainTimeout): Promise<void> {
    this.#state = 'draining';
    const services = [...this.#services, ...this.#retired];
    await Promise.all([
      ...this.#doors.map((door) => drainDoor(door, drainTimeout)),
      ...[...this.#retired].map((service) => service.drain(drainTimeout(service.config))),
    ]);
    const outOfTime = setTimeout(() => this.#leases.abandon(), REVOKE_TIMEOUT);
    await Promise.all(services.map(({ gone }) => gone));
    clearTimeout(outOfTime);
    await this.#journal?.close();
    const opened = [...this.#providers.values(), ...this.#replaced.keys()];
    await Promise.all(opened.map((each) => this.#close(each)));
    this.#relays.close();
    this.#admin?.close();
    this.#stopSampling();
    this.#observations.note('stop', {});
    await Promise.all([this.#observations.audit?.close(), this.#otlp?.close()]);
  }

  async #openAdmin(config: AdminConfig, listenOn: Address): Promise<void> {
    if (listenOn.kind === 'unix') await removeDeadSocket(listenOn.path);
    const { metrics, ledger } = this.#observations;
    const operation: Operation = {
      version: this.#context.version,
      metrics,
      ledger,
      state: () => this.#state,
      services: () => this.#live(),
      providers: () => this.#providers.values().map(({ config: { name, kind } }) => ({ name, kind })),
      configuration: () => ({ loadedAt: this.#loadedAt, lastFailure: this.#reloadFailure }),
    };
    this.#admin = await AdminServer.open(listenOn, {
      health: { notReady: () => this.#notReady(), detail: () => this.#detail() },
      operation,
      hosts: config.hosts,
      quit: config.quit ? () => process.kill(process.pid, 'SIGTERM') : undefined,
    });
    this.#context.log.info({ address: formatAddress(this.#admin.address) }, 'health and metrics');
  }

  /** Where OpenTelemetry's usual variables ask for it; nobody else loads the code. */
  async #exportTelemetry(): Promise<void> {
    const { environment, log, version } = this.#context;
    const endpoints = ['', '_METRICS', '_TRACES'].map((signal) => `OTEL_EXPORTER_OTLP${signal}_ENDPOINT`);
    if (!endpoints.some((name) => environment[name])) return;
    if (environment['OTEL_SDK_DISABLED']?.toLowerCase() === 'true') return;
    const { OtlpExporter } = await import('./admin/otlp.ts');
    const exporter = new OtlpExporter(environment, { log, version, metrics: this.#observations.metrics });
    this.#otlp = exporter;
    this.#observations.trace = (login) => exporter.trace(login);
  }

  async #openAudit(config: AuditConfig): Promise<AuditTrail> {
    return await AuditTrail.open(config, this.#context.log, (outcome, records) =>
      this.#observations.metrics.auditRecords(outcome, records),
    );
  }

  /** A file that was rotated is opened anew also when nothing else has changed. */
  async #auditAnew(config: AuditConfig | undefined, apply: () => Promise<void>): Promise<void> {
    const before = this.#observations.audit;
    if (before && isDeepStrictEqual(before.config, config)) {
      await before.reopen();
      await apply();
      return;
    }
    const next = config && (await this.#openAudit(config));
    try {
      await apply();
    } catch (error) {
      await next?.close();
      throw error;
    }
    this.#observations.audit = next;
    await before?.close();
  }

  async #apply(config: Config): Promise<void> {
    const providers = new Map<string, OpenProvider>();
    for (const entry of config.providers.values()) providers.set(entry.name, await this.#openProvider(entry));
    // A certificate is renewed without a change of the configuration.
    const kept = (service: ServiceConfig) =>
      !service.listenTls &&
      [...service.credentials.values(), ...(service.access?.password ? [service.access.password] : [])].every(
        ({ provider }) => providers.get(provider) === this.#providers.get(provider),
      );

    const groups = Map.groupBy(config.services, doorKey);
    const leaving = new Set(this.#doors.filter(({ key }) => !groups.has(key)));
    const wanted: { readonly key: string; door: Door | undefined; readonly services: Services }[] = [];
    const undo: Undo[] = [
      () => {
        for (const [name, provider] of providers)
          if (this.#providers.get(name) !== provider) void this.#close(provider);
      },
    ];
    try {
      for (const [key, entries] of groups) {
        const door =
          this.#doors.find((each) => each.key === key && each.listener.open) ??
          (await renamed(leaving, key, entries[0]?.listenOn));
        const services = await Promise.all(
          entries.map(async (entry) => {
            const current = door?.behind.services.find(({ config: { name } }) => name === entry.name);
            if (current?.config.fingerprint === entry.fingerprint && kept(entry)) return current;
            const service = await this.#prepare(entry, providers);
            undo.push(() => void service.finish());
            return service;
          }),
        );
        const [first, ...others] = services;
        if (first) wanted.push({ key, door, services: [first, ...others] });
      }
      const inTheWay = ({ door, services }: (typeof wanted)[number]) =>
        door ? [] : [...leaving].filter((each) => isInTheWay(each, services[0].config.listenOn));
      // What shows at once comes last: one that makes room, and is not there for a moment.
      for (const each of wanted.toSorted((a, b) => inTheWay(a).length - inTheWay(b).length)) {
        for (const door of inTheWay(each)) this.#makeRoom(door, undo);
        if (each.door) await permitAs(each.door, each.services[0], undo);
        else {
          const door = await this.#open(each.key, each.services[0]);
          undo.push(() => door.listener.close());
          each.door = door;
        }
      }
    } catch (error) {
      for (const step of undo.toReversed()) await step();
      throw error;
    }
    this.#putInForce(
      new Map(wanted.flatMap(({ door, services }) => (door ? [[door, services]] : []))),
      providers,
    );
  }

  /** Closes a listener that is to go, because another one is to have its port. */
  #makeRoom({ listener, behind }: Door, undo: Undo[]): void {
    listener.close();
    undo.push(async () => {
      try {
        await listener.reopen();
      } catch (error) {
        const log = this.#context.log.child({ service: behind.services[0].config.name });
        log.error(
          { reason: reasonOf(error) },
          'a listener could not be opened again, the next reload tries it',
        );
      }
    });
  }

  /** From here on nothing can fail. */
  #putInForce(next: ReadonlyMap<Door, Services>, providers: Map<string, OpenProvider>): void {
    const before = this.#services;
    const listeners = new Set(next.keys().map(({ listener }) => listener));
    for (const { key, listener, behind } of this.#doors) {
      if (listeners.has(listener)) continue;
      listener.close();
      const [{ config }] = behind.services;
      this.#context.log.info({ service: config.name, address: key }, 'no longer listening');
    }
    this.#doors = [...next.keys()];
    for (const [door, services] of next) {
      door.behind.services = services;
      Service.join(services);
    }

    const services = new Set(this.#services);
    for (const service of before) if (!services.has(service)) this.#retire(service);
    const inUse = new Set(providers.values());
    const replaced = [...this.#providers.values()].filter((opened) => !inUse.has(opened));
    this.#providers = providers;
    // A client that has just connected to a replaced service has its time to say what it wants, and to be logged in.
    const patience = 2 * Math.max(0, ...before.map(({ config }) => config.limits.loginTimeout));
    for (const opened of replaced) {
      const timer = setTimeout(() => void this.#closeUnused(opened), patience).unref();
      this.#replaced.set(opened, timer);
    }
  }

  get #services(): Service[] {
    return this.#doors.flatMap(({ behind }) => behind.services);
  }

  #retire(service: Service): void {
    this.#retired.add(service);
    void service
      .finish()
      .then(() => service.gone)
      .then(() => this.#retired.delete(service));
  }

  /** Sessions that live on keep the leases of their credentials alive, and with them the provider that gave those. */
  async #closeUnused(opened: OpenProvider): Promise<void> {
    const users = [...this.#retired].filter(({ source }) => source.needs(opened.config.name));
    await Promise.all(users.map(({ gone }) => gone));
    if (this.#replaced.has(opened)) await this.#close(opened);
  }

  async #prepare(config: ServiceConfig, providers: ReadonlyMap<string, OpenProvider>): Promise<Service> {
    const observed = [...config.credentials].map(([name, { provider, get }]): ObservedCredential => {
      // There the reference is the value itself.
      const literal = providers.get(provider)?.config.kind === 'literal';
      return { name, provider, reference: literal ? undefined : get };
    });
    return await Service.prepare(
      config,
      observed,
      lookUp(providers),
      this.#context.log,
      this.#observations,
      this.#leases,
      this.#relays,
    );
  }

  async #revokeFormer(name: string, ids: readonly string[], signal: AbortSignal): Promise<void> {
    const provider = this.#providers.get(name)?.provider;
    if (!provider?.revokeLeases)
      // A reload may bring it back.
      throw new PosternError('PROVIDER_UNAVAILABLE', `no provider "${name}" that has leases is configured`);
    await provider.revokeLeases(ids, signal);
  }

  async #openProvider(config: ProviderConfig): Promise<OpenProvider> {
    const current = this.#providers.get(config.name);
    if (current?.config.fingerprint === config.fingerprint) return current;
    const kind = await loadOne(kinds, config.kind);
    if (!kind) throw new PosternError('INTERNAL', `no kind of provider is called "${config.kind}"`);
    const log = this.#context.log.child({ provider: config.name });
    const context = { name: config.name, log, environment: this.#context.environment };
    return { config, provider: kind.open(config.settings, context) };
  }

  async #open(key: string, service: Service): Promise<Door> {
    const { name, listenOn, socketMode, connector } = service.config;
    const log = this.#context.log.child({ service: name });
    const behind: Door['behind'] = { services: [service] };
    const events = {
      onClient: (client: Socket) => behind.services[0].accept(client),
      onAcceptError: (error: Error) => {
        // A reload may have given it to another service.
        const { name } = behind.services[0].config;
        this.#observations.metrics.acceptFailed(name);
        this.#context.log.error(
          { service: name, reason: reasonOf(error) },
          'a connection could not be accepted',
        );
      },
    };
    const inherited = this.#context.inherited?.(name, listenOn);
    const listener = inherited
      ? Listener.adopt(refuseWider(inherited, listenOn), events)
      : await Listener.open(listenOn, socketMode, events);
    await give(listener, service.config).catch((error: unknown) => {
      listener.close();
      throw error;
    });
    const unsafe = await unsafeFolderOf(listener.address).catch(() => undefined);
    if (unsafe !== undefined)
      log.warn(
        { folder: unsafe },
        'everybody may put another socket in the place of this one: the folder is open to all',
      );
    log.info({ address: formatAddress(listener.address), connector }, 'listening');
    return { key, listener, behind };
  }

  async #close(opened: OpenProvider): Promise<void> {
    clearTimeout(this.#replaced.get(opened));
    this.#replaced.delete(opened);
    const { config, provider } = opened;
    try {
      await provider.close(AbortSignal.timeout(PROVIDER_CLOSE_TIMEOUT));
    } catch (error) {
      const reason = error instanceof PosternError ? error.message : reasonOf(error);
      this.#context.log.warn({ provider: config.name, reason }, 'a provider could not be closed in order');
    }
  }

  #notReady(): string | undefined {
    return this.#state === 'serving' ? undefined : this.#state;
  }

  async #detail(): Promise<HealthDetail> {
    const services = this.#doors.flatMap(({ listener, behind }) =>
      behind.services.map(({ config: { name }, live: { active, limit }, source }) => ({
        name,
        address: formatAddress(listener.address),
        active,
        limit,
        notes: describeSource(source.describe()),
      })),
    );
    const asked = [...this.#providers].map(async ([name, { provider }]) => {
      try {
        await provider.check(AbortSignal.timeout(PROVIDER_CHECK_TIMEOUT));
        return { name, error: undefined };
      } catch (error) {
        return { name, error: error instanceof PosternError ? error.message : reasonOf(error) };
      }
    });
    return { services, providers: await Promise.all(asked) };
  }

  *#live(): Generator<OperatedService> {
    const addresses = this.addresses;
    const byName = Map.groupBy([...this.#services, ...this.#retired], (service) => service.config.name);
    for (const [name, services] of byName) {
      const [first] = services;
      if (!first) continue;
      const live = services.map((service) => service.live);
      // The one that takes new sessions comes first.
      const states = services.map(({ source }) => source.describe());
      const current = first.source.describe();
      const sum = (field: keyof Service['live']) => live.reduce((total, each) => total + each[field], 0);
      const address = addresses.get(name);
      yield {
        name,
        connector: first.config.connector,
        address: address && formatAddress(address),
        source: { ...current, leases: states.flatMap(({ leases }) => leases) },
        active: sum('active'),
        limit: live[0]?.limit ?? 0,
        bytesFromClient: sum('bytesFromClient'),
        bytesFromUpstream: sum('bytesFromUpstream'),
        credential: {
          generation: current.generation,
          age: current.age,
          stale: current.state === 'stale',
        },
        leases: states.flatMap(({ leases }) => leases),
        requests: services.flatMap(({ counters }) => counters ?? []),
      };
    }
  }
}

/** Whoever opened the socket may not let in more than the configuration does (`exposed: true`). Throws LISTEN_FAILED. */
function refuseWider(socket: ListeningSocket, listenOn: Address): ListeningSocket {
  if (isLocal(socket.address) || !isLocal(listenOn)) return socket;
  socket.close();
  const [given, configured] = [socket.address, listenOn].map(formatAddress);
  throw new PosternError(
    'LISTEN_FAILED',
    `cannot listen on ${given}, which the service manager has opened: other machines can reach it, and the configuration says ${configured}`,
  );
}

/** Of a door whose clients come for sessions that live, too, the listener goes last: they are told that there are no new ones. */
async function drainDoor(
  { listener, behind: { services } }: Door,
  drainTimeout: (service: ServiceConfig) => number,
): Promise<void> {
  // Closed, one that a service manager keeps open makes its clients wait for the next process.
  if (listener.adopted || !services.some(({ hearsOfSessions }) => hearsOfSessions)) listener.close();
  await Promise.all(
    services.map((service) => service.drain(drainTimeout(service.config), () => listener.close())),
  );
  listener.close();
}

/**
 * A door that is to go, and that listens where this address leads as well (`localhost` for `127.0.0.1`): under its new name it
 * stays open all the time.
 */
async function renamed(
  leaving: Set<Door>,
  key: string,
  listenOn: Address | undefined,
): Promise<Door | undefined> {
  if (listenOn?.kind !== 'tcp') return undefined;
  const { host, port } = listenOn;
  const candidates = [...leaving].filter(({ listener: { address, open } }) => {
    return open && address.kind === 'tcp' && address.port === port;
  });
  if (candidates.length === 0) return undefined;
  // As `listen` asks it. That there is no such name is for `listen` to say.
  const found = await lookup(host).catch(() => undefined);
  const same = candidates.find(
    ({ listener: { address } }) => 'host' in address && address.host === found?.address,
  );
  if (!same) return undefined;
  leaving.delete(same);
  return { ...same, key };
}

/** Whether the address may not be had for as long as this door is open: every address of the machine has the port, or one has it. */
function isInTheWay({ listener: { address, open, adopted } }: Door, listenOn: Address): boolean {
  if (!open || adopted || address.kind !== 'tcp' || listenOn.kind !== 'tcp' || address.port !== listenOn.port)
    return false;
  return [address.host, listenOn.host].some((host) => host === '::' || host === '0.0.0.0');
}

async function permitAs({ listener, behind }: Door, { config }: Service, undo: Undo[]): Promise<void> {
  const before = behind.services[0].config;
  if (before.socketMode !== config.socketMode) {
    await listener.permit(config.socketMode);
    undo.push(() => listener.permit(before.socketMode).catch(() => {}));
  }
  if (before.socketOwner !== config.socketOwner || before.socketGroup !== config.socketGroup) {
    await give(listener, config);
    undo.push(() => give(listener, before).catch(() => {}));
  }
}

/** Only then others may connect; before it the socket is closed to all but Postern's own user and group. */
async function give(listener: Listener, { socketOwner, socketGroup }: ServiceConfig): Promise<void> {
  if (socketOwner === undefined && socketGroup === undefined) return;
  const [owner] = await accountIds('user', socketOwner === undefined ? [] : [socketOwner]);
  const [group] = await accountIds('group', socketGroup === undefined ? [] : [socketGroup]);
  await listener.give(owner, group);
}

async function tryLogin(service: Service): Promise<Login> {
  const started = performance.now();
  const outcome = await service.probe().catch((error: unknown) => PosternError.from(error));
  return { service: service.config.name, outcome, milliseconds: Math.round(performance.now() - started) };
}

const stateWords = {
  fresh: 'kept, and fresh',
  kept: 'kept for an outage',
  stale: 'an old one, because its provider cannot be asked',
} as const;

/** What there is to know of a service's credentials beyond that they are fetched when they are needed. */
function describeSource({
  state,
  versions,
  generation,
  age,
  failing,
  rejected,
  leases,
}: SourceState): string[] {
  const lines: string[] = [];
  if (generation > 0)
    lines.push(`credential ${versions}, generation ${generation}, last fetched ${age ?? '?'} s ago`);
  if (state !== 'empty') lines.push(`the credential is ${stateWords[state]}`);
  if (failing)
    lines.push(
      `failing for ${failing.since} s (${failing.code}, ${failing.failures} times, next in ${failing.nextAttempt} s): ${failing.error}`,
    );
  if (rejected) lines.push('the server rejects the credential that the provider has');
  for (const { provider, id, secondsLeft, sessions, current } of leases)
    lines.push(
      `lease ${id} of ${provider}: ${secondsLeft} s left, ${sessions} sessions${current ? '' : ', replaced'}`,
    );
  return lines;
}

function lookUp(providers: ReadonlyMap<string, OpenProvider>): (name: string) => Provider {
  return (name) => {
    const opened = providers.get(name);
    if (!opened) throw new PosternError('INTERNAL', `no provider is called "${name}"`);
    return opened.provider;
  };
}

/** Services are behind the same listener when the address is the same; port 0 is a new port for each service. */
function doorKey({ name, listenOn }: ServiceConfig): string {
  return listenOn.kind === 'tcp' && listenOn.port === 0
    ? `${formatAddress(listenOn)} ${name}`
    : formatAddress(listenOn);
}
