import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Outcome } from './support/outcome.ts';
import { home, stopShared, unregisterUser } from './support/servers/state.ts';
import { server, serverNames, Unavailable } from './support/servers.ts';

const usage = `node test/run.ts [--keep] [FILE or GLOB or node --test flag]...
  Runs the tests (default: all of them, with all servers started first; with files given, servers start when a test
  asks), once more and alone those files that failed, and stops the servers afterwards, unless another run still uses them or --up has been said. Flags that take a value need the form
  --flag=value.
    --keep   leave the servers running, for good (see --down)
node test/run.ts --up     start all servers and leave them running
node test/run.ts --down   stop all servers
`;

const keepNote = () => join(home(), 'keep');

/** Starts every server, in parallel, with a line each; false when one that must be there (in CI: any) is not. */
async function up(): Promise<boolean> {
  const results = await Promise.all(
    serverNames.map(async (name) => {
      const started = performance.now();
      const say = (what: string) => {
        const seconds = ((performance.now() - started) / 1000).toFixed(1);
        process.stderr.write(`${name.padEnd(12)} ${seconds.padStart(5)} s  ${what}\n`);
      };
      try {
        const { host, port } = await server(name);
        say(`${host}:${port}`);
        return true;
      } catch (error) {
        const missing = error instanceof Unavailable;
        say(`${missing ? 'not here' : 'failed'}: ${(error as Error).message}`);
        return missing && process.env['CI'] !== 'true';
      }
    }),
  );
  return results.every(Boolean);
}

/** More files than that do not fail by accident: they are not run again. */
const MOST_RERUN = 12;
/** CI shows the end of its output only, so the failures are named in this many lines there. */
const LINES_AT_THE_END = 50;

const root = fileURLToPath(new URL('..', import.meta.url));

interface Run {
  readonly code: number;
  /** undefined where there is no telling: the runner was killed, or reports as its caller wants it. */
  readonly outcome: Outcome | undefined;
}

/** Runs test files, each in a process of its own. */
async function runTests(
  files: readonly string[],
  flags: readonly string[],
  concurrency: number,
): Promise<Run> {
  const folder = mkdtempSync(join(tmpdir(), 'postern-tests-'));
  const told = join(folder, 'outcome.json');
  const usual = [
    '--test',
    `--test-concurrency=${concurrency}`,
    // For one test and for one whole file: a hang must end, a slow machine must not.
    '--test-timeout=240000',
    // What a failed test leaves open would else keep its file alive for ever: that limit does not end it.
    '--test-force-exit',
  ];
  const reporters = [
    '--test-reporter=spec',
    '--test-reporter-destination=stdout',
    `--test-reporter=${new URL('support/outcome.ts', import.meta.url).href}`,
    `--test-reporter-destination=${told}`,
  ];
  const own = flags.some((flag) => flag.startsWith('--test-reporter'));
  const args = [...usual, ...(own ? [] : reporters), ...flags, ...files];
  try {
    const child = spawn(process.execPath, args, { cwd: root, stdio: 'inherit' });
    // Ctrl-C reaches the child by itself, as it is in our process group; a signal to us alone is passed on.
    const passOn = (signal: NodeJS.Signals) => child.kill(signal);
    for (const signal of signals) process.on(signal, passOn);
    const [code] = (await once(child, 'close')) as [number | null];
    for (const signal of signals) process.off(signal, passOn);
    const text = code !== null && existsSync(told) ? readFileSync(told, 'utf8') : '';
    return { code: code ?? 1, outcome: text === '' ? undefined : (JSON.parse(text) as Outcome) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const say = (line: string) => process.stdout.write(`${line}\n`);
const failedFiles = ({ failures }: Outcome) => [...new Set(failures.map(({ file }) => file))];

/**
 * Runs the tests. Files of which some failed are run once more, alone: a test that passes then depends on how busy the
 * machine is. That is a bug as well, and said, but no reason to throw away what else the run has shown.
 */
async function runAndRunAgain(files: readonly string[], flags: readonly string[]): Promise<number> {
  // Tests wait more than they compute.
  const first = await runTests(files, flags, availableParallelism() + 1);
  if (!first.outcome) return first.code;
  say(`\nslowest files: ${first.outcome.files.slice(0, 10).map(timed).join(', ')}`);
  if (first.code === 0) return 0;
  const failed = failedFiles(first.outcome);
  if (failed.length === 0 || failed.length > MOST_RERUN) {
    tellFailures(first.outcome);
    return first.code;
  }
  say(`\nsome tests failed: ${failed.map(shown).join(', ')} once more, alone\n`);
  const second = await runTests(failed, flags, 1);
  const again = second.outcome ?? first.outcome;
  say('');
  for (const { file, name, error } of first.outcome.failures)
    if (!failedFiles(again).includes(file)) say(`FLAKY ${shown(file)}  ${name}: ${error}`.slice(0, 400));
  if (second.code !== 0) tellFailures(again);
  return second.code;
}

const shown = (file: string) => relative(root, file);
const timed = ({ file, seconds }: Outcome['files'][number]) => `${shown(file)} ${seconds.toFixed()} s`;

/** Names all that failed, and cuts what each says to what then fits. */
function tellFailures(outcome: Outcome): void {
  const { failures } = outcome;
  const named = failures.slice(0, LINES_AT_THE_END - 2);
  const width = 200 * Math.max(1, Math.floor(LINES_AT_THE_END / named.length) - 1);
  say(`\n${failures.length} failed:`);
  for (const { file, name, line, error } of named) {
    say(`FAILED ${shown(file)}:${line} ${name}`);
    say(`       ${error}`.slice(0, width));
  }
  if (failures.length > named.length) say(`and ${failures.length - named.length} more`);
}

async function main(args: readonly string[]): Promise<number> {
  if (args.includes('--help')) {
    process.stdout.write(usage);
    return 0;
  }
  if (args.includes('--down')) {
    rmSync(keepNote(), { force: true });
    await stopShared({ onlyIdle: false });
    return 0;
  }
  const keep = args.includes('--keep') || args.includes('--up');
  if (keep) writeFileSync(keepNote(), '');
  if (args.includes('--up')) return (await up()) ? 0 : 1;

  const rest = args.filter((arg) => arg !== '--keep');
  const flags = rest.filter((arg) => arg.startsWith('-'));
  const files = rest.filter((arg) => !arg.startsWith('-'));
  let code = 1;
  try {
    if (files.length > 0) code = await runAndRunAgain(files, flags);
    else if (await up()) code = await runAndRunAgain(['test/**/*.test.ts'], flags);
  } finally {
    unregisterUser();
    if (!existsSync(keepNote())) await stopShared({ onlyIdle: true });
  }
  return code;
}

process.exitCode = await main(process.argv.slice(2));
