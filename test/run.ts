import { spawn } from 'node:child_process';
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { home, stopShared, unregisterUser } from './support/servers/state.ts';
import { server, serverNames, Unavailable } from './support/servers.ts';

const usage = `node test/run.ts [--keep] [FILE or GLOB or node --test flag]...
  Runs the tests (default: all of them, with all servers started first; with files given, servers start when a test
  asks) and stops the servers afterwards, unless another run still uses them or --up has been said. Flags that take a value need the form
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

function runTests(args: readonly string[]): Promise<number> {
  const flags = args.filter((arg) => arg.startsWith('-'));
  const files = args.filter((arg) => !arg.startsWith('-'));
  const usual = [
    '--test',
    // Tests wait more than they compute.
    `--test-concurrency=${availableParallelism() + 1}`,
    // For one test and for one whole file: a hang must end, a slow machine must not.
    '--test-timeout=240000',
    // What a failed test leaves open would else keep its file alive for ever: that limit does not end it.
    '--test-force-exit',
  ];
  const child = spawn(
    process.execPath,
    [...usual, ...flags, ...(files.length > 0 ? files : ['test/**/*.test.ts'])],
    {
      cwd: fileURLToPath(new URL('..', import.meta.url)),
      stdio: 'inherit',
    },
  );
  // Ctrl-C reaches the child by itself, as it is in our process group; a signal to us alone is passed on.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve(code ?? 1));
  });
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
  const everything = rest.every((arg) => arg.startsWith('-'));
  let code = 1;
  try {
    if (!everything || (await up())) code = await runTests(rest);
  } finally {
    unregisterUser();
    if (!existsSync(keepNote())) await stopShared({ onlyIdle: true });
  }
  return code;
}

process.exitCode = await main(process.argv.slice(2));
