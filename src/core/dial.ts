import { lookup } from 'node:dns/promises';
import { connect, isIP, type OnReadOpts, type Socket, type TcpNetConnectOpts } from 'node:net';

import type { Address } from './address.ts';
import { formatAddress } from './address.ts';
import { PosternError, reasonOf } from './errors.ts';

/** RFC 8305, section 5: the delay before the next address is tried beside the ones under way. */
const ATTEMPT_DELAY = 250;
/** A name with more addresses than this is a mistake or an attack. */
const MOST_ADDRESSES = 64;
const KEEPALIVE_DELAY = 30_000;

/** Made once: without a reason every abort would build an error with a stack trace. */
const outrun = new Error('another address connected first');

/** A connected socket and the exact address it reached, so that a cancel request can go to the same server. */
export interface Dialled {
  readonly socket: Socket;
  readonly address: Address;
}

export interface DialOptions {
  /** Node's: for a socket that reads into buffers of the caller. */
  readonly onread?: OnReadOpts | undefined;
  /**
   * Whether an address that the name resolves to may be connected to: asked before, because a connection alone tells
   * whether something listens there. CLIENT_REFUSED where none may.
   */
  readonly permits?: ((address: string) => boolean) | undefined;
  /** Makes the socket in place of `net.connect`: for one that begins TLS as soon as it is connected. Not for unix sockets. */
  readonly connect?: ((to: TcpNetConnectOpts) => Socket) | undefined;
}

/**
 * Connects to a host and port or a unix socket, trying every address of the name as RFC 8305 ("happy eyeballs")
 * says. Throws UPSTREAM_UNREACHABLE with the reason of each address, or the signal's reason.
 */
export async function dial(
  target: Address,
  signal: AbortSignal,
  options: DialOptions = {},
): Promise<Dialled> {
  const { permits } = options;
  signal.throwIfAborted();
  if (target.kind === 'unix') return { socket: await connectTo(target, signal, options), address: target };
  const found = await resolve(target, signal);
  signal.throwIfAborted();
  const addresses = permits ? found.filter((each) => each.kind === 'tcp' && permits(each.host)) : found;
  const [first, ...others] = addresses;
  if (!first) throw new PosternError('CLIENT_REFUSED', `${target.host} has an address that no rule names`);
  if (others.length > 0) return await race(target, addresses, signal, options);
  try {
    return { socket: await connectTo(first, signal, options), address: first };
  } catch (error) {
    signal.throwIfAborted();
    throw unreachable(target, [failureOf(first, error)], error);
  }
}

async function resolve(target: Address & { kind: 'tcp' }, signal: AbortSignal): Promise<Address[]> {
  const { host, port } = target;
  if (isIP(host)) return [target];
  let found: { address: string; family: number }[];
  try {
    // getaddrinfo cannot be cancelled: an abort leaves it running and stops waiting for it.
    found = await abortable(lookup(host, { all: true, order: 'verbatim' }), signal);
  } catch (cause) {
    signal.throwIfAborted();
    throw new PosternError(
      'UPSTREAM_UNREACHABLE',
      `cannot resolve the host name ${host} (${reasonOf(cause)})`,
      {
        cause,
      },
    );
  }
  const first = found.filter(({ family }) => family === found[0]?.family);
  const second = found.filter(({ family }) => family !== found[0]?.family);
  const interleaved = first.flatMap((entry, i) => [entry, ...second.slice(i, i + 1)]);
  interleaved.push(...second.slice(first.length));
  return interleaved.slice(0, MOST_ADDRESSES).map(({ address }) => ({ kind: 'tcp', host: address, port }));
}

/** Starts an attempt every ATTEMPT_DELAY, or as soon as the one before has failed; the first to connect wins. */
async function race(
  target: Address,
  addresses: readonly Address[],
  signal: AbortSignal,
  options: DialOptions,
): Promise<Dialled> {
  const losers = new AbortController();
  const attempts = AbortSignal.any([signal, losers.signal]);
  const { promise, resolve, reject } = Promise.withResolvers<Dialled>();
  const failures: string[] = [];
  let started = 0;
  let delay: NodeJS.Timeout | undefined;

  function startNext(): void {
    clearTimeout(delay);
    const address = addresses[started++];
    if (!address) return;
    delay = setTimeout(startNext, ATTEMPT_DELAY);
    connectTo(address, attempts, options).then(
      (socket) => {
        if (losers.signal.aborted) socket.destroy();
        else resolve({ socket, address });
        losers.abort(outrun);
      },
      (error: unknown) => {
        failures.push(failureOf(address, error));
        if (failures.length === addresses.length) reject(unreachable(target, failures, error));
        else if (!losers.signal.aborted) startNext();
      },
    );
  }
  const abort = () => reject(signal.reason as Error);
  signal.addEventListener('abort', abort);
  startNext();
  try {
    return await promise;
  } finally {
    clearTimeout(delay);
    losers.abort(outrun);
    signal.removeEventListener('abort', abort);
  }
}

function failureOf(address: Address, error: unknown): string {
  return `${formatAddress(address).slice('tcp://'.length)} ${reasonOf(error)}`;
}

function unreachable(target: Address, failures: readonly string[], cause: unknown): PosternError {
  const message = `cannot connect to ${formatAddress(target)} (${failures.join(', ')})`;
  return new PosternError('UPSTREAM_UNREACHABLE', message, { cause });
}

async function connectTo(
  address: Address,
  signal: AbortSignal,
  { onread, connect: connectTcp = connect }: DialOptions,
): Promise<Socket> {
  signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const socket =
    address.kind === 'unix'
      ? connect({ path: address.path, allowHalfOpen: true, ...(onread && { onread }) })
      : connectTcp({
          host: address.host,
          port: address.port,
          allowHalfOpen: true,
          noDelay: true,
          keepAlive: true,
          keepAliveInitialDelay: KEEPALIVE_DELAY,
          ...(onread && { onread }),
        });
  const abort = () => reject(signal.reason as Error);
  signal.addEventListener('abort', abort);
  socket.once('connect', resolve);
  // Stays for the life of the socket: an error always destroys it, and whoever waits on it sees that.
  socket.on('error', reject);
  try {
    await promise;
    return socket;
  } catch (error) {
    socket.destroy();
    if (address.kind === 'unix' && !signal.aborted)
      throw new PosternError(
        'UPSTREAM_UNREACHABLE',
        `cannot connect to ${formatAddress(address)} (${reasonOf(error)})`,
        {
          cause: error,
        },
      );
    throw error;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

/** `promise`, or the signal's reason as soon as it aborts. */
async function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason as Error);
  signal.addEventListener('abort', abort);
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
