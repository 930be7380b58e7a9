import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';

import { dial } from '../../core/dial.ts';
import { PosternError } from '../../core/errors.ts';
import type { Session } from '../../core/session.ts';
import { endLingering, readExactly } from '../../core/socket.ts';
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

/** The first byte of TLS: a record of the handshake. No request begins with it. */
const HANDSHAKE = 0x16;

/** Who serves the requests that come out of a tunnel. */
export interface Inside {
  /** Those under TLS, with a certificate of this authority. */
  readonly secure: { readonly source: AuthoritySource; readonly front: Front } | undefined;
  /** Those in clear: some clients (Node's fetch) ask for a tunnel also for an http:// URL. */
  readonly plain: Front | undefined;
}

/** A tunnel that ends here. */
export function interception(target: Authority, { secure, plain }: Inside): Tunnel {
  return async (socket, session) => {
    session.note({ connect: 'intercepted', host: target.host });
    const tunnel = await told(socket, session, async (signal) => {
      // Before the client is told to go on: without a certificate there is nothing to go on with.
      const authority = secure && (secure.source.current ?? (await secure.source.get(signal)));
      const context = authority?.contextFor(target.host);
      socket.write(ESTABLISHED);
      const [first = 0] = await within(socket, readExactly(socket, 'client', 1, signal));
      socket.unshift(Buffer.of(first));
      if (first !== HANDSHAKE) return socket;
      if (context) return await within(socket, acceptTls(socket, context, 'http/1.1', signal));
      socket.destroy();
      throw refusal(403, 'no rule has an https:// URL of this server');
    });
    const { servername } = tunnel as Partial<TLSSocket>;
    // A client that means one server and names another would have its request checked by the wrong rules.
    if (servername && servername.toLowerCase() !== target.host)
      throw tell(tunnel, session, refusal(421, 'the name in the TLS handshake is not that of the tunnel'));
    const front = tunnel === socket ? plain : secure?.front;
    if (!front) throw tell(tunnel, session, refusal(403, 'no rule has an http:// URL of this server'));
    if (tunnel !== socket) session.note({ clientTls: true });
    const client = new Client(front, session, true);
    attachAccepted(client.wire, tunnel, 'data');
    await client.done;
  };
}

/** Once it has begun, a failure cannot be told: what comes next is not yet HTTP. */
async function within<T>(socket: Socket, step: Promise<T>): Promise<T> {
  try {
    return await step;
  } catch (thrown) {
    socket.destroy();
    throw thrown;
  }
}

/** A tunnel that nobody looks into. `permits` is asked about the addresses of the server, `opened` is told when it is there. */
export function blindTunnel(
  target: Authority,
  permits: (address: string) => boolean,
  opened: () => void,
): Tunnel {
  return async (socket, session) => {
    session.note({ connect: 'tunnelled', host: target.host });
    const upstream = await told(socket, session, async (signal) => {
      return (await dial({ kind: 'tcp', ...target }, signal, { permits })).socket;
    });
    opened();
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
