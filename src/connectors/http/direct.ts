import type { Socket } from 'node:net';

// A write to a Node socket that the kernel takes at once, as it does nearly always, passes a stream that queues nothing,
// makes an object in C++ for a completion that nobody waits for, and a tick for a callback that nobody gave. That is about
// an eighth at most of what a small request costs. The handle beneath the socket takes bytes as well, and one request object serves
// for all writes that complete at once. None of it is documented: it is tried out at the start (see accelerator.ts), and
// where it does not work as described here, sockets are written to by their streams.

/** What of the handle of a TCP or unix socket is used. */
export interface Handle {
  /** Gives the kernel what it takes, and queues the rest. Returns 0, or a negative error of libuv. */
  writeBuffer(request: WriteRequest, bytes: Buffer): number;
  /** Bytes that are queued. */
  readonly writeQueueSize: number;
}

/** Node's WriteWrap: becomes something only when a write has to be queued, and can be used again until then. */
export interface WriteRequest {
  /** -1 while it is nothing. */
  getAsyncId(): number;
  handle?: Handle;
  buffer?: Buffer;
  /** Called when the queued bytes have gone; a negative status says that they never will. */
  oncomplete?: (status: number) => void;
}

/** Finds the handle to write to a socket by; undefined: by its stream. */
export type FindHandle = (socket: Socket) => Handle | undefined;

type RequestClass = new () => WriteRequest;

let Request: RequestClass | undefined;
let spare: WriteRequest | undefined;
let works = false;

/** The handle to write to directly; undefined where that has not been found to work, or the socket is not a plain one. */
export function handleOf(socket: Socket): Handle | undefined {
  return works && !('encrypted' in socket) ? (rawHandle(socket) ?? undefined) : undefined;
}

/** A try has shown that it works. */
export function allowDirectWrites(): void {
  works = true;
}

/**
 * Writes all of `bytes` behind what is queued. Returns undefined when the kernel has it, or the request whose `oncomplete`
 * is to be set: until it is called the bytes must not change. Throws when the connection is broken.
 */
export function writeDirectly(handle: Handle, bytes: Buffer): WriteRequest | undefined {
  const request = spare ?? new (Request as RequestClass)();
  spare = undefined;
  const failed = handle.writeBuffer(request, bytes);
  if (failed !== 0) throw new Error(`write failed with ${failed}`);
  if (request.getAsyncId() < 0) {
    spare = request;
    return undefined;
  }
  request.handle = handle;
  request.buffer = bytes;
  return request;
}

/**
 * Learns from a write of Node's own, on a connected socket, how it is done; returns the socket's handle to try it out with.
 * Throws where it is done in another way.
 */
export function learnToWrite(socket: Socket, bytes: Buffer): Handle {
  const handle = rawHandle(socket);
  if (handle === null) throw new Error('no handle');
  let seen: WriteRequest | undefined;
  // In front of the prototype's, for one write.
  handle.writeBuffer = (request, written) => {
    seen = request;
    Reflect.deleteProperty(handle, 'writeBuffer');
    return handle.writeBuffer(request, written);
  };
  socket.write(bytes);
  const Class = seen?.constructor as RequestClass | undefined;
  if (Class?.name !== 'WriteWrap' || typeof handle.writeQueueSize !== 'number')
    throw new Error('Node.js writes in another way');
  if (new Class().getAsyncId() !== -1) throw new Error('a request is something from the start');
  Request = Class;
  return handle;
}

function rawHandle(socket: Socket): Handle | null {
  return (socket as unknown as { _handle: Handle | null })._handle;
}
