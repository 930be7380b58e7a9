import { type Head, isAuthority, METHOD_CONNECT, METHOD_OPTIONS } from './head.ts';
import { refusal } from './replies.ts';

// Request targets (RFC 9112 3.2): which server a client means. What names a server is brought into one spelling here, and
// refused where two programs could read two servers from it.

/** A host and a port in the one spelling that everything else compares. */
export interface Authority {
  /** In lower case; an IPv6 address in its shortest form and without brackets; no dot at the end. */
  readonly host: string;
  readonly port: number;
}

export const FORM_ORIGIN = 0;
export const FORM_ABSOLUTE = 1;
export const FORM_AUTHORITY = 2;
export const FORM_ASTERISK = 3;

/** One read target, used again for the next one. */
export class Target {
  form = FORM_ORIGIN;
  /** In absolute form: the scheme is https. */
  tls = false;
  /** In absolute and authority form. */
  authority: Authority = nowhere;
  /** Where path and query begin; `head.targetEnd` where the path is empty, which means `/`. */
  pathAt = 0;
}

/** Reads the target of a parsed head. Throws what the client is told: 400, or 421 where `Host` says another server. */
export function readTarget(bytes: Buffer, head: Head, target: Target): void {
  const { targetAt: at, targetEnd: end, method } = head;
  target.pathAt = at;
  if (method === METHOD_CONNECT) {
    target.form = FORM_AUTHORITY;
    target.authority = connectTarget(bytes, at, end);
    agree(bytes, head, target.authority, 443);
    return;
  }
  if (bytes[at] === SLASH) {
    target.form = FORM_ORIGIN;
    return;
  }
  if (bytes[at] === ASTERISK && end - at === 1) {
    if (method !== METHOD_OPTIONS) throw refusal(400, 'the target * is for OPTIONS only');
    target.form = FORM_ASTERISK;
    return;
  }
  target.form = FORM_ABSOLUTE;
  readAbsolute(bytes, head, target);
}

function readAbsolute(bytes: Buffer, head: Head, target: Target): void {
  const { targetAt: at, targetEnd: end } = head;
  const tls = hasPrefix(bytes, at, end, HTTPS);
  if (!tls && !hasPrefix(bytes, at, end, HTTP))
    throw refusal(400, 'the target is neither a path nor an http:// or https:// URL');
  const from = at + (tls ? HTTPS.length : HTTP.length);
  let to = from;
  while (to < end && bytes[to] !== SLASH && bytes[to] !== QUESTION) to++;
  // `http://host?query` has no path: some make `/?query` of it, some `?query`.
  if (to < end && bytes[to] === QUESTION) throw refusal(400, 'the URL in the target has a query and no path');
  const authority = authorityIn(bytes, from, to, tls ? 443 : 80);
  if (!authority) throw refusal(400, 'the URL in the target has no host that can be read in one way only');
  agree(bytes, head, authority, tls ? 443 : 80);
  target.tls = tls;
  target.authority = authority;
  target.pathAt = to;
}

/**
 * RFC 9112 3.2.2 has a proxy ignore `Host` beside a URL. Whoever looks only at `Host` (an older server, a log, a rule)
 * would be led by the nose, so the two have to agree. HTTP/1.0 may leave it out.
 */
function agree(bytes: Buffer, head: Head, authority: Authority, defaultPort: number): void {
  if (head.hostEnd === 0) return;
  const host = authorityIn(bytes, head.hostAt, head.hostEnd, defaultPort);
  if (!host) throw refusal(400, 'the Host field can be read in more than one way');
  if (host.host !== authority.host || host.port !== authority.port)
    throw refusal(400, 'the Host field and the target name different servers');
}

/** `host:port`, both given (RFC 9112 3.2.3). */
function connectTarget(bytes: Buffer, from: number, to: number): Authority {
  const authority = authorityIn(bytes, from, to, 0);
  if (!authority || authority.port === 0) throw refusal(400, 'CONNECT needs a target of the form host:port');
  return authority;
}

/** Authorities as clients wrote them: a client says the same few all the time. */
const known = new Map<string, Authority | undefined>();
const MOST_KNOWN = 1024;

