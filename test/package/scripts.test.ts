import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { capture } from '../support/servers/process.ts';

const scripts = fileURLToPath(new URL('../../scripts/', import.meta.url));

interface Lock {
  readonly packages: Readonly<Record<string, { readonly integrity?: string; readonly optional?: true }>>;
}

const lock: Lock = {
  packages: {
    '': {},
    'node_modules/a': { integrity: 'sha512-a' },
    'node_modules/only-on-others': { integrity: 'sha512-o', optional: true },
  },
};

/** A checkout of nothing but the scripts, a lock, and an npm that only leaves a note of what it was told. */
class Checkout {
  readonly folder: string;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async make(t: TestContext, installed: Lock | undefined): Promise<Checkout> {
    const checkout = new Checkout(await mkdtemp(join(tmpdir(), 'postern-scripts-')));
    t.after(() => rm(checkout.folder, { recursive: true }));
    await checkout.write('package-lock.json', JSON.stringify(lock));
    await checkout.write('node_modules/node/bin/node', '#!/bin/sh\necho "node was told: $*"\n', 0o755);
    if (installed) await checkout.write('node_modules/.package-lock.json', JSON.stringify(installed));
    await checkout.write('bin/npm', '#!/bin/sh\necho "$*" >> npm-was-told\n', 0o755);
    for (const name of ['install.sh', 'with-node.sh']) {
      await checkout.write(`scripts/${name}`, '');
      await copyFile(join(scripts, name), join(checkout.folder, 'scripts', name));
    }
    return checkout;
  }

  async write(path: string, text: string, mode = 0o644): Promise<void> {
    await mkdir(dirname(join(this.folder, path)), { recursive: true });
    await writeFile(join(this.folder, path), text, { mode });
  }

  async run(...words: string[]): Promise<Awaited<ReturnType<typeof capture>>> {
    const PATH = `${join(this.folder, 'bin')}:${dirname(process.execPath)}:${process.env['PATH']}`;
    return await capture('sh', words, { cwd: this.folder, env: { ...process.env, PATH } });
  }

  async npmWasTold(): Promise<string> {
    return await readFile(join(this.folder, 'npm-was-told'), 'utf8').catch(() => '');
  }
}

describe('scripts/install.sh', () => {
  const complete: Lock = { packages: { 'node_modules/a': { integrity: 'sha512-a' } } };

  it('leaves a complete node_modules alone, without the optional packages of other systems', async (t) => {
    const checkout = await Checkout.make(t, complete);
    assert.equal((await checkout.run('scripts/install.sh')).code, 0);
    assert.equal(await checkout.npmWasTold(), '');
  });

  const stale: readonly (readonly [what: string, installed: Lock | undefined])[] = [
    ['nothing is installed', undefined],
    ['a package is missing', { packages: {} }],
    ['a package is of another version', { packages: { 'node_modules/a': { integrity: 'sha512-old' } } }],
    ['a package is too much', { packages: { ...complete.packages, 'node_modules/b': {} } }],
  ];
  for (const [what, installed] of stale)
    it(`installs when ${what}`, async (t) => {
      const checkout = await Checkout.make(t, installed);
      assert.equal((await checkout.run('scripts/install.sh')).code, 0);
      assert.match(await checkout.npmWasTold(), /^ci /);
    });

  it('never touches the node_modules of another checkout', async (t) => {
    const checkout = await Checkout.make(t, undefined);
    await rename(join(checkout.folder, 'node_modules'), join(checkout.folder, 'elsewhere'));
    await symlink(join(checkout.folder, 'elsewhere'), join(checkout.folder, 'node_modules'));
    assert.equal((await checkout.run('scripts/install.sh')).code, 0);
    assert.equal(await checkout.npmWasTold(), '');
  });

  it('says so when the pinned Node.js is not there after all', async (t) => {
    const checkout = await Checkout.make(t, complete);
    await rm(join(checkout.folder, 'node_modules/node'), { recursive: true });
    const { code, stderr } = await checkout.run('scripts/install.sh');
    assert.equal(code, 1);
    assert.match(stderr, /the pinned Node\.js is missing/);
  });
});

describe('scripts/with-node.sh', () => {
  it('runs the pinned Node.js in the root of the checkout, whatever node is on the PATH', async (t) => {
    const checkout = await Checkout.make(t, { packages: { 'node_modules/a': { integrity: 'sha512-a' } } });
    const { code, stdout } = await checkout.run('scripts/with-node.sh', 'some/file.ts', 'two words');
    assert.deepEqual([code, stdout], [0, 'node was told: some/file.ts two words\n']);
  });
});
