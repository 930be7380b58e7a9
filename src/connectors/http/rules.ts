import * as z from 'zod';

import { localityOfHost, type Named } from './addresses.ts';
import { overlappingGlobs, PathGlob } from './globs.ts';
import { GoRegExp, PatternError } from './go-regexp.ts';
import type { Head } from './head.ts';
import { isPlainPath, pathEnd, readPath } from './path.ts';
import { refusal } from './replies.ts';
import { normalHost } from './target.ts';

// Which requests a credential is for. A rule allows, and nothing forbids: what no rule has is refused.

const method = z
  .string()
  .regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,24}$/, 'is not a method')
  .refine((name) => !/^(trace|track|connect)$/i.test(name), 'cannot be allowed by a rule');
const methods = z.union([method, z.array(method).min(1)]);

const pathGlob = z.string().superRefine((text, context) => {
  const problem = PathGlob.problem(text);
  if (problem !== undefined) context.addIssue({ code: 'custom', message: problem });
});
const paths = z.union([pathGlob, z.array(pathGlob).min(1)]);

const hostGlob = z.string().superRefine((text, context) => {
  const problem = hostProblem(text);
  if (problem !== undefined) context.addIssue({ code: 'custom', message: problem });
});

const shape = {
  method: methods.optional().describe('Method to allow, or a list. Default: any but TRACE.'),
  path: paths
    .optional()
    .describe(
      'Path to allow, or a list, without a query. `*`: any characters within a segment. `**`: any segments, also none. Default: `/**`.',
    ),
};

const allowObject = z.strictObject(shape);
const matchObject = z.strictObject({
  ...shape,
  scheme: z.enum(['http', 'https']).optional().describe('Scheme of the URL. Default: both.'),
  host: hostGlob.describe(
    'Host of the URL: a name, an address, or `*.example.com` for all names below that one. An address of this machine or a private one is reached only by a rule that names its host.',
  ),
  port: z
    .int()
    .min(1)
    .max(65535)
    .optional()
    .describe("Port of the URL. Default: the scheme's own, 80 or 443."),
});

/** `GET,HEAD /repos/**`, or only the path. */
const shortAllow = /^(?:([^\s/]+)\s+)?(\/\S*)$/;
/** `GET https://api.example.com/repos/**`, the methods and the path only where they matter. */
const shortMatch = /^(?:([^\s/:]+)\s+)?(https?):\/\/(\[[^\]\s]*\]|[^\s/:[\]]*)(?::(\d+))?(\/\S*)?$/;

/** One entry of `allow`: what clients may ask of a service whose server is fixed. */
export const allowRule = z
  .union([z.string().regex(shortAllow, 'is neither "/path" nor "METHOD /path"'), allowObject])
  .transform((given, context): RuleSettings => {
    if (typeof given !== 'string') return given;
    const [, names, path] = shortAllow.exec(given) ?? [];
    return within(allowObject, { method: names?.split(','), path }, context);
  });

/** One entry of `match`: which requests to a forward proxy belong to the service. */
export const matchRule = z
  .union([
    z.string().regex(shortMatch, 'is neither "https://host/path" nor "METHOD https://host/path"'),
    matchObject,
  ])
  .transform((given, context): RuleSettings => {
    if (typeof given !== 'string') return given;
    const [, names, scheme, host, port, path] = shortMatch.exec(given) ?? [];
    const rule = { method: names?.split(','), scheme, host, port: port && Number(port), path };
    return within(matchObject, rule, context);
  });

/** Parses what a short form says, and tells its problems as those of the short form. */
function within(schema: z.ZodType<RuleSettings>, rule: unknown, context: z.RefinementCtx): RuleSettings {
  const { success, data, error } = schema.safeParse(rule);
  if (success) return data;
  for (const { path, message } of error.issues)
    context.addIssue({ code: 'custom', message: `${path.join('.')}: ${message}` });
  return z.NEVER;
}

const urlPattern = z.string().superRefine((text, context) => {
  try {
    new GoRegExp(text);
  } catch (thrown) {
    if (!(thrown instanceof PatternError)) throw thrown;
    context.addIssue({ code: 'custom', message: `is no regular expression of Go: ${thrown.message}` });
  }
});

