import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { createSecureContext } from 'node:tls';

import {
  authentication,
  type Brokered,
  backendKey,
  broker,
  cancelRequest,
  cstring,
  fieldsOf,
  gssRequest,
  int32,
  loginWith,
  message,
  messagesOf,
  packet,
  parameterStatus,
  readMessage,
  readUntil,
  readyForQuery,
  sslRequest,
  startup,
  trust,
} from '../../support/fake-postgres.ts';
import { certificates } from '../../support/servers.ts';
import { type Peer, paces, until } from '../../support/session.ts';

const { server: leaf } = await certificates();
const localTls = createSecureContext({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) });

const hello = startup([
  ['user', 'whoever'],
  ['database', 'orders'],
]);

/** Reads what a refused client is told: one ErrorResponse and then the end. */
async function refusalOf(client: Peer): Promise<Record<string, string>> {
  const messages = messagesOf(await client.rest());
  assert.deepEqual(
    messages.map(({ type }) => type),
    ['E'],
  );
  assert.equal(client.error, undefined);
  client.end();
  return fieldsOf(messages[0]?.body ?? Buffer.alloc(0));
}

async function assertLoggedIn(client: Peer): Promise<void> {
  const messages = await readUntil(client, 'ZE');
  assert.equal(messages.map(({ type }) => type).join(''), 'RSSSKZ');
}

