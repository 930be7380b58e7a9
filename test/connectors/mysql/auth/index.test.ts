import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { authPlugins } from '../../../../src/connectors/mysql/auth/index.ts';
import { channels, converse, nonce, salt } from './request.ts';

describe('authentication plugins', () => {
  it('are refused by name when they are not known, also when they are named like a property of every object', async () => {
    for (const name of ['', 'no_such_plugin', '__proto__', 'constructor', 'toString', 'hasOwnProperty'])
      await assert.rejects(converse(name, {}), {
        code: 'AUTH_NOT_ALLOWED',
        message: `the server asks for the authentication plugin "${name}", which Postern does not know`,
      });
  });

  it('are refused with what they would need, when a password cannot give it', async () => {
    for (const [name, needs] of [
      ['mysql_old_password', /before MySQL 4\.1/],
      ['authentication_ldap_sasl_client', /LDAP with SASL/],
      ['auth_gssapi_client', /Kerberos/],
      ['authentication_webauthn_client', /a security key/],
    ] as const)
      await assert.rejects(converse(name, {}), { code: 'AUTH_NOT_ALLOWED', message: needs });
  });

  it('are named in the refusal in so many words, whatever the server calls them', async () => {
    await assert.rejects(converse(`\x1b[31m${'x'.repeat(5000)}\n`, {}), (error: Error) => {
      assert.match(error.message, /"\?\[31mx{59}"/);
      return true;
    });
  });

  it('neither change nor keep the password that they are lent', async () => {
    for (const plugin of authPlugins.keys()) {
      const password = Buffer.from('Secret#1');
      const data = ['client_ed25519', 'parsec'].includes(plugin) ? nonce : salt;
      const given = {
        password,
        channel: channels['verified TLS'],
        data: plugin === 'dialog' ? Buffer.from('\x05') : data,
      };
      const [first] = await converse(plugin, given);
      assert.deepEqual(password, Buffer.from('Secret#1'), plugin);
      const answered = Buffer.from(first as Buffer);
      password.fill(0);
      assert.deepEqual(first, answered, plugin);
    }
  });
});
