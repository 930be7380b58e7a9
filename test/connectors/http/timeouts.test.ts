import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { Clock } from '../../../src/connectors/http/timeouts.ts';
import { until } from '../../support/session.ts';

describe('the coarse clock', () => {
  it('says that a time is over when it is, and not before', async () => {
    const clock = new Clock();
    const began = performance.now();
    let over = 0;
    const timed = {
      due: 0,
      onTick(now: number) {
        if (over === 0 && now >= this.due) over = performance.now();
      },
    };
    clock.add(timed);
    timed.due = clock.now + 150;
    await until('the time to be over', () => over > 0);
    assert.ok(over - began >= 150, `${over - began} ms`);
    clock.delete(timed);
  });

  it('stands still while nobody is in it', async () => {
    const clock = new Clock();
    const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    const before = timers();
    const one = { onTick() {} };
    const other = { onTick() {} };
    clock.add(one);
    clock.add(other);
    assert.equal(timers(), before + 1);
    clock.delete(one);
    assert.equal(timers(), before + 1);
    clock.delete(other);
    clock.delete(other);
    assert.equal(timers(), before);
  });
});
