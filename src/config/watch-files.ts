import { createHmac, randomBytes } from 'node:crypto';
import { type FSWatcher, watch } from 'node:fs';
import { readdir, readFile, readlink, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';

import { reasonOf } from '../core/errors.ts';
import { isConfigurationFile, largestFile } from './load.ts';

interface Options {
  readonly log: Logger;
  /** Called once for each content that is not the one before. */
  readonly changed: () => void;
  /** Milliseconds between two looks, which find what the kernel does not tell. */
  readonly lookEvery?: number;
  /** The same where the kernel tells nothing at all. */
  readonly lookEveryUntold?: number;
}

/** What changes within this time is one change, in milliseconds: a file is written in several steps. */
const settling = 100;
/** Nothing is waited for longer: a file that changes all the time is read as it is. */
const longestSettling = 1000;

/**
 * Watches configuration files and folders by what is in them, so that it does not matter how they change: written in
 * place, renamed over by an editor, or behind the symlink `..data` that the kubelet swaps for all of a ConfigMap's
 * files at once. The kernel only says when to look (inotify has limits, and knows nothing of some file systems).
 */
export class FileWatch {
  readonly #paths: readonly string[];
  readonly #options: Options;
  readonly #key = randomBytes(32);
  readonly #folders = new Map<string, { readonly watcher: FSWatcher; readonly inode: string }>();
  readonly #closing = new AbortController();
  #known: string;
  #looking: Promise<void> | undefined;
  #again = false;
  #timer: NodeJS.Timeout | undefined;
  #toldNothing = false;

  private constructor(paths: readonly string[], options: Options) {
    this.#paths = paths;
    this.#options = options;
    this.#known = '';
  }

  /** Takes what is there now as known: call it before the files are read. */
  static async open(paths: readonly string[], options: Options): Promise<FileWatch> {
    const opened = new FileWatch(paths, options);
    await opened.#watchFolders();
    opened.#known = await opened.#content();
    opened.#wait();
    return opened;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    clearTimeout(this.#timer);
    for (const { watcher } of this.#folders.values()) watcher.close();
    await this.#looking;
  }

  /** Looks now, or once more when a look is under way: it may have seen what was there before. */
  #look(): void {
    this.#again = true;
    this.#looking ??= this.#lookUntilSettled().finally(() => {
      this.#looking = undefined;
      if (!this.#closing.signal.aborted) this.#wait();
    });
  }

  async #lookUntilSettled(): Promise<void> {
    const { signal } = this.#closing;
    while (this.#again && !signal.aborted) {
      this.#again = false;
      await this.#watchFolders();
      let content = await this.#content();
      if (content === this.#known) continue;
      const until = performance.now() + longestSettling;
      for (let before = ''; before !== content && performance.now() < until && !signal.aborted; ) {
        before = content;
        await delay(settling, undefined, { signal }).catch(() => undefined);
        content = await this.#content();
      }
      if (signal.aborted || content === this.#known) continue;
      this.#known = content;
      this.#options.changed();
    }
  }

  #wait(): void {
    const { lookEvery = 10_000, lookEveryUntold = 2000 } = this.#options;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), this.#toldNothing ? lookEveryUntold : lookEvery).unref();
  }

  /** A folder may be replaced by another one of its name, of which an old watch knows nothing. */
  async #watchFolders(): Promise<void> {
    let untold: string | undefined;
    for (const folder of new Set(this.#paths.flatMap((path) => [dirname(path), path]))) {
      const facts = await stat(folder, { bigint: true }).catch(() => undefined);
      const inode = facts?.isDirectory() ? `${facts.dev}:${facts.ino}` : undefined;
      const known = this.#folders.get(folder);
      if (known?.inode === inode || this.#closing.signal.aborted) continue;
      known?.watcher.close();
      this.#folders.delete(folder);
      if (inode === undefined) continue;
      try {
        const watcher = watch(folder, { persistent: false }, () => this.#look());
        watcher.on('error', () => this.#folders.delete(folder));
        watcher.on('error', () => watcher.close());
        this.#folders.set(folder, { watcher, inode });
      } catch (error) {
        untold = reasonOf(error);
      }
    }
    if (untold !== undefined && !this.#toldNothing)
      this.#options.log.info(
        { reason: untold },
        'configuration files are looked at now and then, the kernel does not tell of changes',
      );
    this.#toldNothing = untold !== undefined;
  }

  /** A digest: the files may hold secrets, which are not kept. */
  async #content(): Promise<string> {
    const digest = createHmac('sha256', this.#key);
    const add = (name: string, content: string | Buffer) => {
      digest.update(`${name} ${content.length} `);
      digest.update(content);
    };
    for (const path of this.#paths) {
      const names = await readdir(path).catch(reasonOf);
      const files =
        typeof names === 'string'
          ? [path]
          : names
              .filter(isConfigurationFile)
              .toSorted()
              .map((name) => join(path, name));
      // A swap of the other files beside the configuration (certificates) is a change, too.
      const mounted = join(typeof names === 'string' ? dirname(path) : path, '..data');
      add(mounted, await readlink(mounted).catch(reasonOf));
      for (const file of files) add(file, await contentOf(file));
    }
    return digest.digest('base64');
  }
}

/** The bytes of a file, or in a few words why there are none. */
async function contentOf(file: string): Promise<string | Buffer> {
  try {
    const facts = await stat(file);
    // Opening a pipe would wait for a writer that may never come.
    if (!facts.isFile()) return 'no file';
    if (facts.size > largestFile) return `large ${facts.size} ${facts.mtimeMs}`;
    return await readFile(file);
  } catch (error) {
    return reasonOf(error);
  }
}
