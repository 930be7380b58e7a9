import type { OnReadOpts, Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';

import { Deadline } from '../../core/deadline.ts';
import { dial } from '../../core/dial.ts';
import { PosternError } from '../../core/errors.ts';
import { type ClientTls, secured, tlsConnector } from '../../core/tls.ts';
import type { Origin } from './route.ts';
import type { EngineSettings } from './settings.ts';

/** How TLS towards a service's servers is done; the name is that of the server. */
export type UpstreamTls = Omit<ClientTls, 'serverName'>;

/**
 * Connects to an origin, with TLS where it has it. Throws UPSTREAM_UNREACHABLE, UPSTREAM_TLS, CLIENT_REFUSED for an
 * address that the origin may not have, or the signal's reason.
 */
export async function reach(
  origin: Origin,
  settings: EngineSettings,
  tls: UpstreamTls,
  signal: AbortSignal,
  onread?: OnReadOpts,
): Promise<Socket> {
  const { connect } = settings.timeouts;
  const late = () =>
    new PosternError(
      'UPSTREAM_UNREACHABLE',
      `${origin.authority} did not take the connection within ${connect / 1000} s`,
    );
  using patience = new Deadline(connect, late, signal);
  const target = { kind: 'tcp', host: origin.host, port: origin.port } as const;
  const { permits } = origin;
  if (!origin.tls) return (await dial(target, patience.signal, { onread, permits })).socket;
  const serverName = settings.tls.serverName ?? origin.host;
  const wanted = { ...tls, serverName, alpn: 'http/1.1', alpnOptional: true };
  const begin = tlsConnector(wanted);
  const { socket } = await dial(target, patience.signal, { onread, permits, connect: begin });
  return await secured(socket as TLSSocket, wanted, patience.signal);
}
