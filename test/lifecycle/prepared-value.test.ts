import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { PosternError } from '../../src/core/errors.ts';
import { Secret } from '../../src/core/secret.ts';
import { CredentialSource, type SourceOptions } from '../../src/lifecycle/source.ts';
import { timeOfTurns } from '../support/clock.ts';
import { until } from '../support/session.ts';

let time: Disposable;
beforeEach(() => {
  time = timeOfTurns();
});
afterEach(() => time[Symbol.dispose]());

const patient = new AbortController().signal;
const unavailable = () => new PosternError('PROVIDER_UNAVAILABLE', 'provider "vault": Vault is sealed');

/** A header block made of a token; says when it is disposed of. */
class Header implements Disposable {
  readonly text: string;
  disposed = false;
  constructor(text: string) {
    this.text = text;
  }
  [Symbol.dispose](): void {
    this.disposed = true;
  }
}

function scene(policy: SourceOptions['policy'] = {}, life?: () => number) {
  const store = { token: 'a', asked: 0, failure: undefined as (() => Error) | undefined };
  const made: Header[] = [];
  const source = new CredentialSource(
    new Map([['token', { provider: 'vault', get: 'api#token' }]]),
    () => ({
      fetch: async () => {
        store.asked += 1;
        await new Promise(setImmediate);
        if (store.failure) throw store.failure();
        return { secrets: [new Secret(Buffer.from(store.token))] };
      },
      check: () => Promise.resolve(),
      close: () => Promise.resolve(),
    }),
    { policy },
  );
  const prepared = source.prepare((credentials) => {
    const value = new Header(`Bearer ${credentials.text('token')}`);
    made.push(value);
    return { value, ...(life && { expiresAt: new Date(Date.now() + life()) }) };
  });
  return { store, source, prepared, made };
}

describe('a prepared value', () => {
  it('is made once for all who ask, and then there without a question', async () => {
    const { prepared, made, store, source } = scene();
    assert.equal(prepared.current, undefined);
    const values = await Promise.all(Array.from({ length: 100 }, () => prepared.get(patient)));
    assert.equal(new Set(values).size, 1);
    assert.equal(prepared.current, values[0]);
    assert.deepEqual([made.length, store.asked], [1, 1]);
    await source.close();
    assert.ok(made[0]?.disposed);
    assert.equal(prepared.current, undefined);
  });

  it('stays the same object while the store has the same, and is fetched again before its time is over', async () => {
    const { prepared, made, store, source } = scene({ ttl: 150 });
    const value = await prepared.get(patient);
    const end = performance.now() + 800;
    while (performance.now() < end) {
      assert.equal(prepared.current, value, 'nobody waits');
      await sleep(5);
    }
    assert.ok(store.asked >= 4, `${store.asked} questions`);
    assert.equal(made.length, 1);
    await source.close();
  });

  it('is replaced when the store has another, and the old one is disposed of then', async () => {
    const { prepared, made, store, source } = scene({ ttl: 100 });
    await prepared.get(patient);
    store.token = 'b';
    await until('the other one', () => prepared.current?.text === 'Bearer b');
    assert.deepEqual(
      made.map(({ disposed }) => disposed),
      [true, false],
    );
    await source.close();
  });

  it('is disposed of when nobody asks for it any more', async () => {
    const { prepared, made } = scene({ ttl: 50 });
    await prepared.get(patient);
    await until('the end', () => made[0]?.disposed === true);
    assert.equal(prepared.current, undefined);
  });

  it('that the upstream rejects is another one when the store has another, for one question however many say so', async () => {
    const { prepared, store, source } = scene();
    const value = await prepared.get(patient);
    store.token = 'b';
    for (let turn = 0; turn < 100; turn++) prepared.reject(value);
    assert.equal(prepared.current, undefined);
    const others = await Promise.all(Array.from({ length: 100 }, () => prepared.get(patient)));
    assert.deepEqual([...new Set(others.map(({ text }) => text))], ['Bearer b']);
    assert.equal(store.asked, 2);
    prepared.reject(value);
    assert.equal(prepared.current, others[0], 'an old one that is rejected late changes nothing');
    await source.close();
  });

  it('that the upstream rejects is the same one where the store has no other, and goes on serving; a question a second at most', async () => {
    const { prepared, store, source } = scene();
    const value = await prepared.get(patient);
    for (let turn = 0; turn < 50; turn++) {
      prepared.reject(value);
      assert.equal(await prepared.get(patient), value);
    }
    assert.equal(prepared.current, value);
    assert.equal(store.asked, 2);
    assert.ok(!value.disposed);
    await source.close();
  });

  it('that is a token with an end of its own is made anew before that, and when it is rejected', async () => {
    const { prepared, made, store, source } = scene({ ttl: 60_000 }, () => 200);
    const first = await prepared.get(patient);
    await until('the next token', () => prepared.current !== first && prepared.current !== undefined);
    assert.equal(store.asked, 1);
    const second = prepared.current ?? assert.fail();
    prepared.reject(second);
    assert.notEqual(await prepared.get(patient), second);
    assert.ok(made[0]?.disposed);
    await source.close();
  });

  it('bridges an outage for maxStale, without a wait, and fails closed after that', async () => {
    const { prepared, store, source } = scene({ ttl: 60, maxStale: 700 });
    const value = await prepared.get(patient);
    store.failure = unavailable;
    const began = performance.now();
    while (performance.now() - began < 600) {
      assert.equal(prepared.current ?? (await prepared.get(patient)), value);
      await sleep(5);
    }
    assert.ok(store.asked <= 5, `${store.asked} questions`);
    await sleep(300);
    await assert.rejects(prepared.get(patient), { code: 'PROVIDER_UNAVAILABLE' });
    await source.close();
  });

  it('gives up at the signal of who asks, and goes on for the others', async () => {
    const { prepared, source } = scene();
    const impatient = new AbortController();
    const first = prepared.get(impatient.signal);
    const second = prepared.get(patient);
    impatient.abort(new PosternError('TIMEOUT', 'late'));
    await assert.rejects(first, { code: 'TIMEOUT' });
    assert.equal((await second).text, 'Bearer a');
    await source.close();
  });
});
