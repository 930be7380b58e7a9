import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { Admission } from '../../src/core/admission.ts';

describe('the places of a service', () => {
  it('are as many as it says, and are free again when somebody leaves', () => {
    const admission = new Admission('orders', 2);
    admission.enter();
    admission.enter();
    assert.throws(() => admission.enter(), {
      code: 'LIMIT_REACHED',
      message: 'service "orders" has its 2 connections in use',
    });
    assert.equal(admission.active, 2);
    admission.leave();
    admission.enter();
    assert.equal(admission.active, 2);
  });

  it('may become fewer while they are taken', () => {
    const admission = new Admission('orders', 2);
    admission.enter();
    admission.enter();
    admission.max = 1;
    admission.leave();
    assert.throws(() => admission.enter(), { code: 'LIMIT_REACHED' });
    admission.leave();
    admission.enter();
    assert.equal(admission.active, 1);
  });

  it('are closed to everybody at shutdown', () => {
    const admission = new Admission('orders', 2);
    admission.enter();
    admission.close();
    assert.throws(() => admission.enter(), { code: 'SHUTDOWN' });
    admission.leave();
    assert.equal(admission.active, 0);
  });
});
