import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import {
  BODY_CHUNKED,
  BODY_LENGTH,
  BODY_NONE,
  Head,
  INCOMPLETE,
  METHOD_CONNECT,
  METHOD_GET,
  METHOD_HEAD,
  METHOD_OTHER,
  parseRequest,
  parseResponse,
} from '../../../src/connectors/http/head.ts';
import { requestNames, responseNames } from '../../../src/connectors/http/names.ts';

const MAX = 65536;
const requests = requestNames(['authorization', 'x-api-key']);
const responses = responseNames();

/** Parses, and sees that every shorter beginning asks for more or comes to the same refusal. */
function parse(text: string, kind: 'request' | 'response' = 'request', max = MAX) {
  // In the middle of other bytes, as in a read buffer: nothing around it may matter.
  const bytes = Buffer.from(`\n: ${text}\r\nGET`, 'latin1');
  const from = 3;
  const to = from + text.length;
  const read = (end: number, head: Head) =>
    kind === 'request'
      ? parseRequest(bytes, from, end, head, requests, max)
      : parseResponse(bytes, from, end, head, responses, max);
  const head = new Head();
  const result = read(to, head);
  for (let end = from; end < to; end++) {
    const partial = read(end, new Head());
    if (partial !== INCOMPLETE) assert.equal(partial, result, `cut at ${end - from}`);
  }
  const slice = (a: number, b: number) => bytes.toString('latin1', a, b);
  let passed = '';
  let at = head.lineEnd;
  for (let i = 0; i < head.cuts; i += 2) {
    assert.ok((head.cut[i] as number) >= at, 'cuts are in order');
    passed += slice(at, head.cut[i] as number);
    at = head.cut[i + 1] as number;
  }
  if (result > 0) passed += slice(at, head.end - 2);
  return { result, head, slice, passed, from };
}

const get = (...lines: string[]) => ['GET / HTTP/1.1', 'Host: a', ...lines, '', ''].join('\r\n');
const ok = (...lines: string[]) => ['HTTP/1.1 200 OK', ...lines, '', ''].join('\r\n');

function refuses(status: number, reason: RegExp, texts: readonly string[]): void {
  for (const text of texts) {
    const { result, head } = parse(text);
    assert.equal(result, -status, JSON.stringify(text));
    assert.match(head.reason, reason, JSON.stringify(text));
  }
}

