// Regular expressions of Go, which Secretless's files carry (RE2 syntax, `regexp/syntax`). They are matched as Go does it: all
// ways through the expression at the same time, so that no URL can take longer than its length times the
// expression's. JavaScript's own engine backtracks, and a client could stop the whole process with one URL.

/** Steps that one expression may come to: `(a{1000}){1000}` is refused. */
const MOST_STEPS = 10_000;
/** As in Go. */
const MOST_REPEATS = 1000;
const DEEPEST = 100;

/** What is wrong with an expression, and where it is. The message quotes the part, as Go's does. */
export class PatternError extends Error {}

type Node =
  | { readonly kind: 'set'; readonly set: Uint8Array }
  | { readonly kind: 'assert'; readonly what: Assertion }
  | { readonly kind: 'sequence'; readonly parts: readonly Node[] }
  | { readonly kind: 'choice'; readonly parts: readonly Node[] }
  | { readonly kind: 'repeat'; readonly part: Node; readonly min: number; readonly max: number };

type Assertion = 'text start' | 'text end' | 'line start' | 'line end' | 'word edge' | 'no word edge';

/** URLs are ASCII: a set of characters is a table of these. */
const ASCII = 128;

const LINE_FEED = 0x0a;

/** A text; or a secret's bytes, which are to be in no string. */
export type Characters = Pick<string, 'length' | 'charCodeAt'>;

interface Flags {
  readonly fold: boolean;
  readonly multiline: boolean;
  readonly dotAll: boolean;
}

type Step =
  | { readonly op: 'set'; readonly set: Uint8Array }
  | { readonly op: 'assert'; readonly what: Assertion }
  | { readonly op: 'split'; to: number; or: number }
  | { readonly op: 'jump'; to: number }
  | { readonly op: 'match' };

/** A compiled expression. Throws a PatternError for what Go would not compile. */
export class GoRegExp {
  readonly source: string;
  readonly #steps: readonly Step[];
  /** For each step, the position at which it was last added: a step is on a list once. */
  readonly #seen: Int32Array;

  constructor(source: string) {
    this.source = source;
    this.#steps = compile(new Parser(source).parse());
    this.#seen = new Int32Array(this.#steps.length);
  }

  /** Whether it matches anywhere in `text`. Characters that are not ASCII fit no set but a negated one. */
  test(text: Characters): boolean {
    const seen = this.#seen.fill(-1);
    let current: number[] = [];
    let next: number[] = [];
    for (let at = 0; at <= text.length; at++) {
      if (this.#add(0, text, at, current, seen)) return true;
      if (at === text.length) return false;
      const code = Math.min(text.charCodeAt(at), ASCII);
      for (let i = 0; i < current.length; i++) {
        const step = this.#steps[current[i] as number] as Step & { op: 'set' };
        if (step.set[code] === 1 && this.#add((current[i] as number) + 1, text, at + 1, next, seen))
          return true;
      }
      [current, next] = [next, current];
      next.length = 0;
    }
    return false;
  }

  /** Adds the sets that can be reached from a step without reading a character. True: a match is reached. */
  #add(from: number, text: Characters, at: number, list: number[], seen: Int32Array): boolean {
    const open = [from];
    for (let pc = open.pop(); pc !== undefined; pc = open.pop()) {
      if (seen[pc] === at) continue;
      seen[pc] = at;
      const step = this.#steps[pc] as Step;
      if (step.op === 'match') return true;
      if (step.op === 'set') list.push(pc);
      else if (step.op === 'jump') open.push(step.to);
      else if (step.op === 'split') open.push(step.or, step.to);
      else if (holds(step.what, text, at)) open.push(pc + 1);
    }
    return false;
  }
}

function holds(what: Assertion, text: Characters, at: number): boolean {
  switch (what) {
    case 'text start':
      return at === 0;
    case 'text end':
      return at === text.length;
    case 'line start':
      return at === 0 || text.charCodeAt(at - 1) === LINE_FEED;
    case 'line end':
      return at === text.length || text.charCodeAt(at) === LINE_FEED;
    default: {
      const word = (i: number) => /^\w$/.test(String.fromCharCode(text.charCodeAt(i)));
      return (word(at - 1) !== word(at)) === (what === 'word edge');
    }
  }
}

function compile(root: Node): Step[] {
  const steps: Step[] = [];
  const emit = (step: Step): number => {
    if (steps.length >= MOST_STEPS) throw new PatternError('the expression is too large');
    return steps.push(step) - 1;
  };
  let built = 0;
  const build = (node: Node): void => {
    // Empty groups come to no step however often they are repeated.
    if (++built > 10 * MOST_STEPS) throw new PatternError('the expression is too large');
    switch (node.kind) {
      case 'set':
        emit({ op: 'set', set: node.set });
        return;
      case 'assert':
        emit({ op: 'assert', what: node.what });
        return;
      case 'sequence':
        for (const part of node.parts) build(part);
        return;
      case 'choice': {
        const ends: (Step & { op: 'jump' })[] = [];
        for (const [i, part] of node.parts.entries()) {
          if (i === node.parts.length - 1) {
            build(part);
            break;
          }
          const split: Step & { op: 'split' } = { op: 'split', to: 0, or: 0 };
          split.to = emit(split) + 1;
          build(part);
          const end: Step & { op: 'jump' } = { op: 'jump', to: 0 };
          ends.push(end);
          split.or = emit(end) + 1;
        }
        for (const end of ends) end.to = steps.length;
        return;
      }
      case 'repeat': {
        for (let i = 0; i < node.min; i++) build(node.part);
        if (node.max === Number.POSITIVE_INFINITY) {
          const split: Step & { op: 'split' } = { op: 'split', to: 0, or: 0 };
          const at = emit(split);
          split.to = at + 1;
          build(node.part);
          split.or = emit({ op: 'jump', to: at }) + 1;
          return;
        }
        const skips: (Step & { op: 'split' })[] = [];
        for (let i = node.min; i < node.max; i++) {
          const split: Step & { op: 'split' } = { op: 'split', to: 0, or: 0 };
          split.to = emit(split) + 1;
          skips.push(split);
          build(node.part);
        }
        for (const skip of skips) skip.or = steps.length;
      }
    }
  };
  build(root);
  emit({ op: 'match' });
  return steps;
}

class Parser {
  readonly #source: string;
  #at = 0;
  #depth = 0;
  #flags: Flags = { fold: false, multiline: false, dotAll: false };

