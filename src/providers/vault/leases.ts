import { PosternError } from '../../core/errors.ts';
import { jsonObject } from '../../core/json-bytes.ts';
import type { Lease, ProviderContext } from '../provider.ts';
import type { Call, VaultClient } from './client.ts';
import { secondsIn } from './login.ts';
import type { Hanging, Token, Tokens } from './tokens.ts';

/** A clean-up that nobody waits for gives up after this; the lease then ends by itself. */
const cleanUpTimeout = 10_000;
/** Leases of a former process that are revoked side by side. */
const sweepers = 8;
/** Later is nothing that a Date can say. */
const endOfTime = 8.64e15;

/** What Vault granted for a time, and the calls to prolong and to end it. */
export class Leases {
  readonly #client: VaultClient;
  readonly #tokens: Tokens;
  readonly #context: ProviderContext;
  readonly #cleanUps = new Set<Promise<void>>();

  constructor(client: VaultClient, tokens: Tokens, context: ProviderContext) {
    this.#client = client;
    this.#tokens = tokens;
    this.#context = context;
  }

  /** A lease that was granted for `duration` milliseconds, asked for at `askedAt` by the monotonic clock with `token`. */
  granted(
    id: string,
    renewable: boolean,
    duration: number,
    askedAt: number,
    token: Token | undefined,
  ): Lease {
    const hanging = { end: duration > 0 ? askedAt + duration : Infinity } satisfies Hanging as {
      end: number;
    };
    if (token) this.#tokens.hang(token, hanging);
    const effectiveEnd = () => Math.min(hanging.end, token?.end ?? Infinity);
    const gone = () => {
      hanging.end = Math.min(hanging.end, performance.now());
      if (token) this.#tokens.letGo(token, hanging);
    };
    const wanted = Math.min(duration, effectiveEnd() - askedAt);

    return {
      id,
      renewable,
      get expiresAt() {
        return dateOf(effectiveEnd());
      },
      renew: async (signal) => {
        const now = performance.now();
        if (effectiveEnd() <= now) throw this.#client.error('PROVIDER_FAILED', `lease "${id}": it has ended`);
        if (!renewable) throw this.#client.error('PROVIDER_FAILED', `lease "${id}": it is not renewable`);
        // Its own token first: the lease would end with it. Not again when that has just been done for another.
        if (token) await this.#tokens.keepUntil(token, now + wanted * 0.9, signal);
        const renewedAt = performance.now();
        // No later than before where it comes to its longest life (max_ttl): Vault renews it by nothing, and says 200.
        hanging.end = renewedAt + (await this.#renew(id, duration, signal, gone));
        return dateOf(effectiveEnd());
      },
      revoke: async (signal) => {
        try {
          await this.#revoke(id, signal);
          gone();
        } catch (thrown) {
          // Nobody wants it any more, and Vault does not let us end it: at least its token is not kept for it.
          if (PosternError.from(thrown).code === 'PROVIDER_FAILED' && token)
            this.#tokens.letGo(token, hanging);
          throw thrown;
        }
      },
    };
  }

  /** Revokes leases whose values nobody will get: in the background, bounded. */
  cleanUp(leases: readonly Lease[]): void {
    for (const lease of leases) {
      const done = this.#cleanUp(lease).finally(() => this.#cleanUps.delete(done));
      this.#cleanUps.add(done);
    }
  }

  /** Revokes by id what a former process left behind: as many as can be, then throws the first failure. */
  async sweep(ids: readonly string[], signal: AbortSignal): Promise<void> {
    const left = ids.values();
    const failures: unknown[] = [];
    const sweeper = async () => {
      for (const id of left) await this.#revoke(id, signal).catch((thrown: unknown) => failures.push(thrown));
    };
    await Promise.all(Array.from({ length: sweepers }, sweeper));
    if (failures.length > 0) throw failures[0];
  }

  /** Lets clean-ups under way come to their end. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#cleanUps);
  }

  async #cleanUp(lease: Lease): Promise<void> {
    try {
      await lease.revoke(AbortSignal.timeout(cleanUpTimeout));
    } catch (thrown) {
      this.#context.log.warn(`lease not revoked: ${PosternError.from(thrown).message}`);
    }
  }

  /** Milliseconds that are left after the renewal. */
  async #renew(id: string, duration: number, signal: AbortSignal, gone: () => void): Promise<number> {
    // Counted from now, not added; less than at first would shorten it.
    const increment = duration > 0 ? { increment: Buffer.from(`${Math.ceil(duration / 1000)}s`) } : {};
    const body = jsonObject({ lease_id: Buffer.from(id), ...increment });
    const call: Call = {
      method: 'POST',
      path: 'sys/leases/renew',
      body,
      purpose: `renewing the lease "${id}"`,
    };
    using reply = await this.#tokens.call(call, signal);
    if (reply.status === 200) {
      const left = secondsIn(reply.json()?.get('lease_duration')?.publicText()) * 1000;
      if (left > 0) return left;
      throw this.#client.error('PROVIDER_FAILED', `lease "${id}": it cannot be renewed any further`);
    }
    if (reply.status === 400 && /not found|invalid lease|expired/.test(reply.said ?? '')) {
      gone();
      throw this.#client.refusal(call, reply, { code: 'PROVIDER_FAILED', text: 'the lease has ended' });
    }
    // "past the max TTL, cannot renew", "lease is not renewable"
    throw this.#client.refusal(call, reply, reply.status === 400 ? noFurther : undefined);
  }

  async #revoke(id: string, signal: AbortSignal): Promise<void> {
    const send = async (sync: boolean) => {
      const body = jsonObject({ lease_id: Buffer.from(id), ...(sync ? { sync: Buffer.from('true') } : {}) });
      const call: Call = {
        method: 'POST',
        path: 'sys/leases/revoke',
        body,
        ...(sync ? { retries: 0 } : {}),
        purpose: `revoking the lease "${id}"`,
      };
      using reply = await this.#tokens.call(call, signal);
      if (reply.status === 200 || reply.status === 204) return;
      throw this.#client.refusal(call, reply, reply.status === 403 ? notAllowed : undefined);
    };
    try {
      // The answer says that the user is gone, not that it will be.
      await send(true);
    } catch (thrown) {
      if (signal.aborted || (thrown instanceof PosternError && thrown.message.includes(notAllowed.text)))
        throw thrown;
      // The database is down, say. Queued, Vault tries again by itself.
      await send(false);
    }
  }
}

const noFurther = { code: 'PROVIDER_FAILED', text: 'it cannot be renewed any further' } as const;

const notAllowed = {
  code: 'PROVIDER_FAILED',
  text: 'the policy does not allow update on sys/leases/revoke, so that it lives until it expires or its token is revoked',
} as const;

function dateOf(end: number): Date {
  return new Date(Math.min(Date.now() + (end - performance.now()), endOfTime));
}
