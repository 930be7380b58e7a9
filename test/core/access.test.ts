import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { describe, it } from 'node:test';

import {
  Access,
  type AccessRules,
  Bucket,
  KnownPassword,
  type LocalPassword,
} from '../../src/core/access.ts';
import { Credentials } from '../../src/core/credentials.ts';
import type { Peer } from '../../src/core/peer.ts';
import { Secret } from '../../src/core/secret.ts';

const open: AccessRules = {
  uids: undefined,
  gids: undefined,
  executables: undefined,
  maxConnectionsPerPeer: undefined,
  loginRate: undefined,
  loginRatePerPeer: undefined,
};
const somebody: Peer = { uid: 1000, gids: [1000, 27], pid: 42, executables: ['/usr/bin/psql'] };
const client = { remoteAddress: '127.0.0.1' } as Socket;
const { signal } = new AbortController();

async function meet(rules: Partial<AccessRules>, peer: Peer | undefined = somebody) {
  const access = new Access('orders', { ...open, ...rules }, undefined, async () => peer);
  return await access.meet(client, signal);
}

describe('the rules of access', () => {
  it('let in whom every rule that is given knows, and say who it was', async () => {
    const visitor = await meet({
      uids: new Set([1, 1000]),
      gids: new Set([27]),
      executables: new Set(['/usr/bin/psql']),
    });
    visitor.enter();
    visitor.leave();
    assert.deepEqual(visitor.facts, { peerUid: 1000, peerPid: 42, peerExecutable: '/usr/bin/psql' });
  });

  it('refuse whom one of them does not know', async () => {
    for (const rules of [
      { uids: new Set([1]), gids: new Set([27]) },
      { uids: new Set([1000]), gids: new Set([28]) },
      { uids: new Set([1000]), executables: new Set(['/usr/bin/true']) },
    ])
      assert.throws(await meet(rules).then((visitor) => () => visitor.enter()), { code: 'ACCESS_DENIED' });
  });

  it('refuse whoever cannot be found out, also when asking fails', async () => {
    const access = new Access('orders', { ...open, uids: new Set([0]) }, undefined, async () => {
      throw new Error('no such process');
    });
    const visitor = await access.meet(client, signal);
    assert.throws(() => visitor.enter(), { code: 'ACCESS_DENIED', message: /cannot be found out/ });
    const noGroups = { ...somebody, gids: undefined };
    assert.throws(await meet({ gids: new Set([1000]) }, noGroups).then((it) => () => it.enter()), {
      code: 'ACCESS_DENIED',
    });
    const noProgram = { ...somebody, executables: undefined };
    assert.throws(
      await meet({ executables: new Set(['/usr/bin/psql']) }, noProgram).then((it) => () => it.enter()),
      { code: 'ACCESS_DENIED' },
    );
  });

  it('refuse a socket that another program holds, too', async () => {
    const two = { ...somebody, executables: ['/usr/bin/psql', '/usr/bin/evil'] };
    assert.throws(
      await meet({ executables: new Set(['/usr/bin/psql']) }, two).then((it) => () => it.enter()),
      { code: 'ACCESS_DENIED' },
    );
  });

  it('count the places of each peer for itself, and give them back once', async () => {
    let uid = 1;
    const access = new Access('orders', { ...open, maxConnectionsPerPeer: 1 }, undefined, async () => ({
      ...somebody,
      uid,
    }));
    const [first, second] = [await access.meet(client, signal), await access.meet(client, signal)];
    first.enter();
    assert.throws(() => second.enter(), { code: 'LIMIT_REACHED' });
    second.leave();
    uid = 2;
    (await access.meet(client, signal)).enter();
    first.leave();
    first.leave();
    second.enter();
    uid = 1;
    const third = await access.meet(client, signal);
    assert.throws(() => third.enter(), { code: 'LIMIT_REACHED' });
  });

  it('stop a peer that guesses, with the right password too, and no other', async () => {
    let uid = 1;
    const password: LocalPassword = {
      username: undefined,
      lend: async (use) =>
        await use(new Credentials(new Map([['password', new Secret(Buffer.from('right'))]]))),
      prepared: undefined as never,
    };
    const access = new Access('orders', open, password, async () => ({ ...somebody, uid }));
    const guesser = await access.meet(client, signal);
    const wrong = Array.from(
      { length: 12 },
      async () => await guesser.prove(password, async () => false, signal),
    );
    for (const each of wrong) await assert.rejects(each, { code: 'ACCESS_DENIED' });
    let exchanged = false;
    await assert.rejects(
      guesser.prove(password, async () => (exchanged = true), signal),
      { code: 'RATE_LIMITED' },
    );
    assert.equal(exchanged, false);
    uid = 2;
    await (await access.meet(client, signal)).prove(password, async () => true, signal);
  });

  it('remember a bounded number of peers, those that are inside among them', async () => {
    let address = 0;
    const access = new Access(
      'orders',
      { ...open, maxConnectionsPerPeer: 1 },
      undefined,
      async () => undefined,
    );
    const next = async () =>
      await access.meet({ remoteAddress: `10.0.${address >> 8}.${address++ & 255}` } as Socket, signal);
    for (let i = 0; i < 10_000; i += 1) (await next()).enter();
    // All that come now are one.
    (await next()).enter();
    const other = await next();
    assert.throws(() => other.enter(), { code: 'LIMIT_REACHED' });
  });
});

describe('a bucket', () => {
  it('gives what it holds, and is charged beyond that', () => {
    const bucket = new Bucket({ perSecond: 0.0001, burst: 2 });
    assert.deepEqual([bucket.take(), bucket.take(), bucket.take()], [true, true, false]);
    bucket.charge();
    assert.ok(bucket.empty);
    assert.ok(!bucket.full);
  });
});

describe('a known password', () => {
  it('knows itself and nothing else, and nothing once it is disposed of', () => {
    const known = new KnownPassword(Buffer.from('right'));
    assert.ok(known.equals(Buffer.from('right')));
    for (const other of ['', 'wrong', 'righ', 'right\0', 'r'.repeat(1000)])
      assert.ok(!known.equals(Buffer.from(other)));
    known[Symbol.dispose]();
    assert.ok(!known.equals(Buffer.from('right')));
  });
});