describe('the head of a request', () => {
  it('is taken apart into ranges, without the lines about this hop', () => {
    const { result, head, slice, passed, from } = parse(
      'GET /a?b=c HTTP/1.1\r\nHost: api.example:8080 \r\nAccept: */*\r\nKeep-Alive: 5\r\nX: \ty \t\r\nTE: trailers\r\n\r\n',
    );
    assert.equal(result, head.end);
    assert.equal(slice(head.methodAt, head.methodEnd), 'GET');
    assert.equal(head.method, METHOD_GET);
    assert.equal(head.methodAt, from);
    assert.equal(slice(head.targetAt, head.targetEnd), '/a?b=c');
    assert.equal(slice(head.hostAt, head.hostEnd), 'api.example:8080');
    assert.equal(slice(head.lineEnd - 2, head.lineEnd), '\r\n');
    assert.equal(passed, 'Accept: */*\r\nX: \ty \t\r\n');
    assert.deepEqual([head.minor, head.body, head.length, head.close], [1, BODY_NONE, -1, false]);
  });

  it('may have one empty line in front, and no more', () => {
    const { result, head, slice } = parse(`\r\n${get()}`);
    assert.ok(result > 0);
    assert.equal(slice(head.methodAt, head.methodEnd), 'GET');
    refuses(400, /./, [`\r\n\r\n${get()}`, `\n${get()}`, `\r${get()}`]);
  });

  it('says how its body is framed', () => {
    const length = parse(get('Content-Length: 123')).head;
    assert.deepEqual([length.body, length.length], [BODY_LENGTH, 123]);
    const chunked = parse(get('transfer-encoding:ChUnKeD')).head;
    assert.deepEqual([chunked.body, chunked.length], [BODY_CHUNKED, -1]);
    assert.equal(parse(get('Content-Length: 999999999999999')).head.length, 999999999999999);
    assert.equal(parse(get('Content-Length: 0')).head.length, 0);
  });

  it('knows the methods that matter', () => {
    for (const [name, method] of [
      ['HEAD', METHOD_HEAD],
      ['CONNECT', METHOD_CONNECT],
      ['PROPFIND', METHOD_OTHER],
      ['get', METHOD_OTHER],
      ['M-SEARCH', METHOD_OTHER],
      ['patch', METHOD_OTHER],
    ] as const)
      assert.equal(parse(`${name} /x HTTP/1.1\r\nHost: a\r\n\r\n`).head.method, method, name);
  });

  it('is refused as a TRACE in every case of letters, since the answer would show the credential', () => {
    for (const method of ['TRACE', 'trace', 'Trace', 'TRACK', 'tracK'])
      refuses(405, /TRACE/, [`${method} / HTTP/1.1\r\nHost: a\r\n\r\n`]);
  });

  it('is refused where a server could take its method for HEAD or CONNECT and another would not', () => {
    for (const method of ['head', 'Head', 'hEAD', 'connect', 'Connect'])
      refuses(400, /method/, [`${method} / HTTP/1.1\r\nHost: a\r\n\r\n`]);
  });

  it('is refused with a malformed request line', () => {
    refuses(400, /./, [
      ' GET / HTTP/1.1\r\nHost: a\r\n\r\n',
      'GET  / HTTP/1.1\r\nHost: a\r\n\r\n',
      'GET / HTTP/1.1 \r\nHost: a\r\n\r\n',
      'GET /  HTTP/1.1\r\nHost: a\r\n\r\n',
      'GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n',
      'GET /\r\n',
      'GET /\tHTTP/1.1\r\nHost: a\r\n\r\n',
      'GET HTTP/1.1\r\nHost: a\r\n\r\n',
      'GET / http/1.1\r\nHost: a\r\n\r\n',
      'GET / HTTP/1.1\nHost: a\r\n\r\n',
      'GET / HTTP/1.1\rHost: a\r\n\r\n',
      'GET / HTTP/1,1\r\n\r\n',
      'GET / HTTP/1.01\r\n\r\n',
      'GET / HTTP/01.01\r\n\r\n',
      'GET / HTTP/2\r\n\r\n',
      'GET / HTTP/10.1\r\n\r\n',
      'GET / HTTP/11\r\n\r\n',
      'GET / HTTP/+1.1\r\n\r\n',
      'GET / XHTTP/1.1\r\n\r\n',
      'G\0T / HTTP/1.1\r\n\r\n',
      'G(T / HTTP/1.1\r\n\r\n',
      'GÉT / HTTP/1.1\r\n\r\n',
      '{"a":1}\r\n',
      '\x16\x03\x01\x02\x00\x01',
    ]);
  });

  it('is refused with a target in which servers disagree where it ends or what it is', () => {
    refuses(
      400,
      /malformed request (target|line)/,
      [
        '/a b',
        '/a#b',
        '/a\\b',
        '/a\0b',
        '/a\x7fb',
        '/a\x80b',
        '/\xc3\xa9',
        '/a"b',
        '/<a>',
        '/a\tb',
        '/a\rb',
        '/a\nb',
      ].map((target) => `GET ${target} HTTP/1.1\r\nHost: a\r\n\r\n`),
    );
  });

  it('may have in its target what browsers and fetch leave as it is', () => {
    for (const target of ["/a|b?q={x}&y=^`|[1]!$'()*+,;=:@-._~%20", '*', 'http://a/b', 'a:443'])
      assert.ok(parse(`GET ${target} HTTP/1.1\r\nHost: a\r\n\r\n`).result > 0, target);
  });

  it('is refused with other versions: 505 for one that is only not spoken here', () => {
    refuses(
      505,
      /HTTP/,
      ['HTTP/2.0', 'HTTP/0.9', 'HTTP/1.2', 'HTTP/1.9', 'HTTP/3.0'].map(
        (v) => `GET / ${v}\r\nHost: a\r\n\r\n`,
      ),
    );
    refuses(505, /HTTP/, ['PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n']);
    refuses(400, /./, ['GET / HTTP/a.1\r\n\r\n', 'GET / HTTP/1.x\r\n\r\n', 'GET / HTTP/1.:\r\n\r\n']);
  });

  it('has exactly one Host, which HTTP/1.0 may leave out', () => {
    refuses(400, /^no Host$/, ['GET / HTTP/1.1\r\n\r\n', 'GET / HTTP/1.1\r\nHosts: a\r\n\r\n']);
    refuses(400, /more than one Host/, [get('Host: a'), get('host: b')]);
    assert.ok(parse('GET / HTTP/1.0\r\n\r\n').result > 0);
    refuses(400, /Host/, ['GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n']);
  });

  it('has a Host that is a host and perhaps a port', () => {
    for (const host of [
      'a',
      'A.b-c_d',
      '127.0.0.1:80',
      '[::1]',
      '[::1]:8080',
      '[::ffff:1.2.3.4]:0',
      'a:65535',
      'a.',
    ])
      assert.ok(parse(`GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`).result > 0, host);
    refuses(
      400,
      /Host/,
      [
        '',
        ' ',
        'a b',
        'a,b',
        'u@a',
        'u:p@a',
        'a/b',
        'a?b',
        'a#b',
        'http://a',
        'a:',
        'a:x',
        'a:65536',
        'a:80:80',
        'a:+80',
        'a:000080',
        '[::1',
        '::1',
        '[]',
        '[::1]x',
        '[::1]:',
        '[::1%25eth0]',
        'a%2eb',
        'a\\b',
        'é',
        'a;b',
        '[a',
        '*',
      ].map((host) => `GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`),
    );
  });

  it('is refused where the length of its body could be read in two ways', () => {
    refuses(400, /Content-Length/, [
      get('Content-Length: 5', 'Content-Length: 5'),
      get('Content-Length: 5', 'Content-Length: 6'),
      get('Content-Length: 5, 5'),
      get('Content-Length: 5,6'),
      get('Content-Length: +5'),
      get('Content-Length: -5'),
      get('Content-Length: 0x5'),
      get('Content-Length: 5 5'),
      get('Content-Length: 05'),
      get('Content-Length: 5.0'),
      get('Content-Length: 1e1'),
      get('Content-Length: 1_000'),
      get('Content-Length: "5"'),
      get('Content-Length: 5;'),
      get('Content-Length:'),
      get('Content-Length: a'),
      get('Content-Length: \xb2'),
      get('Content-Length: 18446744073709551619'),
      get('Content-Length: 9999999999999999'),
      get('Content-Length: 5', 'Transfer-Encoding: chunked'),
      get('Transfer-Encoding: chunked', 'Content-Length: 5'),
    ]);
    refuses(400, /Transfer-Encoding/, [
      get('Transfer-Encoding: chunked', 'Transfer-Encoding: chunked'),
      get('Transfer-Encoding: chunked', 'Transfer-Encoding: identity'),
      get('Transfer-Encoding:'),
      get('Transfer-Encoding: chunked, chunked'),
      get('Transfer-Encoding: chunked, identity'),
      get('Transfer-Encoding: chunked, gzip, CHUNKED'),
      get('Transfer-Encoding: ,chunked'),
      get('Transfer-Encoding:', ' chunked'),
      get('Transfer-Encoding: chunked,'),
      get('Transfer-Encoding: "chunked"'),
      get('Transfer-Encoding: chunked;q=1'),
      get('Transfer-Encoding: chunk\xe9d'),
      'POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n',
    ]);
    refuses(501, /coding/, [
      get('Transfer-Encoding: gzip, chunked'),
      get('Transfer-Encoding: xchunked'),
      get('Transfer-Encoding: identity'),
    ]);
    refuses(400, /control character/, [
      get('Transfer-Encoding: \x0bchunked'),
      get('Transfer-Encoding: chunked\x0b'),
      get('Content-Length: 5\0'),
    ]);
  });

  it('is refused with anything but `name: value CRLF` for a field', () => {
    refuses(400, /field/, [
      get('Content-Length : 5'),
      get('Transfer-Encoding\t: chunked'),
      get('X Y: z'),
      get(': z'),
      get('X'),
      get(' X: folded'),
      get('X: a', '\tfolded'),
      get('X: a', ' Transfer-Encoding: chunked'),
      get('X\0: z'),
      get('X(: z'),
      get('"X": z'),
      get('X\x80: z'),
      get('X\xe9: z'),
      get('X: a\0b'),
      get('X: a\x01'),
      get('X: a\x7f'),
      get('X: a\x1bb'),
      get('X: a\nY: b'),
      `GET / HTTP/1.1\r\nHost: a\r\nX: a\n\r\n`,
      `GET / HTTP/1.1\r\n Host: a\r\n\r\n`,
      `GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n`,
      'GET / HTTP/1.1\r\nHost: a\r\n\n',
    ]);
    refuses(400, /CR without LF/, [get('X: a\rY: b'), 'GET / HTTP/1.1\r\nHost: a\r\n\rX', get('X: a\r')]);
    assert.ok(parse(get('X: \x80\xff\t"a"', 'Y:', 'Z:   ')).result > 0);
  });

  it('may not be longer than the bound, nor have more than 128 fields', () => {
    const fields = (n: number) => Array.from({ length: n }, (_, i) => `X-${i}: y`);
    assert.ok(parse(get(...fields(127))).result > 0);
    refuses(431, /too many/, [get(...fields(128))]);

    const exact = get('X: y');
    assert.ok(parse(exact, 'request', exact.length).result > 0);
    assert.equal(parse(exact, 'request', exact.length - 1).result, -431);
    const bound = (text: string) => parse(text, 'request', 100);
    assert.equal(bound(get(`X: ${'y'.repeat(100)}`)).result, -431);
    assert.equal(bound(get(`${'X'.repeat(100)}: y`)).result, -431);
    assert.equal(bound(`GET / HTTP/1.1\r\nX: ${'y'.repeat(100)}`).result, -431);
    assert.equal(bound(`GET /${'y'.repeat(100)}`).result, -414);
    assert.equal(bound(`GET /${'y'.repeat(100)} HTTP/1.1\r\nHost: a\r\n\r\n`).result, -414);
    refuses(400, /method too long/, [`${'A'.repeat(25)} / HTTP/1.1\r\nHost: a\r\n\r\n`, 'A'.repeat(25)]);
  });

  it('loses what the service adds, in every spelling that some server takes for it', () => {
    const { passed, result } = parse(
      get(
        'Authorization: a',
        'AUTHORIZATION: b',
        'authorization: c',
        'X-Api-Key: d',
        'X_Api_Key: e',
        'x_api-key: f',
        'X.API.KEY: g',
        'X-Api-Keys: kept',
        'Accept: kept',
      ),
    );
    assert.ok(result > 0);
    assert.equal(passed, 'X-Api-Keys: kept\r\nAccept: kept\r\n');
  });

  it('is refused with a field that folds into one of framing or routing', () => {
    for (const name of [
      'Content_Length',
      'Transfer_Encoding',
      'transfer.encoding',
      'Content~Length',
      'CONTENT_LENGTH',
    ])
      refuses(400, /read as another/, [get(`${name}: 5`)]);
  });

  it('is without the fields that `Connection` names, wherever they stand', () => {
    const { passed, result, head } = parse(
      get(
        'X-A: 1',
        'Connection: close, X-A ,x-b',
        'x_a: other',
        'X-B: 2',
        'X-C: 3',
        'connection:,,X-C,',
        'X-D: 4',
      ),
    );
    assert.ok(result > 0);
    assert.equal(passed, 'x_a: other\r\nX-D: 4\r\n');
    assert.ok(head.close);
  });

  it('is refused where `Connection` names what may not be taken away', () => {
    for (const name of [
      'host',
      'Content-Length',
      'transfer-encoding',
      'authorization',
      'Authorization',
      'x-api-key',
      'x_api_key',
      'content_length',
      'cookie',
      'content-type',
      'expect',
      'connection',
      'range',
    ])
      refuses(400, /Connection/, [
        get(`Connection: close, ${name}`),
        get(`Connection: ${name}`, `${name}: 5`),
      ]);
    refuses(400, /Connection/, [
      get('Connection: a b'),
      get('Connection: "close"'),
      get('Connection: a;b'),
      get('Connection: /'),
      get(`Connection: ${Array.from({ length: 17 }, (_, i) => `x-${i}`).join(',')}`),
    ]);
  });

  it('says whether the connection stays', () => {
    const options = (...lines: string[]) => {
      const { head } = parse(get(...lines));
      return [head.close, head.keepAlive];
    };
    assert.deepEqual(options(), [false, false]);
    assert.deepEqual(options('Connection: close'), [true, false]);
    assert.deepEqual(options('Connection: Keep-Alive'), [false, true]);
    assert.deepEqual(options('Connection: keep-alive', 'connection: CLOSE'), [true, true]);
    assert.deepEqual(options('Connection: closed, xclose'), [false, false]);
    assert.deepEqual(options('Connection:'), [false, false]);
  });

  it('asks for a WebSocket only with both fields, and never passes an upgrade on by itself', () => {
    const upgrade = (...lines: string[]) => {
      const { head, passed } = parse(get(...lines));
      assert.equal(passed, '');
      return head.upgrade;
    };
    assert.equal(upgrade('Connection: Upgrade', 'Upgrade: WebSocket'), true);
    assert.equal(upgrade('Connection: keep-alive, upgrade', 'Upgrade: websocket'), true);
    assert.equal(upgrade('Upgrade: websocket'), false);
    assert.equal(upgrade('Connection: Upgrade'), false);
    assert.equal(
      upgrade('Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABk'),
      false,
    );
    assert.equal(upgrade('Connection: Upgrade', 'Upgrade: websocket, h2c'), false);
    assert.equal(upgrade('Connection: Upgrade', 'Upgrade: TLS/1.0'), false);
    refuses(400, /Upgrade/, [get('Upgrade: websocket', 'Upgrade: h2c')]);
  });

  it('may expect 100-continue and nothing else', () => {
    const { head, passed } = parse(get('Expect: 100-Continue', 'Content-Length: 5'));
    assert.ok(head.expect);
    assert.match(passed, /Expect/);
    for (const expect of ['200-ok', '', '100-continue, x', '100-continue;a=b'])
      refuses(417, /expectation/, [get(`Expect: ${expect}`)]);
    refuses(417, /expectation/, [get('Expect: 100-continue', 'Expect: 100-continue')]);
    const old = parse('POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n');
    assert.equal(old.head.expect, false);
    assert.equal(old.passed, 'Content-Length: 1\r\n');
  });

  it('notes fields from which some servers take another path or method', () => {
    for (const name of ['X-Original-URL', 'x-rewrite-url', 'X-HTTP-Method-Override', 'X_HTTP_METHOD'])
      assert.ok(parse(get(`${name}: /admin`)).head.overrides, name);
    assert.equal(parse(get('X-Original: /admin')).head.overrides, false);
  });

  it('opens no tunnel with a body', () => {
    refuses(400, /CONNECT/, [
      'CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 5\r\n\r\n',
      'CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nTransfer-Encoding: chunked\r\n\r\n',
    ]);
    assert.ok(parse('CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n').result > 0);
  });

  it('leaves nothing of itself to the next one', () => {
    const head = new Head();
    const read = (text: string) => {
      const bytes = Buffer.from(text, 'latin1');
      return parseRequest(bytes, 0, bytes.length, head, requests, MAX);
    };
    read(
      get(
        'Connection: close, upgrade, x-a',
        'X-A: 1',
        'Upgrade: websocket',
        'Expect: 100-continue',
        'X-Rewrite-URL: /',
        'Content-Length: 5',
      ),
    );
    assert.ok(head.close && head.upgrade && head.expect && head.overrides);
    read('GET / HTTP/1.0\r\nX-A: 1\r\n\r\n');
    const fresh = new Head();
    const bytes = Buffer.from('GET / HTTP/1.0\r\nX-A: 1\r\n\r\n');
    parseRequest(bytes, 0, bytes.length, fresh, requests, MAX);
    const inForce = (each: Head) => ({
      ...Object.fromEntries(Object.entries(each)),
      cut: each.cut.subarray(0, each.cuts),
      nominated: each.nominated.subarray(0, each.nominations),
    });
    assert.deepEqual(inForce(head), inForce(fresh));
  });
});

