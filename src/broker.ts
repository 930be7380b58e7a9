import type { Logger } from 'pino';

import { type LiveState, Metrics } from './admin/metrics.ts';
import { AdminServer } from './admin/server.ts';
import type { Config, ProviderConfig, ServiceConfig } from './config/config.ts';
import { type Address, formatAddress } from './core/address.ts';
import { PosternError, reasonOf } from './core/errors.ts';
import { loadOne } from './core/table.ts';
import { LeaseJournal } from './lifecycle/journal.ts';
import { LeaseOffice } from './lifecycle/leases.ts';
import type { SourceState } from './lifecycle/source.ts';
import { Listener, removeDeadSocket } from './listener.ts';
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
}

interface OpenProvider {
  readonly config: ProviderConfig;
  readonly provider: Provider;
}

/** Services that share an address, in the order of the configuration; the first one serves the clients. */
type Services = readonly [Service, ...Service[]];

/** A listening address and the services behind it, which a reload may replace while the listener stays open. */
interface Door {
  readonly key: string;
  readonly listener: Listener;
  readonly behind: { services: Services };
}

/** The running program: opened providers, and services with their listeners. */
export class Broker {
  readonly metrics: Metrics;
  readonly #context: BrokerContext;
  readonly #stateFolder: string | undefined;
  readonly #journal: LeaseJournal | undefined;
  readonly #leases: LeaseOffice;
  #providers = new Map<string, OpenProvider>();
  /** Providers that a reload replaced and that logins may still use, each with the timer that will close it. */
  readonly #replaced = new Map<OpenProvider, NodeJS.Timeout>();
  #doors: Door[] = [];
  /** Services that a reload replaced and that still have sessions. */
  readonly #retired = new Set<Service>();
  #admin: AdminServer | undefined;
  #adminConfigured: Address | undefined;
  #state: 'starting' | 'serving' | 'draining' = 'starting';

  private constructor({ stateFolder }: Config, context: BrokerContext) {
    this.#context = context;
    this.metrics = new Metrics(context.version, { services: () => this.#live() });
    this.#stateFolder = stateFolder;
    this.#journal = stateFolder === undefined ? undefined : new LeaseJournal(stateFolder, context.log);
    this.#leases = new LeaseOffice({
      log: context.log,
      journal: this.#journal,
      observe: (provider, operation, outcome) => this.metrics.leaseOperation(provider, operation, outcome),
    });
  }

