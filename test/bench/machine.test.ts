import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, it } from 'node:test';

import { busyTicks, ownTicks, parseStat, processes, ticksPerSecond, watching } from '../../bench/machine.ts';

describe('what others do with the machine while something is measured', () => {
  it('reads the times of a process and of its children that have ended, whatever its name holds', () => {
    const stat =
      '42 (a ) 1 (b) S 7 42 42 0 -1 4194304 100 0 0 0 11 12 13 14 20 0 1 0 12345 1000000 200 18446744073709551615';
    assert.deepEqual(parseStat(stat), { pid: 42, parent: 7, ticks: 50 });
  });

  it('counts everything below its roots, each once, and nobody else', () => {
    const all = [
      { pid: 1, parent: 0, ticks: 1000 },
      { pid: 10, parent: 1, ticks: 1 },
      { pid: 11, parent: 10, ticks: 2 },
      { pid: 12, parent: 11, ticks: 4 },
      { pid: 20, parent: 1, ticks: 8 },
      { pid: 30, parent: 1, ticks: 500 },
    ];
    assert.equal(ownTicks(all, [10, 20, 11]), 15);
    assert.equal(ownTicks(all, [99]), 0);
  });

  it('takes user and system time and what the host took as busy, and neither idling nor interrupts', () => {
    assert.equal(busyTicks('cpu  1 2 4 1000 2000 4000 8000 8 16 32\ncpu0 1 2 4 0 0 0 0 0 0 0\n'), 15);
  });

  it('finds the time of children in /proc, of those that run and of those that have ended', {
    skip: process.platform === 'linux' ? false : 'there is no /proc',
  }, async () => {
    const burn = 'while (process.cpuUsage().user < 300000);';
    const seconds = async () => ownTicks(await processes(), [process.pid]) / (await ticksPerSecond());
    const before = await seconds();
    const running = spawn(process.execPath, ['-e', `${burn} console.log(); setInterval(() => {}, 1e6)`], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(running.stdout, 'data');
    const during = await seconds();
    assert.ok(during - before >= 0.2, `${during - before} seconds`);
    running.kill();
    await once(running, 'exit');
    // Whoever waited for it has its time now.
    assert.ok((await seconds()) >= during);
  });

  it('passes on what the work gave', async () => {
    const [result] = await watching(() => Promise.resolve('done'));
    assert.equal(result, 'done');
  });
});
