import assert from 'node:assert/strict';
import { chmod, copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { withProgram } from '../deploy/programs.ts';
import { which } from '../support/servers/install.ts';
import { capture, run, unprivileged } from '../support/servers/process.ts';
import { Unavailable } from '../support/servers.ts';

const source = fileURLToPath(new URL('../../native/launcher/launcher.rs', import.meta.url));

/** What the program that is started sees of itself. */
const spy = `
const { readFileSync } = require('node:fs');
const attempt = (name) => { try { readFileSync('/proc/self/' + name); return 'read'; } catch (error) { return error.code; } };
process.stdout.write(JSON.stringify({
  words: process.argv.slice(2),
  flags: process.execArgv,
  names: Object.keys(process.env),
  core: /^Max core file size +(\\S+) +(\\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8')).slice(1),
  environ: attempt('environ'),
}));
process.exitCode = 7;
`;

interface Seen {
  readonly words: readonly string[];
  readonly flags: readonly string[];
  readonly names: readonly string[];
  readonly core: readonly string[];
  readonly environ: string;
}

const folders: string[] = [];
after(async () => {
  for (const folder of folders) await rm(folder, { recursive: true });
});

let built: Promise<string> | undefined;

/** A folder with the launcher, a Node.js that may be executed and not read, as in the image, and the spy. */
async function build(): Promise<string> {
  const rustc = await which('rustc');
  if (!rustc) throw new Unavailable('install Rust (the launcher of the image is built with it)');
  const folder = await mkdtemp(join(tmpdir(), 'postern-launcher-'));
  folders.push(folder);
  await chmod(folder, 0o755);
  const [node, main] = [join(folder, 'node'), join(folder, 'spy.cjs')];
  await copyFile(process.execPath, node);
  await chmod(node, 0o711);
  await writeFile(main, spy, { mode: 0o644 });
  // With the flags that the Dockerfile has.
  const flags = '-C opt-level=s -C panic=abort -C strip=symbols -C target-feature=+crt-static -D warnings';
  await run(rustc, ['--edition', '2024', ...flags.split(' '), '-o', join(folder, 'postern'), source], {
    env: { ...process.env, LAUNCHER_NODE: node, LAUNCHER_MAIN: main },
  });
  return folder;
}

async function launch(
  t: TestContext,
  variables: Readonly<Record<string, string>>,
  ...words: readonly string[]
): Promise<{ readonly seen: Seen; readonly stderr: string; readonly code: number } | undefined> {
  const folder = await withProgram(t, () => (built ??= build()));
  if (folder === undefined) return undefined;
  const identity = await unprivileged();
  const { code, stdout, stderr } = await capture(join(folder, 'postern'), words, {
    env: { HOME: '/tmp', ...variables },
    cwd: '/',
    identity,
  });
  return { seen: JSON.parse(stdout) as Seen, stderr, code };
}

describe('the launcher of the image', () => {
  it('becomes Node.js with its flags and the words that it was given, and leaves the exit code alone', async (t) => {
    const launched = await launch(t, {}, 'run', '--config', 'a b', '');
    if (!launched) return;
    assert.deepEqual(launched.seen.words, ['run', '--config', 'a b', '']);
    assert.deepEqual(launched.seen.flags, ['--use-system-ca', '--max-old-space-size-percentage=50']);
    assert.deepEqual([launched.code, launched.stderr], [7, '']);
  });

  it('passes on the variables of a program, and none that would change it', async (t) => {
    const good = {
      NODE_EXTRA_CA_CERTS: '/nowhere.pem',
      VAULT_TOKEN: 'x',
      SSL_CERT_FILE: '/nowhere.pem',
      UV_THREADPOOL_SIZE: '4',
      OLD_PATH: 'x',
      NODES: '3',
    };
    const bad = {
      NODE_OPTIONS: '--no-such-flag',
      NODE_DEBUG: 'http,tls',
      NODE_TLS_REJECT_UNAUTHORIZED: '0',
      NODE_REPL_EXTERNAL_MODULE: '/evil.js',
      NODE_V8_COVERAGE: '/tmp',
      LD_PRELOAD: '/evil.so',
      LD_LIBRARY_PATH: '/evil',
      OPENSSL_CONF: '/evil.cnf',
      GLIBC_TUNABLES: 'glibc.malloc.check=1',
    };
    const launched = await launch(t, { ...good, ...bad });
    if (!launched) return;
    assert.deepEqual(new Set(launched.seen.names), new Set(['HOME', ...Object.keys(good)]));
    const names = Object.keys(bad).toSorted((a, b) => (a < b ? -1 : 1));
    const said = launched.stderr.split('\n').filter((line) => line.startsWith('postern: '));
    assert.deepEqual(said, [`postern: not obeyed in the image: ${names.join(', ')}`]);
    assert.ok(!launched.stderr.includes('evil'), 'names, and no values');
  });

  it('forbids core files, for what Node.js starts, too', async (t) => {
    const launched = await launch(t, {});
    if (!launched) return;
    for (const limit of launched.seen.core) assert.ok(limit === '1' || limit === '0', limit);
  });

  it('starts a Node.js that the kernel lets nobody of its user look into', async (t) => {
    const launched = await launch(t, {});
    if (!launched) return;
    if (!(await unprivileged())) return t.skip('its owner may read it: as root this runs as another user');
    assert.equal(launched.seen.environ, 'EACCES');
  });

  it('says what it cannot start, with the exit code of a start that cannot be', async (t) => {
    const folder = await withProgram(t, () => (built ??= build()));
    if (folder === undefined) return;
    const lonely = join(folder, 'lonely');
    await run((await which('rustc')) ?? 'rustc', ['--edition', '2024', '-o', lonely, source], {
      env: { ...process.env, LAUNCHER_NODE: '/nowhere/node' },
    });
    const { code, stdout, stderr } = await capture(lonely, ['run'], { env: {} });
    assert.deepEqual([code, stdout], [2, '']);
    assert.match(stderr, /^postern: \/nowhere\/node cannot be started: No such file or directory/);
  });
});
