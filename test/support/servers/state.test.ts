import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { server, Unavailable } from '../servers.ts';
import { answers } from './process.ts';

const servers = JSON.stringify(fileURLToPath(new URL('../servers.ts', import.meta.url)));
const state = JSON.stringify(fileURLToPath(new URL('./state.ts', import.meta.url)));

describe('servers that several test processes share', () => {
  let home: string;
  const children: ChildProcess[] = [];

  before(async () => {
    home = await mkdtemp(join(tmpdir(), 'postern-state-'));
  });

  after(async () => {
    for (const child of children) child.kill('SIGKILL');
    await firstLine(
      `const { stopShared } = await import(${state}); await stopShared({ onlyIdle: false }); console.log(1)`,
    );
    // The keeper sees that nothing is left to keep and goes by itself.
    await rm(home, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  });

  /** Runs a script in a process of its own, with a state of its own; gives the first line that it prints. */
  async function firstLine(script: string): Promise<string> {
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      env: { ...process.env, POSTERN_TEST_HOME: home, NODE_TEST_CONTEXT: undefined },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    children.push(child);
    for await (const chunk of child.stdout) return String(chunk).trim();
    return '';
  }

  const openbao = `const { server } = await import(${servers}); const { port } = await server('openbao'); console.log(port);`;

  async function installed(): Promise<boolean> {
    try {
      await server('openbao');
      return true;
    } catch (error) {
      if (error instanceof Unavailable && process.env['CI'] !== 'true') return false;
      throw error;
    }
  }

  it('start once when several ask at the same time, and again when they have died', async (t) => {
    if (!(await installed())) return t.skip('OpenBao is not here');
    const ports = await Promise.all([firstLine(openbao), firstLine(openbao), firstLine(openbao)]);
    assert.deepEqual(new Set(ports).size, 1);
    const port = Number(ports[0]);
    await firstLine(`const { readRecord } = await import(${state}); const { process: { pid } } = await readRecord('openbao');
      process.kill(pid, 'SIGKILL'); console.log(pid)`);
    const next = Number(await firstLine(openbao));
    assert.equal(await answers(next), true);
    assert.notEqual(next, port);
  });

  it('stay while somebody uses them, and can be stopped when nobody does', async (t) => {
    if (!(await installed())) return t.skip('OpenBao is not here');
    const port = Number(await firstLine(`${openbao} setInterval(() => {}, 1000)`));
    const user = children.at(-1);
    const stop = `const { stopShared } = await import(${state}); console.log(await stopShared({ onlyIdle: true }))`;
    assert.equal(await firstLine(stop), 'false');
    assert.equal(await answers(port), true);
    user?.kill('SIGKILL');
    await new Promise((resolve) => user?.once('close', resolve));
    assert.equal(await firstLine(stop), 'true');
    assert.equal(await answers(port), false);
  });

  it('are ended by the keeper when they were private and their owner was killed', async (t) => {
    if (!(await installed())) return t.skip('OpenBao is not here');
    const script = `const { startOpenBao } = await import(${servers}); const { port } = await startOpenBao();
      console.log(port); setInterval(() => {}, 1000)`;
    const port = Number(await firstLine(script));
    assert.equal(await answers(port), true);
    children.at(-1)?.kill('SIGKILL');
    for (let tries = 0; tries < 200 && (await answers(port)); tries++) await sleep(50);
    assert.equal(await answers(port), false);
  });
});
