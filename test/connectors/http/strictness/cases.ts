// What strict servers are asked. Statuses are those that Postern answers with; `passes` is what its upstream has to get.

/** One case: bytes of a client, and what has to become of them. */
export interface Case {
  readonly name: string;
  readonly bytes: string;
  /** Refused with one of these, and no complete request of it reaches the upstream. */
  readonly refused?: number | readonly number[];
  /** Goes upstream: what its head begins with or contains, and its body. */
  readonly passes?: {
    readonly head?: readonly string[];
    readonly without?: readonly string[];
    readonly body?: string;
    /** The connection ends behind it. */
    readonly closes?: true;
  };
}

const H = 'Host: localhost\r\n';
const post = (fields: string, body = '') => `POST / HTTP/1.1\r\n${H}${fields}\r\n${body}`;
const get = (fields: string) => `GET / HTTP/1.1\r\n${H}${fields}\r\n`;
const chunked = (body: string) => post('Transfer-Encoding: chunked\r\n', body);
const smuggled = `GET /smuggled HTTP/1.1\r\n${H}\r\n`;
const clTe = (cl: (length: number) => string, te: string) => {
  const body = `0\r\n\r\n${smuggled}`;
  return post(`Content-Length: ${cl(body.length)}\r\n${te}`, body);
};

/**
 * The cases of Http11Probe (github.com/MDA2AV/Http11Probe) for malformed input, smuggling and compliance, rebuilt: those that
 * it scores, with the verdict that it calls a pass. Left out is what only an origin can do (Date, Allow, 405, 415,
 * ranges, cookies).
 */
