import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type ParsedNode,
  parseDocument,
} from 'yaml';

/** The keys and list indexes that lead to a value. */
export type Path = readonly (string | number)[];

/** A YAML value that knows where it stands. Aliases share the tree of their anchor. */
export type Tree = MapTree | ListTree | ScalarTree;

/** Where something stands in its file; lines and columns start at 1. */
export interface Place {
  readonly line: number;
  readonly column: number;
}

export interface MapTree {
  readonly kind: 'map';
  readonly at: Place;
  /** How many values a full expansion of its aliases would have. */
  readonly size: number;
  readonly entries: ReadonlyMap<string, Entry>;
}

export interface Entry {
  readonly keyAt: Place;
  readonly value: Tree;
}

export interface ListTree {
  readonly kind: 'list';
  readonly at: Place;
  readonly size: number;
  readonly items: readonly Tree[];
}

export interface ScalarTree {
  readonly kind: 'scalar';
  readonly at: Place;
  readonly size: number;
  readonly value: string | number | boolean | null;
  /** As it was written: `0123` keeps its zero, `1.10` its last one. */
  readonly text: string;
}

/** Something that keeps a text from being a tree. */
export interface Fault {
  readonly at: Place;
  readonly path: Path;
  readonly message: string;
}

const deepest = 64;
/** Ten aliases of ten aliases of ten ... stop here (the "billion laughs"). */
const largest = 100_000;
const mostFaults = 20;

/** Parses one YAML 1.2 document. Never throws; no message quotes a value, which may be a secret. */
export function parseYaml(text: string): {
  readonly tree: Tree | undefined;
  readonly faults: readonly Fault[];
} {
  const lines = new LineCounter();
  const document = parseDocument(text, {
    lineCounter: lines,
    schema: 'core',
    strict: true,
    customTags: [],
    merge: false,
    // The library compares every key with every other one; a Map below does it in linear time.
    uniqueKeys: false,
    prettyErrors: false,
    // 'silent' would also hide that there is a second document.
    logLevel: 'error',
  });
  const place = (offset: number): Place => {
    const { line, col } = lines.linePos(offset);
    return { line: Math.max(line, 1), column: Math.max(col, 1) };
  };

  const complaints = [...document.errors, ...document.warnings].toSorted((a, b) => a.pos[0] - b.pos[0]);
  if (complaints.length > 0) {
    const faults: Fault[] = complaints.slice(0, mostFaults).map(({ code, pos }) => ({
      at: place(pos[0]),
      path: [],
      message: sayings[code] ?? 'is not valid YAML here',
    }));
    const last = complaints[mostFaults];
    if (last) {
      const rest = complaints.length - mostFaults;
      faults.push({ at: place(last.pos[0]), path: [], message: `and ${rest} more YAML errors from here on` });
    }
    return { tree: undefined, faults };
  }
  return grow(document, place);
}

/** The library's own messages quote the text around an error; these do not. */
const sayings: Readonly<Record<string, string>> = {
  ALIAS_PROPS: 'an alias (*name) cannot have an anchor or a tag',
  BAD_ALIAS: 'is not a valid alias or anchor name; put a value that begins with * or & in quotes',
  BAD_COLLECTION_TYPE: 'the tag does not fit this kind of value',
  BAD_DIRECTIVE: 'is not a YAML directive; put a value that begins with % in quotes',
  BAD_DQ_ESCAPE: 'unknown escape sequence in a double-quoted value; use single quotes to keep a backslash',
  BAD_INDENT: 'wrong indentation, or a bracket that is never closed',
  BAD_PROP_ORDER: 'an anchor or a tag is in the wrong place',
  BAD_SCALAR_START: 'a value cannot begin with this character; put it in quotes',
  BLOCK_AS_IMPLICIT_KEY: 'a second "key:" on one line; put a value with a colon in quotes',
  BLOCK_IN_FLOW: 'an indented block cannot stand inside { } or [ ]',
  KEY_OVER_1024_CHARS: 'a key is longer than 1024 characters',
  MISSING_CHAR: 'a character is missing here: a closing quote or bracket, a comma, a space or a colon',
  MULTILINE_IMPLICIT_KEY: 'a key must be on one line, and every line needs a "key: value"',
  MULTIPLE_ANCHORS: 'a value can have one anchor only',
  MULTIPLE_DOCS: 'a second document begins here; a configuration file holds one',
  MULTIPLE_TAGS: 'a value can have one tag only',
  RESOURCE_EXHAUSTION: 'is nested too deeply',
  TAB_AS_INDENT: 'a tab in the indentation; YAML wants spaces',
  TAG_RESOLVE_FAILED: 'YAML tags (!name) are not supported',
  UNEXPECTED_TOKEN: 'something unexpected; check quotes, commas and brackets before this',
};

