import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { application, busy, loginOf, perform, stage, towards } from './stage.ts';

describe('SIGTERM', () => {
  it('lets a running query finish, refuses who comes now, and ends with 0', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const credentials = await loginOf(openbao, 'scram_user');
    await using postern = await perform(openbao, { db: { credentials, config: towards(postgres18) } });
    const client = await application(postern.port('db'));
    const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
    const answer = client.query<{ answer: number }>('select 42 as answer, pg_sleep(1)');
    await busy(postgres18, rows[0]?.pid ?? 0);

    postern.signal('SIGTERM');
    await postern.logged((line) => line.msg === 'stopping');
    await assert.rejects(application(postern.port('db')), { code: 'ECONNREFUSED' });
    assert.equal((await answer).rows[0]?.answer, 42);
    await client.end();
    assert.deepEqual(await postern.exited(), { code: 0, signal: null });
  });
});
