import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';

import { IdleFollower } from '../../../src/connectors/postgres/idle.ts';
import { encodeMessage, encodeStartup, int32 } from '../../../src/connectors/postgres/messages.ts';
import { PosternError } from '../../../src/core/errors.ts';
import { withServer } from '../../support/servers.ts';
import { type Peer, Served } from '../../support/session.ts';

const text = (value: string) => Buffer.from(`${value}\0`);
const query = (sql: string) => encodeMessage('Q', text(sql));
const parse = (sql: string) => encodeMessage('P', text(''), text(sql), Buffer.alloc(2));
const bind = encodeMessage('B', text(''), text(''), Buffer.alloc(6));
const execute = encodeMessage('E', text(''), int32(0));
const sync = encodeMessage('S');
const flush = encodeMessage('H');
const copyData = encodeMessage('d', Buffer.from('1\n'));
const copyDone = encodeMessage('c');
const copyFail = encodeMessage('f', text('no'));
const extended = (sql: string) => Buffer.concat([parse(sql), bind, execute]);

/** What a client does, and the message types that end its part. */
interface Act {
  readonly what: string;
  readonly sends: readonly (Buffer | { readonly after: string; readonly sends: Buffer })[];
  /** ReadyForQuery messages that come back in all. */
  readonly ready: number;
}

const complete: readonly Act[] = [
  { what: 'a query', sends: [query('select 1')], ready: 1 },
  { what: 'an empty query', sends: [query('')], ready: 1 },
  { what: 'a query that fails', sends: [query('select 1/0')], ready: 1 },
  {
    what: 'several statements in one query',
    sends: [query('select 1; select 2; set work_mem = 4096')],
    ready: 1,
  },
  {
    what: 'queries sent ahead',
    sends: [Buffer.concat([query('select 1'), query('select 2'), query('select 3')])],
    ready: 3,
  },
  { what: 'a transaction', sends: [query('begin'), query('select 1'), query('commit')], ready: 3 },
  {
    what: 'a failed transaction that was rolled back',
    sends: [query('begin'), query('select 1/0'), query('rollback')],
    ready: 3,
  },
  { what: 'an extended query', sends: [Buffer.concat([extended('select 1'), sync])], ready: 1 },
  { what: 'an extended query that fails', sends: [Buffer.concat([extended('select 1/0'), sync])], ready: 1 },
  {
    what: 'a pipeline of three batches',
    sends: [
      Buffer.concat([extended('select 1'), sync, extended('select 2'), sync, extended('select 3'), sync]),
    ],
    ready: 3,
  },
  { what: 'a flush and a later sync', sends: [Buffer.concat([extended('select 1'), flush]), sync], ready: 1 },
  {
    what: 'a function call',
    sends: [encodeMessage('F', int32(1598), Buffer.of(0, 0, 0, 0, 0, 0))],
    ready: 1,
  },
  {
    what: 'COPY to the client',
    sends: [query('copy (select generate_series(1, 10000)) to stdout')],
    ready: 1,
  },
  {
    what: 'COPY from the client',
    sends: [
      query('create temp table t (i int)'),
      query('copy t from stdin'),
      { after: 'G', sends: Buffer.concat([copyData, copyDone]) },
    ],
    ready: 2,
  },
  {
    what: 'COPY from the client that it gives up',
    sends: [
      query('create temp table t (i int)'),
      query('copy t from stdin'),
      { after: 'G', sends: copyFail },
    ],
    ready: 2,
  },
  {
    what: 'COPY from the client that the server gives up',
    sends: [
      query('create temp table t (i int)'),
      query('copy t from stdin'),
      { after: 'G', sends: encodeMessage('d', Buffer.from('no number\n')) },
      { after: 'E', sends: copyDone },
    ],
    ready: 2,
  },
  {
    what: 'COPY in the extended protocol with a sync too early',
    sends: [
      query('create temp table t (i int)'),
      Buffer.concat([extended('copy t from stdin'), sync]),
      { after: 'G', sends: Buffer.concat([copyData, copyDone, sync]) },
    ],
    ready: 2,
  },
  {
    what: 'COPY in the extended protocol that fails',
    sends: [
      query('create temp table t (i int)'),
      Buffer.concat([extended('copy t from stdin'), sync]),
      { after: 'G', sends: encodeMessage('d', Buffer.from('no number\n')) },
      { after: 'E', sends: sync },
    ],
    ready: 2,
  },
  {
    what: 'notices and notifications',
    sends: [query('listen c'), query("do $$ begin raise notice 'n'; end $$; notify c")],
    ready: 2,
  },
];

const underWay: readonly Act[] = [
  { what: 'a slow query', sends: [query('select pg_sleep(20)')], ready: 1 },
  { what: 'a transaction', sends: [query('begin')], ready: 1 },
  { what: 'a failed transaction', sends: [query('begin; select 1/0')], ready: 1 },
  { what: 'a batch without its sync', sends: [Buffer.concat([extended('select 1'), flush])], ready: 0 },
  {
    what: 'a COPY from the client',
    sends: [
      query('create temp table t (i int)'),
      query('copy t from stdin'),
      { after: 'G', sends: copyData },
    ],
    ready: 1,
  },
  { what: 'half a message of the client', sends: [query('select 1').subarray(0, 9)], ready: 0 },
];

