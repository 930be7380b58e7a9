import assert from 'node:assert/strict';

import { localityOfHost } from '../../src/connectors/http/addresses.ts';
import { Chunks } from '../../src/connectors/http/chunked.ts';
import { PathGlob } from '../../src/connectors/http/globs.ts';
import { GoRegExp, PatternError } from '../../src/connectors/http/go-regexp.ts';
import {
  BODY_CHUNKED,
  BODY_LENGTH,
  BODY_NONE,
  Head,
  INCOMPLETE,
  METHOD_CONNECT,
  parseRequest,
  parseResponse,
} from '../../src/connectors/http/head.ts';
import { requestNames, responseNames } from '../../src/connectors/http/names.ts';
import { isPlainPath, readPath } from '../../src/connectors/http/path.ts';
import { Allowance, allowRule } from '../../src/connectors/http/rules.ts';
import {
  FORM_ABSOLUTE,
  FORM_AUTHORITY,
  normalHost,
  readTarget,
  Target,
} from '../../src/connectors/http/target.ts';
import { knownMethods, type Read, readByLlhttp } from './llhttp.ts';
import type { FuzzTarget } from './targets.ts';

const MAX = 65536;
const owned = ['authorization', 'x-api-key'];
const requests = requestNames(owned);
const responses = responseNames();
const ofRequest = (bytes: Buffer, head: Head, to = bytes.length) =>
  parseRequest(bytes, 0, to, head, requests, MAX);
const ofResponse = (bytes: Buffer, head: Head, to = bytes.length) =>
  parseResponse(bytes, 0, to, head, responses, MAX);

/** Names that never go on, and of which each spelling counts. */
const never =
  /^(connection|keep-alive|proxy-connection|te|trailer|upgrade|http2-settings|proxy-authenticate|proxy-authorization|proxy-authentication-info|host)$/;

interface Message {
  readonly head: Head;
  /** Behind the whole message; undefined: it is not all there. */
  readonly end: number | undefined;
  readonly body: Buffer;
}

/** What Postern makes of the first message in `bytes`, or undefined where it refuses it or wants more of its head. */
function read(kind: 'request' | 'response', bytes: Buffer): Message | undefined {
  const head = new Head();
  const parse = kind === 'request' ? ofRequest : ofResponse;
  const end = parse(bytes, head);
  if (end < 0) assert.notEqual(head.reason, '');
  wholeOrInPieces(bytes, end, parse);
  if (end <= INCOMPLETE) return undefined;
  if (head.body === BODY_NONE || (kind === 'response' && bodiless(head.status)))
    return { head, end, body: Buffer.alloc(0) };
  if (head.body === BODY_LENGTH) {
    const to = end + head.length;
    return to > bytes.length
      ? { head, end: undefined, body: Buffer.alloc(0) }
      : { head, end: to, body: bytes.subarray(end, to) };
  }
  const chunks = new Chunks();
  chunks.reset(kind === 'request' ? requests : responses);
  const data: Buffer[] = [];
  const to = chunks.scan(bytes, end, bytes.length, {
    data: (part, from, until) => data.push(Buffer.from(part.subarray(from, until))),
  });
  if (chunks.bad) return undefined;
  return { head, end: chunks.done ? to : undefined, body: Buffer.concat(data) };
}

/** A head that ends at `end` is not there before, and a refusal stays one whatever comes behind it. */
function wholeOrInPieces(bytes: Buffer, end: number, parse: typeof ofRequest): void {
  const scratch = new Head();
  const last = end > 0 ? end : Math.min(bytes.length, 400);
  for (let to = Math.max(0, last - 80); to < last; to++) {
    const partial = parse(bytes, scratch, to);
    assert.ok(partial === INCOMPLETE || partial === end, `${partial} at ${to}, ${end} at the end`);
  }
}

function bodiless(status: number): boolean {
  return status < 200 || status === 204 || status === 304;
}

