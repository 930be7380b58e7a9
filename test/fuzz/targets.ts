import assert from 'node:assert/strict';
import { isUtf8 } from 'node:buffer';
import { readdirSync, readFileSync } from 'node:fs';

import { Authentication } from '../../src/connectors/mysql/auth/index.ts';
import type { AuthRequest } from '../../src/connectors/mysql/auth/plugin.ts';
import { capability, has } from '../../src/connectors/mysql/capabilities.ts';
import * as mysql from '../../src/connectors/mysql/packets.ts';
import { tlsServerEndPoint } from '../../src/connectors/postgres/auth/channel-binding.ts';
import { saslprep } from '../../src/connectors/postgres/auth/saslprep.ts';
import { chooseMechanism, ScramClient } from '../../src/connectors/postgres/auth/scram.ts';
import { httpTargets } from './http.ts';
import { postgresTargets } from './postgres.ts';

/** Something that reads bytes of a stranger. One entry in `targets` is all that a new one needs. */
export interface FuzzTarget {
  /** Also the name of its folder under `corpus/`. */
  readonly name: string;
  /** Well-formed inputs and some that are nearly so: mutation starts from them, and they are replayed as tests. */
  readonly seedInputs: readonly Buffer[];
  /** Reads `bytes` and asserts what must be true of the result. May throw a PosternError; anything else is a finding. */
  run(bytes: Buffer): void | Promise<void>;
}

const auth = new URL('../connectors/postgres/auth/fixtures/', import.meta.url);
const certificates = readdirSync(new URL('certificates/', auth))
  .filter((name) => name.endsWith('.der'))
  .map((name) => readFileSync(new URL(`certificates/${name}`, auth)));
const passwords = JSON.parse(readFileSync(new URL('saslprep-postgres-18.json', auth), 'utf8')) as {
  password: string;
}[];