  /** Opens everything the configuration names. Throws LISTEN_FAILED or CONFIG_INVALID, with nothing left open. */
  static async start(config: Config, context: BrokerContext): Promise<Broker> {
    const broker = new Broker(config, context);
    broker.#adminConfigured = config.admin.listenOn;
    try {
      if (config.admin.listenOn) {
        const health = { notReady: () => broker.#notReady(), detail: () => broker.#detail() };
        if (config.admin.listenOn.kind === 'unix') await removeDeadSocket(config.admin.listenOn.path);
        broker.#admin = await AdminServer.open(config.admin.listenOn, health, broker.metrics.registry);
        context.log.info({ address: formatAddress(broker.#admin.address) }, 'health and metrics');
      }
      await broker.#apply(config);
      broker.metrics.configLoaded('first');
      broker.#state = 'serving';
      void broker.#journal?.sweep((provider, ids, signal) => broker.#revokeFormer(provider, ids, signal));
      return broker;
    } catch (error) {
      await broker.stop(() => 0);
      throw error;
    }
  }

  /** Opens everything but the listeners, as a start would, and closes it. Throws CONFIG_INVALID. */
  static async rehearse(config: Config, context: BrokerContext): Promise<void> {
    await Broker.#prepared(config, context, async () => undefined);
  }

  /** Logs in once for every service, without listening anywhere. Returns a sentence for each, or its failure. */
  static async probe(config: Config, context: BrokerContext): Promise<Map<string, string | PosternError>> {
    const results = await Broker.#prepared(config, context, (service) =>
      service.probe().catch((error: unknown) => PosternError.from(error)),
    );
    return new Map(results.map((result, i) => [config.services[i]?.name ?? '', result]));
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
      if (!sameAddress(config.admin.listenOn, this.#adminConfigured))
        this.#context.log.warn('the address for health and metrics changes only with a restart');
      if (config.stateFolder !== this.#stateFolder)
        this.#context.log.warn('the folder for the ids of leases changes only with a restart');
      await this.#apply(config);
      this.metrics.configLoaded('ok');
    } catch (error) {
      this.metrics.configLoaded('failed');
      throw error;
    }
  }

  /** Stops accepting, lets sessions finish within their service's drain timeout, closes the providers. */
  async stop(drainTimeout = (service: ServiceConfig) => service.limits.drainTimeout): Promise<void> {
    this.#state = 'draining';
    for (const { listener } of this.#doors) listener.close();
    const services = [...this.#services, ...this.#retired];
    await Promise.all(services.map((service) => service.drain(drainTimeout(service.config))));
    const outOfTime = setTimeout(() => this.#leases.abandon(), REVOKE_TIMEOUT);
    await Promise.all(services.map(({ gone }) => gone));
    clearTimeout(outOfTime);
    await this.#journal?.close();
    const opened = [...this.#providers.values(), ...this.#replaced.keys()];
    await Promise.all(opened.map((each) => this.#close(each)));
    this.#admin?.close();
  }

  async #apply(config: Config): Promise<void> {
    const providers = new Map<string, OpenProvider>();
    for (const entry of config.providers.values()) providers.set(entry.name, await this.#openProvider(entry));
    // A certificate is renewed without a change of the configuration.
    const kept = (service: ServiceConfig) =>
      !service.listenTls &&
      [...service.credentials.values()].every(
        ({ provider }) => providers.get(provider) === this.#providers.get(provider),
      );

    const next = new Map<Door, Services>();
    const opened: Door[] = [];
    const changedModes = new Map<Door, number>();
    try {
      for (const [key, entries] of Map.groupBy(config.services, doorKey)) {
        const door = this.#doors.find((open) => open.key === key);
        const services = await Promise.all(
          entries.map(async (entry) => {
            const current = door?.behind.services.find(({ config: { name } }) => name === entry.name);
            return current?.config.fingerprint === entry.fingerprint && kept(entry)
              ? current
              : await this.#prepare(entry, providers);
          }),
        );
        const [first, ...others] = services;
        if (!first) continue;
        const { socketMode } = first.config;
        if (door && door.behind.services[0].config.socketMode !== socketMode)
          changedModes.set(door, socketMode);
        const opening = door ?? (await this.#open(key, first));
        if (!door) opened.push(opening);
        next.set(opening, [first, ...others]);
      }
      // Last, because it shows at once.
      for (const [door, mode] of changedModes) await door.listener.permit(mode);
    } catch (error) {
      for (const { listener } of opened) listener.close();
      for (const [name, provider] of providers)
        if (this.#providers.get(name) !== provider) void this.#close(provider);
      throw error;
    }
    this.#putInForce(next, providers);
  }

  /** From here on nothing can fail. */
  #putInForce(next: ReadonlyMap<Door, Services>, providers: Map<string, OpenProvider>): void {
    const before = this.#services;
    for (const { key, listener, behind } of this.#doors) {
      if (next.keys().some((door) => door.key === key)) continue;
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
    return await Service.prepare(config, lookUp(providers), this.#context.log, this.metrics, this.#leases);
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
    const listener = await Listener.open(listenOn, socketMode, {
      onClient: (client) => behind.services[0].accept(client),
      onAcceptError: (error) => {
        this.metrics.acceptFailed(name);
        log.error({ reason: reasonOf(error) }, 'a connection could not be accepted');
      },
    });
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

  async #detail(): Promise<string[]> {
    const services = this.#doors.flatMap(({ listener, behind }) =>
      behind.services.flatMap(({ config: { name, limits }, live: { active }, source }) => {
        const address = formatAddress(listener.address);
        return [
          `service ${name}: listening on ${address}, ${active} of ${limits.maxConnections} connections`,
          ...describeSource(source.describe()).map((line) => `service ${name}: ${line}`),
        ];
      }),
    );
    const asked = [...this.#providers].map(async ([name, { provider }]) => {
      try {
        await provider.check(AbortSignal.timeout(PROVIDER_CHECK_TIMEOUT));
        return `provider ${name}: ok`;
      } catch (error) {
        return `provider ${name}: ${error instanceof PosternError ? error.message : reasonOf(error)}`;
      }
    });
    return [...services, ...(await Promise.all(asked))];
  }

  *#live(): ReturnType<LiveState['services']> {
    const byName = Map.groupBy([...this.#services, ...this.#retired], (service) => service.config.name);
    for (const [name, services] of byName) {
      const live = services.map((service) => service.live);
      // The one that takes new sessions comes first.
      const states = services.map(({ source }) => source.describe());
      const [current] = states;
      const sum = (field: keyof Service['live']) => live.reduce((total, each) => total + each[field], 0);
      yield {
        name,
        active: sum('active'),
        bytesFromClient: sum('bytesFromClient'),
        bytesFromUpstream: sum('bytesFromUpstream'),
        credential: {
          generation: current?.generation ?? 0,
          age: current?.age,
          stale: current?.state === 'stale',
        },
        leases: states.flatMap(({ leases }) => leases),
        requests: services.flatMap(({ counters }) => counters ?? []),
      };
    }
  }
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

function sameAddress(a: Address | undefined, b: Address | undefined): boolean {
  return (a && formatAddress(a)) === (b && formatAddress(b));
}

/** Services are behind the same listener when the address is the same; port 0 is a new port for each service. */
function doorKey({ name, listenOn }: ServiceConfig): string {
  return listenOn.kind === 'tcp' && listenOn.port === 0
    ? `${formatAddress(listenOn)} ${name}`
    : formatAddress(listenOn);
}
