import type { Socket } from 'node:net';

import { PosternError } from './errors.ts';

/** Which end of a session a socket belongs to: it decides whose fault a broken connection is. */
export type Side = 'client' | 'upstream';

/**
 * Reads exactly `size` bytes and leaves everything after them in the socket, so that handing the socket on to
 * TLS or to the relay loses nothing. Throws CLIENT_CLOSED or UPSTREAM_CLOSED when the peer ends first, and the
 * signal's reason when it aborts. `size` must be bounded by the caller.
 */
export async function readExactly(
  socket: Socket,
  side: Side,
  size: number,
  signal: AbortSignal,
): Promise<Buffer> {
  signal.throwIfAborted();
  if (size === 0) return Buffer.alloc(0);
  // What is there already needs nobody to listen: a server greets with thirty messages at once.
  const present = socket.readableLength >= size ? (socket.read(size) as Buffer | null) : null;
  if (present?.length === size) return present;
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();

  // One listener for the whole read: adding 'readable' anew for every attempt would make Node emit it at once
  // for the bytes already there, and spin.
  function attempt(): void {
    const chunk = socket.read(size) as Buffer | null;
    if (chunk?.length === size) settle(() => resolve(chunk));
    else if (chunk || socket.readableEnded || socket.destroyed) settle(() => reject(closed(side)));
  }
  const abort = () => settle(() => reject(signal.reason as Error));
  const events = ['readable', 'end', 'close'] as const;

  function settle(finish: () => void): void {
    for (const event of events) socket.off(event, attempt);
    signal.removeEventListener('abort', abort);
    finish();
  }

  for (const event of events) socket.on(event, attempt);
  signal.addEventListener('abort', abort);
  attempt();
  return await promise;
}

/** Writes all of `bytes` and waits until the kernel has them, so that the caller may wipe them. */
export async function writeAll(
  socket: Socket,
  side: Side,
  bytes: Buffer,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const abort = () => {
    // The buffer may still be queued: it must not be wiped (or sent half) while the socket can use it.
    socket.destroy();
    reject(signal.reason as Error);
  };
  signal.addEventListener('abort', abort);
  socket.write(bytes, (error) => (error ? reject(closed(side, error)) : resolve()));
  try {
    await promise;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/** How long a client may take to read the last words it is told before its connection is cut, in milliseconds. */
const LINGER = 1000;

/**
 * Ends a connection so that what was written last is read: closing while bytes of the peer lie unread would
 * send a reset, and a reset makes the peer's kernel throw away what it had received but not yet delivered.
 */
export function endLingering(socket: Socket): void {
  if (socket.destroyed) return;
  const cut = setTimeout(() => socket.destroy(), LINGER);
  socket.once('close', () => clearTimeout(cut));
  socket.on('data', () => {});
  socket.resume();
  if (!socket.writableEnded) socket.end();
}

function closed(side: Side, cause?: Error): PosternError {
  return side === 'client'
    ? new PosternError('CLIENT_CLOSED', 'the client closed the connection in the middle of a message', {
        cause,
      })
    : new PosternError('UPSTREAM_CLOSED', 'the server closed the connection in the middle of a message', {
        cause,
      });
}
