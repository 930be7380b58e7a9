import { randomFillSync, timingSafeEqual } from 'node:crypto';

import type { PosternError } from '../../core/errors.ts';
import { readExactly } from '../../core/socket.ts';
import { type BackendKey, encodeCancelRequest } from './messages.ts';
import { connectUpstream, type Target } from './upstream.ts';

interface Entry {
  /** What the client was given: the server's process id, so that tools which compare it work, with a key of ours. */
  readonly given: BackendKey;
  readonly real: BackendKey;
  readonly server: Target;
  /** At most one request at a time, whatever a client sends; those that come meanwhile are one, for the query after. */
  underWay: Promise<void> | undefined;
  waiting: Promise<void> | undefined;
}

/**
 * The cancel keys of the sessions that are being relayed. A key of ours stands for the server's, so that no client
 * ever holds one that works without Postern, and a protocol 3.0 client can have a server with long keys.
 * Entries go with their session: process ids are reused, and an old entry could cancel somebody else's query.
 */
export class CancelKeys {
  readonly #byPid = new Map<number, Set<Entry>>();

  get size(): number {
    return [...this.#byPid.values()].reduce((sum, entries) => sum + entries.size, 0);
  }

  /** A key for a client; protocol 3.0 knows keys of 4 bytes only, 3.2 has 32. Disposing it forgets it. */
  issue(backend: BackendKey, server: Target, minor: number): Disposable & { readonly given: BackendKey } {
    // Copies of their own (`Buffer.from` takes a slice of a pool): as parts of something bigger they would keep all of it.
    const real = { pid: backend.pid, key: Buffer.alloc(backend.key.length) };
    backend.key.copy(real.key);
    const given = { pid: real.pid, key: randomFillSync(Buffer.alloc(minor >= 2 ? 32 : 4)) };
    const entry: Entry = { given, real, server, underWay: undefined, waiting: undefined };
    const entries = this.#byPid.get(real.pid) ?? new Set();
    this.#byPid.set(real.pid, entries.add(entry));
    return { given, [Symbol.dispose]: () => this.#forget(entry) };
  }

  #forget(entry: Entry): void {
    const { pid } = entry.real;
    const entries = this.#byPid.get(pid);
    if (entries?.delete(entry) && entries.size === 0) this.#byPid.delete(pid);
  }

  /**
   * Passes a client's cancel request on: to the very address and with the same TLS as the session it is for. An
   * unknown key is silently nothing, as with a real server. Resolves when the server has taken the request.
   */
  async forward(asked: BackendKey, timeout: number, signal: AbortSignal): Promise<boolean> {
    const entry = this.#find(asked);
    if (!entry) return false;
    await (entry.underWay
      ? this.#sendAfter(entry, entry.underWay, timeout, signal)
      : start(entry, timeout, signal));
    return true;
  }

  /** The one under way may have hit a query that is over by now. */
  async #sendAfter(entry: Entry, before: Promise<void>, timeout: number, signal: AbortSignal): Promise<void> {
    entry.waiting ??= before
      .catch(() => {})
      .then(() => {
        entry.waiting = undefined;
        return start(entry, timeout, signal);
      });
    await entry.waiting;
  }

  #find({ pid, key }: BackendKey): Entry | undefined {
    for (const entry of this.#byPid.get(pid) ?? [])
      if (entry.given.key.length === key.length && timingSafeEqual(entry.given.key, key)) return entry;
    return undefined;
  }
}

async function start(entry: Entry, timeout: number, signal: AbortSignal): Promise<void> {
  entry.underWay = send(entry, timeout, signal).finally(() => (entry.underWay = undefined));
  await entry.underWay;
}

async function send({ real, server }: Entry, timeout: number, signal: AbortSignal): Promise<void> {
  const { socket } = await connectUpstream(server, timeout, signal);
  try {
    socket.write(encodeCancelRequest(real));
    // The server says nothing and closes when it has signalled the process; libpq waits for that, so it must be true.
    await readExactly(socket, 'upstream', 1, signal);
  } catch (error) {
    if ((error as PosternError).code !== 'UPSTREAM_CLOSED') throw error;
  } finally {
    socket.destroy();
  }
}
