import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { exitCodes } from '../../src/cli/exit-codes.ts';
import { capture, type Output } from '../support/servers/process.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-check-'));
});
after(() => rm(folder, { recursive: true, force: true }));

async function check(text: string, ...flags: readonly string[]): Promise<Output> {
  const path = join(folder, 'postern.yaml');
  await writeFile(path, text);
  const env = { PATH: process.env['PATH'], HOME: folder };
  return await capture(program, ['check', '-f', path, ...flags], { timeout: 60_000, env });
}

interface Report {
  readonly problems: { readonly line: number; readonly path: string }[];
  readonly warnings: object[];
  readonly services?: { service: string; ok: boolean; code: string; milliseconds: number }[];
}

describe('postern check --json', { timeout: 120_000 }, () => {
  it('says of each service how its login went and how long it took', async () => {
    const { code, stdout } = await check(
      `version: 2
services:
  db: { connector: postgres, listenOn: "tcp://127.0.0.1:0", credentials: { username: x }, config: { host: 127.0.0.1, port: 1 } }
`,
      '--connect',
      '--json',
    );
    assert.equal(code, exitCodes.checkFailed);
    const { problems, services = [] } = JSON.parse(stdout) as Report;
    assert.deepEqual(problems, []);
    assert.deepEqual(
      services.map(({ service, ok, code: failure }) => [service, ok, failure]),
      [['db', false, 'UPSTREAM_UNREACHABLE']],
    );
    assert.ok(Number.isInteger(services[0]?.milliseconds));
  });

  it('gives the place of every problem', async () => {
    const { code, stdout } = await check('version: 2\nservices:\n  db: { connector: postgre }\n', '--json');
    assert.equal(code, exitCodes.configuration);
    const { problems } = JSON.parse(stdout) as Report;
    assert.ok(
      problems.some(({ line, path }) => line === 3 && path.startsWith('services.db')),
      stdout,
    );
  });
});
