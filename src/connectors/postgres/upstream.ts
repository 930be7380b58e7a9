import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { posix } from 'node:path';
import type { TLSSocket } from 'node:tls';

import type { Address } from '../../core/address.ts';
import type { Credentials } from '../../core/credentials.ts';
import { Deadline } from '../../core/deadline.ts';
import { dial } from '../../core/dial.ts';
import { PosternError, reasonOf } from '../../core/errors.ts';
import { readExactly } from '../../core/socket.ts';
import { type ClientTls, startTls } from '../../core/tls.ts';
import { encodePacket, int32, SSL_REQUEST } from './messages.ts';
import { type Settings, type TlsMode, tlsModes } from './settings.ts';

/** One server to try, and how it has to prove itself. */
export interface Target {
  readonly address: Address;
  /** undefined: no TLS. */
  readonly tls: ClientTls | undefined;
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

/** The servers of a service in the order in which they are tried. Credentials beat settings, as in Secretless. */
export async function targetsOf(settings: Settings, credentials: Credentials): Promise<Target[]> {
  const port = portOf(credentials.text('port')) ?? settings.port;
  const hosts = credentials.text('host') ?? credentials.text('address') ?? settings.host ?? [];
  const mode = tlsModeOf(credentials.text('sslmode')) ?? settings.tls.mode;
  const tls = mode === 'disable' ? undefined : await tlsOf(mode, settings, credentials);
  return [hosts].flat().map((host) => {
    const address = addressOf(host, port);
    // libpq's rule: TLS is for the network, a unix socket never leaves the machine.
    if (address.kind === 'unix' || !tls) return { address, tls: undefined, negotiation: 'postgres' };
    return {
      address,
      tls: { ...tls, serverName: tls.serverName || address.host },
      negotiation: settings.tls.negotiation,
    };
  });
}

/** `db`, `db:5433`, `::1`, `[::1]:5433`, or the folder of a unix socket. */
export function addressOf(host: string, defaultPort: number): Address {
  if (host.startsWith('/')) return { kind: 'unix', path: posix.join(host, `.s.PGSQL.${defaultPort}`) };
  const bracketed = /^\[([^\]]+)\](?::(\d+))?$/.exec(host);
  const plain = /^([^:]+):(\d+)$/.exec(host);
  const [, name = host, port] = bracketed ?? plain ?? [];
  return { kind: 'tcp', host: name, port: portOf(port) ?? defaultPort };
}

function portOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const port = Number(text);
  if (/^\d{1,5}$/.test(text) && port >= 1 && port <= 65535) return port;
  throw new PosternError('CONFIG_INVALID', 'the port of the server is not a number between 1 and 65535');
}

function tlsModeOf(text: string | undefined): TlsMode | undefined {
  if (text === undefined || text === '') return undefined;
  const mode = tlsModes.find((known) => known === text);
  if (mode) return mode;
  throw new PosternError('CONFIG_INVALID', `the credential "sslmode" must be one of ${tlsModes.join(', ')}`);
}

async function tlsOf(
  mode: Exclude<TlsMode, 'disable'>,
  { tls }: Settings,
  credentials: Credentials,
): Promise<ClientTls> {
  const own = (name: string) =>
    credentials.has(name) && credentials.get(name).length > 0 ? credentials.get(name) : undefined;
  const [ca, cert, key] = await Promise.all([
    own('sslrootcert') ?? readPem(tls.ca),
    own('sslcert') ?? readPem(tls.cert),
    own('sslkey') ?? readPem(tls.key),
  ]);
  return {
    // libpq's and Secretless's rule: a CA that is given is also checked.
    verify: mode === 'require' && ca ? 'verify-ca' : mode,
    serverName: credentials.text('sslhost') || tls.serverName || '',
    minVersion: tls.minVersion,
    ca,
    cert,
    key,
    passphrase: own('sslpassword'),
  };
}

/** Read anew for each login, so that a renewed certificate is used without a restart. */
async function readPem(path: string | undefined): Promise<Buffer | undefined> {
  if (path === undefined) return undefined;
  try {
    return await readFile(path);
  } catch (cause) {
    throw new PosternError('UPSTREAM_TLS', `cannot read the file ${path} (${reasonOf(cause)})`, { cause });
  }
}

/** Connects to one server and starts TLS where the target says so. Throws UPSTREAM_UNREACHABLE or UPSTREAM_TLS. */
export async function connectUpstream(
  target: Target,
  timeout: number,
  signal: AbortSignal,
): Promise<Upstream> {
  using patience = new Deadline(timeout, () => tooSlow(target, timeout), signal);
  const { socket, address } = await dial(target.address, patience.signal);
  try {
    const secure =
      target.tls && (await negotiateTls(socket, target.tls, target.negotiation, patience.signal));
    return {
      socket: secure ?? socket,
      secure,
      verified: address.kind === 'unix' || (target.tls !== undefined && target.tls.verify !== 'require'),
      reached: {
        ...target,
        address,
        tls: target.tls && { ...target.tls, cert: undefined, key: undefined, passphrase: undefined },
      },
    };
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

function tooSlow({ address }: Target, timeout: number): PosternError {
  const name = address.kind === 'unix' ? address.path : `${address.host}:${address.port}`;
  return new PosternError(
    'UPSTREAM_UNREACHABLE',
    `${name} did not take the connection within ${timeout / 1000} s`,
  );
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
