import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

import { allowDirectWrites, handleOf, learnToWrite } from './direct.ts';
import { readInto, SocketWire } from './wire.ts';

/** How accepted sockets are read, and all are written to: by whatever was found to work, or by a way that is asked for. */
export type Reading = 'auto' | 'onread' | 'data';

/** How long the try may take, in milliseconds. */
const PATIENCE = 10_000;

let works: boolean | undefined;
let trying: ReturnType<typeof tryAccelerating> | undefined;

/**
 * Tries once for the process what Node does not document, each over a loopback connection that has to carry bytes and to end
 * in order: whether an accepted socket can be read into our own buffers, and whether sockets can be written to past their
 * streams. Until it is known, and where it fails, `data` events and streams do. Node.js 26 writes in a way of its own that costs as
 * little, and is left to it. Returns what works.
 */
export async function tryAccelerating(): Promise<{ readonly reads: boolean; readonly writes: boolean }> {
  trying ??= Promise.allSettled([attempt(), attemptToWrite()]).then(([read, write]) => {
    works = read.status === 'fulfilled';
    if (write.status === 'fulfilled') allowDirectWrites();
    return { reads: works, writes: write.status === 'fulfilled' };
  });
  return await trying;
}

/** Puts an accepted socket under a wire in the quickest way that works here. */
export function attachAccepted(wire: SocketWire, socket: Socket, how: Reading): void {
  const fit =
    !('encrypted' in socket) && socket.readableLength === 0 && !socket.destroyed && !socket.readableEnded;
  if (fit && (how === 'onread' || (how === 'auto' && works)) && readInto(socket, wire.onread))
    wire.attach(socket, false, handleOf);
  else wire.attach(socket, true, how === 'data' ? undefined : handleOf);
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
      if (!readInto(accepted, wire.onread)) throw new Error('Node.js has other names');
      wire.attach(accepted, false);
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

/** Blocks of 64 KiB after which a kernel that still takes all of them is not one to find this out with. */
const MOST_BLOCKS = 512;

async function attemptToWrite(): Promise<void> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const timer = setTimeout(() => reject(new Error('no end')), PATIENCE);
  const sockets: Socket[] = [];
  server.once('error', reject);
  server.listen(0, '127.0.0.1', () => {
    const { port } = server.address() as AddressInfo;
    const near = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    sockets.push(near);
    near.on('error', reject);
    server.once('connection', (far) => {
      sockets.push(far);
      const check = () => void writeUntilItWaits(near, far).then(resolve, reject);
      if (near.connecting) near.once('connect', check);
      else check();
    });
  });
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    for (const socket of sockets) socket.destroy();
    server.close();
  }
}

/** Writes that the kernel takes, one that has to wait because `far` does not read, and one behind it: all have to arrive. */
async function writeUntilItWaits(near: Socket, far: Socket): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let sent = 1;
  let drained = 0;
  const block = Buffer.alloc(64 * 1024, 'x');
  const last = Buffer.from('the last');
  const handle = learnToWrite(near, Buffer.from('x'));
  const wire = new SocketWire({
    onBytes: () => {},
    onEnd: () => {},
    onDrain: () => {
      drained += 1;
    },
    onClose: () => reject(new Error('closed')),
  });
  wire.attach(near, true, () => handle);
  for (let i = 0; i < MOST_BLOCKS && wire.backlog() === 0; i += 1) {
    wire.put(block, 0, block.length);
    sent += block.length;
  }
  const queued = wire.backlog();
  wire.put(last, 0, last.length);
  if (sent === 1 || queued === 0 || wire.backlog() !== queued + last.length)
    throw new Error('nothing waited');
  wire.end();
  let heard = 0;
  let tail = '';
  far.on('data', (bytes: Buffer) => {
    heard += bytes.length;
    tail = (tail + bytes.toString('latin1', Math.max(0, bytes.length - last.length))).slice(-last.length);
  });
  far.on('error', reject);
  far.on('end', () => {
    const whole = heard === sent + last.length && tail === last.toString('latin1');
    if (whole && drained === 1 && wire.backlog() === 0) resolve();
    else reject(new Error('other bytes'));
  });
  far.resume();
  await promise;
}
