import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { CancelKeys } from '../../../src/connectors/postgres/cancel.ts';
import type { Target } from '../../../src/connectors/postgres/upstream.ts';
import {
  backendKey,
  broker,
  cancelRequest,
  FakePostgres,
  loginWith,
  message,
  readMessage,
  readUntil,
  readyForQuery,
  startup,
  trust,
} from '../../support/fake-postgres.ts';
import { paces, until } from '../../support/session.ts';

const never = new AbortController().signal;
const hello = (version = 0x0003_0000) => startup([['user', 'whoever']], version);

function targetOf({ port }: FakePostgres): Target {
  return { address: { kind: 'tcp', host: '127.0.0.1', port }, tls: undefined, negotiation: 'postgres' };
}

/** A fake that notes the cancel requests it gets; each is taken only when `release` is called. */
async function cancelled(held = false) {
  const requests: Buffer[] = [];
  let release = () => {};
  const released = new Promise<void>((resolve) => (release = resolve));
  const fake = await FakePostgres.start(async (server) => {
    const { code, body } = await server.packet();
    assert.equal(code, 80877102);
    requests.push(body);
    if (held) await released;
    server.end();
  });
  return { fake, requests, release };
}

describe('a cancel key', () => {
  it('has the process id of the server and a key of its own, 4 bytes for protocol 3.0 and 32 for 3.2', async () => {
    const { fake } = await cancelled();
    await using _ = fake;
    const keys = new CancelKeys();
    for (const { minor, length } of [
      { minor: 0, length: 4 },
      { minor: 1, length: 4 },
      { minor: 2, length: 32 },
    ]) {
      const real = { pid: 0xfffffffe, key: Buffer.alloc(length, 1) };
      using issued = keys.issue(real, targetOf(fake), minor);
      assert.equal(issued.given.pid, real.pid);
      assert.equal(issued.given.key.length, length);
      assert.notDeepEqual(issued.given.key, real.key);
    }
    assert.equal(keys.size, 0);
  });

  it('stands for the key of the server, which alone reaches it', async () => {
    const { fake, requests } = await cancelled();
    await using _ = fake;
    const keys = new CancelKeys();
    const real = { pid: 4711, key: Buffer.from('0123456789abcdef') };
    using issued = keys.issue(real, targetOf(fake), 0);
    assert.equal(await keys.forward(issued.given, 1000, never), true);
    assert.deepEqual(requests, [Buffer.concat([Buffer.of(0, 0, 0x12, 0x67), real.key])]);
  });

  it('works neither with another process id, nor shortened, lengthened or changed, nor as the real one', async () => {
    const { fake, requests } = await cancelled();
    await using _ = fake;
    const keys = new CancelKeys();
    const real = { pid: 4711, key: Buffer.of(1, 2, 3, 4) };
    using issued = keys.issue(real, targetOf(fake), 2);
    const { pid, key } = issued.given;
    const changed = Buffer.from(key);
    changed[31] = (changed[31] ?? 0) ^ 1;
    for (const wrong of [
      { pid: pid + 1, key },
      { pid, key: key.subarray(0, 31) },
      { pid, key: Buffer.concat([key, Buffer.of(0)]) },
      { pid, key: changed },
      { pid, key: Buffer.alloc(0) },
      real,
    ])
      assert.equal(await keys.forward(wrong, 1000, never), false);
    assert.equal(requests.length, 0);
  });

  it('is forgotten with its session, and no other with it', async () => {
    const { fake, requests } = await cancelled();
    await using _ = fake;
    const keys = new CancelKeys();
    const first = keys.issue({ pid: 7, key: Buffer.of(1, 1, 1, 1) }, targetOf(fake), 2);
    const second = keys.issue({ pid: 7, key: Buffer.of(2, 2, 2, 2) }, targetOf(fake), 2);
    assert.equal(keys.size, 2);
    first[Symbol.dispose]();
    assert.equal(await keys.forward(first.given, 1000, never), false);
    assert.equal(await keys.forward(second.given, 1000, never), true);
    assert.deepEqual(
      requests.map((request) => request.subarray(4)),
      [Buffer.of(2, 2, 2, 2)],
    );
    second[Symbol.dispose]();
    second[Symbol.dispose]();
    assert.equal(keys.size, 0);
  });

  it('tells servers apart that use the same process id', async () => {
    const one = await cancelled();
    const two = await cancelled();
    await using _one = one.fake;
    await using _two = two.fake;
    const keys = new CancelKeys();
    using first = keys.issue({ pid: 7, key: Buffer.of(1, 1, 1, 1) }, targetOf(one.fake), 2);
    using second = keys.issue({ pid: 7, key: Buffer.of(2, 2, 2, 2) }, targetOf(two.fake), 2);
    assert.equal(await keys.forward(second.given, 1000, never), true);
    assert.deepEqual([one.requests.length, two.requests.length], [0, 1]);
    assert.equal(await keys.forward(first.given, 1000, never), true);
    assert.deepEqual([one.requests.length, two.requests.length], [1, 1]);
  });

  it('is one request at a time for the server, and one more for all that come while it is under way', async () => {
    const { fake, requests, release } = await cancelled(true);
    await using _ = fake;
    const keys = new CancelKeys();
    using issued = keys.issue({ pid: 7, key: Buffer.of(1, 1, 1, 1) }, targetOf(fake), 0);
    let taken = 0;
    const all = Array.from({ length: 50 }, async () => {
      await keys.forward(issued.given, 5000, never);
      taken += 1;
    });
    await until('the request to arrive', () => requests.length === 1);
    assert.equal(taken, 0, 'a client is told that the server took the request before it did');
    release();
    await Promise.all(all);
    // The first may have hit a query that was over: one of the others may be meant for the next.
    assert.equal(requests.length, 2);
    assert.equal(await keys.forward(issued.given, 5000, never), true);
    assert.equal(requests.length, 3);
  });

  it('fails with the reason when the server cannot be reached, and works again after that', async () => {
    const { fake, requests } = await cancelled();
    await using _ = fake;
    const keys = new CancelKeys();
    using issued = keys.issue({ pid: 7, key: Buffer.of(1, 1, 1, 1) }, targetOf(fake), 0);
    const gone = AbortSignal.abort(new Error('too late'));
    await assert.rejects(keys.forward(issued.given, 5000, gone), /too late/);
    assert.equal(await keys.forward(issued.given, 5000, never), true);
    assert.equal(requests.length, 1);
  });
});

