import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';

import { dial } from '../../core/dial.ts';
import { PosternError } from '../../core/errors.ts';
import type { Session } from '../../core/session.ts';
import { endLingering } from '../../core/socket.ts';
import { acceptTls } from '../../core/tls.ts';
import { attachAccepted } from './accelerator.ts';
import type { AuthoritySource } from './authority.ts';
import { Client } from './client.ts';
import { errorReply, refusal } from './replies.ts';
import type { Front } from './route.ts';
import type { Authority } from './target.ts';

// CONNECT (RFC 9110 9.3.6): a client asks for a tunnel, mostly to speak TLS through it with a server that it names. Where
// a rule names that server, Postern is the other end of the tunnel and of the TLS in it, and the requests that come out
// are served like all others. Other servers are refused, or reached by a tunnel that nobody looks into.

const ESTABLISHED = Buffer.from('HTTP/1.1 200 Connection established\r\n\r\n');

/** Owns the client's socket, with what came behind the head still in it. */
export type Tunnel = (socket: Socket, session: Session) => Promise<void>;

/** A tunnel that ends here: `inside` serves the requests that come out of it. */
export function interception(target: Authority, source: AuthoritySource, inside: Front): Tunnel {
  return async (socket, session) => {
    session.note({ connect: 'intercepted', host: target.host });
    const secure = await told(socket, session, async (signal) => {
      // Before the client is told to go on: without a certificate there is nothing to go on with.
      const authority = source.current ?? (await source.get(signal));
      const context = authority.contextFor(target.host);
      socket.write(ESTABLISHED);
      return await handshake(socket, context, signal);
    });
    // A client that means one server and names another would have its request checked by the wrong rules.
    if (secure.servername && secure.servername.toLowerCase() !== target.host)
      throw tell(secure, session, refusal(421, 'the name in the TLS handshake is not that of the tunnel'));
    session.note({ clientTls: true });
    const client = new Client(inside, session, true);
    attachAccepted(client.wire, secure, 'data');
    await client.done;
  };
}

/** Once it has begun, a failure of the handshake cannot be told: there is no HTTP to tell it in. */
async function handshake(
  socket: Socket,
  context: Parameters<typeof acceptTls>[1],
  signal: AbortSignal,
): Promise<TLSSocket> {
  try {
    return await acceptTls(socket, context, 'http/1.1', signal);
  } catch (thrown) {
    socket.destroy();
    throw thrown;
  }
}

/** A tunnel that nobody looks into. `permits` is asked about the addresses of the server. */
export function blindTunnel(target: Authority, permits: (address: string) => boolean): Tunnel {
  return async (socket, session) => {
    session.note({ connect: 'tunnelled', host: target.host });
    const upstream = await told(socket, session, async (signal) => {
      return (await dial({ kind: 'tcp', ...target }, signal, { permits })).socket;
    });
    socket.write(ESTABLISHED);
    await session.relay(socket, upstream);
  };
}

/** Does one step before the tunnel is there; a client is told why there will be none. */
async function told<T>(
  socket: Socket,
  session: Session,
  step: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const signal = session.deadline('the tunnel');
  try {
    return await step(signal);
  } catch (thrown) {
    throw tell(socket, session, PosternError.from(thrown));
  }
}

function tell(socket: Socket, session: Session, error: PosternError): PosternError {
  if (socket.destroyed) return error;
  socket.write(errorReply(error, session.id));
  endLingering(socket);
  return error;
}
