import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';

import { FileWatch } from '../../src/config/watch-files.ts';
import { AtomicWriter } from './cluster/atomic-writer.ts';

const log = pino({ level: 'silent' });

/** A watch of one path, which counts, and hears nothing from looks of its own for a minute. */
async function watched(
  t: TestContext,
  path: string,
  times: { readonly lookEvery?: number } = { lookEvery: 60_000 },
) {
  const seen = { changes: 0 };
  const watch = await FileWatch.open([path], { log, changed: () => (seen.changes += 1), ...times });
  t.after(() => watch.close());
  return seen;
}

async function folderOf(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-watch-'));
  t.after(() => rm(folder, { recursive: true }));
  return folder;
}

async function until(what: string, holds: () => boolean): Promise<void> {
  const end = Date.now() + 20_000;
  while (!holds()) {
    assert.ok(Date.now() < end, what);
    await sleep(10);
  }
}

/** Long enough for a second report of the same change, which would be a bug. */
const pause = () => sleep(600);

describe('watching configuration files', { timeout: 60_000 }, () => {
  it('tells once of a file that is written in place', async (t) => {
    const file = join(await folderOf(t), 'postern.yaml');
    await writeFile(file, 'version: 2\n');
    const seen = await watched(t, file);
    await writeFile(file, 'version: 2\nservices: {}\n');
    await until('the change', () => seen.changes === 1);
    await pause();
    assert.equal(seen.changes, 1);
  });

  it('tells once of an editor that renames a new file over the old one, each time', async (t) => {
    const folder = await folderOf(t);
    const file = join(folder, 'postern.yaml');
    await writeFile(file, 'one');
    const seen = await watched(t, file);
    for (let turn = 1; turn <= 3; turn++) {
      await writeFile(join(folder, '.postern.yaml.swp'), `turn ${turn}`);
      await rename(join(folder, '.postern.yaml.swp'), file);
      await until(`change ${turn}`, () => seen.changes === turn);
    }
    await pause();
    assert.equal(seen.changes, 3);
  });

  it('tells once of each swap of a mounted ConfigMap, for the folder as for a file in it', async (t) => {
    const folder = await folderOf(t);
    const mount = new AtomicWriter(folder);
    await mount.write({ 'postern.yaml': 'one', 'ca.pem': 'a' });
    const both = [await watched(t, folder), await watched(t, join(folder, 'postern.yaml'))];
    await mount.write({ 'postern.yaml': 'two', 'ca.pem': 'a' });
    await until('both', () => both.every(({ changes }) => changes === 1));
    // A certificate beside the configuration belongs to it.
    await mount.write({ 'postern.yaml': 'two', 'ca.pem': 'b' });
    await until('both again', () => both.every(({ changes }) => changes === 2));
    await pause();
    assert.deepEqual(
      both.map(({ changes }) => changes),
      [2, 2],
    );
  });

  it('says nothing of a file that is touched, or of another file beside it', async (t) => {
    const folder = await folderOf(t);
    const file = join(folder, 'postern.yaml');
    await writeFile(file, 'one');
    const seen = await watched(t, file);
    await writeFile(join(folder, 'other.txt'), 'x');
    await writeFile(file, 'one');
    await pause();
    assert.equal(seen.changes, 0);
    await writeFile(file, 'two');
    await until('the change', () => seen.changes === 1);
  });

  it('takes many changes in a row for one, and what comes after for another', async (t) => {
    const file = join(await folderOf(t), 'postern.yaml');
    await writeFile(file, '');
    const seen = await watched(t, file);
    for (let i = 0; i < 200; i++) await writeFile(file, 'x'.repeat(i + 1));
    await until('the change', () => seen.changes > 0);
    await pause();
    // At most one for each second in which it kept changing, on however slow a machine.
    assert.ok(seen.changes < 50, `${seen.changes}`);
    const before = seen.changes;
    await writeFile(file, 'at last');
    await until('the last', () => seen.changes === before + 1);
  });

  it('finds by looking what the kernel does not tell: a link that leads elsewhere', async (t) => {
    const [folder, elsewhere] = [await folderOf(t), await folderOf(t)];
    await writeFile(join(elsewhere, 'real.yaml'), 'one');
    await symlink(join(elsewhere, 'real.yaml'), join(folder, 'postern.yaml'));
    const seen = await watched(t, join(folder, 'postern.yaml'), { lookEvery: 50 });
    await writeFile(join(elsewhere, 'real.yaml'), 'two');
    await until('the change', () => seen.changes === 1);
  });

  it('goes on with a folder that is deleted and made anew', async (t) => {
    const folder = join(await folderOf(t), 'conf');
    await mkdir(folder);
    await writeFile(join(folder, 'a.yaml'), 'one');
    const seen = await watched(t, folder, { lookEvery: 100 });
    await rm(folder, { recursive: true });
    await until('its end', () => seen.changes >= 1);
    await mkdir(folder);
    await writeFile(join(folder, 'a.yaml'), 'two');
    await until('its return', () => seen.changes >= 2);
    const before = seen.changes;
    await writeFile(join(folder, 'a.yaml'), 'three');
    await until('another change', () => seen.changes > before);
  });
});
