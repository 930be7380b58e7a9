import { PosternError } from '../../core/errors.ts';
import { Secret } from '../../core/secret.ts';
import type { JsonBytes } from '../json-bytes.ts';
import type { Call, Meaning, Reply, VaultClient } from './client.ts';
import { encodePath, type VaultReference } from './reference.ts';
import type { Settings } from './settings.ts';
import type { Tokens } from './tokens.ts';

/** Fields of one secret, read together. */
export interface KvRead {
  readonly secrets: readonly Secret[];
  /** Only KV version 2 has one. */
  readonly version: string | undefined;
}

/** A reference as it was written, for messages, and taken apart. */
export interface Wanted extends VaultReference {
  readonly reference: string;
}

interface Mount {
  /** With a slash at its end. */
  readonly path: string;
  readonly version: 1 | 2;
}

/** Vault's KV engine, version 1 and 2, below whatever mounts there are. */
export class KvReader {
  readonly #client: VaultClient;
  readonly #tokens: Tokens;
  readonly #configured: Pick<Settings, 'kvVersion' | 'kvMount'>;
  readonly #mounts = new Map<string, Mount>();

  constructor(client: VaultClient, tokens: Tokens, configured: Pick<Settings, 'kvVersion' | 'kvMount'>) {
    this.#client = client;
    this.#tokens = tokens;
    this.#configured = configured;
  }

