// Fetches a value it knows nothing about, then searches its own heap and memory for it: see memory.test.ts.
import { openSync, readFileSync, readSync } from 'node:fs';
import { getHeapSnapshot } from 'node:v8';
import { pino } from 'pino';

import { vault } from '../../../src/providers/vault/index.ts';

const [address = '', wipe] = process.argv.slice(2);
const context = { name: 'vault', log: pino({ level: 'silent' }), environment: {} };
const auth = { method: 'approle', roleId: 'role', secretId: 'secret' };
const provider = vault.open(vault.settings.parse({ address, auth }), context);
const { secrets } = await provider.fetch(['secret/app'], AbortSignal.timeout(10_000));
if (wipe === 'true') for (const secret of secrets) secret.wipe();

process.stdout.write('fetched\n');
const marker: number[] = [];
for await (const chunk of process.stdin)
  for (const byte of chunk as Buffer) if (byte !== 0x20) marker.push(byte);
globalThis.gc?.();

/** Where the marker begins, followed by `kind`; never put together in memory, so that the search does not find itself. */
function count(bytes: Buffer, kind: string): number {
  let found = 0;
  for (let at = bytes.indexOf('canary-'); at !== -1; at = bytes.indexOf('canary-', at + 1)) {
    const start = at + 'canary-'.length;
    if (!marker.every((byte, i) => bytes[start + i] === byte)) continue;
    if (bytes.toString('latin1', start + marker.length, start + marker.length + kind.length) === kind)
      found++;
  }
  return found;
}

// The control: a string that is there, so that finding none of the others means something.
const control = ['canary-', Buffer.from(marker).toString('latin1'), '-control'].join('');

// Before the snapshot, which copies what it finds.
const valueInMemory = process.platform === 'linux' ? searchMemory('-value') : -1;
const snapshot: Buffer[] = [];
for await (const chunk of getHeapSnapshot()) snapshot.push(Buffer.from(chunk as Buffer));
const heap = Buffer.concat(snapshot);
const controlInHeap = count(heap, control.slice(-'-control'.length));
const found = {
  controlInHeap,
  valueInHeap: count(heap, '-value'),
  tokenInHeap: count(heap, '-token'),
  valueInMemory,
};
process.stdout.write(JSON.stringify(found));
process.exit();

function searchMemory(kind: string): number {
  const memory = openSync('/proc/self/mem', 'r');
  const window = Buffer.alloc(4 * 1024 * 1024);
  let total = 0;
  for (const line of readFileSync('/proc/self/maps', 'utf8').split('\n')) {
    const [, from = '', to = ''] = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line) ?? [];
    if (!from) continue;
    const end = Number.parseInt(to, 16);
    for (let at = Number.parseInt(from, 16); at < end; at += window.length - 256) {
      let read = 0;
      try {
        read = readSync(memory, window, 0, Math.min(window.length, end - at), at);
      } catch {
        break;
      }
      total += count(window.subarray(0, read), kind);
      window.fill(0);
    }
  }
  return total;
}
