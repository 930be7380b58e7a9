import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { channels, converse, strict } from './request.ts';

const PLUGIN = 'mysql_clear_password';

describe('mysql_clear_password', () => {
  it('gives the password to a verified server and to a unix socket', async () => {
    for (const channel of [channels['verified TLS'], channels['unix socket']])
      assert.deepEqual(await converse(PLUGIN, { channel }), [Buffer.from('Secret#1\0')]);
  });

  it('gives it to no other, unless the service allows that plugin', async () => {
    for (const channel of [channels.tcp, channels['unverified TLS']]) {
      const given = { channel, policy: { ...strict, allowAuth: ['sha256_password'] } };
      await assert.rejects(converse(PLUGIN, given), {
        code: 'AUTH_NOT_ALLOWED',
        message: /\(mysql_clear_password\).*tls\.mode.*allowAuth/,
      });
      const policy = { ...strict, allowAuth: [PLUGIN] };
      assert.deepEqual(await converse(PLUGIN, { channel, policy }), [Buffer.from('Secret#1\0')]);
    }
  });

  it('carries a token of any length, without regard to what came with the request', async () => {
    const token = Buffer.alloc(4000, 0xff);
    const [answer] = await converse(PLUGIN, {
      channel: channels['verified TLS'],
      password: token,
      data: Buffer.alloc(0),
    });
    assert.deepEqual(answer, Buffer.concat([token, Buffer.alloc(1)]));
  });

  it('refuses a password with a zero byte, of which a server would see the half', async () => {
    const given = { channel: channels['verified TLS'], password: Buffer.from('a\0b') };
    await assert.rejects(converse(PLUGIN, given), { code: 'AUTH_NOT_ALLOWED', message: /zero byte/ });
  });
});