async function open(
  t: TestContext,
  drainTimeout = 10_000,
): Promise<{ served: Served; client: Peer } | undefined> {
  const info = await withServer(t, 'postgres18');
  if (!info) return undefined;
  const served = await Served.open({
    settings: { host: info.host, port: info.port, database: info.database, tls: { mode: 'disable' } },
    credentials: { username: 'trust_user' },
    onRotation: 'drain',
    drainTimeout,
  });
  const client = await served.connect();
  client.send(
    encodeStartup([
      ['user', 'whoever'],
      ['database', info.database],
    ]),
  );
  await readUntil(client, 'Z');
  return { served, client };
}

/** Reads messages until one of this type; gives it. */
async function readUntil(client: Peer, type: string): Promise<Buffer> {
  for (;;) {
    const head = await client.read(5);
    const body = await client.read(head.readInt32BE(1) - 4);
    if (head.toString('latin1', 0, 1) === type) return body;
  }
}

async function act(client: Peer, { sends, ready }: Act): Promise<void> {
  let seen = 0;
  for (const [i, step] of sends.entries()) {
    if (Buffer.isBuffer(step)) client.send(step);
    else {
      await readUntil(client, step.after);
      client.send(step.sends);
    }
    const next = sends[i + 1];
    // One question at a time, unless the next step belongs to this one.
    if (Buffer.isBuffer(next) && seen < ready && Buffer.isBuffer(step) && !step.subarray(-5).equals(flush)) {
      await readUntil(client, 'Z');
      seen += 1;
    }
  }
  for (; seen < ready; seen += 1) await readUntil(client, 'Z');
}

function expire(served: Served): void {
  for (const session of served.sessions) session.expire('the test wants it to end');
}

describe('a PostgreSQL session that is to end', () => {
  for (const each of complete)
    it(`ends at once after ${each.what}, and says why`, async (t) => {
      const opened = await open(t);
      if (!opened) return;
      await using served = opened.served;
      await act(opened.client, each);
      expire(served);
      const error = (await readUntil(opened.client, 'E')).toString('latin1');
      assert.match(error, /C57P01\0.*Mpostern: the test wants it to end\0/);
      assert.equal((await opened.client.rest()).length, 0);
      assert.equal((await served.ended()).outcome, 'SESSION_EXPIRED');
    });

  for (const each of underWay)
    it(`does not end in the middle of ${each.what}`, async (t) => {
      const opened = await open(t);
      if (!opened) return;
      await using served = opened.served;
      if (each.what === 'a slow query') opened.client.send(query('select pg_sleep(20)'));
      else await act(opened.client, each);
      await sleep(50);
      expire(served);
      await sleep(150);
      assert.equal(served.reports.length, 0);
      opened.client.destroy();
    });

  it('gives what is under way its whole answer first', async (t) => {
    const opened = await open(t);
    if (!opened) return;
    await using served = opened.served;
    opened.client.send(query("select repeat('x', 1000000), pg_sleep(0.2)"));
    await sleep(50);
    expire(served);
    assert.ok((await readUntil(opened.client, 'D')).length > 1_000_000);
    assert.equal((await readUntil(opened.client, 'Z')).toString(), 'I');
    assert.match((await readUntil(opened.client, 'E')).toString('latin1'), /C57P01/);
    await served.ended();
  });

  it('is cut off when its time is over', async (t) => {
    const opened = await open(t, 200);
    if (!opened) return;
    await using served = opened.served;
    await act(opened.client, { what: '', sends: [query('begin')], ready: 1 });
    expire(served);
    assert.equal((await served.ended()).outcome, 'SESSION_EXPIRED');
  });
});

describe('following a PostgreSQL conversation', () => {
  it('comes to the same end however the bytes are cut', () => {
    const dialogue = [
      { from: 'client', bytes: Buffer.concat([extended('select 1'), sync, query('select 2')]) },
      {
        from: 'server',
        bytes: Buffer.concat([encodeMessage('1'), encodeMessage('2'), encodeMessage('Z', Buffer.from('I'))]),
      },
      {
        from: 'server',
        bytes: Buffer.concat([encodeMessage('D', Buffer.alloc(300)), encodeMessage('Z', Buffer.from('I'))]),
      },
    ] as const;
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 40 }), (size) => {
        const follower = new IdleFollower('test');
        for (const { from, bytes } of dialogue)
          for (let at = 0; at < bytes.length; at += size) {
            assert.equal(follower.atRest, from === 'client' && at === 0);
            const chunk = bytes.subarray(at, at + size);
            if (from === 'client') follower.fromClient(chunk);
            else follower.fromUpstream(chunk);
          }
        assert.ok(follower.atRest);
      }),
    );
  });

  it('never takes noise for rest after a question, and never throws', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 60 })), (chunks) => {
        const follower = new IdleFollower('test');
        follower.fromClient(query('select 1').subarray(0, 5));
        for (const [i, chunk] of chunks.entries())
          if (i % 2 === 0) follower.fromClient(Buffer.from(chunk));
          else follower.fromUpstream(Buffer.from(chunk));
        assert.equal(typeof follower.atRest, 'boolean');
      }),
    );
  });

  it('says nothing of rest any more when the server speaks out of turn', () => {
    const follower = new IdleFollower('test');
    follower.fromUpstream(encodeMessage('Z', Buffer.from('I')));
    assert.equal(follower.atRest, false);
    assert.match(follower.farewell(new PosternError('SHUTDOWN', 'bye')).toString('latin1'), /C57P01/);
  });
});
