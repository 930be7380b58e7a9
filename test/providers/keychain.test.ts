import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { providers } from '../support/plugins.ts';
import { failure, never, type Opened, open, texts } from './opening.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-keychain-'));
after(() => rmSync(folder, { recursive: true }));
const seen = join(folder, 'argv');

// FAKES of macOS's `security` and of libsecret's `secret-tool`: they hold the arguments that they get against the ones
// that the real ones are documented to take, and answer with their output and exit codes.
const write = (name: string, script: string) =>
  writeFileSync(join(folder, name), `#!/bin/sh\nprintf '%s\\n' "$@" > ${seen}\n${script}\n`, { mode: 0o755 });
write(
  'security',
  `[ "$#" = 6 ] && [ "$1 $2 $4 $6" = "find-generic-password -s -a -w" ] || exit 2
case "$3/$5" in
  orders/app) echo 'pass word';;
  orders/empty) echo;;
  orders/locked) exit 36;;
  orders/denied) exit 51;;
  orders/odd) exit 99;;
  *) echo CANARY >&2; exit 44;;
esac`,
);
write(
  'secret-tool',
  `[ "$#" = 5 ] && [ "$1 $2" = "lookup service" ] || exit 2
case "$3/$4/$5" in
  orders/account/app) printf 'pass word';;
  orders/account/two-lines) printf 'two\\nlines\\n';;
  orders/username/app) printf 'of python';;
  orders/account/odd) exit 99;;
  *) echo CANARY >&2; exit 1;;
esac`,
);
const environment = {
  PATH: `${folder}:${process.env['PATH']}`,
  DBUS_SESSION_BUS_ADDRESS: 'unix:path=/run/bus',
  VAULT_TOKEN: 'CANARY',
};

/** Runs `use` on a platform, which is what decides on the program. */
async function on<T>(
  platform: NodeJS.Platform,
  use: (provider: Opened) => Promise<T>,
  settings: object = {},
): Promise<T> {
  const real = process.platform;
  Object.defineProperty(process, 'platform', { value: platform });
  const provider = open('keychain', settings, environment);
  try {
    return await use(provider);
  } finally {
    Object.defineProperty(process, 'platform', { value: real });
    await provider.close(AbortSignal.timeout(2000));
  }
}

describe('the provider keychain', () => {
  it("asks macOS's security for a generic password, and cuts the line end that it adds", async () => {
    const values = await on('darwin', (provider) => texts(provider, 'orders#app', 'orders#empty'));
    assert.deepEqual(values, ['pass word', '']);
    await on('darwin', (provider) => texts(provider, 'orders#app'));
    assert.equal(readFileSync(seen, 'utf8'), 'find-generic-password\n-s\norders\n-a\napp\n-w\n');
  });

  it('asks the Secret Service by secret-tool, and takes the value as it is', async () => {
    const values = await on('linux', (provider) => texts(provider, 'orders#app', 'orders#two-lines'));
    assert.deepEqual(values, ['pass word', 'two\nlines\n']);
    await on('linux', (provider) => texts(provider, 'orders#app'));
    assert.equal(readFileSync(seen, 'utf8'), 'lookup\nservice\norders\naccount\napp\n');
  });

  it('knows the other name that items have for their account', async () => {
    const settings = { accountAttribute: 'username' };
    assert.deepEqual(await on('linux', (provider) => texts(provider, 'orders#app'), settings), ['of python']);
  });

  for (const [platform, account, code, said] of [
    ['darwin', 'nobody', 'PROVIDER_FAILED', /there is no such item/],
    ['darwin', 'locked', 'PROVIDER_UNAVAILABLE', /locked/],
    ['darwin', 'denied', 'PROVIDER_FAILED', /not allowed/],
    ['darwin', 'odd', 'PROVIDER_FAILED', /exit code 99/],
    ['linux', 'nobody', 'PROVIDER_FAILED', /there is no such item, or the Secret Service cannot be asked/],
    ['linux', 'odd', 'PROVIDER_FAILED', /exit code 99/],
  ] as const)
    it(`says what the answer on ${platform} for "${account}" means, and nothing that the program said`, async () => {
      const error = await on(platform, (provider) =>
        failure(provider.fetch(['orders#app', `orders#${account}`], never)),
      );
      assert.equal(error.code, code);
      assert.match(error.message, said);
      assert.ok(error.message.includes(`provider "keychain": "orders#${account}"`));
      assert.doesNotMatch(inspect(error, { depth: null, showHidden: true }), /CANARY|pass word/);
    });

  it('says that a platform has no keychain, and that secret-tool is not installed', async () => {
    const nowhere = await on('openbsd', (provider) => failure(provider.fetch(['orders#app'], never)));
    assert.equal(nowhere.code, 'PROVIDER_FAILED');
    assert.match(
      nowhere.message,
      /no keychain for openbsd; it works on macOS, and on Linux with secret-tool/,
    );
    assert.equal((await on('openbsd', (provider) => failure(provider.check(never)))).code, 'PROVIDER_FAILED');

    const bare = open('keychain', {}, { PATH: '/nonexistent' });
    const missing = await failure(bare.fetch(['orders#app'], never));
    assert.equal(missing.code, 'PROVIDER_FAILED');
    assert.match(missing.message, /secret-tool is not there/);
    await bare.close(never);
  });

  it('takes service#account and nothing else', () => {
    const check = (reference: string) => providers['keychain']?.checkReference(reference);
    for (const reference of ['', 'orders', '#app', 'orders#', 'a\0#b', '-s#app', 'orders#-w'])
      assert.ok(check(reference), JSON.stringify(reference));
    for (const reference of ['orders#app', 'https://db.example.com#me@example.com', 'a b#c#d'])
      assert.equal(check(reference), undefined);
  });
});
