import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { PosternError } from '../../src/core/errors.ts';
import { Secret } from '../../src/core/secret.ts';
import { Expiring } from '../../src/providers/expiring.ts';
import { failure, never } from './opening.ts';

const minute = 60_000;
const doing = 'getting a token';

/** Tokens that count, each ending `life` after it was made. */
function counting(life: number, early = minute) {
  const made: Secret[] = [];
  const state: { down: boolean; pending: Promise<unknown> | undefined } = { down: false, pending: undefined };
  const tokens = new Expiring(
    async () => {
      await state.pending;
      if (state.down) throw new PosternError('PROVIDER_UNAVAILABLE', 'down');
      const value = new Secret(Buffer.from(`token ${made.length}`));
      made.push(value);
      return { value, expiresAt: Date.now() + life };
    },
    { early, doing },
  );
  const read = () => tokens.lend(async (token) => await Promise.resolve(token.reveal().toString()), never);
  return { tokens, made, state, read };
}

const wiped = (secret: Secret | undefined) => {
  try {
    secret?.reveal();
    return false;
  } catch {
    return true;
  }
};

describe('a value that ends', () => {
  it('is obtained once for all who ask at once, and kept until shortly before its end', async (t) => {
    t.mock.timers.enable({ apis: ['Date'] });
    const { read, made } = counting(10 * minute);
    assert.deepEqual(await Promise.all([read(), read(), read()]), ['token 0', 'token 0', 'token 0']);
    t.mock.timers.tick(9 * minute - 1);
    assert.equal(await read(), 'token 0');
    t.mock.timers.tick(1);
    assert.equal(await read(), 'token 1');
    assert.ok(wiped(made[0]));
  });

  it('is not replaced in a loop when it is short of life already', async (t) => {
    t.mock.timers.enable({ apis: ['Date'] });
    const { read } = counting(30_000);
    assert.equal(await read(), 'token 0');
    t.mock.timers.tick(14_999);
    assert.equal(await read(), 'token 0');
    t.mock.timers.tick(1);
    assert.equal(await read(), 'token 1');
  });

  it('goes on to be used while it cannot be replaced, with a pause between attempts, until its end', async (t) => {
    t.mock.timers.enable({ apis: ['Date'] });
    const { read, state } = counting(10 * minute);
    await read();
    state.down = true;
    t.mock.timers.tick(9 * minute);
    assert.equal(await read(), 'token 0');
    state.down = false;
    assert.equal(await read(), 'token 0');
    t.mock.timers.tick(10_000);
    assert.equal(await read(), 'token 1');
    state.down = true;
    t.mock.timers.tick(10 * minute);
    assert.equal((await failure(read())).code, 'PROVIDER_UNAVAILABLE');
  });

  it('is wiped when it is replaced, but not before its last user is done', async () => {
    const { tokens, made, read } = counting(10 * minute);
    const inside = Promise.withResolvers<void>();
    const using = tokens.lend(async (token) => {
      await inside.promise;
      return token.reveal().toString();
    }, never);
    await read();
    const [first] = made;
    assert.ok(first);
    tokens.discard(first);
    assert.equal(await read(), 'token 1');
    assert.ok(!wiped(first));
    inside.resolve();
    assert.equal(await using, 'token 0');
    assert.ok(wiped(first));
  });

  it('is not discarded by those who were refused with a former one', async () => {
    const { tokens, made, read } = counting(10 * minute);
    await read();
    const [first] = made;
    assert.ok(first);
    tokens.discard(first);
    await read();
    tokens.discard(first);
    assert.equal(await read(), 'token 1');
  });

  it('is obtained on while one still waits, and no longer', async () => {
    const { tokens, state, read } = counting(10 * minute);
    const answer = Promise.withResolvers<void>();
    state.pending = answer.promise;
    const leaving = new AbortController();
    const left = failure(tokens.lend(() => Promise.resolve(), leaving.signal));
    const stays = read();
    leaving.abort(new PosternError('TIMEOUT', 'too late'));
    assert.equal((await left).message, 'too late');
    answer.resolve();
    assert.equal(await stays, 'token 0');
  });

  it('that arrives after everybody has left is wiped', async () => {
    const { tokens, state, made } = counting(10 * minute);
    const answer = Promise.withResolvers<void>();
    state.pending = answer.promise;
    const leaving = new AbortController();
    const left = failure(tokens.lend(() => Promise.resolve(), leaving.signal));
    leaving.abort();
    await left;
    answer.resolve();
    await new Promise((later) => setImmediate(later));
    assert.equal(made.length, 1);
    assert.ok(wiped(made[0]));
  });

  it('is wiped at the end, and there is none afterwards', async () => {
    const { tokens, made, read } = counting(10 * minute);
    await read();
    tokens.close();
    assert.ok(wiped(made[0]));
    assert.equal((await failure(read())).code, 'SHUTDOWN');
  });

  it('without an end lasts', async (t) => {
    t.mock.timers.enable({ apis: ['Date'] });
    const { read } = counting(Infinity);
    await read();
    t.mock.timers.tick(400 * 24 * 60 * minute);
    assert.equal(await read(), 'token 0');
  });
});
