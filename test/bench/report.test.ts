import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { markdown, type Results } from '../../bench/report.ts';
import { cpuOf, noiseOf, type Row, ratios, spreadOf } from '../../bench/rows.ts';

function row(samples: Readonly<Record<string, readonly number[]>>): Row {
  const entries = Object.entries(samples).map(
    ([name, values]) => [name, values.map((value) => ({ value }))] as const,
  );
  return { id: 'select', title: 'select', unit: 'tps', samples: Object.fromEntries(entries) };
}

function results(rows: readonly Row[]): Results {
  return { command: 'npm run bench', facts: { date: 'today' }, rows, memory: [], missing: [] };
}

describe('the report of the benchmark', () => {
  it('takes the middle value of an odd number, and the mean of the two of an even one', () => {
    assert.deepEqual(spreadOf([30, 10, 20]), { median: 20, least: 10, most: 30 });
    assert.deepEqual(spreadOf([10, 40, 20, 30]), { median: 25, least: 10, most: 40 });
  });

  it('compares within a round, so that a slow round counts for both', () => {
    const measured = row({ direct: [100, 10, 100], Postern: [50, 5, 50] });
    assert.deepEqual(ratios(measured, 'Postern'), [0.5, 0.5, 0.5]);
    assert.match(markdown(results([measured])), /\| 0\.50 \(0\.50 to 0\.50\) \|/);
  });

  it('says that it cannot tell when the direct runs are far apart', () => {
    const calm = row({ direct: [100, 140], Postern: [50, 50] });
    assert.equal(noiseOf(calm), 1.4);
    assert.doesNotMatch(markdown(results([calm])), /too noisy/);
    const noisy = row({ direct: [100, 160], Postern: [50, 50] });
    assert.match(markdown(results([noisy])), /^- noise: too noisy to tell in every row /m);
    assert.match(markdown(results([calm, { ...noisy, title: 'COPY' }])), /too noisy to tell in COPY \(/);
    assert.match(markdown(results([noisy])), / 1\.60 \(too noisy\) \|$/m);
  });

  it('does not call one round quiet', () => {
    const text = markdown(results([row({ direct: [100], Postern: [50] })]));
    assert.match(text, /one round says nothing about it/);
  });

  it('leaves the columns of a candidate empty that was not here', () => {
    const text = markdown(results([row({ direct: [100, 100], Postern: [50, 50] })]));
    assert.match(text, /\| 0\.50 \(0\.50 to 0\.50\) \| +\| +\| +1\.00 \|$/m);
  });

  it('gives the CPU time of each round for 100,000 transactions', () => {
    const measured: Row = {
      ...row({ direct: [100] }),
      samples: { Postern: [{ value: 1, cpuSeconds: 2, transactions: 50_000 }, { value: 1 }] },
    };
    assert.deepEqual(cpuOf(measured, 'Postern'), [4]);
    assert.deepEqual(cpuOf(measured, 'direct'), []);
  });

  it('compares Postern with `changeUser: relay` in a table of its own, within a round', () => {
    const text = markdown(
      results([row({ direct: [100, 100], Postern: [45, 90], relay: [50, 100] }), row({ direct: [1] })]),
    );
    const [, own = ''] = text.split('What it costs to look for COM_CHANGE_USER');
    assert.match(
      own,
      /^\| select, tps \| +68 \(45 to 90\) \| +75 \(50 to 100\) \| 0\.90 \(0\.90 to 0\.90\) \|/m,
    );
    assert.equal(own.match(/^\| select, tps/gm)?.length, 1);
  });

  it('has no table of COM_CHANGE_USER where that was not measured', () => {
    assert.doesNotMatch(markdown(results([row({ direct: [100], Postern: [50] })])), /COM_CHANGE_USER/);
  });
});
