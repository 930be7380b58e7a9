import { readPath } from './path.ts';

/** Of a pattern: segments, `**` among them. More than anybody writes. */
const MOST_SEGMENTS = 64;
const LONGEST = 2048;

/**
 * A pattern for paths: `*` is any characters within one segment, and more than none where it is the whole of it; `**` is any
 * number of segments, also none. Matched against the decoded segments of a path, in a time that grows with pattern
 * and path and no faster.
 */
export class PathGlob {
  readonly segments: readonly string[];

  constructor(text: string) {
    this.segments = segmentsOf(text) ?? [];
  }

  /** What is wrong with a pattern, or undefined. */
  static problem(text: string): string | undefined {
    if (!text.startsWith('/')) return 'a path begins with a slash';
    if (/[?#]/.test(text)) return 'a path has neither a query nor a fragment: a rule is not about them';
    const segments = segmentsOf(text);
    if (!segments) return 'cannot be a path: `..`, `//`, `;`, backslashes, or what is encoded needlessly';
    if (segments.length > MOST_SEGMENTS || text.length > LONGEST) return 'is too long';
    if (segments.some((segment) => segment !== '**' && segment.includes('**')))
      return '`**` stands for whole segments: write it between slashes';
    return undefined;
  }

  /** Whether a path with these segments fits. */
  test(segments: readonly string[]): boolean {
    const wanted = this.segments;
    let i = 0;
    let j = 0;
    // Where the last `**` stands, and how far it has swallowed: the only choice there ever is to take back.
    let star = -1;
    let swallowed = 0;
    while (i < segments.length) {
      if (j < wanted.length && wanted[j] === '**') {
        star = j++;
        swallowed = i;
      } else if (j < wanted.length && segmentFits(wanted[j] as string, segments[i] as string)) {
        i++;
        j++;
      } else if (star >= 0) {
        j = star + 1;
        i = ++swallowed;
      } else return false;
    }
    while (wanted[j] === '**') j++;
    return j === wanted.length;
  }
}

/** Whether there is a path that fits both. */
export function overlappingGlobs(one: PathGlob, other: PathGlob): boolean {
  return canMeet(one.segments, other.segments, '**', (a, b) =>
    canMeet(a.split(''), b.split(''), '*', (x, y) => x === y, a === '*' || b === '*'),
  );
}

/** Whether two sequences, in which `any` is any number of items, have an instance in common. */
function canMeet(
  one: readonly string[],
  other: readonly string[],
  any: string,
  same: (a: string, b: string) => boolean,
  notEmpty = false,
): boolean {
  // A lone `*` is at least one character: what it meets must not be empty.
  if (notEmpty && (one.length === 0 || other.length === 0)) return false;
  // reach[j]: the first i items of `one` can be the first j of `other`.
  let reach = other.map(() => false);
  reach = [true, ...reach];
  for (let j = 1; j <= other.length; j++) reach[j] = reach[j - 1] === true && other[j - 1] === any;
  for (const a of one) {
    const next = [reach[0] === true && a === any];
    for (let j = 1; j <= other.length; j++) {
      const b = other[j - 1] as string;
      if (a === any || b === any)
        next[j] = reach[j] === true || next[j - 1] === true || reach[j - 1] === true;
      else next[j] = reach[j - 1] === true && same(a, b);
    }
    reach = next;
  }
  return reach[other.length] === true;
}

/** One segment of a pattern against one of a path. */
function segmentFits(wanted: string, given: string): boolean {
  if (!wanted.includes('*')) return wanted === given;
  if (wanted === '*') return given !== '';
  let i = 0;
  let j = 0;
  let star = -1;
  let swallowed = 0;
  while (i < given.length) {
    if (wanted[j] === '*') {
      star = j++;
      swallowed = i;
    } else if (wanted[j] === given[i]) {
      i++;
      j++;
    } else if (star >= 0) {
      j = star + 1;
      i = ++swallowed;
    } else return false;
  }
  while (wanted[j] === '*') j++;
  return j === wanted.length;
}

/** The decoded segments of a pattern; undefined where a path like it would have more than one reading. */
function segmentsOf(text: string): readonly string[] | undefined {
  if (!text.isWellFormed()) return undefined;
  const bytes = Buffer.from(encodeURI(text).replaceAll(/%25(?=[0-9a-f]{2})/gi, '%'), 'latin1');
  const { readings } = readPath(bytes, 0, bytes.length);
  return readings?.length === 1 ? readings[0] : undefined;
}
