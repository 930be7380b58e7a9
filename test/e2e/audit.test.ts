import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import { canary } from '../support/servers.ts';
import { until } from '../support/session.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-audit-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const yaml = (audit: string) => `version: 2
${audit}
services:
  orders:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: me, password: { from: env, get: PASSWORD } }
    config: { host: 127.0.0.1, port: 1 }
`;

function events(file: string): string[] {
  if (!existsSync(file)) return [];
  return readFileSync(file, 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((line) => String((JSON.parse(line) as Record<string, unknown>)['event']));
}

describe('the audit of the running program', { timeout: 120_000 }, () => {
  it('begins, moves, stays and ends as reloads say, and follows a rotated file', async () => {
    const [first, second] = [join(folder, 'a.jsonl'), join(folder, 'b.jsonl')];
    await using postern = await Postern.start(yaml(''), { env: { PASSWORD: canary.postgres } });
    const failing = async () => {
      await psql([
        `host=127.0.0.1 port=${postern.port('orders')} user=x dbname=y sslmode=disable`,
        '-c',
        'SELECT 1',
      ]);
    };
    let reloads = 0;
    const reload = async (audit: string, succeeds = true) => {
      await postern.writeConfig(yaml(audit));
      postern.signal('SIGHUP');
      reloads += 1;
      const outcomes = () =>
        postern.lines.filter(({ msg }) => msg.startsWith('configuration ')).map(({ msg }) => msg);
      await until('the reload', () => outcomes().length === reloads);
      assert.equal(outcomes().at(-1) === 'configuration reloaded', succeeds, postern.output.slice(-2000));
    };

    await failing();
    await reload(`audit: { file: ${first} }`);
    await failing();
    await until('a session', () => events(first).includes('session'));
    assert.deepEqual(events(first), ['reload', 'session']);

    // What cannot be opened changes nothing.
    await reload(`audit: { file: ${join(folder, 'missing', 'c.jsonl')} }`, false);
    await failing();
    await until('the next session', () => events(first).length === 4);
    assert.deepEqual(events(first), ['reload', 'session', 'reload', 'session']);

    await reload(`audit: { file: ${second}, events: [session, stop] }`);
    await failing();
    await until('a session in the other file', () => events(second).length === 1);

    renameSync(second, `${second}.1`);
    await reload(`audit: { file: ${second}, events: [session, stop] }`);
    await failing();
    await until('a session in the new file', () => events(second).length === 1);

    await reload('');
    await failing();
    assert.equal(await postern.stop(), 0);
    assert.deepEqual(events(first), ['reload', 'session', 'reload', 'session']);
    assert.deepEqual(events(`${second}.1`), ['session']);
    assert.deepEqual(events(second), ['session']);
  });

  it('shares standard output with the log, line by line', async () => {
    await using postern = await Postern.start(yaml('audit: { file: stdout }'), {
      env: { PASSWORD: canary.postgres },
    });
    await Promise.all(
      Array.from({ length: 20 }, () =>
        psql([
          `host=127.0.0.1 port=${postern.port('orders')} user=x dbname=y sslmode=disable`,
          '-c',
          'SELECT 1',
        ]),
      ),
    );
    await until(
      'the records',
      () => postern.lines.filter((line) => line['event'] === 'session').length === 20,
    );
    assert.equal(await postern.metric('postern_audit_records_total', { outcome: 'written' }), 21);
    assert.equal(await postern.stop(), 0);
    assert.equal(postern.lines.at(-1)?.msg ?? postern.lines.at(-2)?.msg, 'stopped');
  });

  it('does not let it start with a file that cannot be', async () => {
    await assert.rejects(
      Postern.start(yaml(`audit: { file: ${folder} }`), { env: { PASSWORD: canary.postgres } }),
      /ended with 1:.*the file of the audit, .*, cannot be opened: EISDIR/s,
    );
  });
});
