import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import * as z from 'zod';

import type { Address } from '../core/address.ts';
import type { Credentials } from '../core/credentials.ts';
import { Deadline } from '../core/deadline.ts';
import { dial } from '../core/dial.ts';
import { duration } from '../core/duration.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import type { ClientTls } from '../core/tls.ts';
import type { Finding } from './connector.ts';

// What every connector to a database server has in common: which servers, in which order, how they prove themselves.

export const tlsModes = ['disable', 'require', 'verify-ca', 'verify-full'] as const;
export type TlsMode = (typeof tlsModes)[number];

/** Names of credentials that stand for settings of the connection, as in Secretless. */
export const serverCredentials = [
  'host',
  'port',
  'sslmode',
  'sslrootcert',
  'sslcert',
  'sslkey',
  'sslpassword',
  'sslhost',
] as const;

/** The settings that say where the server is; `socket` says what of a unix socket is given, `port` is the usual one. */
export function serverShape({ socket, port }: { readonly socket: string; readonly port: number }) {
  const other = port + 1;
  return {
    host: z
      .union([z.string().min(1), z.array(z.string().min(1)).min(1)])
      .optional()
      .describe(
        `Host name, address, or ${socket} of a unix socket; a list is tried in order. An entry may carry its own port (\`db2:${other}\`, \`[::1]:${other}\`). May also be a credential.`,
      ),
    port: z.int().min(1).max(65535).default(port).describe('TCP port of the server.'),
    connectTimeout: duration
      .prefault('5s')
      .describe('How long one host may take to accept a connection before the next is tried.'),
  };
}

/** The settings under `tls`; a connector adds the default of `mode`. */
export const tlsShape = {
  mode: z
    .enum(tlsModes)
    .describe(
      'disable: no TLS. require: TLS that proves nothing about the server. verify-ca: its certificate comes from a trusted CA. verify-full: and it names this host.',
    ),
  ca: z
    .string()
    .min(1)
    .optional()
    .describe('File with the CA certificates to trust (PEM), instead of the system ones.'),
  cert: z.string().min(1).optional().describe('File with the client certificate and its chain (PEM).'),
  key: z.string().min(1).optional().describe('File with the key of the client certificate (PEM).'),
  serverName: z
    .string()
    .min(1)
    .optional()
    .describe(
      'Name to send as SNI and to expect in the certificate, where it is not the host that is dialled.',
    ),
  minVersion: z.enum(['TLSv1.2', 'TLSv1.3']).default('TLSv1.2').describe('Oldest TLS version to accept.'),
};

/** What a connector's settings say about its servers. */
export interface ServerSettings {
  readonly host?: string | string[] | undefined;
  readonly port: number;
  readonly connectTimeout: number;
  readonly tls: {
    readonly mode: TlsMode;
    readonly ca?: string | undefined;
    readonly cert?: string | undefined;
    readonly key?: string | undefined;
    readonly serverName?: string | undefined;
    readonly minVersion: 'TLSv1.2' | 'TLSv1.3';
  };
}

/** What is wrong or unsafe about settings and credentials that name a server. */
export function reviewServer(
  { host, tls }: ServerSettings,
  credentials: ReadonlySet<string>,
): { readonly problems: Finding[]; readonly warnings: Finding[]; readonly onlySockets: boolean } {
  const problems: Finding[] = [];
  const warnings: Finding[] = [];
  const problem = (path: readonly string[], message: string) => problems.push({ path, message });
  const warn = (message: string) => warnings.push({ path: ['config', 'tls', 'mode'], message });

  const hostCredential = credentials.has('host') || credentials.has('address');
  if (!hostCredential && host === undefined)
    problem(['config', 'host'], 'missing: give the server as config.host or as the credential "host"');
  if (hostCredential && host !== undefined)
    problem(['config', 'host'], 'given twice: as config.host and as a credential');
  if ((tls.cert === undefined) !== (tls.key === undefined))
    problem(['config', 'tls'], 'cert and key belong together');
  if (credentials.has('sslcert') !== credentials.has('sslkey'))
    problem(['credentials'], '"sslcert" and "sslkey" belong together');

  const hosts = [host ?? []].flat();
  const onlySockets = hosts.length > 0 && hosts.every((each) => each.startsWith('/'));
  const mend = 'add `tls: { mode: verify-full }` to config, with `ca:` where the CA is your own';
  if (!onlySockets && !credentials.has('sslmode')) {
    if (tls.mode === 'disable') warn(`queries and results travel in clear; ${mend}`);
    else if (tls.mode === 'require' && tls.ca === undefined && !credentials.has('sslrootcert'))
      warn(`TLS without knowing the server (mode require): a man in the middle goes unnoticed; ${mend}`);
  }
  return { problems, warnings, onlySockets };
}

