import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { format, inspect } from 'node:util';
import { pino } from 'pino';

import { Credentials } from '../../src/core/credentials.ts';
import { Secret } from '../../src/core/secret.ts';

const text = 's3cr3t-canary-in-memory';

describe('a secret', () => {
  it('does not print, however it is asked to', () => {
    const secret = new Secret(Buffer.from(text));
    const credentials = new Credentials(new Map([['password', secret]]));
    const logged: string[] = [];
    const log = pino({ level: 'trace' }, { write: (line: string) => void logged.push(line) });
    log.info({ secret, credentials, nested: { deep: [secret] } }, 'text %s %o %j', secret, secret, secret);
    log.error(secret);
    const printed = [
      String(secret),
      JSON.stringify({ secret, credentials, list: [secret] }),
      inspect(secret, { showHidden: true, depth: 9 }),
      inspect({ credentials, secret }, { showHidden: true, depth: 9, getters: true }),
      format('%s %o %O %j', secret, secret, secret, secret),
      ...logged,
    ];
    for (const each of printed)
      for (const form of [
        text,
        Buffer.from(text).toString('base64'),
        Buffer.from(text).toString('hex'),
        '115,51,99',
      ])
        assert.ok(!each.includes(form), each);
    assert.equal(String(secret), '[secret]');
    assert.equal(inspect(secret), '[secret]');
  });

  it('is overwritten when it is wiped, and cannot be used after that', () => {
    const bytes = Buffer.from(text);
    const secret = new Secret(bytes);
    assert.equal(secret.reveal(), bytes);
    secret.wipe();
    assert.ok(bytes.every((byte) => byte === 0));
    assert.throws(() => secret.reveal(), /wiped/);
    secret.wipe();
  });

  it('is wiped at the end of its block', () => {
    const bytes = Buffer.from(text);
    {
      using secret = new Secret(bytes);
      assert.equal(secret.reveal().toString(), text);
    }
    assert.ok(bytes.every((byte) => byte === 0));
  });
});

describe('credentials', () => {
  it('are wiped together', () => {
    const all = [Buffer.from('one'), Buffer.from('two')];
    {
      using credentials = new Credentials(
        new Map(all.map((bytes, i): [string, Secret] => [`name${i}`, new Secret(bytes)])),
      );
      assert.deepEqual(credentials.names(), ['name0', 'name1']);
      assert.equal(credentials.text('name1'), 'two');
      assert.equal(credentials.text('other'), undefined);
      assert.equal(credentials.has('other'), false);
    }
    assert.ok(all.every((bytes) => bytes.every((byte) => byte === 0)));
  });

  it('say which one is missing', () => {
    const credentials = new Credentials(new Map());
    assert.throws(() => credentials.get('password'), {
      code: 'INTERNAL',
      message: /"password" is not configured/,
    });
  });
});
