import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

import { providers } from '../support/plugins.ts';
import { failure, never, open, texts } from './opening.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-file-'));
after(() => rmSync(folder, { recursive: true }));

function write(name: string, content: string | Buffer): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

/** What a descriptor is of; it may be closed by now. */
function targetOf(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return '';
  }
}

describe('the provider "file"', () => {
  it('gives every byte of a file, also a newline at its end, as Secretless does', async () => {
    const bytes = Buffer.from([0xff, 0x00, 0x80, 0x0a]);
    const { secrets } = await open('file').fetch([write('binary', bytes)], never);
    assert.deepEqual(secrets[0]?.reveal(), bytes);
  });

  it('cuts the line end where `trim` is set, and no other space', async () => {
    assert.deepEqual(await texts(open('file', { trim: true }), write('line', ' a b \r\n')), [' a b ']);
  });

  it('reads the file again at each fetch', async () => {
    const provider = open('file');
    const path = write('changing', 'old');
    assert.deepEqual(await texts(provider, path), ['old']);
    write('changing', 'new');
    assert.deepEqual(await texts(provider, path), ['new']);
  });

  it('follows the symbolic links that Kubernetes swaps when a volume changes', async () => {
    const volume = join(folder, 'volume');
    for (const [version, value] of [
      ['..1', 'first'],
      ['..2', 'second'],
    ] as const) {
      mkdirSync(join(volume, version), { recursive: true });
      writeFileSync(join(volume, version, 'password'), value);
    }
    symlinkSync('..1', join(volume, '..data'));
    symlinkSync('..data/password', join(volume, 'password'));
    const provider = open('file');
    assert.deepEqual(await texts(provider, join(volume, 'password')), ['first']);
    symlinkSync('..2', join(volume, '..data_tmp'));
    renameSync(join(volume, '..data_tmp'), join(volume, '..data'));
    assert.deepEqual(await texts(provider, join(volume, 'password')), ['second']);
  });

  it('takes fields of a JSON file from one read, nested ones by their dots', async () => {
    const path = write('db.json', '{"user":"ann","db":{"password":"p\\u00e4ss\\n","port":5432}}');
    const grant = await open('file').fetch([`${path}#db.password`, `${path}#user`, `${path}#db.port`], never);
    assert.deepEqual(
      grant.secrets.map((secret) => secret.reveal().toString()),
      ['päss\n', 'ann', '5432'],
    );
    assert.ok(!Number.isNaN(Date.parse(grant.version ?? '')), 'the version is when the file was changed');
  });

  it('names file and field when there is no such field, or it is no value, or the file is no JSON', async () => {
    const path = write('odd.json', '{"object":{"canary":"canary-value"}}');
    const missing = await failure(open('file').fetch([`${path}#nothing`], never));
    assert.equal(missing.code, 'PROVIDER_FAILED');
    assert.match(missing.message, /odd\.json#nothing.*has no field "nothing"/);
    assert.match(
      (await failure(open('file').fetch([`${path}#object`], never))).message,
      /an object, not a text/,
    );
    const broken = await failure(open('file').fetch([`${write('broken.json', '{"canary-value')}#a`], never));
    assert.match(broken.message, /not valid JSON at byte \d+$/);
  });

  it('refuses a folder, a FIFO, a device and a file above 1 MiB in clear words, without waiting for anyone', async () => {
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    const refusals: [string, RegExp][] = [
      [folder, /is a folder, not a file/],
      [fifo, /is a FIFO, not a file/],
      ['/dev/zero', /is a device, not a file/],
      [write('large', Buffer.alloc(1024 * 1024 + 1)), /is larger than 1 MiB/],
      [join(folder, 'none'), /there is no such file/],
      [join(folder, 'binary', 'below'), /there is no such file/],
    ];
    for (const [path, message] of refusals) {
      const error = await failure(open('file').fetch([path], AbortSignal.timeout(1000)));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.match(error.message, message);
    }
  });

  it('accepts a file of exactly 1 MiB', async () => {
    const { secrets } = await open('file').fetch([write('full', Buffer.alloc(1024 * 1024, 'x'))], never);
    assert.equal(secrets[0]?.reveal().length, 1024 * 1024);
  });

  it('reads files whose size is not known beforehand', { skip: process.platform !== 'linux' }, async () => {
    const [version] = await texts(open('file'), '/proc/self/status');
    assert.match(version ?? '', /^Name:/);
  });

  it('leaves no descriptor open, whatever a file is like', {
    skip: process.platform !== 'linux',
  }, async () => {
    const large = write('closed-large', Buffer.alloc(1024 * 1024 + 1));
    for (const path of [write('closed', 'value'), large, folder, '/proc/self/status'])
      await open('file')
        .fetch([path], never)
        .catch(() => {});
    const targets = readdirSync('/proc/self/fd').map((fd) => targetOf(`/proc/self/fd/${fd}`));
    assert.ok(targets.length > 2);
    assert.deepEqual(
      targets.filter((target) => target.startsWith(folder) || target.endsWith('/status')),
      [],
    );
  });

  it('says what is wrong with a reference before it is used', () => {
    const check = (reference: string) => providers['file']?.checkReference(reference);
    assert.equal(check('/run/secrets/db'), undefined);
    assert.equal(check('/run/secrets/db.json#a.b'), undefined);
    assert.match(check('') ?? '', /path of the file is missing/);
    assert.match(check('#a') ?? '', /path of the file is missing/);
    assert.match(check('/a#') ?? '', /field after "#" is missing/);
    assert.match(check('/a\0b') ?? '', /NUL/);
  });
});
