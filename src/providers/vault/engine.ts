import type { JsonBytes } from '../../core/json-bytes.ts';
import { jsonObject } from '../../core/json-bytes.ts';
import { untilAborted } from '../deadline.ts';
import { type Call, notVault, type VaultClient } from './client.ts';
import { type Read, take, type Wanted } from './fields.ts';
import type { Leases } from './leases.ts';
import { secondsIn } from './login.ts';
import { encodePath, parametersOf } from './reference.ts';
import type { Tokens } from './tokens.ts';

/** An id is quoted in logs and journals; Vault's are a path and a random part. */
const leaseId = /^[\x21-\x7e]{1,1024}$/;

/**
 * Engines other than KV: each read can make something new (a database user, a certificate), under a lease or not.
 * So one path is read once for all its fields, and what was made is revoked when it cannot be handed out.
 */
export class EngineReader {
  readonly #client: VaultClient;
  readonly #tokens: Tokens;
  readonly #leases: Leases;

  constructor(client: VaultClient, tokens: Tokens, leases: Leases) {
    this.#client = client;
    this.#tokens = tokens;
    this.#leases = leases;
  }

  /** One request for all `wanted`, which are of one path and query. */
  async read(wanted: readonly [Wanted, ...Wanted[]], signal: AbortSignal): Promise<Read> {
    const [{ path, query, reference }] = wanted;
    const body = query === undefined ? undefined : jsonObject(parametersOf(query));
    const call: Call = {
      // Parameters are sent as `vault write` does: pki/issue and its like are only had by a write.
      method: body ? 'POST' : 'GET',
      path: encodePath(path),
      ...(body ? { body } : {}),
      seenThrough: true,
      purpose: `reading "${reference}"`,
    };
    const reading = this.#read(call, wanted, signal);
    try {
      return await untilAborted(reading, signal, this.#client.naming(call.purpose));
    } catch (thrown) {
      // The caller has gone, and the answer may still come.
      reading.then(
        (late) => this.discard(late),
        () => undefined,
      );
      throw thrown;
    }
  }

  /** Wipes what nobody will use, and revokes its lease. */
  discard(read: Read): void {
    for (const secret of read.secrets) secret.wipe();
    if (read.lease) this.#leases.cleanUp([read.lease]);
  }

  async #read(call: Call, wanted: readonly [Wanted, ...Wanted[]], signal: AbortSignal): Promise<Read> {
    const askedAt = performance.now();
    using answered = await this.#tokens.callForLease(call, signal);
    using reply = answered.reply;
    if (reply.status !== 200) throw this.#client.refusal(call, reply);
    const envelope = reply.json();
    if (envelope?.kind !== 'object') throw this.#client.refusal(call, reply, notVault);
    const id = envelope.get('lease_id')?.publicText() ?? '';
    if (id !== '' && !leaseId.test(id)) throw this.#client.refusal(call, reply, notVault);
    const renewable = envelope.get('renewable')?.publicText() === 'true';
    const duration = secondsIn(envelope.get('lease_duration')?.publicText()) * 1000;
    const lease =
      id === '' ? undefined : this.#leases.granted(id, renewable, duration, askedAt, answered.token);
    try {
      const data = envelope.get('data');
      if (data?.kind !== 'object') {
        throw this.#client.refusal(call, reply, { code: 'PROVIDER_FAILED', text: 'the answer has no data' });
      }
      const secrets = take(wanted, (field) => data.find(field), this.#client);
      return { secrets, ...factsOf(data, askedAt), ...(lease ? { lease } : {}) };
    } catch (thrown) {
      if (lease) this.#leases.cleanUp([lease]);
      throw thrown;
    }
  }
}

/** What the answer says of its own version and end, where it has no lease. */
function factsOf(data: JsonBytes, askedAt: number): Pick<Read, 'version' | 'expiresAt'> {
  const rotated = data.get('last_vault_rotation')?.publicText();
  if (rotated !== undefined) {
    // Static role. At 0 the old password is still given for 2 to 3 seconds, until the rotation is done.
    const ttl = Math.max(secondsIn(data.get('ttl')?.publicText()), 1);
    return {
      version: /^[\w:.+-]{1,64}$/.test(rotated) ? rotated : undefined,
      expiresAt: new Date(Date.now() + ttl * 1000 - (performance.now() - askedAt)),
    };
  }
  // pki: a certificate without a lease says itself when it expires.
  const expiration = data.get('certificate') ? secondsIn(data.get('expiration')?.publicText()) : 0;
  return {
    version: undefined,
    expiresAt: expiration > 0 && expiration < 8.64e12 ? new Date(expiration * 1000) : undefined,
  };
}
