import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { decodeBase64, encodeBase64 } from '../../src/providers/base64.ts';

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
