import type { OnReadOpts, Socket } from 'node:net';

import { Deadline } from '../../core/deadline.ts';
import { dial } from '../../core/dial.ts';
import { PosternError } from '../../core/errors.ts';
import { type ClientTls, startTls } from '../../core/tls.ts';
import type { Origin } from './route.ts';
import type { EngineSettings } from './settings.ts';

/** How TLS towards a service's servers is done; the name is that of the server. */
export type UpstreamTls = Omit<ClientTls, 'serverName'>;

/**
 * Connects to an origin, with TLS where it has it. Throws UPSTREAM_UNREACHABLE, UPSTREAM_TLS, CLIENT_REFUSED for an
 * address that the origin may not have, or the signal's reason. `onread` is for connections in clear.
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
  const { socket } = await dial(target, patience.signal, {
    onread: origin.tls ? undefined : onread,
    permits: origin.permits,
  });
  if (!origin.tls) return socket;
  const serverName = settings.tls.serverName ?? origin.host;
  const wanted = { ...tls, serverName, alpn: 'http/1.1', alpnOptional: true };
  return await startTls(socket, wanted, patience.signal);
}
