import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as z from 'zod';

import { namedOrigins, reviewForward, reviewShared } from '../../../src/connectors/http/forward.ts';
import { matchRule } from '../../../src/connectors/http/rules.ts';

type Written = z.input<typeof matchRule>;
const rules = (...match: readonly Written[]) => match.map((each) => matchRule.parse(each));

/** What is said about two services, the first one's rules and the second one's. */
function together(first: readonly Written[], second: readonly Written[]): string[] {
  const { problems } = reviewShared([
    { name: 'a', settings: { match: rules(...first) } },
    { name: 'b', settings: { match: rules(...second) } },
  ]);
  return problems.map(({ path, message }) => `${path.join('.')} ${message}`);
}

describe('services of one listener', () => {
  for (const [first, second] of [
    [['https://a.example/x/**'], ['https://a.example/y/**']],
    [['https://a.example/**'], ['http://a.example/**']],
    [['https://a.example/**'], ['https://a.example:8443/**']],
    [['https://a.example/**'], ['https://b.example/**']],
    [['GET https://a.example/**'], ['POST https://a.example/**']],
    [['https://*.a.example/**'], ['https://a.example/**']],
    [['https://a.example/*'], ['https://a.example/x/y']],
    // The narrower one comes first: an exception from the wider one.
    [['https://a.example/x/**'], ['https://a.example/**']],
    [['https://x.a.example/**'], ['https://*.a.example/**']],
    [['GET https://a.example/**'], ['https://a.example/**']],
    [['https://a.example/x*'], ['https://a.example/*']],
  ] as const)
    it(`may have ${first.join()} and then ${second.join()}`, () => {
      assert.deepEqual(together(first, second), []);
    });

  for (const [first, second] of [
    [['https://a.example/**'], ['https://a.example/**']],
    [['https://a.example/**'], ['https://a.example/x']],
    [['https://*.a.example/**'], ['https://x.a.example/**']],
    [['GET,POST https://a.example/**'], ['POST,PUT https://a.example/**']],
    [['https://a.example/x/**'], ['https://a.example/**/y']],
    [['https://a.example/x*'], ['https://a.example/*y']],
    [['https://b.example/**', 'https://a.example/*/z'], ['https://a.example/x/*']],
    [['https://A.example/**'], ['https://a.EXAMPLE:443/**']],
  ] as const)
    it(`may not have ${first.join()} and then ${second.join()}`, () => {
      const found = together(first, second);
      assert.equal(found.length, 1);
      assert.match(
        found[0] ?? '',
        /^b\.config\.match entry 1 and entry \d of the service "a" have requests in common/,
      );
    });

  it('have one server of their own at most, and one authority', () => {
    const intercept = { caCert: 'a', caKey: 'b', unmatched: 'refuse' } as const;
    const paths = (...settings: object[]) =>
      reviewShared(settings.map((each, i) => ({ name: `s${i}`, settings: each }))).problems.map(({ path }) =>
        path.join('.'),
      );
    assert.deepEqual(paths({ upstream: 'https://a' }, { match: [] }, { upstream: 'https://b' }), [
      's2.config.upstream',
    ]);
    assert.deepEqual(paths({ intercept }, {}, { intercept: { ...intercept } }), []);
    assert.deepEqual(paths({ intercept }, { intercept: { ...intercept, unmatched: 'tunnel' } }), [
      's1.config.intercept',
    ]);
    assert.deepEqual(paths({ intercept: { unmatched: 'refuse' } }, { intercept: { unmatched: 'refuse' } }), [
      's1.config.intercept',
    ]);
  });

  it('are warned of an expression that two of them have', () => {
    const settings = { authenticateURLsMatching: ['^http://a/'] };
    const { problems, warnings } = reviewShared([
      { name: 'a', settings },
      { name: 'b', settings },
    ]);
    assert.deepEqual(problems, []);
    assert.equal(warnings[0]?.path.join('.'), 'b.config.authenticateURLsMatching');
  });
});

describe('a forward service', () => {
  const review = (settings: object, ...credentials: string[]) =>
    reviewForward({ allowPlainHttp: false, forceTls: false, ...settings }, new Set(credentials)).problems.map(
      ({ path, message }) => `${path.join('.')}: ${message}`,
    );
  const authenticate = {};

  it('is told what contradicts itself, and what would send the credential in clear', () => {
    assert.deepEqual(review({ match: rules('https://a.example/**'), authenticate }), []);
    assert.match(review({})[0] ?? '', /^config\.upstream: missing/);
    assert.match(
      review({ upstream: 'https://a', match: rules('https://a.example/**') })[0] ?? '',
      /^config\.match: /,
    );
    assert.match(review({ upstream: 'https://a', forceTls: true })[0] ?? '', /^config\.forceTls: /);
    assert.match(
      review({ upstream: 'https://a', intercept: { caCert: 'a', caKey: 'b' } })[0] ?? '',
      /^config\.intercept: /,
    );
    const clear = { match: rules('http://a.example/**'), authenticate };
    assert.match(review(clear)[0] ?? '', /in clear/);
    assert.deepEqual(review({ ...clear, forceTls: true }), []);
    assert.deepEqual(review({ ...clear, allowPlainHttp: true }), []);
  });

  it('is tried out with the servers that it names, over TLS where it will be', () => {
    const keys = (forceTls: boolean, ...match: Written[]) =>
      namedOrigins({ match: rules(...match), forceTls, allowPlainHttp: false }).map(({ key }) => key);
    const match = [
      'https://a.example/x',
      'https://a.example/y',
      'http://b.example:81/**',
      'https://*.c.example/**',
    ] as const;
    assert.deepEqual(keys(false, ...match), ['https://a.example', 'http://b.example:81']);
    assert.deepEqual(keys(true, ...match), ['https://a.example', 'https://b.example:81']);
  });
});
