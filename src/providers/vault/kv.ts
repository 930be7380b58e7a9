import type { JsonBytes } from '../../core/json-bytes.ts';
import { type Call, notVault, type Reply, type VaultClient } from './client.ts';
import { type Read, take, type Wanted } from './fields.ts';
import type { Mount } from './mounts.ts';
import { encodePath, versionOf } from './reference.ts';
import type { Tokens } from './tokens.ts';

/** A mount of Vault's KV engine. */
export interface KvMount extends Mount {
  readonly kvVersion: 1 | 2;
}

/** Vault's KV engine, version 1 and 2. */
export class KvReader {
  readonly #client: VaultClient;
  readonly #tokens: Tokens;

  constructor(client: VaultClient, tokens: Tokens) {
    this.#client = client;
    this.#tokens = tokens;
  }

  /** One request for all `wanted`, which are of one path and version. undefined: no such secret. */
  async read(
    mount: KvMount,
    wanted: readonly [Wanted, ...Wanted[]],
    signal: AbortSignal,
  ): Promise<Read | undefined> {
    const [{ path, query, reference }] = wanted;
    const version = this.#versionIn(mount, wanted[0]);
    const inMount = path.slice(mount.path.length);
    // `secret/data/app/db` is how the API writes `secret/app/db`; both are understood.
    const apiStyle = mount.kvVersion === 2 && inMount.startsWith('data/');
    const place = mount.kvVersion === 2 && !apiStyle ? `${mount.path}data/${inMount}` : path;
    const call: Call = {
      method: 'GET',
      path: encodePath(place) + (version === undefined ? '' : `?${query}`),
      purpose: `reading "${reference}"`,
    };
    using reply = await this.#tokens.call(call, signal);
    if (reply.status === 404) {
      if (mount.kvVersion === 2) this.#refuseDeleted(call, reply);
      if (reply.said !== undefined) throw this.#client.refusal(call, reply);
      return undefined;
    }
    if (reply.status !== 200) throw this.#client.refusal(call, reply);

    const envelope = reply.json()?.get('data');
    const values = mount.kvVersion === 2 ? envelope?.get('data') : envelope;
    if (!envelope || values?.kind !== 'object') throw this.#client.refusal(call, reply, notVault);
    const find = (field: string) =>
      (apiStyle ? inEnvelope(envelope, field) : undefined) ?? values.find(field);
    return { secrets: take(wanted, find, this.#client), version: versionIn(envelope) };
  }

  #versionIn(mount: KvMount, { query, reference }: Wanted): number | undefined {
    if (query === undefined) return undefined;
    const version = versionOf(query);
    if (version === undefined) {
      const text = `"${reference}": of the KV engine at "${mount.path}" only "?version=N" can be asked for`;
      throw this.#client.error('PROVIDER_FAILED', text);
    }
    if (mount.kvVersion === 1) {
      const text = `"${reference}" asks for a version, but "${mount.path}" is KV version 1, which keeps none`;
      throw this.#client.error('PROVIDER_FAILED', text);
    }
    return version;
  }

  /** A deleted or destroyed version is a 404 with its metadata (KV version 2). */
  #refuseDeleted(call: Call, reply: Reply): void {
    const metadata = reply.json()?.get('data')?.get('metadata');
    if (metadata?.kind !== 'object') return;
    const version = metadata.get('version');
    const destroyed = metadata.get('destroyed')?.publicText() === 'true';
    const text = `version ${version?.kind === 'number' ? version.publicText() : '?'} of the secret was ${destroyed ? 'destroyed' : 'deleted'}`;
    throw this.#client.refusal(call, reply, { code: 'PROVIDER_FAILED', text });
  }
}

/** Secretless and others name the field of an API-style path from the answer's `data`: `#data.password`. */
function inEnvelope(envelope: JsonBytes, field: string): JsonBytes | undefined {
  return field.startsWith('data.') ? envelope.get('data')?.find(field.slice('data.'.length)) : undefined;
}

function versionIn(envelope: JsonBytes): string | undefined {
  const version = envelope.get('metadata')?.get('version');
  return version?.kind === 'number' ? version.publicText() : undefined;
}
