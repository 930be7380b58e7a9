import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, it } from 'node:test';

import { Deadline } from '../../src/core/deadline.ts';

const late = () => new Error('late');

describe('a deadline', () => {
  it('aborts after its time with the error it was given', async () => {
    using deadline = new Deadline(20, late);
    assert.equal(deadline.signal.aborted, false);
    await once(deadline.signal, 'abort');
    assert.equal((deadline.signal.reason as Error).message, 'late');
  });

  it('aborts with its parent, also one that was aborted before', () => {
    const parent = new AbortController();
    using deadline = new Deadline(60_000, late, parent.signal);
    parent.abort(new Error('parent'));
    assert.equal((deadline.signal.reason as Error).message, 'parent');
    using second = new Deadline(60_000, late, parent.signal);
    assert.equal((second.signal.reason as Error).message, 'parent');
  });

  it('keeps the first reason', () => {
    using deadline = new Deadline(60_000, late);
    deadline.abort(new Error('first'));
    deadline.abort(new Error('second'));
    assert.equal((deadline.signal.reason as Error).message, 'first');
  });

  it('leaves its parent and its clock alone once it is over', () => {
    const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    const before = timers();
    const parent = new AbortController();
    const deadline = new Deadline(60_000, late, parent.signal);
    assert.equal(timers(), before + 1);
    deadline[Symbol.dispose]();
    assert.equal(timers(), before);
    parent.abort(new Error('parent'));
    assert.equal(deadline.signal.aborted, false);
  });
});
