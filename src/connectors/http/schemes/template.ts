import { copyOf, encodeBase64, join, percentEncode, wipe } from '../../../core/bytes.ts';
import type { Credentials } from '../../../core/credentials.ts';
import { PosternError } from '../../../core/errors.ts';

/**
 * A text with credentials in it: `Bearer {{ token }}`, `Basic {{ printf "%s:%s" .user .password | base64 }}`.
 *
 * The part of Go's text/template that Secretless's configurations use (`.name`, pipes, `printf` and `print` of values,
 * `urlquery`, its own `base64`), and `{{ name }}` without the dot. Whatever else Go has is refused when the
 * configuration is read: a template that means something else there must not mean nothing here.
 */
export class Template {
  readonly #whole: Expression;
  /** The credentials that it names, each once. */
  readonly names: readonly string[];

  private constructor(whole: Expression) {
    this.#whole = whole;
    this.names = [...new Set(namesIn(whole))];
  }

  /** Throws CONFIG_INVALID with the construct that is not understood. */
  static parse(text: string): Template {
    return new Template(parse(text));
  }

  /** The value of one credential as it is. */
  static of(name: string): Template {
    return new Template({ kind: 'credential', name });
  }

  /** A fresh buffer, which the caller wipes. Throws PROVIDER_FAILED for a credential without a value. */
  render(credentials: Credentials): Buffer {
    return render(this.#whole, credentials);
  }
}

type Expression =
  | { readonly kind: 'text'; readonly bytes: Buffer }
  | { readonly kind: 'credential'; readonly name: string }
  | { readonly kind: 'join'; readonly parts: readonly Expression[] }
  | { readonly kind: 'base64' | 'urlquery'; readonly of: Expression };

function render(expression: Expression, credentials: Credentials): Buffer {
  switch (expression.kind) {
    case 'text':
      return copyOf(expression.bytes);
    case 'credential':
      return copyOf(valueOf(expression.name, credentials));
    case 'join': {
      const parts: Buffer[] = [];
      try {
        for (const part of expression.parts) parts.push(render(part, credentials));
        return join(parts);
      } finally {
        wipe(...parts);
      }
    }
    case 'base64':
    case 'urlquery': {
      const inner = render(expression.of, credentials);
      const out = expression.kind === 'base64' ? encodeBase64(inner) : percentEncode(inner, '+');
      inner.fill(0);
      return out;
    }
  }
}

/** The live bytes. Secretless sends `<no value>` in place of a credential that is missing; here nothing is sent. */
export function valueOf(name: string, credentials: Credentials): Buffer {
  if (!credentials.has(name))
    throw new PosternError('PROVIDER_FAILED', `the credential "${name}" has no value`);
  return credentials.get(name);
}

function namesIn(expression: Expression): string[] {
  switch (expression.kind) {
    case 'text':
      return [];
    case 'credential':
      return [expression.name];
    case 'join':
      return expression.parts.flatMap(namesIn);
    case 'base64':
    case 'urlquery':
      return namesIn(expression.of);
  }
}

// ── parsing ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Deeper nesting than this is no template that anybody wrote. */
const MOST_NESTED = 16;

function parse(text: string): Expression {
  const parts: Expression[] = [];
  let at = 0;
  while (at < text.length) {
    const open = text.indexOf('{{', at);
    if (open === -1) break;
    if (open > at) parts.push(literal(text.slice(at, open)));
    const words = new Words(text, open + 2);
    parts.push(pipeline(words, 0));
    if (words.next().kind !== 'close') throw fault('a "{{" has no "}}" where it should end');
    at = words.at;
  }
  if (text.includes('}}', at)) throw fault('a "}}" has no "{{" before it');
  if (at < text.length) parts.push(literal(text.slice(at)));
  return parts.length === 1 && parts[0] ? parts[0] : { kind: 'join', parts };
}

function literal(text: string): Expression {
  return { kind: 'text', bytes: Buffer.from(text, 'utf8') };
}

/** `command | command ...`: each gets the value of the one before it as its last argument. */
function pipeline(words: Words, depth: number): Expression {
  if (depth > MOST_NESTED) throw fault('parentheses are nested too deeply');
  let value = command(words, undefined, depth);
  while (words.peek().kind === 'pipe') {
    words.next();
    value = command(words, value, depth);
  }
  return value;
}

const functions = new Set(['base64', 'urlquery', 'print', 'printf']);

function command(words: Words, piped: Expression | undefined, depth: number): Expression {
  const first = words.next();
  if (first.kind === 'name' && !first.dotted && functions.has(first.text)) {
    const given: Expression[] = [];
    let operand = operandOf(words, depth);
    while (operand) {
      given.push(operand);
      operand = operandOf(words, depth);
    }
    if (piped) given.push(piped);
    return call(first.text, given);
  }
  if (piped) throw fault('what stands behind "|" must be base64, urlquery, print or printf');
  words.back(first);
  const operand = operandOf(words, depth);
  if (!operand) throw fault('"{{ }}" is empty: it takes the name of a credential');
  const after = words.peek();
  if (first.kind === 'name' && (after.kind === 'name' || after.kind === 'text'))
    throw fault(`"${first.text}" is not supported; there are base64, urlquery, print and printf`);
  return operand;
}

/** Words that start something else in Go. */
const keywords = new Set(
  'if else end range with define template block break continue nil true false and or not len index slice html js call eq ne lt le gt ge println'.split(
    ' ',
  ),
);

function operandOf(words: Words, depth: number): Expression | undefined {
  const word = words.peek();
  switch (word.kind) {
    case 'name':
      if (!word.dotted && (keywords.has(word.text) || functions.has(word.text)))
        throw fault(`"${word.text}" is not supported here`);
      words.next();
      return { kind: 'credential', name: word.text };
    case 'text':
      words.next();
      return literal(word.text);
    case 'open': {
      words.next();
      const inner = pipeline(words, depth + 1);
      if (words.next().kind !== 'shut') throw fault('a "(" has no ")"');
      return inner;
    }
    default:
      return undefined;
  }
}

function call(name: string, given: readonly Expression[]): Expression {
  if (name === 'printf') return formatted(given);
  // Go's print puts spaces between values only where neither is a string, and here all are.
  if (name === 'print') return { kind: 'join', parts: given };
  const [of] = given;
  if (!of || (name === 'base64' && given.length > 1)) throw fault(`"${name}" takes one value`);
  const whole: Expression = given.length > 1 ? { kind: 'join', parts: given } : of;
  return { kind: name === 'base64' ? 'base64' : 'urlquery', of: whole };
}

function formatted([format, ...values]: readonly Expression[]): Expression {
  if (format?.kind !== 'text') throw fault('"printf" takes a format in quotes first');
  const text = format.bytes.toString('utf8');
  const parts: Expression[] = [];
  let taken = 0;
  for (const piece of text.match(/%.?|[^%]+/gsu) ?? []) {
    if (piece === '%%') parts.push(literal('%'));
    else if (piece === '%s' || piece === '%v') {
      const value = values[taken++];
      if (!value) throw fault('"printf" has more verbs than values');
      parts.push(value);
    } else if (piece.startsWith('%')) throw fault(`"printf" knows %s, %v and %%, not "${piece}"`);
    else parts.push(literal(piece));
  }
  if (taken < values.length) throw fault('"printf" has more values than verbs');
  return { kind: 'join', parts };
}

type Word =
  | { readonly kind: 'name'; readonly text: string; readonly dotted: boolean }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'pipe' | 'open' | 'shut' | 'close' | 'end' };

