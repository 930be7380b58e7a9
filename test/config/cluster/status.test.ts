import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { nextStatus, type ResourceStatus, statusWithout } from '../../../src/config/cluster/status.ts';

const at = (minutes: number) => new Date(Date.UTC(2026, 0, 1, 12, minutes));
const fine = { generation: 3, trouble: undefined };
const bad = { generation: 3, trouble: { code: 'CONFIG_INVALID', message: 'one\ntwo' } };
const unable = { generation: 3, trouble: { code: 'LISTEN_FAILED', message: 'the port is taken' } };

function must(status: ResourceStatus | undefined): ResourceStatus {
  assert.ok(status, 'nothing was to be written');
  return status;
}

const summary = ({ conditions = [] }: ResourceStatus) =>
  conditions.map(({ type, status, reason }) => `${type}=${status} ${reason}`);

describe('the status of a configuration that many instances share', () => {
  it('is written by the first that is well, and left alone by the others', () => {
    const first = must(nextStatus({}, 'a', fine, at(0)));
    assert.deepEqual(summary(first), ['Accepted=True Accepted', 'Ready=True InForce']);
    for (const name of ['a', 'b', 'c']) assert.equal(nextStatus(first, name, fine, at(5)), undefined);
  });

  it('tells of one that has trouble whatever the others find, until that one is well', () => {
    const well = must(nextStatus({}, 'a', fine, at(0)));
    const one = must(nextStatus(well, 'b', bad, at(1)));
    assert.deepEqual(summary(one), ['Accepted=False CONFIG_INVALID', 'Ready=False CONFIG_INVALID']);
    assert.equal(one.conditions?.[0]?.message, 'b: one; two');
    assert.equal(nextStatus(one, 'a', fine, at(2)), undefined, 'another one does not overrule it');
    assert.equal(nextStatus(one, 'b', bad, at(2)), undefined, 'it does not repeat itself at once');
    const two = must(nextStatus(one, 'c', unable, at(3)));
    assert.match(two.conditions?.[1]?.message ?? '', /^b: one; two \(and 1 other instance/);
    const rest = must(nextStatus(two, 'b', fine, at(4)));
    assert.deepEqual(summary(rest), ['Accepted=True Accepted', 'Ready=False LISTEN_FAILED']);
    assert.equal(rest.conditions?.[0]?.lastTransitionTime, at(4).toISOString());
    assert.equal(rest.conditions?.[1]?.lastTransitionTime, at(1).toISOString(), 'it has not changed since');
  });

  it('forgets what was said of another generation, and by those that died', () => {
    const old = must(nextStatus({}, 'dead', { ...bad, generation: 2 }, at(0)));
    assert.deepEqual(must(nextStatus(old, 'a', fine, at(1))).instances, []);
    const dead = must(nextStatus({}, 'dead', bad, at(0)));
    assert.equal(nextStatus(dead, 'a', fine, at(29)), undefined);
    assert.deepEqual(summary(must(nextStatus(dead, 'a', fine, at(31)))), [
      'Accepted=True Accepted',
      'Ready=True InForce',
    ]);
    // One that lives says it again before that.
    assert.equal(nextStatus(dead, 'dead', bad, at(9)), undefined);
    assert.ok(nextStatus(dead, 'dead', bad, at(11)));
  });

  it('has a bound on instances and on what each of them says', () => {
    let status: ResourceStatus = {};
    for (let i = 0; i < 50; i++) {
      const trouble = { code: 'CONFIG_INVALID', message: 'x'.repeat(100_000) };
      status = nextStatus(status, `pod-${i}`, { generation: 1, trouble }, at(0)) ?? status;
    }
    assert.equal(status.instances?.length, 16);
    assert.ok(JSON.stringify(status).length < 25_000);
    assert.equal(nextStatus(status, 'pod-49', { generation: 1, trouble: bad.trouble }, at(1)), undefined);
  });

  it('loses the word of an instance that ends, and no condition', () => {
    const one = must(nextStatus({}, 'a', bad, at(0)));
    const without = must(statusWithout(one, 'a'));
    assert.deepEqual(without.instances, []);
    assert.deepEqual(without.conditions, one.conditions);
    assert.equal(statusWithout(without, 'a'), undefined);
  });
});
