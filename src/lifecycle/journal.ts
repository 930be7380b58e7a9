import { randomBytes } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';

import { PosternError, reasonOf } from '../core/errors.ts';
import { pause } from './alarms.ts';

/** What is noted of a lease: enough to revoke it, and nothing that is secret. */
export interface NotedLease {
  /** Name of the provider in the configuration. */
  readonly provider: string;
  readonly id: string;
}

/** Asks a provider to revoke leases; see `Provider.revokeLeases`. */
export type RevokeNoted = (provider: string, ids: readonly string[], signal: AbortSignal) => Promise<void>;

/** A journal larger than this is not one of ours. */
const LARGEST = 16 * 1024 * 1024;
/** How often a process says that it lives, in milliseconds, and after how long a silent one counts as dead. */
const HEARTBEAT = 15_000;
const SILENCE = 60_000;
/** Pauses before a former process's leases are tried again, in milliseconds; then the next start tries. */
const PAUSES = [1000, 2000, 5000, 10_000, 30_000, 60_000, 120_000, 300_000];
/** Leases that are revoked by one request to a provider. */
const BATCH = 100;

/**
 * The ids of this process's live leases, in a file of a folder that it may share with others, so that those of a process
 * that died are revoked by the next one. The name of a file says whose it is; whoever sweeps one makes it his own first, by
 * renaming it, so that there is exactly one who does, and that his own death leaves it to the next.
 */
export class LeaseJournal {
  readonly #folder: string;
  readonly #log: Logger;
  readonly #owner: string;
  readonly #leases = new Map<string, NotedLease>();
  /** What the file holds, or will when the write under way is done. */
  #written = '';
  #writing: Promise<void> = Promise.resolve();
  #heartbeat: NodeJS.Timeout | undefined;
  #warned = false;
  readonly #sweeping = new AbortController();

  constructor(folder: string, log: Logger, owner = describeOwner(thisProcess())) {
    this.#folder = folder;
    this.#log = log;
    this.#owner = owner;
  }

  /** Resolves when they are on the disk. Never rejects: leases that cannot be noted are better than none. */
  async add(leases: readonly NotedLease[]): Promise<void> {
    for (const lease of leases) this.#leases.set(keyOf(lease), lease);
    await this.#write();
  }

  /** They are over. */
  async remove(leases: readonly NotedLease[]): Promise<void> {
    for (const lease of leases) this.#leases.delete(keyOf(lease));
    await this.#write();
  }

