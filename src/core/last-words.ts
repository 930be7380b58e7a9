import { readSync } from 'node:fs';
import type { Socket } from 'node:net';

/** What a server says before it breaks off is an error text, not a result. */
const LONGEST_LAST_WORDS = 1024 * 1024;

/**
 * When a write to a socket fails (the peer has closed it, and a reset came back), Node destroys the socket at once,
 * together with what the peer had sent before and nobody has read yet: the very error that says why it closed.
 * This hands those bytes to `heard` first: what Node holds of them, then what the kernel does. Costs nothing until
 * a socket is destroyed with an error. `readInto`: where a socket reads to that was told to use a buffer.
 */
export function saveLastWords(socket: Socket, heard: (bytes: Buffer) => void, readInto?: () => Buffer): void {
  const destroy = socket._destroy.bind(socket);
  socket._destroy = (error, callback) => {
    if (error) {
      const buffered = socket.read() as Buffer | null;
      if (buffered) heard(buffered);
      readKernel(socket, heard, readInto);
    }
    destroy(error, callback);
  };
}

/** What of Node's internal handle is needed; a runtime that has it otherwise loses the last words, nothing more. */
interface Handle {
  readonly fd?: number;
  onread?: (this: unknown, bytes: ArrayBuffer | undefined) => void;
  /** Only a TLS handle has it: takes bytes as if the socket beneath had read them, and gives `onread` what they say. */
  receive?(bytes: Buffer): void;
  /** What `onread` was given so far. */
  readonly bytesRead?: number;
}

/** What the kernel has received and nobody has read. */
function readKernel(
  socket: Socket,
  heard: (bytes: Buffer) => void,
  readInto: (() => Buffer) | undefined,
): void {
  const handle = (socket as { _handle?: Handle | null })._handle;
  if (typeof handle?.fd !== 'number' || handle.fd < 0) return;
  try {
    for (let total = 0; total < LONGEST_LAST_WORDS; ) {
      const bytes = Buffer.allocUnsafe(16 * 1024);
      const length = readSync(handle.fd, bytes);
      if (length === 0) return;
      total += length;
      if (handle.receive) {
        let before = handle.bytesRead ?? 0;
        handle.onread = (plain) => {
          const now = handle.bytesRead ?? 0;
          if (plain) heard(Buffer.from(plain));
          else if (readInto && now > before) heard(Buffer.from(readInto().subarray(0, now - before)));
          before = now;
        };
        handle.receive(bytes.subarray(0, length));
      } else heard(bytes.subarray(0, length));
    }
  } catch {
    // Nothing more there (EAGAIN), the reset itself, or a TLS record that was cut off: the words are over.
  }
}
