import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { overlappingGlobs, PathGlob } from '../../../src/connectors/http/globs.ts';
import { Head, parseRequest } from '../../../src/connectors/http/head.ts';
import { requestNames } from '../../../src/connectors/http/names.ts';
import { statusOf } from '../../../src/connectors/http/replies.ts';
import {
  Allowance,
  allowRule,
  looseUrlPattern,
  Matcher,
  matchRule,
  overlap,
  type RuleSettings,
  urlPatterns,
} from '../../../src/connectors/http/rules.ts';
import { parseAuthority } from '../../../src/connectors/http/target.ts';
import { PosternError } from '../../../src/core/errors.ts';

const names = requestNames([]);

function headOf(method: string, target: string, ...lines: string[]) {
  const bytes = Buffer.from([`${method} ${target} HTTP/1.0`, ...lines, '', ''].join('\r\n'), 'latin1');
  const head = new Head();
  assert.ok(parseRequest(bytes, 0, bytes.length, head, names, 65536) > 0, target);
  return { bytes, head };
}

function allowed(rules: readonly unknown[], method: string, target: string, ...lines: string[]): boolean {
  const { bytes, head } = headOf(method, target, ...lines);
  try {
    new Allowance(rules.map((rule) => allowRule.parse(rule))).check(bytes, head, head.targetAt);
    return true;
  } catch (thrown) {
    assert.ok(thrown instanceof PosternError && thrown.code === 'CLIENT_REFUSED' && statusOf(thrown) === 403);
    return false;
  }
}

function matched(
  { match = [], urls = [] }: { match?: readonly unknown[]; urls?: readonly string[] },
  method: string,
  url: string,
): string | undefined {
  const { bytes, head } = headOf(method, url);
  const [, scheme, authority = '', path = ''] = /^(https?):\/\/([^/]*)(.*)$/.exec(url) ?? [];
  const tls = scheme === 'https';
  const parsed = parseAuthority(authority, tls ? 443 : 80);
  assert.ok(parsed, url);
  const pathAt = head.targetEnd - path.length;
  const matcher = new Matcher(
    match.map((rule) => matchRule.parse(rule)),
    urls,
  );
  return matcher.match(bytes, head, pathAt, { tls, ...parsed, authority });
}

