import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

import { Authentication } from '../../../../src/connectors/mysql/auth/index.ts';
import type { AuthPolicy, Channel } from '../../../../src/connectors/mysql/auth/plugin.ts';
import { agreedCapabilities, upstreamCapabilities } from '../../../../src/connectors/mysql/capabilities.ts';
import {
  decodeError,
  decodeGreeting,
  decodeLoginReply,
  encodeHandshakeResponse,
  encodePacket,
  encodeSslRequest,
  readPacket,
} from '../../../../src/connectors/mysql/packets.ts';
import { dial } from '../../../../src/core/dial.ts';
import { startTls } from '../../../../src/core/tls.ts';
import { type MySqlInfo, startMySql, withServer } from '../../../support/servers.ts';
import { channels, strict } from './request.ts';

// Nothing but the codecs and the plugins: what a server takes for an answer is for a server to say.

interface Attempt {
  readonly user: string;
  readonly password: string;
  readonly channel: Channel;
  readonly policy?: AuthPolicy;
}

/** Logs in; gives the plugins that were asked for with the first byte of each piece of data, or the number of the error. */
async function logIn(
  info: MySqlInfo,
  { user, password, channel, policy = strict }: Attempt,
): Promise<string | number> {
  const signal = AbortSignal.timeout(10_000);
  const address =
    channel.secure && !channel.tls
      ? ({ kind: 'unix', path: info.socket } as const)
      : ({ kind: 'tcp', host: info.host, port: info.port } as const);
  let { socket } = await dial(address, signal);
  const secret = Buffer.from(password);
  const authenticate = (plugin: string, data: Buffer) =>
    Authentication.begin(plugin, {
      password: secret,
      data,
      channel,
      policy,
      derive: (_label, compute) => compute(),
    });
  try {
    const next = async () => await readPacket(socket, 'upstream', { maxLength: 65536, signal });
    const { sequence: greeted, payload } = await next();
    const greeting = decodeGreeting(payload);
    const agreed = agreedCapabilities({ flags: 0x00bfa285, extended: 0 }, greeting.capabilities);
    const capabilities = upstreamCapabilities(agreed, greeting.capabilities, {
      tls: channel.tls,
      database: true,
      attributes: true,
    });
    const head = { capabilities, maxPacket: 2 ** 24, collation: 45 };
    let sequence = greeted + 1;
    if (channel.tls) {
      socket.write(encodePacket(sequence++, encodeSslRequest(head)));
      const ca = channel.secure && info.ca !== undefined ? readFileSync(info.ca) : undefined;
      const verify = channel.secure ? 'verify-full' : 'require';
      socket = await startTls(socket, { verify, serverName: 'localhost', minVersion: 'TLSv1.2', ca }, signal);
    }
    const said: string[] = [greeting.plugin ?? ''];
    let { authentication, first } = await authenticate(greeting.plugin ?? '', greeting.authData);
    const response = { ...head, user, authData: first, database: 'app', plugin: greeting.plugin };
    const attributes = new Map([['program_name', 'test']]);
    socket.write(encodePacket(sequence, encodeHandshakeResponse({ ...response, attributes })));
    for (;;) {
      const packet = await next();
      const reply = decodeLoginReply(packet.payload);
      const answer = (bytes: Buffer) => socket.write(encodePacket(packet.sequence + 1, bytes));
      if (reply.kind === 'ok') return said.join(' ');
      if (reply.kind === 'error') return decodeError(packet.payload).code;
      if (reply.kind === 'switch') {
        said.push(reply.plugin);
        ({ authentication, first } = await authenticate(reply.plugin, reply.data));
        answer(first);
      } else if (reply.kind === 'more') {
        said.push(
          reply.data
            .toString('latin1', 0, 1)
            .replace('\x03', 'fast')
            .replace('\x04', 'full')
            .replace('-', 'key'),
        );
        const bytes = await authentication.answer(reply.data);
        if (bytes) answer(bytes);
      } else {
        assert.fail(reply.kind);
      }
    }
  } finally {
    socket.destroy();
  }
}

const retrieving = { ...strict, allowPublicKeyRetrieval: true };