/** Turns the library's nodes into trees, in the order of the text. */
function grow(document: Document.Parsed, place: (offset: number) => Place): ReturnType<typeof parseYaml> {
  const faults: Fault[] = [];
  /** The values anchored so far; undefined while one is still being read. */
  const anchors = new Map<string, Tree | undefined>();
  const nothing = (at: Place): ScalarTree => ({ kind: 'scalar', at, size: 1, value: null, text: '' });
  const fault = (at: Place, path: Path, message: string): ScalarTree => {
    if (faults.length < mostFaults) faults.push({ at, path, message });
    return nothing(at);
  };

  const read = (node: ParsedNode | null, path: Path, fallback: Place): Tree => {
    if (!node) return nothing(fallback);
    const at = place(node.range[0]);
    if (path.length > deepest) return fault(at, [], 'is nested too deeply');
    if (isAlias(node)) {
      if (!anchors.has(node.source))
        return fault(
          at,
          path,
          'no anchor of this name stands before the alias; put a value that begins with * in quotes',
        );
      return anchors.get(node.source) ?? fault(at, path, 'the alias stands inside the value it repeats');
    }
    if (node.anchor) anchors.set(node.anchor, undefined);
    const tree = isMap(node)
      ? readMap(node.items, path, at)
      : isSeq(node)
        ? readList(node.items, path, at)
        : readScalar(node, path, at);
    const bounded = tree.size > largest ? fault(at, path, 'its aliases expand to too many values') : tree;
    if (node.anchor) anchors.set(node.anchor, bounded);
    return bounded;
  };

  const readScalar = (node: ParsedNode, path: Path, at: Place): Tree => {
    const value: unknown = isScalar(node) ? node.value : undefined;
    const text = isScalar(node) ? (node.source ?? '') : '';
    if (
      value === null ||
      typeof value === 'string' ||
      typeof value === 'number' ||
      typeof value === 'boolean'
    )
      return { kind: 'scalar', at, size: 1, value, text };
    return fault(at, path, 'is not a value that a configuration can hold');
  };

  const readList = (nodes: readonly (ParsedNode | null)[], path: Path, at: Place): Tree => {
    const items = nodes.map((node, index) => read(node as ParsedNode | null, [...path, index], at));
    return { kind: 'list', at, size: items.reduce((sum, { size }) => sum + size, 1), items };
  };

  const readMap = (
    pairs: readonly { key: ParsedNode; value: ParsedNode | null }[],
    path: Path,
    at: Place,
  ): Tree => {
    const entries = new Map<string, Entry>();
    const merged: Tree[] = [];
    let size = 1;
    for (const pair of pairs) {
      const keyAt = pair.key?.range ? place(pair.key.range[0]) : at;
      if (!isScalar(pair.key) || pair.key.value === null) {
        fault(keyAt, path, 'a key must be plain text');
        continue;
      }
      // `1:` and `true:` are keys by the letters they are written with.
      const key = typeof pair.key.value === 'string' ? pair.key.value : String(pair.key.source ?? '');
      const value = read(pair.value, [...path, key], keyAt);
      size += value.size;
      const first = entries.get(key);
      // Nothing needs this name, and it has turned too many tables into holes.
      if (key === '__proto__') fault(keyAt, path, 'the key "__proto__" is not allowed');
      else if (key === '<<') merged.push(value);
      else if (first)
        fault(keyAt, [...path, key], `is given twice; the first is in line ${first.keyAt.line}`);
      else entries.set(key, { keyAt, value });
    }
    for (const source of merged) merge(entries, source, path);
    return { kind: 'map', at, size, entries };
  };

  /** `<<: *defaults`, which Secretless's parser understands: keys of the map itself win. */
  const merge = (entries: Map<string, Entry>, source: Tree, path: Path): void => {
    for (const part of source.kind === 'list' ? source.items : [source]) {
      if (part.kind !== 'map') {
        fault(part.at, [...path, '<<'], 'must be a map or a list of maps');
        continue;
      }
      for (const [key, entry] of part.entries) if (!entries.has(key)) entries.set(key, entry);
    }
  };

  const tree = read(document.contents, [], { line: 1, column: 1 });
  return { tree: faults.length > 0 ? undefined : tree, faults };
}