/** One server to try, and how it has to prove itself. */
export interface Target {
  readonly address: Address;
  /** undefined: no TLS. */
  readonly tls: ClientTls | undefined;
}

/** Ways in which protocols differ about their servers. */
export interface Customs {
  /** The path of the unix socket that a `host` with a slash in front means. */
  readonly socketPath: (host: string, port: number) => string;
  /** Mode `require` with a CA: libpq checks the CA, Secretless's MySQL does not even look at it. */
  readonly requireWithCa: 'checks the CA' | 'ignores the CA';
}

/** The servers of a service in the order in which they are tried. Credentials beat settings, as in Secretless. */
export async function targetsOf(
  settings: ServerSettings,
  credentials: Credentials,
  customs: Customs,
): Promise<Target[]> {
  const port = portOf(credentials.text('port')) ?? settings.port;
  const hosts = credentials.text('host') ?? credentials.text('address') ?? settings.host ?? [];
  const mode = tlsModeOf(credentials.text('sslmode')) ?? settings.tls.mode;
  const tls = mode === 'disable' ? undefined : await tlsOf(mode, settings, credentials, customs);
  return [hosts].flat().map((host) => {
    const address = addressOf(host, port, customs);
    // libpq's rule: TLS is for the network, a unix socket never leaves the machine.
    if (address.kind === 'unix' || !tls) return { address, tls: undefined };
    return { address, tls: { ...tls, serverName: tls.serverName || address.host } };
  });
}

/** `db`, `db:5433`, `::1`, `[::1]:5433`, or a unix socket. */
export function addressOf(host: string, defaultPort: number, { socketPath }: Customs): Address {
  if (host.startsWith('/')) return { kind: 'unix', path: socketPath(host, defaultPort) };
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
  { tls }: ServerSettings,
  credentials: Credentials,
  { requireWithCa }: Customs,
): Promise<ClientTls> {
  const own = (name: string) =>
    credentials.has(name) && credentials.get(name).length > 0 ? credentials.get(name) : undefined;
  const ignoresCa = mode === 'require' && requireWithCa === 'ignores the CA';
  const [ca, cert, key] = await Promise.all([
    ignoresCa ? undefined : (own('sslrootcert') ?? readPem(tls.ca)),
    own('sslcert') ?? readPem(tls.cert),
    own('sslkey') ?? readPem(tls.key),
  ]);
  return {
    verify: mode === 'require' && ca ? 'verify-ca' : mode,
    serverName: credentials.text('sslhost') || tls.serverName || '',
    minVersion: tls.minVersion,
    ca,
    cert,
    key,
    passphrase: own('sslpassword'),
  };
}

/** Read anew for each login, so that a renewed certificate is used without a restart. Throws UPSTREAM_TLS. */
export async function readPem(path: string | undefined): Promise<Buffer | undefined> {
  if (path === undefined) return undefined;
  try {
    return await readFile(path);
  } catch (cause) {
    throw new PosternError('UPSTREAM_TLS', `cannot read the file ${path} (${reasonOf(cause)})`, { cause });
  }
}

/** Whether whoever reads a connection to this server is sure to be the server: verified TLS, or a unix socket. */
export function isVerified({ address, tls }: Target): boolean {
  return address.kind === 'unix' || (tls !== undefined && tls.verify !== 'require');
}

/**
 * Connects to one server and makes the first exchange with it (TLS, a greeting), both within `timeout`. Resolves with
 * what `exchange` does and the exact address that was reached. Throws UPSTREAM_UNREACHABLE, or what `exchange` does.
 */
export async function reach<T>(
  target: Target,
  timeout: number,
  signal: AbortSignal,
  exchange: (socket: Socket, signal: AbortSignal) => Promise<T>,
): Promise<{ readonly first: T; readonly address: Address }> {
  using patience = new Deadline(timeout, () => tooSlow(target, timeout), signal);
  const { socket, address } = await dial(target.address, patience.signal);
  try {
    return { first: await exchange(socket, patience.signal), address };
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** `db.internal:5432`, or the path of a unix socket: for logs. */
export function nameOf(address: Address): string {
  return address.kind === 'unix' ? address.path : `${address.host}:${address.port}`;
}

function tooSlow({ address }: Target, timeout: number): PosternError {
  return new PosternError(
    'UPSTREAM_UNREACHABLE',
    `${nameOf(address)} did not take the connection within ${timeout / 1000} s`,
  );
}

/** What a session's log line says of its login. */
export function loginFacts({
  address,
  method,
  socket,
}: {
  readonly address: Address;
  readonly method: string;
  readonly socket: Socket | TLSSocket;
}): { readonly upstream: string; readonly auth: string; readonly upstreamTls: string } {
  return {
    upstream: nameOf(address),
    auth: method,
    upstreamTls: 'getProtocol' in socket ? String(socket.getProtocol()) : 'none',
  };
}
