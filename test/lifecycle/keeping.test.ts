import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';

import type { Credentials } from '../../src/core/credentials.ts';
import { PosternError } from '../../src/core/errors.ts';
import { Secret } from '../../src/core/secret.ts';
import type { Tenure } from '../../src/core/tenure.ts';
import { LeaseOffice } from '../../src/lifecycle/leases.ts';
import { CredentialSource, type SourceOptions } from '../../src/lifecycle/source.ts';
import type { Grant, Lease, Provider } from '../../src/providers/provider.ts';
import { timeOfTurns } from '../support/clock.ts';
import { until } from '../support/session.ts';

let time: Disposable;
beforeEach(() => {
  time = timeOfTurns();
});
afterEach(() => time[Symbol.dispose]());

const patient = new AbortController().signal;
const password = new Map([['password', { provider: 'vault', get: 'db#password' }]]);
const unavailable = () => new PosternError('PROVIDER_UNAVAILABLE', 'provider "vault": Vault is sealed');
const denied = () => new PosternError('PROVIDER_FAILED', 'provider "vault": permission denied');
const rejection = () => new PosternError('UPSTREAM_REJECTED', 'the server rejected the credential');
const text = (credentials: Credentials) => Promise.resolve(credentials.text('password') ?? '');

/** A store with one password, which may be leased. */
class Store implements Provider {
  value = 'first';
  failure: (() => Error) | undefined;
  hangs = false;
  /** Milliseconds; 0: without a lease. */
  leaseLife = 0;
  renewable = true;
  /** Milliseconds to which a renewal comes. */
  renewedTo: number | undefined;
  expiresAt: Date | undefined;
  asked = 0;
  readonly leases: { id: string; renewed: number; revoked: number }[] = [];
  readonly handedOut: Buffer[] = [];

  async fetch(_references: readonly string[], signal: AbortSignal): Promise<Grant> {
    this.asked += 1;
    if (this.hangs)
      await new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => reject(signal.reason as Error));
      });
    await new Promise(setImmediate);
    if (this.failure) throw this.failure();
    const bytes = Buffer.from(this.leaseLife > 0 ? `${this.value} ${this.asked}` : this.value);
    this.handedOut.push(bytes);
    return {
      secrets: [new Secret(bytes)],
      ...(this.expiresAt && { expiresAt: this.expiresAt }),
      ...(this.leaseLife > 0 && { leases: [this.#lease()] }),
    };
  }

  check = () => Promise.resolve();
  close = () => Promise.resolve();

  get live(): string[] {
    return this.leases.filter(({ revoked }) => revoked === 0).map(({ id }) => id);
  }

  #lease(): Lease {
    const facts = { id: `lease-${this.leases.length + 1}`, renewed: 0, revoked: 0 };
    this.leases.push(facts);
    return {
      id: facts.id,
      renewable: this.renewable,
      expiresAt: new Date(Date.now() + this.leaseLife),
      renew: () => {
        facts.renewed += 1;
        return this.failure
          ? Promise.reject(this.failure())
          : Promise.resolve(new Date(Date.now() + (this.renewedTo ?? this.leaseLife)));
      },
      revoke: () => {
        facts.revoked += 1;
        return this.failure ? Promise.reject(this.failure()) : Promise.resolve();
      },
    };
  }
}

