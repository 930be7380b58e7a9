import type { Protocol } from '../connector.ts';
import { localityOfHost, mayReach, type Named } from './addresses.ts';
import type { AuthoritySource } from './authority.ts';
import { blindTunnel, interception, type Tunnel } from './connect.ts';
import type { Head } from './head.ts';
import type { Member } from './member.ts';
import { refusal } from './replies.ts';
import { type Front, type Origin, originOf, type Route } from './route.ts';
import type { Asked, Matcher } from './rules.ts';
import {
  type Authority,
  authorityIn,
  FORM_ABSOLUTE,
  FORM_ORIGIN,
  parseAuthority,
  readTarget,
  Target,
} from './target.ts';

/** A service of a listener, as the one that shares it out sees it. */
export interface Participant {
  readonly member: Member;
  /** The service stands for one server: who does not speak to a proxy speaks to it. */
  readonly reverse: Front | undefined;
  /** The service is for requests of a forward proxy. */
  readonly forward: Forward | undefined;
  /** What the service says about CONNECT; the first of a listener counts for all. */
  readonly intercept: Intercept | undefined;
}

export interface Forward {
  readonly rules: Matcher;
  /** `http://` URLs are fetched over TLS, so that a client that can do no tunnels gets there (Secretless: `forceSSL`). */
  readonly forceTls: boolean;
  /** Whether the credential may go over a connection in clear. */
  readonly allowPlainHttp: boolean;
  /** The server that is meant by a name that stands for another (`secretless.empty`); undefined: the name means itself. */
  readonly locate?: Locate | undefined;
}

/** A server, by its normal name. */
export interface Located {
  readonly tls: boolean;
  readonly host: string;
  readonly port: number;
}

/** `header` gives the value of a field that the client sent; undefined unless it sent exactly one. */
export type Locate = (asked: Located, header: (name: string) => string | undefined) => Located | undefined;

export interface Intercept {
  readonly authority: AuthoritySource;
  readonly unmatched: 'refuse' | 'tunnel';
}

interface Known extends Omit<Participant, 'forward'> {
  readonly forward: Forwarding | undefined;
}

const known = new WeakMap<Protocol, Known>();

/** Has a service take part in what its listener serves. */
export function takePart(protocol: Protocol, participant: Participant): void {
  const { member, forward } = participant;
  known.set(protocol, { ...participant, forward: forward && new Forwarding(member, forward) });
}

const target = new Target();

/**
 * Shares a listener out among its services: a request goes to the first whose rules have it, and nowhere else. Stays with
 * the connections that were made through it while a reload changes the services: what a rule no longer allows, no
 * connection that is still open does.
 */
export class ListenerFront implements Front {
  readonly first: Member;
  #reverse: Front | undefined;
  #forward: readonly Forwarding[] = [];
  #intercept: Intercept | undefined;

  constructor(first: Member) {
    this.first = first;
  }

  /** From now on these are the services, in the order of the configuration. */
  share(services: readonly Protocol[]): void {
    const members = services.flatMap((service) => known.get(service) ?? []);
    this.#forward = members.flatMap(({ forward }) => forward ?? []);
    this.#reverse = members.find(({ reverse }) => reverse)?.reverse;
    this.#intercept = members.find(({ intercept }) => intercept)?.intercept;
  }

  get forward(): readonly Forwarding[] {
    return this.#forward;
  }

