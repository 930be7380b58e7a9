import type { Problem } from './config.ts';
import type { Entry, Path, Place, Tree } from './yaml.ts';

/** A value of one configuration file together with its way there. */
export interface Located {
  readonly file: string;
  readonly path: Path;
  /** Where its key stands: what is said about something that is missing inside points there. */
  readonly keyAt: Place;
  readonly tree: Tree;
}

/** Collects what is wrong with a configuration, so that all of it can be said at once. */
export class Report {
  readonly problems: Problem[] = [];
  readonly warnings: Problem[] = [];

  /** About the value itself. */
  problem(about: Located, message: string): void {
    this.problems.push(at(about.file, about.tree.at, about.path, message));
  }

  /** About what is missing inside it, or about the entry as a whole: points at the key. */
  problemOfEntry(about: Located, path: Path, message: string): void {
    this.problems.push(at(about.file, about.keyAt, path, message));
  }

  /** About something that no file says: a variable, a flag, a file as a whole. */
  problemOutside(file: string, name: string, message: string): void {
    this.problems.push({ file, line: 0, column: 0, path: name, message });
  }

  warnOfEntry(about: Located, message: string): void {
    this.warnings.push(at(about.file, about.keyAt, about.path, message));
  }

  /** Into the order in which a reader meets them, which is not the order of checking. */
  sort(): void {
    const files = [...new Set([...this.problems, ...this.warnings].map(({ file }) => file))];
    const byPlace = (a: Problem, b: Problem) =>
      files.indexOf(a.file) - files.indexOf(b.file) || a.line - b.line || a.column - b.column;
    this.problems.sort(byPlace);
    this.warnings.sort(byPlace);
  }
}

function at(file: string, place: Place, path: Path, message: string): Problem {
  return { file, line: place.line, column: place.column, path: formatPath(path), message };
}

/** One line for people: `postern.yaml:12:7: services.orders-db.config.hosst: unknown key; did you mean "host"?` */
export function formatProblem(problem: Problem): string {
  const where = problem.line > 0 ? `${problem.file}:${problem.line}:${problem.column}` : problem.file;
  return [where, problem.path, problem.message].filter((part) => part !== '').join(': ');
}

const longestKey = 80;

/** `services.orders-db.config.host[1]`; a key that is not a plain word is quoted, so that it cannot forge a log line. */
export function formatPath(path: Path): string {
  return path
    .map((key, index) => {
      if (typeof key === 'number') return `[${key}]`;
      const shown = key.length > longestKey ? `${key.slice(0, longestKey)}...` : key;
      const word = /^[\w-]+(?:\.{3})?$/.test(shown) ? shown : JSON.stringify(shown);
      return index === 0 ? word : `.${word}`;
    })
    .join('');
}

/** The entry under a key, located; undefined when there is none. */
export function child(parent: Located | undefined, key: string | number): Located | undefined {
  if (!parent) return undefined;
  const { file, path, tree } = parent;
  if (tree.kind === 'list' && typeof key === 'number') {
    const item = tree.items[key];
    return item && { file, path: [...path, key], keyAt: item.at, tree: item };
  }
  if (tree.kind !== 'map') return undefined;
  const entry: Entry | undefined = tree.entries.get(String(key));
  return entry && { file, path: [...path, key], keyAt: entry.keyAt, tree: entry.value };
}

/** All entries of a map, located; none when it is not a map. */
export function children(parent: Located | undefined): [string, Located][] {
  if (parent?.tree.kind !== 'map') return [];
  return [...parent.tree.entries].map(([key, entry]) => [
    key,
    { file: parent.file, path: [...parent.path, key], keyAt: entry.keyAt, tree: entry.value },
  ]);
}

/** The deepest value that exists on the way along `path`, and whether that is the end of it. */
export function follow(start: Located, path: Path): { readonly found: Located; readonly whole: boolean } {
  let found = start;
  for (const key of path) {
    const next = child(found, key);
    if (!next) return { found, whole: false };
    found = next;
  }
  return { found, whole: true };
}

/** The same map without some of its keys. */
export function without(map: Located, keys: Iterable<string>): Located {
  if (map.tree.kind !== 'map') return map;
  const entries = new Map(map.tree.entries);
  for (const key of keys) entries.delete(key);
  return { ...map, tree: { ...map.tree, entries } };
}

/** Written with nothing behind the colon. */
export function isEmpty(value: Located): boolean {
  return value.tree.kind === 'scalar' && value.tree.value === null;
}

/** Plain JavaScript values, for a schema to parse. Maps have no prototype. */
export function plain(tree: Tree): unknown {
  if (tree.kind === 'scalar') return tree.value;
  if (tree.kind === 'list') return tree.items.map(plain);
  const object: Record<string, unknown> = Object.create(null);
  for (const [key, entry] of tree.entries) object[key] = plain(entry.value);
  return object;
}

/** `; did you mean "host"?`, or nothing when no candidate is near. */
export function suggestion(word: string, candidates: Iterable<string>): string {
  const near = nearest(word, candidates);
  return near === undefined ? '' : `; did you mean "${near}"?`;
}

function nearest(word: string, candidates: Iterable<string>): string | undefined {
  if (word.length > 64) return undefined;
  const asked = word.toLowerCase();
  let best: { readonly candidate: string; readonly steps: number } | undefined;
  for (const candidate of candidates) {
    const known = candidate.toLowerCase();
    const allowed = Math.max(1, Math.floor(Math.max(asked.length, known.length) / 3));
    const steps = editDistance(asked, known);
    if (candidate !== word && steps <= allowed && (!best || steps < best.steps)) best = { candidate, steps };
  }
  return best?.candidate;
}

/** Letters to insert, delete or replace, or neighbours to swap, to get from one word to the other. */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let steps = Math.min((last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (last[j - 1] ?? 0) + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        steps = Math.min(steps, (beforeLast[j - 2] ?? 0) + 1);
      row.push(steps);
    }
    beforeLast = last;
    last = row;
  }
  return last[b.length] ?? 0;
}
