import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { Flight } from '../../src/lifecycle/flight.ts';

/** An answer that says whether it was disposed of. */
class Answer implements Disposable {
  disposed = 0;
  [Symbol.dispose](): void {
    this.disposed += 1;
  }
}

function flight() {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  let asked: AbortSignal | undefined;
  let over = 0;
  const it = new Flight(
    1,
    (signal) => {
      asked = signal;
      return promise;
    },
    () => (over += 1),
  );
  return { it, resolve, reject, answer: new Answer(), signal: () => asked, over: () => over };
}

const patient = new AbortController().signal;

describe('a flight', () => {
  it('brings one answer to all who ask meanwhile, and keeps it until the last has let go', async () => {
    const { it: shared, resolve, answer, over } = flight();
    const boarding = [shared.board(patient), shared.board(patient), shared.board(patient)];
    resolve(answer);
    const loans = await Promise.all(boarding);
    assert.equal(over(), 1);
    assert.ok(loans.every((loan) => loan.answer === answer));
    loans[0]?.[Symbol.dispose]();
    loans[1]?.[Symbol.dispose]();
    assert.equal(answer.disposed, 0);
    loans[2]?.[Symbol.dispose]();
    assert.equal(answer.disposed, 1);
  });

  it('goes on for the others when one gives up, and lets that one go at once', async () => {
    const { it: shared, resolve, answer, signal } = flight();
    const impatient = new AbortController();
    const first = shared.board(impatient.signal);
    const second = shared.board(patient);
    impatient.abort(new Error('no more time'));
    await assert.rejects(first, /no more time/);
    assert.equal(signal()?.aborted, false);
    resolve(answer);
    using loan = await second;
    assert.equal(loan.answer, answer);
    assert.equal(answer.disposed, 0);
  });

  it('is called off when nobody waits any more, takes nobody aboard, and wipes an answer that comes all the same', async () => {
    const { it: shared, resolve, answer, signal, over } = flight();
    const impatient = new AbortController();
    const only = shared.board(impatient.signal);
    impatient.abort(new Error('no more time'));
    await assert.rejects(only, /no more time/);
    assert.equal(signal()?.aborted, true);
    assert.equal(over(), 1);
    resolve(answer);
    await new Promise(setImmediate);
    assert.equal(answer.disposed, 1);
  });

  it('tells a failure to everybody', async () => {
    const { it: shared, reject, over } = flight();
    const boarding = [shared.board(patient), shared.board(patient)];
    reject(new Error('sealed'));
    for (const each of boarding) await assert.rejects(each, /sealed/);
    assert.equal(over(), 1);
  });

  it('refuses whoever comes too late to wait', async () => {
    const { it: shared, resolve, answer } = flight();
    await assert.rejects(shared.board(AbortSignal.abort(new Error('late'))), /late/);
    resolve(answer);
    await new Promise(setImmediate);
    assert.equal(answer.disposed, 1);
  });
});
