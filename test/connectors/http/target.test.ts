import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { Head, parseRequest } from '../../../src/connectors/http/head.ts';
import { requestNames } from '../../../src/connectors/http/names.ts';
import { statusOf } from '../../../src/connectors/http/replies.ts';
import {
  FORM_ABSOLUTE,
  FORM_ASTERISK,
  FORM_AUTHORITY,
  FORM_ORIGIN,
  Hosts,
  normalHost,
  parseAuthority,
  readTarget,
  Target,
} from '../../../src/connectors/http/target.ts';
import { PosternError } from '../../../src/core/errors.ts';

const names = requestNames([]);

function read(method: string, text: string, host?: string) {
  const bytes = Buffer.from(
    `${method} ${text} HTTP/1.${host === undefined ? 0 : 1}\r\n${host === undefined ? '' : `Host: ${host}\r\n`}\r\n`,
    'latin1',
  );
  const head = new Head();
  assert.ok(parseRequest(bytes, 0, bytes.length, head, names, 65536) > 0, text);
  const target = new Target();
  readTarget(bytes, head, target);
  const { form, tls, authority } = target;
  return { form, tls, authority, path: bytes.toString('latin1', target.pathAt, head.targetEnd) };
}

function refuses(method: string, text: string, host?: string): void {
  assert.throws(
    () => read(method, text, host),
    (thrown) =>
      thrown instanceof PosternError && thrown.code === 'CLIENT_PROTOCOL' && statusOf(thrown) === 400,
    `${method} ${text} Host: ${host}`,
  );
}

describe('the target of a request', () => {
  it('is mostly a path and a query', () => {
    const { form, path } = read('GET', '/a?b', 'x');
    assert.equal(form, FORM_ORIGIN);
    assert.equal(path, '/a?b');
    assert.equal(read('GET', '//x/y', 'x').form, FORM_ORIGIN);
  });

  it('may be a URL, in whatever case and with or without the usual port', () => {
    for (const [url, host, expected, path] of [
      ['http://api.example/a?b', 'api.example', { host: 'api.example', port: 80 }, '/a?b'],
      ['HTTP://API.example:80/', 'api.EXAMPLE', { host: 'api.example', port: 80 }, '/'],
      ['http://api.example', 'api.example:80', { host: 'api.example', port: 80 }, ''],
      ['http://api.example.:8080/', 'api.example:8080', { host: 'api.example', port: 8080 }, '/'],
      ['http://[::1]/', '[0:0::1]', { host: '::1', port: 80 }, '/'],
      ['http://[::FFFF:127.0.0.1]:81/', '[::ffff:7f00:1]:81', { host: '::ffff:7f00:1', port: 81 }, '/'],
      ['http://10.0.0.1/', '10.0.0.1', { host: '10.0.0.1', port: 80 }, '/'],
      ['http://a_b.c-d/', 'a_b.c-d', { host: 'a_b.c-d', port: 80 }, '/'],
    ] as const) {
      const target = read('GET', url, host);
      assert.deepEqual(
        [target.form, target.tls, target.authority, target.path],
        [FORM_ABSOLUTE, false, expected, path],
        url,
      );
    }
    const secure = read('GET', 'https://api.example/a', 'api.example:443');
    assert.deepEqual([secure.tls, secure.authority], [true, { host: 'api.example', port: 443 }]);
    assert.equal(read('GET', 'http://a/').authority.host, 'a');
  });

  it('is refused as a URL that Host disagrees with', () => {
    refuses('GET', 'http://evil.example/', 'api.example');
    refuses('GET', 'http://api.example/', 'api.example:8080');
    refuses('GET', 'http://api.example:81/', 'api.example');
    refuses('GET', 'https://api.example/', 'api.example:80');
    refuses('GET', 'http://api.example/', 'api.example.evil');
    refuses('GET', 'http://127.0.0.1/', 'localhost');
    refuses('GET', 'http://a/', '127.1');
  });

  it('is refused as a URL that can be read in two ways', () => {
    for (const url of [
      'http://user@api.example/',
      'http://user:password@api.example/',
      'http://api.example@evil.example/',
      'http://api%2eexample/',
      'http://api.example%00.evil.example/',
      'http://api.example:/',
      'http://api.example:80:80/',
      'http://api.example:99999/',
      'http://api.example:+80/',
      'http://api..example/',
      'http://.api.example/',
      'http://api.example../',
      'http://-a/',
      'http:///a',
      'http://',
      'http://?a',
      'http://a?b',
      'http:/a',
      'http:a',
      'http:///evil.example/',
      'ftp://a/',
      'httpx://a/',
      'file:///etc/passwd',
      'javascript:alert(1)',
      'api.example/a',
      'a',
      '?a',
      '*a',
      'http://127.1/',
      'http://2130706433/',
      'http://0x7f000001/',
      'http://0x7f.1/',
      'http://0177.0.0.1/',
      'http://127.0.0.256/',
      'http://127.0.0.1.2/',
      'http://1.2.3.4.5/',
      'http://a.1/',
      'http://[::1/',
      'http://[1::2::3]/',
      'http://[::1%25lo]/',
      'http://[v1.x]/',
      `http://${'a'.repeat(64)}.example/`,
      `http://${'a.'.repeat(140)}example/`,
    ])
      refuses('GET', url, 'api.example');
  });

  it('is host and port for CONNECT, and only for it', () => {
    const { form, authority } = read('CONNECT', 'API.example:443', 'api.example:443');
    assert.deepEqual([form, authority], [FORM_AUTHORITY, { host: 'api.example', port: 443 }]);
    assert.deepEqual(read('CONNECT', '[::1]:8443', '[::1]:8443').authority, { host: '::1', port: 8443 });
    assert.equal(read('CONNECT', 'api.example:443', 'api.example').authority.port, 443);
    for (const text of [
      'api.example',
      'api.example:0',
      '/a',
      'http://api.example:443/',
      '*',
      'u@a:443',
      '127.1:443',
      'a:443/',
    ])
      refuses('CONNECT', text, 'api.example');
    refuses('CONNECT', 'api.example:443', 'evil.example:443');
    refuses('GET', 'api.example:443', 'api.example:443');
  });

  it('is * for OPTIONS only', () => {
    assert.equal(read('OPTIONS', '*', 'a').form, FORM_ASTERISK);
    refuses('GET', '*', 'a');
    refuses('OPTIONS', '**', 'a');
  });
});

