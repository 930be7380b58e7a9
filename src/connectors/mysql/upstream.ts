import type { Socket } from 'node:net';

import type { Address } from '../../core/address.ts';
import type { Credentials } from '../../core/credentials.ts';
import { PosternError } from '../../core/errors.ts';
import { type Customs, reach, type Target, targetsOf } from '../upstream.ts';
import { capability, has } from './capabilities.ts';
import { Leg } from './leg.ts';
import { decodeGreeting, type Greeting, isError } from './packets.ts';
import { upstreamFailure } from './replies.ts';
import type { Settings } from './settings.ts';

/** A server that has greeted and knows nothing of us yet. */
export interface GreetedServer {
  readonly socket: Socket;
  readonly greeting: Greeting;
  readonly target: Target;
  /** The exact address that was reached. */
  readonly address: Address;
}

/**
 * Connects to the first server of the list that greets: nothing has been said to one that cannot be reached, that closes,
 * or that sends an error in place of its greeting ("Too many connections"), so the next may take the session.
 */
export async function findServer(
  settings: Settings,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<GreetedServer> {
  let last: PosternError | undefined;
  for (const target of await targetsOf(settings, credentials, customsOf(settings))) {
    try {
      return await greetedBy(target, settings.connectTimeout, signal);
    } catch (error) {
      if (!(error instanceof PosternError) || !mayTryNext.has(error.code) || signal.aborted) throw error;
      last = error;
    }
  }
  throw last ?? new PosternError('CONFIG_INVALID', 'the service names no host');
}

const mayTryNext: ReadonlySet<string> = new Set([
  'UPSTREAM_UNREACHABLE',
  'UPSTREAM_CLOSED',
  'UPSTREAM_REFUSED',
]);

/** `host` of a unix socket is the socket itself. */
function customsOf({ secretless }: Settings): Customs {
  return {
    socketPath: (path) => path,
    requireWithCa: secretless ? 'ignores the CA' : 'checks the CA',
  };
}

async function greetedBy(target: Target, timeout: number, signal: AbortSignal): Promise<GreetedServer> {
  const { first, address } = await reach(target, timeout, signal, async (socket, patience) => ({
    socket,
    greeting: await readGreeting(new Leg(socket, 'upstream'), target, patience),
  }));
  return { ...first, target, address };
}

async function readGreeting(leg: Leg, { tls }: Target, signal: AbortSignal): Promise<Greeting> {
  const payload = await leg.read(signal);
  // Until TLS has proved who this is, its text is not to be believed, and not to be shown.
  if (isError(payload)) throw upstreamFailure(payload, { secrets: [], names: [], trusted: !tls });
  const greeting = decodeGreeting(payload);
  if (tls && !has(greeting.capabilities.flags, capability.ssl))
    throw new PosternError('UPSTREAM_TLS', 'the server does not support TLS, which this service requires');
  return greeting;
}
