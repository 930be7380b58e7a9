import { hash, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { isIP, type Socket, type TcpNetConnectOpts } from 'node:net';
import type { ConnectionOptions, PeerCertificate, SecureContext, SecureVersion, TLSSocket } from 'node:tls';

import { PosternError, reasonOf } from './errors.ts';

/** Loaded at the first handshake: it is 3 MiB of memory and 20 ms of a start, and there are services without TLS. */
const nodeTls = () => process.getBuiltinModule('node:tls');

/** How a TLS server has to prove who it is. */
export interface ClientTls {
  /** require: nothing is checked. verify-ca: the chain. verify-full: the chain and the name. */
  readonly verify: 'require' | 'verify-ca' | 'verify-full';
  /** Name for SNI and for the check of the certificate. An IP address is checked but, as RFC 6066 says, not sent. */
  readonly serverName: string;
  readonly minVersion: SecureVersion;
  readonly alpn?: string;
  /** A server that does not know ALPN will do as well; one that wants another protocol will not. */
  readonly alpnOptional?: boolean;
  /** PEM texts. */
  readonly ca?: Buffer | undefined;
  readonly cert?: Buffer | undefined;
  readonly key?: Buffer | undefined;
  readonly passphrase?: Buffer | undefined;
  /** Of an earlier connection to the same server, for a shorter handshake. */
  readonly session?: Buffer | undefined;
}

/**
 * Turns a connected socket into a TLS one and returns it once the handshake is done and the server has proved
 * itself. Bytes the peer sent before the handshake would be read as if they had come encrypted
 * (CVE-2021-23222), so any such byte is fatal. Throws UPSTREAM_TLS.
 */
export async function startTls(socket: Socket, tls: ClientTls, signal: AbortSignal): Promise<TLSSocket> {
  signal.throwIfAborted();
  if (socket.readableLength > 0)
    throw new PosternError('UPSTREAM_TLS', 'the server sent data before the TLS handshake');

  const secure = nodeTls().connect({ ...connectionOptions(tls), socket });
  try {
    return await secured(secure, tls, signal);
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/**
 * How `dial` connects to a server that speaks TLS from the first byte on: the handshake begins by itself, and `secured` waits for it.
 * Such a socket can read into buffers of its user, and one on top of another cannot. Throws UPSTREAM_TLS.
 */
export function tlsConnector(tls: ClientTls): (to: TcpNetConnectOpts) => TLSSocket {
  const options = connectionOptions(tls);
  // `to` has an address that the name was resolved to: the certificate is the name's.
  const verified = tls.verify === 'verify-full' && {
    checkServerIdentity: (_address: string, certificate: PeerCertificate) =>
      nodeTls().checkServerIdentity(tls.serverName, certificate),
  };
  return (to) => nodeTls().connect({ ...options, ...to, ...verified });
}

/** The socket, once its handshake is done and the server has proved itself. Throws UPSTREAM_TLS, and destroys it. */
export async function secured(secure: TLSSocket, tls: ClientTls, signal: AbortSignal): Promise<TLSSocket> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const abort = () => reject(signal.reason as Error);
  const closed = () =>
    reject(new PosternError('UPSTREAM_TLS', 'the server closed the connection during the TLS handshake'));
  signal.addEventListener('abort', abort);
  secure.once('secureConnect', resolve);
  secure.once('close', closed);
  secure.once('end', closed);
  secure.on('error', reject);
  try {
    if (signal.aborted) abort();
    await promise;
  } catch (error) {
    secure.destroy();
    signal.throwIfAborted();
    throw error instanceof PosternError
      ? error
      : new PosternError('UPSTREAM_TLS', explain(error, tls), { cause: error });
  } finally {
    signal.removeEventListener('abort', abort);
    secure.off('close', closed);
    secure.off('end', closed);
  }
  const unaware = tls.alpnOptional === true && secure.alpnProtocol === false;
  if (tls.alpn !== undefined && secure.alpnProtocol !== tls.alpn && !unaware) {
    secure.destroy();
    throw new PosternError('UPSTREAM_TLS', `the server did not agree to the protocol "${tls.alpn}" (ALPN)`);
  }
  return secure;
}

function connectionOptions(tls: ClientTls): ConnectionOptions {
  const { verify, serverName, alpn } = tls;
  const secureContext = contextFor(tls);
  return {
    secureContext,
    servername: isIP(serverName) ? '' : serverName,
    host: serverName,
    rejectUnauthorized: verify !== 'require',
    ...(verify !== 'verify-full' && { checkServerIdentity: () => undefined }),
    ...(alpn !== undefined && { ALPNProtocols: [alpn] }),
    ...(tls.session && { session: tls.session }),
  };
}

/**
 * Contexts without a client key, by what they trust. Each is about a hundred kilobytes outside of JavaScript's heap,
 * which its collector does not see: one for each connection would fill the memory before it is ever collected.
 */
const trustOnly = new Map<string, SecureContext>();
const MOST_CONTEXTS = 64;

function contextFor({ minVersion, ca, cert, key, passphrase }: ClientTls): SecureContext {
  const shared = key
    ? undefined
    : `${minVersion} ${ca ? hash('sha256', ca) : ''} ${cert ? hash('sha256', cert) : ''}`;
  const known = shared === undefined ? undefined : trustOnly.get(shared);
  if (known) return known;
  try {
    // OpenSSL takes a text without a certificate for an empty list, and trusts nobody: this says what is wrong.
    if (ca) void new X509Certificate(ca);
    const context = nodeTls().createSecureContext({
      minVersion,
      ...(ca && { ca }),
      ...(cert && { cert }),
      ...(key && { key }),
      // Node takes the passphrase as a string only: one copy of it that cannot be wiped.
      ...(passphrase && { passphrase: passphrase.toString('utf8') }),
    });
    if (shared !== undefined) {
      if (trustOnly.size >= MOST_CONTEXTS) trustOnly.clear();
      trustOnly.set(shared, context);
    }
    return context;
  } catch (cause) {
    const why = `a CA, client certificate or key cannot be used (${reasonOf(cause)})`;
    throw new PosternError('UPSTREAM_TLS', why, { cause });
  }
}

const explanations: Readonly<Record<string, string>> = {
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is not valid for this name',
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is self-signed and not trusted',
  SELF_SIGNED_CERT_IN_CHAIN: 'its certificate comes from a CA that is not trusted',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate comes from a CA that is not trusted',
  UNABLE_TO_GET_ISSUER_CERT: 'its certificate comes from a CA that is not trusted',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate comes from a CA that is not trusted',
  CERT_REVOKED: 'its certificate was revoked',
  ERR_SSL_UNSUPPORTED_PROTOCOL: 'it speaks only TLS versions that are not accepted',
  ERR_SSL_WRONG_VERSION_NUMBER: 'it does not speak TLS on this port, or only an old version',
};

function explain(error: unknown, tls: ClientTls): string {
  const reason = reasonOf(error);
  const known = Object.hasOwn(explanations, reason) ? explanations[reason] : undefined;
  return `TLS handshake with ${tls.serverName} failed: ${known ?? 'see the reason'} (${reason})`;
}

/** The certificate a service shows its clients, read from files. Throws CONFIG_INVALID. */
export async function loadServerContext(files: {
  readonly cert: string;
  readonly key: string;
  readonly passphraseFile: string | undefined;
}): Promise<SecureContext> {
  try {
    const [cert, key, passphrase] = await Promise.all([
      readFile(files.cert),
      readFile(files.key),
      files.passphraseFile === undefined ? undefined : readFile(files.passphraseFile, 'utf8'),
    ]);
    const context = nodeTls().createSecureContext({
      cert,
      key,
      minVersion: 'TLSv1.2',
      ...(passphrase !== undefined && { passphrase: passphrase.replace(/\r?\n$/, '') }),
    });
    key.fill(0);
    return context;
  } catch (cause) {
    const about = `listenTls: the certificate ${files.cert} and its key cannot be used (${reasonOf(cause)})`;
    throw new PosternError('CONFIG_INVALID', about, { cause });
  }
}

/** Accepts a client's TLS handshake on a connected socket. Throws CLIENT_PROTOCOL when it fails. */
export async function acceptTls(
  socket: Socket,
  secureContext: SecureContext,
  alpn: string,
  signal: AbortSignal,
): Promise<TLSSocket> {
  signal.throwIfAborted();
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const secure = new (nodeTls().TLSSocket)(socket, { isServer: true, secureContext, ALPNProtocols: [alpn] });
  const abort = () => reject(signal.reason as Error);
  const closed = () =>
    reject(new PosternError('CLIENT_CLOSED', 'the client closed the connection during the TLS handshake'));
  signal.addEventListener('abort', abort);
  secure.once('secure', resolve);
  secure.once('close', closed);
  // The connection may stay half open: a client that is done does not close it.
  secure.once('end', closed);
  secure.on('error', reject);
  try {
    await promise;
    return secure;
  } catch (error) {
    secure.destroy();
    signal.throwIfAborted();
    if (error instanceof PosternError) throw error;
    throw new PosternError('CLIENT_PROTOCOL', `the client's TLS handshake failed (${reasonOf(error)})`, {
      cause: error,
    });
  } finally {
    signal.removeEventListener('abort', abort);
    secure.off('close', closed);
    secure.off('end', closed);
  }
}
