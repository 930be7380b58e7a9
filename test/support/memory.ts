import { closeSync, openSync, readFileSync, readSync } from 'node:fs';

/** Larger mappings are address space that V8 has reserved and does not use. */
const LARGEST_MAPPING = 256 * 2 ** 20;

/** All that a process could write to, region by region: where a secret that was not wiped still is. Linux only. */
export function writableMemory(pid: number): Buffer[] {
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  try {
    const regions: Buffer[] = [];
    for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
      const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line) ?? [];
      if (!from || !to) continue;
      const start = BigInt(`0x${from}`);
      const size = Number(BigInt(`0x${to}`) - start);
      if (size > LARGEST_MAPPING) continue;
      const region = Buffer.alloc(size);
      try {
        regions.push(region.subarray(0, readSync(memory, region, 0, size, start)));
      } catch {
        // Special mappings cannot be read.
      }
    }
    return regions;
  } finally {
    closeSync(memory);
  }
}