describe('a host', () => {
  it('has one spelling', () => {
    for (const [given, normal] of [
      ['API.Example.', 'api.example'],
      ['[0:0:0::1]', '::1'],
      ['FE80::1', 'fe80::1'],
      ['::ffff:10.0.0.1', '::ffff:a00:1'],
      ['xn--bcher-kva.example', 'xn--bcher-kva.example'],
      ['1.example', '1.example'],
      ['10.0.0.1', '10.0.0.1'],
    ] as const)
      assert.equal(normalHost(given), normal);
    for (const bad of [
      '',
      '.',
      'a..b',
      'a b',
      'bücher.example',
      '010.0.0.1',
      '1',
      '0x1',
      'a/b',
      ':',
      '[::g]',
      'a*',
    ])
      assert.equal(normalHost(bad), undefined, bad);
    assert.deepEqual(parseAuthority('A.b:1', 80), { host: 'a.b', port: 1 });
    assert.equal(parseAuthority('a.b:1:2', 80), undefined);
  });

  it('that a client may name is a loopback one, or one of the list, with whatever port', () => {
    const hosts = new Hosts(['Postern.', '10.1.2.3']);
    const allows = (text: string) => hosts.allows(Buffer.from(`x${text}x`), 1, 1 + text.length);
    for (const good of [
      'localhost',
      'LOCALHOST:8080',
      '127.0.0.1:1',
      '127.9.9.9',
      '[::1]:8080',
      'a.localhost',
      'postern',
      'POSTERN:80',
      '10.1.2.3',
    ])
      for (let twice = 0; twice < 2; twice++) assert.ok(allows(good), good);
    for (const bad of [
      'evil.example',
      'localhost.evil.example',
      '127.0.0.1.evil.example',
      '10.1.2.4',
      '127.1',
      'localhos',
      'a b',
      '',
      'postern.evil',
      '[::2]',
    ])
      for (let twice = 0; twice < 2; twice++) assert.equal(allows(bad), false, bad);
  });
});