  /**
   * Revokes what processes that are dead have left here, with patience; resolves when there is nothing more to do in this
   * process's life. Never rejects.
   */
  async sweep(revoke: RevokeNoted): Promise<void> {
    const { signal } = this.#sweeping;
    try {
      const { files, unsure } = await this.#abandoned();
      // Whoever is silent then is dead. Not waited for, and over with the journal.
      if (unsure)
        void pause(SILENCE + HEARTBEAT, signal).then(() => (signal.aborted ? undefined : this.sweep(revoke)));
      await Promise.all(files.map((file) => this.#sweepFile(file, revoke, signal)));
    } catch (error) {
      if (!signal.aborted)
        this.#log.warn({ reason: reasonOf(error) }, 'the leases of former processes cannot be read');
    }
  }

  /** Waits for what is being written. What is still noted then stays noted. */
  async close(): Promise<void> {
    this.#sweeping.abort();
    clearInterval(this.#heartbeat);
    this.#heartbeat = undefined;
    await this.#writing;
  }

  get #path(): string {
    return join(this.#folder, `leases-${this.#owner}.json`);
  }

  /** One write at a time; what changes meanwhile is in the next one, which all who changed it wait for. */
  #write(): Promise<void> {
    const next = this.#writing.then(async () => {
      const text = textOf([...this.#leases.values()]);
      if (text === this.#written) return;
      try {
        if (this.#leases.size === 0) await rm(this.#path, { force: true });
        else await replaceFile(this.#folder, this.#path, text);
        this.#written = text;
        this.#warned = false;
        this.#beat();
      } catch (error) {
        if (this.#warned) return;
        this.#warned = true;
        this.#log.warn(
          { folder: this.#folder, reason: reasonOf(error) },
          'the ids of leases cannot be noted: those of a crash will live until they expire',
        );
      }
    });
    this.#writing = next;
    return next;
  }

  #beat(): void {
    if (this.#leases.size === 0) {
      clearInterval(this.#heartbeat);
      this.#heartbeat = undefined;
    } else
      this.#heartbeat ??= setInterval(() => {
        const now = new Date();
        utimes(this.#path, now, now).catch(() => {});
      }, HEARTBEAT).unref();
  }

  /** Files whose owners are dead, made our own. */
  async #abandoned(): Promise<{ readonly files: string[]; readonly unsure: boolean }> {
    const names = await readdir(this.#folder).catch((error: unknown) => {
      if (reasonOf(error) === 'ENOENT') return [];
      throw error;
    });
    const files: string[] = [];
    let unsure = false;
    for (const name of names) {
      const owner = ownerOf(name);
      if (owner === undefined) continue;
      const lives = await this.#lives(owner, name);
      if (lives === 'perhaps') unsure = true;
      if (lives) continue;
      const claimed = join(this.#folder, `leases-${this.#owner}-${randomBytes(6).toString('hex')}.json`);
      try {
        await rename(join(this.#folder, name), claimed);
        files.push(claimed);
      } catch (error) {
        // Another one was faster.
        if (reasonOf(error) !== 'ENOENT') throw error;
      }
    }
    return { files, unsure };
  }

  /**
   * Of a process that this one can see, the kernel says whether it lives. Of one in another container, or on another
   * machine that shares the folder, only its heartbeat does.
   */
  async #lives(owner: Owner, name: string): Promise<boolean | 'perhaps'> {
    const me = thisProcess();
    if (owner.pid === me.pid && describeOwner(owner) === this.#owner) return true;
    if (owner.boot === me.boot && owner.namespace === me.namespace) {
      const now = processOf(owner.pid);
      return now !== undefined && now.started === owner.started;
    }
    const { mtimeMs } = await stat(join(this.#folder, name)).catch(() => ({ mtimeMs: Date.now() }));
    return Date.now() - mtimeMs < SILENCE && 'perhaps';
  }

  async #sweepFile(path: string, revoke: RevokeNoted, signal: AbortSignal): Promise<void> {
    let left = await readNoted(path);
    const denied: NotedLease[] = [];
    const found = left.length;
    for (const wait of [...PAUSES, undefined]) {
      left = await this.#revokeAll(left, revoke, denied, signal);
      if (signal.aborted) return;
      if (left.length === 0) {
        await rm(path, { force: true });
        const revoked = found - denied.length;
        if (revoked > 0) this.#log.info({ leases: revoked }, 'revoked the leases of a former process');
        return;
      }
      await replaceFile(this.#folder, path, textOf(left));
      if (wait === undefined) break;
      await pause(wait, signal);
    }
    this.#log.warn(
      { leases: left.map(({ id }) => id) },
      'leases of a former process are not revoked, the next start tries again',
    );
  }

  /** What is worth another try. */
  async #revokeAll(
    leases: readonly NotedLease[],
    revoke: RevokeNoted,
    denied: NotedLease[],
    signal: AbortSignal,
  ): Promise<NotedLease[]> {
    const left: NotedLease[] = [];
    for (const [provider, noted] of Map.groupBy(leases, (lease) => lease.provider))
      for (let at = 0; at < noted.length; at += BATCH) {
        const batch = noted.slice(at, at + BATCH);
        try {
          await revoke(
            provider,
            batch.map(({ id }) => id),
            signal,
          );
        } catch (thrown) {
          const error = PosternError.from(thrown);
          // Denied is denied: to ask for ever would not change it.
          if (error.code === 'PROVIDER_FAILED') {
            denied.push(...batch);
            this.#log.warn(
              { provider, leases: batch.map(({ id }) => id), error: error.message },
              'leases of a former process cannot be revoked, they live until they expire',
            );
          } else left.push(...batch);
        }
      }
    return left;
  }
}

/** Who a process is: pid 1 of a restarted container is not pid 1 of the one before. */
interface Owner {
  /** This start of the machine. */
  readonly boot: string;
  /** The processes that can see each other. */
  readonly namespace: string;
  readonly pid: number;
  /** In the kernel's ticks since its start. */
  readonly started: string;
}

const namePattern = /^leases-([0-9a-f]*)_(\d*)_(\d+)_(\d*)(?:-[0-9a-f]+)?\.json$/;

function describeOwner({ boot, namespace, pid, started }: Owner): string {
  return `${boot}_${namespace}_${pid}_${started}`;
}

function ownerOf(name: string): Owner | undefined {
  const [matched, boot = '', namespace = '', pid = '', started = ''] = namePattern.exec(name) ?? [];
  return matched === undefined ? undefined : { boot, namespace, pid: Number(pid), started };
}

/** Without Linux's /proc there is only the pid. */
function thisProcess(): Owner {
  const { pid } = process;
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').replaceAll(/[^0-9a-f]/g, '');
    const namespace = /\d+/.exec(readlinkSync('/proc/self/ns/pid'))?.[0] ?? '';
    return { boot, namespace, pid, started: processOf(pid)?.started ?? '' };
  } catch {
    return { boot: '', namespace: '', pid, started: '' };
  }
}

function processOf(pid: number): { readonly started: string } | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // proc(5): the name in parentheses may hold anything; the start time is the 20th field behind it, the state the first.
    const [state, ...fields] = text.slice(text.lastIndexOf(')') + 2).split(' ');
    // A zombie has nothing to revoke with any more.
    return state === 'Z' || state === 'X' ? undefined : { started: fields[18] ?? '' };
  } catch (error) {
    if (process.platform === 'linux' && reasonOf(error) === 'ENOENT') return undefined;
  }
  try {
    process.kill(pid, 0);
    return { started: '' };
  } catch (error) {
    return reasonOf(error) === 'EPERM' ? { started: '' } : undefined;
  }
}

function keyOf({ provider, id }: NotedLease): string {
  return `${provider}\0${id}`;
}

function textOf(leases: readonly NotedLease[]): string {
  return leases.length === 0 ? '' : `${JSON.stringify({ version: 1, leases }, null, 1)}\n`;
}

/** What another process has noted. What is not understood is left out: it is not ours to act on. */
async function readNoted(path: string): Promise<NotedLease[]> {
  const { size } = await stat(path);
  if (size > LARGEST) return [];
  let parsed: unknown;
  try {
    parsed = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
  const { leases } = (parsed ?? {}) as { leases?: unknown };
  if (!Array.isArray(leases)) return [];
  return leases.flatMap((each: unknown) => {
    const { provider, id } = (each ?? {}) as { provider?: unknown; id?: unknown };
    return typeof provider === 'string' && typeof id === 'string' && id !== '' ? [{ provider, id }] : [];
  });
}

/** The whole file or the former one, whatever happens meanwhile; on the disk when it resolves. */
async function replaceFile(folder: string, path: string, text: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const draft = `${path}.${randomBytes(4).toString('hex')}.new`;
  try {
    {
      await using file = await open(draft, 'wx', 0o600);
      await file.writeFile(text);
      await file.sync();
    }
    await rename(draft, path);
  } catch (error) {
    await rm(draft, { force: true }).catch(() => {});
    throw error;
  }
  // The name is on the disk too.
  await using directory = await open(folder, 'r');
  await directory.sync();
}
