import assert from 'node:assert/strict';
import { it } from 'node:test';

import { open, texts } from './opening.ts';

it('the provider "literal" gives the reference itself', async () => {
  assert.deepEqual(await texts(open('literal'), 'db.internal', '', 'pässword'), [
    'db.internal',
    '',
    'pässword',
  ]);
});