describe('the head of a response', () => {
  const response = (text: string) => parse(text, 'response');

  it('is taken apart into ranges, without the lines about this hop', () => {
    const { head, passed, result } = response(
      ok(
        'Date: x',
        'Connection: keep-alive, X-Hop',
        'Keep-Alive: timeout=5',
        'Content-Length: 3',
        'X-Hop: 1',
        'Trailer: x',
      ),
    );
    assert.ok(result > 0);
    assert.deepEqual([head.status, head.minor, head.body, head.length], [200, 1, BODY_LENGTH, 3]);
    assert.equal(passed, 'Date: x\r\nContent-Length: 3\r\n');
  });

  it('may leave out the reason phrase and the space before it', () => {
    for (const line of ['HTTP/1.1 204', 'HTTP/1.1 204 ', 'HTTP/1.0 204 No Content', 'HTTP/1.1 204 \xe9\t!'])
      assert.equal(response(`${line}\r\n\r\n`).head.status, 204, line);
  });

  it('is refused in every way in which two readers could differ', () => {
    for (const text of [
      'HTTP/1.1 200 OK\n\n',
      'HTTP/1.1 200 OK\r\nX: a\n\r\n',
      'HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n',
      'HTTP/1.1 200 O\0K\r\n\r\n',
      'HTTP/1.1 200 OK\r\r\n\r\n',
      'HTTP/1.1 200OK\r\n\r\n',
      'HTTP/1.1 20 OK\r\n\r\n',
      'HTTP/1.1 2000 OK\r\n\r\n',
      'HTTP/1.1 600 OK\r\n\r\n',
      'HTTP/1.1 099 OK\r\n\r\n',
      'HTTP/1.1  200 OK\r\n\r\n',
      'HTTP/1.1 +20 OK\r\n\r\n',
      'HTTP/2.0 200 OK\r\n\r\n',
      'HTTP/1.2 200 OK\r\n\r\n',
      'http/1.1 200 OK\r\n\r\n',
      'ICY 200 OK\r\n\r\n',
      '<html>\r\n',
      '\r\nHTTP/1.1 200 OK\r\n\r\n',
      ok('Content-Length: 1', 'Content-Length: 1'),
      ok('Content-Length: 1, 1'),
      ok('Content-Length: -1'),
      ok('Content-Length: 1', 'Transfer-Encoding: chunked'),
      ok('Transfer-Encoding: gzip, chunked'),
      ok('Transfer-Encoding: identity'),
      ok('Transfer-Encoding: chunked', 'Transfer-Encoding: chunked'),
      'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n',
      ok('Content_Length: 5'),
      ok('Content-Length : 5'),
      ok('X: \0'),
      ok(': x'),
      ok(...Array.from({ length: 129 }, (_, i) => `X-${i}: y`)),
    ]) {
      const { result, head } = response(text);
      assert.equal(result, -502, JSON.stringify(text));
      assert.notEqual(head.reason, '');
    }
    assert.equal(parse(ok(`X: ${'y'.repeat(200)}`), 'response', 100).result, -502);
    assert.equal(parse(`HTTP/1.1 200 ${'y'.repeat(200)}`, 'response', 100).result, -502);
  });

  it('may have a length with zeros in front, as some servers write it', () => {
    assert.equal(response(ok('Content-Length: 0012')).head.length, 12);
  });

  it('keeps its framing where `Connection` names that: true, and of no use', () => {
    const { head, passed } = response(
      ok('Connection: Transfer-Encoding, keep-alive', 'Transfer-Encoding: chunked', 'Set-Cookie: a=b'),
    );
    assert.equal(head.body, BODY_CHUNKED);
    assert.equal(passed, 'Transfer-Encoding: chunked\r\nSet-Cookie: a=b\r\n');
  });

  it('agrees to a WebSocket only with both fields', () => {
    const upgraded = (...lines: string[]) =>
      response(['HTTP/1.1 101 Switching Protocols', ...lines, '', ''].join('\r\n')).head.upgrade;
    assert.equal(upgraded('Connection: upgrade', 'Upgrade: websocket'), true);
    assert.equal(upgraded('Connection: upgrade', 'Upgrade: h2c'), false);
    assert.equal(upgraded('Upgrade: websocket'), false);
  });
});
