// node test/fuzz/run.ts [--seconds 10] [--seed N] [--target NAME]
// Gives every target mutated inputs for so many seconds. A finding is written to corpus/TARGET/, where corpus.test.ts
// replays it from then on. The seed repeats a run, as far as time allows.
import { parseArgs } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

import { savedInputs, saveInput } from './corpus.ts';
import { judge, shrink } from './judge.ts';
import { LONGEST_INPUT, nextInput, seededRandom } from './mutate.ts';
import { targets } from './targets.ts';

/** An input that takes longer is a finding: it would stop all other sessions. */
const LONGEST_RUN_MS = 5000;

/** How far a target's thread has come. Shared, because a thread that hangs cannot tell what it hangs on. */
interface Progress {
  /** Inputs begun so far, and the length of the current one. */
  readonly counters: Int32Array;
  readonly input: Uint8Array;
}

interface Job {
  readonly name: string;
  readonly seed: number;
  readonly seconds: number;
  readonly progress: Progress;
}

interface Finding {
  readonly problem: string;
  readonly input: Uint8Array;
}

if (isMainThread) process.exitCode = await main();
else parentPort?.postMessage(await search(workerData as Job));

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '10' },
      seed: { type: 'string', default: String(Math.floor(Math.random() * 2 ** 32)) },
      target: { type: 'string' },
    },
  });
  const seconds = Number(values.seconds);
  const seed = Number(values.seed);
  const names = targets.map((target) => target.name);
  if (!(seconds > 0) || !Number.isInteger(seed) || (values.target && !names.includes(values.target))) {
    console.error(
      `--seconds is a number above 0, --seed a whole number, --target one of ${names.join(', ')}`,
    );
    return 2;
  }

  console.log(`seed ${seed}`);
  let findings = 0;
  for (const name of values.target ? [values.target] : names) {
    const progress: Progress = {
      counters: new Int32Array(new SharedArrayBuffer(8)),
      input: new Uint8Array(new SharedArrayBuffer(LONGEST_INPUT)),
    };
    const finding = await watched({ name, seed, seconds, progress });
    console.log(`${name}: ${Atomics.load(progress.counters, 0)} inputs`);
    if (!finding) continue;
    findings++;
    console.log(`  corpus/${name}/${saveInput(name, finding.input)} ${finding.problem}`);
  }
  return findings === 0 ? 0 : 1;
}

/** Searches in a thread of its own, and ends that thread when one input keeps it too long. */
function watched(job: Job): Promise<Finding | undefined> {
  const { counters, input } = job.progress;
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: job });
    let seen = -1;
    const watch = setInterval(() => {
      const begun = Atomics.load(counters, 0);
      if (begun === seen && begun > 0)
        settle({
          problem: `took longer than ${LONGEST_RUN_MS} ms`,
          input: input.slice(0, Atomics.load(counters, 1)),
        });
      seen = begun;
    }, LONGEST_RUN_MS);
    const settle = (finding: Finding | undefined) => {
      clearInterval(watch);
      void worker.terminate();
      resolve(finding);
    };
    worker.once('message', settle);
    worker.once('error', (thrown) => {
      clearInterval(watch);
      reject(thrown);
    });
  });
}

/** Tries inputs until one breaks the target or the time is over. */
async function search({ name, seed, seconds, progress }: Job): Promise<Finding | undefined> {
  const target = targets.find((one) => one.name === name);
  if (!target) throw new Error(`no target ${name}`);
  const inputs = [...target.seedInputs, ...savedInputs(name).values()];
  const random = seededRandom(seed);
  const end = Date.now() + seconds * 1000;
  while (Date.now() < end) {
    const input = nextInput(inputs, random);
    progress.input.set(input);
    Atomics.store(progress.counters, 1, input.length);
    Atomics.add(progress.counters, 0, 1);
    const problem = await judge(target, input);
    if (problem) return { problem, input: await shrink(target, input) };
  }
  return undefined;
}
