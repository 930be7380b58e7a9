import type { Socket } from 'node:net';

import type { Address } from '../../core/address.ts';
import type { Credentials } from '../../core/credentials.ts';
import { Deadline } from '../../core/deadline.ts';
import { PosternError } from '../../core/errors.ts';
import { startTls } from '../../core/tls.ts';
import type { Target } from '../upstream.ts';
import { type Capabilities, upstreamCapabilities } from './capabilities.ts';
import { Conversation } from './conversation.ts';
import { Leg } from './leg.ts';
import { encodeHandshakeResponse, encodeSslRequest, rewriteLoginOk } from './packets.ts';
import { bareRequest, type LoginRequest } from './request.ts';
import type { AuthMethod, Settings } from './settings.ts';
import type { GreetedServer } from './upstream.ts';

/** How long a connection that no client wants any more may take to be ended in order, in milliseconds. */
const LEAVE_TIMEOUT = 2000;
const COM_QUIT = Buffer.of(0x01);

/** A server connection that is logged in and waits for a command. */
export interface LoggedIn {
  readonly socket: Socket;
  readonly target: Target;
  readonly address: Address;
  /** What the session was agreed to be like with the server. */
  readonly capabilities: Capabilities;
  /** Payload of the server's OK, as the client may have it. */
  readonly ok: Buffer;
  readonly method: AuthMethod;
}

/** Logs in as the configured user at a server that has greeted. The connection is closed when that fails. */
export async function logIn(
  { socket: plain, greeting, target, address }: GreetedServer,
  request: LoginRequest,
  settings: Settings,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<LoggedIn> {
  // The server's greeting was 0.
  const leg = new Leg(plain, 'upstream', 1);
  try {
    const capabilities = upstreamCapabilities(request.agreed, greeting.capabilities, {
      tls: target.tls !== undefined,
      database: request.database !== undefined,
      attributes: request.attributes.size > 0,
    });
    if (target.tls) {
      leg.write(encodeSslRequest({ ...request, capabilities }));
      leg.socket = await startTls(plain, target.tls, signal);
    }
    const named = [request.database];
    const conversation = await Conversation.prepare(settings, credentials, { target, address }, named);
    const { plugin, authData } = await conversation.begin(greeting);
    const user = credentials.get('username').toString('latin1');
    try {
      const response = encodeHandshakeResponse({ ...request, capabilities, user, plugin, authData });
      await leg.writeSecret(response, signal);
    } finally {
      authData.fill(0);
    }
    const ok = rewriteLoginOk(await conversation.finish(leg, signal), capabilities.flags);
    return { socket: leg.socket, target, address, capabilities, ok, method: conversation.method };
  } catch (error) {
    leg.socket.destroy();
    plain.destroy();
    throw error;
  }
}

/**
 * Ends a connection to a server that has greeted and that nobody wants: by logging in and leaving. A server counts a
 * connection that ends in its login against the host it comes from, and at last blocks that host (`max_connect_errors`);
 * one that logs in starts the count anew.
 */
export async function leave(
  server: GreetedServer,
  settings: Settings,
  credentials: Credentials,
): Promise<void> {
  const late = () => new PosternError('TIMEOUT', 'leaving the server took too long');
  using patience = new Deadline(LEAVE_TIMEOUT, late);
  try {
    const request = bareRequest(server.greeting, settings);
    quit(await logIn(server, request, settings, credentials, patience.signal));
  } catch {
    // It was a courtesy.
  }
}

/** Says goodbye to a server. */
export function quit({ socket }: LoggedIn): void {
  new Leg(socket, 'upstream').write(COM_QUIT);
  socket.destroySoon();
}
