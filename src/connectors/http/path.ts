// Paths that servers read in different ways. A rule allows a path, and the server then finds what it finds: `/ok/../x`,
// `/ok%2f..%2fx`, `/ok/..;/x`, `//x`. So a rule is asked about every way in which servers are known to read a path, and has
// to allow it in all of them; what has no end of ways, or no honest use, is refused. What goes upstream is always what
// the client wrote.

/**
 * Ways to read one path, each as the segments between its slashes, decoded. Most paths have one. `reason`: why the path is
 * refused.
 */
export type PathReadings =
  | { readonly readings: readonly (readonly string[])[]; readonly reason?: undefined }
  | { readonly readings?: undefined; readonly reason: string };

/** 1 for bytes that need no second look: no `%`, `;`, backslash, control or eight-bit character. */
const PLAIN = new Uint8Array(256).fill(1, 0x21, 0x7f);
for (const character of '%;\\?#"<>') PLAIN[character.charCodeAt(0)] = 0;
const SLASH = 0x2f;
const DOT = 0x2e;

/**
 * Whether all servers read the path in `[from, to)` in the same way: it begins with a slash, no segment is empty (but the
 * last) or begins with a dot, and nothing in it is encoded.
 */
export function isPlainPath(bytes: Buffer, from: number, to: number): boolean {
  if (bytes[from] !== SLASH || from >= to) return false;
  let previous = 0;
  for (let i = from; i < to; i++) {
    const byte = bytes[i] as number;
    if (PLAIN[byte] === 0) return false;
    if (previous === SLASH && (byte === SLASH || byte === DOT)) return false;
    previous = byte;
  }
  return true;
}

/** The end of the path in a target: where its query begins. */
export function pathEnd(bytes: Buffer, from: number, to: number): number {
  for (let i = from; i < to; i++) if (bytes[i] === 0x3f) return i;
  return to;
}

/** All ways to read the path in `[from, to)`, which has no query. */
export function readPath(bytes: Buffer, from: number, to: number): PathReadings {
  if (from === to) return { readings: [['']] };
  const text = bytes.toString('latin1', from, to);
  if (isPlainPath(bytes, from, to)) return { readings: [text.slice(1).split('/')] };
  if (!text.startsWith('/')) return { reason: 'the path does not begin with a slash' };
  if (/[^\x21-\x7e]|[\\"<>#]/.test(text)) return { reason: 'the path has a character that belongs encoded' };
  if (/%(?![0-9a-f]{2})/i.test(text)) return { reason: 'the path has a broken percent-encoding' };
  if (/%(0|1|7f)/i.test(text)) return { reason: 'the path has an encoded control character' };
  if (/%5c/i.test(text)) return { reason: 'the path has an encoded backslash' };
  // Dots need no encoding. Who encodes those of a dot segment wants them to be seen by some and not by others.
  if (/%2e/i.test(text) && hasDots(decoded(text) ?? ''))
    return { reason: 'the path has encoded dot segments' };

  const segments: string[] = [];
  for (const raw of text.slice(1).split('/')) {
    const segment = decoded(raw);
    if (segment === undefined) return { reason: 'the path is not UTF-8' };
    if (/%[0-9a-f]{2}/i.test(segment)) return { reason: 'the path is encoded twice' };
    if (hasLookalikes(segment))
      return { reason: 'the path has characters that some servers take for dots or slashes' };
    segments.push(segment);
  }

  const slashes = segments.some((segment) => segment.includes('/'));
  const parameters = segments.some((segment) => segment.includes(';'));
  const empty = segments.slice(0, -1).includes('');
  const dots = segments.some((segment) => hasDots(segment));
  if (dots) {
    // A dot segment by itself has two readings. Together with what else is read in two ways it has too many.
    if (
      slashes ||
      parameters ||
      empty ||
      segments.some((segment) => hasDots(segment) && segment !== '.' && segment !== '..')
    )
      return { reason: 'the path has dot segments in disguise' };
    const resolved = resolveDots(segments);
    if (!resolved) return { reason: 'the path leads above its root' };
    return { readings: [segments, resolved] };
  }

  let readings: string[][] = [segments];
  if (slashes) readings = readings.flatMap((each) => [each, each.flatMap((segment) => segment.split('/'))]);
  if (parameters)
    readings = readings.flatMap((each) => [each, each.map((segment) => segment.replace(/;.*$/s, ''))]);
  if (empty || slashes || parameters) readings = readings.flatMap((each) => [each, withoutEmpty(each)]);
  return { readings };
}

/** Whether some server could see a dot segment in it: alone, before `;`, between encoded slashes, with spaces around. */
function hasDots(text: string): boolean {
  return text.split(/[/\\]/).some((piece) => {
    const name = piece.replace(/;.*$/s, '');
    return name.includes('.') && /^[. ]+$/.test(name);
  });
}

/** Fullwidth dots and slashes become the real ones where a server normalises (NFKC), others where it fits to a code page. */
function hasLookalikes(segment: string): boolean {
  if (/[\u2044\u2215\u2216\u29f5\u29f8]/.test(segment)) return true;
  const folded = segment.normalize('NFKC');
  if (folded === segment) return false;
  const slashes = (text: string) => text.split(/[/\\;]/).length;
  return slashes(folded) > slashes(segment) || (hasDots(folded) && !hasDots(segment));
}

/** Percent-decoded once; undefined where it is no UTF-8 (overlong forms are none). */
function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}

/** RFC 3986 5.2.4; undefined where it leads above the root at any point: behind a prefix there is something. */
function resolveDots(segments: readonly string[]): string[] | undefined {
  const out: string[] = [];
  for (const [i, segment] of segments.entries()) {
    const last = i === segments.length - 1;
    if (segment === '..') {
      if (out.length === 0) return undefined;
      out.pop();
    } else if (segment !== '.') out.push(segment);
    if (last && (segment === '.' || segment === '..')) out.push('');
  }
  return out;
}

function withoutEmpty(segments: readonly string[]): string[] {
  return segments.filter((segment, i) => segment !== '' || i === segments.length - 1);
}
