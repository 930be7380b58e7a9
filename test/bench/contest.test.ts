import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { compete, type Plan, sectionOf, wanted } from '../../bench/contest.ts';

const plan: Plan = {
  rounds: 3,
  seconds: 1,
  httpSeconds: 1,
  only: [],
  quick: true,
  record: false,
  megabytes: 1,
  idle: { http: 1, postgres: [0], trusting: [0] },
};

describe('the rows of the benchmark', () => {
  it('belong to the sections of the page', () => {
    const ids = ['select-c8', 'copy-tls', 'mysql-connect', 'http-memory', 'memory', 'start'];
    assert.deepEqual(ids.map(sectionOf), ['database', 'database', 'mysql', 'http', 'start', 'start']);
  });

  it('are let in by section, by the beginning of a name, and those of PostgreSQL by any part of it', () => {
    const chosen = (...only: string[]) =>
      ['select-c8-tls', 'connect', 'mysql-select-c8', 'http-tls', 'memory', 'start'].filter((id) =>
        wanted(id, { only }),
      );
    assert.deepEqual(chosen('select'), ['select-c8-tls']);
    assert.deepEqual(chosen('tls'), ['select-c8-tls']);
    assert.deepEqual(chosen('http'), ['http-tls']);
    assert.deepEqual(chosen('mysql', 'connect'), ['connect', 'mysql-select-c8']);
    assert.deepEqual(chosen('database'), ['select-c8-tls', 'connect']);
    assert.deepEqual(chosen('start'), ['memory', 'start']);
    assert.equal(chosen().length, 6);
  });

  it('are measured with everyone in each round, in reverse in every other', async () => {
    const order: string[] = [];
    const entrant = (name: string) => ({
      name,
      measure: () => {
        order.push(name);
        return Promise.resolve({ value: order.length });
      },
    });
    const contest = {
      id: 'select-c8',
      title: 'select',
      unit: 'tps',
      entrants: ['direct', 'Go'].map(entrant),
    };
    const [row] = await compete([contest], plan, () => {});
    assert.deepEqual(order, ['direct', 'Go', 'Go', 'direct', 'direct', 'Go']);
    assert.deepEqual(
      row?.samples['Go']?.map(({ value }) => value),
      [2, 3, 6],
    );
  });
});
