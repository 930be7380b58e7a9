import { readSync } from 'node:fs';
import type { Socket } from 'node:net';

/** What a server says before it breaks off is an error text, not a result. */
const LONGEST_LAST_WORDS = 1024 * 1024;

/**
 * When a write to a socket fails (the peer has closed it, and a reset came back), Node destroys the socket at once,
 * together with what the peer had sent before and nobody has read yet: the very error that says why it closed.
 * This hands those bytes to `heard` first: what Node holds of them, then what the kernel does. Costs nothing until
 * a socket is destroyed with an error. Under TLS only what was already decrypted can be saved.
 */
export function saveLastWords(socket: Socket, heard: (bytes: Buffer) => void): void {
  const destroy = socket._destroy.bind(socket);
  socket._destroy = (error, callback) => {
    if (error) {
      const buffered = socket.read() as Buffer | null;
      if (buffered) heard(buffered);
      for (const bytes of unread(socket)) heard(bytes);
    }
    destroy(error, callback);
  };
}

/** What the kernel has received and nobody has read. */
function* unread(socket: Socket): Generator<Buffer> {
  const fd = (socket as { _handle?: { fd?: number } | null })._handle?.fd;
  if ('encrypted' in socket || typeof fd !== 'number' || fd < 0) return;
  let total = 0;
  while (total < LONGEST_LAST_WORDS) {
    const bytes = Buffer.allocUnsafe(16 * 1024);
    let length = 0;
    try {
      length = readSync(fd, bytes);
    } catch {
      // Nothing more there (EAGAIN), or the reset itself: the words are over.
    }
    if (length === 0) return;
    total += length;
    yield bytes.subarray(0, length);
  }
}
