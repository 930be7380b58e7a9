import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { PosternError } from '../../src/core/errors.ts';
import { JsonBytes, jsonObject } from '../../src/core/json-bytes.ts';

const parse = (text: string) => JsonBytes.parse(Buffer.from(text));
const textOf = (value: JsonBytes | undefined) => value?.copy().toString('utf8');

/** Rewrites a JSON text with any mix of escapes and spaces, which must not change what it means. */
const anySpelling = fc
  .tuple(fc.json({ maxDepth: 6, stringUnit: 'binary' }), fc.infiniteStream(fc.nat(5)))
  .map(([json, choices]) => {
    const spell = (character: string): string => {
      const { value } = choices.next() as { value: number };
      if (value > 2) return character;
      return [...Array(character.length).keys()]
        .map((i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`)
        .join('');
    };
    return json.replace(/"(?:[^"\\]|\\.)*"/gsu, (string) =>
      string.replace(/\\u[0-9a-f]{4}|\\.|[^"\\]/gsu, (part) => (part.startsWith('\\') ? part : spell(part))),
    );
  });

function compare(bytes: JsonBytes | undefined, value: unknown): void {
  if (value === undefined) return assert.equal(bytes, undefined);
  assert.ok(bytes);
  if (typeof value === 'string') {
    assert.equal(bytes.kind, 'string');
    if (value.isWellFormed()) assert.equal(textOf(bytes), value);
    else assert.throws(() => bytes.copy(), PosternError);
  } else if (value === null) {
    assert.equal(bytes.kind, 'null');
  } else if (Array.isArray(value)) {
    assert.equal(bytes.kind, 'array');
    compare(bytes.first(), value[0]);
  } else if (typeof value === 'object') {
    assert.equal(bytes.kind, 'object');
    for (const [key, member] of Object.entries(value))
      if (key.isWellFormed()) compare(bytes.get(key), member);
  } else {
    assert.equal(bytes.kind, typeof value);
    assert.equal(JSON.parse(textOf(bytes) ?? ''), value);
  }
}

describe('JSON read in place', () => {
  it('finds in any JSON text what JSON.parse finds', () => {
    fc.assert(
      fc.property(anySpelling, (text) => compare(parse(text), JSON.parse(text))),
      { numRuns: 500 },
    );
  });

  it('accepts and refuses the same texts as JSON.parse', () => {
    const pieces = [
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '"',
      '\\',
      'u00',
      '\\ud83d',
      '"a"',
      '0',
      '-',
      '1',
      '.',
      'e',
      '+',
    ];
    const soup = fc.array(fc.constantFrom(...pieces, ' ', '\n', '\0', 'true', 'null', 'nul', 'é'), {
      maxLength: 12,
    });
    fc.assert(
      fc.property(soup, (parts) => {
        const text = parts.join('');
        let valid = true;
        try {
          JSON.parse(text);
        } catch {
          valid = false;
        }
        if (valid) parse(text);
        else assert.throws(() => parse(text), PosternError);
      }),
      { numRuns: 3000 },
    );
  });

  it('throws nothing but its own error on any bytes, and quotes none of them', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        try {
          JsonBytes.parse(Buffer.from(bytes)).find('a.b');
        } catch (thrown) {
          assert.ok(thrown instanceof PosternError);
          assert.match(thrown.message, /^not valid JSON(: not UTF-8| at byte \d+)$/);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it('takes the last of several members with one name, however it is spelled', () => {
    assert.equal(textOf(parse('{"a":"one","\\u0061":"two"}').get('a')), 'two');
  });

  it('follows dots into objects, and prefers a key that has the dots in its name', () => {
    const json = parse('{"a":{"b":{"c":"deep"},"b.c":"half"},"a.b.c":"literal","x":{"y.z":"tail"}}');
    assert.equal(textOf(json.find('a.b.c')), 'literal');
    assert.equal(textOf(json.get('a')?.find('b.c')), 'half');
    assert.equal(textOf(json.find('x.y.z')), 'tail');
    assert.equal(json.find('a.b.none'), undefined);
    assert.equal(json.find('a.b.c.d'), undefined);
  });

  it('finds no member that every JavaScript object has', () => {
    const json = parse('{"__proto__":"mine"}');
    assert.equal(textOf(json.get('__proto__')), 'mine');
    assert.equal(json.get('constructor'), undefined);
    assert.equal(json.get('toString'), undefined);
  });

  it('gives numbers and booleans as they are written, and refuses what is no value', () => {
    const json = parse('{"n":1.50,"big":12345678901234567890,"b":true,"o":{},"l":[],"z":null}');
    assert.equal(textOf(json.get('n')), '1.50');
    assert.equal(textOf(json.get('big')), '12345678901234567890');
    assert.equal(textOf(json.get('b')), 'true');
    for (const key of ['o', 'l', 'z'])
      assert.throws(() => json.get(key)?.copy(), /not a text, a number or a boolean/);
  });

  it('refuses to pass on half a surrogate pair, which would only be a wrong password', () => {
    assert.throws(() => parse('"x\\ud800y"').copy(), /half a surrogate pair/);
    assert.throws(() => parse('"\\udc00\\ud800"').copy(), /half a surrogate pair/);
    assert.equal(textOf(parse('"\\ud83d\\ude00"')), '😀');
  });

  it('names the members of an object in their order, with what is written for each', () => {
    const json = parse('{ "b" : [1, {"x": null}], "\\u0061": "t\\n", "b":2 }');
    const members = [...json.entries()].map(([key, value]) => [key, value.written().toString()]);
    assert.deepEqual(members, [
      ['b', '[1, {"x": null}]'],
      ['a', '"t\\n"'],
      ['b', '2'],
    ]);
    assert.deepEqual([...parse('[1]').entries()], []);
  });

  it('copies: wiping a value leaves the text, and wiping the text leaves the value', () => {
    const text = Buffer.from('{"a":"secret"}');
    const value = JsonBytes.parse(text).get('a')?.copy();
    text.fill(0);
    assert.equal(value?.toString(), 'secret');
    // An array buffer of the value's own size would lie on V8's heap, whose collector leaves copies behind.
    assert.ok((value?.buffer.byteLength ?? 0) > 64);
  });

  it('refuses nesting beyond 64 levels before the stack ends', () => {
    parse('['.repeat(64) + ']'.repeat(64));
    assert.throws(() => parse('['.repeat(65) + ']'.repeat(65)), PosternError);
    assert.throws(() => parse('{"a":'.repeat(100_000)), PosternError);
  });

  it('writes any text as bytes that JSON.parse reads back', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        const written = jsonObject({ jwt: Buffer.from(text), role: Buffer.from('app') });
        assert.deepEqual(JSON.parse(written.toString()), { jwt: text, role: 'app' });
      }),
    );
    assert.equal(jsonObject({}).toString(), '{}');
  });
});
