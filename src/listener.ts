import { lstatSync, renameSync } from 'node:fs';
import { chmod, chown, lstat, stat, unlink } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';

import { type Address, formatAddress } from './core/address.ts';
import { PosternError, reasonOf } from './core/errors.ts';

const KEEPALIVE_DELAY = 30_000;
/** How many clients may wait to be accepted. The kernel cuts it to net.core.somaxconn. */
export const BACKLOG = 4096;
/** How every listener accepts its clients. */
export const acceptance = {
  allowHalfOpen: true,
  noDelay: true,
  keepAlive: true,
  keepAliveInitialDelay: KEEPALIVE_DELAY,
} as const;

/** A socket that listens already, at an address of somebody else's choice. */
export interface ListeningSocket {
  readonly address: Address;
  readonly server: Server;
  /** Lets go of it, where nobody serves it. */
  close(): void;
  /** From here on `serve` owns every client. */
  serve(serve: (socket: Socket) => void): void;
}

export interface ListenerEvents {
  /** Owns the socket from here on. */
  onClient(socket: Socket): void;
  /** An accept failed (no descriptors left, a client that was gone again): the listener goes on. */
  onAcceptError(error: Error): void;
}

/** What a listener was opened with; undefined: somebody else has opened it. */
interface Opening {
  readonly socketMode: number;
  readonly events: ListenerEvents;
}

/** Accepts the clients of one address until it is closed. No failed accept and no failed session ends it. */
export class Listener {
  /** Where it really listens, or did: the port is known when the configuration said 0. */
  readonly address: Address;
  readonly #opening: Opening | undefined;
  #server: Server;
  /** Which file the unix socket is, as the system knows it. */
  #file: string | undefined;
  #open = true;
  #given: readonly [owner: number | undefined, group: number | undefined] = [undefined, undefined];

  private constructor(server: Server, address: Address, opening?: Opening) {
    this.#server = server;
    this.address = address.kind === 'unix' ? address : addressOf(server);
    this.#opening = opening;
    if (opening) this.#file = fileAt(address);
  }

  /** Opens a TCP or unix socket. `socketMode` is the mode of a unix socket, such as 0o600. Throws LISTEN_FAILED. */
  static async open(address: Address, socketMode: number, events: ListenerEvents): Promise<Listener> {
    const opening = { socketMode, events };
    return new Listener(await listen(address, opening), address, opening);
  }

  /** Goes on with a socket that somebody else has opened, and keeps open. */
  static adopt(socket: ListeningSocket, events: ListenerEvents): Listener {
    socket.server.on('error', (error) => events.onAcceptError(error));
    socket.serve((client) => events.onClient(client));
    return new Listener(socket.server, socket.address);
  }

  get open(): boolean {
    return this.#open;
  }

  /** Whether somebody else has opened it, and keeps it open: closed here, it makes its clients wait. */
  get adopted(): boolean {
    return this.#opening === undefined;
  }

