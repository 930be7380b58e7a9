import assert from 'node:assert/strict';
import { it } from 'node:test';
import fc from 'fast-check';

import { Needle } from '../../../src/connectors/http/needle.ts';

it('finds what Buffer.includes finds, and nothing else, in heads of every length', () => {
  const letters = fc.array(fc.constantFrom(0x61, 0x62, 0x63, 0x00, 0xff), { maxLength: 300 });
  const hay = fc
    .tuple(letters, fc.constantFrom(0, 1500))
    .map(([some, more]) => [...Buffer.alloc(more, 'ab'), ...some]);
  const needle = fc.array(fc.constantFrom(0x61, 0x62, 0x63, 0x00, 0xff), { minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(hay, needle, fc.nat(20), fc.nat(20), (some, value, before, behind) => {
      const bytes = Buffer.from(some);
      const from = Math.min(before, bytes.length);
      const to = Math.max(from, bytes.length - behind);
      const sought = Buffer.from(value);
      using found = new Needle(sought);
      assert.equal(found.isIn(bytes, from, to), bytes.subarray(from, to).includes(sought));
    }),
  );
});

it('finds a value that is as long as the head, and none that is longer', () => {
  const value = Buffer.alloc(1000, 'a');
  using needle = new Needle(value);
  assert.equal(needle.isIn(value, 0, 1000), true);
  assert.equal(needle.isIn(value, 1, 1000), false);
  assert.equal(needle.isIn(value, 0, 0), false);
});

it('finds nothing once it is wiped, not even zeros', () => {
  const needle = new Needle(Buffer.from('a secret'));
  needle[Symbol.dispose]();
  assert.equal(needle.isIn(Buffer.from('it is a secret'), 0, 14), false);
  assert.equal(needle.isIn(Buffer.alloc(100), 0, 100), false);
  assert.equal(needle.isIn(Buffer.alloc(2000), 0, 2000), false);
});
