import { resolve } from 'node:path';
import type { Logger } from 'pino';

import { PosternError } from '../core/errors.ts';
import { namesResource } from './cluster/address.ts';
import type { FollowedResource } from './cluster/follow.ts';
import type { Config } from './config.ts';
import { type LoadContext, loadConfig, pathsAsked, usualPlaces } from './load.ts';
import type { FileWatch } from './watch-files.ts';

/** How the sources of a configuration are followed while the process lives. */
export interface Following {
  readonly log: Logger;
  /** Whether files are watched, too; resources of Kubernetes always are. */
  readonly watch: boolean;
  /** Milliseconds that the start may wait for the API server and for the resource. */
  readonly patience: number;
}

/**
 * Where the configuration of a running process comes from: files, folders and resources of Kubernetes, which are
 * followed for changes. Its life: 1. `load`, once to start with and then for each reload. 2. `report`, after each, what
 * became of it. 3. `follow`, once. 4. `close`.
 */
export class ConfigSource {
  readonly #paths: readonly string[];
  readonly #context: LoadContext;
  readonly #following: Following;
  readonly #resources = new Map<string, FollowedResource>();
  #files: FileWatch | undefined;
  #changed: (() => void) | undefined;
  /** Something has changed before anybody wanted to hear of it. */
  #missed = false;
  #closed = false;

  constructor(paths: readonly string[], context: LoadContext, following: Following) {
    this.#paths = paths;
    this.#following = following;
    this.#context = { ...context, readResource: (path) => this.#read(path) };
  }

  /** Whether the configuration, or a part of it, is a resource of Kubernetes. */
  get isInCluster(): boolean {
    return this.#asked.some(namesResource);
  }

  /** Throws CONFIG_INVALID, with every problem on a line of its own. */
  async load(): Promise<Config> {
    if (this.#following.watch) await this.#watchFiles();
    return await loadConfig(this.#paths, this.#context);
  }

  /** What became of the configuration that was loaded last; undefined: it is in force. */
  report(trouble: PosternError | undefined): void {
    for (const resource of this.#resources.values()) resource.report(trouble);
  }

  /** Calls `changed` when there is something else to load, and `current` when the cluster is, or is not, followed. */
  follow(changed: () => void, current: (current: boolean) => void): void {
    this.#changed = changed;
    if (this.#missed) changed();
    const known = new Map<string, boolean>();
    for (const [path, resource] of this.#resources)
      resource.follow(changed, (isCurrent) => {
        known.set(path, isCurrent);
        current(this.#resources.keys().every((each) => known.get(each)));
      });
  }

  /** Instead of `close`, where the process ends because of it: says so where others see it. */
  async fail(trouble: PosternError): Promise<void> {
    await Promise.all(this.#resources.values().map((each) => each.fail(trouble)));
    await this.close();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([this.#files?.close(), ...this.#resources.values().map((each) => each.close())]);
  }

  get #asked(): readonly string[] {
    return pathsAsked(this.#paths, this.#context.environment ?? process.env);
  }

  #tell(): void {
    if (this.#changed) this.#changed();
    else this.#missed = true;
  }

  async #read(path: string): Promise<{ readonly spec: object }> {
    let resource = this.#resources.get(path);
    if (!resource) {
      if (this.#closed) throw new PosternError('SHUTDOWN', 'Postern ends');
      const { FollowedResource } = await import('./cluster/follow.ts');
      const { environment = process.env } = this.#context;
      const { log, patience } = this.#following;
      resource = new FollowedResource(path, { environment, log, patience });
      this.#resources.set(path, resource);
    }
    return await resource.read();
  }

  async #watchFiles(): Promise<void> {
    if (this.#files) return;
    const { folder = process.cwd() } = this.#context;
    const asked = this.#asked;
    const files = (asked.length > 0 ? asked : usualPlaces(this.#context))
      .filter((path) => !namesResource(path))
      .map((path) => resolve(folder, path));
    if (files.length === 0) return;
    const { FileWatch } = await import('./watch-files.ts');
    const { log } = this.#following;
    this.#files = await FileWatch.open(files, { log, changed: () => this.#tell() });
  }
}
