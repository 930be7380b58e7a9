import type { Socket } from 'node:net';

import { PosternError } from '../../core/errors.ts';
import type { Session } from '../../core/session.ts';
import { endLingering, readExactly } from '../../core/socket.ts';
import { acceptTls } from '../../core/tls.ts';
import {
  type BackendKey,
  CANCEL_REQUEST,
  decodeBackendKey,
  decodeParameters,
  GSSENC_REQUEST,
  NEWEST_MINOR,
  type Parameter,
  SSL_REQUEST,
} from './messages.ts';
import { errorReply, refusal } from './replies.ts';

/** The server's own bound for a packet before the login (MAX_STARTUP_PACKET_LENGTH). */
const LONGEST_STARTUP = 10_000;
/** First byte of a TLS handshake record. The length of a startup packet can never begin with it. */
const TLS_HANDSHAKE = 0x16;
/** A TLS alert record: fatal, handshake_failure (RFC 8446 section 6). */
const HANDSHAKE_FAILURE = Buffer.from([0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28]);
const ALPN = 'postgresql';

/** What a client wants: a session, or a running query of another session cancelled. */
export type Hello = StartupHello | { readonly kind: 'cancel'; readonly target: BackendKey };

export interface StartupHello {
  readonly kind: 'startup';
  /** Minor version of protocol 3 that the client asked for, and the one it gets. */
  readonly askedMinor: number;
  readonly minor: number;
  readonly parameters: readonly Parameter[];
  /** Protocol options (`_pq_.`), none of which is known. */
  readonly unknownOptions: readonly string[];
}

/** The client's end of a session, from its first byte until the relay takes over. */
export class Client {
  readonly #session: Session;
  #socket: Socket;

  constructor(session: Session) {
    this.#session = session;
    this.#socket = session.client;
  }

  /** The client's socket, or the TLS one around it. */
  get socket(): Socket {
    return this.#socket;
  }

  /**
   * Reads the packets before the login: at most one SSLRequest and one GSSENCRequest, in any order, then a
   * StartupMessage or a CancelRequest. PostgreSQL documentation 54.2.1 and 54.2.9 to 54.2.11.
   */
  async readHello(signal: AbortSignal): Promise<Hello> {
    let tlsAsked = false;
    let gssAsked = false;
    for (;;) {
      const head = await readExactly(this.#socket, 'client', 4, signal);
      if (head[0] === TLS_HANDSHAKE && !tlsAsked && !gssAsked && this.#socket === this.#session.client) {
        await this.#acceptDirectTls(head, signal);
        continue;
      }
      const length = head.readUInt32BE() - 4;
      if (length < 4 || length > LONGEST_STARTUP)
        throw new PosternError('CLIENT_PROTOCOL', `invalid length of startup packet (${length + 4})`);
      const packet = await readExactly(this.#socket, 'client', length, signal);
      const code = packet.readUInt32BE();

      if (code === SSL_REQUEST && length === 4 && !tlsAsked) {
        tlsAsked = true;
        await this.#answerTlsRequest(signal);
      } else if (code === GSSENC_REQUEST && length === 4 && !gssAsked) {
        gssAsked = true;
        this.#socket.write('N');
      } else if (code === CANCEL_REQUEST) {
        const target = decodeBackendKey(packet.subarray(4));
        if (!target) throw new PosternError('CLIENT_PROTOCOL', 'invalid cancel request');
        return { kind: 'cancel', target };
      } else {
        return decodeStartup(code, packet.subarray(4));
      }
    }
  }

  /** Tells the client why it is not served, so that it hears it to the end. */
  refuse(error: PosternError): void {
    // A client that is gone, or that never spoke PostgreSQL, gets nothing more.
    if (error.code !== 'CLIENT_CLOSED' && !this.#socket.destroyed)
      this.#socket.write(errorReply(error, this.#session.id));
    this.end();
  }

  end(): void {
    endLingering(this.#socket);
  }

  async #answerTlsRequest(signal: AbortSignal): Promise<void> {
    const { localTls } = this.#session;
    if (!localTls || this.#socket !== this.#session.client) {
      this.#socket.write('N');
      return;
    }
    // Bytes sent in clear together with the request would be read as if they had come encrypted (CVE-2021-23214).
    if (this.#socket.readableLength > 0)
      throw new PosternError('CLIENT_PROTOCOL', 'received unencrypted data after the SSL request');
    this.#socket.write('S');
    this.#socket = await acceptTls(this.#socket, localTls, ALPN, signal);
    this.#session.note({ clientTls: true });
  }

  /** `sslnegotiation=direct`: the client starts with TLS and must agree to the protocol by ALPN. */
  async #acceptDirectTls(head: Buffer, signal: AbortSignal): Promise<void> {
    const { localTls, client } = this.#session;
    if (!localTls)
      throw new PosternError('CLIENT_PROTOCOL', 'the client started TLS, and the service has no listenTls', {
        reply: HANDSHAKE_FAILURE,
      });
    client.unshift(head);
    const secure = await acceptTls(client, localTls, ALPN, signal);
    this.#socket = secure;
    if (secure.alpnProtocol !== ALPN)
      throw new PosternError(
        'CLIENT_PROTOCOL',
        'the client started TLS without the ALPN protocol "postgresql"',
      );
    this.#session.note({ clientTls: true });
  }
}

function decodeStartup(version: number, list: Buffer): StartupHello {
  const major = version >>> 16;
  const askedMinor = version & 0xffff;
  if (major !== 3)
    throw refusal(
      '0A000',
      `unsupported frontend protocol ${major}.${askedMinor}: this server supports 3.0 to 3.${NEWEST_MINOR}`,
    );
  const all = decodeParameters(list);
  if (!all) throw new PosternError('CLIENT_PROTOCOL', 'invalid startup packet layout');
  const isOption = ([name]: Parameter) => name.startsWith('_pq_.');
  return {
    kind: 'startup',
    askedMinor,
    minor: Math.min(askedMinor, NEWEST_MINOR),
    parameters: all.filter((parameter) => !isOption(parameter)),
    unknownOptions: all.filter(isOption).map(([name]) => name),
  };
}
