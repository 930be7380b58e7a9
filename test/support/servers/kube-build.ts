import { mkdtemp, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { executable, which } from './install.ts';
import { run, Unavailable } from './process.ts';
import { cache, withLock } from './state.ts';

/** The version of the tests; kube-tools/go.mod has it too, and the one of etcd. */
const version = '1.36.3';

/** Paths of the two programs that a cluster without nodes consists of. */
export interface KubernetesPrograms {
  readonly etcd: string;
  readonly apiServer: string;
}

/**
 * Builds kube-apiserver and etcd from their Go modules (about five minutes the first time, then never again): no
 * package carries them, and a fake of the API server would know of watches and permissions only what we know.
 */
export async function buildKubernetes(): Promise<KubernetesPrograms> {
  const folder = await cache(`kubernetes-${version}`);
  const programs = { etcd: join(folder, 'etcd'), apiServer: join(folder, 'kube-apiserver') };
  const there = async () => (await executable(programs.etcd)) && (await executable(programs.apiServer));
  if (await there()) return programs;
  const go = await which('go');
  if (!go)
    throw new Unavailable('install Go 1.26 or later (the kube-apiserver of the tests is built with it)');
  const patience = 20 * 60_000;
  return withLock(
    'build-kubernetes',
    async () => {
      if (await there()) return programs;
      const draft = await mkdtemp(join(folder, 'build-'));
      try {
        const [major, minor] = version.split('.');
        const said = 'k8s.io/component-base/version.git';
        const stamps = `-X ${said}Version=v${version} -X ${said}Major=${major} -X ${said}Minor=${minor}`;
        const build = (what: string, output: string, flags: string) =>
          run(
            'nice',
            [go, 'build', '-trimpath', '-ldflags', `-s -w ${flags}`, '-o', join(draft, output), what],
            {
              cwd: join(import.meta.dirname, 'kube-tools'),
              env: { ...process.env, CGO_ENABLED: '0', GOFLAGS: '-mod=readonly', GOTOOLCHAIN: 'local' },
              timeout: patience,
            },
          );
        await build('./etcd', 'etcd', '');
        await build('k8s.io/kubernetes/cmd/kube-apiserver', 'kube-apiserver', stamps);
        await rename(join(draft, 'etcd'), programs.etcd);
        await rename(join(draft, 'kube-apiserver'), programs.apiServer);
        return programs;
      } catch (error) {
        throw new Unavailable(`kube-apiserver cannot be built with ${go}: ${(error as Error).message}`, {
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
if (import.meta.main) await buildKubernetes();
