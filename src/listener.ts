import { chmod, lstat, unlink } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

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

/** Accepts the clients of one address until it is closed. No failed accept and no failed session ends it. */
export class Listener {
  /** Where it really listens, or did: the port is known when the configuration said 0. */
  readonly address: Address;
  readonly #server: Server;

  private constructor(server: Server, address: Address) {
    this.#server = server;
    this.address = address.kind === 'unix' ? address : addressOf(server);
  }

  /** Opens a TCP or unix socket. `socketMode` is the mode of a unix socket, such as 0o600. Throws LISTEN_FAILED. */
  static async open(address: Address, socketMode: number, events: ListenerEvents): Promise<Listener> {
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
    return new Listener(server, address);
  }

  /** Goes on with a socket that somebody else has opened, and keeps open. */
  static adopt(socket: ListeningSocket, events: ListenerEvents): Listener {
    socket.server.on('error', (error) => events.onAcceptError(error));
    socket.serve((client) => events.onClient(client));
    return new Listener(socket.server, socket.address);
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
    this.#server.close();
  }
}

/** A server that is closed has none any more. */
function addressOf(server: Server): Address {
  const { address, port } = server.address() as AddressInfo;
  return { kind: 'tcp', host: address, port };
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
