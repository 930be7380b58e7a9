import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { capture } from '../support/servers/process.ts';
import { certificates } from '../support/servers.ts';
import { folder, idle, program, runtime, surroundings, write } from './exec-stage.ts';

/** A command that is spoken to while it runs. */
class Running {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  output = '';

  constructor(child: ChildProcess) {
    this.child = child;
    child.stdout?.on('data', (chunk) => (this.output += String(chunk)));
    child.stderr?.on('data', (chunk) => (this.output += String(chunk)));
    this.ended = once(child, 'close').then(([code]) => code as number | null);
  }

  async printed(pattern: RegExp): Promise<void> {
    for (const end = Date.now() + 120_000; !pattern.test(this.output); await sleep(20))
      assert.ok(Date.now() < end && this.child.exitCode === null, `did not print ${pattern}: ${this.output}`);
  }
}

async function start(script: string, flags: readonly string[] = []): Promise<Running> {
  const words = ['exec', '-f', await write(idle), '--log-level', 'error', ...flags, '--', 'sh', '-c', script];
  return new Running(spawn(program, words, { env: surroundings(), stdio: ['ignore', 'pipe', 'pipe'] }));
}

describe('signals to postern exec', { timeout: 300_000 }, () => {
  it('reach the command, whose answer decides', async () => {
    for (const signal of ['TERM', 'INT', 'USR1'] as const) {
      const running = await start(
        `trap 'echo got ${signal}; exit 9' ${signal}; echo up; while :; do sleep 0.05; done`,
      );
      await running.printed(/up/);
      running.child.kill(`SIG${signal}`);
      assert.equal(await running.ended, 9, running.output);
      assert.match(running.output, new RegExp(`got ${signal}`));
    }
  });

  it('end a command that does not listen to SIGTERM after --kill-after, and at once the second time', async () => {
    const deaf = `trap '' TERM; echo up; while :; do sleep 0.05; done`;
    const patient = await start(deaf, ['--kill-after', '500ms']);
    await patient.printed(/up/);
    patient.child.kill('SIGTERM');
    assert.equal(await patient.ended, 137);
    const twice = await start(`trap 'echo asked' TERM; echo up; while :; do sleep 0.05; done`, [
      '--kill-after',
      '10m',
    ]);
    await twice.printed(/up/);
    twice.child.kill('SIGTERM');
    // Two signals of a kind that have not been taken yet are one, and a third one would be for Postern itself.
    await twice.printed(/asked/);
    twice.child.kill('SIGTERM');
    assert.equal(await twice.ended, 137);
    assert.deepEqual(await readdir(runtime), [], 'the private folders are gone');
  });

  it('are not given twice where a terminal has sent them to the whole group', async (t) => {
    const path = await write(idle);
    const script = join(folder, 'counts.sh');
    await writeFile(
      script,
      `n=0; trap 'n=$((n+1)); echo "interrupt $n."' INT; trap 'echo "total $n."; exit 0' TERM; echo up; while :; do sleep 0.05; done\n`,
    );
    const found = await capture('sh', ['-c', 'command -v script']);
    if (found.code !== 0) return t.skip('no script(1) on this machine, to have a terminal');
    const line = `exec ${program} exec -f ${path} --log-level error -- sh ${script}`;
    const running = new Running(
      spawn('script', ['--quiet', '--return', '--command', line, '/dev/null'], {
        env: surroundings(),
        stdio: ['pipe', 'pipe', 'pipe'],
      }),
    );
    await running.printed(/up/);
    running.child.stdin?.write('\x03');
    await running.printed(/interrupt 1\./);
    running.child.stdin?.write('\x03');
    await running.printed(/interrupt 2\./);
    // SIGTERM is for Postern alone, and passed on: behind everything that may have come before it.
    const listed = await capture('pgrep', ['-f', `main.ts exec -f ${path}`]);
    process.kill(Number(listed.stdout.trim().split('\n')[0]), 'SIGTERM');
    assert.equal(await running.ended, 0, running.output);
    assert.match(running.output, /total 2\./);
  });

  it('keep the command from starting when they come before', async () => {
    const { server: own } = await certificates();
    const [asked, go] = [join(folder, 'asked'), join(folder, 'go')];
    const slow = `touch ${asked}; while [ ! -e ${go} ]; do sleep 0.05; done; cat ${own.cert}`;
    const path = await write({
      providers: { slow: { kind: 'exec', command: ['sh', '-c', slow], timeout: '60s' } },
      services: {
        api: {
          connector: 'http',
          listenOn: 'tcp://127.0.0.1:0',
          credentials: { token: 'x', caCert: { from: 'slow', get: '-' }, caKey: 'x' },
          config: { match: ['https://api.example/**'], authenticate: { bearer: 'token' }, intercept: {} },
        },
      },
    });
    const words = ['exec', '-f', path, '--', 'echo', 'started'];
    const running = new Running(
      spawn(program, words, { env: surroundings(), stdio: ['ignore', 'pipe', 'pipe'] }),
    );
    for (const end = Date.now() + 120_000; !existsSync(asked); await sleep(20))
      assert.ok(Date.now() < end, running.output);
    running.child.kill('SIGTERM');
    await writeFile(go, '');
    assert.equal(await running.ended, 143, running.output);
    assert.doesNotMatch(running.output, /started/);
  });
});
