import { readSync } from 'node:fs';
import type { Socket } from 'node:net';

/** More than this is no last word. */
const MOST_BYTES = 1024 * 1024;
const PIECE = 64 * 1024;

/** What of Node's internal handle is needed; a runtime that has it otherwise loses the last words, nothing more. */
interface Handle {
  readonly fd?: number;
  onread?: (this: unknown, bytes: ArrayBuffer | undefined) => void;
  /** Only a TLS handle has it: takes bytes as if the socket beneath had read them. */
  receive?(bytes: Buffer): void;
}

/**
 * Calls `hear` with what a peer had said when writing to it failed. A server that refuses what it is being sent says
 * why and closes, which resets the connection; a write then fails, and Node destroys the socket without a look at what
 * lies unread in it: the very reason.
 */
export function hearLastWords(socket: Socket, hear: (bytes: Buffer) => void): void {
  const destroy = socket.destroy.bind(socket);
  socket.destroy = (error?: Error) => {
    if (error && !socket.destroyed) {
      socket.removeAllListeners('data');
      for (let bytes: Buffer | null; (bytes = socket.read() as Buffer | null); ) hear(bytes);
      readKernel(socket, hear);
    }
    return destroy(error);
  };
}

function readKernel(socket: Socket, hear: (bytes: Buffer) => void): void {
  const handle = (socket as { _handle?: Handle | null })._handle;
  if (typeof handle?.fd !== 'number' || handle.fd < 0) return;
  try {
    for (let total = 0; total < MOST_BYTES; ) {
      const piece = Buffer.allocUnsafe(PIECE);
      const length = readSync(handle.fd, piece);
      if (length === 0) return;
      total += length;
      if (handle.receive) {
        handle.onread = (plain) => plain && hear(Buffer.from(plain));
        handle.receive(piece.subarray(0, length));
      } else hear(piece.subarray(0, length));
    }
  } catch {
    // EAGAIN, ECONNRESET, a TLS record that was cut off: that was all.
  }
}
