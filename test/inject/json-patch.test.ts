import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { difference, keysOf, type Operation } from '../../src/inject/json-patch.ts';

/** RFC 6902 as it is written, for the three operations that are made. */
function apply(document: unknown, steps: readonly Operation[]): unknown {
  const root = structuredClone({ root: document }) as { root: unknown };
  for (const step of steps) {
    const keys = ['root', ...keysOf(step.path)];
    const last = keys.pop() ?? '';
    let parent: unknown = root;
    for (const key of keys) {
      assert.ok(typeof parent === 'object' && parent !== null && Object.hasOwn(parent, key), step.path);
      parent = (parent as Record<string, unknown>)[key];
    }
    if (Array.isArray(parent)) {
      const index = Number(last);
      assert.ok(/^\d+$/.test(last) && index <= parent.length);
      if (step.op === 'add') parent.splice(index, 0, step.value);
      else if (step.op === 'remove') parent.splice(index, 1);
      else {
        assert.ok(index < parent.length);
        parent[index] = step.value;
      }
    } else {
      assert.ok(typeof parent === 'object' && parent !== null);
      assert.ok(step.op === 'add' || Object.hasOwn(parent, last), `${step.op} of what is not there`);
      if (step.op === 'remove') delete (parent as Record<string, unknown>)[last];
      else (parent as Record<string, unknown>)[last] = structuredClone(step.value);
    }
  }
  return root.root;
}

const json = fc
  .jsonValue({ maxDepth: 4, noUnicodeString: false })
  .filter((value) => !JSON.stringify(value).includes('__proto__'));
const normal = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

describe('a JSON patch', () => {
  it('leads from any value to any other', () => {
    fc.assert(
      fc.property(json, json, (one, other) => {
        const [before, after] = [normal(one), normal(other)];
        assert.deepEqual(apply(before, difference(before, after)), after);
      }),
    );
  });

  it('adds to lists of named things only what is new', () => {
    const named = fc.uniqueArray(fc.string(), { maxLength: 8 });
    fc.assert(
      fc.property(named, named, fc.nat(8), (old, more, at) => {
        const before = old.map((name) => ({ name }));
        const fresh = more.filter((name) => !old.includes(name)).map((name) => ({ name }));
        const after = before.toSpliced(at, 0, ...fresh);
        const steps = difference(before, after);
        assert.deepEqual(apply(before, steps), after);
        assert.equal(steps.length, fresh.length);
      }),
    );
  });

  it('says nothing where nothing changes, and escapes what a path must not hold', () => {
    assert.deepEqual(difference({ a: [1, { b: null }] }, { a: [1, { b: null }] }), []);
    assert.deepEqual(difference({ annotations: {} }, { annotations: { 'postern.dev/a~b': 'x' } }), [
      { op: 'add', path: '/annotations/postern.dev~1a~0b', value: 'x' },
    ]);
    assert.deepEqual(difference({ spec: {} }, { spec: { initContainers: [1] } }), [
      { op: 'add', path: '/spec/initContainers', value: [1] },
    ]);
  });
});
