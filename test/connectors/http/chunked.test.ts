import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { Chunks } from '../../../src/connectors/http/chunked.ts';
import { requestNames } from '../../../src/connectors/http/names.ts';

const names = requestNames(['x-api-key', 'authorization']);

interface Scanned {
  /** What may be passed on, with the empty line that closes a body without its trailers. */
  readonly passed: string;
  readonly data: string;
  readonly reason: string;
  readonly done: boolean;
  /** Bytes behind the body. */
  readonly surplus: string;
}

function scan(text: string, pieces: readonly number[] = []): Scanned {
  const chunks = new Chunks();
  chunks.reset(names);
  let passed = '';
  let data = '';
  const sink = {
    data(bytes: Buffer, from: number, to: number) {
      data += bytes.toString('latin1', from, to);
    },
  };
  const cuts = [...new Set([...pieces, text.length])].sort((a, b) => a - b);
  let from = 0;
  for (const to of cuts) {
    const bytes = Buffer.from(`;${text.slice(from, to)}`, 'latin1');
    const end = chunks.scan(bytes, 1, bytes.length, sink);
    passed += bytes.toString('latin1', 1, chunks.pass);
    if (chunks.bad) return { passed, data, reason: chunks.reason, done: false, surplus: '' };
    if (chunks.done) {
      if (chunks.closeLine) passed += '\r\n';
      const surplus = text.slice(from + end - 1);
      return { passed, data, reason: '', done: true, surplus };
    }
    assert.equal(end, bytes.length);
    from = to;
  }
  return { passed, data, reason: '', done: false, surplus: '' };
}

const everyByte = (text: string) => Array.from({ length: text.length }, (_, i) => i);

/** As a whole and one byte at a time. */
function both(text: string): Scanned {
  const whole = scan(text);
  assert.deepEqual(scan(text, everyByte(text)), whole);
  return whole;
}

describe('a chunked body', () => {
  it('ends where its last chunk does', () => {
    const body = '5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n';
    assert.deepEqual(both(`${body}GET / HTTP/1.1`), {
      passed: body,
      data: 'hello0123456789',
      reason: '',
      done: true,
      surplus: 'GET / HTTP/1.1',
    });
  });

  it('may have sizes in both cases and with zeros in front, up to 8 digits', () => {
    const body = '0000000a\r\n0123456789\r\n0B\r\n0123456789a\r\n00000000\r\n\r\n';
    assert.equal(both(body).passed, body);
  });

  it('is refused with a size that somebody reads otherwise', () => {
    for (const size of [
      '',
      ' 5',
      '5 ',
      '5;a=b',
      '5;',
      '5 ;a',
      '5\t',
      '+5',
      '-5',
      '0x5',
      '0X5',
      '5_',
      '5,5',
      '5.',
      'g',
      'G',
      '@',
      '`',
      '000000005',
      '100000005',
      'ffffffffffffffff5',
      '\x00005',
      '5\0',
      '\x0b5',
    ]) {
      const { reason, done } = both(`${size}\r\nhello\r\n0\r\n\r\n`);
      assert.notEqual(reason, '', JSON.stringify(size));
      assert.equal(done, false);
    }
  });

  it('is refused with line ends other than CRLF, in every place', () => {
    for (const body of [
      '5\nhello\r\n0\r\n\r\n',
      '5\rhello\r\n0\r\n\r\n',
      '5\r\r\nhello\r\n0\r\n\r\n',
      '5\r\nhello\n0\r\n\r\n',
      '5\r\nhello\r0\r\n\r\n',
      '5\r\nhello0\r\n\r\n',
      '5\r\nhelloXX0\r\n\r\n',
      '5\r\nhello!\r\n0\r\n\r\n',
      '5\r\nhell\r\n0\r\n\r\n',
      '0\n\r\n',
      '0\r\n\n',
      '0\r\n\rX',
      '0\r\nx: y\n\r\n',
      '0\r\nx: y\r\r\n\r\n',
      '0\r\nx: y\rz\r\n\r\n',
      '\r\n5\r\nhello\r\n0\r\n\r\n',
    ])
      assert.notEqual(both(body).reason, '', JSON.stringify(body));
  });

  it('passes on nothing behind a fault', () => {
    assert.equal(both('5\r\nhello\r\n5;x\r\nhello\r\n').passed, '5\r\nhello\r\n5');
    assert.equal(both('5\r\nhelloX').passed, '5\r\nhello');
  });

  it('loses its trailers', () => {
    const { passed, done, surplus } = both('5\r\nhello\r\n0\r\nX-Sum: abc\r\nY:\t\xe9\r\n\r\nnext');
    assert.equal(passed, '5\r\nhello\r\n0\r\n\r\n');
    assert.ok(done);
    assert.equal(surplus, 'next');
  });

  it('is refused with trailers that are no fields, or that may not be trailers', () => {
    for (const trailer of [
      'x',
      ': y',
      'x : y',
      ' x: y',
      '\tx: y',
      'x\0: y',
      'x(: y',
      'x: \0',
      'x: a\x1b',
      'Authorization: Bearer stolen',
      'authorization: x',
      'X_Api_Key: x',
      'Content-Length: 5',
      'content_length: 5',
      'Transfer-Encoding: chunked',
      'Host: evil.example',
      'Connection: close',
      'Trailer: x',
      'Expect: x',
      'Content-Type: x',
      'Set-Cookie: a=b',
      'X-Original-Url: /',
      `${'x'.repeat(129)}: y`,
      `x: ${'y'.repeat(8192)}`,
    ])
      assert.notEqual(both(`0\r\n${trailer}\r\n\r\n`).reason, '', trailer.slice(0, 40));
    const many = Array.from({ length: 1000 }, (_, i) => `x-${i}: yyyyyy\r\n`).join('');
    assert.match(both(`0\r\n${many}\r\n`).reason, /too many/);
  });

  it('is not done before its last byte', () => {
    const body = '5\r\nhello\r\n0\r\nx: y\r\n\r\n';
    for (let end = 0; end < body.length; end++) {
      const { done, reason } = scan(body.slice(0, end));
      assert.equal(done, false);
      assert.equal(reason, '');
    }
    assert.ok(scan(body).done);
  });

  it('gives back the data it was made of, in whatever pieces it comes', () => {
    const body = fc.array(fc.string({ unit: 'binary', minLength: 1, maxLength: 40 }), { maxLength: 8 });
    fc.assert(
      fc.property(body, fc.array(fc.nat(500)), (parts, cuts) => {
        const latin1 = parts.map((part) => Buffer.from(part).toString('latin1'));
        const text = `${latin1.map((part) => `${part.length.toString(16)}\r\n${part}\r\n`).join('')}0\r\n\r\n`;
        const pieces = cuts.filter((cut) => cut < text.length);
        assert.deepEqual(scan(text, pieces), {
          passed: text,
          data: latin1.join(''),
          reason: '',
          done: true,
          surplus: '',
        });
      }),
    );
  });

  it('begins anew after `reset`', () => {
    const chunks = new Chunks();
    const bad = Buffer.from('0\r\nx: y\r\nz\r\n');
    chunks.reset(names);
    chunks.scan(bad, 0, bad.length);
    assert.ok(chunks.bad && chunks.closeLine);
    chunks.reset(names);
    const good = Buffer.from('1\r\na\r\n0\r\n\r\n');
    assert.equal(chunks.scan(good, 0, good.length), good.length);
    assert.ok(chunks.done && !chunks.bad && !chunks.closeLine);
    assert.equal(chunks.pass, good.length);
  });
});