/** Secretless's `authenticateURLsMatching`. */
export const urlPatterns = z
  .union([urlPattern, z.array(urlPattern).min(1)])
  .transform((given) => [given].flat())
  .describe(
    'Regular expression of Go (RE2), or a list: which URLs get the credential. It is searched for anywhere in the URL, so begin it with `^http://host/`.',
  );

/** A rule as the settings have it. */
export interface RuleSettings {
  readonly method?: string | readonly string[] | undefined;
  readonly scheme?: 'http' | 'https' | undefined;
  readonly host?: string | undefined;
  readonly port?: number | undefined;
  readonly path?: string | readonly string[] | undefined;
}

/** The server that a client of a forward proxy asks for. */
export interface Asked {
  readonly tls: boolean;
  /** In the one spelling of `normalHost`. */
  readonly host: string;
  readonly port: number;
  /** As the client wrote host and port: part of the URL that Secretless matches. */
  readonly authority: string;
}

/** A longer URL fits no regular expression: each character costs time. */
const LONGEST_URL = 16 * 1024;

const OVERRIDES =
  'a field of the request may name another path or method than its first line, which a rule of this service is about';

const OTHER_PATH = 'not one of its paths';

class Rule {
  /** As the configuration has it, in the short form. */
  readonly text: string;
  readonly named: Named;
  readonly settings: RuleSettings;
  readonly methods: readonly string[];
  readonly globs: readonly PathGlob[];
  /** Allows every path, so no reading of one can lead out of it. */
  readonly anyPath: boolean;
  readonly #methodBytes: readonly Buffer[];

  constructor(settings: RuleSettings) {
    const { method = [], scheme, host, port, path = '/**' } = settings;
    this.settings = host === undefined ? settings : { ...settings, host: normalGlob(host) };
    this.methods = [method].flat();
    this.#methodBytes = this.methods.map((name) => Buffer.from(name, 'latin1'));
    const paths = [path].flat();
    this.globs = paths.map((each) => new PathGlob(each));
    this.anyPath = paths.includes('/**');
    this.named = host?.startsWith('*') ? 'by pattern' : 'exactly';
    const server =
      host === undefined ? '' : `${scheme ?? '*'}://${host}${port === undefined ? '' : `:${port}`}`;
    this.text = [this.methods.join(','), `${server}${paths.join(' ')}`].filter(Boolean).join(' ');
  }

  isFor({ tls, host, port }: Asked): boolean {
    const { scheme, host: wanted = '', port: ownPort } = this.settings;
    if (scheme !== undefined && (scheme === 'https') !== tls) return false;
    if (port !== (ownPort ?? (tls ? 443 : 80))) return false;
    return wanted.startsWith('*') ? host.endsWith(wanted.slice(1)) : host === wanted;
  }

  hasMethod(bytes: Buffer, { methodAt, methodEnd }: Head): boolean {
    const all = this.#methodBytes;
    if (all.length === 0) return true;
    for (let i = 0; i < all.length; i++) {
      const name = all[i] as Buffer;
      if (name.length !== methodEnd - methodAt) continue;
      let j = 0;
      while (j < name.length && name[j] === bytes[methodAt + j]) j++;
      if (j === name.length) return true;
    }
    return false;
  }

  /**
   * Why the target that begins at `pathAt` is not one of its paths, in every way in which a server may read it;
   * undefined: it is one.
   */
  refuses(bytes: Buffer, pathAt: number, head: Head): string | undefined {
    if (head.overrides && !(this.anyPath && this.methods.length === 0)) return OVERRIDES;
    if (this.anyPath) return undefined;
    const end = pathEnd(bytes, pathAt, head.targetEnd);
    if (bytes[pathAt] !== 0x2f && pathAt !== end) return OTHER_PATH; // OPTIONS *
    const { readings, reason } = readPath(bytes, pathAt, end);
    if (reason !== undefined) return reason;
    return readings.every((segments) => this.globs.some((glob) => glob.test(segments)))
      ? undefined
      : OTHER_PATH;
  }
}