describe('the rules of a service with one server', () => {
  it('allow methods and paths', () => {
    const rules = ['GET,HEAD /repos/**', { method: 'POST', path: ['/repos/*/issues', '/login'] }, '/open'];
    for (const [method, target] of [
      ['GET', '/repos/'],
      ['GET', '/repos'],
      ['HEAD', '/repos/a/b/c?q=/../x'],
      ['POST', '/repos/a/issues'],
      ['POST', '/repos/a.b-c/issues?x'],
      ['POST', '/login'],
      ['DELETE', '/open'],
      ['GET', '/open?'],
    ] as const)
      assert.ok(allowed(rules, method, target), `${method} ${target}`);
    for (const [method, target] of [
      ['POST', '/repos/'],
      ['get', '/repos/'],
      ['GET', '/reposx'],
      ['GET', '/Repos/'],
      ['GET', '/'],
      ['POST', '/repos//issues'],
      ['POST', '/repos/a/b/issues'],
      ['POST', '/repos/a/issues/'],
      ['POST', '/repos/a/issuesx'],
      ['POST', '/login/'],
      ['GET', '/open/'],
      ['OPTIONS', '*'],
    ] as const)
      assert.equal(allowed(rules, method, target), false, `${method} ${target}`);
  });

  it('hold however the path is disguised', () => {
    const rules = ['/ok/**'];
    for (const path of [
      '/ok/x',
      '/ok/%78',
      '/%6fk/x',
      '/ok/a/../b',
      '/ok//x',
      '/ok/a%2fb',
      '/ok/a;b/c',
      '/ok/./x',
      '/ok/100%25',
    ])
      assert.ok(allowed(rules, 'GET', path), path);
    for (const path of [
      '/ok/../x',
      '/ok/./../x',
      '/ok/a/../../x',
      '/ok/..',
      '/ok/%2e%2e/x',
      '/ok/%2E%2E/x',
      '/ok/.%2e/x',
      '/ok/%2e%2e%2fx',
      '/ok/..%2fx',
      '/ok/..%2Fx',
      '/ok%2f..%2fx',
      '/ok/..%5cx',
      '/ok/%5c..%5cx',
      '/ok/%252e%252e/x',
      '/ok/%252e%252e%252fx',
      '/ok/..%252fx',
      '/ok/%25252e%25252e/x',
      '/ok/%c0%ae%c0%ae/x',
      '/ok/..%c0%afx',
      '/ok/%uff0e%uff0e/x',
      '/ok/%ef%bc%8e%ef%bc%8e/x',
      '/ok/..%ef%bc%8fx',
      '/ok/..;/x',
      '/ok/..;a=b/x',
      '/ok/;/../x',
      '/ok/..%3b/x',
      '/ok/.;/../x',
      '/ok/..%00/x',
      '/ok/x%00/../../y',
      '/ok/..%20/x',
      '/ok/..%09/x',
      '/ok/..%0d/x',
      '/ok/%0d%0aHost:evil',
      '/ok/..//x',
      '/ok//../x',
      '/ok//../../x',
      '/x/../ok',
      '/x/..;/ok',
      '/x/%2e%2e/ok',
      '//ok/x/../../y',
      '/../ok/x',
      '/./ok/../x',
      '/ok%2fx/../../y',
      '/ok%2f',
      '/ok%2fx',
      '/ok;/../x',
      '/ok;x',
      '/OK/x',
      '/%6f%6b%2f..%2fx',
      '/ok/.../x',
      '/ok/. ./x'.replace(' ', '%20'),
      '/ok/%e2%80%a4%e2%80%a4/x',
      '/ok/%',
      '/ok/%zz',
      '/ok/%ff',
      '/okx',
      '/x/ok/',
      '/ok.',
      '/ok./x',
      '/;/ok/../x',
      '/x;/../ok/y',
      '/a/..%2fok',
    ])
      assert.equal(allowed(rules, 'GET', path), false, path);
  });

  it('are not got round with a field that names another path or method', () => {
    for (const field of [
      'X-Original-URL: /admin',
      'X-Rewrite-URL: /admin',
      'X-HTTP-Method-Override: DELETE',
      'X_Original_Url: /',
    ]) {
      assert.equal(allowed(['/ok/**'], 'GET', '/ok/x', field), false, field);
      assert.equal(allowed(['GET /**'], 'GET', '/ok/x', field), false, field);
      assert.ok(allowed(['/**'], 'GET', '/ok/x', field), field);
    }
  });

  it('that allow every path leave its spelling to the server', () => {
    for (const path of ['/%ff', '/a//b', '/..;/x', '/a%2fb', '*'])
      assert.ok(allowed(['/**'], 'OPTIONS', path), path);
  });

  it('allow what one of them allows, whatever another cannot tell', () => {
    assert.ok(allowed(['GET /a/**', '/**'], 'GET', '/a/%2e%2e/x'));
    assert.ok(allowed(['/**', 'GET /a/**'], 'GET', '/a/%2e%2e/x'));
  });

  it('are refused in the configuration where they say nothing or too much', () => {
    for (const rule of [
      'repos',
      'GET',
      'GET repos',
      'TRACE /',
      'CONNECT /**',
      'GE(T /',
      '/a?b',
      '/a#b',
      '/a/../b',
      '/a//b',
      '/a**',
      '/**a',
      '/a%2fb',
      '/a;b',
      '/a\\b',
      '/%2e%2e/',
      { path: 'a' },
      { method: [] },
      { path: [] },
      { host: 'x' },
      {},
      { paths: '/' },
      `/${'a/'.repeat(65)}`,
      '/\ud800',
    ].filter((rule) => typeof rule === 'string' || Object.keys(rule).length > 0))
      assert.equal(allowRule.safeParse(rule).success, false, JSON.stringify(rule));
  });
});

