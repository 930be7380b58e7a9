import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { fakeVault } from './fake-vault.ts';

const child = fileURLToPath(new URL('memory-child.ts', import.meta.url));

interface Found {
  /** The control, which must be found. */
  readonly controlInHeap: number;
  /** Strings of V8's heap that hold the value, and those that hold the token. */
  readonly valueInHeap: number;
  readonly tokenInHeap: number;
  /** Places in all memory that the process can write to. */
  readonly valueInMemory: number;
}

/** Runs a process that fetches a value that only the server knows, and then searches itself for it. */
async function searched(wipe: boolean): Promise<Found> {
  const marker = randomBytes(12).toString('hex');
  const value = `canary-${marker}-value`;
  const token = `canary-${marker}-token`;
  const vault = await fakeVault({ value, filler: 'x'.repeat(500) }, (seen) =>
    seen.path.endsWith('/login')
      ? { status: 200, json: { auth: { client_token: token, lease_duration: 3600 } } }
      : undefined,
  );
  try {
    const running = spawn(process.execPath, ['--expose-gc', child, vault.address, String(wipe)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const output: Buffer[] = [];
    running.stdout.on('data', (chunk: Buffer) => {
      output.push(chunk);
      // Told only after the fetch, and with the two halves apart, so that telling leaves no copy of its own.
      if (String(chunk).includes('fetched')) running.stdin.end(marker.split('').join(' '));
    });
    await once(running, 'close');
    return JSON.parse(Buffer.concat(output).toString().replace('fetched\n', '')) as Found;
  } finally {
    await vault.stop();
  }
}

it('never makes a string of a value: V8 has none, while the secret is lent and after it was wiped', {
  timeout: 60_000,
}, async (t) => {
  const lent = await searched(false);
  assert.ok(lent.controlInHeap > 0, 'the search finds a string that is there');
  assert.equal(lent.valueInHeap, 0, 'no string in the heap holds the value');
  const wiped = await searched(true);
  assert.equal(wiped.valueInHeap, 0, 'no string in the heap holds the value');
  t.diagnostic(`strings in the heap that hold the token (a header is a string): ${wiped.tokenInHeap}`);
  if (wiped.valueInMemory >= 0) {
    t.diagnostic(
      `copies of the value in writable memory: ${lent.valueInMemory} while lent, ${wiped.valueInMemory} after`,
    );
    assert.ok(lent.valueInMemory >= 1, 'the search finds the value where it must be');
    assert.equal(wiped.valueInMemory, 0, 'nothing is left in memory');
  }
});
