import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import {
  decodeBase64,
  encodeBase64,
  formOf,
  percentEncode,
  percentEncodeText,
} from '../../src/core/bytes.ts';

const bytes = fc.uint8Array({ maxLength: 200 }).map((array) => Buffer.from(array));

describe('base64 of bytes', () => {
  it('is what Node makes of the same bytes, and is read back', () => {
    fc.assert(
      fc.property(bytes, (value) => {
        const encoded = encodeBase64(value);
        assert.equal(encoded.toString(), value.toString('base64'));
        assert.deepEqual(decodeBase64(encoded), value);
      }),
    );
  });

  it('is read in the url alphabet, without padding, and with its lines wrapped', () => {
    fc.assert(
      fc.property(bytes, (value) => {
        assert.deepEqual(decodeBase64(Buffer.from(value.toString('base64url'))), value);
        const wrapped = value.toString('base64').replace(/.{1,60}/g, '$&\n');
        assert.deepEqual(decodeBase64(Buffer.from(wrapped)), value);
        assert.deepEqual(decodeBase64(Buffer.from(wrapped.replaceAll('\n', '\r\n'))), value);
      }),
    );
  });

  for (const text of [
    'A',
    'AAAAA',
    'AB',
    'AAB',
    'AA=',
    'AAA==',
    'AAAA=',
    'AA==AA',
    'AA A',
    'AA!=',
    'Ä',
    '====',
  ])
    it(`refuses ${JSON.stringify(text)}`, () => {
      assert.equal(decodeBase64(Buffer.from(text, 'latin1')), undefined);
    });

  it('takes nothing for nothing', () => {
    assert.deepEqual(decodeBase64(Buffer.alloc(0)), Buffer.alloc(0));
    assert.deepEqual(encodeBase64(Buffer.alloc(0)), Buffer.alloc(0));
  });
});

describe('percent-encoding of bytes', () => {
  it('is read back as the bytes that they were, and is the same for a text of them', () => {
    fc.assert(
      fc.property(bytes, (value) => {
        const encoded = percentEncode(value).toString('latin1');
        const decoded = encoded.replaceAll(/%([0-9A-F]{2})/g, (_, hex: string) =>
          String.fromCodePoint(Number.parseInt(hex, 16)),
        );
        assert.equal(decoded, value.toString('latin1'));
        assert.equal(percentEncodeText(value.toString('latin1')), encoded);
      }),
    );
  });

  it('is what everybody makes of a text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), (text) => {
        const expected = encodeURIComponent(text).replaceAll(
          /[!'()*]/g,
          (letter) => `%${letter.codePointAt(0)?.toString(16).toUpperCase()}`,
        );
        assert.equal(percentEncode(Buffer.from(text)).toString(), expected);
        assert.equal(percentEncode(Buffer.from(text), '+').toString(), expected.replaceAll('%20', '+'));
      }),
    );
  });
});

it('a form made of bytes is read back as it was', () => {
  const text = fc.string({ unit: 'binary' });
  fc.assert(
    fc.property(fc.dictionary(fc.stringMatching(/^[a-z_]{1,8}$/), text), (members) => {
      const bytes = Object.fromEntries(
        Object.entries(members).map(([key, value]) => [key, Buffer.from(value)]),
      );
      const read = Object.fromEntries(new URLSearchParams(formOf(bytes).toString('latin1')));
      const wellFormed = Object.entries(members).map(([key, value]) => [key, value.toWellFormed()]);
      assert.deepEqual(read, Object.fromEntries(wellFormed));
      assert.deepEqual(formOf(members), formOf(bytes));
    }),
  );
});

it('no result lies on the heap of V8, where the collector copies what cannot be overwritten then', () => {
  // Node puts an array of at most 64 bytes into the object itself; such a one has no more room than its length.
  const short = Buffer.from('c4nary');
  const results = [
    encodeBase64(short),
    decodeBase64(encodeBase64(short)),
    percentEncode(short),
    formOf({ a: short }),
  ];
  for (const result of results) assert.ok((result?.buffer.byteLength ?? 0) > 64);
});
