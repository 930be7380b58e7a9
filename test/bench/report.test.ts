import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { markdown, type Results, recordOf } from '../../bench/report.ts';
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
    assert.match(markdown(results([noisy])), / 1\.60 \(too noisy\) \|/);
  });

  it('says that it cannot tell when others used the machine, and counts the rounds in which they did not', () => {
    const sample = (foreignCores: number) => ({ value: 100, foreignCores });
    const busy: Row = {
      ...row({}),
      samples: {
        direct: [sample(0.1), sample(0.1), sample(1)],
        Postern: [sample(0.1), sample(0.9), sample(0.9)],
      },
    };
    const text = markdown(results([busy]));
    assert.match(text, /^- noise: too noisy to tell in every row /m);
    assert.match(text, /\| +0\.50 \| +1 of 3 \|$/m);
  });

  it('does not call one round quiet', () => {
    const text = markdown(results([row({ direct: [100], Postern: [50] })]));
    assert.match(text, /one round says nothing about it/);
  });

  it('has columns for those who were here, and leaves them empty where one had no part', () => {
    const both = row({ direct: [100, 100], Postern: [50, 50], Go: [25, 25] });
    const one = { ...row({ direct: [100, 100], Postern: [50, 50] }), title: 'other' };
    const text = markdown(results([both, one]));
    assert.match(text, /^\| +\| direct \| Postern \| +Go \| direct, most\/least/m);
    assert.match(text, /^\| other, tps +\| +100 \| +50 \| +\| +1\.00 \|/m);
    assert.doesNotMatch(text, /\| HAProxy/);
  });

  it('says below the table what limits each row', () => {
    const text = markdown(results([{ ...row({ direct: [1] }), limit: 'The cores.' }]));
    assert.match(text, /^- select: The cores\.$/m);
  });

  it('counts the memory of a session from the first thousand on', () => {
    const points = [
      [0, 50_000],
      [1000, 90_000],
      [10_000, 162_000],
    ] as const;
    const growth = [{ title: 'Postern', name: 'Postern', server: 'trusting', points } as const];
    assert.match(markdown({ ...results([]), growth }), /^\| Postern .* 8\.0 KiB \|$/m);
  });

  it('keeps each section by itself, with the facts of the run and the noise of its own rows', () => {
    const noisy = { ...row({ direct: [100, 200], Postern: [50, 50] }), id: 'http-64k', title: 'HTTP' };
    const recorded = recordOf(results([row({ direct: [100, 100], Postern: [50, 50] }), noisy]), [
      'database',
      'http',
    ]);
    assert.deepEqual(
      recorded.map(({ section }) => section),
      ['database', 'http'],
    );
    const [database = '', http = ''] = recorded.map(({ text }) => text);
    for (const text of [database, http]) assert.match(text, /^Command: `npm run bench`\n\n- date: today\n/);
    assert.doesNotMatch(database, /too noisy|HTTP/);
    assert.match(http, /too noisy to tell in every row/);
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
      results([
        { ...row({ direct: [100, 100], Postern: [45, 90], relay: [50, 100] }), id: 'mysql-change-user' },
        { ...row({ direct: [1] }), id: 'mysql-select-c8' },
      ]),
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
