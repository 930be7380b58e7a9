import { spawnSync } from 'node:child_process';
import { mkdtemp, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { executable } from './support/servers/install.ts';
import { run } from './support/servers/process.ts';
import { cache, withLock } from './support/servers/state.ts';

const version = '26.10.0';
/**
 * What depends most on the Node.js that it runs on: sockets, TLS, buffers and bytes; the relay; both ways in which HTTP reads;
 * the laws of every connector.
 */
const files = ['test/core/**/*.test.ts', 'test/laws/connectors.test.ts', 'test/connectors/http/**/*.test.ts'];

/** Path of that Node.js, fetched from the package registry when the cache does not have it. */
async function installNode(): Promise<string> {
  const folder = await cache(`node-${version}`);
  const program = join(folder, 'node');
  if (await executable(program)) return program;
  return withLock('install-node', async () => {
    if (await executable(program)) return program;
    const draft = await mkdtemp(join(folder, 'download-'));
    try {
      // The package `node` is a script that installs this one.
      const platform = `node-${process.platform}-${process.arch}`;
      const quiet = ['--no-save', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'];
      await run('npm', ['install', '--prefix', draft, ...quiet, `${platform}@${version}`], {
        timeout: 300_000,
      });
      await rename(join(draft, 'node_modules', platform, 'bin', 'node'), program);
      return program;
    } finally {
      await rm(draft, { recursive: true, force: true });
    }
  });
}

const program = await installNode();
const [, , ...given] = process.argv;
const chosen = given.length > 0 ? given : files;
const { status } = spawnSync(program, [fileURLToPath(new URL('run.ts', import.meta.url)), ...chosen], {
  stdio: 'inherit',
});
process.exitCode = status ?? 1;
