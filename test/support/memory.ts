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

/** How often a secret is in a process's memory, by the kind of mapping that holds it. */
export type Copies = Readonly<Record<string, number>>;

const WINDOW = 4 * 1024 * 1024;
/** Windows overlap by this much, so that nothing is cut in two. */
const LONGEST = 256;

/**
 * All memory of a process that can be written to, a window at a time; the bytes are good until the next one. What cannot
 * be written to is mapped from files: the same for everybody.
 */
export function* writable(
  pid: number,
): Generator<{ readonly bytes: Buffer; readonly kind: string; readonly last: boolean }> {
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  const window = Buffer.alloc(WINDOW);
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
      const [, from, to, name = ''] = /^([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ \d+ *(.*)$/.exec(line) ?? [];
      if (from === undefined || to === undefined) continue;
      const kind = name === '' ? 'anonymous' : name.startsWith('[') ? name : 'data of a file';
      const end = Number.parseInt(to, 16);
      for (let at = Number.parseInt(from, 16); at < end; at += WINDOW - LONGEST) {
        let read: number;
        try {
          read = readSync(memory, window, 0, Math.min(WINDOW, end - at), at);
        } catch {
          // Gone meanwhile, or of the kernel's own.
          break;
        }
        const last = at + WINDOW >= end;
        yield { bytes: window.subarray(0, read), kind, last };
        if (last) break;
      }
    }
  } finally {
    closeSync(memory);
  }
}

/** How often these bytes are in the memory of a process. */
export function copiesIn(pid: number, secret: Buffer): Copies {
  const copies: Record<string, number> = {};
  for (const { bytes, kind, last } of writable(pid))
    for (let found = bytes.indexOf(secret); found !== -1; found = bytes.indexOf(secret, found + 1))
      // What begins in the overlap is counted in the window after this one.
      if (last || found < WINDOW - LONGEST) copies[kind] = (copies[kind] ?? 0) + 1;
  return copies;
}

/** Over all kinds of mappings. */
export const total = (copies: Copies) => Object.values(copies).reduce((sum, count) => sum + count, 0);

/** For a message. */
export const told = (copies: Copies) =>
  Object.entries(copies)
    .map(([kind, count]) => `${count} in ${kind}`)
    .join(', ') || 'none';