/** What stands between `{{` and `}}`, word by word. */
class Words {
  readonly #text: string;
  /** Behind the last word that was taken. */
  at: number;
  #held: Word | undefined;

  constructor(text: string, at: number) {
    this.#text = text;
    this.at = at;
    if (/^-\s/.test(text.slice(at, at + 2))) throw fault('"{{-" (which cuts blanks away) is not supported');
  }

  peek(): Word {
    this.#held ??= this.#read();
    return this.#held;
  }

  next(): Word {
    const word = this.peek();
    this.#held = undefined;
    return word;
  }

  back(word: Word): void {
    this.#held = word;
  }

  #read(): Word {
    const rest = this.#text.slice(this.at);
    const blanks = /^[ \t\r\n]*/.exec(rest)?.[0].length ?? 0;
    const at = rest.slice(blanks);
    const take = (length: number) => {
      this.at += blanks + length;
    };
    const fixed = (['}}', '|', '(', ')'] as const).find((mark) => at.startsWith(mark));
    if (fixed) {
      take(fixed.length);
      return { kind: ({ '}}': 'close', '|': 'pipe', '(': 'open', ')': 'shut' } as const)[fixed] };
    }
    const name = /^(\.?)([\w][\w.-]*)/.exec(at);
    if (name?.[2] !== undefined && !/^\d+$/.test(name[2])) {
      take(name[0].length);
      return { kind: 'name', text: name[2], dotted: name[1] === '.' };
    }
    const quoted = /^"((?:[^"\\\n]|\\.)*)"|^`([^`]*)`/.exec(at);
    if (quoted) {
      take(quoted[0].length);
      return { kind: 'text', text: quoted[2] ?? unquote(quoted[1] ?? '') };
    }
    if (at === '') return { kind: 'end' };
    if (at.startsWith('-}}')) throw fault('"-}}" (which cuts blanks away) is not supported');
    if (at.startsWith('/*')) throw fault('comments are not supported');
    if (at.startsWith('$')) throw fault('variables ("$") are not supported');
    if (at.startsWith('.')) throw fault('"." alone is not supported: name a credential');
    throw fault(`"${at.slice(0, 1)}" is not supported`);
  }
}

const escapes: Readonly<Record<string, string>> = {
  n: '\n',
  t: '\t',
  r: '\r',
  '\\': '\\',
  '"': '"',
};

function unquote(text: string): string {
  return text.replaceAll(/\\(.)/gs, (_, letter: string) => {
    const meant = Object.hasOwn(escapes, letter) ? escapes[letter] : undefined;
    if (meant === undefined) throw fault(`the escape "\\${letter}" is not supported`);
    return meant;
  });
}

function fault(message: string): PosternError {
  return new PosternError('CONFIG_INVALID', message);
}
