import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { pino } from 'pino';

import { PosternError } from '../../src/core/errors.ts';
import { LeaseJournal } from '../../src/lifecycle/journal.ts';

const folders: string[] = [];
after(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'journal-'));
  folders.push(folder);
  return folder;
}

function logged() {
  const lines: Record<string, unknown>[] = [];
  const log = pino(
    {},
    { write: (line: string) => void lines.push(JSON.parse(line) as Record<string, unknown>) },
  );
  return { log, lines };
}

const silent = pino({ level: 'silent' });
const lease = (id: string) => ({ provider: 'vault', id });

/** The file that a process which is dead has left, with these leases. */
async function leftBy(folder: string, ids: readonly string[], text?: string): Promise<string> {
  const child = spawn('/bin/sleep', ['100']);
  const journal = new LeaseJournal(folder, silent);
  await journal.add([lease('of the living')]);
  const [mine = ''] = readdirSync(folder);
  const started = readFileSync(`/proc/${child.pid}/stat`, 'latin1').split(') ')[1]?.split(' ')[19];
  await journal.remove([lease('of the living')]);
  await journal.close();
  child.kill('SIGKILL');
  await once(child, 'exit');
  const [boot, namespace] = mine.replace('leases-', '').split('_');
  const name = `leases-${boot}_${namespace}_${child.pid}_${started}.json`;
  writeFileSync(join(folder, name), text ?? JSON.stringify({ version: 1, leases: ids.map(lease) }));
  return name;
}

describe('a journal of leases', () => {
  it('holds ids for nobody else to read, and is gone with the last of them', async () => {
    const folder = join(newFolder(), 'deep', 'state');
    const journal = new LeaseJournal(folder, silent);
    await journal.add([lease('a'), lease('b')]);
    const [name = ''] = readdirSync(folder);
    assert.equal(statSync(join(folder, name)).mode & 0o777, 0o600);
    assert.deepEqual(JSON.parse(readFileSync(join(folder, name), 'utf8')), {
      version: 1,
      leases: [lease('a'), lease('b')],
    });
    await journal.remove([lease('a')]);
    assert.ok(!readFileSync(join(folder, name), 'utf8').includes('"a"'));
    await journal.remove([lease('b')]);
    assert.deepEqual(readdirSync(folder), []);
  });

  it('is whole after any number of changes at once, in few writes', async () => {
    const folder = newFolder();
    const journal = new LeaseJournal(folder, silent);
    const ids = Array.from({ length: 200 }, (_, i) => `lease-${i}`);
    await Promise.all(ids.map((id) => journal.add([lease(id)])));
    const [name = '', ...others] = readdirSync(folder);
    assert.deepEqual(others, []);
    const { leases } = JSON.parse(readFileSync(join(folder, name), 'utf8')) as { leases: { id: string }[] };
    assert.deepEqual(leases.map(({ id }) => id).toSorted(), ids.toSorted());
    await Promise.all(ids.map((id) => journal.remove([lease(id)])));
    assert.deepEqual(readdirSync(folder), []);
  });

  it('that cannot be written says so once, and keeps nobody from using a lease', async () => {
    const file = join(newFolder(), 'file');
    writeFileSync(file, '');
    const { log, lines } = logged();
    const journal = new LeaseJournal(join(file, 'folder'), log);
    await journal.add([lease('a')]);
    await journal.add([lease('b')]);
    assert.equal(lines.length, 1);
    assert.match(String(lines[0]?.['msg']), /cannot be noted/);
  });

  it('of a dead process is revoked by exactly one of many that start at once', async () => {
    const folder = newFolder();
    await leftBy(folder, ['x', 'y']);
    const revoked: string[] = [];
    const sweepers = Array.from(
      { length: 10 },
      (_, i) => new LeaseJournal(folder, silent, `b_1_${1000 + i}_${i}`),
    );
    await Promise.all(
      sweepers.map((journal) =>
        journal.sweep(async (provider, ids) => void revoked.push(...ids.map((id) => `${provider} ${id}`))),
      ),
    );
    assert.deepEqual(revoked.toSorted(), ['vault x', 'vault y']);
    assert.deepEqual(readdirSync(folder), []);
  });

  it('of a living process is left alone', async () => {
    const folder = newFolder();
    const living = new LeaseJournal(folder, silent);
    await living.add([lease('used')]);
    const another = new LeaseJournal(folder, silent, 'b_1_999999_1');
    await another.sweep(() => assert.fail('a lease in use was revoked'));
    assert.equal(readdirSync(folder).length, 1);
    await living.remove([lease('used')]);
  });

  it('of another container counts as dead only when it has been silent for a minute', async () => {
    const folder = newFolder();
    const path = join(folder, 'leases-abc_4026531999_1_77.json');
    writeFileSync(path, JSON.stringify({ version: 1, leases: [lease('elsewhere')] }));
    const revoked: string[] = [];
    const sweep = () =>
      new LeaseJournal(folder, silent).sweep(async (_provider, ids) => void revoked.push(...ids));
    await sweep();
    assert.deepEqual(revoked, []);
    const before = new Date(Date.now() - 61_000);
    utimesSync(path, before, before);
    await sweep();
    assert.deepEqual(revoked, ['elsewhere']);
  });

  it('that a dying sweeper leaves is taken up by the next one', async () => {
    const folder = newFolder();
    const name = await leftBy(folder, ['x']);
    writeFileSync(
      join(folder, name.replace('.json', '-abcdef012345.json')),
      readFileSync(join(folder, name)),
    );
    rmSync(join(folder, name));
    const revoked: string[] = [];
    await new LeaseJournal(folder, silent).sweep(async (_provider, ids) => void revoked.push(...ids));
    assert.deepEqual(revoked, ['x']);
  });

  it('is tried again when the store cannot be asked, and named when it says no', async () => {
    const folder = newFolder();
    await leftBy(folder, ['a']);
    const { log, lines } = logged();
    let asked = 0;
    await new LeaseJournal(folder, log).sweep(() => {
      asked += 1;
      return Promise.reject(
        asked === 1
          ? new PosternError('PROVIDER_UNAVAILABLE', 'sealed')
          : new PosternError('PROVIDER_FAILED', 'permission denied'),
      );
    });
    assert.equal(asked, 2);
    assert.deepEqual(
      lines.map(({ leases }) => leases),
      [['a']],
    );
    assert.deepEqual(readdirSync(folder), []);
  });

  it("that is garbage, or somebody else's file, harms nobody", async () => {
    for (const text of [
      '',
      '{',
      'null',
      '[]',
      '{"leases":7}',
      '{"leases":[1,null,{"id":1},{"provider":"v"}]}',
    ]) {
      const folder = newFolder();
      await leftBy(folder, [], text);
      writeFileSync(join(folder, 'leases.json'), 'mine');
      await new LeaseJournal(folder, silent).sweep(() => assert.fail('there is nothing to revoke'));
      assert.deepEqual(readdirSync(folder), ['leases.json']);
    }
  });

  it('stops sweeping when it is closed, and leaves the rest to the next start', async () => {
    const folder = newFolder();
    await leftBy(folder, ['a']);
    const journal = new LeaseJournal(folder, silent);
    const sweeping = journal.sweep(() => Promise.reject(new PosternError('PROVIDER_UNAVAILABLE', 'down')));
    await new Promise((resolve) => setTimeout(resolve, 100));
    await journal.close();
    await sweeping;
    assert.equal(readdirSync(folder).length, 1);
  });
});
