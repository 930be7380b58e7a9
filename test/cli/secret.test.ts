import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { open, texts } from '../providers/opening.ts';
import { capture, type Output } from '../support/servers/process.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'postern-cli-secret-'));
after(() => rmSync(folder, { recursive: true }));
let homes = 0;
function newHome(): string {
  const home = join(folder, `home-${++homes}`);
  mkdirSync(home);
  return home;
}

const environment = (home: string) => ({ PATH: process.env['PATH'], HOME: home, TERM: 'xterm' });
const secret = (home: string, words: readonly string[], input = ''): Promise<Output> =>
  capture(program, ['secret', ...words], { env: environment(home), input });
const read = async (home: string, ...names: string[]) => {
  const provider = open('local', {}, { HOME: home });
  const values = await texts(provider, ...names);
  await provider.close(AbortSignal.timeout(1000));
  return values;
};

describe('postern secret', () => {
  it('sets a value from its input without one line end, lists names, and removes one', async () => {
    const home = newHome();
    const added = await secret(home, ['set', 'orders/db'], 'CANARY pass\n');
    assert.deepEqual([added.code, added.stdout, added.stderr], [0, '', 'added orders/db\n']);
    await secret(home, ['set', 'b'], 'two\nlines\r\n');
    await secret(home, ['set', 'a', '--raw'], 'raw\n');
    assert.deepEqual(await read(home, 'orders/db', 'b', 'a'), ['CANARY pass', 'two\nlines', 'raw\n']);
    assert.equal((await secret(home, ['set', 'b'], 'new')).stderr, 'replaced b\n');

    const listed = await secret(home, ['list']);
    assert.deepEqual([listed.code, listed.stdout, listed.stderr], [0, 'a\nb\norders/db\n', '']);
    const removed = await secret(home, ['rm', 'a']);
    assert.deepEqual([removed.code, removed.stdout, removed.stderr], [0, '', '']);
    assert.equal((await secret(home, ['list'])).stdout, 'b\norders/db\n');
    assert.deepEqual(await read(home, 'b'), ['new']);
  });

  it('says with exit code 1 what cannot be done, and changes nothing', async () => {
    const home = newHome();
    const none = await secret(home, ['list']);
    assert.equal(none.code, 1);
    assert.match(
      none.stderr,
      /^postern: there is no file ".*secrets.age"; `postern secret set NAME` makes it\n$/,
    );
    const empty = await secret(home, ['set', 'x'], '\n');
    assert.deepEqual([empty.code, empty.stderr], [1, 'postern: the value is empty; nothing was changed\n']);
    const long = await secret(home, ['set', 'x'], 'CANARY'.repeat(20_000));
    assert.deepEqual([long.code, long.stderr], [1, 'postern: the value is longer than 64 KiB\n']);
    assert.equal(existsSync(join(home, '.config')), false);
    await secret(home, ['set', 'x'], 'y');
    const missing = await secret(home, ['rm', 'nothing']);
    assert.deepEqual([missing.code, missing.stderr], [1, 'postern: there is no secret "nothing"\n']);
  });

  it('says with exit code 2 what it does not understand, and takes no value as an argument', async () => {
    const home = newHome();
    for (const [words, said] of [
      [[], /say what to do: secret set NAME, secret list, or secret rm NAME/],
      [['show', 'x'], /say what to do/],
      [['get', 'x'], /there is no `secret get`/],
      [['set'], /secret set takes one name/],
      [['set', 'x', 'CANARY'], /a value is never an argument/],
      [['set', 'a b'], /a name is 1 to 128 letters/],
      [['list', 'x'], /takes no name/],
      [['list', '--identity', 'a', '--passphrase-file', 'b'], /give only one of/],
      [['list', '--keychain', 'a'], /SERVICE#ACCOUNT/],
      [['set', 'x', '--value', 'CANARY'], /Unknown option '--value'/],
    ] as const) {
      const { code, stderr, stdout } = await secret(home, words, 'y');
      assert.deepEqual([code, stdout], [2, ''], words.join(' '));
      assert.match(stderr, said);
      assert.doesNotMatch(stderr, /CANARY/);
    }
    assert.equal(existsSync(join(home, '.config')), false);
  });

  it('keeps to the file and the key that it is told', { timeout: 60_000 }, async () => {
    const home = newHome();
    const [file, passphrase] = [join(home, 'mine.age'), join(home, 'passphrase')];
    writeFileSync(passphrase, 'correct horse\n', { mode: 0o600 });
    const places = ['--file', file, '--passphrase-file', passphrase];
    assert.equal((await secret(home, ['set', 'x', ...places], 'y')).code, 0);
    assert.equal((await secret(home, ['list', ...places])).stdout, 'x\n');
    assert.equal(existsSync(join(home, '.config')), false, 'no identity was made');
    const other = await secret(home, ['list', '--file', file, '--identity', passphrase]);
    assert.deepEqual([other.code, other.stdout], [1, '']);
    assert.match(other.stderr, /passphrase": a line of it is no identity/);
  });

  it('loses nothing when several set values at once', { timeout: 60_000 }, async () => {
    const home = newHome();
    const names = ['a', 'b', 'c', 'd'];
    const results = await Promise.all(names.map((name) => secret(home, ['set', name], `value of ${name}`)));
    assert.deepEqual(
      results.map(({ code }) => code),
      [0, 0, 0, 0],
    );
    assert.deepEqual(
      await read(home, ...names),
      names.map((name) => `value of ${name}`),
    );
  });
});

describe('postern secret set on a terminal', { skip: process.platform !== 'linux' }, () => {
  /** A terminal of its own, by script(1): what it shows, and typing when something has been shown. */
  class Terminal {
    shown = '';
    readonly #child: ChildProcess;
    readonly #ended: Promise<unknown[]>;

    constructor(home: string, command: string) {
      this.#child = spawn('script', ['-qefc', command, '/dev/null'], {
        env: environment(home),
        stdio: ['pipe', 'pipe', 'inherit'],
      });
      this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.shown += text));
      this.#child.stdin?.on('error', () => undefined);
      this.#ended = once(this.#child, 'close');
    }

    async type(when: RegExp, keys: string): Promise<void> {
      for (let turns = 0; !when.test(this.shown); turns++) {
        assert.ok(turns < 1000, `nothing like ${when} in ${JSON.stringify(this.shown)}`);
        await new Promise((later) => setTimeout(later, 10));
      }
      // Shown just before the echo is switched off.
      await new Promise((later) => setTimeout(later, 100));
      this.#child.stdin?.write(keys);
    }

    async end(): Promise<number> {
      const late = setTimeout(() => this.#child.kill(), 20_000);
      const [code] = await this.#ended;
      clearTimeout(late);
      return Number(code);
    }
  }
  const command = (name: string) => `'${program}' secret set ${name}`;

  it('asks twice, shows nothing of what is typed, and knows backspace', { timeout: 60_000 }, async () => {
    const home = newHome();
    const terminal = new Terminal(home, command('x'));
    await terminal.type(/Value of x \(not shown\): $/, 'CANÄ\x7fARYx\x7f1\r');
    await terminal.type(/Once more: $/, 'wrong\x15CANARY1\r');
    assert.equal(await terminal.end(), 0);
    assert.match(terminal.shown, /added x/);
    assert.doesNotMatch(terminal.shown, /CAN|wrong/);
    assert.deepEqual(await read(home, 'x'), ['CANARY1']);
  });

  it('asks again when the two are not the same', { timeout: 60_000 }, async () => {
    const home = newHome();
    const terminal = new Terminal(home, command('x'));
    await terminal.type(/Value of x \(not shown\): $/, 'one\r');
    await terminal.type(/Once more: $/, 'two\r');
    await terminal.type(/not the same\.\r?\nValue of x \(not shown\): $/, 'three\r');
    await terminal.type(/same[^]*Once more: $/, 'three\r');
    assert.equal(await terminal.end(), 0);
    assert.deepEqual(await read(home, 'x'), ['three']);
  });

  it('takes both lines of a paste', { timeout: 60_000 }, async () => {
    const home = newHome();
    const terminal = new Terminal(home, command('x'));
    await terminal.type(/Value of x \(not shown\): $/, 'pasted\rpasted\r');
    assert.equal(await terminal.end(), 0);
    assert.deepEqual(await read(home, 'x'), ['pasted']);
  });

  for (const [key, name] of [
    ['\x03', 'Ctrl-C'],
    ['\x04', 'Ctrl-D'],
  ] as const)
    it(`changes nothing at ${name}`, { timeout: 60_000 }, async () => {
      const home = newHome();
      const terminal = new Terminal(home, command('x'));
      await terminal.type(/Value of x \(not shown\): $/, key);
      assert.equal(await terminal.end(), 130);
      assert.equal(existsSync(join(home, '.config')), false);
    });
});
