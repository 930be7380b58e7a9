import type { Head } from './head.ts';
import type { Member } from './member.ts';
import { isPlainPath, pathEnd, readPath } from './path.ts';
import { refusal } from './replies.ts';
import { type Front, type Origin, originOf, type Route } from './route.ts';
import { Allowance, type RuleSettings } from './rules.ts';
import { FORM_ABSOLUTE, FORM_ASTERISK, Hosts, readTarget, Target } from './target.ts';

const target = new Target();

/** What a service says about its one server. */
export interface Reverse {
  /** Its base URL. */
  readonly upstream: URL;
  /** Names that clients may use for the listener, beside those of this machine. */
  readonly hosts: readonly string[];
  /** Origins of pages whose requests are served, beside the listener's own; `*`: of any. */
  readonly origins: readonly string[];
  /** What clients may ask for; undefined: everything below the path of `upstream`. */
  readonly allow?: readonly RuleSettings[] | undefined;
}

/** Reverse mode: every request goes to the one server of the service, below the path of its base URL. */
export class ReverseFront implements Front {
  readonly first: Member;
  readonly #hosts: Hosts;
  readonly #origins: ReadonlySet<string>;
  readonly #allow: Allowance | undefined;
  readonly #route: { member: Member; origin: Origin; prefix: Buffer; targetAt: number };

  constructor(member: Member, { upstream, hosts, origins, allow }: Reverse) {
    this.first = member;
    const origin = originOfUrl(upstream);
    this.#allow = allow && new Allowance(allow);
    this.#hosts = new Hosts([...hosts, origin.host]);
    this.#origins = new Set(origins);
    this.#route = {
      member,
      origin,
      prefix: Buffer.from(upstream.pathname.replace(/\/$/, ''), 'latin1'),
      targetAt: 0,
    };
  }

  get origin(): Origin {
    return this.#route.origin;
  }

  route(bytes: Buffer, head: Head): Route {
    const route = this.#route;
    readTarget(bytes, head, target);
    // HTTP/1.0 may come without `Host`, and with a URL for its target that names another server.
    const named = target.form !== FORM_ABSOLUTE || this.#hosts.has(target.authority.host);
    if (!named || (head.hostEnd > 0 && !this.#hosts.allows(bytes, head.hostAt, head.hostEnd)))
      throw refusal(421, 'the request names another server than this listener; see `hosts` in its settings');
    if (target.form === FORM_ABSOLUTE && target.tls)
      throw refusal(421, 'this listener stands for one server and is no proxy for https:// URLs');
    if (head.originEnd > 0 || head.siteEnd > 0) this.#checkPage(bytes, head);
    if (route.prefix.length > 0) this.#confine(bytes, target.pathAt, head);
    this.#allow?.check(bytes, head, target.pathAt);
    route.targetAt = target.pathAt;
    return route;
  }

  /**
   * A page of any site that is open in a browser on this machine can send requests to a port of it, and read the answer
   * where the API allows every origin. Browsers say where a request comes from; programs say nothing.
   */
  #checkPage(bytes: Buffer, head: Head): void {
    if (this.#origins.has('*')) return;
    const origin = bytes.toString('latin1', head.originAt, head.originEnd);
    if (head.originEnd > 0 && (this.#origins.has(origin) || isOwn(origin, bytes, head))) return;
    const site = bytes.toString('latin1', head.siteAt, head.siteEnd);
    if (head.originEnd === 0 && (site === 'same-origin' || site === 'none')) return;
    throw refusal(403, 'the request comes from a page of another origin; see `origins` in the settings');
  }

  /** Nothing that a server may make of the path leads out of the prefix, and the credential with it. */
  #confine(bytes: Buffer, from: number, head: Head): void {
    if (head.overrides)
      throw refusal(403, 'a field of the request may name a path that is not below that of this service');
    if (target.form === FORM_ASTERISK)
      throw refusal(403, 'the target * is not below the path of this service');
    const end = pathEnd(bytes, from, head.targetEnd);
    if (isPlainPath(bytes, from, end)) return;
    const { reason } = readPath(bytes, from, end);
    if (reason !== undefined) throw refusal(403, reason);
  }
}

/** Whether a page's origin is the listener itself. */
function isOwn(origin: string, bytes: Buffer, { hostAt, hostEnd }: Head): boolean {
  const host = bytes.toString('latin1', hostAt, hostEnd);
  return hostEnd > 0 && (origin === `http://${host}` || origin === `https://${host}`);
}

/** The origin of a base URL from the configuration. */
export function originOfUrl({ protocol, hostname, port }: URL): Origin {
  const tls = protocol === 'https:';
  return originOf(tls, hostname, port === '' ? (tls ? 443 : 80) : Number(port));
}
