import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import type { GrowthRow, Row, Sample } from '../../bench/rows.ts';
import { perSessionBeyond, verdictsOn } from '../../bench/verdicts.ts';

function row(id: string, samples: Readonly<Record<string, readonly (number | Sample)[]>>): Row {
  const entries = Object.entries(samples).map(
    ([name, values]) =>
      [name, values.map((each) => (typeof each === 'number' ? { value: each } : each))] as const,
  );
  return { id, title: id, unit: 'tps', samples: Object.fromEntries(entries) };
}

function outcomes(rows: readonly Row[]): string[] {
  return verdictsOn(rows, [], []).map(({ aim, outcome }) => `${aim}: ${outcome}`);
}

describe('the verdicts of the benchmark', () => {
  it('hold when the median of the rounds reaches the aim, and tell the range', () => {
    const all = verdictsOn(
      [row('select-c8', { Postern: [110, 121, 90], PgBouncer: [100, 100, 100] })],
      [],
      [],
    );
    assert.deepEqual(all, [
      {
        aim: 'select-c8: Postern at least 1.10 x PgBouncer',
        outcome: 'holds',
        detail: '1.10 (0.90 to 1.21) in 3 quiet rounds',
      },
    ]);
  });

  it('miss when it does not, however near', () => {
    const near = row('select-c8', { Postern: [109, 109, 109], PgBouncer: [100, 100, 100] });
    assert.deepEqual(outcomes([near]), ['select-c8: Postern at least 1.10 x PgBouncer: misses']);
  });

  it('are level where no more than equality is aimed at and the difference is within what runs can tell', () => {
    const rows = (value: number) => [
      row('select-c1', { Postern: Array(3).fill(value), HAProxy: [100, 100, 100] }),
    ];
    assert.deepEqual(outcomes(rows(96)), ['select-c1: Postern at least 1.00 x HAProxy: level']);
    assert.deepEqual(outcomes(rows(94)), ['select-c1: Postern at least 1.00 x HAProxy: misses']);
    assert.deepEqual(outcomes(rows(100)), ['select-c1: Postern at least 1.00 x HAProxy: holds']);
  });

  it('leave out rounds in which others used the machine, and cannot tell when too few are left', () => {
    const noisy = { value: 1, foreignCores: 0.5 };
    const others = [100, 100, 100, 100];
    const most = row('connect', { Postern: [noisy, 250, 250, 250], direct: others });
    assert.deepEqual(outcomes([most]), ['connect: Postern at least 2.00 x direct: holds']);
    const few = row('connect', { Postern: [noisy, noisy, 250, 250], direct: others });
    assert.deepEqual(outcomes([few]), ['connect: Postern at least 2.00 x direct: cannot tell']);
    const disturbed = row('connect', { Postern: [250, 250, 250], direct: [noisy, 100, 100] });
    assert.deepEqual(outcomes([disturbed]), ['connect: Postern at least 2.00 x direct: cannot tell']);
  });

  it('compare with the best peer of each round', () => {
    const copy = row('copy', {
      Postern: [90, 90, 90],
      Go: [100, 50, 50],
      HAProxy: [50, 100, 50],
      PgBouncer: [50, 50, 100],
    });
    assert.deepEqual(outcomes([copy]), [
      'copy: Postern at least 1.00 x the best of HAProxy, PgBouncer, Go: misses',
    ]);
  });

  it('compare CPU for each transaction, where less is better', () => {
    const sample = (cpuSeconds: number) => ({ value: 1, cpuSeconds, transactions: 100_000 });
    const rows = (cpu: number) => [
      row('select-c8', { epoll: Array(3).fill(sample(cpu)), PgBouncer: Array(3).fill(sample(1)) }),
    ];
    assert.deepEqual(outcomes(rows(0.9)), ['select-c8: CPU of epoll at most 1.00 x PgBouncer: holds']);
    assert.deepEqual(outcomes(rows(1.2)), ['select-c8: CPU of epoll at most 1.00 x PgBouncer: misses']);
  });

  it('say nothing of what was not measured', () => {
    assert.deepEqual(verdictsOn([row('select-c8', { Postern: [1, 1, 1] })], [], []), []);
  });

  it('count the memory of sessions beyond the first 1,000', () => {
    const growth = (last: number): GrowthRow => ({
      title: 'Postern',
      name: 'Postern',
      server: 'trusting',
      points: [
        [0, 40_000],
        [1000, 60_000],
        [10_000, last],
      ],
    });
    assert.equal(perSessionBeyond(growth(60_000 + 9 * 7000), 1000), 7);
    assert.equal(perSessionBeyond(growth(60_000), 500), undefined);
    assert.equal(verdictsOn([], [growth(60_000 + 9 * 7000)], [])[0]?.outcome, 'holds');
    assert.equal(verdictsOn([], [growth(60_000 + 9 * 9000)], [])[0]?.outcome, 'misses');
  });

  it('hold a start to its time and its memory, but not where it waited longer for a core than it ran', () => {
    const start = (ready: number, cpu: number, kibibytes: number) =>
      verdictsOn(
        [],
        [],
        [{ title: 'Postern, one service', ready: [ready], cpu: [cpu], resident: [[kibibytes, 0, 0]] }],
      ).map(({ outcome }) => outcome);
    assert.deepEqual(start(200, 150, 50 * 1024), ['holds', 'holds']);
    assert.deepEqual(start(300, 200, 70 * 1024), ['misses', 'misses']);
    assert.deepEqual(start(900, 200, 50 * 1024), ['cannot tell', 'holds']);
  });
});
