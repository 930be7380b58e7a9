import assert from 'node:assert/strict';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { inspect } from 'node:util';
import { Encrypter } from 'age-encryption';
import { pino } from 'pino';

import { PosternError } from '../../../src/core/errors.ts';
import { KeychainItems } from '../../../src/providers/keychain.ts';
import { placesOf } from '../../../src/providers/local/places.ts';
import { SecretsFile } from '../../../src/providers/local/secrets-file.ts';
import { providers } from '../../support/plugins.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-local-'));
after(() => rmSync(folder, { recursive: true }));
let homes = 0;
/** A home folder of its own for a test. */
function newHome(): string {
  const home = join(folder, `home-${++homes}`);
  mkdirSync(home);
  return home;
}

function secretsFile(given: object, home: string): SecretsFile {
  const context = { name: 'local', log: pino({ level: 'silent' }), environment: {} };
  const keychain = new KeychainItems(context, { accountAttribute: 'account', timeout: 5000 });
  return new SecretsFile(placesOf(given, { HOME: home }), keychain);
}

const put = async (home: string, name: string, value: string | Buffer | undefined, given: object = {}) => {
  const bytes = value === undefined ? undefined : Buffer.from(value);
  return await secretsFile(given, home).change(name, bytes, never);
};

/** Runs `use` with a provider, which must have logged nothing. */
async function using<T>(
  home: string,
  use: (provider: Opened) => Promise<T>,
  settings: object = {},
  environment: Record<string, string> = {},
): Promise<T> {
  const provider = open('local', settings, { HOME: home, ...environment });
  try {
    return await use(provider);
  } finally {
    await provider.close(AbortSignal.timeout(2000));
    assert.equal(provider.logged(), '');
  }
}
const read = (home: string, ...references: string[]) =>
  using(home, (provider) => texts(provider, ...references));
const refused = async (home: string, settings: object, ...references: string[]) => {
  const error = await using(home, (provider) => failure(provider.fetch(references, never)), settings);
  assert.equal(error.code, 'PROVIDER_FAILED');
  assert.ok(error.message.startsWith('provider "local": '), error.message);
  assert.doesNotMatch(inspect(error, { depth: null, showHidden: true }), /CANARY/);
  return error;
};
const config = (home: string, name: string) => join(home, '.config', 'postern', name);

