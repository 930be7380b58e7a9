import assert from 'node:assert/strict';
import { describe, it, mock } from 'node:test';
import fc from 'fast-check';

import { DerivedKeys } from '../../src/lifecycle/derived-keys.ts';

const monday = Buffer.from('monday');
const tuesday = Buffer.from('tuesday');

/** Keys, and every buffer that was computed for them: the caller's own, which it alone wipes. */
function keeper() {
  const keys = new DerivedKeys();
  const computed: string[] = [];
  const get = (fingerprint: Buffer, label: string) =>
    keys.get(fingerprint, label, async () => {
      computed.push(`${fingerprint.toString()}/${label}`);
      return Buffer.from(`${fingerprint.toString()}/${label}`);
    });
  return { keys, computed, get };
}

/** The buffers that the class keeps, seen as it makes them: all it stores has gone through `Buffer.from(Buffer)`. */
async function watchingCopies(work: () => Promise<void>): Promise<Buffer[]> {
  const from = mock.method(Buffer, 'from');
  try {
    await work();
  } finally {
    from.mock.restore();
  }
  const calls = from.mock.calls as readonly {
    readonly arguments: readonly unknown[];
    readonly result?: Buffer;
  }[];
  return calls.flatMap(({ arguments: [given], result }) =>
    Buffer.isBuffer(given) && result ? [result] : [],
  );
}

const wiped = (bytes: Buffer) => bytes.every((byte) => byte === 0);

describe('derived keys', () => {
  it('are computed once for a label, and again for another', async () => {
    const { get, computed } = keeper();
    assert.equal((await get(monday, 'a')).toString(), 'monday/a');
    assert.equal((await get(monday, 'a')).toString(), 'monday/a');
    assert.equal((await get(monday, 'b')).toString(), 'monday/b');
    assert.deepEqual(computed, ['monday/a', 'monday/b']);
  });

  it('are copies: a caller that wipes its own leaves the kept one whole', async () => {
    const { get, computed } = keeper();
    (await get(monday, 'a')).fill(0);
    (await get(monday, 'a')).fill(0);
    assert.equal((await get(monday, 'a')).toString(), 'monday/a');
    assert.equal(computed.length, 1);
  });

  it('are wiped and forgotten as soon as the credentials are others', async () => {
    const { get, computed } = keeper();
    const [kept] = await watchingCopies(async () => {
      await get(monday, 'a');
    });
    assert.equal(kept?.toString(), 'monday/a');
    assert.equal((await get(tuesday, 'a')).toString(), 'tuesday/a');
    assert.ok(wiped(kept));
    await get(monday, 'a');
    assert.deepEqual(computed, ['monday/a', 'tuesday/a', 'monday/a']);
  });

  it('are wiped on demand, and computed anew when they are asked for after that', async () => {
    const { keys, get, computed } = keeper();
    const kept = await watchingCopies(async () => {
      await get(monday, 'a');
      await get(monday, 'b');
    });
    keys.wipe();
    assert.equal(kept.length, 2);
    assert.ok(kept.every(wiped));
    await get(monday, 'a');
    assert.equal(computed.length, 3);
  });

  it('are not kept when the credentials changed while they were computed', async () => {
    const keys = new DerivedKeys();
    const slow = Promise.withResolvers<Buffer>();
    const late = keys.get(monday, 'a', () => slow.promise);
    await keys.get(tuesday, 'a', async () => Buffer.from('tuesday/a'));
    const copies = await watchingCopies(async () => {
      slow.resolve(Buffer.from('monday/a'));
      assert.equal((await late).toString(), 'monday/a');
    });
    assert.deepEqual(copies, [], 'no copy of an outdated key');
    const kept = await keys.get(tuesday, 'a', () => assert.fail('the present key was thrown out'));
    assert.equal(kept.toString(), 'tuesday/a');
  });

  it('are not kept when they were wiped while they were computed', async () => {
    const keys = new DerivedKeys();
    const slow = Promise.withResolvers<Buffer>();
    const late = keys.get(monday, 'a', () => slow.promise);
    keys.wipe();
    const copies = await watchingCopies(async () => {
      slow.resolve(Buffer.from('monday/a'));
      await late;
    });
    assert.deepEqual(copies, []);
  });

  it('are computed once for all logins that need them at the same time, each with a copy of its own', async () => {
    const keys = new DerivedKeys();
    const { promise, resolve } = Promise.withResolvers<Buffer>();
    let computations = 0;
    const compute = () => {
      computations += 1;
      return promise;
    };
    const asked = Array.from({ length: 50 }, () => keys.get(monday, 'a', compute));
    resolve(Buffer.from('monday/a'));
    const got = await Promise.all(asked);
    assert.equal(computations, 1);
    got[0]?.fill(0);
    for (const key of got.slice(1)) assert.equal(key.toString(), 'monday/a');
  });

  it('of a computation that fails are computed by the next of those who waited', async () => {
    const keys = new DerivedKeys();
    const first = Promise.withResolvers<Buffer>();
    const failing = keys.get(monday, 'a', () => first.promise);
    const waiting = keys.get(monday, 'a', () => Promise.resolve(Buffer.from('monday/a')));
    first.reject(new Error('no entropy'));
    await assert.rejects(failing, /no entropy/);
    assert.equal((await waiting).toString(), 'monday/a');
  });

  it('of a computation that fails are not kept: the next login tries again', async () => {
    const { keys, get } = keeper();
    const failing = keys.get(monday, 'a', () => Promise.reject(new Error('no entropy')));
    await assert.rejects(failing, /no entropy/);
    assert.equal((await get(monday, 'a')).toString(), 'monday/a');
  });

  it('number sixteen at most: the one used longest ago is wiped for a new one', async () => {
    const { get, computed } = keeper();
    const labels = Array.from({ length: 16 }, (_, i) => String(i));
    const kept = await watchingCopies(async () => {
      for (const label of labels) await get(monday, label);
    });
    await get(monday, '0');
    await get(monday, 'one too many');
    assert.deepEqual(
      kept.map(wiped),
      labels.map((label) => label === '1'),
    );
    const before = computed.length;
    for (const label of labels.filter((each) => each !== '1')) await get(monday, label);
    assert.equal(computed.length, before, 'all but one are still kept');
    await get(monday, '1');
    assert.equal(computed.length, before + 1);
  });

  it('are right after any sequence of logins, rotations and salts', async () => {
    const step = fc.record({
      fingerprint: fc.constantFrom(monday, tuesday),
      label: fc.nat({ max: 40 }).map(String),
      wipe: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 200 }), async (steps) => {
        const { keys, get } = keeper();
        // A model of what must be kept: labels in the order of their use, of one fingerprint.
        let fingerprint: Buffer | undefined;
        let model: string[] = [];
        for (const { fingerprint: asked, label, wipe } of steps) {
          if (wipe) keys.wipe();
          if (wipe || asked !== fingerprint) model = [];
          fingerprint = asked;
          let computedNow = false;
          const key = await keys.get(asked, label, async () => {
            computedNow = true;
            return Buffer.from(`${asked.toString()}/${label}`);
          });
          assert.equal(key.toString(), `${asked.toString()}/${label}`);
          assert.equal(computedNow, !model.includes(label));
          model = [...model.filter((each) => each !== label), label].slice(-16);
        }
        await get(monday, 'last');
      }),
      { numRuns: 50 },
    );
  });
});
