import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { capability } from '../../../src/connectors/mysql/capabilities.ts';
import {
  type Attributes,
  type ClientHello,
  decodeChangeUser,
  decodeClientHello,
  decodeError,
  decodeGreeting,
  decodeLoginReply,
  decodeOk,
  emptyOk,
  encodeAuthMoreData,
  encodeAuthSwitch,
  encodeChangeUser,
  encodeError,
  encodeGreeting,
  encodeHandshakeResponse,
  encodeOk,
  encodePacket,
  encodeSslRequest,
  fastAuthSuccess,
  type HandshakeResponse,
  isError,
  LONGEST_ATTRIBUTES,
  readPacket,
  rewriteLoginOk,
} from '../../../src/connectors/mysql/packets.ts';
import { PosternError } from '../../../src/core/errors.ts';
import { asMysql2, packets, payloadOf } from './mysql2-packets.ts';

const hex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex');
const FULL = 0xffffff;

const greetings = {
  mysql9: hex(
    '0a392e372e342d3200e8000000274b153a420b746e00ffffff0200ffdf150000000000000000000050350e7252143e01116050770063616368696e675f736861325f70617373776f726400',
  ),
  mariadb11: hex(
    '0a31312e382e392d4d6172696144422d342066726f6d2044656269616e0005000000446b6f6b4d7b462900feff2d0200ff81150000000000003d00000039254a267c604d42415d327e006d7973716c5f6e61746976655f70617373776f726400',
  ),
};

const uint32 = fc.integer({ min: 0, max: 0xffffffff });
const uint16 = fc.integer({ min: 0, max: 0xffff });
const uint8 = fc.integer({ min: 0, max: 0xff });
const bytes = (maxLength: number, minLength = 0) =>
  fc.uint8Array({ minLength, maxLength }).map((array) => Buffer.from(array));
/** Text as the codecs have it: a character is a byte. */
const byteText = (maxLength = 40) =>
  bytes(maxLength).map((value) => value.toString('latin1').replaceAll('\0', 'x'));
const name = byteText().filter((text) => text !== '');
const attributes: fc.Arbitrary<Attributes> = fc
  .array(fc.tuple(byteText(300), byteText(300)), { maxLength: 8 })
  .map((pairs) => new Map(pairs));

