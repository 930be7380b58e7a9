import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';

import { type Address, formatAddress } from '../core/address.ts';
import { Deadline } from '../core/deadline.ts';
import { PosternError } from '../core/errors.ts';
import { describeFailure } from '../core/session.ts';
import { CertificateFiles, type CertificateSource, endOf, OwnCertificate } from './certificates.ts';
import { ClusterApi } from './cluster.ts';
import { InjectorAdmin, InjectorMetrics } from './observations.ts';
import { WebhookServer } from './server.ts';
import type { InjectorSettings } from './settings.ts';

/** What the program gives the injector. */
export interface InjectorContext {
  readonly log: Logger;
  readonly version: string;
  readonly environment: NodeJS.ProcessEnv;
  /** Ends it. */
  readonly signal: AbortSignal;
}

/** How long one look at the Secret and the webhook configuration may take, in milliseconds. */
const LOOK_TIMEOUT = 30_000;
/** How often a cluster is asked for its version, which changes with its upgrades. */
const VERSION_AGE = 600_000;
/** Since then init containers may be sidecars. */
const NATIVE_SINCE = 29;

/** Serves the webhook until the signal. Throws LISTEN_FAILED, and PROVIDER_FAILED when there is no cluster to ask. */
export async function serveInjector(settings: InjectorSettings, context: InjectorContext): Promise<void> {
  await using injector = await Injector.start(settings, context);
  await injector.run();
}

/** The webhook with its certificate, kept current. */
export class Injector implements AsyncDisposable {
  readonly #settings: InjectorSettings;
  readonly #context: InjectorContext;
  readonly #api: ClusterApi;
  readonly #source: CertificateSource;
  readonly #metrics: InjectorMetrics;
  #admin: InjectorAdmin | undefined;
  #server: WebhookServer | undefined;
  #expiry: number | undefined;
  #minor: { readonly version: number; readonly at: number } | undefined;
  #failing = false;

  private constructor(settings: InjectorSettings, context: InjectorContext, api: ClusterApi) {
    this.#settings = settings;
    this.#context = context;
    this.#api = api;
    const { certFile, keyFile } = settings.certificate;
    this.#source =
      certFile !== undefined && keyFile !== undefined
        ? new CertificateFiles(certFile, keyFile)
        : new OwnCertificate(api, settings.certificate);
    this.#metrics = new InjectorMetrics(context.version, {
      expiry: () => this.#expiry,
      ready: () => this.notReady() === undefined,
    });
  }

  /** Opens health and metrics; the webhook opens with its first certificate, for which the API server may have to be asked. */
  static async start(settings: InjectorSettings, context: InjectorContext): Promise<Injector> {
    const api = await ClusterApi.open(settings.cluster, context.environment, context);
    const injector = new Injector(settings, context, api);
    if (settings.admin) {
      injector.#admin = await InjectorAdmin.open(settings.admin, {
        registry: injector.#metrics.registry,
        notReady: () => injector.notReady(),
      });
      const address = formatAddress(injector.#admin.address);
      context.log.info({ address }, 'health and metrics');
    }
    return injector;
  }

  /** Where the webhook listens; undefined before it does. */
  get address(): Address | undefined {
    return this.#server?.address;
  }

  get adminAddress(): Address | undefined {
    return this.#admin?.address;
  }

  /** Why it cannot be called; undefined: it can. */
  notReady(): string | undefined {
    if (this.#context.signal.aborted) return 'stopping';
    if (!this.#server || this.#expiry === undefined) return 'no certificate yet';
    if (this.#expiry <= Date.now()) return 'the certificate has expired';
    return this.#source.unpublished;
  }

  /** Keeps the certificate current until the signal. Throws LISTEN_FAILED. */
  async run(): Promise<void> {
    const { signal } = this.#context;
    while (!signal.aborted) {
      await this.#look();
      // So that replicas which were started together do not go on looking together.
      const pause = this.#settings.certificate.poll * (0.75 + Math.random() / 2);
      await delay(pause, undefined, { signal }).catch(() => undefined);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server?.close();
    this.#admin?.close();
    this.#metrics.close();
    this.#api.close();
  }

  async #look(): Promise<void> {
    const { log, signal } = this.#context;
    const late = () =>
      new PosternError('TIMEOUT', `the API server took longer than ${LOOK_TIMEOUT / 1000} s`);
    using deadline = new Deadline(LOOK_TIMEOUT, late, signal);
    try {
      await this.#learnVersion(deadline.signal);
      const identity = await this.#source.look(deadline.signal);
      if (identity) {
        const end = endOf(identity);
        if (this.#server) this.#server.show(identity);
        else await this.#open(identity);
        this.#expiry = end;
        this.#metrics.renewed();
        log.info({ until: new Date(end).toISOString() }, 'certificate of the webhook in use');
      }
      if (this.#failing) log.info('certificate of the webhook can be looked after again');
      this.#failing = false;
    } catch (thrown) {
      if (signal.aborted) return;
      const error = PosternError.from(thrown);
      if (error.code === 'LISTEN_FAILED') throw error;
      this.#metrics.lookFailed();
      // What is shown is good for hours: it is said once, and counted each time.
      if (!this.#failing)
        log.warn(describeFailure(error), 'certificate of the webhook cannot be looked after');
      this.#failing = true;
    }
  }

  async #open(identity: Parameters<typeof WebhookServer.open>[1]): Promise<void> {
    const { log, version } = this.#context;
    const { sidecar, maxRequests, listen } = this.#settings;
    this.#server = await WebhookServer.open(listen, identity, {
      maxRequests,
      log,
      surroundings: (everyPod) => ({
        settings: sidecar,
        everyPod,
        // Who does not say it is not older than those that are supported.
        native: this.#minor === undefined || this.#minor.version >= NATIVE_SINCE,
        version,
      }),
      observe: (outcome, seconds) => this.#metrics.request(outcome, seconds),
    });
    log.info({ address: formatAddress(this.#server.address) }, 'webhook listening');
  }

  /** Its version decides about `mode: auto` alone: nothing else waits for it. */
  async #learnVersion(signal: AbortSignal): Promise<void> {
    if (this.#minor && performance.now() - this.#minor.at < VERSION_AGE) return;
    try {
      this.#minor = { version: await this.#api.minorVersion(signal), at: performance.now() };
    } catch (thrown) {
      if (signal.aborted) return;
      const error = PosternError.from(thrown);
      if (!this.#failing)
        this.#context.log.warn(describeFailure(error), 'version of the cluster is not known');
    }
  }
}
