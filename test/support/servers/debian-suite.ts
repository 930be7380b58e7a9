import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { which } from './install.ts';
import { run, Unavailable } from './process.ts';
import { cache, cachePath, home, withLock } from './state.ts';

/**
 * Programs of another Debian release than this machine's, unpacked into a folder with all they are linked with, libc
 * included: nothing of it is installed, and nothing of it is found by the machine's own programs.
 */
export interface DebianTree {
  readonly folder: string;
  /** How to start one of its programs (`usr/sbin/mysqld`): by its own loader, with its own libraries. */
  readonly command: (program: string) => readonly [string, ...string[]];
}

/** What its programs need in their environment: OpenSSL would read the machine's configuration and load its modules. */
export function treeEnvironment(tree: DebianTree): NodeJS.ProcessEnv {
  return {
    PATH: process.env['PATH'],
    HOME: '/nonexistent',
    OPENSSL_CONF: '/dev/null',
    OPENSSL_MODULES: join(tree.folder, 'usr/lib', machine().triplet, 'ossl-modules'),
  };
}

function machine(): { readonly triplet: string; readonly loader: string } {
  if (process.platform === 'linux' && process.arch === 'x64')
    return { triplet: 'x86_64-linux-gnu', loader: 'ld-linux-x86-64.so.2' };
  if (process.platform === 'linux' && process.arch === 'arm64')
    return { triplet: 'aarch64-linux-gnu', loader: 'ld-linux-aarch64.so.1' };
  throw new Unavailable(`Debian's packages are not unpacked on ${process.platform} ${process.arch}`);
}

function tree(folder: string): DebianTree {
  const { triplet, loader } = machine();
  const libraries = join(folder, 'usr/lib', triplet);
  const path = `${libraries}:${join(folder, 'usr/lib/mysql/private')}`;
  return {
    folder,
    command: (program) => [join(libraries, loader), '--library-path', path, join(folder, program)],
  };
}

/** The packages of a suite (`sid`, `trixie`) with what they depend on, unpacked into the cache once. */
export async function debianTree(suite: string, packages: readonly string[]): Promise<DebianTree> {
  machine();
  const folder = join(cachePath(`debian-${suite}`), packages.join('+'));
  if (existsSync(folder)) return tree(folder);
  return withLock(`install-debian-${suite}`, async () => {
    if (existsSync(folder)) return tree(folder);
    for (const program of ['apt-get', 'dpkg-deb', 'xz']) {
      if (!(await which(program))) throw new Unavailable(`${program} is needed to unpack Debian's packages`);
    }
    const draft = await mkdtemp(join(await cache(`debian-${suite}`), 'download-'));
    try {
      await unpack(suite, packages, draft);
      await rename(join(draft, 'tree'), folder);
      return tree(folder);
    } catch (error) {
      throw new Unavailable(
        `${packages.join(', ')} of Debian ${suite} cannot be had: ${(error as Error).message}`,
        { cause: error },
      );
    } finally {
      await rm(draft, { recursive: true, force: true });
    }
  });
}

async function unpack(suite: string, packages: readonly string[], draft: string): Promise<void> {
  const folder = join(draft, 'tree');
  for (const each of ['lists/partial', 'archives/partial', 'sources', 'tree'])
    await mkdir(join(draft, each), { recursive: true });
  // An empty list of installed packages: apt then brings every library, down to libc.
  await writeFile(join(draft, 'status'), '');
  await writeFile(
    join(draft, 'sources', 'suite.sources'),
    `Types: deb
URIs: ${await mirror()}
Suites: ${suite}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`,
  );
  const configuration = join(draft, 'apt.conf');
  await writeFile(
    configuration,
    `Dir::State::lists "${draft}/lists";
Dir::State::status "${draft}/status";
Dir::Cache "${draft}";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "${draft}/sources";
Dir::Etc::preferencesparts "/dev/null";
APT::Default-Release "";
APT::Sandbox::User "${process.getuid?.() === 0 ? 'root' : ''}";
Debug::NoLocking "1";
Acquire::Languages "none";
`,
  );
  const apt = (args: readonly string[]) =>
    run('apt-get', ['-q', '-y', ...args], {
      env: { ...process.env, APT_CONFIG: configuration },
      timeout: 300_000,
    });
  await apt(['update']);
  await apt(['install', '--no-install-recommends', '--download-only', ...packages]);
  const archives = join(draft, 'archives');
  for (const archive of (await readdir(archives)).filter((name) => name.endsWith('.deb'))) {
    await run('dpkg-deb', ['--extract', join(archives, archive), folder], { timeout: 120_000 });
  }
  await run('chmod', ['-R', 'a+rX', folder]);
}

/** Where this machine gets its own Debian packages from. */
async function mirror(): Promise<string> {
  const format = '$(ORIGIN) $(LABEL) $(REPO_URI)';
  const { stdout } = await run('apt-get', ['indextargets', '--format', format, 'Created-By: Packages']);
  const line = stdout.split('\n').find((each) => each.startsWith('Debian Debian '));
  const found = line?.slice('Debian Debian '.length);
  if (!found)
    throw new Error('this machine has no Debian mirror in its apt sources (or needs an apt-get update)');
  return found;
}

/**
 * The same tree where a server that runs as another user can reach it: the cache may lie in a home that is closed to
 * others. Hard links, where that is possible, take no space.
 */
export async function reachable(from: DebianTree, name: string): Promise<DebianTree> {
  if (process.getuid?.() !== 0) return from;
  const folder = join(home(), name);
  return withLock(`copy-${name}`, async () => {
    if (existsSync(folder)) return tree(folder);
    const draft = `${folder}.new`;
    await rm(draft, { recursive: true, force: true });
    try {
      await run('cp', ['--archive', '--link', from.folder, draft]);
    } catch {
      await rm(draft, { recursive: true, force: true });
      await run('cp', ['--archive', from.folder, draft]);
    }
    await rename(draft, folder);
    return tree(folder);
  });
}
