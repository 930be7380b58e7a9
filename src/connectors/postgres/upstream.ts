import type { Socket } from 'node:net';
import { posix } from 'node:path';
import type { TLSSocket } from 'node:tls';

import type { Credentials } from '../../core/credentials.ts';
import { PosternError } from '../../core/errors.ts';
import { readExactly } from '../../core/socket.ts';
import { type ClientTls, startTls } from '../../core/tls.ts';
import * as servers from '../upstream.ts';
import { encodePacket, int32, SSL_REQUEST } from './messages.ts';
import type { Settings } from './settings.ts';

/** One server to try, and how it has to prove itself. */
export interface Target extends servers.Target {
  readonly negotiation: 'postgres' | 'direct';
}

/** A connection to a server, ready for the StartupMessage. */
export interface Upstream {
  readonly socket: Socket;
  readonly secure: TLSSocket | undefined;
  /** Whether whoever reads this connection is sure to be the server: verified TLS, or a unix socket. */
  readonly verified: boolean;
  /** The very server that was reached, without the client certificate: where a cancel request has to go. */
  readonly reached: Target;
}

/** `host` of a unix socket is the folder it is in, and `require` with a CA checks it: libpq's rules. */
export const customs: servers.Customs = {
  socketPath: (folder, port) => posix.join(folder, `.s.PGSQL.${port}`),
  requireWithCa: 'checks the CA',
};

/** The servers of a service in the order in which they are tried. Credentials beat settings, as in Secretless. */
export async function targetsOf(settings: Settings, credentials: Credentials): Promise<Target[]> {
  const targets = await servers.targetsOf(settings, credentials, customs);
  return targets.map((target) => ({
    ...target,
    negotiation: target.tls ? settings.tls.negotiation : 'postgres',
  }));
}

/** Connects to one server and starts TLS where the target says so. Throws UPSTREAM_UNREACHABLE or UPSTREAM_TLS. */
export async function connectUpstream(
  target: Target,
  timeout: number,
  signal: AbortSignal,
): Promise<Upstream> {
  const { first, address } = await servers.reach(target, timeout, signal, async (socket, patience) => ({
    socket,
    secure: target.tls && (await negotiateTls(socket, target.tls, target.negotiation, patience)),
  }));
  return {
    socket: first.secure ?? first.socket,
    secure: first.secure,
    verified: servers.isVerified(target),
    reached: {
      ...target,
      address,
      tls: target.tls && { ...target.tls, cert: undefined, key: undefined, passphrase: undefined },
    },
  };
}

async function negotiateTls(
  socket: Socket,
  tls: ClientTls,
  negotiation: Target['negotiation'],
  signal: AbortSignal,
): Promise<TLSSocket> {
  if (negotiation === 'direct') return await startTls(socket, { ...tls, alpn: 'postgresql' }, signal);
  socket.write(encodePacket(int32(SSL_REQUEST)));
  // Exactly one byte: what comes behind it must be the handshake (startTls refuses anything that is already there).
  const answer = (await readExactly(socket, 'upstream', 1, signal)).toString('latin1');
  if (answer === 'S') return await startTls(socket, tls, signal);
  if (answer === 'N')
    throw new PosternError('UPSTREAM_TLS', 'the server does not support TLS, which this service requires');
  // An error text at this point is not authenticated and must not be shown (CVE-2024-10977).
  if (answer === 'E')
    throw new PosternError('UPSTREAM_TLS', 'the server answered the request for TLS with an error');
  throw new PosternError('UPSTREAM_PROTOCOL', 'the server answered the request for TLS with something else');
}