function scene(policy: SourceOptions['policy'] = {}, more: SourceOptions = {}) {
  const store = new Store();
  const lines: Record<string, unknown>[] = [];
  const log = pino(
    {},
    { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  );
  const lent: string[] = [];
  const leases = new LeaseOffice({ log, observe: () => {}, journal: undefined });
  const source = new CredentialSource(password, () => store, {
    policy,
    log,
    leases,
    observer: { lent: (from) => lent.push(from) },
    ...more,
  });
  return { store, source, lines, lent, ask: () => source.lend(text, patient) };
}

/** A session that logs in and stays. */
async function session(source: CredentialSource): Promise<Tenure> {
  let mine: Tenure | undefined;
  await source.lend(text, patient, (tenure) => (mine = tenure));
  return mine ?? assert.fail('nothing was lent');
}

describe('a kept value', () => {
  it('is used without asking for its ttl, and then fetched again', async () => {
    const { store, ask, lent, source } = scene({ ttl: 100 });
    assert.deepEqual([await ask(), await ask(), await ask()], ['first', 'first', 'first']);
    assert.equal(store.asked, 1);
    assert.deepEqual(lent, ['provider', 'cache', 'cache']);
    store.value = 'second';
    await sleep(130);
    assert.equal(await ask(), 'second');
    source[Symbol.dispose]();
  });

  it('that is used is fetched before its ttl is over, so that nobody waits; one that nobody uses is not', async () => {
    const { store, ask, lent, source } = scene({ ttl: 800 });
    await ask();
    // Not before it has an answer: whoever uses the old value meanwhile has not used the new one.
    await until('the refresh', () => store.handedOut.length === 2);
    await ask();
    await until('the next refresh', () => store.handedOut.length === 3);
    assert.deepEqual(lent, ['provider', 'cache']);
    await sleep(1600);
    assert.equal(store.asked, 3, 'nobody has used it since');
    assert.equal(source.describe().state, 'empty');
    source[Symbol.dispose]();
  });

  it('is wiped when its time is over, when it is replaced, and when the source is closed', async () => {
    const copies: Buffer[] = [];
    const allocate = mock.method(Buffer, 'allocUnsafe', (size: number) => {
      const bytes = Buffer.alloc(size);
      copies.push(bytes);
      return bytes;
    });
    try {
      const { ask, source, store } = scene({ ttl: 80 });
      const kept = () => copies.filter((bytes) => bytes.some((byte) => byte !== 0));
      await ask();
      assert.equal(kept().length, 1);
      await until('the end of its time', () => kept().length === 0);
      await ask();
      store.value = 'second';
      await until('it to lapse', () => kept().length === 0);
      await ask();
      await source.close();
      assert.equal(kept().length, 0);
      assert.ok(store.handedOut.every((bytes) => bytes.every((byte) => byte === 0)));
    } finally {
      allocate.mock.restore();
    }
  });

  it('grows a generation only when the values change', async () => {
    const { source, store } = scene();
    const [a, b] = [await session(source), await session(source)];
    assert.deepEqual([a.generation, b.generation], [1, 1]);
    let told: unknown;
    a.onRetired((why) => (told = why));
    store.value = 'second';
    const c = await session(source);
    assert.equal(c.generation, 2);
    assert.equal(told, 'replaced');
    assert.equal(b.retired(), 'replaced');
    assert.equal(c.retired(), undefined);
    b.onRetired((why) => assert.equal(why, 'replaced'));
  });

  it('is never used beyond the end that its provider has given', async () => {
    const { source, store, ask } = scene({ ttl: 60_000, maxStale: 60_000 });
    store.expiresAt = new Date(Date.now() + 100);
    await ask();
    await sleep(150);
    store.failure = unavailable;
    await assert.rejects(ask(), { code: 'PROVIDER_UNAVAILABLE' });
    source[Symbol.dispose]();
  });
});

describe('an outage', () => {
  it('is bridged with the last value for maxStale, said once, and then fails closed', async () => {
    const { store, ask, lines, source, lent } = scene({ maxStale: 400 });
    await ask();
    store.failure = unavailable;
    assert.equal(await ask(), 'first');
    assert.equal(await ask(), 'first');
    assert.deepEqual(lent, ['provider', 'stale', 'stale']);
    assert.equal(source.describe().state, 'stale');
    assert.equal(lines.filter(({ msg }) => String(msg).startsWith('using an old credential')).length, 1);
    await sleep(450);
    await assert.rejects(ask(), { code: 'PROVIDER_UNAVAILABLE', message: /"vault"/ });
    store.failure = undefined;
    await until('recovery', () =>
      ask().then(
        () => true,
        () => false,
      ),
    );
    assert.equal(lines.filter(({ msg }) => String(msg).startsWith('the provider answers again')).length, 1);
    source[Symbol.dispose]();
  });

  it('of a provider that is slow holds the first client for a second, and the others not at all', async () => {
    const { store, ask, source } = scene({ maxStale: 60_000 });
    await ask();
    store.hangs = true;
    const started = performance.now();
    assert.equal(await ask(), 'first');
    assert.ok(performance.now() - started < 1600);
    await source.close();
  });

  it('is not what a refusal of the store is: nothing old is used then', async () => {
    const { store, ask, source } = scene({ maxStale: 60_000 });
    await ask();
    store.failure = denied;
    await assert.rejects(ask(), { code: 'PROVIDER_FAILED' });
    store.failure = unavailable;
    await assert.rejects(ask(), { code: 'PROVIDER_UNAVAILABLE' });
    assert.equal(source.describe().state, 'empty');
  });

  it('costs few questions, and no client more than about a second', async () => {
    const { store, ask } = scene();
    store.failure = unavailable;
    const end = performance.now() + 2500;
    let refused = 0;
    while (performance.now() < end) {
      const started = performance.now();
      await assert.rejects(ask(), { code: 'PROVIDER_UNAVAILABLE' });
      assert.ok(performance.now() - started < 1500);
      refused += 1;
      await sleep(1);
    }
    assert.ok(refused > 5);
    assert.ok(store.asked <= 5, `${store.asked} questions`);
  });
});

describe('a lease', () => {
  it('is one for all sessions, renewed while one is left, and revoked after it has lingered', async () => {
    const { store, source } = scene({ linger: 100 });
    store.leaseLife = 300;
    const sessions = await Promise.all(Array.from({ length: 50 }, () => session(source)));
    assert.equal(store.leases.length, 1);
    assert.deepEqual(sessions[0]?.leases, ['lease-1']);
    await until('three renewals', () => (store.leases[0]?.renewed ?? 0) >= 3);
    for (const each of sessions) each.release();
    assert.deepEqual(store.live, ['lease-1'], 'it lingers');
    await until('the revocation', () => store.live.length === 0);
    assert.equal(store.leases.length, 1);
  });

  it('that lingers serves the next session, and is counted from its end', async () => {
    const { store, source } = scene({ linger: 150 });
    store.leaseLife = 60_000;
    for (let turn = 0; turn < 5; turn++) {
      (await session(source)).release();
      await sleep(75);
    }
    assert.equal(store.leases.length, 1);
    await until('the revocation', () => store.live.length === 0);
  });

  it('that is renewed to less than half is replaced; the old one lives while a session is on it', async () => {
    const { store, source } = scene({ linger: 50 });
    store.leaseLife = 600;
    const old = await session(source);
    store.renewedTo = 250;
    let why: unknown;
    old.onRetired((told) => (why = told));
    await until('the replacement', () => why !== undefined);
    assert.equal(why, 'replaced');
    store.renewedTo = undefined;
    const young = await session(source);
    assert.deepEqual([young.generation, young.leases], [2, ['lease-2']]);
    assert.ok(store.live.includes('lease-1'));
    old.release();
    await until('the old one to be revoked', () => !store.live.includes('lease-1'));
    young.release();
    await until('the young one to be revoked', () => store.live.length === 0);
  });

  it('that cannot be renewed for good is replaced', async () => {
    const { store, source } = scene({ linger: 60_000 });
    store.leaseLife = 300;
    store.renewable = false;
    const old = await session(source);
    await until('the replacement', () => old.retired() !== undefined);
    assert.equal((await session(source)).generation, 2);
    await source.close();
  });

  it('that the server does not take any more is replaced once, however many notice', async () => {
    const { store, source } = scene();
    store.leaseLife = 60_000;
    const live = await session(source);
    const logins = Array.from({ length: 30 }, () =>
      source.lend(
        (credentials) =>
          credentials.text('password') === 'first 1' ? Promise.reject(rejection()) : text(credentials),
        patient,
      ),
    );
    assert.deepEqual([...new Set(await Promise.all(logins))], ['first 2']);
    assert.equal(store.leases.length, 2);
    assert.ok(live.retired());
    await source.close();
  });

  it('of a session that asks for what its server forbids is not replaced again and again', async () => {
    const { store, source } = scene({ rotationGrace: 150 });
    store.leaseLife = 60_000;
    const live = await session(source);
    for (let turn = 0; turn < 5; turn++)
      await assert.rejects(
        source.lend(() => Promise.reject(rejection()), patient),
        { code: 'UPSTREAM_REJECTED' },
      );
    assert.ok(store.leases.length <= 2, `${store.leases.length} leases`);
    // The others are in again with the next try, which there is once a second.
    await sleep(1100);
    assert.equal((await session(source)).generation, store.leases.length);
    live.release();
    await source.close();
  });

  it('is revoked when the source is closed, also one that comes only then', async () => {
    const { store, source } = scene();
    store.leaseLife = 60_000;
    const impatient = new AbortController();
    const lending = source.lend(text, impatient.signal);
    const closing = source.close();
    await Promise.allSettled([lending, closing]);
    await until('no lease to be left', () => store.live.length === 0);
  });

  it('of 32 days is watched without a timer that overflows', async () => {
    const delays: number[] = [];
    const real = globalThis.setTimeout;
    const spy = mock.method(globalThis, 'setTimeout', ((ring: () => void, delay = 0) => {
      delays.push(delay);
      return real(ring, delay);
    }) as typeof setTimeout);
    try {
      const { store, source } = scene();
      store.leaseLife = 60 * 24 * 3_600_000;
      await session(source);
      await sleep(20);
      assert.equal(store.leases[0]?.renewed, 0);
      assert.ok(delays.length > 0 && delays.every((delay) => delay <= 2 ** 31 - 1));
      await source.close();
    } finally {
      spy.mock.restore();
    }
  });
});

describe('a login that the server rejects while a rotation is under way', () => {
  it('waits until the store follows the server', async () => {
    const { store, source, ask } = scene();
    await ask();
    setTimeout(() => (store.value = 'second'), 300);
    const lent = await source.lend(
      (credentials) =>
        credentials.text('password') === 'second' ? text(credentials) : Promise.reject(rejection()),
      patient,
    );
    assert.equal(lent, 'second');
  });

  it('waits until the server follows the store, and one tries for all', async () => {
    const { source, ask } = scene();
    await ask();
    let accepts = false;
    let tries = 0;
    setTimeout(() => (accepts = true), 300);
    const logins = Array.from({ length: 40 }, () =>
      source.lend((credentials) => {
        tries += 1;
        return accepts ? text(credentials) : Promise.reject(rejection());
      }, patient),
    );
    await Promise.all(logins);
    const rejectedTries = tries - 40;
    assert.ok(rejectedTries <= 42, `${rejectedTries} rejected logins at the server`);
    // Those who come while it is disputed do not try at all until one of them was served.
    accepts = false;
  });

  it('is refused after the grace, and whoever comes with the same is refused at once and tries once a second', async () => {
    const { source, store, ask } = scene({ rotationGrace: 300 });
    await ask();
    let tries = 0;
    const logIn = () =>
      source.lend(() => {
        tries += 1;
        return Promise.reject(rejection());
      }, patient);
    const started = performance.now();
    await assert.rejects(logIn(), { code: 'UPSTREAM_REJECTED' });
    assert.ok(performance.now() - started >= 290);
    assert.ok(tries <= 4, `${tries} tries`);
    const before = tries;
    for (let turn = 0; turn < 20; turn++) {
      const began = performance.now();
      await assert.rejects(logIn(), { code: 'UPSTREAM_REJECTED' });
      assert.ok(performance.now() - began < 200);
    }
    assert.ok(tries - before <= 1, 'the account would be locked');
    assert.equal(source.describe().rejected, true);
    store.value = 'second';
    assert.equal(await source.lend(text, patient), 'second');
    assert.equal(source.describe().rejected, false);
  });

  it('is refused at once where the server has never taken anything: no rotation is under way', async () => {
    const { source, store } = scene({ rotationGrace: 10_000 });
    const started = performance.now();
    let tries = 0;
    const logIn = () =>
      source.lend(() => {
        tries += 1;
        return Promise.reject(rejection());
      }, patient);
    await assert.rejects(logIn(), { code: 'UPSTREAM_REJECTED' });
    assert.ok(performance.now() - started < 2000);
    assert.deepEqual([tries, store.asked], [1, 2]);
  });

  it('comes in again when the server takes the same value after the grace', async () => {
    const { source, ask } = scene({ rotationGrace: 100 });
    await ask();
    await assert.rejects(source.lend(() => Promise.reject(rejection()), patient));
    await sleep(1100);
    assert.equal(await source.lend(text, patient), 'first');
    assert.equal(await source.lend(text, patient), 'first');
  });

  it('for what it asks alone does not shut out the others', async () => {
    const { source, ask } = scene();
    await ask();
    const odd = source.lend(() => Promise.reject(rejection()), patient);
    await new Promise(setImmediate);
    const started = performance.now();
    assert.equal(await source.lend(text, patient), 'first');
    assert.ok(performance.now() - started < 1000);
    await assert.rejects(odd, { code: 'UPSTREAM_REJECTED' });
  });
});