describe('a pattern for paths', () => {
  it('fits within segments and across them', () => {
    for (const [glob, fits, fitsNot] of [
      ['/a/*/c', ['/a/b/c', '/a/*/c'], ['/a/c', '/a/b/b/c', '/a//c']],
      ['/a/v*', ['/a/v', '/a/v1', '/a/v1.2'], ['/a/w', '/a/v/1', '/a']],
      ['/a/*.json', ['/a/x.json', '/a/.json'], ['/a/x.jsonp', '/a/b/x.json']],
      ['/a/*b*c', ['/a/bc', '/a/xbxbxc'], ['/a/b', '/a/cb']],
      ['/**/x', ['/x', '/a/x', '/a/b/x', '/x/x'], ['/x/y', '/']],
      ['/a/**/b/**/c', ['/a/b/c', '/a/b/b/c', '/a/x/b/y/c', '/a/b/c/c'], ['/a/c', '/a/b', '/b/c']],
      ['/', ['/'], ['/a']],
      ['/café', ['/caf\u00e9'], ['/cafe']],
      ['/caf%C3%A9', ['/caf\u00e9'], []],
      ['/a b', ['/a b'], ['/a%20b']],
      ['/**', ['/', '/a', '/a/b/'], []],
    ] as const) {
      assert.equal(PathGlob.problem(glob), undefined, glob);
      const compiled = new PathGlob(glob);
      for (const path of fits) assert.ok(compiled.test(path.slice(1).split('/')), `${glob} ${path}`);
      for (const path of fitsNot)
        assert.equal(compiled.test(path.slice(1).split('/')), false, `${glob} ${path}`);
    }
  });

  const segment = fc.constantFrom('a', 'b', '*', '**', 'a*', '*b', 'ab');
  const glob = fc.array(segment, { minLength: 1, maxLength: 4 }).map((segments) => `/${segments.join('/')}`);

  it('overlaps another exactly where there is a path that fits both', () => {
    const words = ['a', 'b', 'ab', 'aab', 'ac'];
    const every: string[][] = [[]];
    for (let length = 0; length < 4; length++)
      for (const path of every.filter((each) => each.length === length))
        for (const word of words) every.push([...path, word]);
    fc.assert(
      fc.property(glob, glob, (one, other) => {
        const [a, b] = [new PathGlob(one), new PathGlob(other)];
        const seen = every.some((path) => path.length > 0 && a.test(path) && b.test(path));
        if (seen) assert.ok(overlappingGlobs(a, b), `${one} ${other}`);
        assert.equal(overlappingGlobs(a, b), overlappingGlobs(b, a));
        // Paths of four of these words are enough to show every overlap but those of two `**` alone.
        if (overlappingGlobs(a, b) && a.segments.length + b.segments.length <= 4 && !seen)
          assert.ok(
            [a, b].every((each) => each.test([])),
            `${one} ${other}`,
          );
      }),
      { numRuns: 3000 },
    );
  });

  it('takes a time that grows with pattern and path only', () => {
    const hard = new PathGlob(`/${'**/a/'.repeat(30)}b`);
    const begin = process.hrtime.bigint();
    assert.equal(hard.test(Array.from({ length: 20_000 }, () => 'a')), false);
    assert.equal(new PathGlob(`/${'*a'.repeat(500)}b`).test(['a'.repeat(50_000)]), false);
    assert.ok(process.hrtime.bigint() - begin < 5_000_000_000n);
  });
});

