import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';

import { Credentials } from '../core/credentials.ts';
import { PosternError } from '../core/errors.ts';
import type { Prepare, Prepared } from '../core/prepared.ts';
import type { Secret } from '../core/secret.ts';
import type { Retirement, Tenure } from '../core/tenure.ts';
import type { Grant, Provider } from '../providers/provider.ts';
import { DerivedKeys } from './derived-keys.ts';
import { Flight } from './flight.ts';
import { PreparedValue } from './prepared-value.ts';

/** A credential of a service: which provider has it, and under which reference. */
export interface SourceReference {
  readonly provider: string;
  readonly get: string;
}

/** Told about every question to a provider, for metrics. */
export type ObserveFetch = (provider: string, outcome: 'ok' | PosternError['code'], seconds: number) => void;

interface Fetched extends Disposable {
  readonly credentials: Credentials;
  /** Equal for equal values; says nothing about them without the key that only this process has. */
  readonly fingerprint: Buffer;
  /** `vault@3, env`: which providers answered, with the version where they said one. */
  readonly versions: string;
}

const fingerprintKey = randomBytes(32);

/**
 * Where the credentials of one service come from. A static secret is asked of its provider for every login, once for
 * all who ask at the same time; nothing but keys derived from it outlives the loans.
 */
export class CredentialSource implements Disposable {
  readonly #references: ReadonlyMap<string, SourceReference>;
  readonly #provider: (name: string) => Provider;
  readonly #observe: ObserveFetch;
  readonly #derived = new DerivedKeys();
  readonly #prepared: Disposable[] = [];
  #flights = 0;
  #generation:
    | {
        readonly number: number;
        readonly fingerprint: Buffer;
        readonly tenants: Set<(why: Retirement) => void>;
      }
    | undefined;
  #flight: Flight<Fetched> | undefined;
  /** The credentials that were rejected last, and how many flights there had been then. */
  #rejected: { readonly fingerprint: Buffer; readonly flights: number } | undefined;

  constructor(
    references: ReadonlyMap<string, SourceReference>,
    provider: (name: string) => Provider,
    observe: ObserveFetch = () => {},
  ) {
    this.#references = references;
    this.#provider = provider;
    this.#observe = observe;
  }