for (const pace of paces)
  describe(`a cancel request, ${pace}`, () => {
    /** Takes logins and cancel requests, and answers a query when it is cancelled. */
    async function cancellable() {
      const cancels: Buffer[] = [];
      const script = loginWith(
        trust,
        [backendKey(99, Buffer.of(9, 9, 9, 9)), readyForQuery],
        async (server) => {
          await readMessage(server);
          await until('the cancel request', () => cancels.length > 0);
          server.send(message('C', Buffer.from('cancelled\0')));
        },
      );
      const opened = await broker(script, { pace });
      let first = true;
      opened.fake.script = async (server) => {
        if (first) {
          first = false;
          return script(server);
        }
        cancels.push((await server.packet()).body);
        server.end();
      };
      return { opened, cancels };
    }

    for (const version of [0x0003_0000, 0x0003_0002])
      it(`reaches the server of the session with the server's own key, for protocol 3.${version & 0xff}`, async () => {
        const { opened, cancels } = await cancellable();
        await using _ = opened;
        const client = await opened.served.connect();
        client.send(hello(version));
        const key = (await readUntil(client, 'Z')).find(({ type }) => type === 'K');
        assert.ok(key);
        client.send(message('Q', Buffer.from('select pg_sleep(100)\0')));

        const canceller = await opened.served.connect();
        canceller.send(cancelRequest(key.body.readInt32BE(), key.body.subarray(4)));
        assert.equal((await canceller.rest()).length, 0);
        canceller.end();
        assert.deepEqual(cancels, [Buffer.of(0, 0, 0, 99, 9, 9, 9, 9)]);
        assert.equal((await readMessage(client)).body.toString(), 'cancelled\0');
        client.end();

        await opened.served.ended(2);
        const cancelling = opened.served.endings.find(({ cancel }) => cancel !== undefined);
        assert.deepEqual([cancelling?.['cancel'], cancelling?.['outcome']], ['forwarded', 'ok']);
        assert.ok(!opened.served.log.includes(key.body.subarray(4).toString('hex')));

        const late = await opened.served.connect();
        late.send(cancelRequest(key.body.readInt32BE(), key.body.subarray(4)));
        await late.rest();
        assert.equal(cancels.length, 1, 'a key outlived its session');
      });

    it('takes no place of the service', async () => {
      await using full = await broker(loginWith(trust), { pace, maxConnections: 1 });
      const client = await full.served.connect();
      client.send(hello());
      await readUntil(client, 'Z');
      const refused = await full.served.connect();
      refused.send(hello());
      assert.match((await refused.rest()).toString('latin1'), /53300/);
      const canceller = await full.served.connect();
      canceller.send(cancelRequest(1, Buffer.alloc(4)));
      assert.equal((await canceller.rest()).length, 0);
    });
  });
