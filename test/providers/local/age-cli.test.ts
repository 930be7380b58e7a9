import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { pino } from 'pino';

import { KeychainItems } from '../../../src/providers/keychain.ts';
import { placesOf } from '../../../src/providers/local/places.ts';
import { SecretsFile } from '../../../src/providers/local/secrets-file.ts';
import { executable, which } from '../../support/servers/install.ts';
import { run } from '../../support/servers/process.ts';
import { cache, withLock } from '../../support/servers/state.ts';
import { never, open, texts } from '../opening.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-age-'));
after(() => rmSync(folder, { recursive: true }));

const version = '1.2.1';

/** Folder of the real `age` and `age-keygen`, built from their Go module; undefined where there is no Go. */
async function realAge(): Promise<string | undefined> {
  const go = await which('go');
  if (!go) {
    assert.equal(process.env['CI'], undefined, 'Go is missing');
    return undefined;
  }
  const programs = await cache(`age-${version}`);
  await withLock('age', async () => {
    if (await executable(join(programs, 'age-keygen'))) return;
    const modules = ['age', 'age-keygen'].map((name) => `filippo.io/age/cmd/${name}@v${version}`);
    await run(go, ['install', ...modules], { env: { ...process.env, GOBIN: programs }, timeout: 300_000 });
  });
  return programs;
}

describe('the real age', { timeout: 300_000 }, () => {
  const context = { name: 'local', log: pino({ level: 'silent' }), environment: {} };
  const keychain = new KeychainItems(context, { accountAttribute: 'account', timeout: 1 });
  const file = join(folder, 'secrets.age');

  it('opens what Postern seals, with the identity that Postern made', async (t) => {
    const programs = await realAge();
    if (!programs) return t.skip('there is no Go');
    const identityFile = join(folder, 'made.txt');
    const places = placesOf({ file, identityFile }, {});
    await new SecretsFile(places, keychain).change('name', Buffer.from('value "1"'), never);
    const opened = await run(join(programs, 'age'), ['-d', '-i', identityFile, file]);
    assert.deepEqual(JSON.parse(opened.stdout), { name: 'value "1"' });
    const recipient = await run(join(programs, 'age-keygen'), ['-y', identityFile]);
    assert.match(
      readFileSync(identityFile, 'utf8'),
      new RegExp(`^# public key: ${recipient.stdout.trim()}\n`),
    );
  });

  it('seals what Postern opens, and goes on changing: for an identity of its own, and in its form for texts', async (t) => {
    const programs = await realAge();
    if (!programs) return t.skip('there is no Go');
    const identityFile = join(folder, 'theirs.txt');
    await run(join(programs, 'age-keygen'), ['-o', identityFile]);
    const recipient = (await run(join(programs, 'age-keygen'), ['-y', identityFile])).stdout.trim();
    const plain = join(folder, 'plain.json');
    writeFileSync(plain, JSON.stringify({ name: 'value', large: 'x'.repeat(150_000) }));
    for (const form of [[], ['--armor']]) {
      rmSync(file, { force: true });
      await run(join(programs, 'age'), ['-e', ...form, '-r', recipient, '-o', file, plain]);
      const provider = open('local', { file, identityFile });
      assert.deepEqual(await texts(provider, 'name'), ['value']);
      await new SecretsFile(placesOf({ file, identityFile }, {}), keychain).change(
        'b',
        Buffer.from('c'),
        never,
      );
      assert.deepEqual(await texts(provider, 'b', 'large'), ['c', 'x'.repeat(150_000)]);
      await provider.close(never);
      const opened = await run(join(programs, 'age'), ['-d', '-i', identityFile, file]);
      assert.equal((JSON.parse(opened.stdout) as Record<string, string>)['b'], 'c');
    }
  });

  it('opens with a passphrase what Postern sealed with it, and the other way about', {
    skip: process.platform !== 'linux',
  }, async (t) => {
    const programs = await realAge();
    if (!programs) return t.skip('there is no Go');
    const passphraseFile = join(folder, 'passphrase');
    writeFileSync(passphraseFile, 'correct horse\n', { mode: 0o600 });
    const sealed = join(folder, 'passphrase.age');
    const places = placesOf({ file: sealed, passphraseFile }, {});
    await new SecretsFile(places, keychain).change('name', Buffer.from('value'), never);
    // age asks a terminal for a passphrase, which script(1) gives it.
    const onTerminal = async (words: string, answers: string) => {
      const command = `stty -echo; '${join(programs, 'age')}' ${words}`;
      return await run('sh', [
        '-c',
        `(sleep 1; printf '${answers}'; sleep 8) | script -qefc "${command}" /dev/null`,
      ]);
    };
    const opened = join(folder, 'opened.json');
    await onTerminal(`-d -o ${opened} ${sealed}`, 'correct horse\\n');
    assert.deepEqual(JSON.parse(readFileSync(opened, 'utf8')), { name: 'value' });

    const theirs = join(folder, 'theirs.age');
    writeFileSync(opened, JSON.stringify({ theirs: 'too' }));
    await onTerminal(`-e -p -o ${theirs} ${opened}`, 'correct horse\\ncorrect horse\\n');
    const provider = open('local', { file: theirs, passphraseFile });
    assert.deepEqual(await texts(provider, 'theirs'), ['too']);
    await provider.close(never);
  });
});