/** What clients may ask of a service whose server is fixed. */
export class Allowance {
  readonly #rules: readonly Rule[];

  constructor(rules: readonly RuleSettings[]) {
    this.#rules = rules.map((rule) => new Rule(rule));
  }

  /** Throws what the client is told where no rule allows its request, whose target begins at `pathAt`. */
  check(bytes: Buffer, head: Head, pathAt: number): void {
    let ambiguous: string | undefined;
    for (const rule of this.#rules) {
      if (!rule.hasMethod(bytes, head)) continue;
      const reason = rule.refuses(bytes, pathAt, head);
      if (reason === undefined) return;
      if (reason !== OTHER_PATH) ambiguous = reason;
    }
    if (ambiguous !== undefined) throw refusal(403, ambiguous);
    const texts = this.#rules.map((rule) => rule.text).join(', ');
    throw refusal(403, `no rule of this service allows this request; it allows ${texts}`);
  }
}

/** The rules of one service of a forward proxy. */
export class Matcher {
  readonly #rules: readonly Rule[];
  readonly #urls: readonly GoRegExp[];
  /** As the configuration has them, for an answer that says which there are. */
  readonly texts: readonly string[];

  /** `urls`: expressions of Secretless's `authenticateURLsMatching`. */
  constructor(rules: readonly RuleSettings[], urls: readonly string[] = []) {
    this.#rules = rules.map((rule) => new Rule(rule));
    this.#urls = urls.map((url) => new GoRegExp(url));
    this.texts = [...this.#rules.map((rule) => rule.text), ...urls.map((url) => `URLs matching ${url}`)];
  }

  /**
   * How a rule of this service names the server of a request that belongs to it; undefined: it does not. Throws what the
   * client is told where that hangs on how the server reads the path.
   */
  match(bytes: Buffer, head: Head, pathAt: number, asked: Asked): Named | undefined {
    let ambiguous: string | undefined;
    for (const rule of this.#rules) {
      if (!rule.isFor(asked) || !rule.hasMethod(bytes, head)) continue;
      const reason = rule.refuses(bytes, pathAt, head);
      if (reason === undefined) return rule.named;
      if (reason !== OTHER_PATH) ambiguous = reason;
    }
    if (this.#urls.length > 0 && this.#fitsUrl(bytes, head, pathAt, asked)) return namedByUrl(asked.host);
    if (ambiguous !== undefined) throw refusal(403, ambiguous);
    return undefined;
  }

  /** How a rule names this server, whatever the path; undefined: none does, so there is nothing to be opened a tunnel for. */
  reaches(asked: Asked): Named | undefined {
    const found = this.#rules.filter((rule) => rule.isFor(asked)).map((rule) => rule.named);
    return found.includes('exactly') ? 'exactly' : found[0];
  }

  #fitsUrl(bytes: Buffer, head: Head, pathAt: number, { tls, authority }: Asked): boolean {
    if (head.targetEnd - pathAt > LONGEST_URL) return false;
    const end = pathEnd(bytes, pathAt, head.targetEnd);
    const query = bytes.toString('latin1', end, head.targetEnd);
    const origin = `${tls ? 'https' : 'http'}://${authority}`;
    const fits = (path: string) => this.#urls.some((url) => url.test(origin + path + query));
    // As Go's `r.URL.String()` has it, which is what Secretless matches.
    if (!fits(goPath(bytes.toString('latin1', pathAt, end)))) return false;
    if (pathAt === end || isPlainPath(bytes, pathAt, end)) return true;
    const { readings, reason } = readPath(bytes, pathAt, end);
    if (reason !== undefined) throw refusal(403, reason);
    // The first reading is the URL as it is written. Where the server may resolve it to another one, that has to fit too.
    return readings.slice(1).every((segments) => fits(`/${segments.map(goEscape).join('/')}`));
  }
}

/**
 * The servers that Secretless stands before are inside, and its files have no other way to name them than expressions;
 * but none of them means a metadata service, which gives out credentials of its own.
 */
function namedByUrl(host: string): Named {
  const locality = localityOfHost(host);
  return locality === 'metadata' || locality === 'link-local' ? 'by pattern' : 'exactly';
}

/** What one service of a forward proxy asks for, as far as two services can be compared. */
export interface Matching {
  readonly match: readonly RuleSettings[];
  readonly urls: readonly string[];
}

/**
 * Two rules, one of each service, that fit some same request, or undefined. Exact for rules; of two regular expressions
 * only that they are equal is seen.
 */
export function overlap(one: Matching, other: Matching): readonly [string, string] | undefined {
  const theirs = other.match.map((rule) => new Rule(rule));
  for (const mine of one.match.map((rule) => new Rule(rule)))
    for (const their of theirs) if (overlapping(mine, their)) return [mine.text, their.text];
  const same = one.urls.find((url) => other.urls.includes(url));
  return same === undefined ? undefined : [same, same];
}

function overlapping(one: Rule, other: Rule): boolean {
  const { settings: a } = one;
  const { settings: b } = other;
  if (
    one.methods.length > 0 &&
    other.methods.length > 0 &&
    !one.methods.some((name) => other.methods.includes(name))
  )
    return false;
  const schemes = (['http', 'https'] as const).filter(
    (scheme) => (a.scheme ?? scheme) === scheme && (b.scheme ?? scheme) === scheme,
  );
  const portFor = (rule: RuleSettings, scheme: string) => rule.port ?? (scheme === 'https' ? 443 : 80);
  if (!schemes.some((scheme) => portFor(a, scheme) === portFor(b, scheme))) return false;
  if (!overlappingHosts(a.host ?? '', b.host ?? '')) return false;
  return one.globs.some((mine) => other.globs.some((their) => overlappingGlobs(mine, their)));
}

function overlappingHosts(a: string, b: string): boolean {
  const below = (host: string, pattern: string) => host.endsWith(pattern.slice(1));
  if (a.startsWith('*') && b.startsWith('*')) return below(a, b) || below(b, a);
  if (a.startsWith('*')) return below(b, a);
  return b.startsWith('*') ? below(a, b) : a === b;
}

/** What is unsafe about an expression of `authenticateURLsMatching`, or undefined. */
export function looseUrlPattern(source: string): string | undefined {
  const pinned = /^(\(\?i\))?(\^|\\A)https?\??:(\\?\/){2}(?<host>([\w-]|\\\.)+)(:\d+)?(\\?\/|\$|\\z)/.exec(
    source,
  );
  if (pinned && !source.includes('|')) return undefined;
  return `"${source}" also fits URLs of other hosts, and they get the credential: begin it with ^http://host/, with dots as \\.`;
}

/** What is wrong with the host of a rule, or undefined. */
function hostProblem(text: string): string | undefined {
  if (!text.startsWith('*'))
    return normalHost(text) === undefined ? 'is neither a host name nor an address' : undefined;
  const parent = text.startsWith('*.') ? normalHost(text.slice(2)) : undefined;
  if (parent === undefined || parent.includes(':') || localityOfHost(parent) !== undefined)
    return 'is not of the form *.example.com';
  // `*.com` would be a credential for almost everyone.
  return parent.includes('.') ? undefined : 'needs at least two names behind the asterisk';
}

function normalGlob(host: string): string {
  return host.startsWith('*.') ? `*.${normalHost(host.slice(2)) ?? ''}` : (normalHost(host) ?? '');
}

/**
 * A path as Go writes it back: as it came, unless it holds a character that belongs encoded; then it is decoded and encoded
 * anew (net/url, `EscapedPath`).
 */
function goPath(path: string): string {
  if (!/[^A-Za-z0-9\-_.~$&+,/:;=@!'()*[\]%]/.test(path)) return path;
  try {
    return goEscape(decodeURIComponent(path));
  } catch {
    return path;
  }
}

/** Encoded as `net/url` does it in a path. */
function goEscape(text: string): string {
  return encodeURIComponent(text)
    .replaceAll(/%(24|26|2B|2C|2F|3A|3B|3D|40)/g, (encoded) => decodeURIComponent(encoded))
    .replaceAll(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
}
