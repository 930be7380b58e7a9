import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';

import { capture, type Output } from '../support/servers/process.ts';
import { canary } from '../support/servers.ts';

export const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const env = { DB_PASSWORD: canary.postgres, MY_PASSWORD: canary.mysql };
/** Of this test file alone. */
export const folder = mkdtempSync(join(tmpdir(), 'postern-exec-'));
/** Where the program makes its private folders: nothing else is in it. */
export const runtime = mkdtempSync(join(tmpdir(), 'postern-run-'));

after(() => {
  for (const each of [folder, runtime]) rmSync(each, { recursive: true, force: true });
});

interface Options {
  readonly flags?: readonly string[];
  readonly env?: Record<string, string>;
}

/** Writes a configuration down; gives its path. */
export async function write(config: object | string): Promise<string> {
  const path = join(folder, `${Math.random()}.yaml`);
  await writeFile(path, typeof config === 'string' ? config : JSON.stringify({ version: 2, ...config }));
  return path;
}

/** The environment of the program. */
export function surroundings(more: Record<string, string> = {}): Record<string, string> {
  return { PATH: process.env['PATH'] ?? '', HOME: folder, XDG_RUNTIME_DIR: runtime, ...env, ...more };
}

/** Runs `postern exec` to its end; sees that no secret is printed. */
export async function exec(
  config: object | string,
  command: readonly string[],
  options: Options = {},
): Promise<Output> {
  const words = ['exec', '-f', await write(config), ...(options.flags ?? []), '--', ...command];
  const output = await capture(program, words, { timeout: 200_000, env: surroundings(options.env) });
  for (const secret of Object.values(canary))
    assert.ok(!(output.stdout + output.stderr).includes(secret), 'a secret was printed');
  return output;
}

/** A service that nobody connects to. */
export const idle = {
  services: {
    'app-db': {
      connector: 'postgres',
      listenOn: 'tcp://127.0.0.1:0',
      credentials: { username: 'me', password: { from: 'env', get: 'DB_PASSWORD' } },
      config: { host: '127.0.0.1', port: 1 },
    },
  },
};
