import type { Explained, ExplainedRequest } from '../connector.ts';
import { Head, parseRequest } from './head.ts';
import { refusal } from './replies.ts';
import type { ListenerFront } from './router.ts';

/** Longer than any head that is made up here. */
const LONGEST_HEAD = 64 * 1024;

/**
 * What a listener would do with a request, decided by the code that decides about real ones. `upstream` is the base URL of
 * its one server, where it has one. Throws what the client would be told.
 */
export function explainRequest(
  front: ListenerFront,
  upstream: URL | undefined,
  { method, url, path, toListener }: ExplainedRequest,
): Explained {
  if (toListener) return routed(front, method, path, 'localhost');
  if (upstream?.origin === url.origin) {
    const prefix = upstream.pathname.replace(/\/$/, '');
    const rest = path.slice(prefix.length);
    if (!path.startsWith(prefix) || !/^([/?]|$)/.test(rest))
      throw refusal(403, `nothing beside the path of its base URL, ${prefix}/, can be asked for`);
    return routed(front, method, rest.startsWith('/') ? rest : `/${rest}`, 'localhost');
  }
  // A client asks for a tunnel first, and then inside of it.
  if (url.protocol === 'https:') front.connect(`${url.hostname}:${url.port || 443}`);
  return routed(front, method, `${url.origin}${path}`, url.host);
}

function routed(front: ListenerFront, method: string, target: string, host: string): Explained {
  const bytes = Buffer.from(`${method} ${target} HTTP/1.1\r\nHost: ${host}\r\n\r\n`, 'latin1');
  const head = new Head();
  if (parseRequest(bytes, 0, bytes.length, head, front.first.names, LONGEST_HEAD) <= 0)
    throw refusal(400, `no such request can be made: ${head.reason}`);
  const { member, origin, prefix, targetAt } = front.route(bytes, head);
  const path = bytes.toString('latin1', targetAt, head.targetEnd);
  return {
    service: member.name,
    upstream: `${origin.key}${prefix.toString('latin1')}${path.startsWith('/') ? path : `/${path}`}`,
    headers: member.scheme.ownedHeaders,
    query: member.scheme.ownedQuery,
  };
}
