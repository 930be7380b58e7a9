import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { isPlainPath, pathEnd, readPath } from '../../../src/connectors/http/path.ts';

function read(path: string) {
  const bytes = Buffer.from(`x${path}/../x`, 'latin1');
  const to = 1 + path.length;
  return { ...readPath(bytes, 1, to), plain: isPlainPath(bytes, 1, to) };
}

const paths = (readings: readonly (readonly string[])[] | undefined) =>
  readings?.map((each) => `/${each.join('/')}`);

describe('a path', () => {
  it('is plain where all servers read it alike', () => {
    for (const path of [
      '/',
      '/a',
      '/a/',
      '/a/b.c',
      '/a/b/..c-',
      "/a~b_c-d!$&'()*+,=:@",
      '/a.',
      '/a/{b}|^`',
    ]) {
      const { plain, readings } = read(path);
      if (path !== '/a/b/..c-') assert.ok(plain, path);
      assert.deepEqual(paths(readings), [path], path);
    }
    for (const path of [
      '',
      'a',
      '//',
      '/a//b',
      '/./a',
      '/.a',
      '/a%20',
      '/a;b',
      '/a\\b',
      '/a?b',
      '/a b',
      '/é',
      '/a\0',
    ])
      assert.equal(read(path).plain, false, path);
  });

  it('has one reading where it is only encoded, and is decoded in it', () => {
    for (const [path, reading] of [
      ['/%41%7e%5F-/b', '/A~_-/b'],
      ['/caf%C3%A9', '/café'],
      ['/a%20b', '/a b'],
      ['/a%3Fb%23c', '/a?b#c'],
      ['/100%25', '/100%'],
      ['/100%25/x', '/100%/x'],
      ['/.well-known/x', '/.well-known/x'],
      ['/a/...b', '/a/...b'],
      ['/%40scope', '/@scope'],
      ['/%c2%bd', '/½'],
      ['/..%41', '/..A'],
    ] as const)
      assert.deepEqual(paths(read(path).readings), [reading], path);
  });

  it('has a reading for each way in which servers take it', () => {
    for (const [path, ...readings] of [
      ['/a/../b', '/a/../b', '/b'],
      ['/a/./b', '/a/./b', '/a/b'],
      ['/a/b/..', '/a/b/..', '/a/'],
      ['/a/.', '/a/.', '/a/'],
      ['/a//b', '/a//b', '/a/b'],
      ['//a', '//a', '/a'],
      ['/a;x=1/b', '/a;x=1/b', '/a;x=1/b', '/a/b', '/a/b'],
      ['/a/;/b', '/a/;/b', '/a/;/b', '/a//b', '/a/b'],
    ] as const)
      assert.deepEqual(paths(read(path).readings), readings, path);
    const encoded = read('/@scope%2fname').readings;
    assert.deepEqual(encoded?.[0], ['@scope/name']);
    assert.ok(encoded?.some((each) => each.length === 2 && each[1] === 'name'));
  });

  it('is refused where there is no telling what a server makes of it', () => {
    for (const path of [
      // encoded dots
      '/a/%2e%2e/b',
      '/a/%2E./b',
      '/a/.%2e/b',
      '/a/%2e/b',
      '/%2e%2e',
      // encoded twice, also in halves
      '/a/%252e%252e/b',
      '/a/%252fb',
      '/%25%32%65',
      '/%2525%2565',
      '/%255c',
      // with encoded slashes and backslashes
      '/a/..%2fb',
      '/a%2f..%2fb',
      '/a%2f../b',
      '/a%2F%2e%2e%2Fb',
      '/a%5c..%5cb',
      '/a%5Cb',
      '/a\\b',
      '/..%5c',
      // parameters behind dots
      '/a/..;/b',
      '/a/..;x=y/b',
      '/a/.;/b',
      '/a/..%3b/b',
      '/a;x/../b',
      '/;/../b',
      // above the root
      '/..',
      '/../a',
      '/a/../../b',
      '/./../a',
      // with empty segments
      '/a//../b',
      '/a/..//b',
      '//../a',
      // dots and spaces, which Windows strips
      '/a/.../b',
      '/a/.%20/b',
      '/a/..%20/b',
      '/a/%20../b',
      '/a/. ./b',
      // no UTF-8: overlong dots and slashes, halves, surrogates
      '/a/%c0%ae%c0%ae/b',
      '/a/%c0%af',
      '/%e0%80%af',
      '/%f0%80%80%af',
      '/%ff',
      '/%e9',
      '/%c3',
      '/%ed%a0%80',
      '/%f8%80%80%80%af',
      // escapes of no kind
      '/%',
      '/%2',
      '/%zz',
      '/%u002e',
      '/%u2215',
      '/% 2f',
      // control characters
      '/%00',
      '/a%00.png',
      '/%0d%0aX-Injected:1',
      '/a%0ab',
      '/%09',
      '/%7f',
      '/%1b',
      '/a\tb',
      // what Unicode folds
      '/%ef%bc%8e%ef%bc%8e/b',
      '/a%ef%bc%8fb',
      '/a%ef%bc%bcb',
      '/%e2%80%a4%e2%80%a4/b',
      '/%e2%80%a5/b',
      '/a%e2%88%95b',
      '/a%e2%81%84b',
      '/..%ef%bc%9b/b',
      // what belongs encoded
      '/é',
      '/a b',
      '/a"b',
      '/a<b>',
      '/a#b',
      'a',
      '*',
    ]) {
      const { reason, plain } = read(path);
      assert.equal(plain, false, path);
      assert.notEqual(reason, undefined, path);
    }
  });

  it('of a plain spelling reads as it is written, whatever it is', () => {
    const segment = fc.stringMatching(/^[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]{0,8}$/);
    fc.assert(
      fc.property(fc.array(segment, { minLength: 1, maxLength: 6 }), (segments) => {
        const { plain, readings } = read(`/${segments.join('/')}`);
        assert.ok(plain);
        assert.deepEqual(readings, [segments]);
      }),
    );
  });

  it('in whatever disguise never has a dot segment in all its readings but the first', () => {
    const piece = fc.constantFrom(
      '..',
      '.',
      '%2e',
      '%2E',
      '%2f',
      '/',
      '//',
      ';',
      'a',
      'b',
      '%5c',
      '%25',
      '%20',
      '\\',
      '2e',
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 8 }), (pieces) => {
        const { readings } = read(`/${pieces.join('')}`);
        for (const each of readings?.slice(1) ?? [])
          for (const segment of each) assert.ok(segment !== '..' && segment !== '.', pieces.join(''));
        // One reading alone: then there is nothing in it that could be read otherwise.
        if (readings?.length === 1)
          assert.ok(!/(^|\/)\.{1,2}(\/|$)|\/\/|\\/.test((readings[0] ?? []).join('/')));
      }),
      { numRuns: 2000 },
    );
  });

  it('is read in a time that grows with its length only', () => {
    for (const path of [
      '.'.repeat(60000),
      '%2f'.repeat(20000),
      ';/'.repeat(30000),
      ' ..'.repeat(20000),
      'a/../'.repeat(12000),
    ]) {
      const begin = process.hrtime.bigint();
      read(`/${path}x`);
      assert.ok(process.hrtime.bigint() - begin < 1_000_000_000n, path.slice(0, 10));
    }
  });

  it('ends where the query begins', () => {
    const bytes = Buffer.from('/a?/../b');
    assert.equal(pathEnd(bytes, 0, bytes.length), 2);
    assert.equal(pathEnd(bytes, 0, 2), 2);
  });
});
