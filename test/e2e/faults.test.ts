import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';

import { server, startOpenBao } from '../support/servers.ts';
import { application, ask, loginOf, perform, refused, shared, towards } from './stage.ts';

describe('a secret store', () => {
  const scene = shared(async () => {
    const postgres = await server('postgres18');
    const bao = await startOpenBao();
    after(() => bao.stop());
    return { bao, postgres };
  });

  it('that is sealed refuses new sessions at once, leaves the others alone, and is used again after', async (t) => {
    const servers = await scene(t);
    if (!servers) return;
    const { bao, postgres } = servers;
    const credentials = await loginOf(bao, 'scram_user');
    await using postern = await perform(bao, { db: { credentials, config: towards(postgres) } });
    const port = postern.port('db');
    const session = await application(port);

    await bao.seal();
    const { code, ms } = await refused(port);
    assert.equal(code, '57P03');
    assert.ok(ms < 1000, `refused after ${ms} ms`);
    assert.equal((await session.query('select 1')).rowCount, 1);
    await bao.unseal();
    assert.equal((await ask(port, 'select 1 as one'))['one'], 1);
    await session.end();
  });
});
