import assert from 'node:assert/strict';
import { it } from 'node:test';
import fc from 'fast-check';

import { formOf } from '../../src/providers/form-bytes.ts';

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