  route(bytes: Buffer, head: Head): Route {
    const reverse = this.#reverse;
    if (reverse && this.#forward.length === 0) return reverse.route(bytes, head);
    readTarget(bytes, head, target);
    if (target.form !== FORM_ABSOLUTE) {
      if (reverse) return reverse.route(bytes, head);
      throw refusal(
        400,
        'this listener is a forward proxy: give its address to your client as http_proxy, and ask for a whole URL (http://host/path)',
      );
    }
    const { tls, authority, pathAt } = target;
    const written = bytes.toString('latin1', head.targetAt + (tls ? 'https://' : 'http://').length, pathAt);
    return choose(this.#forward, bytes, head, pathAt, { tls, ...authority, authority: written });
  }

  connect(text: string): Tunnel {
    if (this.#forward.length === 0) throw refusal(501, 'CONNECT is not served here');
    return this.#connect(text, this.#intercept);
  }

  #connect(text: string, intercept: Intercept | undefined): Tunnel {
    const authority = parseAuthority(text, 0);
    if (!authority || authority.port === 0)
      throw refusal(400, 'CONNECT needs a target of the form host:port');
    const [secure, plain] = [true, false].map((tls) => {
      const asked = { tls, ...authority, authority: authorityOf(tls, authority) };
      const reached = this.#forward.some(({ rules }) => rules.reaches(asked) !== undefined);
      return reached ? new TunnelFront(this, asked) : undefined;
    });
    if (secure && !intercept && !plain)
      throw refusal(
        501,
        'a rule names this host, and without `intercept:` in its settings no credential gets into a tunnel: ask the proxy for the http:// URL',
      );
    if (secure || plain)
      return interception(authority, {
        secure: secure && intercept && { source: intercept.authority, front: secure },
        plain,
      });
    const permits = (address: string) => mayReach(address, authority.host, 'by pattern');
    if (intercept?.unmatched !== 'tunnel' || localityOfHost(authority.host) !== undefined)
      throw nobody(this.#forward, `CONNECT to ${authority.host}`);
    return blindTunnel(authority, permits, () => {
      this.first.counters.tunnelsBlind += 1;
    });
  }
}

/** The requests that come out of an intercepted tunnel: all of them are for the one server that the tunnel was to. */
class TunnelFront implements Front {
  readonly first: Member;
  readonly #listener: ListenerFront;
  readonly #asked: Asked;

  constructor(listener: ListenerFront, asked: Asked) {
    this.first = listener.first;
    this.#listener = listener;
    this.#asked = asked;
  }

  route(bytes: Buffer, head: Head): Route {
    readTarget(bytes, head, target);
    const absolute = target.form === FORM_ABSOLUTE;
    const said = absolute
      ? target.authority
      : authorityIn(bytes, head.hostAt, head.hostEnd, this.#asked.tls ? 443 : 80);
    // Whatever the client was led to believe about its target, the rules of one server hold for that server alone.
    if (
      (absolute && target.tls !== this.#asked.tls) ||
      !said ||
      said.host !== this.#asked.host ||
      said.port !== this.#asked.port
    )
      throw refusal(421, 'the request is for another server than the tunnel');
    if (!absolute && target.form !== FORM_ORIGIN) throw refusal(403, 'no rule has a target like this');
    return choose(this.#listener.forward, bytes, head, target.pathAt, this.#asked);
  }
}

/** One forward service with the servers that clients have asked it for. */
class Forwarding {
  readonly rules: Matcher;
  readonly locate: Locate | undefined;
  readonly #forceTls: boolean;
  readonly #member: Member;
  readonly #allowPlainHttp: boolean;
  /** By scheme, host, port, and how a rule named the host. */
  readonly #origins = new Map<string, Origin>();
  readonly #route: { member: Member; origin: Origin; prefix: Buffer; targetAt: number };

  constructor(member: Member, { rules, locate, forceTls, allowPlainHttp }: Forward) {
    this.#member = member;
    this.rules = rules;
    this.locate = locate;
    this.#forceTls = forceTls;
    this.#allowPlainHttp = allowPlainHttp;
    this.#route = { member, origin: nowhere, prefix: NO_PREFIX, targetAt: 0 };
  }

  /** Throws what the client is told when the request may not be made. */
  route(pathAt: number, { tls, host, port: asked }: Located, named: Named): Route {
    const secure = tls || this.#forceTls;
    if (!secure && !this.#allowPlainHttp)
      throw refusal(
        403,
        `the credential would travel in clear: ask for https://, or give the service "${this.#member.name}" \`forceTls: true\`, or \`allowPlainHttp: true\` where these very hosts are meant`,
      );
    const port = secure && !tls && asked === 80 ? 443 : asked;
    const pool = `${secure ? 's' : ''}${named === 'exactly' ? '!' : '*'}${host} ${port}`;
    let origin = this.#origins.get(pool);
    if (!origin) {
      const permits = (address: string) => mayReach(address, host, named);
      // A connection that one rule allowed is not for the requests of another that would not have.
      origin = { ...originOf(secure, host, port, permits), pool };
      if (this.#origins.size >= MOST_ORIGINS) this.#origins.clear();
      this.#origins.set(pool, origin);
    }
    const route = this.#route;
    route.origin = origin;
    route.targetAt = pathAt;
    return route;
  }
}

/** The first service with a rule for the request, in the order of the configuration. */
function choose(
  forward: readonly Forwarding[],
  bytes: Buffer,
  head: Head,
  pathAt: number,
  asked: Asked,
): Route {
  for (const each of forward) {
    const named = each.rules.match(bytes, head, pathAt, asked);
    if (named !== undefined)
      return each.route(pathAt, each.locate?.(asked, (name) => fieldIn(bytes, head, name)) ?? asked, named);
  }
  throw nobody(forward, `this request to ${asked.host}`);
}

function fieldIn(bytes: Buffer, head: Head, name: string): string | undefined {
  const lines = bytes.toString('latin1', head.lineEnd, head.end).split('\r\n');
  const found = lines.filter((line) => line.slice(0, name.length + 1).toLowerCase() === `${name}:`);
  return found.length === 1 ? found[0]?.slice(name.length + 1).trim() : undefined;
}

const MOST_ORIGINS = 256;
const NO_PREFIX = Buffer.alloc(0);
const nowhere = originOf(true, 'invalid', 443);
/** Characters of rules in an answer. */
const MOST_TOLD = 1500;

function nobody(forward: readonly Forwarding[], what: string): Error {
  let texts = '';
  for (const text of forward.flatMap(({ rules }) => rules.texts)) {
    if (texts.length + text.length > MOST_TOLD) {
      texts += ', ...';
      break;
    }
    texts += `${texts === '' ? '' : ', '}${text}`;
  }
  return refusal(403, `no rule of this listener allows ${what}, and nothing was sent; there are: ${texts}`);
}

function authorityOf(tls: boolean, { host, port }: Authority): string {
  const name = host.includes(':') ? `[${host}]` : host;
  return port === (tls ? 443 : 80) ? name : `${name}:${port}`;
}
