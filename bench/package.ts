import { chmod, copyFile, cp, mkdir, readdir, stat, symlink } from 'node:fs/promises';
import { join } from 'node:path';

import { loadNative } from '../src/core/native.ts';
import { run } from '../test/support/servers/process.ts';
import { freshFolder } from '../test/support/servers/state.ts';

/** Postern as it is published, laid out in a folder of its own. */
export interface Package {
  /** Path of `bin/postern`. */
  readonly program: string;
  readonly folder: string;
  /** Why there is no native engine; undefined where there is one. */
  readonly withoutNative: string | undefined;
  /** Whether the addon is older than its source, so that another one is measured than the commit says. */
  readonly staleNative: boolean;
}

const root = join(import.meta.dirname, '..');

/** Builds `dist`, and the addon where there is none, and copies what a package holds: nobody else's build can disturb it then. */
export async function layOut(): Promise<Package> {
  await run('sh', [join(root, 'scripts', 'build.sh')], { timeout: 300_000 });
  if (loadNative().native === undefined)
    await run('sh', [join(root, 'scripts', 'native.sh')], { timeout: 600_000 });
  const native = loadNative();
  const folder = await freshFolder(`bench-package-${process.pid}`);
  const program = join(folder, 'bin', 'postern');
  await mkdir(join(folder, 'bin'));
  await copyFile(join(root, 'bin', 'postern'), program);
  await chmod(program, 0o755);
  await copyFile(join(root, 'package.json'), join(folder, 'package.json'));
  await cp(join(root, 'dist'), join(folder, 'dist'), { recursive: true });
  for (const name of ['node_modules', 'native']) await symlink(join(root, name), join(folder, name));
  return {
    program,
    folder,
    withoutNative: native.native ? undefined : native.reason,
    staleNative: native.native !== undefined && (await isStale()),
  };
}

async function isStale(): Promise<boolean> {
  const folder = join(root, 'native');
  const changed = async (name: string) => (await stat(join(folder, name))).mtimeMs;
  const names = await readdir(folder, { recursive: true });
  const sources = names.filter((name) => /^src\/.*\.rs$|^Cargo\.lock$/.test(name));
  const binaries = names.filter((name) => /^postern-native\.[^/]*\.node$/.test(name));
  const newest = Math.max(...(await Promise.all(sources.map(changed))));
  const built = await Promise.all(binaries.map(changed));
  return built.length > 0 && Math.max(...built) < newest;
}
