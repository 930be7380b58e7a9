import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { mark } from './process.ts';
import { home, inUse, lockForLife, recordNames, stopShared, sweepOrphans } from './state.ts';

/**
 * A small process of its own that sees to it that no server outlives its use: a test process may be killed in a way
 * that leaves it no time to clean up. Servers stay for a while after the last user, so that running one test file
 * after the other starts them once.
 */
const grace = 120_000;

const lock = lockForLife('keeper');
if (lock) {
  const note = join(home(), 'keeper.pid');
  writeFileSync(note, JSON.stringify(mark(process.pid)), { mode: 0o600 });
  for (let idleSince = Date.now(); ; ) {
    await sleep(1000);
    await sweepOrphans();
    if (inUse() || existsSync(join(home(), 'keep'))) idleSince = Date.now();
    else if ((await recordNames()).length === 0 && Date.now() - idleSince > 5000) break;
    else if (Date.now() - idleSince > grace && (await stopShared({ onlyIdle: true }))) break;
  }
  rmSync(note, { force: true });
  lock.close();
}
