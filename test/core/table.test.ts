import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { loadFrom, loadOne, type Table } from '../../src/core/table.ts';

function tableOf(names: readonly string[]): { table: Table<string>; loaded: string[] } {
  const loaded: string[] = [];
  const load = async (name: string) => {
    loaded.push(name);
    return name.toUpperCase();
  };
  const entries = names.map((name) => [name, () => load(name)] as const);
  return { table: Object.fromEntries(entries), loaded };
}

describe('a table of plug-ins', () => {
  it('loads those that are named, in its own order, and no other', async () => {
    const { table, loaded } = tableOf(['a', 'b', 'c']);
    assert.deepEqual(Object.entries(await loadFrom(table, new Set(['c', 'a', 'x']))), [
      ['a', 'A'],
      ['c', 'C'],
    ]);
    assert.deepEqual(loaded, ['a', 'c']);
  });

  it('loads all without names', async () => {
    const { table } = tableOf(['a', 'b']);
    assert.deepEqual(await loadFrom(table), { a: 'A', b: 'B' });
  });

  it('has no entry that only its prototype has', async () => {
    const { table } = tableOf(['a']);
    for (const name of ['constructor', '__proto__', 'toString', 'b'])
      assert.equal(await loadOne(table, name), undefined, name);
    assert.equal(await loadOne(table, 'a'), 'A');
    assert.deepEqual(Object.keys(await loadFrom(table, new Set(['constructor', '__proto__']))), []);
  });
});
