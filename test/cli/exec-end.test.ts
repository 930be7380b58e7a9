import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { exec as runHere } from '../../src/cli/exec.ts';
import { exitCodes } from '../../src/cli/exit-codes.ts';
import { UsageError } from '../../src/cli/options.ts';
import { capture } from '../support/servers/process.ts';
import { exec, folder, idle, program, runtime, surroundings } from './exec-stage.ts';

describe('the end of postern exec', { timeout: 300_000 }, () => {
  it('has the exit code of its command, also where a signal ended it', async () => {
    assert.equal((await exec(idle, ['sh', '-c', 'exit 42'])).code, 42);
    assert.equal((await exec(idle, ['sh', '-c', 'kill -TERM $$'])).code, 143);
    assert.equal((await exec(idle, ['sh', '-c', 'kill -KILL $$'])).code, 137);
  });

  it('is 127 where there is no such command and 126 where it cannot be run, as in a shell', async () => {
    const missing = await exec(idle, ['no-such-command']);
    assert.equal(missing.code, 127);
    assert.match(missing.stderr, /no-such-command: there is no such command/);
    const folderAsCommand = await exec(idle, [folder]);
    assert.equal(folderAsCommand.code, 126);
    assert.match(folderAsCommand.stderr, /cannot be run \(EACCES\)/);
    assert.deepEqual(await readdir(runtime), [], 'the private folder is gone');
  });

  it('is that of the failure where the command was never started', async () => {
    const bad = await exec('version: [', ['echo', 'started']);
    assert.deepEqual([bad.code, bad.stdout], [exitCodes.configuration, '']);
    const other = createServer();
    await once(other.listen(0, '127.0.0.1'), 'listening');
    const { port } = other.address() as { port: number };
    const [service] = Object.values(idle.services);
    const taken = { services: { db: { ...service, listenOn: `tcp://127.0.0.1:${port}` } } };
    const busy = await exec(taken, ['echo', 'started']);
    other.close();
    assert.deepEqual([busy.code, busy.stdout], [exitCodes.cannotListen, '']);
    assert.match(busy.stderr, /cannot listen on/);
    const authority = { intercept: {} };
    const fetched = await exec(
      {
        services: {
          api: {
            connector: 'http',
            listenOn: 'tcp://127.0.0.1:0',
            credentials: {
              token: 'x',
              caCert: { from: 'file', get: join(folder, 'nowhere.pem') },
              caKey: { from: 'file', get: join(folder, 'nowhere.key') },
            },
            config: { match: ['https://api.example/**'], authenticate: { bearer: 'token' }, ...authority },
          },
        },
      },
      ['echo', 'started'],
    );
    assert.deepEqual([fetched.code, fetched.stdout], [exitCodes.checkFailed, ''], fetched.stderr);
  });

  for (const [words, why] of [
    [[], /behind two dashes/],
    [['psql'], /behind two dashes/],
    [['--'], /behind two dashes/],
    [['--sockets', '--tcp', '--', 'true'], /either --sockets or --tcp/],
    [['--kill-after', 'soon', '--', 'true'], /takes a duration/],
    [['--nonsense', '--', 'true'], /nonsense/],
    [['stray', '--', 'true'], /stray/],
  ] as const)
    it(`is 2 for "exec ${words.join(' ')}"`, async () => {
      await assert.rejects(
        runHere(words, {}),
        (error) => error instanceof UsageError && why.test(error.message),
      );
    });

  it('leaves --help behind the dashes to the command', async () => {
    assert.equal((await exec(idle, ['printf', '%s\\n', '--help'])).stdout, '--help\n');
    const own = await capture(program, ['exec', '--help', '--', 'false'], { env: surroundings() });
    assert.equal(own.code, 0);
    assert.match(own.stdout, /--kill-after TIME/);
  });
});