export const http11Probe: readonly Case[] = [
  { name: 'RFC9112-2.2-BARE-LF-REQUEST-LINE', bytes: `GET / HTTP/1.1\n${H}\r\n`, refused: 400 },
  {
    name: 'RFC9112-2.2-BARE-LF-HEADER',
    bytes: `GET / HTTP/1.1\r\nHost: localhost\nX-Test: value\r\n\r\n`,
    refused: 400,
  },
  { name: 'RFC9112-5.1-OBS-FOLD', bytes: get('X-Test: value\r\n continued\r\n'), refused: 400 },
  { name: 'RFC9110-5.6.2-SP-BEFORE-COLON', bytes: get('X-Test : value\r\n'), refused: 400 },
  { name: 'RFC9112-3-MULTI-SP-REQUEST-LINE', bytes: `GET  / HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'RFC9112-7.1-MISSING-HOST', bytes: 'GET / HTTP/1.1\r\n\r\n', refused: 400 },
  { name: 'RFC9112-2.3-INVALID-VERSION', bytes: `GET / HTTP/9.9\r\n${H}\r\n`, refused: 505 },
  { name: 'RFC9112-5-EMPTY-HEADER-NAME', bytes: get(': empty-name\r\n'), refused: 400 },
  { name: 'RFC9112-3-CR-ONLY-LINE-ENDING', bytes: `GET / HTTP/1.1\r${H}\r\n`, refused: 400 },
  { name: 'RFC9112-3-MISSING-TARGET', bytes: `GET HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'RFC9112-3.2-FRAGMENT-IN-TARGET', bytes: `GET /path#frag HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'RFC9112-2.3-HTTP09-REQUEST', bytes: 'GET /\r\n', refused: 400 },
  { name: 'RFC9112-5-INVALID-HEADER-NAME', bytes: get('Bad[Name: value\r\n'), refused: 400 },
  { name: 'RFC9112-5-HEADER-NO-COLON', bytes: get('NoColonHere\r\n'), refused: 400 },
  { name: 'RFC9110-5.4-DUPLICATE-HOST', bytes: get('Host: other.example.com\r\n'), refused: 400 },
  { name: 'RFC9112-6.1-CL-NON-NUMERIC', bytes: post('Content-Length: abc\r\n'), refused: 400 },
  { name: 'RFC9112-6.1-CL-PLUS-SIGN', bytes: post('Content-Length: +5\r\n', 'hello'), refused: 400 },
  { name: 'COMP-WHITESPACE-BEFORE-HEADERS', bytes: `GET / HTTP/1.1\r\n \r\n${H}\r\n`, refused: 400 },
  { name: 'COMP-DUPLICATE-HOST-SAME', bytes: get(H), refused: 400 },
  { name: 'COMP-HOST-WITH-USERINFO', bytes: 'GET / HTTP/1.1\r\nHost: user@localhost\r\n\r\n', refused: 400 },
  { name: 'COMP-HOST-WITH-PATH', bytes: 'GET / HTTP/1.1\r\nHost: localhost/path\r\n\r\n', refused: 400 },
  { name: 'COMP-HOST-EMPTY-VALUE', bytes: 'GET / HTTP/1.1\r\nHost: \r\n\r\n', refused: 400 },
  { name: 'COMP-ASTERISK-WITH-GET', bytes: `GET * HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  {
    name: 'COMP-OPTIONS-STAR',
    bytes: `OPTIONS * HTTP/1.1\r\n${H}\r\n`,
    passes: { head: ['OPTIONS * HTTP/1.1\r\n'] },
  },
  { name: 'COMP-UNKNOWN-TE-501', bytes: post('Transfer-Encoding: gzip\r\n'), refused: 501 },
  { name: 'COMP-LEADING-CRLF', bytes: `\r\n\r\n${get('')}`, refused: 400 },
  { name: 'COMP-POST-CL-BODY', bytes: post('Content-Length: 5\r\n', 'hello'), passes: { body: 'hello' } },
  { name: 'COMP-POST-CL-ZERO', bytes: post('Content-Length: 0\r\n'), passes: { body: '' } },
  { name: 'COMP-POST-NO-CL-NO-TE', bytes: post(''), passes: { body: '' } },
  {
    name: 'COMP-CHUNKED-BODY',
    bytes: chunked('5\r\nhello\r\n0\r\n\r\n'),
    passes: { body: '5\r\nhello\r\n0\r\n\r\n' },
  },
  {
    name: 'COMP-CHUNKED-MULTI',
    bytes: chunked('5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n'),
    passes: { body: '5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n' },
  },
  { name: 'COMP-CHUNKED-EMPTY', bytes: chunked('0\r\n\r\n'), passes: { body: '0\r\n\r\n' } },
  {
    name: 'COMP-CHUNKED-TRAILER-VALID',
    bytes: chunked('5\r\nhello\r\n0\r\nX-Checksum: abc\r\n\r\n'),
    passes: { body: '5\r\nhello\r\n0\r\n\r\n' },
  },
  {
    name: 'COMP-CHUNKED-HEX-UPPERCASE',
    bytes: chunked('A\r\nhelloworld\r\n0\r\n\r\n'),
    passes: { body: 'A\r\nhelloworld\r\n0\r\n\r\n' },
  },
  {
    name: 'COMP-UPGRADE-POST',
    bytes: post('Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n'),
    passes: { without: ['Upgrade'] },
  },
  {
    name: 'COMP-UPGRADE-MISSING-CONN',
    bytes: get('Upgrade: websocket\r\n'),
    passes: { without: ['Upgrade'] },
  },
  {
    name: 'COMP-UPGRADE-UNKNOWN',
    bytes: get('Connection: Upgrade\r\nUpgrade: totally-made-up/1.0\r\n'),
    passes: { without: ['Upgrade', 'made-up'] },
  },
  {
    name: 'COMP-METHOD-CONNECT',
    bytes: 'CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n',
    refused: [400, 405, 501],
  },
  { name: 'COMP-METHOD-TRACE', bytes: `TRACE / HTTP/1.1\r\n${H}\r\n`, refused: [405, 501] },
  {
    name: 'COMP-TRACE-WITH-BODY',
    bytes: `TRACE / HTTP/1.1\r\n${H}Content-Length: 5\r\n\r\nhello`,
    refused: [405, 501],
  },
  { name: 'COMP-EXPECT-UNKNOWN', bytes: get('Expect: 200-ok\r\n'), refused: 417 },
  { name: 'COMP-REQUEST-LINE-TAB', bytes: `GET\t/ HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'COMP-VERSION-MISSING-MINOR', bytes: `GET / HTTP/1\r\n${H}\r\n`, refused: 400 },
  { name: 'COMP-VERSION-LEADING-ZEROS', bytes: `GET / HTTP/01.01\r\n${H}\r\n`, refused: 400 },
  { name: 'COMP-VERSION-WHITESPACE', bytes: `GET / HTTP/ 1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'COMP-VERSION-CASE', bytes: `GET / http/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'COMP-HTTP12-VERSION', bytes: `GET / HTTP/1.2\r\n${H}\r\n`, refused: 505 },
  { name: 'COMP-LONG-URL-OK', bytes: `GET /${'a'.repeat(7900)} HTTP/1.1\r\n${H}\r\n`, passes: {} },
  { name: 'COMP-SPACE-IN-TARGET', bytes: `GET /pa th HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  {
    name: 'COMP-UPGRADE-HTTP10',
    bytes: `GET / HTTP/1.0\r\n${H}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n`,
    passes: { without: ['Upgrade'], closes: true },
  },
  { name: 'MAL-LONG-URL', bytes: `GET /${'A'.repeat(100_000)} HTTP/1.1\r\n${H}\r\n`, refused: 414 },
  { name: 'MAL-LONG-HEADER-VALUE', bytes: get(`X-Big: ${'B'.repeat(100_000)}\r\n`), refused: 431 },
  { name: 'MAL-LONG-HEADER-NAME', bytes: get(`${'A'.repeat(100_000)}: val\r\n`), refused: 431 },
  {
    name: 'MAL-MANY-HEADERS',
    bytes: get(Array.from({ length: 10_000 }, (_, i) => `X-H-${i}: value\r\n`).join('')),
    refused: 431,
  },
  { name: 'MAL-LONG-METHOD', bytes: `${'A'.repeat(100_000)} / HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'MAL-NUL-IN-URL', bytes: `GET /\0test HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'MAL-CONTROL-CHARS-HEADER', bytes: get('X-Test: abc\x07\x08\x0bdef\r\n'), refused: 400 },
  { name: 'MAL-NON-ASCII-HEADER-NAME', bytes: get('X-T\xc3\xabst: value\r\n'), refused: 400 },
  { name: 'MAL-NON-ASCII-URL', bytes: `GET /caf\xc3\xa9 HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'MAL-CL-OVERFLOW', bytes: post('Content-Length: 99999999999999999999\r\n'), refused: 400 },
  { name: 'MAL-WHITESPACE-ONLY-LINE', bytes: '   \r\n\r\n', refused: 400 },
  { name: 'MAL-BINARY-GARBAGE', bytes: '\xd1\x9c\x01\x02\x7f\xfe\x80\0\x11\x16\x03\x01', refused: 400 },
  {
    name: 'SMUG-CL-TE-BOTH',
    bytes: post('Content-Length: 23\r\nTransfer-Encoding: chunked\r\n', 'D\r\nhello-bananas\r\n0\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-DUPLICATE-CL',
    bytes: post('Content-Length: 5\r\nContent-Length: 10\r\n', 'helloworld'),
    refused: 400,
  },
  { name: 'SMUG-CL-LEADING-ZEROS', bytes: post('Content-Length: 005\r\n', 'hello'), refused: 400 },
  {
    name: 'SMUG-CL-LEADING-ZEROS-OCTAL',
    bytes: post('Content-Length: 0200\r\n', 'A'.repeat(200)),
    refused: 400,
  },
  { name: 'SMUG-CL-DOUBLE-ZERO', bytes: post('Content-Length: 00\r\n'), refused: 400 },
  { name: 'SMUG-CL-NEGATIVE', bytes: post('Content-Length: -1\r\n'), refused: 400 },
  { name: 'SMUG-CL-NEGATIVE-ZERO', bytes: post('Content-Length: -0\r\n'), refused: 400 },
  { name: 'SMUG-CL-UNDERSCORE', bytes: post('Content-Length: 1_0\r\n', 'helloworld'), refused: 400 },
  { name: 'SMUG-CL-OCTAL', bytes: post('Content-Length: 0o5\r\n', 'hello'), refused: 400 },
  { name: 'SMUG-CL-HEX-PREFIX', bytes: post('Content-Length: 0x5\r\n', 'hello'), refused: 400 },
  { name: 'SMUG-CL-INTERNAL-SPACE', bytes: post('Content-Length: 1 0\r\n', 'hello12345'), refused: 400 },
  { name: 'SMUG-CL-COMMA-DIFFERENT', bytes: post('Content-Length: 5, 10\r\n', 'hello'), refused: 400 },
  { name: 'SMUG-CL-COMMA-SAME', bytes: post('Content-Length: 5, 5\r\n', 'hello'), refused: 400 },
  { name: 'SMUG-CL-COMMA-TRIPLE', bytes: post('Content-Length: 5, 5, 5\r\n', 'hello'), refused: 400 },
  {
    name: 'SMUG-TE-XCHUNKED',
    bytes: post('Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: [400, 501],
  },
  {
    name: 'SMUG-TE-TRAILING-SPACE',
    bytes: post('Transfer-Encoding: chunked \r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-SP-BEFORE-COLON',
    bytes: post('Transfer-Encoding : chunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-DOUBLE-CHUNKED',
    bytes: post('Transfer-Encoding: chunked, chunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-CASE-MISMATCH',
    bytes: post('Transfer-Encoding: Chunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-NOT-FINAL-CHUNKED',
    bytes: post('Transfer-Encoding: chunked, gzip\r\n', '0\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-HTTP10',
    bytes: `POST / HTTP/1.0\r\n${H}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
    refused: 400,
  },
  {
    name: 'SMUG-TE-EMPTY-VALUE',
    bytes: post('Transfer-Encoding: \r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-LEADING-COMMA',
    bytes: post('Transfer-Encoding: , chunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-TRAILING-COMMA',
    bytes: post('Transfer-Encoding: chunked,\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-DUPLICATE-HEADERS',
    bytes: post(
      'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n',
      'hello',
    ),
    refused: 400,
  },
  {
    name: 'SMUG-TE-VTAB',
    bytes: post('Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-FORMFEED',
    bytes: post('Transfer-Encoding: \x0cchunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-NULL',
    bytes: post('Transfer-Encoding: chunked\0\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-IDENTITY',
    bytes: post('Transfer-Encoding: identity\r\nContent-Length: 5\r\n', 'hello'),
    refused: [400, 501],
  },
  {
    name: 'SMUG-TE-OBS-FOLD',
    bytes: post('Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-TAB-BEFORE-VALUE',
    bytes: post('Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-TRANSFER_ENCODING',
    bytes: post('Transfer_Encoding: chunked\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  {
    name: 'SMUG-CHUNKED-WITH-PARAMS',
    bytes: post('Transfer-Encoding: chunked;ext=val\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  { name: 'SMUG-CHUNK-BARE-SEMICOLON', bytes: chunked('5;\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-EXT-INVALID-TOKEN', bytes: chunked('5;bad[=x\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-EXT-LF', bytes: chunked('5;\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-EXT-CTRL', bytes: chunked('5;\0ext\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-EXT-CR', bytes: chunked('5;a\rX\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-UNDERSCORE', bytes: chunked('1_0\r\nhello world!!!!!\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-HEX-PREFIX', bytes: chunked('0x5\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-SIZE-PLUS', bytes: chunked('+5\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-SIZE-TRAILING-OWS', bytes: chunked('5 \r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-LEADING-SP', bytes: chunked(' 5\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-MISSING-TRAILING-CRLF', bytes: chunked('5\r\nhello0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-SPILL', bytes: chunked('5\r\nhello!!\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-LF-TERM', bytes: chunked('5\r\nhello\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-LF-TRAILER', bytes: chunked('5\r\nhello\r\n0\r\n\n'), refused: 400 },
  { name: 'SMUG-CHUNK-NEGATIVE', bytes: chunked('-1\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'SMUG-CHUNK-BARE-CR-TERM', bytes: chunked('5\rhello\r\n0\r\n\r\n'), refused: 400 },
  {
    name: 'SMUG-BARE-CR-HEADER-VALUE',
    bytes: post('Content-Length: 5\r\nX-Test: val\rue\r\n', 'hello'),
    refused: 400,
  },
  { name: 'SMUG-TRAILER-CL', bytes: chunked('5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n'), refused: 400 },
  {
    name: 'SMUG-TRAILER-TE',
    bytes: chunked('5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-TRAILER-HOST',
    bytes: chunked('5\r\nhello\r\n0\r\nHost: evil.example.com\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-TRAILER-AUTH',
    bytes: chunked('5\r\nhello\r\n0\r\nAuthorization: Bearer evil\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-TRAILER-CONTENT-TYPE',
    bytes: chunked('5\r\nhello\r\n0\r\nContent-Type: text/evil\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-MULTIPLE-HOST-COMMA',
    bytes: 'GET / HTTP/1.1\r\nHost: localhost, other.example.com\r\n\r\n',
    refused: 400,
  },
  {
    name: 'SMUG-ABSOLUTE-URI-HOST-MISMATCH',
    bytes: `GET http://other.example.com/ HTTP/1.1\r\n${H}\r\n`,
    refused: 400,
  },
  {
    name: 'SMUG-EXPECT-100-CL',
    bytes: post('Content-Length: 5\r\nExpect: 100-continue\r\n', 'hello'),
    passes: { body: 'hello' },
  },
  {
    name: 'SMUG-CLTE-CONN-CLOSE',
    bytes: post('Content-Length: 5\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-TECL-CONN-CLOSE',
    bytes: post('Transfer-Encoding: chunked\r\nContent-Length: 5\r\n', '0\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-CLTE-DESYNC',
    bytes: post('Content-Length: 6\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\nX'),
    refused: 400,
  },
  {
    name: 'SMUG-CLTE-PIPELINE',
    bytes: post('Content-Length: 4\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-TECL-PIPELINE',
    bytes: post('Transfer-Encoding: chunked\r\nContent-Length: 30\r\n', '0\r\n\r\n'),
    refused: 400,
  },
  { name: 'SMUG-CLTE-SMUGGLED-GET', bytes: clTe(String, 'Transfer-Encoding: chunked\r\n'), refused: 400 },
  {
    name: 'SMUG-CLTE-SMUGGLED-GET-CL-PLUS',
    bytes: clTe((n) => `+${n}`, 'Transfer-Encoding: chunked\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-CLTE-SMUGGLED-GET-CL-NON-NUMERIC',
    bytes: clTe((n) => `${n}x`, 'Transfer-Encoding: chunked\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-CLTE-SMUGGLED-GET-TE-OBS-FOLD',
    bytes: clTe(String, 'Transfer-Encoding:\r\n chunked\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-CLTE-SMUGGLED-GET-TE-TRAILING-SPACE',
    bytes: clTe(String, 'Transfer-Encoding: chunked \r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-CLTE-SMUGGLED-GET-TE-LEADING-COMMA',
    bytes: clTe(String, 'Transfer-Encoding: , chunked\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-CLTE-SMUGGLED-GET-TE-CASE-MISMATCH',
    bytes: clTe(String, 'Transfer-Encoding: Chunked\r\n'),
    refused: 400,
  },
  {
    name: 'SMUG-TE-DUPLICATE-HEADERS-SMUGGLED-GET',
    bytes: post(
      `Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 40\r\n`,
      `0\r\n\r\n${smuggled}`,
    ),
    refused: 400,
  },
  {
    name: 'SMUG-TECL-SMUGGLED-GET',
    bytes: post(
      'Transfer-Encoding: chunked\r\nContent-Length: 4\r\n',
      `${smuggled.length.toString(16)}\r\n${smuggled}\r\n0\r\n\r\n`,
    ),
    refused: 400,
  },
  {
    name: 'SMUG-DUPLICATE-CL-SMUGGLED-GET',
    bytes: post(`Content-Length: 4\r\nContent-Length: ${4 + smuggled.length}\r\n`, `PING${smuggled}`),
    refused: 400,
  },
  {
    name: 'SMUG-GET-CL-PREFIX-DESYNC',
    bytes: get(`Content-Length: ${smuggled.length}\r\n`) + smuggled,
    passes: { body: smuggled },
  },
  {
    name: 'SMUG-HEAD-CL-BODY',
    bytes: `HEAD / HTTP/1.1\r\n${H}Content-Length: 5\r\n\r\nhello`,
    passes: { body: 'hello' },
  },
  {
    name: 'SMUG-OPTIONS-CL-BODY',
    bytes: `OPTIONS / HTTP/1.1\r\n${H}Content-Length: 5\r\n\r\nhello`,
    passes: { body: 'hello' },
  },
];

/** Beginnings of requests, which get no answer: the cases of h1spec (github.com/uNetworking/h1spec) with fragments. */
export const h1specFragments: readonly string[] = [
  'G',
  'GET ',
  'GET /hello',
  'GET /hello ',
  'GET /hello HTTP',
  'GET /hello HTTP/1.1',
  'GET /hello HTTP/1.1\r',
  'GET /hello HTTP/1.1\r\n',
  'GET /hello HTTP/1.1\r\nHos',
  'GET /hello HTTP/1.1\r\nHost:',
  'GET /hello HTTP/1.1\r\nHost: ',
  'GET /hello HTTP/1.1\r\nHost: localhost',
  'GET /hello HTTP/1.1\r\nHost: localhost\r',
  'GET /hello HTTP/1.1\r\nHost: localhost\r\n',
  'GET /hello HTTP/1.1\r\nHost: localhost\r\n\r',
];

/** The others of h1spec. */
export const h1spec: readonly Case[] = [
  { name: 'request without a version', bytes: 'GET / \r\n\r\n', refused: 400 },
  {
    name: 'request with Expect',
    bytes: get('Expect: 100-continue\r\n'),
    passes: { head: ['Expect: 100-continue\r\n'] },
  },
  { name: 'GET', bytes: get(''), passes: {} },
  {
    name: 'GET with edge cases',
    bytes: 'GET / HTTP/1.1\r\nhoSt:\tlocalhost\r\nempty:\r\n\r\n',
    passes: { head: ['empty:\r\n'] },
  },
  { name: 'invalid characters in a name', bytes: get('X-Invalid[]: test\r\n'), refused: 400 },
  { name: 'no Host', bytes: 'GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n', refused: 400 },
  { name: 'two Hosts', bytes: get('Host: example.org\r\n'), refused: 400 },
  {
    name: 'Content-Length below zero, overflowing',
    bytes: get('Content-Length: -123456789123456789123456789\r\n'),
    refused: 400,
  },
  { name: 'Content-Length below zero', bytes: get('Content-Length: -1234\r\n'), refused: 400 },
  { name: 'Content-Length that is no number', bytes: get('Content-Length: abc\r\n'), refused: 400 },
  { name: 'empty value', bytes: get('X-Empty-Header: \r\n'), passes: { head: ['X-Empty-Header: \r\n'] } },
  { name: 'control character in a value', bytes: get('X-Bad-Control-Char: test\x07\r\n'), refused: 400 },
  { name: 'version 9.9', bytes: `GET / HTTP/9.9\r\n${H}\r\n`, refused: 505 },
  { name: 'something in front of the request', bytes: `Extra lineGET / HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'CR in place of CRLF', bytes: `GET / HTTP/1.1\r\n${H}\rSome-Header: Test\r\n\r\n`, refused: 400 },
  { name: 'POST with a body', bytes: post('Content-Length: 5\r\n', 'hello'), passes: { body: 'hello' } },
  {
    name: 'Transfer-Encoding and Content-Length',
    bytes: get('Transfer-Encoding: chunked\r\nContent-Length: 5\r\n'),
    refused: 400,
  },
  {
    name: 'Transfer-Encoding and Content-Length, the other way',
    bytes: get('Content-Length: 5\r\nTransfer-Encoding: chunked\r\n'),
    refused: 400,
  },
];

const field = (name: string, value: string) => `${name}: ${value}\r\n`;
const request = (method: string, fields: string, version = 'HTTP/1.1') =>
  `${method} /foo/bar ${version}\r\n${H}${fields}\r\n`;

/** Requests that http-desync-guardian (github.com/aws/http-desync-guardian) calls severe or ambiguous. All are refused. */
export const desyncGuardian: readonly Case[] = (
  [
    ['two lengths', field('Content-Length', '1000') + field('Content-Length', '100')],
    ['twice the same length', field('Content-Length', '1000') + field('Content-Length', '1000')],
    ['length with a comma', field('Content-Length', '1000,1000')],
    ['length with a space', field('Content-Length', '1000 1000')],
    ['length with a dot', field('Content-Length', '1000.1000')],
    ['length beyond 64 bits', field('Content-Length', '18446744073709551616')],
    ['length with 0x11', field('Content-Length', '1000\x11')],
    ['length with a dollar', field('Content-Length', '$9000')],
    ['xchunked', field('Transfer-Encoding', 'xchunked')],
    ['chunked with 0x11', field('Transfer-Encoding', 'chunked\x11')],
    ['chunked with 0x7f', field('Transfer-Encoding', 'chunked\x7f')],
    ['chunked with 0x80', field('Transfer-Encoding', 'chunked\x80')],
    ['chunked in two fields', field('Transfer-Encoding', 'chunked') + field('Transfer-Encoding', 'chunked')],
    ['chunked,chunked', field('Transfer-Encoding', 'chunked,chunked')],
    ['chunked and a length', field('Transfer-Encoding', 'chunked') + field('Content-Length', '100')],
    ['gzip and a length', field('Transfer-Encoding', 'gzip') + field('Content-Length', '100')],
    ['folded', `${field('Content-Length', '1000')}X: Multi-line\r\n are deprecated\r\n`],
    ['folded with LF', `${field('Content-Length', '1000')}X: Multi-line\n are deprecated\r\n`],
    ['CR in a value', field('X', 'value\rcontent-length: 1000') + field('Content-Length', '100')],
    ['LF in a value', field('X', 'value\n content-length: 1000') + field('Content-Length', '100')],
    ['NUL in a value', field('X', 'value\0content-length: 1000')],
    ['NUL before a value', field('X', '\0value')],
    ['NUL behind a value', field('X', 'value\0')],
    ['CR in a name', field('Some-Bad-Header\r', '1000')],
    ['LF in a name', field('Some-Bad-Header\n', 'Content-Length:1000')],
    ['NUL in a name', field('Some-Bad-Header\0', '1000')],
    ['NUL at the start of a line', field('\0Some-Bad-Header', 'value')],
    ['name ends with a space', field('x-my-custom-header ', 'some value')],
    ['0x01 in a name', field('\x01x-my-custom-header', 'some value')],
    ['length[space] and length', field('Content-Length ', '100') + field('Content-Length', '1000')],
    ['[space]length and length', field('Content-Length', '100') + field(' Content-Length', '1000')],
    ['TE[space]', field('Transfer-Encoding ', 'chunked')],
    ['TE[tab]', field('Transfer-Encoding\t', 'chunked')],
    ['[0x01]TE', field('\x01Transfer-Encoding', 'chunked')],
    ['[0x01][0x01]TE', field('\x01\x01Transfer-Encoding', 'chunked')],
    ['[0x01]length', field('\x01Content-Length', '1')],
    ['TE with a space in it', field('Transfer- Encoding', 'chunked')],
    ['TE with an underscore', field('Transfer_Encoding', 'chunked')],
    ['length with an underscore', field('Content_Length', '1000')],
    ['TE[space] and length', field('Transfer-Encoding ', 'chunked') + field('Content-Length', '1000')],
    ['[space]TE and length', field(' Transfer-Encoding', 'chunked') + field('Content-Length', '1000')],
    ['TE x', field('Transfer-Encoding x', 'chunked')],
    ['TE XY', field('transfer-encoding XY', 'chunked')],
    ['TE 0x01', field('Transfer-Encoding \x01', 'chunked')],
    ['empty name', field('', 'chunked') + field('Content-Length', '1000')],
    ['name that begins with a colon', field(':SomeHeader:Transfer-Encoding:', 'chunked')],
    ['name of spaces', field('   \t\t  ', 'chunked')],
    ['TE with a long s', field('Tran\xc5\xbffer-Encoding', 'chunked')],
    ['TE with a dotless i', field('Transfer-Encod\xc4\xb1ng', 'chunked')],
    ['TE behind a UTF-8 space', field('\xe2\x80\x83Transfer-Encoding', 'chunked')],
    ['length before a UTF-8 space', field('Content-Length\xe2\x80\x83', '1000')],
    ['TE with a UTF-8 dash', field('Transfer\xe2\x80\x95Encoding', 'chunked')],
    ['TE with 0x88', field('Transfer-Encoding\x88', 'chunked')],
    ['length behind 0xa0', field('\xa0Content-Length', '100')],
    ['0x12 in one value and 0x11 in the next', field('X', 'x\x12') + field('Content-Length', '1000\x11')],
  ] as const
)
  .map(([name, fields]): Case => ({ name, bytes: request('POST', fields), refused: [400, 501] }))
  .concat([
    { name: 'bad method', bytes: request('bad_method\x01', ''), refused: 400 },
    { name: 'bad target', bytes: `POST /foo/bar\t/baz HTTP/1.1\r\n${H}\r\n`, refused: 400 },
    {
      name: 'TE for HTTP/1.0',
      bytes: request('POST', field('Transfer-Encoding', 'chunked'), 'HTTP/1.0'),
      refused: 400,
    },
    {
      name: 'TE for HTTP/0.9',
      bytes: request('POST', field('Transfer-Encoding', 'chunked'), 'HTTP/0.9'),
      refused: 505,
    },
    {
      name: 'length for HTTP/0.9',
      bytes: request('POST', field('Content-Length', '100'), 'HTTP/0.9'),
      refused: 505,
    },
    { name: 'no version', bytes: `POST /foo/bar\r\n${H}\r\n`, refused: 400 },
    { name: 'version 1.2', bytes: request('GET', '', 'HTTP/1.2'), refused: 505 },
    // Never framing, under any reading that a server is known for: passed on as they are.
    {
      name: 'TE with many hyphens',
      bytes: request('POST', field('Transfer---Encoding', 'chunked')),
      passes: {},
    },
    {
      name: 'TE with many underscores',
      bytes: request('POST', field('Transfer___Encoding', 'chunked')),
      passes: {},
    },
    // Bodies where some servers read none: passed on, and the connection is not used again.
    {
      name: 'GET with a body',
      bytes: request('GET', field('Content-Length', '5')) + 'hello',
      passes: { body: 'hello' },
    },
    {
      name: 'GET with a chunked body',
      bytes: `${request('GET', field('Transfer-Encoding', 'chunked'))}5\r\nhello\r\n0\r\n\r\n`,
      passes: { body: '5\r\nhello\r\n0\r\n\r\n' },
    },
    {
      name: 'HEAD with a body',
      bytes: request('HEAD', field('Content-Length', '5')) + 'hello',
      passes: { body: 'hello' },
    },
    { name: 'GET with length 0', bytes: request('GET', field('Content-Length', '0')), passes: {} },
    { name: 'HEAD with length 0', bytes: request('HEAD', field('Content-Length', '0')), passes: {} },
  ]);

/** The table of cases that proxies were compared with (see docs/decisions on why Postern has a parser of its own). */
export const smuggling: readonly Case[] = [
  {
    name: 'CL + TE',
    bytes: post('Content-Length: 5\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
    refused: 400,
  },
  {
    name: 'TE gzip, chunked',
    bytes: post('Transfer-Encoding: gzip, chunked\r\n', '0\r\n\r\n'),
    refused: 501,
  },
  { name: 'size of 9 digits', bytes: chunked('000000005\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'chunk extension', bytes: chunked('5;a=b\r\nhello\r\n0\r\n\r\n'), refused: 400 },
  { name: 'trailer that is no field', bytes: chunked('5\r\nhello\r\n0\r\nno field\r\n\r\n'), refused: 400 },
  { name: 'trailer with a folded line', bytes: chunked('0\r\nX: a\r\n b\r\n\r\n'), refused: 400 },
  {
    name: 'a URL for the target, with the Host of the listener',
    bytes: `GET http://localhost/a HTTP/1.1\r\n${H}\r\n`,
    passes: { head: ['GET /a HTTP/1.1\r\n'] },
  },
  {
    name: 'a URL of another server',
    bytes: 'GET http://evil.example/a HTTP/1.1\r\nHost: evil.example\r\n\r\n',
    refused: 421,
  },
  {
    name: 'a URL of another server, without Host',
    bytes: 'GET http://evil.example/a HTTP/1.0\r\n\r\n',
    refused: 421,
  },
  { name: 'a Host of another server', bytes: 'GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n', refused: 421 },
  {
    name: 'Connection: close, authorization',
    bytes: get('Connection: close, authorization\r\n'),
    refused: 400,
  },
  {
    name: 'Connection: content-length',
    bytes: post('Connection: content-length\r\nContent-Length: 5\r\n', 'hello'),
    refused: 400,
  },
  { name: 'Connection: host', bytes: get('Connection: host\r\n'), refused: 400 },
  {
    name: 'Connection: x-secret',
    bytes: get('X-Secret: 1\r\nConnection: x-secret\r\nX-Kept: 1\r\n'),
    passes: { head: ['X-Kept: 1\r\n'], without: ['X-Secret', 'Connection'] },
  },
  {
    name: "the client's own Authorization, in many spellings",
    bytes: get('Authorization: a\r\nAUTHORIZATION: b\r\nauthorization: c\r\nX-Kept: 1\r\n'),
    passes: { head: ['X-Kept: 1\r\n'], without: ['AUTHORIZATION', 'authorization:', 'Authorization: a'] },
  },
  {
    name: 'h2c',
    bytes: get('Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n'),
    passes: { without: ['Upgrade', 'HTTP2', 'h2c', 'Connection'] },
  },
  { name: 'HTTP/2 preface', bytes: 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', refused: 505 },
  {
    name: 'fields of the hop',
    bytes: get(
      'Keep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: x\r\nProxy-Connection: x\r\nTrailer: x\r\n',
    ),
    passes: { without: ['Keep-Alive', 'TE:', 'Proxy', 'Trailer'] },
  },
  ...['/a b', '/a\\b', '/a\x80', '/a\x7f', '/a"', '/a<', '/a>'].map(
    (target): Case => ({
      name: `target ${JSON.stringify(target)}`,
      bytes: `GET ${target} HTTP/1.1\r\n${H}\r\n`,
      refused: 400,
    }),
  ),
  { name: 'method that is nearly HEAD', bytes: `head / HTTP/1.1\r\n${H}\r\n`, refused: 400 },
  { name: 'method that is nearly TRACE', bytes: `tRaCe / HTTP/1.1\r\n${H}\r\n`, refused: 405 },
];

/** A response of the upstream, and what its client has to get. */
export interface ResponseCase {
  readonly name: string;
  readonly method?: string;
  readonly bytes: string;
  /** The origin closes behind it. */
  readonly closes?: true;
  /** 502: the client is told so. */
  readonly refused?: 502;
  /** The response breaks off behind its head: the client's connection is reset. */
  readonly broken?: true;
  /** What the client gets. */
  readonly passes?: string;
  /** Whether the connection to the origin may be used again. */
  readonly reused?: boolean;
}

const ok = (fields: string, body = '') => `HTTP/1.1 200 OK\r\n${fields}\r\n${body}`;

/** Responses, good and bad. What is bad in a head is a 502, what is bad behind it breaks the connection. */
export const responses: readonly ResponseCase[] = [
  {
    name: 'with a length',
    bytes: ok('Content-Length: 2\r\n', 'ok'),
    passes: ok('Content-Length: 2\r\n', 'ok'),
    reused: true,
  },
  {
    name: 'chunked',
    bytes: ok('Transfer-Encoding: chunked\r\n', '2\r\nok\r\n0\r\n\r\n'),
    passes: ok('Transfer-Encoding: chunked\r\n', '2\r\nok\r\n0\r\n\r\n'),
    reused: true,
  },
  {
    name: 'chunked with a trailer',
    bytes: ok('Transfer-Encoding: chunked\r\n', '2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n'),
    passes: ok('Transfer-Encoding: chunked\r\n', '2\r\nok\r\n0\r\n\r\n'),
    reused: true,
  },
  {
    name: 'until the end',
    bytes: ok('', 'ok'),
    closes: true,
    passes: ok('Connection: close\r\n', 'ok'),
    reused: false,
  },
  {
    name: 'with fields of the hop',
    bytes: ok('Connection: x-a\r\nX-A: 1\r\nKeep-Alive: 5\r\nContent-Length: 0\r\nX-B: 1\r\n'),
    passes: ok('Content-Length: 0\r\nX-B: 1\r\n'),
    reused: true,
  },
  {
    name: 'with Connection: close',
    bytes: ok('Connection: close\r\nContent-Length: 2\r\n', 'ok'),
    passes: ok('Content-Length: 2\r\n', 'ok'),
    reused: false,
  },
  {
    name: 'of HTTP/1.0',
    bytes: 'HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok',
    passes: ok('Content-Length: 2\r\n', 'ok'),
    reused: false,
  },
  {
    name: '204',
    bytes: 'HTTP/1.1 204 No Content\r\n\r\n',
    passes: 'HTTP/1.1 204 No Content\r\n\r\n',
    reused: true,
  },
  {
    name: '304 with a length',
    bytes: 'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n',
    passes: 'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n',
    reused: true,
  },
  {
    name: 'to HEAD',
    method: 'HEAD',
    bytes: ok('Content-Length: 5\r\n'),
    passes: ok('Content-Length: 5\r\n'),
    reused: true,
  },
  {
    name: 'behind 100 and 103',
    bytes: `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n${ok('Content-Length: 0\r\n')}`,
    passes: `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n${ok('Content-Length: 0\r\n')}`,
    reused: true,
  },
  {
    name: 'with bytes behind it',
    bytes: `${ok('Content-Length: 2\r\n', 'ok')}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison`,
    passes: ok('Content-Length: 2\r\n', 'ok'),
    reused: false,
  },
  {
    name: 'to HEAD with a body',
    method: 'HEAD',
    bytes: ok('Content-Length: 2\r\n', 'ok'),
    passes: ok('Content-Length: 2\r\n'),
    reused: false,
  },
  {
    name: '304 with a body',
    bytes: 'HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok',
    passes: 'HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n',
    reused: false,
  },
  {
    name: 'CL + TE',
    bytes: ok('Content-Length: 2\r\nTransfer-Encoding: chunked\r\n', '0\r\n\r\n'),
    refused: 502,
  },
  { name: 'two lengths', bytes: ok('Content-Length: 2\r\nContent-Length: 3\r\n', 'ok'), refused: 502 },
  {
    name: 'twice the same length',
    bytes: ok('Content-Length: 2\r\nContent-Length: 2\r\n', 'ok'),
    refused: 502,
  },
  { name: 'length below zero', bytes: ok('Content-Length: -2\r\n', 'ok'), refused: 502 },
  { name: 'gzip, chunked', bytes: ok('Transfer-Encoding: gzip, chunked\r\n', '0\r\n\r\n'), refused: 502 },
  {
    name: 'TE in HTTP/1.0',
    bytes: 'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    refused: 502,
  },
  { name: 'Content_Length', bytes: ok('Content_Length: 2\r\n', 'ok'), refused: 502 },
  { name: 'bare LF', bytes: 'HTTP/1.1 200 OK\nContent-Length: 2\n\nok', refused: 502 },
  { name: 'bare LF in a field', bytes: 'HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok', refused: 502 },
  { name: 'a folded line', bytes: ok('X: a\r\n b\r\nContent-Length: 2\r\n', 'ok'), refused: 502 },
  { name: 'NUL in a value', bytes: ok('X: a\0b\r\nContent-Length: 2\r\n', 'ok'), refused: 502 },
  { name: 'CR in a value', bytes: ok('X: a\rb\r\nContent-Length: 2\r\n', 'ok'), refused: 502 },
  { name: 'space before the colon', bytes: ok('Content-Length : 2\r\n', 'ok'), refused: 502 },
  {
    name: '101 that nobody asked for',
    bytes: 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
    refused: 502,
  },
  { name: '1xx with a body', bytes: 'HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\nok', refused: 502 },
  { name: '204 with a body', bytes: 'HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok', refused: 502 },
  {
    name: '204 with chunks',
    bytes: 'HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    refused: 502,
  },
  { name: 'status 99', bytes: 'HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n', refused: 502 },
  { name: 'status of four digits', bytes: 'HTTP/1.1 2000 X\r\nContent-Length: 0\r\n\r\n', refused: 502 },
  { name: 'HTTP/2.0', bytes: 'HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n', refused: 502 },
  { name: 'HTTP/0.9', bytes: '<html>hello</html>', closes: true, refused: 502 },
  { name: 'another protocol', bytes: '220 smtp.example ESMTP\r\n', refused: 502 },
  { name: 'an empty line in front', bytes: `\r\n${ok('Content-Length: 0\r\n')}`, refused: 502 },
  {
    name: 'a head without end',
    bytes: ok(`X: ${'y'.repeat(70_000)}\r\nContent-Length: 0\r\n`),
    refused: 502,
  },
  { name: 'many fields', bytes: ok(`${'X: y\r\n'.repeat(129)}Content-Length: 0\r\n`), refused: 502 },
  { name: 'nothing', bytes: '', closes: true, refused: 502 },
  { name: 'half a head', bytes: 'HTTP/1.1 200 OK\r\nContent-Le', closes: true, refused: 502 },
  {
    name: 'a chunk extension',
    bytes: ok('Transfer-Encoding: chunked\r\n', '2;a=b\r\nok\r\n0\r\n\r\n'),
    broken: true,
  },
  {
    name: 'a chunk with bare LF',
    bytes: ok('Transfer-Encoding: chunked\r\n', '2\nok\r\n0\r\n\r\n'),
    broken: true,
  },
  {
    name: 'a chunk without CRLF',
    bytes: ok('Transfer-Encoding: chunked\r\n', '2\r\nok0\r\n\r\n'),
    broken: true,
  },
  {
    name: 'a trailer of framing',
    bytes: ok('Transfer-Encoding: chunked\r\n', '2\r\nok\r\n0\r\nContent-Length: 5\r\n\r\n'),
    broken: true,
  },
  { name: 'half a body', bytes: ok('Content-Length: 5\r\n', 'he'), closes: true, broken: true },
  {
    name: 'half a chunk',
    bytes: ok('Transfer-Encoding: chunked\r\n', '5\r\nhe'),
    closes: true,
    broken: true,
  },
  {
    name: 'chunks without the last',
    bytes: ok('Transfer-Encoding: chunked\r\n', '2\r\nok\r\n'),
    closes: true,
    broken: true,
  },
];
