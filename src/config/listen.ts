import { isIPv4, isIPv6 } from 'node:net';
import { posix } from 'node:path';
import * as z from 'zod';

import type { Address } from '../core/address.ts';

/** sockaddr_un holds 108 bytes with the NUL at the end; the kernel refuses a longer path. */
const longestSocketPath = 107;

/** `listenOn`: `tcp://host:port` (also tcp4, tcp6, and port 0 for any free one) or `unix:///path`. */
export const listenAddress = z
  .string()
  .regex(
    /^(tcp4?|tcp6|unix):\/\//,
    'must be an address such as tcp://127.0.0.1:5432 or unix:///run/postern/.s.PGSQL.5432',
  )
  .transform((text, context): Address => {
    const [network, rest] = splitOnce(text, '://');
    const address = network === 'unix' ? unixAddress(rest) : tcpAddress(network, rest);
    if (typeof address !== 'string') return address;
    context.addIssue({ code: 'custom', message: address });
    return z.NEVER;
  });

function splitOnce(text: string, separator: string): [string, string] {
  const at = text.indexOf(separator);
  return [text.slice(0, at), text.slice(at + separator.length)];
}

/** The address, or what is wrong with it. */
function unixAddress(path: string): Address | string {
  if (!path.startsWith('/'))
    return 'the path of a unix socket must be absolute: unix:///run/postern/app.sock';
  if (path.endsWith('/')) return 'the path of a unix socket must name a file, not a folder';
  // oxlint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f]/.test(path)) return 'the path of a unix socket has a control character in it';
  const bytes = Buffer.byteLength(path);
  if (bytes > longestSocketPath)
    return `the path of a unix socket may have at most ${longestSocketPath} bytes, and this one has ${bytes}`;
  return { kind: 'unix', path: posix.normalize(path) };
}

function tcpAddress(network: string, text: string): Address | string {
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(text);
  if (!match)
    return `must be ${network}://host:port with a port number; an IPv6 address goes in brackets, tcp://[::1]:5432`;
  const [, bracketed, bare = '', digits = ''] = match;
  const port = Number(digits);
  if (port > 65535) return 'the port must be between 0 and 65535';
  const host = bracketed ?? bare;
  if (bracketed !== undefined && !isIPv6(bracketed)) return 'there must be an IPv6 address in the brackets';
  if (network === 'tcp4' && isIPv6(host)) return 'tcp4 cannot listen on an IPv6 address';
  if (network === 'tcp6' && isIPv4(host)) return 'tcp6 cannot listen on an IPv4 address';
  // No host means every address, as in Go, where Secretless hands `listenOn` to net.Listen.
  if (host === '') return { kind: 'tcp', host: network === 'tcp4' ? '0.0.0.0' : '::', port };
  if (host === 'localhost' && network === 'tcp4') return { kind: 'tcp', host: '127.0.0.1', port };
  if (host === 'localhost' && network === 'tcp6') return { kind: 'tcp', host: '::1', port };
  if (bracketed === undefined && !/^[A-Za-z0-9]([A-Za-z0-9._-]{0,252})$/.test(host))
    return 'the host must be a name or an IP address';
  return { kind: 'tcp', host: bracketed === undefined ? host.toLowerCase() : canonical(bracketed), port };
}

/** One spelling for each IPv6 address, so that two listeners on it are seen to collide. */
function canonical(address: string): string {
  if (address.includes('%')) return address;
  return new URL(`http://[${address}]`).hostname.slice(1, -1);
}

/** Whether only this machine can reach a listener. */
export function isLocal(address: Address): boolean {
  if (address.kind === 'unix') return true;
  const { host } = address;
  return (
    host === 'localhost' ||
    host === '::1' ||
    (isIPv4(host) && host.startsWith('127.')) ||
    /^::ffff:7f[0-9a-f]{2}:/.test(host)
  );
}

/** Whether the two cannot be open at once. Port 0 is a different port each time. */
export function collide(a: Address, b: Address): boolean {
  if (a.kind === 'unix' || b.kind === 'unix')
    return a.kind === b.kind && 'path' in a && 'path' in b && a.path === b.path;
  if (a.port !== b.port || a.port === 0) return false;
  if (a.host === b.host || a.host === '::' || b.host === '::') return true;
  return (a.host === '0.0.0.0' && isIPv4(b.host)) || (b.host === '0.0.0.0' && isIPv4(a.host));
}
