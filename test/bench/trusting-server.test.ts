import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { openSession, residentAt } from '../../bench/measure.ts';
import { psql } from '../support/clients/psql.ts';

describe('the server of the benchmark that trusts everybody', () => {
  const program = fileURLToPath(new URL('../../bench/trusting-server.ts', import.meta.url));
  const child = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] });
  let port = 0;

  before(async () => {
    const [said] = (await once(child.stdout ?? child, 'data')) as [Buffer];
    port = Number(said.toString());
  });
  after(async () => {
    const ended = once(child, 'exit');
    child.disconnect();
    await ended;
  });

  it('lets a real client in and answers its query', async () => {
    const env = {
      PGHOST: '127.0.0.1',
      PGPORT: String(port),
      PGUSER: 'a',
      PGDATABASE: 'b',
      PGSSLMODE: 'disable',
    };
    const { code, stderr } = await psql(['-c', 'select 1'], { env });
    assert.equal(code, 0, stderr);
  });

  it('holds sessions while their memory is counted, at each number that was asked for', {
    skip: process.platform === 'linux' ? false : 'there is no /proc',
  }, async () => {
    const points = await residentAt(
      { pid: child.pid ?? 0, port, [Symbol.asyncDispose]: async () => {} },
      [0, 25, 40],
      openSession,
    );
    assert.deepEqual(
      points.map(([sessions]) => sessions),
      [0, 25, 40],
    );
    assert.ok(points.every(([, kibibytes]) => kibibytes > 1000));
  });
});