describe('plugins and a real server', () => {
  it('agree about every account of a MariaDB, on every connection that may see the password', async (t) => {
    for (const kind of ['mariadb10', 'mariadb11'] as const) {
      const info = await withServer(t, kind);
      if (!info) return;
      const asked: Record<string, string> = {
        native_user: 'mysql_native_password',
        ed_user: 'mysql_native_password client_ed25519',
        multi_user: 'mysql_native_password client_ed25519',
        clear_user: 'mysql_native_password mysql_clear_password',
        parsec_user: 'mysql_native_password parsec P',
        unicode_user: 'mysql_native_password',
        empty_user: 'mysql_native_password',
      };
      for (const { user, password } of info.accounts.filter((account) => account.user in asked)) {
        for (const channel of [channels['verified TLS'], channels['unix socket']]) {
          assert.equal(await logIn(info, { user, password, channel }), asked[user], `${kind} ${user}`);
          assert.equal(await logIn(info, { user, password: 'wrong', channel }), 1045, `${kind} ${user}`);
        }
        if (user === 'clear_user')
          for (const channel of [channels.tcp, channels['unverified TLS']])
            await assert.rejects(logIn(info, { user, password, channel }), { code: 'AUTH_NOT_ALLOWED' });
        else assert.equal(await logIn(info, { user, password, channel: channels.tcp }), asked[user], user);
      }
    }
  });

  it('agree about a MySQL, first when it has the password of nobody in its cache and then when it has', async (t) => {
    if (!(await withServer(t, 'mysql9'))) return;
    const info = await startMySql({ kind: 'mysql9' });
    t.after(() => info.stop());
    const rsaPublicKey = info.publicKey === undefined ? undefined : readFileSync(info.publicKey);
    assert.ok(rsaPublicKey);
    const ways: readonly [Channel, AuthPolicy, readonly string[]][] = [
      [channels['verified TLS'], strict, ['full', '']],
      [
        channels['unverified TLS'],
        { ...strict, allowAuth: ['caching_sha2_password', 'sha256_password'] },
        ['full', ''],
      ],
      [channels['unix socket'], strict, ['full', 'key']],
      [channels.tcp, retrieving, ['full key', 'key']],
      [channels.tcp, { ...strict, rsaPublicKey }, ['full', '']],
    ];
    for (const [channel, policy, [full, key]] of ways) {
      await info.flushPrivileges();
      for (const user of ['sha2_user', 'unicode_user', 'sha256_user', 'empty_user']) {
        const account = info.accounts.find((one) => one.user === user);
        assert.ok(account);
        const { password } = account;
        const steps = (more: string | undefined) => `caching_sha2_password ${more}`.trim();
        const cold = {
          sha2_user: full,
          unicode_user: full,
          sha256_user: `sha256_password ${key}`.trim(),
          empty_user: '',
        }[user];
        const warm = { sha2_user: 'fast', unicode_user: 'fast' }[user] ?? cold;
        const attempt = { user, password, channel, policy };
        const what = `${user} ${JSON.stringify({ ...channel, pinned: policy.rsaPublicKey !== undefined })}`;
        assert.equal(await logIn(info, attempt), steps(cold), `${what} cold`);
        assert.equal(await logIn(info, attempt), steps(warm), `${what} warm`);
        assert.equal(await logIn(info, { ...attempt, password: 'wrong' }), 1045, `${what} wrong`);
        assert.equal(await logIn(info, attempt), steps(warm), `${what} still warm`);
      }
    }
  });

  it('agree about the one question of a MariaDB that leaves its clients to ask (PAM with dialog)', async (t) => {
    if (!(await withServer(t, 'mariadb11'))) return;
    const info = await startMySql({ kind: 'mariadb11', settings: { 'pam-use-cleartext-plugin': 'OFF' } });
    t.after(() => info.stop());
    const account = info.accounts.find(({ user }) => user === 'clear_user');
    if (!account) return t.skip('PAM of this machine does not know the service of the test');
    const { user, password } = account;
    for (const channel of [channels['verified TLS'], channels['unix socket']]) {
      assert.equal(await logIn(info, { user, password, channel }), 'mysql_native_password dialog');
      assert.equal(await logIn(info, { user, password: 'wrong', channel }), 1045);
    }
    await assert.rejects(logIn(info, { user, password, channel: channels.tcp }), {
      code: 'AUTH_NOT_ALLOWED',
      message: /dialog/,
    });
  });

  it('do not agree where the service does not allow it', async (t) => {
    if (!(await withServer(t, 'mysql9'))) return;
    const info = await startMySql({ kind: 'mysql9' });
    t.after(() => info.stop());
    for (const channel of [channels.tcp, channels['unverified TLS']])
      for (const user of ['sha2_user', 'sha256_user']) {
        const password = info.accounts.find((one) => one.user === user)?.password ?? '';
        await assert.rejects(logIn(info, { user, password, channel }), { code: 'AUTH_NOT_ALLOWED' });
      }
  });
});
