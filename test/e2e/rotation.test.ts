import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { describe, it } from 'node:test';

import { sql } from '../support/servers.ts';
import { ask, keep, perform, stage, towards } from './stage.ts';

describe('a password that is rotated', () => {
  it('is not noticed by who connects after both the server and the store have the new one', async (t) => {
    const servers = await stage(t);
    if (!servers) return;
    const { openbao, postgres18 } = servers;
    const role = `rotated_${process.pid}`;
    await sql(postgres18, `create role ${role} login`);
    t.after(() => sql(postgres18, `drop role ${role}`));
    const { path, references } = await keep(openbao, { username: role, password: 'none yet' });
    await using postern = await perform(openbao, {
      db: { credentials: references, config: towards(postgres18) },
    });
    for (let turn = 0; turn < 100; turn++) {
      const password = randomUUID();
      const inServer = () => sql(postgres18, `alter role ${role} password '${password}'`);
      const inStore = () => openbao.write(path, { data: { username: role, password } });
      for (const change of turn % 2 === 0 ? [inServer, inStore] : [inStore, inServer]) await change();
      assert.equal((await ask(postern.port('db'), 'select session_user as who'))['who'], role);
      assert.ok(!postern.output.includes(password), 'the password is in the output');
    }
  });
});