describe('the provider local', () => {
  it('gives what was put into the file, texts and other bytes, from one reading of it', async () => {
    const home = newHome();
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
    await put(home, 'orders/db', 'pass "word"\\\n é');
    await put(home, 'bytes', bytes);
    await put(home, 'empty-object', '{}');
    await using(home, async (provider) => {
      const { secrets, version } = await provider.fetch(['orders/db', 'bytes', 'empty-object'], never);
      assert.equal(secrets[0]?.reveal().toString(), 'pass "word"\\\n é');
      assert.deepEqual(secrets[1]?.reveal(), bytes);
      assert.equal(secrets[2]?.reveal().toString(), '{}');
      assert.equal(version, statSync(config(home, 'secrets.age')).mtime.toISOString());
      await provider.check(never);
    });
  });

  it('gives a field of a value that is JSON', async () => {
    const home = newHome();
    await put(home, 'db', '{"user":"app","password":{"now":"secret"}}');
    assert.deepEqual(await read(home, 'db#user', 'db#password.now'), ['app', 'secret']);
    assert.match((await refused(home, {}, 'db#host')).message, /"db#host": the secret has no field "host"/);
    await put(home, 'text', 'CANARY');
    assert.match((await refused(home, {}, 'text#field')).message, /not valid JSON/);
  });

  it('reads the file anew for each login', async () => {
    const home = newHome();
    await put(home, 'password', 'before');
    await using(home, async (provider) => {
      assert.deepEqual(await texts(provider, 'password'), ['before']);
      await put(home, 'password', 'after');
      assert.deepEqual(await texts(provider, 'password'), ['after']);
      await put(home, 'password', undefined);
      assert.match((await failure(provider.fetch(['password'], never))).message, /no secret of this name/);
    });
  });

  it('makes the file and its identity with the first secret, for nobody else to read', async () => {
    const home = newHome();
    assert.match(
      (await refused(home, {}, 'x')).message,
      /no file ".*secrets.age"; `postern secret set NAME` makes it/,
    );
    await put(home, 'x', 'y');
    for (const name of ['secrets.age', 'identity.txt'])
      assert.equal(statSync(config(home, name)).mode & 0o777, 0o600);
    assert.equal(statSync(join(home, '.config', 'postern')).mode & 0o777, 0o700);
    assert.match(
      readFileSync(config(home, 'identity.txt'), 'utf8'),
      /^# public key: age1\w{58}\nAGE-SECRET-KEY-1\w{58}\n$/,
    );
    const sealed = readFileSync(config(home, 'secrets.age'));
    assert.ok(sealed.toString('latin1').startsWith('age-encryption.org/v1\n-> X25519 '));
  });

  it('keeps to the places that the settings, or variables, name', async () => {
    const home = newHome();
    const places = { file: join(home, 'mine.age'), identityFile: join(home, 'mine.txt') };
    await put(home, 'x', 'y', places);
    assert.deepEqual(await using(home, (provider) => texts(provider, 'x'), places), ['y']);
    const variables = { POSTERN_SECRETS_FILE: places.file, POSTERN_IDENTITY_FILE: places.identityFile };
    assert.deepEqual(await using(home, (provider) => texts(provider, 'x'), {}, variables), ['y']);
    const xdg = placesOf({}, { HOME: home, XDG_CONFIG_HOME: '/xdg' });
    assert.deepEqual(xdg, {
      file: '/xdg/postern/secrets.age',
      key: { kind: 'identity', file: '/xdg/postern/identity.txt' },
    });
  });

  it('refuses an identity that others can read', async () => {
    const home = newHome();
    await put(home, 'x', 'CANARY');
    for (const mode of [0o640, 0o604, 0o622]) {
      chmodSync(config(home, 'identity.txt'), mode);
      const { message } = await refused(home, {}, 'x');
      assert.match(message, /identity.txt" can be used by others \(mode 6\d\d\); give it mode 600/);
    }
  });

  it('says which key is missing, is none, or does not fit', async () => {
    const [home, other] = [newHome(), newHome()];
    await put(home, 'x', 'CANARY');
    await put(other, 'x', 'CANARY');
    const message = async (settings: object) => (await refused(home, settings, 'x')).message;
    assert.match(
      await message({ identityFile: config(other, 'identity.txt') }),
      /secrets.age": the key is not one that/,
    );
    assert.match(await message({ identityFile: '/nonexistent' }), /"\/nonexistent": there is no such file/);
    const bad = join(home, 'bad.txt');
    for (const [text, said] of [
      ['', /bad.txt": there is no identity in it/],
      ['# only a comment\n', /there is no identity in it/],
      ['AGE-SECRET-KEY-PQ-1CANARY\n', /a line of it is no identity that Postern knows/],
      [`AGE-SECRET-KEY-1${'Q'.repeat(58)}\n`, /a line of it is no identity/],
      [`${readFileSync(config(other, 'identity.txt'), 'utf8')}\n`.repeat(17), /more than 16 identities/],
    ] as const) {
      writeFileSync(bad, text, { mode: 0o600 });
      assert.match(await message({ identityFile: bad }), said);
    }
    // One of several that fits is enough.
    const both = [other, home].map((each) => readFileSync(config(each, 'identity.txt'), 'utf8')).join('');
    writeFileSync(bad, both.replaceAll('\n', '\r\n'), { mode: 0o600 });
    const found = await using(home, (provider) => texts(provider, 'x'), { identityFile: bad });
    assert.deepEqual(found, ['CANARY']);
  });

  it('never takes a file that was cut, changed or is something else', async () => {
    const home = newHome();
    await put(home, 'x', 'CANARY');
    const path = config(home, 'secrets.age');
    const whole = readFileSync(path);
    for (let length = 0; length < whole.length; length += 7) {
      writeFileSync(path, whole.subarray(0, length));
      assert.match(
        (await refused(home, {}, 'x')).message,
        /is damaged, or no age file|is not one that opens it/,
      );
    }
    for (let at = 0; at < whole.length; at += 5) {
      const changed = Buffer.from(whole);
      changed[at] = (changed[at] ?? 0) ^ 1;
      writeFileSync(path, changed);
      assert.match(
        (await refused(home, {}, 'x')).message,
        /is damaged, or no age file|is not one that opens it/,
      );
    }
    writeFileSync(path, whole);
    assert.deepEqual(await read(home, 'x'), ['CANARY']);
  });

  it('takes what the library of age seals, with other kinds of JSON values, and refuses what is no object', async () => {
    const home = newHome();
    await put(home, 'x', 'y');
    const recipient = /age1\w+/.exec(readFileSync(config(home, 'identity.txt'), 'utf8'))?.[0] ?? '';
    const sealed = async (text: string) => {
      const encrypter = new Encrypter();
      encrypter.addRecipient(recipient);
      writeFileSync(config(home, 'secrets.age'), await encrypter.encrypt(text));
    };
    await sealed(
      '{"a":"1","port":5432,"on":true,"list":["CANARY"],"none":null,"bad":{"base64":"@@"},"a":"2"}',
    );
    assert.deepEqual(await read(home, 'a', 'port', 'on'), ['2', '5432', 'true']);
    assert.match((await refused(home, {}, 'list')).message, /"list": the value is a list/);
    assert.match((await refused(home, {}, 'none')).message, /"none": the value is null/);
    assert.match((await refused(home, {}, 'bad')).message, /"bad": the value is not valid base64/);
    // What `set` does not touch stays as it is.
    await put(home, 'new', 'value');
    assert.deepEqual(await read(home, 'a', 'port', 'new'), ['2', '5432', 'value']);
    for (const text of ['CANARY', '["CANARY"]', '"CANARY"', '', `{"x":"${'CANARY'.repeat(100_000)}"}`]) {
      await sealed(text);
      assert.match(
        (await refused(home, {}, 'x')).message,
        /no JSON object of names and values|more than 512 KiB/,
      );
    }
  });

  it('opens and seals with a passphrase, stretching it once for many logins', {
    timeout: 60_000,
  }, async () => {
    const home = newHome();
    const passphraseFile = join(home, 'passphrase');
    writeFileSync(passphraseFile, 'correct horse\n', { mode: 0o600 });
    await put(home, 'x', 'CANARY', { passphraseFile });
    assert.match(
      readFileSync(config(home, 'secrets.age'), 'latin1'),
      /^age-encryption.org\/v1\n-> scrypt \S+ 18\n/,
    );
    await using(
      home,
      async (provider) => {
        const opened = performance.now();
        await texts(provider, 'x');
        const started = performance.now();
        const all = await Promise.all(Array.from({ length: 20 }, () => texts(provider, 'x')));
        assert.deepEqual(new Set(all.flat()), new Set(['CANARY']));
        const [one, twenty] = [started - opened, performance.now() - started];
        assert.ok(twenty < 5 * one, `${one} ms, then ${twenty} ms for twenty`);
      },
      { passphraseFile },
    );
    writeFileSync(passphraseFile, 'CANARY-wrong', { mode: 0o600 });
    assert.match((await refused(home, { passphraseFile }, 'x')).message, /the key is not one that opens it/);
    writeFileSync(passphraseFile, '\n', { mode: 0o600 });
    assert.match(
      (await refused(home, { passphraseFile }, 'x')).message,
      /passphrase": the passphrase is empty/,
    );
    chmodSync(passphraseFile, 0o644);
    assert.match((await refused(home, { passphraseFile }, 'x')).message, /can be used by others/);
  });

  it('takes the identity from the keychain', async () => {
    const home = newHome();
    await put(home, 'x', 'y');
    // A FAKE of secret-tool, and of macOS's security.
    for (const name of ['secret-tool', 'security'])
      writeFileSync(join(home, name), `#!/bin/sh\ncat ${config(home, 'identity.txt')}\n`, { mode: 0o755 });
    const environment = { PATH: `${home}:${process.env['PATH']}` };
    const found = await using(
      home,
      (provider) => texts(provider, 'x'),
      { keychain: 'postern#me' },
      environment,
    );
    assert.deepEqual(found, ['y']);
    writeFileSync(join(home, 'secret-tool'), '#!/bin/sh\necho CANARY\n');
    writeFileSync(join(home, 'security'), '#!/bin/sh\necho CANARY\n');
    const error = await using(
      home,
      (provider) => failure(provider.fetch(['x'], never)),
      { keychain: 'postern#me' },
      environment,
    );
    assert.match(error.message, /^provider "local": keychain item "postern#me": a line of it is no identity/);
  });

  it('ends with the signal, also while a passphrase is stretched', { timeout: 60_000 }, async () => {
    const home = newHome();
    const passphraseFile = join(home, 'passphrase');
    writeFileSync(passphraseFile, 'x', { mode: 0o600 });
    await put(home, 'x', 'CANARY', { passphraseFile });
    await using(
      home,
      async (provider) => {
        const caller = new AbortController();
        const answer = failure(provider.fetch(['x'], caller.signal));
        await new Promise((later) => setTimeout(later, 100));
        const abortedAt = performance.now();
        caller.abort(new PosternError('TIMEOUT', 'too late'));
        assert.equal((await answer).code, 'TIMEOUT');
        assert.ok(performance.now() - abortedAt < 4000);
        assert.deepEqual(await texts(provider, 'x'), ['CANARY'], 'the next one is not harmed');
      },
      { passphraseFile },
    );
  });

  it('knows settings and names that cannot be meant', () => {
    const kind = providers['local'];
    for (const settings of [
      { identityFile: 'a', passphraseFile: 'b' },
      { keychain: 'x' },
      { file: '' },
      { x: 1 },
    ])
      assert.equal(kind?.settings.safeParse(settings).success, false, inspect(settings));
    for (const name of ['', 'a b', '-x', 'a#', 'é', 'x'.repeat(129)])
      assert.ok(kind?.checkReference(name), JSON.stringify(name));
    for (const name of ['x', 'orders/db:password', 'me@example.com', 'a.b-c+d', 'x#y.z'])
      assert.equal(kind?.checkReference(name), undefined);
  });
});

describe('a change of the file', () => {
  it('keeps every one of many that are made at once', { timeout: 60_000 }, async () => {
    const home = newHome();
    const names = Array.from({ length: 12 }, (_, i) => `name-${i}`);
    await Promise.all(names.map((name) => put(home, name, `value of ${name}`)));
    assert.deepEqual(
      await read(home, ...names),
      names.map((name) => `value of ${name}`),
    );
    assert.deepEqual(leftIn(home), ['identity.txt', 'secrets.age']);
  });

  it('keeps the form for texts where the file is in it, and follows a symbolic link', async () => {
    const home = newHome();
    await put(home, 'x', 'y');
    const recipient = /age1\w+/.exec(readFileSync(config(home, 'identity.txt'), 'utf8'))?.[0] ?? '';
    const encrypter = new Encrypter();
    encrypter.addRecipient(recipient);
    const { armor } = await import('age-encryption');
    const real = join(home, 'dotfiles.age');
    writeFileSync(real, armor.encode(await encrypter.encrypt('{"a":"1"}')));
    rmSync(config(home, 'secrets.age'));
    symlinkSync(real, config(home, 'secrets.age'));
    await put(home, 'b', '2');
    assert.match(readFileSync(real, 'utf8'), /^-----BEGIN AGE ENCRYPTED FILE-----\n/);
    assert.deepEqual(await read(home, 'a', 'b'), ['1', '2']);
  });

  it('waits for another one, takes the lock of a dead process, and gives up on one that lives', {
    timeout: 60_000,
  }, async () => {
    const home = newHome();
    await put(home, 'x', 'y');
    const lock = `${config(home, 'secrets.age')}.lock`;
    const { hostname } = await import('node:os');
    writeFileSync(lock, `999999999 ${hostname()} abc\n`);
    await put(home, 'after-a-crash', '1');
    assert.deepEqual(await read(home, 'after-a-crash'), ['1']);

    writeFileSync(lock, `${process.pid} ${hostname()} abc\n`);
    const waiting = put(home, 'later', '2');
    setTimeout(() => rmSync(lock), 200);
    await waiting;
    assert.deepEqual(await read(home, 'later'), ['2']);

    writeFileSync(lock, `1 ${hostname()} abc\n`);
    const error = await failure(put(home, 'never', '3'));
    assert.match(
      error.message,
      /another `postern secret` is changing the file; if none is running, remove ".*lock"/,
    );
    rmSync(lock);
  });

  it('does not write over a file that it cannot open, nor make another identity for it', async () => {
    const home = newHome();
    await put(home, 'x', 'y');
    const before = readFileSync(config(home, 'secrets.age'));
    rmSync(config(home, 'identity.txt'));
    assert.match((await failure(put(home, 'a', 'b'))).message, /identity.txt": there is no such file/);
    assert.deepEqual(leftIn(home), ['secrets.age']);
    assert.deepEqual(readFileSync(config(home, 'secrets.age')), before);
  });

  it('says that a folder cannot be written, and that the file would be too large', async () => {
    const home = newHome();
    writeFileSync(join(home, '.config'), 'a file');
    assert.match((await failure(put(home, 'a', 'b'))).message, /folder ".*postern": (ENOTDIR|EEXIST)/);
    const large = newHome();
    await put(large, 'a', 'b');
    const tooMuch = await failure(put(large, 'c', 'x'.repeat(512 * 1024)));
    assert.match(tooMuch.message, /would be larger than 512 KiB/);
    assert.deepEqual(await read(large, 'a'), ['b']);
    assert.deepEqual(leftIn(large), ['identity.txt', 'secrets.age']);
  });
});

function leftIn(home: string): string[] {
  return readdirSync(join(home, '.config', 'postern')).toSorted();
}