/** Both ends of a connection; the first is the one that reads. */
async function pair(use: (reading: Socket, writing: Socket) => Promise<void>): Promise<void> {
  const server = createServer({ pauseOnConnect: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const writing = connect((server.address() as AddressInfo).port, '127.0.0.1');
  const [reading] = await accepted;
  try {
    await use(reading, writing);
  } finally {
    for (const socket of [reading, writing]) socket.destroy();
    server.close();
  }
}

const options = { maxLength: 40 * 2 ** 20, signal: AbortSignal.timeout(20_000) };

describe('framing', () => {
  it('gives the payload and the sequence id, and leaves what comes behind', async () => {
    await pair(async (reading, writing) => {
      writing.write(Buffer.concat([encodePacket(3, Buffer.from('hello')), encodePacket(4, Buffer.alloc(0))]));
      assert.deepEqual(await readPacket(reading, 'client', options), {
        sequence: 3,
        payload: Buffer.from('hello'),
      });
      assert.deepEqual(await readPacket(reading, 'client', options), {
        sequence: 4,
        payload: Buffer.alloc(0),
      });
      writing.end('more');
      const rest: Buffer[] = [];
      for await (const chunk of reading) rest.push(chunk as Buffer);
      assert.equal(Buffer.concat(rest).toString(), 'more');
    });
  });

  it('continues a payload of 16 MiB - 1 with the next packet, which may be empty', async () => {
    for (const length of [FULL - 1, FULL, FULL + 1, 2 * FULL, 2 * FULL + 5]) {
      const payload = Buffer.alloc(length, 'abc');
      const framed = encodePacket(255, payload);
      const count = Math.floor(length / FULL) + 1;
      assert.equal(framed.length, length + 4 * count);
      await pair(async (reading, writing) => {
        writing.write(framed);
        const packet = await readPacket(reading, 'upstream', options);
        assert.ok(packet.payload.equals(payload), `${length} bytes`);
        assert.equal(
          packet.sequence,
          (255 + count - 1) & 0xff,
          'of the last one: the next in order answers it',
        );
      });
    }
  });

  it('puts the zero-length end of a full payload where the protocol has it', () => {
    const framed = encodePacket(1, Buffer.alloc(FULL));
    assert.deepEqual(framed.subarray(0, 4), hex('ffffff01'));
    assert.deepEqual(framed.subarray(4 + FULL), hex('00000002'));
  });

  it('refuses a packet that is too long before reading it, by whose it is', async () => {
    for (const [side, code] of [
      ['client', 'CLIENT_PROTOCOL'],
      ['upstream', 'UPSTREAM_PROTOCOL'],
    ] as const)
      await pair(async (reading, writing) => {
        writing.write(hex('01000100'));
        await assert.rejects(readPacket(reading, side, { ...options, maxLength: 0x10000 }), { code });
      });
  });

  it('refuses a continuation that would make it too long, or that is out of order', async () => {
    await pair(async (reading, writing) => {
      writing.write(encodePacket(0, Buffer.alloc(FULL + 10)));
      await assert.rejects(readPacket(reading, 'upstream', { ...options, maxLength: FULL + 9 }), {
        code: 'UPSTREAM_PROTOCOL',
        message: `the server sent a packet of at least ${FULL + 10} bytes`,
      });
    });
    await pair(async (reading, writing) => {
      const framed = encodePacket(0, Buffer.alloc(FULL + 10));
      framed[4 + FULL + 3] = 2;
      writing.write(framed);
      await assert.rejects(readPacket(reading, 'client', options), {
        code: 'CLIENT_PROTOCOL',
        message: /out of order/,
      });
    });
  });

  it('ends with the signal, and with the peer', async () => {
    await pair(async (reading, writing) => {
      writing.write(hex('050000'));
      const signal = AbortSignal.timeout(50);
      await assert.rejects(readPacket(reading, 'client', { ...options, signal }), { name: 'TimeoutError' });
    });
    await pair(async (reading, writing) => {
      writing.end(hex('0500000041'));
      await assert.rejects(readPacket(reading, 'upstream', options), { code: 'UPSTREAM_CLOSED' });
    });
  });
});

describe('the greeting', () => {
  it('of a MySQL 9.7 is read', () => {
    assert.deepEqual(decodeGreeting(greetings.mysql9), {
      serverVersion: '9.7.4-2',
      connectionId: 232,
      capabilities: { flags: 0xdfffffff, extended: 0 },
      collation: 255,
      status: 2,
      authData: hex('274b153a420b746e 50350e7252143e0111605077'),
      plugin: 'caching_sha2_password',
    });
  });

  it('of a MariaDB 11.8 is read with its extended capabilities', () => {
    assert.deepEqual(decodeGreeting(greetings.mariadb11), {
      serverVersion: '11.8.9-MariaDB-4 from Debian',
      connectionId: 5,
      capabilities: { flags: 0x81fffffe, extended: 0x3d },
      collation: 45,
      status: 2,
      authData: hex('446b6f6b4d7b4629 39254a267c604d42415d327e'),
      plugin: 'mysql_native_password',
    });
  });

  it('is written byte for byte as a server writes it', () => {
    for (const sample of Object.values(greetings))
      assert.deepEqual(encodeGreeting(decodeGreeting(sample)), sample);
  });

  it('has no extended capabilities in a MySQL, whatever is in its reserved bytes', () => {
    const sample = Buffer.from(greetings.mysql9);
    // The last four of the ten reserved ones.
    sample.fill(0xff, 36, 40);
    assert.equal(decodeGreeting(sample).capabilities.extended, 0);
  });

  it('is read without the final zero of the plugin, which MySQL 5.5 forgot', () => {
    const { plugin } = decodeGreeting(greetings.mysql9.subarray(0, -1));
    assert.equal(plugin, 'caching_sha2_password');
  });

  it('is read from a server that has no plugins', () => {
    const flags = capability.protocol41 | capability.secureConnection | capability.longPassword;
    const old = {
      ...decodeGreeting(greetings.mysql9),
      capabilities: { flags, extended: 0 },
      plugin: undefined,
    };
    const payload = encodeGreeting(old);
    assert.deepEqual(decodeGreeting(payload), old);
    assert.equal(payload.at(-1), 0);
  });

  it('is refused from a server that is older than 4.1, and when it is none', () => {
    const { capabilities, ...rest } = decodeGreeting(greetings.mysql9);
    for (const missing of [capability.protocol41, capability.secureConnection])
      assert.throws(
        () =>
          decodeGreeting(
            encodeGreeting({
              ...rest,
              capabilities: { ...capabilities, flags: capabilities.flags - missing },
            }),
          ),
        { code: 'UPSTREAM_PROTOCOL', message: 'the server is older than MySQL 4.1' },
      );
    for (const payload of [
      hex(''),
      hex('09'),
      hex('0a'),
      Buffer.from('SSH-2.0-OpenSSH'),
      greetings.mysql9.subarray(0, 50),
    ])
      assert.throws(() => decodeGreeting(payload), { code: 'UPSTREAM_PROTOCOL' });
  });

  it('is what mysql2 reads in what we write, and what we read in what mysql2 writes', () => {
    fc.assert(
      fc.property(
        byteText(),
        uint32,
        uint32,
        uint32,
        uint16,
        uint8,
        bytes(20, 20),
        (version, id, some, extended, status, collation, salt) => {
          const flags =
            (some | capability.protocol41 | capability.secureConnection | capability.pluginAuth) >>> 0;
          const text = version.replace(/[^ -~]/g, '.');
          const ours = encodeGreeting({
            serverVersion: text,
            connectionId: id,
            capabilities: { flags, extended },
            collation,
            status,
            authData: salt,
            plugin: 'mysql_native_password',
          });
          const theirs = packets.Handshake.fromPacket(asMysql2(ours));
          assert.equal(theirs['serverVersion'], text);
          assert.equal(theirs['connectionId'], id);
          assert.equal(theirs['capabilityFlags'], flags);
          assert.equal(theirs['mariadbExtendedCapabilityFlags'], flags % 2 === 0 ? extended : 0);
          assert.equal(theirs['statusFlags'], status);
          assert.equal(theirs['characterSet'], collation);
          assert.equal(theirs['authPluginName'], 'mysql_native_password');

          const written = new packets.Handshake(theirs);
          Object.assign(written, { authPluginData1: salt.subarray(0, 8), authPluginData2: salt.subarray(8) });
          const read = decodeGreeting(payloadOf(written.toPacket(0)));
          assert.deepEqual(read.authData, salt);
          assert.equal(read.serverVersion, text);
          assert.equal(read.capabilities.flags, flags);
        },
      ),
    );
  });
});

const base: HandshakeResponse = {
  capabilities: {
    flags:
      capability.longPassword |
      capability.protocol41 |
      capability.secureConnection |
      capability.pluginAuth |
      capability.longAuthData |
      capability.connectWithDatabase |
      capability.connectAttributes,
    extended: 0,
  },
  maxPacket: 2 ** 24,
  collation: 45,
  user: 'orders',
  authData: Buffer.alloc(32, 7),
  database: 'shop',
  plugin: 'caching_sha2_password',
  attributes: new Map([
    ['_client_name', 'libmysql'],
    ['program_name', 'orders'],
  ]),
};

function without(response: HandshakeResponse, ...flags: readonly number[]): HandshakeResponse {
  const sum = flags.reduce((all, flag) => all - flag, response.capabilities.flags);
  return { ...response, capabilities: { ...response.capabilities, flags: sum } };
}

function responseOf(payload: Buffer): HandshakeResponse {
  const { kind, ...response } = decodeClientHello(payload) as ClientHello & HandshakeResponse;
  assert.equal(kind, 'response');
  return response;
}

describe("a client's first words", () => {
  it('are read as they were written, with and without each field that a flag announces', () => {
    const optional = [
      capability.pluginAuth,
      capability.longAuthData,
      capability.connectWithDatabase,
      capability.connectAttributes,
    ];
    for (let choice = 0; choice < 16; choice++) {
      const missing = optional.filter((_, i) => choice & (1 << i));
      const is = (flag: number) => !missing.includes(flag);
      const response = without(base, ...missing);
      assert.deepEqual(responseOf(encodeHandshakeResponse(response)), {
        ...response,
        database: is(capability.connectWithDatabase) ? 'shop' : undefined,
        plugin: is(capability.pluginAuth) ? 'caching_sha2_password' : undefined,
        attributes: is(capability.connectAttributes) ? base.attributes : new Map(),
      });
    }
  });

  it('survive any text and any answer', () => {
    fc.assert(
      fc.property(
        byteText(),
        bytes(300),
        name,
        name,
        attributes,
        uint32,
        uint8,
        (user, authData, database, plugin, pairs, maxPacket, collation) => {
          const response = {
            ...base,
            user,
            authData,
            database,
            plugin,
            attributes: pairs,
            maxPacket,
            collation,
          };
          assert.deepEqual(responseOf(encodeHandshakeResponse(response)), response);
        },
      ),
    );
  });

  it('are what mysql2 reads in what we write, and what we read in what mysql2 writes', () => {
    const word = fc.stringMatching(/^[a-z]{1,20}$/);
    fc.assert(
      fc.property(word, word, bytes(250), uint32, (user, database, authData, extended) => {
        const flags = base.capabilities.flags - capability.longPassword;
        const response = { ...base, capabilities: { flags, extended }, user, database, authData };
        const ours = encodeHandshakeResponse(response);
        const theirs = packets.HandshakeResponse.fromPacket(asMysql2(ours));
        assert.equal(theirs['user'], user);
        assert.equal(theirs['database'], database);
        assert.deepEqual(theirs['authToken'], authData);
        assert.equal(theirs['authPluginName'], base.plugin);
        assert.deepEqual(theirs['connectAttributes'], Object.fromEntries(base.attributes));

        const written = new packets.HandshakeResponse({
          flags,
          user,
          database,
          charsetNumber: 45,
          authToken: authData,
          authPluginName: base.plugin,
          connectAttributes: Object.fromEntries(base.attributes),
          mariadbExtendedClientFlags: extended,
        });
        assert.deepEqual(
          payloadOf(written.toPacket()),
          encodeHandshakeResponse({ ...response, maxPacket: 0 }),
        );
      }),
    );
  });

  it('are an SSLRequest when they end where one does, as mysql2 writes it', () => {
    const flags = capability.protocol41 | capability.ssl;
    const payload = encodeSslRequest({
      capabilities: { flags, extended: 0x1d },
      maxPacket: 0,
      collation: 33,
    });
    assert.deepEqual(payload, payloadOf(new packets.SSLRequest(flags, 33, 0x1d).toPacket()));
    assert.deepEqual(decodeClientHello(payload), {
      kind: 'sslRequest',
      capabilities: { flags, extended: 0x1d },
    });
    assert.throws(() => decodeClientHello(payload.subarray(0, -1)), { code: 'CLIENT_PROTOCOL' });
  });

  it('are from before 4.1 without PROTOCOL_41, also when there is little of them', () => {
    for (const payload of [hex('0500'), hex('8524 000000 726f6f7400')])
      assert.deepEqual(decodeClientHello(Buffer.from(payload)), { kind: 'too old' });
  });

  it('may leave out final zeros and whole fields that they announced', () => {
    const cut = (count: number) =>
      encodeHandshakeResponse(without(base, capability.connectAttributes)).subarray(0, -count);
    assert.equal(responseOf(cut(1)).plugin, base.plugin);
    const announced = encodeHandshakeResponse(base);
    const attributesAt = announced.indexOf('_client_name') - 2;
    assert.deepEqual(responseOf(announced.subarray(0, attributesAt)).attributes, new Map());
    const pluginAt = announced.indexOf('caching_sha2');
    const nothingMore = responseOf(announced.subarray(0, pluginAt));
    assert.deepEqual([nothingMore.database, nothingMore.plugin], ['shop', '']);
    assert.equal(responseOf(announced.subarray(0, pluginAt - 1)).database, 'shop');
    assert.equal(responseOf(announced.subarray(0, pluginAt - 5)).database, undefined);
  });

  it('name no database when they name an empty one', () => {
    assert.equal(responseOf(encodeHandshakeResponse({ ...base, database: undefined })).database, undefined);
  });

  it('are refused where a length points behind their end', () => {
    const payload = encodeHandshakeResponse(base);
    const answer = payload.indexOf('orders') + 7;
    for (const lies of ['ff', 'fb', 'fdffff7f', 'feffffffffffffffff', 'fe0000000000000080', 'fa'])
      assert.throws(
        () =>
          decodeClientHello(
            Buffer.concat([payload.subarray(0, answer), hex(lies), payload.subarray(answer + 1, -60)]),
          ),
        { code: 'CLIENT_PROTOCOL', message: 'the client sent a malformed handshake response' },
        lies,
      );
    assert.throws(() => decodeClientHello(payload.subarray(0, answer - 1)), { code: 'CLIENT_PROTOCOL' });
  });

  it('carry attributes of 64 KiB at most, of equal names the first', () => {
    const big = new Map([
      ['a', 'x'.repeat(LONGEST_ATTRIBUTES - 6)],
      ['b', 'y'],
    ]);
    const payload = encodeHandshakeResponse({ ...base, attributes: big });
    assert.deepEqual([...responseOf(payload).attributes.keys()], ['a'], 'what does not fit is left out');

    const head = encodeHandshakeResponse(without(base, capability.connectAttributes));
    head.writeUInt32LE(base.capabilities.flags);
    const twice = Buffer.concat([head, hex('08'), hex('0161 0131 0161 0132')]);
    assert.deepEqual(responseOf(twice).attributes, new Map([['a', '1']]));

    const tooLong = Buffer.concat([head, hex('fd000001'), Buffer.alloc(0x10000)]);
    assert.throws(() => decodeClientHello(tooLong), { code: 'CLIENT_PROTOCOL' });
    assert.throws(() => decodeClientHello(Buffer.concat([head, hex('03 0161 05')])), {
      code: 'CLIENT_PROTOCOL',
    });
  });

  it('have no room for a long answer in a server without PLUGIN_AUTH_LENENC_CLIENT_DATA', () => {
    const response = { ...without(base, capability.longAuthData), authData: Buffer.alloc(256) };
    assert.throws(() => encodeHandshakeResponse(response), {
      code: 'UPSTREAM_PROTOCOL',
      message: /255 bytes/,
    });
  });

  it('cannot be led into another field by a zero byte in a name', () => {
    assert.throws(() => encodeHandshakeResponse({ ...base, user: 'a\0b' }), { code: 'CONFIG_INVALID' });
  });
});

describe('what a server answers during a login', () => {
  it('is told apart by its first byte', () => {
    const replies = {
      '00000002000000': 'ok',
      ff1504233238303030: 'error',
      fe: 'old switch',
      fe6100: 'switch',
      '0103': 'more',
      '50000011': 'more',
      '026100': 'next factor',
    };
    for (const [payload, kind] of Object.entries(replies))
      assert.equal(decodeLoginReply(hex(payload)).kind, kind, payload);
    assert.throws(() => decodeLoginReply(hex('')), { code: 'UPSTREAM_PROTOCOL' });
  });

  it('switches to a plugin with a salt of 20 bytes, as MySQL 9.7 sent it', () => {
    const sample = hex(
      'fe 63616368696e675f736861325f70617373776f7264 00 77387e5548123f2c2e0d40556e79707e4e0b2959 00',
    );
    const data = hex('77387e5548123f2c2e0d40556e79707e4e0b2959');
    assert.deepEqual(decodeLoginReply(sample), { kind: 'switch', plugin: 'caching_sha2_password', data });
    assert.deepEqual(encodeAuthSwitch('caching_sha2_password', data), sample);
    assert.deepEqual(
      packets.AuthSwitchRequest.fromPacket(asMysql2(sample))['pluginData'],
      sample.subarray(-21),
    );
  });

  it('switches with 32 bytes that are whole, also when the last is zero', () => {
    for (const last of [0, 1]) {
      const data = Buffer.concat([Buffer.alloc(31, 5), Buffer.of(last)]);
      const payload = encodeAuthSwitch('client_ed25519', data);
      assert.deepEqual(decodeLoginReply(payload), { kind: 'switch', plugin: 'client_ed25519', data });
    }
    const odd = Buffer.alloc(21, 5);
    assert.deepEqual(decodeLoginReply(encodeAuthSwitch('x', odd)), {
      kind: 'switch',
      plugin: 'x',
      data: odd,
    });
  });

  it('carries data of a plugin, with 0x01 in front or as MariaDB does without', () => {
    assert.deepEqual(decodeLoginReply(encodeAuthMoreData(Buffer.from('PEM'))), {
      kind: 'more',
      data: Buffer.from('PEM'),
    });
    const salt = hex('500098a4026bcc38b206d206ebd2f92732f86b88');
    for (const payload of [salt, Buffer.concat([hex('01'), salt])])
      assert.deepEqual(decodeLoginReply(payload), { kind: 'more', data: salt });
    assert.deepEqual(fastAuthSuccess, hex('0103'));
  });
});

const tracking = capability.protocol41 | capability.sessionTrack;
const notTracking = capability.protocol41;

describe('an OK packet', () => {
  it('of a real login is read', () => {
    assert.deepEqual(decodeOk(hex('00 00 00 02 40 00 00 00 05 01 03 02 64 31'), tracking), {
      affectedRows: 0n,
      lastInsertId: 0n,
      status: 0x4002,
      warnings: 0,
      info: Buffer.alloc(0),
      changes: [{ type: 1, data: hex('026431') }],
    });
  });

  it('is read as it was written, whatever is in it', () => {
    const uint64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
    const change = fc.tuple(uint8, bytes(300)).map(([type, data]) => ({ type, data }));
    fc.assert(
      fc.property(
        uint64,
        uint64,
        uint16,
        uint16,
        bytes(300),
        fc.array(change),
        (affectedRows, lastInsertId, some, warnings, info, list) => {
          const status = some & ~0x4000;
          const head = { affectedRows, lastInsertId, warnings, info };
          for (const flags of [tracking, notTracking]) {
            const plain = { ...head, status, changes: undefined };
            assert.deepEqual(decodeOk(encodeOk(plain, flags), flags), plain);
          }
          const changed = { ...head, status: status | 0x4000, changes: list };
          assert.deepEqual(decodeOk(encodeOk(changed, tracking), tracking), changed);
        },
      ),
    );
  });

  it('is what mysql2 reads in what we write, and what we read in what mysql2 writes', () => {
    const connection = (flags: number) => ({
      config: { bigNumberStrings: false },
      serverEncoding: 'utf8',
      _handshakePacket: { capabilityFlags: flags },
    });
    const schema = { type: 1, data: hex('026431') };
    const ok = { ...emptyOk(0x4002), affectedRows: 300n, lastInsertId: 70000n, changes: [schema] };
    const theirs = new packets.ResultSetHeader(asMysql2(encodeOk(ok, tracking)), connection(tracking));
    assert.equal(theirs['affectedRows'], 300);
    assert.equal(theirs['insertId'], 70000);
    assert.equal(theirs['serverStatus'], 0x4002);
    assert.equal((theirs['stateChanges'] as { schema: string }).schema, 'd1');

    const written = payloadOf(
      packets.OK.toPacket({ affectedRows: 300, insertId: 70000, serverStatus: 2 }, 'utf8'),
    );
    assert.deepEqual(decodeOk(written, notTracking), {
      ...emptyOk(2),
      affectedRows: 300n,
      lastInsertId: 70000n,
    });
  });

  it('is refused where it is none or ends in the middle', () => {
    for (const payload of [
      '',
      '01',
      '00',
      '000000',
      'ff1504',
      '00fb0002000000',
      '00ff0002000000',
      '000000024000',
      '00000002400000000501030264',
      '0000000240000005',
    ])
      assert.throws(() => decodeOk(hex(payload), tracking), { code: 'UPSTREAM_PROTOCOL' }, payload);
  });
});

describe('the OK of a login, for the client', () => {
  const proof = Buffer.concat([hex('01'), Buffer.from('ab'.repeat(32))]);
  const schema = { type: 1, data: hex('026431') };
  const charset = {
    type: 0,
    data: Buffer.concat([hex('14'), Buffer.from('character_set_client'), hex('04'), Buffer.from('utf8')]),
  };
  const redirect = {
    type: 0,
    data: Buffer.concat([hex('0c'), Buffer.from('redirect_url'), hex('0e'), Buffer.from('mysql://x:3306')]),
  };

  it('does not have the hash with which MariaDB proves its certificate: it is a test for passwords', () => {
    for (const flags of [tracking, notTracking]) {
      const ok = { ...emptyOk(2), warnings: 3, info: proof };
      const rewritten = rewriteLoginOk(encodeOk(ok, flags), flags);
      assert.deepEqual(decodeOk(rewritten, flags), { ...ok, info: Buffer.alloc(0) });
      assert.ok(!rewritten.includes('abab'));
    }
    const both = { ...emptyOk(0x4002), info: proof, changes: [schema] };
    assert.deepEqual(decodeOk(rewriteLoginOk(encodeOk(both, tracking), tracking), tracking), {
      ...both,
      info: Buffer.alloc(0),
    });
  });

  it('does not send the client to another server', () => {
    const azure = { ...emptyOk(2), info: Buffer.from('Location: mysql://other.example:3306/user=a') };
    assert.deepEqual(decodeOk(rewriteLoginOk(encodeOk(azure, tracking), tracking), tracking), emptyOk(2));

    const ok = { ...emptyOk(0x4002), changes: [schema, redirect, charset] };
    const rewritten = decodeOk(rewriteLoginOk(encodeOk(ok, tracking), tracking), tracking);
    assert.deepEqual(rewritten, { ...ok, changes: [schema, charset] });
  });

  it('does so however the variable is written, and when it comes together with another', () => {
    const shouted = {
      type: 0,
      data: Buffer.concat([hex('0c'), Buffer.from('REDIRECT_url'), hex('0161'), charset.data]),
    };
    const ok = { ...emptyOk(0x4002), changes: [shouted] };
    const rewritten = decodeOk(rewriteLoginOk(encodeOk(ok, tracking), tracking), tracking);
    assert.deepEqual(rewritten.changes, [charset]);
  });

  it('says that nothing changed when the redirect was all', () => {
    const ok = { ...emptyOk(0x4002), changes: [redirect] };
    assert.deepEqual(decodeOk(rewriteLoginOk(encodeOk(ok, tracking), tracking), tracking), emptyOk(2));
  });

  it('is byte for byte the same when there is nothing to hide', () => {
    for (const payload of [
      '00 00 00 02 40 00 00 00 05 01 03 02 64 31',
      '00 00 00 02 00 00 00',
      '00 00 00 02 40 01 00 00 00',
    ])
      assert.deepEqual(rewriteLoginOk(hex(payload), tracking), hex(payload));
    assert.deepEqual(rewriteLoginOk(hex('00 00 00 02 00 00 00'), notTracking), hex('00 00 00 02 00 00 00'));
  });
});

describe('an ERR packet', () => {
  it('in place of the greeting has no SQLSTATE, as a full server sent it', () => {
    const sample = Buffer.concat([hex('ff1004'), Buffer.from('Too many connections')]);
    const error = { code: 1040, sqlstate: undefined, message: 'Too many connections' };
    assert.deepEqual(decodeError(sample), error);
    assert.deepEqual(encodeError(error), sample);
    assert.deepEqual(encodePacket(0, sample).subarray(0, 7), hex('17 00 00 00 ff 10 04'));
    assert.ok(isError(sample));
    assert.ok(!isError(greetings.mysql9));
  });

  it('is read as it was written, and by mysql2', () => {
    fc.assert(
      fc.property(uint16, fc.stringMatching(/^[0-9A-Z]{5}$/), byteText(300), (code, sqlstate, message) => {
        const payload = encodeError({ code, sqlstate, message });
        assert.deepEqual(decodeError(payload), { code, sqlstate, message });
        const theirs = packets.Error.fromPacket(asMysql2(payload));
        assert.equal(theirs.code, code);
      }),
    );
    const written = payloadOf(packets.Error.toPacket({ code: 1045, message: 'Access denied' }, 'utf8'));
    assert.deepEqual(decodeError(written), { code: 1045, sqlstate: '_____', message: 'Access denied' });
  });

  it('is refused where it is none', () => {
    for (const payload of ['', '00', 'ff', 'ff10'])
      assert.throws(() => decodeError(hex(payload)), { code: 'UPSTREAM_PROTOCOL' });
    assert.deepEqual(decodeError(hex('ff1004')), { code: 1040, sqlstate: undefined, message: '' });
    assert.deepEqual(decodeError(hex('ff100423')).message, '#');
  });
});

describe('COM_CHANGE_USER', () => {
  const { flags } = base.capabilities;

  it('is read as it was written', () => {
    fc.assert(
      fc.property(
        byteText(),
        bytes(255),
        fc.option(name, { nil: undefined }),
        uint16,
        byteText(),
        attributes,
        (user, authData, database, collation, plugin, pairs) => {
          const change = { user, authData, database, collation, plugin, attributes: pairs };
          assert.deepEqual(decodeChangeUser(encodeChangeUser(change, flags), flags), change);
        },
      ),
    );
  });

  it('is what mysql2 writes', () => {
    const written = new packets.ChangeUser({
      flags,
      user: 'orders',
      database: 'shop',
      password: 'Secret#1',
      authPluginData1: Buffer.from('ABCDEFGH'),
      authPluginData2: Buffer.from('IJKLMNOPQRST'),
      charsetNumber: 224,
      connectAttributes: { program_name: 'orders' },
    });
    const payload = payloadOf(written.toPacket());
    const change = decodeChangeUser(payload, flags);
    assert.deepEqual(change, {
      user: 'orders',
      authData: hex('ba7ffd2ebc8cee06c7276e94e3b10f871781bba2'),
      database: 'shop',
      collation: 224,
      plugin: 'mysql_native_password',
      attributes: new Map([['program_name', 'orders']]),
    });
    assert.deepEqual(encodeChangeUser(change, flags), payload);
  });

  it('may end behind the database', () => {
    const short = {
      user: 'a',
      authData: Buffer.alloc(0),
      database: undefined,
      collation: undefined,
      plugin: undefined,
      attributes: new Map(),
    };
    const payload = encodeChangeUser(short, flags);
    assert.deepEqual(payload, hex('11 6100 00 00'));
    assert.deepEqual(decodeChangeUser(payload, flags), short);
    assert.equal(decodeChangeUser(payload.subarray(0, -1), flags).database, undefined);
  });

  it('is refused where a length points behind its end', () => {
    for (const payload of [
      '',
      '11',
      '1161',
      '116100',
      '11610005',
      '03',
      '11610000002d',
      '116100 00 00 2d00 6100 05',
    ])
      assert.throws(() => decodeChangeUser(hex(payload), flags), { code: 'CLIENT_PROTOCOL' }, payload);
  });
});

describe('whatever comes', () => {
  const decoders: Record<string, (payload: Buffer) => unknown> = {
    greeting: decodeGreeting,
    'client hello': decodeClientHello,
    'login reply': decodeLoginReply,
    'OK with tracking': (payload) => decodeOk(payload, tracking),
    'OK without': (payload) => decodeOk(payload, notTracking),
    'OK rewritten': (payload) => rewriteLoginOk(payload, tracking),
    error: decodeError,
    'change user': (payload) => decodeChangeUser(payload, base.capabilities.flags),
  };
  const samples = [
    ...Object.values(greetings),
    encodeHandshakeResponse(base),
    hex('00 00 00 02 40 00 00 00 05 01 03 02 64 31'),
    encodeChangeUser({ ...base, collation: 45 }, base.capabilities.flags),
  ];

  for (const [what, decode] of Object.entries(decoders)) {
    const holds = (payload: Buffer) => {
      const before = Buffer.from(payload);
      try {
        decode(payload);
      } catch (thrown) {
        assert.ok(thrown instanceof PosternError, String(thrown));
      }
      assert.deepEqual(payload, before);
    };

    it(`as a ${what}, it is read or refused in so many words`, () => {
      fc.assert(fc.property(bytes(200), holds));
      // A start that the reader believes, and then anything.
      fc.assert(
        fc.property(fc.constantFrom(...samples), fc.nat(), bytes(60), (sample, cut, rest) =>
          holds(Buffer.concat([sample.subarray(0, cut % sample.length), rest])),
        ),
      );
    });
  }
});
