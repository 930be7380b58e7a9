import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { channels, converse, strict } from './request.ts';

const channel = channels['verified TLS'];

describe('dialog', () => {
  it('answers a question for a password, and one without a text, with the password', async () => {
    for (const question of ['\x04Password: ', '\x05Password: ', ''])
      assert.deepEqual(await converse('dialog', { channel, data: Buffer.from(question) }), [
        Buffer.from('Secret#1\0'),
      ]);
  });

  it('refuses any other question, and a second one', async () => {
    const refusal = { code: 'AUTH_NOT_ALLOWED', message: /\(dialog\) that only a person can answer/ };
    for (const question of ['\x02Your name: ', '\x03Your name: ', '\0', '\xff'])
      await assert.rejects(converse('dialog', { channel, data: Buffer.from(question, 'latin1') }), refusal);
    const data = Buffer.from('\x04Password: ');
    await assert.rejects(converse('dialog', { channel, data }, Buffer.from('\x05Code: ')), refusal);
  });

  it('tells the password to no server that is not verified, whatever the service allows', async () => {
    const policy = { ...strict, allowAuth: ['dialog', 'mysql_clear_password'] };
    for (const open of [channels.tcp, channels['unverified TLS']])
      await assert.rejects(converse('dialog', { channel: open, policy, data: Buffer.from('\x05') }), {
        code: 'AUTH_NOT_ALLOWED',
        message: /\(dialog\).*tls\.mode/,
      });
  });
});
