import * as z from 'zod';

import type { Finding, Review, SharedService } from '../connector.ts';
import { type InterceptSettings, interceptSettings, reviewIntercept } from './authority.ts';
import { type Origin, originOf } from './route.ts';
import { type Matching, matchRule, overlap, type RuleSettings } from './rules.ts';

/** Settings of a service that serves a forward proxy's requests. */
export const forwardShape = {
  match: z
    .array(matchRule)
    .min(1)
    .optional()
    .describe(
      'Forward proxy instead of `upstream`: the requests that get the credential, by URL. What no service of the listener has is refused.',
    ),
  forceTls: z
    .boolean()
    .default(false)
    .describe(
      'Fetches the http:// URLs of `match` over TLS (port 443 in place of 80), for clients that are to need no CA: they speak to Postern in clear.',
    ),
  intercept: interceptSettings
    .optional()
    .describe(
      'Looks into the tunnels that clients ask for (CONNECT, https:// URLs) with certificates of a local CA. Of the whole listener: one of its services gives it.',
    ),
};

interface ForwardSettings extends SharedSettings {
  readonly allowPlainHttp: boolean;
  readonly forceTls: boolean;
  readonly authenticate?: unknown;
}

/** What is wrong or unsafe about a service with `match`, or about one that has only the rest of it. */
export function reviewForward(settings: ForwardSettings, credentials: ReadonlySet<string>): Review {
  const { upstream, match, forceTls, intercept, allowPlainHttp } = settings;
  const problems: Finding[] = reviewIntercept(intercept, credentials);
  const warnings: Finding[] = [];
  const problem = (key: string, message: string) => problems.push({ path: ['config', key], message });
  if (upstream === undefined && match === undefined)
    problem('upstream', 'missing: the base URL of the server, or `match` for a forward proxy');
  if (upstream !== undefined && match !== undefined)
    problem(
      'match',
      'is for a forward proxy: give it or `upstream`, and the other to a service beside this one',
    );
  if (match === undefined && forceTls) problem('forceTls', 'means nothing without `match`');
  if (match === undefined && intercept)
    problem('intercept', 'means nothing without `match`: give it to a forward service of the listener');
  const inClear = match?.filter(({ scheme }) => scheme === 'http') ?? [];
  if (inClear.length > 0 && settings.authenticate && !forceTls && !allowPlainHttp)
    problem(
      'match',
      'the credential would travel in clear to an http:// URL: say `forceTls: true`, or `allowPlainHttp: true` where these very servers are meant',
    );
  if (match && allowPlainHttp && !forceTls && match.some(({ scheme }) => scheme !== 'https'))
    warnings.push({
      path: ['config', 'allowPlainHttp'],
      message:
        'the credential travels in clear to http:// URLs; say `forceTls: true` where the servers speak TLS',
    });
  return { problems, warnings };
}

/** The servers that the rules name, to try them out; those that a pattern stands for are not known. */
export function namedOrigins({ match = [], forceTls }: ForwardSettings): Origin[] {
  const found = new Map<string, Origin>();
  for (const { scheme = 'https', host = '*', port } of match) {
    if (host.startsWith('*')) continue;
    const tls = forceTls || scheme === 'https';
    const origin = originOf(tls, host, port ?? (tls ? 443 : 80));
    found.set(origin.key, origin);
  }
  return [...found.values()];
}

/** What of a service's settings matters to those that share its listener. */
export interface SharedSettings {
  readonly upstream?: string | undefined;
  readonly match?: readonly RuleSettings[] | undefined;
  /** Secretless's `authenticateURLsMatching`. */
  readonly authenticateURLsMatching?: readonly string[] | undefined;
  readonly intercept?: InterceptSettings | undefined;
}

/** Problems of services that share a listener: it has one server of its own at most, one authority, and one service for each request. */
export function reviewShared(services: readonly SharedService[]): Review {
  const members = services.map(({ name, settings }) => ({ name, settings: settings as SharedSettings }));
  const problems: Finding[] = [];
  const warnings: Finding[] = [];

  const [reverse, ...reverses] = members.filter(({ settings }) => settings.upstream !== undefined);
  for (const { name } of reverses)
    problems.push({
      path: [name, 'config', 'upstream'],
      message: `a listener stands for one server, and this one has that of the service "${reverse?.name}"; give it another address, or use \`match\``,
    });

  const [intercepting, ...others] = members.filter(({ settings }) => settings.intercept);
  for (const { name, settings } of others)
    if (!isSameIntercept(settings.intercept, intercepting?.settings.intercept))
      problems.push({
        path: [name, 'config', 'intercept'],
        message: `is of the whole listener and given by the service "${intercepting?.name}" already; give the same files or nothing here`,
      });

  for (const [i, later] of members.entries())
    for (const earlier of members.slice(0, i)) {
      const clash = clashOf(earlier.settings.match ?? [], later.settings.match ?? []);
      if (clash)
        problems.push({
          path: [later.name, 'config', 'match'],
          message: `entry ${clash.later + 1} and entry ${clash.earlier + 1} of the service "${earlier.name}" have requests in common; keep them apart, or put the narrower one first`,
        });
      const urls = earlier.settings.authenticateURLsMatching ?? [];
      if (later.settings.authenticateURLsMatching?.some((url) => urls.includes(url)))
        warnings.push({
          path: [later.name, 'config', 'authenticateURLsMatching'],
          message: `the service "${earlier.name}" has the same expression, comes first and gets the requests`,
        });
    }
  return { problems, warnings };
}