describe('the rules of a service of a forward proxy', () => {
  it('are about scheme, host, port, method and path', () => {
    const rules = {
      match: [
        'https://api.example.com/repos/**',
        'GET http://plain.example.com:8080',
        { host: '*.example.org', path: '/v1/**' },
        { host: '[2001:DB8::1]', scheme: 'https', port: 8443 },
      ],
    };
    for (const [method, url, named] of [
      ['POST', 'https://api.example.com/repos/x', 'exactly'],
      ['GET', 'https://API.example.com:443/repos/x', 'exactly'],
      ['GET', 'https://api.example.com./repos/x', 'exactly'],
      ['GET', 'http://plain.example.com:8080/anything', 'exactly'],
      ['GET', 'http://plain.example.com:8080', 'exactly'],
      ['GET', 'http://a.example.org/v1/x', 'by pattern'],
      ['GET', 'https://a.b.example.org/v1/x', 'by pattern'],
      ['GET', 'https://[2001:db8:0::1]:8443/', 'exactly'],
    ] as const)
      assert.equal(matched(rules, method, url), named, `${method} ${url}`);
    for (const [method, url] of [
      ['GET', 'http://api.example.com/repos/x'],
      ['GET', 'https://api.example.com:8443/repos/x'],
      ['GET', 'https://api.example.com/'],
      ['GET', 'https://api.example.com.evil.example/repos/x'],
      ['GET', 'https://xapi.example.com/repos/x'],
      ['POST', 'http://plain.example.com:8080/'],
      ['GET', 'http://plain.example.com/'],
      ['GET', 'http://example.org/v1/x'],
      ['GET', 'http://evilexample.org/v1/x'],
      ['GET', 'http://a.example.org:81/v1/x'],
      ['GET', 'http://a.example.org/v2/x'],
      ['GET', 'https://[2001:db8::2]:8443/'],
    ] as const)
      assert.equal(matched(rules, method, url), undefined, `${method} ${url}`);
    assert.throws(
      () => matched(rules, 'GET', 'https://api.example.com/repos/%2e%2e/x'),
      /encoded dot segments/,
    );
  });

  it('name servers for which a tunnel is worth to be opened', () => {
    const matcher = new Matcher([
      matchRule.parse('GET https://a.example/x'),
      matchRule.parse('https://*.b.example/'),
    ]);
    const reaches = (host: string, port = 443, tls = true) =>
      matcher.reaches({ tls, host, port, authority: host });
    assert.equal(reaches('a.example'), 'exactly');
    assert.equal(reaches('x.b.example'), 'by pattern');
    assert.equal(reaches('a.example', 80, false), undefined);
    assert.equal(reaches('a.example', 8443), undefined);
    assert.equal(reaches('b.example'), undefined);
  });

  it('are refused in the configuration where they name no server', () => {
    for (const rule of [
      'https://',
      'https:///x',
      'ftp://a/x',
      'https://user@a/x',
      'https://a:0/',
      'https://a:99999/',
      'https://127.1/',
      'https://a..b/',
      'https://*/',
      'https://*.com/',
      'https://a*.example.com/',
      'https://*.*.example.com/',
      'https://*.10.0.0.1/',
      'https://*.localhost/',
      'https://a/x?y',
      'https://a/x/../y',
      'api.example.com',
      '/x',
      { path: '/' },
      { host: 'a', scheme: 'ftp' },
      { host: 'http://a' },
      { host: 'a:80' },
    ])
      assert.equal(matchRule.safeParse(rule).success, false, JSON.stringify(rule));
    assert.deepEqual(matchRule.parse('GET,PUT https://A.example:8443/x') satisfies RuleSettings, {
      method: ['GET', 'PUT'],
      scheme: 'https',
      host: 'A.example',
      port: 8443,
      path: '/x',
    });
  });

  it('say what they are', () => {
    const { texts } = new Matcher(
      [matchRule.parse('GET https://a.example/x'), matchRule.parse({ host: 'b.example', port: 81 })],
      ['^http://c'],
    );
    assert.deepEqual(texts, ['GET https://a.example/x', '*://b.example:81/**', 'URLs matching ^http://c']);
  });
});