for (const pace of paces) {
  const open = (options: Parameters<typeof broker>[1] = {}): Promise<Brokered> =>
    broker(loginWith(trust), { pace, ...options });

  describe(`the packets before a login, ${pace}`, () => {
    for (const [name, requests] of Object.entries({
      SSLRequest: [sslRequest],
      GSSENCRequest: [gssRequest],
      'SSLRequest and GSSENCRequest': [sslRequest, gssRequest],
      'GSSENCRequest and SSLRequest': [gssRequest, sslRequest],
    }))
      it(`answers ${name} with no and logs in on the same connection`, async () => {
        await using broker = await open();
        const client = await broker.served.connect();
        for (const request of requests) {
          client.send(request);
          assert.equal((await client.read(1)).toString(), 'N');
        }
        client.send(hello);
        await assertLoggedIn(client);
      });

    it('takes requests and the start-up message all at once, when it has no TLS to offer', async () => {
      await using broker = await open();
      const client = await broker.served.connect();
      client.send(gssRequest, sslRequest, hello);
      assert.equal((await client.read(2)).toString(), 'NN');
      await assertLoggedIn(client);
    });

    for (const [name, request] of Object.entries({ SSLRequest: sslRequest, GSSENCRequest: gssRequest }))
      it(`takes a second ${name} for a start-up message of a strange version, as the server does`, async () => {
        await using broker = await open();
        const client = await broker.served.connect();
        client.send(request, request);
        assert.equal((await client.read(1)).toString(), 'N');
        assert.equal((await refusalOf(client))['C'], '0A000');
        assert.equal((await broker.served.ended()).outcome, 'CLIENT_REFUSED');
        assert.equal(broker.fake.connections, 0);
      });

    it('speaks TLS where it is configured, and refuses a second SSLRequest inside with no', async () => {
      await using broker = await open({ localTls });
      const client = await broker.served.connect();
      client.send(sslRequest);
      assert.equal((await client.read(1)).toString(), 'S');
      await client.startTls();
      client.send(gssRequest);
      assert.equal((await client.read(1)).toString(), 'N');
      client.send(sslRequest);
      assert.equal((await refusalOf(client))['C'], '0A000');
    });

    it('logs in inside TLS, by SSLRequest with or without ALPN', async () => {
      await using broker = await open({ localTls });
      for (const alpn of [[], ['postgresql']]) {
        const client = await broker.served.connect();
        client.send(gssRequest);
        assert.equal((await client.read(1)).toString(), 'N');
        client.send(sslRequest);
        assert.equal((await client.read(1)).toString(), 'S');
        await client.startTls(alpn);
        client.send(hello);
        await assertLoggedIn(client);
      }
    });

    it('lets a client without TLS in on a listener that has it', async () => {
      await using broker = await open({ localTls });
      const client = await broker.served.connect();
      client.send(hello);
      await assertLoggedIn(client);
    });

    it('refuses bytes in clear behind an SSLRequest (CVE-2021-23214)', async () => {
      await using broker = await open({ localTls });
      const client = await broker.served.connect();
      client.send(sslRequest, hello);
      // One by one, the answer is on its way before the bytes are there: then they are no TLS handshake.
      const told = await client.rest();
      client.end();
      assert.notEqual(told.toString('latin1', 0, 2), 'SR');
      assert.equal((await broker.served.ended()).outcome, 'CLIENT_PROTOCOL');
      assert.equal(broker.fake.connections, 0);
      if (pace === 'as they come') assert.equal(fieldsOf(messagesOf(told)[0]?.body ?? told)['C'], '08P01');
    });

    it('takes direct TLS with the ALPN protocol "postgresql", and says no to an SSLRequest inside', async () => {
      await using broker = await open({ localTls });
      const client = await broker.served.connect();
      const secure = await client.startTls(['postgresql']);
      assert.equal(secure.alpnProtocol, 'postgresql');
      client.send(sslRequest);
      assert.equal((await client.read(1)).toString(), 'N');
      client.send(hello);
      await assertLoggedIn(client);
    });

    it('refuses direct TLS without ALPN, inside TLS', async () => {
      await using broker = await open({ localTls });
      const client = await broker.served.connect();
      await client.startTls();
      assert.equal((await refusalOf(client))['C'], '08P01');
      assert.equal((await broker.served.ended()).outcome, 'CLIENT_PROTOCOL');
    });

    it('refuses direct TLS for another protocol with the alert no_application_protocol', async () => {
      await using broker = await open({ localTls });
      const client = await broker.served.connect();
      await assert.rejects(client.startTls(['h2']), { code: 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL' });
      assert.equal((await broker.served.ended()).outcome, 'CLIENT_PROTOCOL');
    });

    it('refuses direct TLS with an alert when it has no certificate', async () => {
      await using broker = await open();
      const client = await broker.served.connect();
      // The head of a ClientHello; the rest makes no difference, and lies unread.
      client.send(Buffer.of(0x16, 3, 1, 2, 0), Buffer.alloc(512));
      assert.equal((await client.rest()).toString('hex'), '15030100020228');
      client.end();
      assert.equal(client.error, undefined);
      assert.equal((await broker.served.ended()).outcome, 'CLIENT_PROTOCOL');
    });

    it('ends a client at once that leaves in the middle of its TLS handshake', async () => {
      await using broker = await open({ localTls });
      const client = await broker.served.connect();
      client.send(sslRequest);
      assert.equal((await client.read(1)).toString(), 'S');
      client.end();
      const { outcome, seconds } = await broker.served.ended();
      assert.equal(outcome, 'CLIENT_CLOSED');
      assert.ok(seconds < 5, `took ${seconds} s`);
    });

    it('refuses other versions than 3 and names those it speaks', async () => {
      await using broker = await open();
      for (const version of [0, 0x0002_0000, 0x0004_0000, 0x0001_0000, -1]) {
        const client = await broker.served.connect();
        client.send(startup([['user', 'whoever']], version));
        const { S, V, C, M } = await refusalOf(client);
        assert.deepEqual([S, V, C], ['FATAL', 'FATAL', '0A000']);
        assert.match(M ?? '', /unsupported frontend protocol \d+\.\d+: this server supports 3\.0 to 3\.2/);
      }
    });

    for (const { version, options, negotiated, keyBytes } of [
      { version: 0x0003_0000, options: [], negotiated: undefined, keyBytes: 4 },
      { version: 0x0003_0001, options: [], negotiated: undefined, keyBytes: 4 },
      { version: 0x0003_0002, options: [], negotiated: undefined, keyBytes: 32 },
      { version: 0x0003_0003, options: [], negotiated: int32(0x0003_0002, 0), keyBytes: 32 },
      { version: 0x0003_270f, options: [], negotiated: int32(0x0003_0002, 0), keyBytes: 32 },
      { version: 0x0003_ffff, options: [], negotiated: int32(0x0003_0002, 0), keyBytes: 32 },
      {
        version: 0x0003_0000,
        options: ['_pq_.foo'],
        negotiated: Buffer.concat([int32(0x0003_0000, 1), cstring('_pq_.foo')]),
        keyBytes: 4,
      },
      {
        version: 0x0003_270f,
        options: ['_pq_.foo', '_pq_.'],
        negotiated: Buffer.concat([int32(0x0003_0002, 2), cstring('_pq_.foo'), cstring('_pq_.')]),
        keyBytes: 32,
      },
    ])
      it(`negotiates version 0x${version.toString(16)} with the options [${options.join(' ')}] as PostgreSQL 18 does`, async () => {
        let asked: [string, string][] = [];
        await using broker = await open();
        broker.fake.script = async (server) => {
          const { code, body } = await server.packet();
          assert.equal(code, 0x0003_0000);
          const texts = body.toString('latin1').split('\0');
          asked = texts.flatMap((text, i): [string, string][] =>
            i % 2 === 0 ? [[text, texts[i + 1] ?? '']] : [],
          );
          server.send(authentication(0), backendKey(7, Buffer.alloc(4)), readyForQuery);
        };
        const client = await broker.served.connect();
        client.send(
          startup([['user', 'whoever'], ...options.map((name): [string, string] => [name, 'x'])], version),
        );
        const messages = await readUntil(client, 'ZE');
        const first = messages.shift();
        if (negotiated) {
          assert.deepEqual(first?.bytes, message('v', negotiated));
          messages.shift();
        }
        assert.equal(messages.map(({ type }) => type).join(''), 'KZ');
        assert.equal(messages[0]?.body.length, 4 + keyBytes);
        assert.deepEqual(
          asked.filter(([name]) => name.startsWith('_pq_')),
          [],
        );
      });

    it('sends the real user, and of names that come twice the last value', async () => {
      await using broker = await open();
      let asked: [string, string][] = [];
      broker.fake.script = async (server) => {
        asked = await server.startup();
        server.send(authentication(0), readyForQuery);
      };
      const client = await broker.served.connect();
      client.send(
        startup([
          ['database', 'first'],
          ['options', '-c geqo=off'],
          ['user', 'one'],
          ['application_name', 'a'],
          ['database', 'second'],
          ['user', 'two'],
          ['options', '-c jit=off'],
          ['application_name', 'b'],
        ]),
      );
      await readUntil(client, 'ZE');
      assert.deepEqual(asked, [
        ['user', 'app'],
        ['database', 'second'],
        ['application_name', 'a'],
        ['application_name', 'b'],
        ['options', '-c jit=off'],
      ]);
    });

    it('takes USER for a setting like any other: names are compared as they are written', async () => {
      await using broker = await open();
      let asked: [string, string][] = [];
      broker.fake.script = async (server) => {
        asked = await server.startup();
        server.send(authentication(0), readyForQuery);
      };
      const client = await broker.served.connect();
      client.send(
        startup([
          ['user', 'whoever'],
          ['USER', 'postgres'],
        ]),
      );
      await readUntil(client, 'ZE');
      assert.deepEqual(asked, [
        ['user', 'app'],
        ['database', 'whoever'],
        ['USER', 'postgres'],
      ]);
    });

    it('takes the user name that the client gave for its database, never the real one', async () => {
      await using broker = await open();
      let asked: [string, string][] = [];
      broker.fake.script = async (server) => {
        asked = await server.startup();
        server.send(authentication(0), readyForQuery);
      };
      for (const parameters of [
        [['user', 'whoever']],
        [
          ['user', 'whoever'],
          ['database', ''],
        ],
      ] as [string, string][][]) {
        const client = await broker.served.connect();
        client.send(startup(parameters));
        await readUntil(client, 'ZE');
        assert.deepEqual(asked, [
          ['user', 'app'],
          ['database', 'whoever'],
        ]);
      }
    });

    it('refuses a client that names neither user nor database', async () => {
      await using broker = await open();
      for (const parameters of [[], [['application_name', 'x']], [['user', '']]] as [string, string][][]) {
        const client = await broker.served.connect();
        client.send(startup(parameters));
        assert.equal((await refusalOf(client))['C'], '28000');
      }
      assert.equal(broker.fake.connections, 0);
    });

    for (const [name, list] of Object.entries({
      'without any name/value list': Buffer.alloc(0),
      'without its last zero byte': Buffer.concat([cstring('user'), cstring('a')]),
      'with a name that has no value': Buffer.concat([cstring('user'), Buffer.of(0)]).subarray(0, 5),
      'with a value that does not end': Buffer.concat([cstring('user'), Buffer.from('abc')]),
      'with a byte behind the list': Buffer.concat([cstring('user'), cstring('a'), Buffer.of(0, 1)]),
      'with two zero bytes at the end': Buffer.concat([cstring('user'), cstring('a'), Buffer.of(0, 0)]),
      'with a list that ends twice': Buffer.concat([
        Buffer.of(0),
        cstring('user'),
        cstring('a'),
        Buffer.of(0),
      ]),
    }))
      it(`refuses a start-up message ${name}`, async () => {
        await using broker = await open();
        const client = await broker.served.connect();
        client.send(packet(int32(0x0003_0000), list));
        const { C, M } = await refusalOf(client);
        assert.equal(C, '08P01');
        assert.match(M ?? '', /invalid startup packet layout/);
      });

    for (const length of [0, 1, 2, 3, 4, 5, 6, 7, 10_005, 0x0fff_ffff, 0x7fff_ffff, -0x8000_0000, -4, -1])
      it(`refuses the length ${length}`, async () => {
        await using broker = await open();
        const client = await broker.served.connect();
        client.send(int32(length), Buffer.alloc(64));
        const { C, M } = await refusalOf(client);
        assert.equal(C, '08P01');
        assert.match(M ?? '', /invalid length of startup packet/);
        assert.equal((await broker.served.ended()).outcome, 'CLIENT_PROTOCOL');
      });

    it('takes a start-up message of 10004 bytes, the longest that a server takes', async () => {
      await using broker = await open();
      const client = await broker.served.connect();
      const short = startup([
        ['user', 'whoever'],
        ['application_name', ''],
      ]);
      const longest = startup([
        ['user', 'whoever'],
        ['application_name', 'x'.repeat(10_004 - short.length)],
      ]);
      assert.equal(longest.length, 10_004);
      client.send(longest);
      await assertLoggedIn(client);
    });

    it('tells a silent client at the deadline that it was too slow', async () => {
      await using broker = await open({ loginTimeout: 100 });
      const client = await broker.served.connect();
      const { C, M } = await refusalOf(client);
      assert.equal(C, '57P03');
      assert.match(M ?? '', /the start-up message took longer than 0\.1 s/);
      assert.equal((await broker.served.ended()).outcome, 'TIMEOUT');
    });

    it('gives a client that drips no more time than a silent one', async () => {
      await using broker = await open({ loginTimeout: 200 });
      const client = await broker.served.connect();
      let sent = 0;
      const drip = setInterval(() => client.send(hello.subarray(sent, (sent += 1))), 20);
      try {
        assert.equal((await refusalOf(client))['C'], '57P03');
        assert.ok(sent < hello.length);
      } finally {
        clearInterval(drip);
      }
    });

    it('tells a client that is silent inside TLS, too', async () => {
      await using broker = await open({ localTls, loginTimeout: 2000 });
      const client = await broker.served.connect();
      client.send(sslRequest);
      await client.read(1);
      await client.startTls();
      assert.equal((await refusalOf(client))['C'], '57P03');
    });

    it('ends a client that is silent in the middle of its TLS handshake', async () => {
      await using broker = await open({ localTls, loginTimeout: 1000 });
      const client = await broker.served.connect();
      client.send(sslRequest);
      await client.read(1);
      client.send(Buffer.of(0x16, 3, 1));
      await client.rest();
      assert.equal((await broker.served.ended()).outcome, 'TIMEOUT');
    });

    it('ends quietly with a client that leaves, wherever it was in its packets', async () => {
      await using broker = await open();
      const packets = Buffer.concat([gssRequest, sslRequest, hello]);
      let sessions = 0;
      for (let length = 0; length < packets.length; length += 1) {
        const client = await broker.served.connect();
        client.send(packets.subarray(0, length));
        if (length % 2 === 0) client.end();
        else {
          await until('the bytes to be on their way', () => client.socket.writableLength === 0);
          client.reset();
        }
        sessions += 1;
        assert.equal((await broker.served.ended(sessions)).outcome, 'CLIENT_CLOSED', `after ${length} bytes`);
        if (length % 2 === 0) assert.doesNotMatch((await client.rest()).toString('latin1'), /E/);
      }
      assert.equal(broker.fake.connections, 0);
    });

    for (const keyBytes of [0, 257, 300])
      it(`refuses a CancelRequest with a key of ${keyBytes} bytes`, async () => {
        await using broker = await open();
        const client = await broker.served.connect();
        client.send(cancelRequest(1, Buffer.alloc(keyBytes)));
        const { C, M } = await refusalOf(client);
        assert.equal(C, '08P01');
        assert.match(M ?? '', /invalid cancel request/);
      });

    it('refuses a CancelRequest without a process id', async () => {
      await using broker = await open();
      for (const rest of [0, 1, 3]) {
        const client = await broker.served.connect();
        client.send(packet(int32(80877102), Buffer.alloc(rest)));
        assert.equal((await refusalOf(client))['C'], '08P01');
      }
    });

    it('says nothing to a CancelRequest with an unknown key, in clear, behind requests and inside TLS', async () => {
      await using broker = await open({ localTls });
      const inClear = await broker.served.connect();
      inClear.send(cancelRequest(1, Buffer.alloc(4)));
      assert.equal((await inClear.rest()).length, 0);
      inClear.end();

      const inside = await broker.served.connect();
      inside.send(gssRequest);
      await inside.read(1);
      inside.send(sslRequest);
      await inside.read(1);
      await inside.startTls();
      inside.send(cancelRequest(1, Buffer.alloc(32)));
      assert.equal((await inside.rest()).length, 0);
      inside.end();

      await broker.served.ended(2);
      assert.deepEqual(
        broker.served.endings.map(({ outcome, cancel }) => [outcome, cancel]),
        [
          ['ok', 'unknown key'],
          ['ok', 'unknown key'],
        ],
      );
      assert.equal(broker.fake.connections, 0);
    });
  });

  describe(`what a client hears, ${pace}`, () => {
    it('is what a server would have said, in its order, and nothing before the server is ready', async () => {
      const said = [
        authentication(0),
        message('N', Buffer.from('SNOTICE\0VNOTICE\0C00000\0Mwelcome\0\0')),
        parameterStatus('server_version', '18.4'),
        parameterStatus('session_authorization', 'app'),
        parameterStatus('naïve "quoted" name', ''),
        backendKey(-2, Buffer.of(9, 8, 7, 6)),
        message('Z', Buffer.from('I')),
      ];
      const { promise: released, resolve: release } = Promise.withResolvers<void>();
      await using broker = await open();
      broker.fake.script = async (server) => {
        await server.startup();
        server.send(...said.slice(0, -1));
        await released;
        server.send(...said.slice(-1));
      };
      const client = await broker.served.connect();
      client.send(hello);
      await until('the login to be nearly done', () => broker.fake.connections === 1);
      for (let turns = 0; turns < 1000; turns += 1) await new Promise((resolve) => setImmediate(resolve));
      assert.equal(client.received.length, 0);
      release();
      const heard = await readUntil(client, 'ZE');
      for (const [i, { type, bytes, body }] of heard.entries())
        if (type === 'K') {
          assert.equal(body.readInt32BE(), -2);
          assert.notDeepEqual(body.subarray(4), Buffer.of(9, 8, 7, 6), 'the real cancel key was given away');
        } else assert.deepEqual(bytes, said[i]);
      assert.equal(heard.length, said.length);
    });

    it('is the session itself after that, both ways', async () => {
      await using broker = await open();
      broker.fake.script = loginWith(trust, [readyForQuery], async (server) => {
        const query = await readMessage(server);
        server.send(message('C', query.body));
      });
      const client = await broker.served.connect();
      // A client that does not wait for the answer before its first query.
      client.send(hello, message('Q', cstring('select 1')));
      await readUntil(client, 'Z');
      assert.deepEqual((await readMessage(client)).bytes, message('C', cstring('select 1')));
      client.end();
      assert.equal((await client.rest()).length, 0);
      const report = await broker.served.ended();
      assert.equal(report.outcome, 'ok');
      assert.deepEqual([report.bytesFromClient, report.bytesFromUpstream], [14, 14]);
    });
  });
}