/** Two credentials may be two authorities: only files can be seen to be the same. */
function isSameIntercept(a: InterceptSettings | undefined, b: InterceptSettings | undefined): boolean {
  return (
    a?.caCert !== undefined &&
    a.caKey !== undefined &&
    a.caCert === b?.caCert &&
    a.caKey === b.caKey &&
    a.unmatched === b.unmatched
  );
}

/** The first pair that some request fits both of, unless the earlier one is an exception from the later one. */
function clashOf(
  earlier: readonly RuleSettings[],
  later: readonly RuleSettings[],
): { readonly earlier: number; readonly later: number } | undefined {
  for (const [j, b] of later.entries())
    for (const [i, a] of earlier.entries())
      if (overlap(only(a), only(b)) && !(covers(b, a) && !covers(a, b))) return { earlier: i, later: j };
  return undefined;
}

function only(rule: RuleSettings): Matching {
  return { match: [rule], urls: [] };
}

const schemes = ['http', 'https'] as const;
type Scheme = (typeof schemes)[number];

/** Whether `wide` allows all that `narrow` does. Says no where that is hard to see. */
function covers(wide: RuleSettings, narrow: RuleSettings): boolean {
  const methods = methodsOf(wide);
  return (
    schemes.every(
      (scheme) =>
        !has(narrow, scheme) || (has(wide, scheme) && portOf(wide, scheme) === portOf(narrow, scheme)),
    ) &&
    (methods === undefined || methodsOf(narrow)?.every((name) => methods.includes(name)) === true) &&
    hostCovers(hostOf(wide), hostOf(narrow)) &&
    pathsOf(narrow).every((path) => pathsOf(wide).some((each) => pathCovers(each, path)))
  );
}

function has({ scheme }: RuleSettings, asked: Scheme): boolean {
  return scheme === undefined || scheme === asked;
}

function portOf({ port }: RuleSettings, scheme: Scheme): number {
  return port ?? (scheme === 'https' ? 443 : 80);
}

function methodsOf({ method }: RuleSettings): string[] | undefined {
  return method === undefined ? undefined : [method].flat();
}

function hostOf({ host }: RuleSettings): string {
  return (host ?? '').toLowerCase().replace(/\.$/, '');
}

function pathsOf({ path }: RuleSettings): string[][] {
  return [path ?? '/**'].flat().map((each) => each.slice(1).split('/'));
}

/** `*.example.com` has every name below it, and not itself. */
function hostCovers(wide: string, narrow: string): boolean {
  if (wide === narrow || wide === '*') return true;
  return wide.startsWith('*.') && narrow.endsWith(wide.slice(1)) && narrow !== wide.slice(1);
}

function pathCovers(wide: readonly string[], narrow: readonly string[]): boolean {
  return contain(wide, narrow, '**', (one, other) =>
    contain(one.split(''), other.split(''), '*', (x, y) => x === y),
  );
}

/** Whether the pattern `wide` has every text of `narrow`: the signs of that, its stars too, are taken as they are. */
function contain(
  wide: readonly string[],
  narrow: readonly string[],
  star: string,
  fits: (one: string, other: string) => boolean,
): boolean {
  const rows: boolean[][] = Array.from({ length: wide.length + 1 }, () => []);
  const at = (i: number, j: number) => rows[i]?.[j] === true;
  for (let i = wide.length; i >= 0; i--)
    for (let j = narrow.length; j >= 0; j--) {
      const [one, other] = [wide[i], narrow[j]];
      let contains = one === undefined && other === undefined;
      if (one === star) contains ||= at(i + 1, j) || (other !== undefined && at(i, j + 1));
      else if (one !== undefined && other !== undefined && other !== star)
        contains ||= fits(one, other) && at(i + 1, j + 1);
      (rows[i] as boolean[])[j] = contains;
    }
  return at(0, 0);
}
