import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { exitCodes } from '../../src/cli/exit-codes.ts';
import { UsageError } from '../../src/cli/options.ts';
import { stop } from '../../src/cli/stop.ts';
import { wait } from '../../src/cli/wait.ts';
import { Postern } from '../support/postern.ts';
import { capture, type Output } from '../support/servers/process.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-stop-'));
});
after(() => rm(folder, { recursive: true, force: true }));

async function postern(words: readonly string[]): Promise<Output> {
  return await capture(program, words, {
    timeout: 60_000,
    cwd: folder,
    env: { PATH: process.env['PATH'], HOME: folder },
  });
}

const configuration = (admin: string) => `version: 2
admin: { listenOn: "unix://${folder}/${admin}.sock", quit: ${admin === 'quits'} }
services:
  db: { connector: postgres, listenOn: "tcp://127.0.0.1:0", credentials: { username: x }, config: { host: 127.0.0.1 } }
`;

/** A running program whose admin listener is where its file says. */
async function started(name: string): Promise<{ running: Postern; path: string }> {
  const path = join(folder, `${name}.yaml`);
  await writeFile(path, configuration(name));
  const running = await Postern.start(configuration(name), {
    args: ['--admin-listen', `unix://${folder}/${name}.sock`],
  });
  return { running, path };
}

/** Somebody else at the place of an admin listener. */
async function impostor(answer: string | undefined): Promise<{ server: Server; place: string }> {
  const place = join(folder, `${Math.random()}.sock`);
  const server = createServer((socket) => {
    socket.on('error', () => {});
    if (answer !== undefined) socket.end(answer);
  });
  await new Promise<void>((resolve) => server.listen(place, resolve));
  return { server, place: `unix://${place}` };
}

describe('postern wait and postern stop', { timeout: 120_000 }, () => {
  it('wait until a program is ready and until it is gone, by its own order', async () => {
    const { running, path } = await started('quits');
    await using _ = running;
    const waited = await postern(['wait', '-f', path, '--timeout', '30s']);
    assert.deepEqual([waited.code, waited.stderr], [exitCodes.clean, '']);
    const stopped = await postern(['stop', '-f', path, '--timeout', '30s']);
    assert.deepEqual([stopped.code, stopped.stderr], [exitCodes.clean, '']);
    assert.deepEqual(await running.exited(), { code: 0, signal: null });
    assert.ok(running.lines.some(({ msg }) => msg === 'stopped'));
    const again = await postern(['stop', '-f', path]);
    assert.equal(again.code, exitCodes.clean);
    assert.match(again.stdout, /is not there/);
  });

  it('say how a program can be stopped that takes no orders, and stop it by its number', async () => {
    const { running, path } = await started('deaf');
    await using _ = running;
    const refused = await postern(['stop', '-f', path]);
    assert.equal(refused.code, exitCodes.configuration);
    assert.match(refused.stderr, /admin: \{ quit: true \}/);
    assert.equal(await wait(['-f', path], {}), exitCodes.clean);
    const file = join(folder, 'postern.pid');
    await writeFile(file, `${running.pid}\n`);
    assert.equal(await stop(['--pid-file', file], {}), exitCodes.clean);
    assert.deepEqual(await running.exited(), { code: 0, signal: null });
    assert.equal(await stop(['--pid', String(running.pid)], {}), exitCodes.clean);
    assert.equal(await stop(['--pid-file', join(folder, 'no.pid')], {}), exitCodes.clean);
  });

  it('do not signal another program that has the number by now', async () => {
    const file = join(folder, 'other.pid');
    // The kernel's first process, which every machine has and no test may end.
    await writeFile(file, '1');
    await assert.rejects(stop(['--pid-file', file], {}), {
      code: 'CONFIG_INVALID',
      message: /is not Postern/,
    });
    await writeFile(file, 'x');
    await assert.rejects(stop(['--pid-file', file], {}), { code: 'CONFIG_INVALID' });
  });

  it('give up in time, whatever answers', async () => {
    for (const answer of [
      undefined,
      'HTTP/1.1 503 No\r\ncontent-length: 8\r\n\r\ndraining',
      'garbage\r\n\r\n',
    ]) {
      const { server, place } = await impostor(answer);
      assert.equal(await wait(['--admin-listen', place, '--timeout', '300ms'], {}), exitCodes.checkFailed);
      server.close();
    }
    assert.equal(
      await wait(['--timeout', '200ms'], { POSTERN_ADMIN_LISTEN: `unix://${folder}/nobody.sock` }),
      exitCodes.checkFailed,
    );
    const { server, place } = await impostor('HTTP/1.1 202 Yes\r\ncontent-length: 0\r\n\r\n');
    assert.equal(await stop(['--admin-listen', place, '--timeout', '300ms'], {}), exitCodes.checkFailed);
    server.close();
  });

  it('ask nobody where there is nobody to ask', async () => {
    for (const place of ['off', 'tcp://127.0.0.1:0'])
      await assert.rejects(wait(['--admin-listen', place], {}), { code: 'CONFIG_INVALID' }, place);
    for (const words of [
      ['--admin-listen', 'x'],
      ['--timeout', 'x'],
      ['--pid', '0'],
      ['--pid', '1', '--pid-file', 'x'],
    ])
      await assert.rejects(stop(words, {}), UsageError, words.join(' '));
  });
});
