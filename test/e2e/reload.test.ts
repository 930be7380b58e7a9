import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { ask, configuration, loginOf, perform, stage, towards } from './stage.ts';

describe('SIGHUP', () => {
  it('opens a service that is new in the file, and touches no other', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const service = { credentials: await loginOf(openbao, 'scram_user'), config: towards(postgres18) };
    await using postern = await perform(openbao, { first: service });
    const before = postern.port('first');

    await postern.writeConfig(configuration(openbao, { first: service, second: service }));
    postern.signal('SIGHUP');
    await postern.logged((line) => line.msg === 'configuration reloaded');
    assert.equal((await ask(postern.port('second'), 'select 1 as one'))['one'], 1);
    assert.equal(postern.port('first'), before);
    assert.equal((await ask(before, 'select 1 as one'))['one'], 1);
  });
});
