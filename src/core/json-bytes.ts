import { isUtf8 } from 'node:buffer';

import { copyOf, join } from './bytes.ts';
import { PosternError } from './errors.ts';

/** Deeper nesting is refused, so that a hostile text cannot exhaust the stack. */
const maxDepth = 64;

type Kind = 'object' | 'array' | 'string' | 'number' | 'boolean' | 'null';

/**
 * A value inside a JSON text (RFC 8259), read in place.
 *
 * JSON.parse would turn every secret of the text into a string, which nothing can wipe. Here the text stays in
 * one buffer, and only the value that is asked for is copied, into a buffer of its own.
 */
export class JsonBytes {
  readonly kind: Kind;
  readonly #text: Buffer;
  readonly #start: number;
  readonly #end: number;

  private constructor(text: Buffer, start: number, end: number) {
    this.#text = text;
    this.#start = start;
    this.#end = end;
    this.kind = kindOf(text[start]);
  }

  /** Checks the whole text. Throws PROVIDER_FAILED with the offset of what is wrong, and nothing of the text. */
  static parse(text: Buffer): JsonBytes {
    if (!isUtf8(text)) throw new PosternError('PROVIDER_FAILED', 'not valid JSON: not UTF-8');
    const start = skipSpace(text, 0);
    const end = skipValue(text, start, 0);
    if (skipSpace(text, end) !== text.length) throw invalid(end);
    return new JsonBytes(text, start, end);
  }

