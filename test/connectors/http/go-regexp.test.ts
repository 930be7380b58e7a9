import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import { GoRegExp, PatternError } from '../../../src/connectors/http/go-regexp.ts';

const fixture = JSON.parse(readFileSync(new URL('fixtures/go-regexp.json', import.meta.url), 'utf8')) as {
  texts: string[];
  cases: [pattern: string, matches: string | null][];
};

describe("a regular expression of Go's", () => {
  it('compiles and matches as it does in Go', () => {
    assert.ok(fixture.cases.length > 200);
    for (const [pattern, matches] of fixture.cases) {
      if (matches === null) {
        assert.throws(() => new GoRegExp(pattern), PatternError, pattern);
        continue;
      }
      const compiled = new GoRegExp(pattern);
      const ours = fixture.texts.map((text) => (compiled.test(text) ? '1' : '0')).join('');
      assert.equal(ours, matches, pattern);
    }
  });

  it('takes a time that grows with the text, where others backtrack for ever', () => {
    const text = `${'a'.repeat(10_000)}!`;
    for (const pattern of [
      '^(a+)+$',
      '^(a|aa)+$',
      '^(a*)*$',
      '^(.*)*(.*)*x$',
      `^${'a?'.repeat(30)}${'a'.repeat(30)}$`,
    ]) {
      const begin = process.hrtime.bigint();
      assert.equal(new GoRegExp(pattern).test(text), false, pattern);
      assert.ok(process.hrtime.bigint() - begin < 5_000_000_000n, pattern);
    }
  });

  it('is refused where it is too large, also where it is large and empty', () => {
    for (const pattern of [
      '(a{1000}){1000}',
      '((a{100}){100}){100}',
      '(((){1000}){1000}){1000}',
      '('.repeat(200),
    ])
      assert.throws(() => new GoRegExp(pattern), PatternError, pattern);
  });

  it('says what is wrong', () => {
    for (const [pattern, message] of [
      ['a**', /nested repetition operator/],
      ['*', /missing argument to repetition/],
      ['(?=a)', /unsupported group/],
      ['(?<!a)', /unsupported group/],
      ['\\1', /escape/],
      ['[b-a]', /range b-a/],
      ['(a', /missing closing \)/],
      ['a)', /unexpected \)/],
      ['[a', /missing closing \]/],
      ['[[:constructor:]]', /class range/],
      ['\\', /trailing backslash/],
      ['a{2,1}', /repeat count/],
    ] as const)
      assert.throws(() => new GoRegExp(pattern), message, pattern);
  });
});
