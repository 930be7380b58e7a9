// Loaded into the program under test with NODE_OPTIONS=--import, by tests that must know what only the process itself can
// tell. On SIGUSR2 it collects garbage and writes what is left to the file INSIDE_REPORT.
import { renameSync, writeFileSync } from 'node:fs';
import { getHeapSpaceStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** What is left in the program after its garbage was collected. */
export interface Inside {
  /** Bytes of objects in V8's heap, without its code: that grows for a long time, as more and more of it is optimised. */
  readonly heapObjects: number;
  readonly external: number;
  readonly arrayBuffers: number;
  readonly rss: number;
  /** What keeps the process alive, counted by kind. */
  readonly resources: Readonly<Record<string, number>>;
}

const path = process.env['INSIDE_REPORT'];
if (path !== undefined) {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  process.on('SIGUSR2', () => {
    collect();
    // Finalizers run some time after the garbage is found, and leave garbage themselves.
    setTimeout(() => {
      collect();
      setImmediate(write);
    }, 50);
  });
}

function write(): void {
  if (path === undefined) return;
  const kinds = Object.groupBy(process.getActiveResourcesInfo(), (kind) => kind);
  const { external, arrayBuffers, rss } = process.memoryUsage();
  const resources = Object.fromEntries(
    Object.entries(kinds).map(([kind, each]) => [kind, each?.length ?? 0]),
  );
  const heapObjects = getHeapSpaceStatistics()
    .filter(({ space_name: name }) => !/code|trusted/.test(name))
    .reduce((sum, space) => sum + space.space_used_size, 0);
  const report: Inside = { heapObjects, external, arrayBuffers, rss, resources };
  writeFileSync(`${path}.new`, JSON.stringify(report));
  renameSync(`${path}.new`, path);
}