/** The names and values of a head, in the simplest way. */
function fieldsOf(bytes: Buffer, head: Head): string[] {
  const lines = bytes.toString('latin1', head.lineEnd, head.end - 4).split('\r\n');
  if (head.lineEnd === head.end - 2) return [];
  return lines.flatMap((line) => {
    const colon = line.indexOf(':');
    return [line.slice(0, colon), line.slice(colon + 1).replace(/^[ \t]+|[ \t]+$/g, '')];
  });
}

/** A head without what is cut from it, as it would go on. */
function passedOn(bytes: Buffer, head: Head, host: string): Buffer {
  const parts = [bytes.subarray(head.methodAt, head.lineEnd), Buffer.from(host)];
  let at = head.lineEnd;
  for (let i = 0; i < head.cuts; i += 2) {
    assert.ok((head.cut[i] as number) >= at);
    parts.push(bytes.subarray(at, head.cut[i]));
    at = head.cut[i + 1] as number;
  }
  parts.push(bytes.subarray(at, head.end));
  return Buffer.concat(parts);
}

/** llhttp reads the same message in the same bytes, and none in one fewer. */
function sameMessage(kind: 'request' | 'response', bytes: Buffer, message: Message): Read | undefined {
  const { head, end, body } = message;
  if (end === undefined) {
    assert.equal(readByLlhttp(kind, bytes).complete, 0);
    return undefined;
  }
  const theirs = readByLlhttp(kind, bytes.subarray(0, end));
  // What it refuses and Postern does not: each a reason that is no difference in framing.
  if (theirs.error !== undefined) return undefined;
  assert.equal(theirs.complete, 1);
  assert.equal(readByLlhttp(kind, bytes.subarray(0, end - 1)).complete, 0);
  assert.equal(theirs.minor, head.minor);
  assert.deepEqual(theirs.fields, fieldsOf(bytes, head));
  assert.deepEqual(theirs.body, body);
  return theirs;
}

const text = (...inputs: string[]) => inputs.map((input) => Buffer.from(input, 'latin1'));

const requestSeeds = text(
  'GET /a?b=c HTTP/1.1\r\nHost: api.example:8080\r\nAccept: */*\r\n\r\n',
  'POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: keep-alive, x-a\r\nX-A: b\r\n\r\nhello',
  'POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n',
  'PUT / HTTP/1.0\r\nContent-Length: 2\r\nConnection: close\r\n\r\nokGET / HTTP/1.1\r\nHost: a\r\n\r\n',
  'GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n',
  '\r\nHEAD http://a.example/x HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer x\r\nX_Api_Key: y\r\n\r\n',
  'CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nProxy-Authorization: x\r\n\r\n',
  'OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nTE: trailers\r\nExpect: 100-continue\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n',
  'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
  'POST / HTTP/1.1\r\nHost: a\r\nX: \t y \t\r\nEmpty:\r\nTransfer-Encoding:\tChunked \r\n\r\n0\r\n\r\nGET',
  `GET / HTTP/1.1\r\nHost: a\r\n${Array.from({ length: 40 }, (_, i) => `X-${i}: ${i}\r\n`).join('')}\r\n`,
  'GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n',
);

const responseSeeds = text(
  'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nhello',
  'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n',
  'HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n',
  'HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n',
  'HTTP/1.1 304 \r\nContent-Length: 10\r\nETag: "x"\r\n\r\n',
  'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n',
  'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
  'HTTP/1.1 200\r\nContent-Length: 0012\r\nConnection: Transfer-Encoding, x-a\r\nX-A: y\r\n\r\nhello, world',
  'HTTP/1.1 200 \xe9\r\nX: \xff\t\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n',
);

const allowance = new Allowance([allowRule.parse('/ok/**')]);

