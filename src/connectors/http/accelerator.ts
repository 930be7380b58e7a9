import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

import { SocketWire, takeOver } from './wire.ts';

/** How accepted sockets are read: by whatever was found to work, or by a way that is asked for. */
export type Reading = 'auto' | 'onread' | 'data';

/** How long the try may take, in milliseconds. */
const PATIENCE = 2000;

let works: boolean | undefined;
let trying: Promise<void> | undefined;

/**
 * Tries once for the process whether an accepted socket can be read into our own buffers: a connection over loopback,
 * taken over, has to carry bytes both ways and to end in order. Until it is known, and where it fails, `data` events do.
 */
export async function tryTakingOver(): Promise<boolean> {
  trying ??= attempt().then(
    () => {
      works = true;
    },
    () => {
      works = false;
    },
  );
  await trying;
  return works === true;
}

/** Puts an accepted socket under a wire in the quickest way that works here. */
export function attachAccepted(wire: SocketWire, socket: Socket, how: Reading): void {
  const fit =
    !('encrypted' in socket) && socket.readableLength === 0 && !socket.destroyed && !socket.readableEnded;
  if (fit && (how === 'onread' || (how === 'auto' && works)))
    wire.attach(takeOver(socket, wire.onread), false);
  else wire.attach(socket, true);
}

async function attempt(): Promise<void> {
  const question = Buffer.from('are you there?');
  const server = createServer({ allowHalfOpen: true });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const sockets: Socket[] = [];
  const timer = setTimeout(() => reject(new Error('no answer')), PATIENCE);
  server.once('error', reject);
  server.once('connection', (accepted) => {
    const wire = new SocketWire({
      onBytes: (bytes, from, to) => wire.put(bytes, from, to),
      onEnd: () => wire.end(),
      onDrain: () => {},
      onClose: () => {},
    });
    sockets.push(accepted);
    try {
      wire.attach(takeOver(accepted, wire.onread), false);
    } catch (error) {
      reject(error as Error);
    }
  });
  server.listen(0, '127.0.0.1', () => {
    const socket = connect({
      port: (server.address() as AddressInfo).port,
      host: '127.0.0.1',
      allowHalfOpen: true,
    });
    sockets.push(socket);
    let heard = '';
    socket.on('error', reject);
    socket.on('data', (bytes: Buffer) => {
      heard += bytes.toString('latin1');
    });
    socket.on('end', () =>
      heard === question.toString('latin1') ? resolve() : reject(new Error('other bytes')),
    );
    socket.end(question);
  });
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    for (const socket of sockets) socket.destroy();
    server.close();
  }
}