  constructor(source: string) {
    this.#source = source;
  }

  parse(): Node {
    const node = this.#choice();
    if (this.#at < this.#source.length) throw new PatternError('unexpected )');
    return node;
  }

  #choice(): Node {
    if (++this.#depth > DEEPEST) throw new PatternError('the expression nests too deeply');
    const parts = [this.#sequence()];
    while (this.#take('|')) parts.push(this.#sequence());
    this.#depth--;
    return parts.length === 1 ? (parts[0] as Node) : { kind: 'choice', parts };
  }

  #sequence(): Node {
    const parts: Node[] = [];
    for (;;) {
      const char = this.#source[this.#at];
      if (char === undefined || char === '|' || char === ')') return { kind: 'sequence', parts };
      const atom = this.#atom(parts);
      if (atom) parts.push(atom);
    }
  }

  /** One atom, or a repetition of the one before. undefined: there is nothing to match (flags, an empty quotation). */
  #atom(parts: Node[]): Node | undefined {
    const char = this.#next() ?? '';
    switch (char) {
      case '.':
        return set((code) => this.#flags.dotAll || code !== 10, true);
      case '^':
        return { kind: 'assert', what: this.#flags.multiline ? 'line start' : 'text start' };
      case '$':
        return { kind: 'assert', what: this.#flags.multiline ? 'line end' : 'text end' };
      case '(':
        return this.#group();
      case '[':
        return this.#class();
      case '\\':
        return this.#escape(parts);
      case '*':
      case '+':
      case '?':
        return this.#repeat(parts, char, char === '+' ? 1 : 0, char === '?' ? 1 : Number.POSITIVE_INFINITY);
      case '{': {
        const counted = /^(\d+)(?:(,)(\d*))?\}/.exec(this.#rest());
        if (!counted) return this.#literal('{');
        this.#at += counted[0].length;
        const min = Number(counted[1]);
        const max =
          counted[2] === undefined ? min : counted[3] ? Number(counted[3]) : Number.POSITIVE_INFINITY;
        if (min > MOST_REPEATS || (Number.isFinite(max) && max > MOST_REPEATS) || max < min)
          throw new PatternError(`invalid repeat count {${counted[0]}`);
        return this.#repeat(parts, `{${counted[0]}`, min, max);
      }
      default:
        return this.#literal(char);
    }
  }

  #repeat(parts: Node[], text: string, min: number, max: number): undefined {
    const part = parts.pop();
    if (!part) throw new PatternError(`missing argument to repetition operator ${text}`);
    this.#take('?'); // which of several matches is found does not matter here, only whether there is one
    if (/^([*+?]|\{\d+(,\d*)?\})/.test(this.#rest()))
      throw new PatternError(`invalid nested repetition operator ${text}${this.#source[this.#at]}`);
    parts.push({ kind: 'repeat', part, min, max });
    return undefined;
  }

  #group(): Node | undefined {
    const outer = this.#flags;
    if (this.#take('?')) {
      const name = /^P?<([^>]*)>/.exec(this.#rest());
      if (name) {
        if (!/^\w+$/.test(name[1] ?? '')) throw new PatternError('invalid named capture');
        this.#at += name[0].length;
      } else {
        const flags = /^([imsU]*)(?:-([imsU]+))?([:)])/.exec(this.#rest());
        if (!flags || (flags[1] === '' && flags[2] === undefined && flags[3] === ')'))
          throw new PatternError(`invalid or unsupported group syntax (?${this.#rest().slice(0, 3)}`);
        this.#at += flags[0].length;
        const [, on = '', off = '', end] = flags;
        const flag = (letter: string, before: boolean) =>
          off.includes(letter) ? false : on.includes(letter) ? true : before;
        this.#flags = {
          fold: flag('i', outer.fold),
          multiline: flag('m', outer.multiline),
          dotAll: flag('s', outer.dotAll),
        };
        if (end === ')') return undefined;
      }
    }
    const node = this.#choice();
    if (!this.#take(')')) throw new PatternError('missing closing )');
    this.#flags = outer;
    return node;
  }

  #escape(parts: Node[]): Node | undefined {
    const char = this.#next();
    switch (char) {
      case undefined:
        throw new PatternError('trailing backslash at end of expression');
      case 'A':
        return { kind: 'assert', what: 'text start' };
      case 'z':
        return { kind: 'assert', what: 'text end' };
      case 'b':
        return { kind: 'assert', what: 'word edge' };
      case 'B':
        return { kind: 'assert', what: 'no word edge' };
      case 'Q': {
        const end = this.#source.indexOf('\\E', this.#at);
        const quoted = this.#source.slice(this.#at, end < 0 ? undefined : end);
        this.#at = end < 0 ? this.#source.length : end + 2;
        for (const each of quoted) parts.push(this.#literal(each));
        return undefined;
      }
      default: {
        const members = this.#classEscape(char);
        if (members) return set(members, members(ASCII));
        return this.#literal(this.#character(char));
      }
    }
  }

  /** `\d`, `\pL` and their kind; undefined: another escape. */
  #classEscape(char: string): Members | undefined {
    const perl = { d: /\d/, w: /\w/, s: /[\t\n\f\r ]/ }[char.toLowerCase()];
    if (perl && /[dwsDWS]/.test(char)) return this.#matching(perl, char !== char.toLowerCase());
    if (char !== 'p' && char !== 'P') return undefined;
    const name = /^(?:\{(\^?)([A-Za-z_]+)\}|([A-Z]))/.exec(this.#rest());
    const property = name?.[2] ?? name?.[3] ?? '';
    if (name) this.#at += name[0].length;
    if (property === 'Any') return () => char === 'p';
    const negated = (char === 'P') !== (name?.[1] === '^');
    for (const spelling of [property, `Script=${property}`])
      try {
        return this.#matching(new RegExp(`\\p{${spelling}}`, 'u'), negated);
      } catch {
        // not the name of a category, so perhaps that of a script
      }
    throw new PatternError(`invalid character class \\${char}${name?.[0] ?? ''}`);
  }

  /** The character that an escape stands for. */
  #character(char: string): string {
    const simple = { a: '\x07', f: '\f', n: '\n', r: '\r', t: '\t', v: '\v' }[char];
    if (simple) return simple;
    if (char === 'x') {
      const hex = /^(?:\{([0-9A-Fa-f]{1,8})\}|([0-9A-Fa-f]{2}))/.exec(this.#rest());
      const code = Number.parseInt(hex?.[1] ?? hex?.[2] ?? '', 16);
      if (!hex || code > 0x10ffff) throw new PatternError('invalid escape sequence \\x');
      this.#at += hex[0].length;
      return String.fromCodePoint(code);
    }
    const octal = /^(?:0[0-7]{0,2}|[1-7][0-7]{1,2})/.exec(char + this.#rest());
    if (octal) {
      this.#at += octal[0].length - 1;
      return String.fromCodePoint(Number.parseInt(octal[0], 8));
    }
    if (/^[!-/:-@[-`{-~]$/.test(char)) return char;
    throw new PatternError(`invalid escape sequence \\${char}`);
  }

  #class(): Node {
    const negated = this.#take('^');
    const members: Members[] = [];
    for (let first = true; ; first = false) {
      if (!first && this.#take(']')) break;
      const named = /^\[:(\^?)(\w+):\]/.exec(this.#rest());
      if (named) {
        const posix = posixClasses.get(named[2] ?? '');
        if (!posix) throw new PatternError(`invalid character class range ${named[0]}`);
        this.#at += named[0].length;
        members.push(this.#matching(posix, named[1] === '^'));
        continue;
      }
      let low = this.#next();
      if (low === undefined) throw new PatternError('missing closing ]');
      if (low === '\\') {
        const escaped = this.#next();
        if (escaped === undefined) throw new PatternError('trailing backslash at end of expression');
        const escapedClass = this.#classEscape(escaped);
        if (escapedClass) {
          members.push(escapedClass);
          continue;
        }
        low = this.#character(escaped);
      }
      let high = low;
      if (/^-[^\]]/s.test(this.#rest())) {
        this.#at++;
        high = this.#next() ?? '';
        if (high === '\\') high = this.#character(this.#next() ?? '');
      }
      const from = low.codePointAt(0) ?? 0;
      const to = high.codePointAt(0) ?? 0;
      if (to < from) throw new PatternError(`invalid character class range ${low}-${high}`);
      members.push((code) => code >= from && code <= to);
    }
    const { fold } = this.#flags;
    const within = (code: number) =>
      members.some((member) => member(code) || (fold && foldsOf(code).some((other) => member(other))));
    // A character that is not ASCII: no class is asked which, and only a negated one is taken to have it.
    return set((code) => within(code) !== negated, negated);
  }

  /** What a class of JavaScript has of ASCII, or has not. */
  #matching(one: RegExp, negated: boolean): Members {
    const { fold } = this.#flags;
    const has = (code: number) => code < ASCII && one.test(String.fromCharCode(code));
    return (code) => (has(code) || (fold && foldsOf(code).some(has))) !== negated;
  }

  #literal(char: string): Node {
    const wanted = char.codePointAt(0) ?? 0;
    const { fold } = this.#flags;
    return set((code) => code === wanted || (fold && foldsOf(code).includes(wanted)), false);
  }

  #next(): string | undefined {
    const code = this.#source.codePointAt(this.#at);
    if (code === undefined) return undefined;
    const char = String.fromCodePoint(code);
    this.#at += char.length;
    return char;
  }

  #take(char: string): boolean {
    if (this.#source[this.#at] !== char) return false;
    this.#at++;
    return true;
  }

  #rest(): string {
    return this.#source.slice(this.#at);
  }
}

type Members = (code: number) => boolean;

/** One character of those for which `members` holds; the last entry is for all that are not ASCII. */
function set(members: Members, others: boolean): Node {
  const table = new Uint8Array(ASCII + 1);
  for (let code = 0; code < ASCII; code++) table[code] = members(code) ? 1 : 0;
  table[ASCII] = others ? 1 : 0;
  return { kind: 'set', set: table };
}

/** The characters that are the same as this ASCII one but for the case: `k` is also the Kelvin sign. */
function foldsOf(code: number): number[] {
  const char = String.fromCharCode(code);
  const folds = [char.toLowerCase(), char.toUpperCase()].map((each) => each.charCodeAt(0));
  if (char.toLowerCase() === 'k') folds.push(0x212a);
  if (char.toLowerCase() === 's') folds.push(0x17f);
  return folds;
}

/** No object: the name is whatever the expression has there. */
const posixClasses: ReadonlyMap<string, RegExp> = new Map([
  ['alnum', /[0-9A-Za-z]/],
  ['alpha', /[A-Za-z]/],
  ['ascii', /[^]/],
  ['blank', /[\t ]/],
  // oxlint-disable-next-line no-control-regex
  ['cntrl', /[\x00-\x1f\x7f]/],
  ['digit', /[0-9]/],
  ['graph', /[!-~]/],
  ['lower', /[a-z]/],
  ['print', /[ -~]/],
  ['punct', /[!-/:-@[-`{-~]/],
  ['space', /[\t\n\v\f\r ]/],
  ['upper', /[A-Z]/],
  ['word', /\w/],
  ['xdigit', /[0-9A-Fa-f]/],
]);