  /** Listens again where it did before it was closed. Throws LISTEN_FAILED. */
  async reopen(): Promise<void> {
    if (this.#open || !this.#opening) return;
    this.#server = await listen(this.address, this.#opening);
    this.#file = fileAt(this.address);
    this.#open = true;
    await this.give(...this.#given);
  }

  /** Gives a unix socket to another owner, or group, of those that are given; nothing for TCP. Throws LISTEN_FAILED. */
  async give(owner: number | undefined, group: number | undefined): Promise<void> {
    this.#given = [owner, group];
    if (this.address.kind !== 'unix' || (owner === undefined && group === undefined)) return;
    try {
      // -1 leaves it as it is.
      await chown(this.address.path, owner ?? -1, group ?? -1);
    } catch (cause) {
      const why =
        reasonOf(cause) === 'EPERM' ? 'it may not be given away (socketOwner, socketGroup)' : reasonOf(cause);
      throw cannotListen(this.address, why, cause);
    }
  }

  /** Changes the mode of a unix socket; nothing for TCP. Throws LISTEN_FAILED. */
  async permit(socketMode: number): Promise<void> {
    if (this.address.kind !== 'unix') return;
    try {
      await chmod(this.address.path, socketMode);
    } catch (cause) {
      throw cannotListen(this.address, reasonOf(cause), cause);
    }
  }

  /** Stops accepting. Connections that were accepted live on. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    const theirs = this.#file === undefined ? undefined : fileAt(this.address);
    if (this.address.kind === 'tcp' || theirs === undefined || theirs === this.#file) this.#server.close();
    else closeBeside(this.#server, this.address.path);
  }
}

async function listen(address: Address, { socketMode, events }: Opening): Promise<Server> {
  if (address.kind === 'unix') await removeDeadSocket(address.path);
  const server = createServer(acceptance);
  server.on('connection', (socket) => events.onClient(socket));
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('listening', resolve);
  server.once('error', reject);
  // The file is made by bind(2), here and now: no moment at which it is open to more than its mode says.
  const umask = process.umask(0o777 & ~socketMode);
  try {
    server.listen(
      address.kind === 'unix'
        ? { path: address.path, backlog: BACKLOG }
        : { host: address.host, port: address.port, backlog: BACKLOG },
    );
  } finally {
    process.umask(umask);
  }
  try {
    await promise;
  } catch (cause) {
    throw cannotListen(address, reasonOf(cause), cause);
  }
  server.off('error', reject);
  server.on('error', (error) => events.onAcceptError(error));
  return server;
}

/** Tells one file at a path from another one that has taken its place; undefined: there is none, or no path. */
function fileAt(address: Address): string | undefined {
  if (address.kind === 'tcp') return undefined;
  // The number of an inode is not used again while a socket is bound to it.
  const found = lstatSync(address.path, { throwIfNoEntry: false });
  return found && `${found.dev} ${found.ino}`;
}

/**
 * Closes the server of a unix socket whose file somebody has replaced. Node.js removes whatever is at the path, within the
 * call: so their file is elsewhere for that long.
 */
function closeBeside(server: Server, path: string): void {
  const aside = `${path}.${process.pid}`;
  try {
    renameSync(path, aside);
  } catch {
    // Where it cannot be renamed, it cannot be removed either.
    server.close();
    return;
  }
  server.close();
  renameSync(aside, path);
}

/** A server that is closed has none any more. */
function addressOf(server: Server): Address {
  const { address, port } = server.address() as AddressInfo;
  return { kind: 'tcp', host: address, port };
}

/** Whether anybody may put another file in the place of a unix socket, and be taken for Postern: undefined, or the folder. */
export async function unsafeFolderOf(address: Address): Promise<string | undefined> {
  if (address.kind === 'tcp') return undefined;
  const folder = dirname(address.path);
  const { mode } = await stat(folder);
  const [writableByAll, sticky] = [(mode & 0o002) !== 0, (mode & 0o1000) !== 0];
  return writableByAll && !sticky ? folder : undefined;
}

/**
 * A unix socket of a process that was killed is still there as a file. It is removed only when it is a socket and
 * nobody answers on it; anything else at that path is somebody's. Throws LISTEN_FAILED.
 */
export async function removeDeadSocket(path: string): Promise<void> {
  const address: Address = { kind: 'unix', path };
  const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw cannotListen(address, reasonOf(error), error);
  });
  if (!found) return;
  if (!found.isSocket()) throw cannotListen(address, 'there is a file of another kind, which is left alone');

  const { promise, resolve } = Promise.withResolvers<string>();
  const probe = connect({ path });
  probe.once('connect', () => resolve('in use'));
  probe.once('error', (error) => resolve(reasonOf(error)));
  const answer = await promise;
  probe.destroy();
  if (answer === 'ENOENT') return;
  if (answer !== 'ECONNREFUSED')
    throw cannotListen(address, answer === 'in use' ? 'another process listens there' : answer);
  await unlink(path);
}

function cannotListen(address: Address, why: string, cause?: unknown): PosternError {
  const known = why === 'EADDRINUSE' ? 'the address is in use' : why === 'EACCES' ? 'permission denied' : why;
  return new PosternError('LISTEN_FAILED', `cannot listen on ${formatAddress(address)}: ${known}`, { cause });
}