  /**
   * Lends the credentials to `use` and wipes them when it settles. When the upstream rejects them
   * (UPSTREAM_REJECTED) they may have been rotated between the fetch and the login: they are fetched once more,
   * and `use` runs once more if they differ by then. Never a loop.
   */
  async lend<T>(
    use: (credentials: Credentials, signal: AbortSignal) => Promise<T>,
    signal: AbortSignal,
    onLent: (tenure: Tenure) => void = () => {},
  ): Promise<T> {
    let rejected: { readonly error: PosternError; readonly fingerprint: Buffer };
    const flight = this.#flight ?? this.#takeOff();
    {
      using loan = await this.#board(flight, signal);
      const { credentials, fingerprint, versions } = loan.answer;
      onLent(this.#tenureOf(fingerprint, versions));
      try {
        return await use(credentials, signal);
      } catch (error) {
        if (!(error instanceof PosternError && error.code === 'UPSTREAM_REJECTED')) throw error;
        rejected = { error, fingerprint };
      }
    }
    using loan = await this.#board(this.#flightAfterRejection(rejected.fingerprint), signal);
    const { credentials, fingerprint, versions } = loan.answer;
    if (timingSafeEqual(fingerprint, rejected.fingerprint)) throw rejected.error;
    onLent(this.#tenureOf(fingerprint, versions));
    return await use(credentials, signal);
  }

  /** Keeps what `make` makes of the credentials while they are current. */
  prepare<Value extends Disposable>(make: Prepare<Value>): Prepared<Value> {
    const prepared = new PreparedValue(make, (use, signal) => this.lend(use, signal));
    this.#prepared.push(prepared);
    return prepared;
  }

  [Symbol.dispose](): void {
    for (const value of this.#prepared) value[Symbol.dispose]();
    this.#derived.wipe();
  }

  #tenureOf(fingerprint: Buffer, versions: string): Tenure {
    if (!this.#generation?.fingerprint.equals(fingerprint)) {
      const before = this.#generation;
      this.#generation = { number: (before?.number ?? 0) + 1, fingerprint, tenants: new Set() };
      for (const tell of before?.tenants ?? []) tell('replaced');
    }
    const { number, tenants } = this.#generation;
    const mine = new Set<(why: Retirement) => void>();
    let retired: Retirement | undefined;
    const tell = (why: Retirement) => {
      retired = why;
      for (const callback of mine) callback(why);
    };
    tenants.add(tell);
    return {
      generation: number,
      versions,
      leases: [],
      get retired() {
        return retired;
      },
      onRetired: (callback) => {
        if (retired) callback(retired);
        else mine.add(callback);
      },
      release: () => {
        tenants.delete(tell);
        mine.clear();
      },
    };
  }

  /**
   * A flight that took off after these credentials were rejected for the first time: one before that may bring the
   * same again. All who are rejected with them share it, so that a storm of rejections is no storm of questions.
   */
  #flightAfterRejection(fingerprint: Buffer): Flight<Fetched> {
    if (!this.#rejected?.fingerprint.equals(fingerprint))
      this.#rejected = { fingerprint, flights: this.#flights };
    const { flights } = this.#rejected;
    return this.#flight && this.#flight.number > flights ? this.#flight : this.#takeOff();
  }

  #takeOff(): Flight<Fetched> {
    this.#flights += 1;
    const flight: Flight<Fetched> = new Flight(
      this.#flights,
      (signal) => this.#fetch(signal),
      () => {
        if (this.#flight === flight) this.#flight = undefined;
      },
    );
    this.#flight = flight;
    return flight;
  }

  /** A provider that runs into the login's deadline is a provider's failure: say which, and let clients retry. */
  async #board(flight: Flight<Fetched>, signal: AbortSignal): ReturnType<Flight<Fetched>['board']> {
    try {
      return await flight.board(signal);
    } catch (thrown) {
      const late = thrown === signal.reason && thrown instanceof PosternError && thrown.code === 'TIMEOUT';
      if (!late) throw thrown;
      const names = [...new Set(this.#references.values().map(({ provider }) => `"${provider}"`))].join(', ');
      throw new PosternError('PROVIDER_UNAVAILABLE', `provider ${names} did not answer in time`, {
        cause: thrown,
      });
    }
  }

  /** Asks every provider once, all at the same time. The first failure ends the others and wipes what they brought. */
  async #fetch(signal: AbortSignal): Promise<Fetched> {
    const byProvider = Map.groupBy(this.#references, ([, { provider }]) => provider);
    const failed = new AbortController();
    const answers = await Promise.allSettled(
      [...byProvider].map(async ([provider, entries]) => {
        const references = entries.map(([, { get }]) => get);
        try {
          return { provider, entries, grant: await this.#ask(provider, references, signal, failed.signal) };
        } catch (error) {
          failed.abort(error);
          throw error;
        }
      }),
    );
    const granted = answers.flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []));
    if (failed.signal.aborted) {
      for (const { grant } of granted) for (const secret of grant.secrets) secret.wipe();
      throw failed.signal.reason;
    }

    const secrets = new Map<string, Secret>();
    for (const { entries, grant } of granted)
      for (const [i, [name]] of entries.entries()) {
        const secret = grant.secrets[i];
        if (secret) secrets.set(name, secret);
      }
    const fingerprint = fingerprintOf(secrets);
    const versions = granted
      .map(({ provider, grant }) => (grant.version === undefined ? provider : `${provider}@${grant.version}`))
      .join(', ');
    const credentials = new Credentials(secrets, (label, compute) =>
      this.#derived.get(fingerprint, label, compute),
    );
    return { credentials, fingerprint, versions, [Symbol.dispose]: () => credentials[Symbol.dispose]() };
  }

  /** `pointless` aborts when another provider has failed: then the answer is of no use, and its lack no failure. */
  async #ask(
    name: string,
    references: readonly string[],
    signal: AbortSignal,
    pointless: AbortSignal,
  ): Promise<Grant> {
    const started = performance.now();
    const told = (outcome: 'ok' | PosternError['code']) => {
      if (!pointless.aborted) this.#observe(name, outcome, (performance.now() - started) / 1000);
    };
    try {
      const grant = await this.#provider(name).fetch(references, AbortSignal.any([signal, pointless]));
      told('ok');
      return grant;
    } catch (thrown) {
      const error =
        thrown instanceof PosternError
          ? thrown
          : new PosternError('PROVIDER_FAILED', `provider "${name}" failed unexpectedly`, { cause: thrown });
      told(error.code);
      throw error;
    }
  }
}

function fingerprintOf(secrets: ReadonlyMap<string, Secret>): Buffer {
  const hmac = createHmac('sha256', fingerprintKey);
  for (const name of [...secrets.keys()].toSorted()) {
    const bytes = secrets.get(name)?.reveal() ?? Buffer.alloc(0);
    hmac.update(`${name.length}:${name}:${bytes.length}:`).update(bytes);
  }
  return hmac.digest();
}