describe("Secretless's authenticateURLsMatching", () => {
  it('is searched for anywhere in the URL as the client wrote it', () => {
    for (const [pattern, url, expected] of [
      ['^http://api\\.', 'http://api.example/x', true],
      ['^http://api\\.', 'http://xapi.example/x', false],
      ['example', 'http://other/?q=example', true],
      ['^https?://A\\.example', 'http://a.example/', false],
      ['(?i)^https?://A\\.example', 'https://a.example/', true],
      ['^http://a\\.example/v1$', 'http://a.example/v1', true],
      ['^http://a\\.example/v1$', 'http://a.example/v1?x', false],
      ['^http://a\\.example:8080/', 'http://a.example:8080/x', true],
      ['^http://a\\.example$', 'http://a.example', true],
      ['%20', 'http://a/x%20y', true],
      ['%7Bx%7D', 'http://a/{x}', true],
    ] as const)
      assert.equal(
        matched({ urls: [pattern] }, 'GET', url),
        expected ? 'exactly' : undefined,
        `${pattern} ${url}`,
      );
  });

  it('holds in every way in which the server may read the path', () => {
    const urls = ['^http://a\\.example/ok/'];
    assert.equal(matched({ urls }, 'GET', 'http://a.example/ok/x'), 'exactly');
    // Inside is where Secretless's servers are, but no expression means a metadata service.
    assert.equal(matched({ urls: ['^http'] }, 'GET', 'http://10.0.0.1/ok'), 'exactly');
    assert.equal(matched({ urls: ['^http'] }, 'GET', 'http://169.254.169.254/latest'), 'by pattern');
    assert.equal(matched({ urls }, 'GET', 'http://a.example/ok/x/../y'), 'exactly');
    assert.equal(matched({ urls }, 'GET', 'http://a.example/ok/../x'), undefined);
    assert.equal(matched({ urls }, 'GET', 'http://a.example/x/../ok/'), undefined);
    for (const path of ['/ok/%2e%2e/x', '/ok/..%2fx', '/ok/..;/x', '/ok/%252e%252e/x'])
      assert.throws(() => matched({ urls }, 'GET', `http://a.example${path}`), /path/, path);
  });

  it('fits no URL of more than 16 KiB', () => {
    const url = (length: number) => `http://a/${'x'.repeat(length)}`;
    assert.equal(matched({ urls: ['^http://a/'] }, 'GET', url(16_000)), 'exactly');
    assert.equal(matched({ urls: ['^http://a/'] }, 'GET', url(16_400)), undefined);
  });

  it('is one expression or a list, of those that Go would compile', () => {
    assert.deepEqual(urlPatterns.parse('^http://a/'), ['^http://a/']);
    assert.deepEqual(urlPatterns.parse(['a', 'b']), ['a', 'b']);
    for (const bad of [[], 5, '(?=a)', ['a', '('], 'a**', '\\Z'])
      assert.equal(urlPatterns.safeParse(bad).success, false, JSON.stringify(bad));
  });

  it('is warned of where it gives the credential to other hosts', () => {
    for (const pattern of [
      '^http://api\\.example\\.com/',
      '^https?://a\\.b:8080/',
      '(?i)^https://a\\.b/x.*',
      '\\Ahttp:\\/\\/a\\.b\\/',
      '^http://a$',
    ])
      assert.equal(looseUrlPattern(pattern), undefined, pattern);
    for (const pattern of [
      'http://api.example.com',
      'api\\.example\\.com',
      '^http://api\\.example\\.com',
      '^http://api.example.com/',
      '^http',
      '.*',
      '^http://a/|b',
      '^http://.*/',
    ])
      assert.match(looseUrlPattern(pattern) ?? '', /other hosts/, pattern);
  });
});

describe('two services on one listener', () => {
  const both = (one: readonly unknown[], other: readonly unknown[]) =>
    overlap(
      { match: one.map((rule) => matchRule.parse(rule)), urls: [] },
      { match: other.map((rule) => matchRule.parse(rule)), urls: [] },
    );

  it('are seen to want the same requests', () => {
    for (const [one, other] of [
      ['https://a.example/', 'https://a.example/'],
      ['https://a.example', 'https://A.example:443/x'],
      ['https://a.example/x/**', 'https://a.example/*/y'],
      ['https://*.b.example/', { host: 'a.b.example', path: '/' }],
      ['https://*.b.example/', 'https://*.a.b.example/'],
      ['GET https://a.example/', { host: 'a.example', method: ['POST', 'GET'] }],
      [{ host: 'a.example', port: 443 }, 'https://a.example/'],
    ])
      assert.ok(both([one], [other]), JSON.stringify([one, other]));
    assert.deepEqual(both(['https://b.example/', 'https://a.example/x'], ['https://a.example/**']), [
      'https://a.example/x',
      'https://a.example/**',
    ]);
    assert.ok(overlap({ match: [], urls: ['^http://a'] }, { match: [], urls: ['x', '^http://a'] }));
  });

  it('are seen to want different ones', () => {
    for (const [one, other] of [
      ['https://a.example/', 'https://b.example/'],
      ['https://a.example/', 'http://a.example/'],
      ['https://a.example/', 'https://a.example:8443/'],
      ['https://a.example/x/**', 'https://a.example/y/**'],
      ['https://a.example/x', 'https://a.example/x/*'],
      ['GET https://a.example/', 'POST https://a.example/'],
      ['https://*.b.example/', 'https://b.example/'],
      ['https://*.b.example/', 'https://*.c.example/'],
    ])
      assert.equal(both([one], [other]), undefined, JSON.stringify([one, other]));
  });
});