  /** The member of an object; of several with the same name the last, as in JSON.parse. */
  get(key: string): JsonBytes | undefined {
    if (this.kind !== 'object') return undefined;
    const wanted = Buffer.from(key, 'utf8');
    let found: JsonBytes | undefined;
    for (const [keyAt, keyEnd, valueAt, valueEnd] of this.#members()) {
      if (unescape(this.#text, keyAt, keyEnd)?.equals(wanted)) {
        found = new JsonBytes(this.#text, valueAt, valueEnd);
      }
    }
    return found;
  }

  /** The members of an object in their order, where the names are no secrets. */
  *entries(): Generator<readonly [key: string, value: JsonBytes]> {
    if (this.kind !== 'object') return;
    for (const [keyAt, keyEnd, valueAt, valueEnd] of this.#members()) {
      const key = unescape(this.#text, keyAt, keyEnd)?.toString('utf8');
      if (key !== undefined) yield [key, new JsonBytes(this.#text, valueAt, valueEnd)];
    }
  }

  /** The value as it is written: a view of the text, not a copy. */
  written(): Buffer {
    return this.#text.subarray(this.#start, this.#end);
  }

  /** The first element of an array. */
  first(): JsonBytes | undefined {
    if (this.kind !== 'array') return undefined;
    const at = skipSpace(this.#text, this.#start + 1);
    if (this.#text[at] === closeBracket) return undefined;
    return new JsonBytes(this.#text, at, skipValue(this.#text, at, 0));
  }

  /** Follows a field's dots into nested objects; a key that contains the dots literally comes first. */
  find(field: string): JsonBytes | undefined {
    const literal = this.get(field);
    if (literal) return literal;
    const dot = field.indexOf('.');
    return dot === -1 ? undefined : this.get(field.slice(0, dot))?.find(field.slice(dot + 1));
  }

  /**
   * A copy of the value's bytes that the caller wipes: a string without quotes and escapes, a number or a boolean
   * as it is written. Throws PROVIDER_FAILED for what is no value of a credential.
   */
  copy(): Buffer {
    if (this.kind === 'object' || this.kind === 'array' || this.kind === 'null') {
      throw new PosternError('PROVIDER_FAILED', `${phrase[this.kind]}, not a text, a number or a boolean`);
    }
    if (this.kind !== 'string') return copyOf(this.#text, this.#start, this.#end);
    const text = unescape(this.#text, this.#start, this.#end);
    // JavaScript would put U+FFFD in its place, and the server would answer "wrong password".
    if (!text) throw new PosternError('PROVIDER_FAILED', 'half a surrogate pair, which is no text');
    return text;
  }

  /** A value that is no secret (a type, a version, a duration) as text; undefined for what has none. */
  publicText(): string | undefined {
    if (this.kind === 'object' || this.kind === 'array' || this.kind === 'null') return undefined;
    if (this.kind !== 'string') return this.#text.toString('latin1', this.#start, this.#end);
    return unescape(this.#text, this.#start, this.#end)?.toString('utf8');
  }

  *#members(): Generator<readonly [number, number, number, number]> {
    const text = this.#text;
    let at = skipSpace(text, this.#start + 1);
    while (text[at] === quote) {
      const keyEnd = skipString(text, at);
      const valueAt = skipSpace(text, skipSpace(text, keyEnd) + 1);
      const valueEnd = skipValue(text, valueAt, 0);
      yield [at, keyEnd, valueAt, valueEnd];
      const next = skipSpace(text, valueEnd);
      if (text[next] !== comma) return;
      at = skipSpace(text, next + 1);
    }
  }
}

const phrase = { object: 'an object', array: 'a list', null: 'null' } as const;

/** A JSON object of strings whose values are given as bytes, so that a secret in a request is never a string either. */
export function jsonObject(members: Readonly<Record<string, Buffer>>): Buffer {
  const parts: Buffer[] = [];
  for (const [key, value] of Object.entries(members)) {
    parts.push(Buffer.from(`${parts.length === 0 ? '{' : ','}${JSON.stringify(key)}:`), quoted(value));
  }
  parts.push(Buffer.from(parts.length === 0 ? '{}' : '}'));
  const object = join(parts);
  for (const part of parts) part.fill(0);
  return object;
}

function quoted(value: Buffer): Buffer {
  if (!isUtf8(value)) throw new PosternError('PROVIDER_FAILED', 'a value for a request is not UTF-8');
  const out = Buffer.allocUnsafe(value.length * 6 + 2);
  let at = out.writeUInt8(quote, 0);
  for (const byte of value) {
    if (byte < 0x20) {
      at += out.write(`\\u${byte.toString(16).padStart(4, '0')}`, at, 'latin1');
      continue;
    }
    if (byte === quote || byte === backslash) at = out.writeUInt8(backslash, at);
    at = out.writeUInt8(byte, at);
  }
  at = out.writeUInt8(quote, at);
  const exact = copyOf(out, 0, at);
  out.fill(0);
  return exact;
}

const quote = 0x22;
const comma = 0x2c;
const colon = 0x3a;
const openBracket = 0x5b;
const backslash = 0x5c;
const closeBracket = 0x5d;
const openBrace = 0x7b;
const closeBrace = 0x7d;

function invalid(at: number): PosternError {
  return new PosternError('PROVIDER_FAILED', `not valid JSON at byte ${at}`);
}

function kindOf(byte: number | undefined): Kind {
  if (byte === openBrace) return 'object';
  if (byte === openBracket) return 'array';
  if (byte === quote) return 'string';
  if (byte === 0x74 || byte === 0x66) return 'boolean';
  return byte === 0x6e ? 'null' : 'number';
}

function skipSpace(text: Buffer, from: number): number {
  let at = from;
  for (;;) {
    const byte = text[at];
    if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return at;
    at++;
  }
}

function skipValue(text: Buffer, at: number, depth: number): number {
  switch (text[at]) {
    case openBrace:
      return skipObject(text, at, depth + 1);
    case openBracket:
      return skipArray(text, at, depth + 1);
    case quote:
      return skipString(text, at);
    case 0x74:
      return skipWord(text, at, 'true');
    case 0x66:
      return skipWord(text, at, 'false');
    case 0x6e:
      return skipWord(text, at, 'null');
    default:
      return skipNumber(text, at);
  }
}

function skipObject(text: Buffer, from: number, depth: number): number {
  if (depth > maxDepth) throw invalid(from);
  let at = skipSpace(text, from + 1);
  if (text[at] === closeBrace) return at + 1;
  for (;;) {
    if (text[at] !== quote) throw invalid(at);
    at = skipSpace(text, skipString(text, at));
    if (text[at] !== colon) throw invalid(at);
    at = skipSpace(text, skipValue(text, skipSpace(text, at + 1), depth));
    if (text[at] === closeBrace) return at + 1;
    if (text[at] !== comma) throw invalid(at);
    at = skipSpace(text, at + 1);
  }
}

function skipArray(text: Buffer, from: number, depth: number): number {
  if (depth > maxDepth) throw invalid(from);
  let at = skipSpace(text, from + 1);
  if (text[at] === closeBracket) return at + 1;
  for (;;) {
    at = skipSpace(text, skipValue(text, at, depth));
    if (text[at] === closeBracket) return at + 1;
    if (text[at] !== comma) throw invalid(at);
    at = skipSpace(text, at + 1);
  }
}

function skipString(text: Buffer, from: number): number {
  for (let at = from + 1; at < text.length; at++) {
    const byte = text[at] as number;
    if (byte === quote) return at + 1;
    if (byte < 0x20) throw invalid(at);
    if (byte !== backslash) continue;
    at++;
    if (text[at] === 0x75) {
      codeUnit(text, at + 1);
      at += 4;
    } else if (!escapes.has(text[at] ?? 0)) {
      throw invalid(at);
    }
  }
  throw invalid(text.length);
}

function skipWord(text: Buffer, at: number, word: string): number {
  const end = at + word.length;
  if (text.toString('latin1', at, end) !== word) throw invalid(at);
  return end;
}

function skipNumber(text: Buffer, from: number): number {
  let at = text[from] === 0x2d ? from + 1 : from;
  at = text[at] === 0x30 ? at + 1 : skipDigits(text, at);
  if (text[at] === 0x2e) at = skipDigits(text, at + 1);
  if (text[at] === 0x65 || text[at] === 0x45) {
    at++;
    if (text[at] === 0x2b || text[at] === 0x2d) at++;
    at = skipDigits(text, at);
  }
  return at;
}

function skipDigits(text: Buffer, from: number): number {
  let at = from;
  while (isDigit(text[at])) at++;
  if (at === from) throw invalid(at);
  return at;
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= 0x30 && byte <= 0x39;
}

/** What follows a backslash, and what it stands for. `\u` is apart. */
const escapes: ReadonlyMap<number, number> = new Map(
  Object.entries({ '"': '"', '\\': '\\', '/': '/', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' }).map(
    ([letter, meaning]) => [letter.charCodeAt(0), meaning.charCodeAt(0)],
  ),
);

function codeUnit(text: Buffer, at: number): number {
  let unit = 0;
  for (let i = at; i < at + 4; i++) {
    const digit = hexDigit(text[i]);
    if (digit === undefined) throw invalid(i);
    unit = unit * 16 + digit;
  }
  return unit;
}

function hexDigit(byte: number | undefined): number | undefined {
  if (byte === undefined) return undefined;
  if (isDigit(byte)) return byte - 0x30;
  const letter = byte | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : undefined;
}

/** The string between the quotes at `start` and before `end`. Unescaping never makes it longer. */
function unescape(text: Buffer, start: number, end: number): Buffer | undefined {
  const out = Buffer.allocUnsafe(end - start);
  let length = 0;
  for (let at = start + 1; at < end - 1; at++) {
    const byte = text[at] as number;
    if (byte !== backslash) {
      out[length++] = byte;
      continue;
    }
    at++;
    const meaning = escapes.get(text[at] as number);
    if (meaning !== undefined) {
      out[length++] = meaning;
      continue;
    }
    let point = codeUnit(text, at + 1);
    at += 4;
    if (point >= 0xd800 && point <= 0xdfff) {
      const low = text[at + 1] === backslash && text[at + 2] === 0x75 ? codeUnit(text, at + 3) : 0;
      if (point > 0xdbff || low < 0xdc00 || low > 0xdfff) {
        out.fill(0);
        return undefined;
      }
      point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
      at += 6;
    }
    length = writeUtf8(out, length, point);
  }
  const exact = copyOf(out, 0, length);
  out.fill(0);
  return exact;
}

function writeUtf8(out: Buffer, from: number, point: number): number {
  let at = from;
  if (point < 0x80) {
    out[at++] = point;
    return at;
  }
  if (point < 0x800) {
    out[at++] = 0xc0 | (point >> 6);
  } else {
    if (point < 0x10000) {
      out[at++] = 0xe0 | (point >> 12);
    } else {
      out[at++] = 0xf0 | (point >> 18);
      out[at++] = 0x80 | ((point >> 12) & 0x3f);
    }
    out[at++] = 0x80 | ((point >> 6) & 0x3f);
  }
  out[at++] = 0x80 | (point & 0x3f);
  return at;
}