const afterServerFirst = async () => {
  const client = new ScramClient({ mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' }, { nonce: 'ours' });
  await client.clientFinal(Buffer.from('r=ours+theirs,s=QQ==,i=1'), Buffer.from('pencil'), scramOptions);
  return client;
};
const scramOptions = {
  maxIterations: 20,
  derive: (_label: string, compute: () => Promise<Buffer>) => compute(),
};
/** What a server that knows the password answers to `afterServerFirst`. */
const rightSignature = 'v=RuVBqAD+p/+MDdLaTdNy/v6iRReJonqR3/6FT6NYDxk=';

const mysqlFlags = 0x00bfffff;
/** A login that is allowed everything, so that a server gets as far as it can. */
const mysqlLogin: AuthRequest = {
  password: Buffer.from('Secret#1'),
  data: Buffer.from('ABCDEFGHIJKLMNOPQRST'),
  channel: { secure: true, tls: false },
  policy: { allowAuth: [], rsaPublicKey: undefined, allowPublicKeyRetrieval: true },
  derive: async () => Buffer.alloc(32, 7),
};
const mysqlResponse: mysql.HandshakeResponse = {
  capabilities: { flags: mysqlFlags - capability.ssl, extended: 0 },
  maxPacket: 2 ** 24,
  collation: 45,
  user: 'orders',
  authData: Buffer.alloc(32, 7),
  database: 'shop',
  plugin: 'caching_sha2_password',
  attributes: new Map([['program_name', 'orders']]),
};
const mysqlOk: mysql.Ok = {
  ...mysql.emptyOk(0x4002),
  info: Buffer.from('a proof'),
  changes: [
    { type: 0, data: Buffer.from('\x0credirect_url\x01x\x0aautocommit\x02ON', 'latin1') },
    { type: 1, data: Buffer.from('\x04shop') },
  ],
};

export const targets: readonly FuzzTarget[] = [
  ...postgresTargets,
  ...httpTargets,
  {
    name: 'scram-mechanisms',
    seedInputs: text('SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0', 'SCRAM-SHA-256\0', 'OAUTHBEARER\0', ''),
    run(bytes) {
      const offered = bytes.toString('latin1').split('\0');
      const choice = chooseMechanism({
        offered,
        tls: true,
        bindingData: undefined,
        channelBinding: 'prefer',
      });
      assert.deepEqual(choice, { mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' });
      assert.ok(offered.includes('SCRAM-SHA-256'));
    },
  },
  {
    name: 'scram-server-first',
    seedInputs: text(
      'r=ours+theirs,s=QQ==,i=1',
      'r=ours%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=20',
      'm=ext,r=ours+theirs,s=QQ==,i=1',
      'r=ours+theirs,s=QQ==,i=4096,x=y',
    ),
    async run(bytes) {
      const client = new ScramClient({ mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' }, { nonce: 'ours' });
      const final = await client.clientFinal(bytes, Buffer.from('pencil'), scramOptions);
      assert.match(final.toString('latin1'), /^c=biws,r=ours[\x21-\x2b\x2d-\x7e]+,p=[A-Za-z0-9+/]{43}=$/);
      assert.match(bytes.toString('latin1'), /^r=ours[^,]+,s=[A-Za-z0-9+/]+={0,2},i=[0-9]+$/);
      assert.ok(client.iterations && client.iterations <= scramOptions.maxIterations);
    },
  },
  {
    name: 'scram-server-final',
    seedInputs: text(
      rightSignature,
      'v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=',
      'e=invalid-proof',
      'e=other-error',
    ),
    async run(bytes) {
      const client = await afterServerFirst();
      try {
        client.verify(bytes);
      } finally {
        assert.equal(client.verified, bytes.equals(Buffer.from(rightSignature)));
      }
    },
  },
  {
    name: 'channel-binding-der',
    seedInputs: certificates,
    run(bytes) {
      const data = tlsServerEndPoint(bytes);
      assert.ok(data === undefined || [28, 32, 48, 64].includes(data.length));
    },
  },
  {
    name: 'saslprep',
    seedInputs: text(...passwords.map(({ password }) => password)),
    run(bytes) {
      const given = Buffer.from(bytes);
      const prepared = saslprep(bytes);
      assert.deepEqual(bytes, given);
      if (isUtf8(bytes)) assert.ok(isUtf8(prepared));
      else assert.deepEqual(prepared, bytes);
      if (!prepared.equals(bytes)) assert.deepEqual(saslprep(prepared), prepared);
    },
  },
  {
    name: 'mysql-greeting',
    seedInputs: hex(
      '0a392e372e342d3200e8000000274b153a420b746e00ffffff0200ffdf150000000000000000000050350e7252143e01116050770063616368696e675f736861325f70617373776f726400',
      '0a31312e382e392d4d6172696144422d342066726f6d2044656269616e0005000000446b6f6b4d7b462900feff2d0200ff81150000000000003d00000039254a267c604d42415d327e006d7973716c5f6e61746976655f70617373776f726400',
    ),
    run(bytes) {
      const greeting = mysql.decodeGreeting(bytes);
      assert.ok(greeting.authData.length >= 20);
      assert.ok(greeting.capabilities.flags <= 0xffffffff);
      if (greeting.authData.length === 20)
        assert.deepEqual(mysql.decodeGreeting(mysql.encodeGreeting(greeting)), greeting);
    },
  },
  {
    name: 'mysql-client-hello',
    seedInputs: [
      mysql.encodeHandshakeResponse(mysqlResponse),
      mysql.encodeSslRequest({
        ...mysqlResponse,
        capabilities: { flags: mysqlFlags, extended: 0 },
      }),
    ],
    run(bytes) {
      const hello = mysql.decodeClientHello(bytes);
      if (hello.kind !== 'response') return;
      // It may have left out what it announced, and then it is written in full; and answers have a length in front.
      const { flags, extended } = hello.capabilities;
      const again = mysql.decodeClientHello(
        mysql.encodeHandshakeResponse({
          ...hello,
          capabilities: { flags: (flags | capability.secureConnection) >>> 0, extended },
          authData: hello.authData.subarray(0, 200),
        }),
      );
      assert.ok(again.kind === 'response');
      assert.equal(again.user, hello.user);
      assert.equal(again.database, hello.database);
      const size = [...hello.attributes].reduce((sum, [name, value]) => sum + name.length + value.length, 0);
      assert.ok(size <= mysql.LONGEST_ATTRIBUTES);
    },
  },
  {
    name: 'mysql-login-reply',
    seedInputs: [
      mysql.encodeOk(mysqlOk, mysqlFlags),
      mysql.encodeError({ code: 1045, sqlstate: '28000', message: 'Access denied' }),
      mysql.encodeAuthSwitch('caching_sha2_password', mysqlLogin.data),
      mysql.encodeAuthMoreData(Buffer.of(4)),
    ],
    run(bytes) {
      const reply = mysql.decodeLoginReply(bytes);
      if (reply.kind === 'error') mysql.decodeError(bytes);
      if (reply.kind === 'switch') assert.ok(reply.data.length < bytes.length);
    },
  },
  {
    name: 'mysql-login-ok',
    seedInputs: [
      mysql.encodeOk(mysqlOk, mysqlFlags),
      mysql.encodeOk({ ...mysqlOk, status: 2, changes: undefined }, mysqlFlags),
    ],
    run(bytes) {
      assert.ok(has(mysqlFlags, capability.sessionTrack));
      const told = mysql.decodeOk(mysql.rewriteLoginOk(bytes, mysqlFlags), mysqlFlags);
      assert.equal(told.info.length, 0);
      for (const { type, data } of told.changes ?? [])
        assert.ok(type !== 0 || !data.toString('latin1').toLowerCase().startsWith('\x0credirect_url'));
    },
  },
  {
    name: 'mysql-change-user',
    seedInputs: [mysql.encodeChangeUser({ ...mysqlResponse, collation: 45 }, mysqlFlags)],
    run(bytes) {
      const change = mysql.decodeChangeUser(bytes, mysqlFlags);
      const again = mysql.decodeChangeUser(mysql.encodeChangeUser(change, mysqlFlags), mysqlFlags);
      assert.deepEqual(
        [again.user, again.database, again.authData],
        [change.user, change.database, change.authData],
      );
    },
  },
  {
    /** The first byte chooses the plugin, the second where its first data ends and the next packet begins. */
    name: 'mysql-plugins',
    seedInputs: [
      chosen(0, 20, mysqlLogin.data, Buffer.of(3)),
      chosen(0, 20, mysqlLogin.data, Buffer.of(4)),
      chosen(
        1,
        20,
        mysqlLogin.data,
        Buffer.from('-----BEGIN PUBLIC KEY-----\nQQ==\n-----END PUBLIC KEY-----\n'),
      ),
      chosen(2, 32, Buffer.alloc(32, 5), Buffer.from(`P\0${'s'.repeat(18)}`)),
      chosen(3, 1, Buffer.of(5), Buffer.of(5)),
      chosen(4, 20, mysqlLogin.data, Buffer.alloc(0)),
    ],
    async run(bytes) {
      const names = [
        'caching_sha2_password',
        'sha256_password',
        'parsec',
        'dialog',
        'mysql_native_password',
      ] as const;
      const name = names[(bytes[0] ?? 0) % names.length] as (typeof names)[number];
      const end = 2 + (bytes[1] ?? 0);
      const data = bytes.subarray(2, end);
      const { authentication, first } = await Authentication.begin(name, { ...mysqlLogin, data });
      // All that a server may have without further words. What shows the password has to be asked for in the right way.
      assert.ok(name === 'dialog' || !first.includes('Secret#1'));
      const answer = await authentication.answer(bytes.subarray(end));
      if (answer?.includes('Secret#1')) assert.deepEqual(bytes.subarray(end), Buffer.of(4));
    },
  },
];

function hex(...inputs: string[]): Buffer[] {
  return inputs.map((input) => Buffer.from(input, 'hex'));
}

function chosen(plugin: number, length: number, ...parts: readonly Buffer[]): Buffer {
  return Buffer.concat([Buffer.of(plugin, length), ...parts]);
}

function text(...inputs: string[]): Buffer[] {
  return inputs.map((input) => Buffer.from(input));
}
