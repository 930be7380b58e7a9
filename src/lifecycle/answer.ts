import { randomBytes } from 'node:crypto';
import { join, wipe } from '../core/bytes.ts';
import { PosternError } from '../core/errors.ts';
import { hmacSha256 } from '../core/hmac.ts';
import { Secret } from '../core/secret.ts';
import type { Grant, Lease, Provider } from '../providers/provider.ts';

/** A credential of a service: which provider has it, and under which reference. */
export interface SourceReference {
  readonly provider: string;
  readonly get: string;
}

/** Told about every question to a provider, for metrics. */
export type ObserveFetch = (
  provider: string,
  outcome: 'ok' | PosternError['code'],
  seconds: number,
  /** Why it failed. */
  error?: string,
) => void;

/** A lease and the name of the provider that gave it. */
export interface GivenLease {
  readonly provider: string;
  readonly lease: Lease;
}

/** What all providers of a service answered to one question. */
export interface Answer extends Disposable {
  readonly secrets: ReadonlyMap<string, Secret>;
  /** Equal for equal values under the same leases; says nothing about them without the key that only this process has. */
  readonly fingerprint: string;
  /** `vault@3, env`: which providers answered, with the version where they said one. */
  readonly versions: string;
  /** When the first of the values stops working, where a provider knows. */
  readonly expiresAt: Date | undefined;
  readonly leases: readonly GivenLease[];
}

/** How a service asks for its credentials. */
export interface Asking {
  readonly references: ReadonlyMap<string, SourceReference>;
  readonly provider: (name: string) => Provider;
  readonly observe: ObserveFetch;
  /** Takes over what was leased by one provider while another one failed. */
  readonly giveBack: (leases: readonly GivenLease[]) => void;
}

/** Asks every provider once, all at the same time. The first failure ends the others and wipes what they brought. */
export async function askAll(asking: Asking, signal: AbortSignal): Promise<Answer> {
  const byProvider = Map.groupBy(asking.references, ([, { provider }]) => provider);
  const failed = new AbortController();
  const others = byProvider.size > 1 ? failed.signal : undefined;
  const outcomes = await Promise.allSettled(
    [...byProvider].map(async ([provider, entries]) => {
      const references = entries.map(([, { get }]) => get);
      try {
        return {
          provider,
          entries,
          grant: await ask(asking, provider, references, signal, others),
        };
      } catch (error) {
        failed.abort(error);
        throw error;
      }
    }),
  );
  const granted = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
  const leases = granted.flatMap(({ provider, grant }) =>
    (grant.leases ?? []).map((lease) => ({ provider, lease })),
  );
  if (failed.signal.aborted) {
    for (const { grant } of granted) for (const secret of grant.secrets) secret.wipe();
    asking.giveBack(leases);
    throw failed.signal.reason;
  }

  const secrets = new Map<string, Secret>();
  for (const { entries, grant } of granted)
    for (const [i, [name]] of entries.entries()) {
      const secret = grant.secrets[i];
      if (secret) secrets.set(name, secret);
    }
  const ends = granted.flatMap(({ grant }) => (grant.expiresAt ? [grant.expiresAt.getTime()] : []));
  return {
    secrets,
    fingerprint: fingerprintOf(secrets, leases),
    versions: granted
      .map(({ provider, grant }) => (grant.version === undefined ? provider : `${provider}@${grant.version}`))
      .join(', '),
    expiresAt: ends.length > 0 ? new Date(Math.min(...ends)) : undefined,
    leases,
    [Symbol.dispose]: () => wipeAll(secrets),
  };
}

/** `pointless`, where there are others, aborts when another provider has failed: then the answer is of no use, and its lack no failure. */
async function ask(
  { provider, observe }: Asking,
  name: string,
  references: readonly string[],
  signal: AbortSignal,
  pointless: AbortSignal | undefined,
): Promise<Grant> {
  const started = performance.now();
  const told = (failure: PosternError | undefined) => {
    if (pointless?.aborted) return;
    observe(name, failure?.code ?? 'ok', (performance.now() - started) / 1000, failure?.message);
  };
  try {
    const called = pointless ? AbortSignal.any([signal, pointless]) : signal;
    const grant = await provider(name).fetch(references, called);
    told(undefined);
    return grant;
  } catch (thrown) {
    const error =
      thrown instanceof PosternError
        ? thrown
        : new PosternError('PROVIDER_FAILED', `provider "${name}" failed unexpectedly`, { cause: thrown });
    told(error);
    throw error;
  }
}

/** The same secrets in buffers of their own. */
export function copyOf(secrets: ReadonlyMap<string, Secret>): Map<string, Secret> {
  return new Map(
    secrets.entries().map(([name, secret]) => {
      const bytes = secret.reveal();
      // Not `Buffer.from`, which puts short ones on V8's heap.
      const copy = Buffer.allocUnsafe(bytes.length);
      bytes.copy(copy);
      return [name, new Secret(copy)];
    }),
  );
}

/** Overwrites all of them. */
export function wipeAll(secrets: ReadonlyMap<string, Secret>): void {
  for (const secret of secrets.values()) secret.wipe();
}

const fingerprintKey = randomBytes(32);

function fingerprintOf(secrets: ReadonlyMap<string, Secret>, leases: readonly GivenLease[]): string {
  const parts: Buffer[] = [];
  for (const name of [...secrets.keys()].toSorted()) {
    const bytes = secrets.get(name)?.reveal() ?? Buffer.alloc(0);
    parts.push(Buffer.from(`${name.length}:${name}:${bytes.length}:`), bytes);
  }
  for (const { provider, lease } of leases)
    parts.push(Buffer.from(`${provider}:${lease.id.length}:${lease.id}`));
  const all = join(parts);
  const fingerprint = hmacSha256(fingerprintKey, all).toString('base64');
  wipe(all);
  return fingerprint;
}