/** The authority in these bytes, in the one spelling; undefined where there is none that all would read alike. */
export function authorityIn(
  bytes: Buffer,
  from: number,
  to: number,
  defaultPort: number,
): Authority | undefined {
  if (to - from > LONGEST_AUTHORITY || !isAuthority(bytes, from, to)) return undefined;
  const text = bytes.toString('latin1', from, to);
  const key = `${defaultPort} ${text}`;
  if (known.has(key)) return known.get(key);
  const authority = parseAuthority(text, defaultPort);
  if (known.size >= MOST_KNOWN) known.clear();
  known.set(key, authority);
  return authority;
}

/** The same for text of a configuration. */
export function parseAuthority(text: string, defaultPort: number): Authority | undefined {
  const bytes = Buffer.from(text, 'latin1');
  if (!isAuthority(bytes, 0, bytes.length)) return undefined;
  const match = /^(?<host>\[[^\]]+\]|[^:]+)(?::(?<port>[0-9]+))?$/.exec(text);
  const { host: given = '', port } = match?.groups ?? {};
  const host = normalHost(given);
  if (host === undefined) return undefined;
  return { host, port: port === undefined ? defaultPort : Number(port) };
}

/**
 * The one spelling of a host name or address (an IPv6 address with or without brackets), or undefined. Names stay what they
 * are but for their case and a dot at the end; addresses must be written as everybody reads them: `127.1`, `0x7f000001`
 * and `0177.0.0.1` are addresses to some resolvers and names to others.
 */
export function normalHost(host: string): string | undefined {
  if (host.startsWith('[') || host.includes(':')) {
    const address = host.startsWith('[') ? host : `[${host}]`;
    if (!URL.canParse(`http://${address}/`)) return undefined;
    return new URL(`http://${address}/`).hostname.slice(1, -1);
  }
  const name = host.toLowerCase().replace(/\.$/, '');
  if (name.length > 253 || !/^(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$/.test(name)) return undefined;
  if (endsInNumber(name)) return isDottedQuad(name) ? name : undefined;
  return name;
}

/** What the URL standard takes for an IPv4 address in whatever spelling. */
function endsInNumber(name: string): boolean {
  return /(^|\.)([0-9]+|0x[0-9a-f]*)$/.test(name);
}

function isDottedQuad(name: string): boolean {
  const parts = name.split('.');
  return (
    parts.length === 4 && parts.every((part) => /^(0|[1-9][0-9]{0,2})$/.test(part) && Number(part) < 256)
  );
}

/**
 * The servers that a client may say it is talking to. A web page can have its own name resolve to 127.0.0.1 and then
 * talk to a listener there (DNS rebinding): its requests say that name in `Host`.
 */
export class Hosts {
  readonly #names: ReadonlySet<string>;
  /** The last value that was found good: clients say the same one in every request. */
  #last = Buffer.alloc(0);

  /** `names`: beside loopback addresses and `localhost`, with whatever port. */
  constructor(names: readonly string[]) {
    this.#names = new Set(names.map((name) => normalHost(name) ?? name));
  }

  /** Whether a host in its one spelling is one of them. */
  has(host: string): boolean {
    return isLoopbackName(host) || this.#names.has(host);
  }

  /** Whether `[from, to)` is one of them. */
  allows(bytes: Buffer, from: number, to: number): boolean {
    const last = this.#last;
    if (last.length === to - from) {
      let i = 0;
      while (i < last.length && last[i] === bytes[from + i]) i++;
      if (i === last.length) return true;
    }
    const authority = authorityIn(bytes, from, to, 0);
    if (!authority || !this.has(authority.host)) return false;
    this.#last = Buffer.from(bytes.subarray(from, to));
    return true;
  }
}

/** Whether a normal host is this machine by its spelling alone. */
export function isLoopbackName(host: string): boolean {
  return host === 'localhost' || host.endsWith('.localhost') || host === '::1' || /^127\.[0-9.]+$/.test(host);
}

function hasPrefix(bytes: Buffer, at: number, end: number, prefix: Uint8Array): boolean {
  if (end - at < prefix.length) return false;
  for (let i = 0; i < prefix.length; i++) {
    const byte = bytes[at + i] as number;
    if ((byte >= 0x41 && byte <= 0x5a ? byte + 32 : byte) !== prefix[i]) return false;
  }
  return true;
}

const SLASH = 0x2f;
const QUESTION = 0x3f;
const ASTERISK = 0x2a;
const LONGEST_AUTHORITY = 300;
const HTTP = Buffer.from('http://');
const HTTPS = Buffer.from('https://');
const nowhere: Authority = { host: '', port: 0 };