  /** One request for all `wanted`, which are of one path and version. */
  async read(wanted: readonly [Wanted, ...Wanted[]], signal: AbortSignal): Promise<KvRead> {
    const [first] = wanted;
    const known = this.#knownMount(first.path);
    const mount = known ?? (await this.#detectMount(first, signal));
    const read = await this.#readFrom(mount, wanted, signal);
    if (read !== undefined) return read;

    // Not found where the mount was thought to be: it may have been replaced or upgraded to version 2 since then.
    if (known && this.#mounts.delete(known.path)) {
      const now = await this.#detectMount(first, signal);
      if (now.path !== known.path || now.version !== known.version) {
        const again = await this.#readFrom(now, wanted, signal);
        if (again !== undefined) return again;
      }
    }
    const what = first.version === undefined ? 'no secret' : `no version ${first.version} of the secret`;
    throw this.#client.error('PROVIDER_FAILED', `"${first.reference}": there is ${what} at "${first.path}"`);
  }

  /** undefined: no such secret. */
  async #readFrom(
    mount: Mount,
    wanted: readonly [Wanted, ...Wanted[]],
    signal: AbortSignal,
  ): Promise<KvRead | undefined> {
    const [{ path, version, reference }] = wanted;
    if (mount.version === 1 && version !== undefined) {
      const text = `"${reference}" asks for a version, but "${mount.path}" is KV version 1, which keeps none`;
      throw this.#client.error('PROVIDER_FAILED', text);
    }
    const inMount = path.slice(mount.path.length);
    // `secret/data/app/db` is how the API writes `secret/app/db`; both are understood.
    const apiStyle = mount.version === 2 && inMount.startsWith('data/');
    const place = mount.version === 2 && !apiStyle ? `${mount.path}data/${inMount}` : path;
    const call: Call = {
      method: 'GET',
      path: encodePath(place) + (version === undefined ? '' : `?version=${version}`),
      purpose: `reading "${reference}"`,
    };
    using reply = await this.#tokens.call(call, signal);
    if (reply.status === 404) {
      if (mount.version === 2) this.#refuseDeleted(call, reply);
      if (reply.said !== undefined) throw this.#client.refusal(call, reply);
      return undefined;
    }
    if (reply.status !== 200) throw this.#client.refusal(call, reply);

    const envelope = reply.json()?.get('data');
    const values = mount.version === 2 ? envelope?.get('data') : envelope;
    if (!envelope || values?.kind !== 'object') {
      throw this.#client.refusal(call, reply, {
        code: 'PROVIDER_UNAVAILABLE',
        text: 'the answer is not one of Vault',
      });
    }
    const find = (field: string) =>
      (apiStyle ? inEnvelope(envelope, field) : undefined) ?? values.find(field);
    return { secrets: this.#take(wanted, find), version: versionIn(envelope) };
  }

  #take(wanted: readonly Wanted[], find: (field: string) => JsonBytes | undefined): Secret[] {
    const secrets: Secret[] = [];
    try {
      for (const { reference, path, field } of wanted) {
        const value = find(field);
        if (!value) {
          const text = `"${reference}": the secret at "${path}" has no field "${field}"`;
          throw this.#client.error('PROVIDER_FAILED', text);
        }
        secrets.push(this.#copy(value, reference));
      }
      return secrets;
    } catch (thrown) {
      for (const secret of secrets) secret.wipe();
      throw thrown;
    }
  }

  #copy(value: JsonBytes, reference: string): Secret {
    try {
      return new Secret(value.copy());
    } catch (thrown) {
      const { code, message } = PosternError.from(thrown);
      throw this.#client.error(code, `"${reference}": the field is ${message}`);
    }
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

  #knownMount(path: string): Mount | undefined {
    const { kvVersion, kvMount } = this.#configured;
    if (kvVersion !== undefined) {
      const mount = kvMount !== undefined && path.startsWith(`${kvMount}/`) ? kvMount : path.split('/', 1)[0];
      return { path: `${mount}/`, version: kvVersion };
    }
    const fitting = [...this.#mounts.values()].filter((mount) => path.startsWith(mount.path));
    return fitting.sort((a, b) => b.path.length - a.path.length)[0];
  }

  /** Asks what is mounted above a path. Vault answers whoever may read anything below that mount. */
  async #detectMount({ path, reference }: Wanted, signal: AbortSignal): Promise<Mount> {
    const call: Call = {
      method: 'GET',
      path: `sys/internal/ui/mounts/${encodePath(path)}`,
      purpose: `looking up the mount of "${reference}"`,
    };
    using reply = await this.#tokens.call(call, signal);
    if (reply.status === 403) throw this.#client.refusal(call, reply, noMount);
    if (reply.status !== 200) throw this.#client.refusal(call, reply);

    const data = reply.json()?.get('data');
    const mountPath = data?.get('path')?.publicText();
    const engine = data?.get('type')?.publicText();
    if (mountPath === undefined || engine === undefined) {
      throw this.#client.refusal(call, reply, {
        code: 'PROVIDER_UNAVAILABLE',
        text: 'the answer is not one of Vault',
      });
    }
    // `generic` is what version 1 was called until 2017.
    if (engine !== 'kv' && engine !== 'generic') throw this.#client.refusal(call, reply, otherEngine(engine));
    const version = data?.get('options')?.get('version')?.publicText();
    const mount: Mount = { path: mountPath, version: version === '2' ? 2 : 1 };
    if (!mount.path.endsWith('/') || !path.startsWith(mount.path)) {
      throw this.#client.refusal(call, reply, {
        code: 'PROVIDER_FAILED',
        text: 'the path ends at the mount; name a secret below it',
      });
    }
    // One entry for each mount in use; the bound is for a server that makes them up.
    if (this.#mounts.size >= 1000) this.#mounts.clear();
    this.#mounts.set(mount.path, mount);
    return mount;
  }
}

const noMount: Meaning = {
  code: 'PROVIDER_FAILED',
  text: 'permission denied: there is no such mount, or the token may read nothing below it; if the policy hides mounts, set kvVersion',
};

function otherEngine(engine: string): Meaning {
  const name = /^[a-z0-9_-]{1,40}$/i.test(engine) ? engine : 'unknown';
  return {
    code: 'PROVIDER_FAILED',
    text: `the mount holds a secrets engine of type "${name}"; Postern reads only KV so far`,
  };
}

/** Secretless and others name the field of an API-style path from the answer's `data`: `#data.password`. */
function inEnvelope(envelope: JsonBytes, field: string): JsonBytes | undefined {
  return field.startsWith('data.') ? envelope.get('data')?.find(field.slice('data.'.length)) : undefined;
}

function versionIn(envelope: JsonBytes): string | undefined {
  const version = envelope.get('metadata')?.get('version');
  return version?.kind === 'number' ? version.publicText() : undefined;
}
