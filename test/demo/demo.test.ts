import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Client } from 'pg';

import { installOpenBao, which } from '../support/servers/install.ts';
import { Unavailable } from '../support/servers/process.ts';

const script = fileURLToPath(new URL('../../demo/demo.ts', import.meta.url));

/** The demo as a user runs it, with a folder for temporary files of its own. */
class Demo implements AsyncDisposable {
  readonly temporary: string;
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  stdout = '';
  stderr = '';

  private constructor(temporary: string, child: ChildProcess) {
    this.temporary = temporary;
    this.child = child;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.stdout += text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
    this.ended = once(child, 'close').then(([code]) => code as number | null);
  }

  static async start(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Demo> {
    const temporary = await mkdtemp(join(tmpdir(), 'pt-'));
    await chmod(temporary, 0o711);
    const child = spawn(process.execPath, [script, ...args], {
      env: { PATH: process.env['PATH'], HOME: process.env['HOME'], TMPDIR: temporary, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    return new Demo(temporary, child);
  }

  get output(): string {
    return this.stdout + this.stderr;
  }

  /** Waits until it has printed something, or something else has become true. */
  async until(what: string, met: () => boolean | Promise<boolean>): Promise<void> {
    for (const deadline = Date.now() + 60_000; !(await met()); ) {
      assert.equal(this.child.exitCode, null, `the demo ended before ${what}:\n${this.output}`);
      assert.ok(Date.now() < deadline, `the demo did not get to ${what}:\n${this.output}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  async printed(text: string): Promise<void> {
    await this.until(JSON.stringify(text), () => this.stdout.includes(text));
  }

  /** The folder that it works in. */
  async folder(): Promise<string | undefined> {
    const [name] = await readdir(this.temporary);
    return name === undefined ? undefined : join(this.temporary, name);
  }

  /** Every file and every process that it left. Each of its processes has the folder in its command line or environment. */
  async leftovers(): Promise<string[]> {
    const files = await readdir(this.temporary, { recursive: true });
    const processes: string[] = [];
    for (const pid of (await readdir('/proc').catch(() => [])).filter((name) => /^\d+$/.test(name))) {
      const read = (file: string) => readFile(`/proc/${pid}/${file}`, 'latin1').catch(() => '');
      const words = [await read('cmdline'), await read('environ')];
      if (words.some((text) => text.includes(this.temporary))) processes.push(`${pid} ${words[0]}`);
    }
    return [...files, ...processes];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGTERM');
    await this.ended;
    await rm(this.temporary, { recursive: true, force: true });
  }
}

/** What a file says under a key, in the demo's simple YAML. */
function valueOf(yaml: string, key: string): string {
  return new RegExp(`^ *${key}: (.*)$`, 'm').exec(yaml)?.[1] ?? '';
}

/** Both passwords, from the store itself: as Postern gets them. */
async function versionsInOpenBao(folder: string): Promise<string[]> {
  const yaml = await readFile(join(folder, 'postern.yaml'), 'utf8');
  const address = valueOf(yaml, 'address');
  const secretId = await readFile(valueOf(yaml, 'secretIdFile'), 'utf8');
  const login = await fetch(`${address}/v1/auth/approle/login`, {
    method: 'POST',
    body: JSON.stringify({ role_id: 'orders', secret_id: secretId }),
  });
  const { auth } = (await login.json()) as { auth: { client_token: string } };
  let token = '';
  const passwords = [1, 2].map(async (version) => {
    const response = await fetch(`${address}/v1/secret/data/orders-db?version=${version}`, {
      headers: { 'X-Vault-Token': auth.client_token },
    });
    const body = (await response.json()) as { data: { data: { password: string; token: string } } };
    token = body.data.data.token;
    return body.data.data.password;
  });
  return [...(await Promise.all(passwords)), token, secretId, auth.client_token];
}

/** What the file has at this moment. */
async function inFile(folder: string | undefined, field: 'password' | 'token'): Promise<string | undefined> {
  if (folder === undefined) return undefined;
  const text = await readFile(join(folder, 'secrets', 'orders-db.json'), 'utf8').catch(() => undefined);
  return text === undefined ? undefined : (JSON.parse(text) as Record<typeof field, string>)[field];
}

async function currentUserByPastedLine(output: string): Promise<unknown> {
  const [, host, port, user, database] =
    /psql "host=(\S+) port=(\d+) user=(\S+) dbname=(\S+)"/.exec(output) ?? [];
  assert.ok(host && user && database, 'the demo prints a line for psql');
  const client = new Client({ host, port: Number(port), user, database });
  await client.connect();
  try {
    return (await client.query<{ current_user: string }>('select current_user')).rows[0]?.current_user;
  } finally {
    await client.end();
  }
}

function assertTold(demo: Demo, secrets: readonly string[]): void {
  const { stdout } = demo;
  const titles = [...stdout.matchAll(/^(\d+)\. /gm)].map(([, number]) => Number(number));
  assert.deepEqual(titles, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.match(stdout, /user {4}orders_app/);
  assert.match(stdout, /password authentication failed for user "orders_app"/);
  assert.match(stdout, /Asked directly, it says 401/);
  assert.match(stdout, /200: 3 orders are on their way/);
  assert.equal(stdout.match(/outcome=ok/g)?.length, stdout.match(/session ended/g)?.length);
  assert.ok((stdout.match(/session ended/g)?.length ?? 0) >= 3);
  assert.equal(demo.stderr, '');

  assert.equal(new Set(secrets).size, secrets.length, 'the password was rotated');
  for (const secret of secrets) {
    assert.ok(secret.length >= 24, 'the test knows the secret');
    assert.ok(!demo.output.includes(secret), 'a secret is on the screen');
  }
  assert.ok(!stdout.includes('\u001B'), 'there is colour in a pipe');
  // A path cannot be broken, and that of this test is longer than usual.
  const long = stdout.split('\n').filter((line) => line.length > 80 && !line.includes(demo.temporary));
  assert.deepEqual(long, []);
}

describe('npm run demo', () => {
  it('shows a login without a password, and a rotation, with a real OpenBao', async (t) => {
    try {
      await installOpenBao();
    } catch (error) {
      if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
      t.skip(error.message);
      return;
    }
    await using demo = await Demo.start(['--keep', '--store', 'openbao']);
    await demo.printed('examples/');
    const secrets = await versionsInOpenBao((await demo.folder()) ?? '');
    assert.equal(await currentUserByPastedLine(demo.stdout), 'orders_app');
    assertTold(demo, secrets);
    assert.match(demo.stdout, /credential=vault@1/);
    assert.match(demo.stdout, /credential=vault@2/);

    demo.child.kill('SIGINT');
    assert.equal(await demo.ended, 0);
    assert.deepEqual(await demo.leftovers(), []);
  });

  it('shows the same with a file where there is no OpenBao', async () => {
    const cache = await mkdtemp(join(tmpdir(), 'postern-no-cache-'));
    const here = (await which('bao')) ?? (await which('vault'));
    await using demo = await Demo.start(here ? ['--keep', '--store', 'file'] : ['--keep'], {
      XDG_CACHE_HOME: cache,
    });
    const secrets: string[] = [];
    await demo.until('the first password', async () => {
      const password = await inFile(await demo.folder(), 'password');
      if (password !== undefined) secrets.push(password);
      return password !== undefined;
    });
    await demo.printed('examples/');
    for (const field of ['password', 'token'] as const)
      secrets.push((await inFile(await demo.folder(), field)) ?? '');
    assert.equal(await currentUserByPastedLine(demo.stdout), 'orders_app');
    assertTold(demo, secrets);
    assert.match(demo.stdout, /a file with mode 0600/);

    demo.child.kill('SIGINT');
    assert.equal(await demo.ended, 0);
    assert.deepEqual(await demo.leftovers(), []);
    assert.deepEqual(await readdir(cache), [], 'it looked for a program and left a folder');
    await rm(cache, { recursive: true });
  });

  it('ends by itself without --keep, and leaves nothing behind', async () => {
    await using demo = await Demo.start(['--store', 'file']);
    assert.equal(await demo.ended, 0, demo.output);
    assert.match(demo.stdout, /npm run demo -- --keep/);
    assert.deepEqual(await demo.leftovers(), []);
  });

  const moments: [moment: string, reached: (demo: Demo) => Promise<boolean> | boolean][] = [
    ['its folder has been made', async (demo) => (await demo.folder()) !== undefined],
    [
      'PostgreSQL makes its data folder',
      async (demo) => (await demo.leftovers()).some((p) => p.includes('initdb')),
    ],
    ['Postern starts', (demo) => demo.stdout.includes('3. ')],
    [
      'the application has connected',
      (demo) => demo.stdout.includes('orders_app" has') && demo.stdout.includes('5. '),
    ],
  ];
  for (const [moment, reached] of moments) {
    it(`leaves nothing behind when it is interrupted after ${moment}`, async () => {
      await using demo = await Demo.start(['--store', 'file']);
      await demo.until(moment, () => reached(demo));
      demo.child.kill('SIGINT');
      // Ctrl-C under npm comes twice: from the terminal and from npm.
      demo.child.kill('SIGINT');
      assert.equal(await demo.ended, 130, demo.output);
      assert.deepEqual(await demo.leftovers(), []);
      assert.equal(demo.stderr, '');
    });
  }

  it('cleans up when whoever reads its output goes away', async () => {
    await using demo = await Demo.start(['--store', 'file', '--keep']);
    await demo.printed('1. ');
    demo.child.stdout?.destroy();
    assert.notEqual(await demo.ended, 0);
    assert.deepEqual(await demo.leftovers(), []);
  });

  it('says in one sentence why it cannot go on', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'postern-broken-bao-'));
    await mkdir(join(folder, 'bin'));
    const broken = '#!/bin/sh\necho "the disk is made of cheese" >&2\nexit 1\n';
    await writeFile(join(folder, 'bin', 'bao'), broken, { mode: 0o755 });
    const path = `${join(folder, 'bin')}${delimiter}${process.env['PATH'] ?? ''}`;
    await using demo = await Demo.start(['--store', 'openbao'], { PATH: path });
    assert.equal(await demo.ended, 1);
    const said = demo.stderr.replaceAll('\n', ' ').trim();
    assert.equal(said, 'The demo stopped: the secret store ended: the disk is made of cheese');
    assert.doesNotMatch(demo.output, /^ +at /m);
    assert.deepEqual(await demo.leftovers(), []);
    await rm(folder, { recursive: true });
  });

  it('refuses words that it does not know, with its usage', async () => {
    await using demo = await Demo.start(['--kepp']);
    assert.equal(await demo.ended, 2);
    assert.match(demo.stderr, /--kepp/);
    assert.match(demo.stderr, /npm run demo -- \[--keep\]/);
    assert.deepEqual(await demo.leftovers(), []);
  });
});
