import { type Call, type Meaning, notVault, type VaultClient } from './client.ts';
import { encodePath } from './reference.ts';
import type { Settings } from './settings.ts';
import type { Tokens } from './tokens.ts';

/** A place in Vault's tree, and what answers there. */
export interface Mount {
  /** With a slash at its end. */
  readonly path: string;
  /** Version of the KV engine; undefined: another engine. */
  readonly kvVersion: 1 | 2 | undefined;
}

/** Which engine answers for a path: asked of Vault once for each mount, or taken from the settings. */
export class Mounts {
  readonly #client: VaultClient;
  readonly #tokens: Tokens;
  readonly #settings: Pick<Settings, 'kvVersion' | 'kvMount' | 'engineMounts'>;
  readonly #known = new Map<string, Mount>();

  constructor(
    client: VaultClient,
    tokens: Tokens,
    configured: Pick<Settings, 'kvVersion' | 'kvMount' | 'engineMounts'>,
  ) {
    this.#client = client;
    this.#tokens = tokens;
    this.#settings = configured;
  }

  /** What is mounted above `path`. */
  async find(path: string, reference: string, signal: AbortSignal): Promise<Mount> {
    const known = [...this.#known.values()].filter((mount) => path.startsWith(mount.path));
    const closest = known.toSorted((a, b) => b.path.length - a.path.length)[0];
    return this.#configured(path) ?? closest ?? (await this.#ask(path, reference, signal));
  }

  /** Asks again after `mount` did not have what it should: it may have been replaced. undefined: it is the same. */
  async findAgain(
    mount: Mount,
    path: string,
    reference: string,
    signal: AbortSignal,
  ): Promise<Mount | undefined> {
    if (this.#configured(path) || !this.#known.delete(mount.path)) return undefined;
    const now = await this.#ask(path, reference, signal);
    return now.path === mount.path && now.kvVersion === mount.kvVersion ? undefined : now;
  }

  #configured(path: string): Mount | undefined {
    const { kvVersion, kvMount, engineMounts } = this.#settings;
    const engine = engineMounts.find((mount) => path.startsWith(`${mount}/`));
    if (engine !== undefined) return { path: `${engine}/`, kvVersion: undefined };
    if (kvVersion === undefined) return undefined;
    const mount = kvMount !== undefined && path.startsWith(`${kvMount}/`) ? kvMount : path.split('/', 1)[0];
    return { path: `${mount}/`, kvVersion };
  }

  /** Vault answers whoever may read anything below the mount. */
  async #ask(path: string, reference: string, signal: AbortSignal): Promise<Mount> {
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
    if (mountPath === undefined || engine === undefined) throw this.#client.refusal(call, reply, notVault);
    // What answers there is Vault's own configuration, and a read can change it.
    if (engine === 'system') throw this.#client.refusal(call, reply, noSecrets);
    // `generic` is what version 1 was called until 2017.
    const kv = engine === 'kv' || engine === 'generic';
    const version = data?.get('options')?.get('version')?.publicText() === '2' ? 2 : 1;
    const mount: Mount = { path: mountPath, kvVersion: kv ? version : undefined };
    if (!mount.path.endsWith('/') || !path.startsWith(mount.path)) {
      throw this.#client.refusal(call, reply, {
        code: 'PROVIDER_FAILED',
        text: 'the path ends at the mount; name a secret below it',
      });
    }
    // One entry for each mount in use; the bound is for a server that makes them up.
    if (this.#known.size >= 1000) this.#known.clear();
    this.#known.set(mount.path, mount);
    return mount;
  }
}

const noMount: Meaning = {
  code: 'PROVIDER_FAILED',
  text: 'permission denied: there is no such mount, or the token may read nothing below it; if the policy hides mounts, set kvVersion or engineMounts',
};

const noSecrets: Meaning = {
  code: 'PROVIDER_FAILED',
  text: 'what is below "sys/" is no secret of an engine, and is not read',
};
