import type { Socket } from 'node:net';

import type { Session } from '../../core/session.ts';
import type { Head } from './head.ts';
import type { Member } from './member.ts';

/** A server that requests can go to: scheme, host and port. A credential belongs to it and to no other. */
export interface Origin {
  readonly tls: boolean;
  readonly host: string;
  readonly port: number;
  /** As `Host` has it: with the port unless it is the scheme's own. */
  readonly authority: string;
  /** `Host: authority\r\n`. */
  readonly hostLine: Buffer;
  /** `https://authority`, for people. */
  readonly key: string;
  /** Equal for origins that may share connections. */
  readonly pool: string;
  /**
   * Whether this address of the host may be connected to, for origins that a client chose. undefined: any.
   */
  readonly permits: ((address: string) => boolean) | undefined;
}

/** `host` as in a URL, an IPv6 address in brackets or not. */
export function originOf(
  tls: boolean,
  host: string,
  port: number,
  permits?: (address: string) => boolean,
): Origin {
  const name = host.startsWith('[') ? host.slice(1, -1) : host;
  const shown = name.includes(':') ? `[${name}]` : name;
  const authority = port === (tls ? 443 : 80) ? shown : `${shown}:${port}`;
  const key = `${tls ? 'https' : 'http'}://${authority}`;
  return {
    tls,
    host: name,
    port,
    authority,
    hostLine: Buffer.from(`Host: ${authority}\r\n`, 'latin1'),
    key,
    pool: key,
    permits,
  };
}

/** Where a request goes. The object may be used again for the next one: whoever gets it keeps nothing of it. */
export interface Route {
  /** The service whose credential goes into the request. */
  readonly member: Member;
  readonly origin: Origin;
  /** Put before the client's path: the path of a base URL, without a slash at its end. Mostly empty. */
  readonly prefix: Buffer;
  /** Where path and query begin in the client's bytes; they end at `head.targetEnd`. Nothing there means `/`. */
  readonly targetAt: number;
}

/** Decides for one listener where requests go. */
export interface Front {
  /** The service that serves the clients: its names, limits and timeouts are those of the connections. */
  readonly first: Member;
  /** Maps a request whose head was read from `bytes`. Throws what the client is told. */
  route(bytes: Buffer, head: Head): Route;
  /**
   * What becomes of a CONNECT to `authority`. Throws what the client is told; what it returns gets the client's socket,
   * with everything in it that came behind the head, and owns it from then on. undefined: there is no CONNECT.
   */
  readonly connect?: (
    authority: string,
    session: Session,
  ) => (socket: Socket, session: Session) => Promise<void>;
}