/** What reads the bytes of HTTP clients and servers, and what decides by them. */
export const httpTargets: readonly FuzzTarget[] = [
  {
    /** Every request that Postern accepts is the same one to llhttp, before and after Postern has taken it apart. */
    name: 'http-requests',
    seedInputs: requestSeeds,
    run(bytes) {
      const message = read('request', bytes);
      if (!message) return;
      const { head, end } = message;
      const method = bytes.toString('latin1', head.methodAt, head.methodEnd);
      const target = bytes.toString('latin1', head.targetAt, head.targetEnd);
      if (!knownMethods.has(method)) return;
      const theirs = sameMessage('request', bytes, message);
      if (theirs && !theirs.upgrade) {
        assert.equal(theirs.method, method);
        assert.equal(theirs.target, target);
      }
      if (end === undefined || head.method === METHOD_CONNECT) return;
      const on = Buffer.concat([passedOn(bytes, head, 'Host: upstream\r\n'), bytes.subarray(head.end, end)]);
      const again = readByLlhttp('request', on);
      if (theirs) assert.equal(again.error, undefined);
      if (again.error !== undefined) return;
      assert.equal(again.complete, 1);
      assert.deepEqual(again.body, message.body);
      assert.equal(again.upgrade, false);
      const names = again.fields.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
      assert.deepEqual(
        names.filter((name) => name === 'host'),
        ['host'],
      );
      for (const name of names.slice(1)) {
        assert.ok(!never.test(name) && !owned.includes(name.replaceAll('_', '-')), name);
        assert.ok(
          !/^(content[^a-z0-9]length|transfer[^a-z0-9]encoding)$/.test(name) || name.includes('-'),
          name,
        );
      }
      assert.ok(names.filter((name) => /^(content-length|transfer-encoding)$/.test(name)).length <= 1);
      assert.equal(head.body === BODY_CHUNKED, names.includes('transfer-encoding'));
    },
  },
  {
    name: 'http-responses',
    seedInputs: responseSeeds,
    run(bytes) {
      const message = read('response', bytes);
      if (!message) return;
      const { head } = message;
      assert.ok(head.status >= 100 && head.status <= 599);
      // Where there is no length it goes on until the connection ends; 101 is the end of HTTP.
      if (head.status === 101 || (head.body === BODY_NONE && !bodiless(head.status))) return;
      // A body that may not be: the plane refuses the response, or knows that there is none.
      if (bodiless(head.status) && head.body !== BODY_NONE) return;
      const theirs = sameMessage('response', bytes, message);
      if (theirs) assert.equal(theirs.status, head.status);
    },
  },
  {
    /** The first byte says where the body is cut in two. */
    name: 'http-chunks',
    seedInputs: text(
      '\x035\r\nhello\r\n0\r\n\r\n',
      '\x09A\r\n0123456789\r\n0\r\nX: y\r\nZ: 1\r\n\r\nGET',
      '\x05ffffffff\r\nx',
      '\x02 5;a=b\r\n',
    ),
    run(bytes) {
      const cut = 1 + Math.min(bytes[0] ?? 0, Math.max(0, bytes.length - 1));
      const scan = (...pieces: readonly number[]) => {
        const chunks = new Chunks();
        chunks.reset(requests);
        const data: Buffer[] = [];
        const passed: Buffer[] = [];
        let from = 1;
        for (const to of pieces) {
          if (to < from || chunks.done || chunks.bad) continue;
          const end = chunks.scan(bytes, from, to, {
            data: (part, begin, until) => data.push(part.subarray(begin, until)),
          });
          assert.ok(chunks.pass >= from && chunks.pass <= end);
          passed.push(bytes.subarray(from, chunks.pass));
          from = end;
        }
        return {
          reason: chunks.reason,
          end: chunks.done ? from : -1,
          data: Buffer.concat(data),
          passed: Buffer.concat(passed),
        };
      };
      assert.deepEqual(scan(cut, bytes.length), scan(bytes.length));
    },
  },
  {
    name: 'http-paths',
    seedInputs: text(
      '/ok/x',
      '/ok/../x',
      '/ok/%2e%2e/x',
      '/ok//a;b/%2f%25',
      '/caf%C3%A9/.well-known',
      '/a/b/?c=../',
    ),
    run(bytes) {
      const { readings, reason } = readPath(bytes, 0, bytes.length);
      assert.equal(reason === undefined, readings !== undefined);
      if (isPlainPath(bytes, 0, bytes.length))
        assert.deepEqual(readings, [bytes.toString('latin1', 1).split('/')]);
      for (const each of readings?.slice(1) ?? [])
        assert.ok(!each.some((segment) => segment === '..' || segment === '.'));
      // What a server that decodes, resolves and merges would find is where the rule said.
      const line = Buffer.concat([Buffer.from('GET '), bytes, Buffer.from(' HTTP/1.0\r\n\r\n')]);
      const head = new Head();
      if (ofRequest(line, head) !== line.length) return;
      allowance.check(line, head, head.targetAt);
      const path = line.toString('latin1', head.targetAt, head.targetEnd).replace(/\?.*$/s, '');
      for (const server of servers) assert.match(server(path), /^\/ok(\/|$)/, path);
    },
  },
  {
    name: 'http-targets',
    seedInputs: text(
      'http://api.example:80/a?b',
      'https://[::1]:443',
      'api.example:443',
      '/a',
      '*',
      'http://127.0.0.1.:8080/',
      'http://0x7f.1/',
    ),
    run(bytes) {
      for (const method of ['GET', 'CONNECT']) {
        const line = Buffer.concat([Buffer.from(`${method} `), bytes, Buffer.from(' HTTP/1.0\r\n\r\n')]);
        const head = new Head();
        if (ofRequest(line, head) !== line.length) continue;
        const target = new Target();
        readTarget(line, head, target);
        const { form, authority, tls } = target;
        if (form !== FORM_ABSOLUTE && form !== FORM_AUTHORITY) continue;
        assert.equal(normalHost(authority.host), authority.host);
        assert.ok(authority.port >= 0 && authority.port <= 65535);
        localityOfHost(authority.host);
        if (form === FORM_AUTHORITY) continue;
        // Node's URL means the same server.
        const url = new URL(line.toString('latin1', head.targetAt, head.targetEnd));
        assert.equal(normalHost(url.hostname), authority.host);
        assert.equal(url.username + url.password, '');
        assert.equal(Number(url.port || (tls ? 443 : 80)), authority.port);
      }
    },
  },
  {
    /** A pattern, a line break, and a text to match. */
    name: 'http-patterns',
    seedInputs: text(
      '^http://api\\.\nhttp://api.x/',
      '(?i)[a-f\\d]{2,3}(b|c)*?$\nxabbb',
      '/a/**/b*\n/a/x/bc',
      '[[:alpha:]]\\pL\\Q.\\E\\x41\naa.A',
    ),
    run(bytes) {
      const [pattern = '', subject = ''] = bytes.toString('latin1').split('\n', 2);
      if (PathGlob.problem(pattern) === undefined) new PathGlob(pattern).test(subject.slice(1).split('/'));
      try {
        new GoRegExp(pattern.slice(0, 200)).test(subject.slice(0, 200));
      } catch (thrown) {
        if (!(thrown instanceof PatternError)) throw thrown;
      }
    },
  },
];

/** How real servers make a path of what they get, each in its own way. */
const servers: readonly ((path: string) => string)[] = [
  // as it is written
  (path) => path,
  // nginx: decode, merge slashes, resolve dots
  (path) => resolved(lenient(path).replace(/\/{2,}/g, '/')),
  // RFC 3986: resolve, then decode
  (path) => lenient(resolved(path)),
  // Tomcat: parameters off, decode, resolve
  (path) => resolved(lenient(path.replace(/;[^/]*/g, '')).replace(/\/{2,}/g, '/')),
  // IIS: decode, backslashes are slashes, resolve
  (path) => resolved(lenient(path).replaceAll('\\', '/')),
  // twice decoded
  (path) => resolved(lenient(lenient(path))),
];

function lenient(path: string): string {
  return path.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}

function resolved(path: string): string {
  const out: string[] = [];
  for (const segment of path.split('/').slice(1)) {
    if (segment === '..') out.pop();
    else if (segment !== '.') out.push(segment);
  }
  return `/${out.join('/')}`;
}
