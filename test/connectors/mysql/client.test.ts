import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { createSecureContext } from 'node:tls';
import fc from 'fast-check';

import { PosternError } from '../../../src/core/errors.ts';
import {
  broker,
  clientFlags,
  err,
  failure,
  flag,
  greetWith,
  int,
  letIn,
  logIn,
  mariadbFlags,
  mysqlFlags,
  nativeAnswer,
  ok,
  packet,
  readError,
  readGreeting,
  response,
  salt,
  sha2Answer,
  sslRequest,
  Wire,
} from '../../support/fake-mysql.ts';
import { canary, certificates } from '../../support/servers.ts';
import { paces, until } from '../../support/session.ts';

const { server: leaf } = await certificates();
const localTls = createSecureContext({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) });

/** A server that is left in order, and says so. */
function leavable(left: { quit: boolean }) {
  return letIn(async (server, login) => {
    assert.equal(login.user, 'real_app');
    const command = await new Wire(server).read();
    left.quit = command.equals(Buffer.of(1));
  });
}

for (const pace of paces)
  describe(`the client of a MySQL service, ${pace}`, () => {
    for (const { server, offered, options } of [
      {
        server: 'MySQL',
        offered: mysqlFlags & ~(flag.ssl | flag.compress | flag.zstd | flag.multiFactor | flag.localFiles),
        options: { version: '9.7.4', flags: mysqlFlags & ~flag.ssl, extended: 0 },
      },
      {
        server: 'MariaDB',
        offered: mariadbFlags & ~(flag.ssl | flag.compress | flag.localFiles),
        options: { version: '11.8.6-MariaDB', flags: mariadbFlags & ~flag.ssl, extended: 0x3d },
      },
    ])
      it(`is greeted with what ${server} said, less what cannot pass`, async () => {
        await using brokered = await broker(
          greetWith(options, (wire) => wire.send(ok())),
          { pace },
        );
        const client = await brokered.connect();
        const { greeting: greeted, answer } = await logIn(client);
        assert.equal(greeted.version, options.version);
        assert.equal(greeted.id, 4711);
        // 29, CAPABILITY_EXTENSION, has no meaning yet.
        assert.equal(greeted.flags, ((offered & ~(1 << 29)) | 0) >>> 0);
        assert.equal(greeted.extended, options.extended);
        assert.deepEqual(
          [greeted.collation, greeted.status, greeted.plugin],
          [45, 2, 'mysql_native_password'],
        );
        assert.notDeepEqual(greeted.salt, salt);
        assert.ok(greeted.salt.every((byte) => byte > 0 && byte < 128 && byte !== 0x24));
        assert.deepEqual(answer, ok());
        client.peer.end();
      });

    for (const [what, options] of Object.entries({
      'no password': {},
      'a native answer to any password': { authData: nativeAnswer('whatever') },
      'caching_sha2_password and no password': { plugin: 'caching_sha2_password' },
      'caching_sha2_password and one zero byte': {
        plugin: 'caching_sha2_password',
        authData: Buffer.of(0),
      },
      'a plugin that nobody knows': { plugin: 'made_up', authData: Buffer.from('anything') },
    }))
      it(`is let in with ${what}, by an OK and nothing before it`, async () => {
        await using brokered = await broker(letIn(), { pace });
        const client = await brokered.connect();
        assert.deepEqual((await logIn(client, options)).answer, ok());
        client.peer.end();
        assert.equal((await brokered.served.ended()).outcome, 'ok');
      });

    it('is told first that its proof was right when it made one by caching_sha2_password', async () => {
      await using brokered = await broker(letIn(), { pace });
      const client = await brokered.connect();
      const login = { plugin: 'caching_sha2_password', authData: sha2Answer('whatever') };
      assert.deepEqual((await logIn(client, login)).answer, Buffer.of(1, 3));
      assert.deepEqual(await client.read(), ok());
      client.peer.end();
    });

    it('reaches the server byte for byte after the login, and the other way round', async () => {
      await using brokered = await broker(
        letIn(async (server) => {
          const command = new Wire(server);
          assert.deepEqual(await command.read(), Buffer.from('\x03select 1'));
          command.send(Buffer.from('one'), Buffer.from('two'));
        }),
        { pace },
      );
      const client = await brokered.connect();
      await logIn(client);
      client.next = 0;
      client.send(Buffer.from('\x03select 1'));
      assert.deepEqual(await client.read(), Buffer.from('one'));
      assert.deepEqual(await client.read(), Buffer.from('two'));
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'ok');
    });

    it('gets TLS where the service has it, with the sequence ids going on inside', async () => {
      await using brokered = await broker(letIn(), { pace, localTls });
      const client = await brokered.connect();
      assert.ok(readGreeting(await client.read()).flags & flag.ssl);
      client.send(sslRequest());
      await client.peer.startTls();
      client.send(response({ flags: clientFlags | flag.ssl }));
      assert.deepEqual(await client.read(), ok());
      client.peer.end();
      await brokered.served.ended();
      assert.equal(brokered.served.endings[0]?.['clientTls'], true);
    });

    it('is not heard when it sends its answer in clear behind its request for TLS', async () => {
      const left = { quit: false };
      await using brokered = await broker(leavable(left), { pace, localTls });
      const client = await brokered.connect();
      await client.read();
      client.peer.send(packet(1, sslRequest()), packet(2, response()));
      // An alert of TLS at most, no OK.
      assert.ok((await client.peer.rest()).length <= 7);
      client.peer.end();
      await until('the server to be left in order', () => left.quit);
      assert.equal((await brokered.served.ended()).outcome, 'CLIENT_PROTOCOL');
    });

    it('may begin its TLS handshake together with its request for it', async () => {
      await using brokered = await broker(letIn(), { pace, localTls });
      const client = await brokered.connect();
      await client.read();
      client.peer.socket.cork();
      client.send(sslRequest());
      const secure = client.peer.startTls();
      setImmediate(() => client.peer.socket.uncork());
      await secure;
      client.send(response({ flags: clientFlags | flag.ssl }));
      assert.deepEqual(await client.read(), ok());
      client.peer.end();
    });

    it('is told that there is no TLS when it asks for it unoffered, and the server is left in order', async () => {
      const left = { quit: false };
      await using brokered = await broker(leavable(left), { pace });
      const client = await brokered.connect();
      assert.equal(readGreeting(await client.read()).flags & flag.ssl, 0);
      client.send(sslRequest());
      const told = readError(await client.read());
      assert.deepEqual([told.code, told.sqlstate], [1043, '08S01']);
      assert.match(told.message, /listenTls/);
      client.peer.end();
      await until('the server to be left in order', () => left.quit);
    });

    for (const [what, bytes, code] of [
      ['sends its answer out of order', packet(5, response()), 1156],
      ['says that its answer has 16 MB', Buffer.of(0xff, 0xff, 0xff, 1), 1043],
      ['says that its answer has 200 KB', Buffer.concat([int(3, 200_000), Buffer.of(1)]), 1043],
      ['sends a user without an end', packet(1, sslRequest(clientFlags), Buffer.from('endless')), 1043],
      ['sends three bytes', packet(1, Buffer.of(0, 2, 0)), 1043],
      ['sends nothing at all', packet(1), 1043],
      ['names a database that the service does not allow', packet(1, response({ database: 'other' })), 1044],
    ] as const)
      it(`is told why when it ${what}, and the server is left in order`, async () => {
        const left = { quit: false };
        await using brokered = await broker(leavable(left), { pace, settings: { databases: ['app'] } });
        const client = await brokered.connect();
        await client.read();
        client.peer.send(bytes);
        const head = await client.peer.read(4);
        const told = readError(await client.peer.read(head.readUIntLE(0, 3)));
        assert.equal(told.code, code);
        assert.ok(told.sqlstate);
        client.peer.end();
        await until('the server to be left in order', () => left.quit);
        assert.notEqual((await brokered.served.ended()).outcome, 'ok');
      });

    it('from before MySQL 4.1 is told so, without a SQLSTATE that it would show as text', async () => {
      await using brokered = await broker(leavable({ quit: false }), { pace });
      const client = await brokered.connect();
      await client.read();
      client.send(Buffer.from('0500000001726f6f7400', 'hex'));
      const told = readError(await client.read());
      assert.deepEqual([told.code, told.sqlstate], [1251, undefined]);
      client.peer.end();
    });

    it('that leaves without a word costs the server no failed connection', async () => {
      const left = { quit: false };
      await using brokered = await broker(leavable(left), { pace });
      const client = await brokered.connect();
      client.peer.end();
      await until('the server to be left in order', () => left.quit);
      assert.equal((await brokered.served.ended()).outcome, 'CLIENT_CLOSED');
    });

    it('that never answers hears so at the deadline', async () => {
      await using brokered = await broker(
        greetWith({}, () => {}),
        { pace, loginTimeout: 2000 },
      );
      const client = await brokered.connect();
      await client.read();
      const told = readError(await client.read());
      assert.deepEqual([told.code, told.sqlstate], [1159, '08S01']);
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'TIMEOUT');
    });

    it('hears after a greeting of Postern that there is no place', async () => {
      await using brokered = await broker(letIn(), { pace, maxConnections: 1 });
      const first = await brokered.connect();
      await logIn(first);
      const told = await failure(await brokered.connect());
      assert.deepEqual([told.code, told.sqlstate], [1040, '08004']);
      first.peer.end();
      await brokered.served.ended(2);
    });

    it('hears over TLS, too, that there is no place', async () => {
      await using brokered = await broker(letIn(), { pace, localTls, maxConnections: 0 });
      const client = await brokered.connect();
      await client.read();
      client.send(sslRequest());
      await client.peer.startTls();
      client.send(response({ flags: clientFlags | flag.ssl }));
      assert.equal(readError(await client.read()).code, 1040);
      client.peer.end();
    });

    for (const [code, number, sqlstate] of [
      ['PROVIDER_FAILED', 1045, '28000'],
      ['PROVIDER_UNAVAILABLE', 1158, '08S01'],
    ] as const)
      it(`hears of a provider's failure (${code}) as error ${number}`, async () => {
        let asked = 0;
        await using brokered = await broker(letIn(), {
          pace,
          credentials: () => {
            if (asked++ === 0) return { username: 'real_app', password: canary.mysql };
            throw new PosternError(code, 'provider "vault" is on fire');
          },
        });
        const told = await failure(await brokered.connect());
        assert.deepEqual([told.code, told.sqlstate], [number, sqlstate]);
        assert.match(told.message, /on fire/);
        assert.equal((await brokered.served.ended()).outcome, code);
      });

    it('hears that the server cannot be reached, and not where it is', async () => {
      await using brokered = await broker(letIn(), { pace, settings: { port: 1 } });
      const told = await failure(await brokered.connect());
      assert.deepEqual([told.code, told.sqlstate], [1158, '08S01']);
      assert.doesNotMatch(told.message, /127\.0\.0\.1/);
    });

    it('hears an error that the server sends in place of its greeting', async () => {
      await using brokered = await broker(
        (server) => {
          server.send(packet(0, err(1040, undefined, 'Too many connections')));
          server.end();
        },
        { pace },
      );
      const told = await failure(await brokered.connect());
      assert.deepEqual([told.code, told.sqlstate, told.message], [1040, '08004', 'Too many connections']);
    });

    it('that stays silent after a greeting of Postern hears the error all the same', async () => {
      await using brokered = await broker(letIn(), { pace, settings: { port: 1 } });
      const client = await brokered.connect();
      await client.read();
      assert.equal(readError(await client.read()).code, 1158);
      client.peer.end();
    });
  });

describe('a client that sends anything', () => {
  it('ends in an error or a close, and leaves nothing behind', async () => {
    await using brokered = await broker(
      greetWith({}, (wire) => wire.send(ok())),
      { loginTimeout: 200, localTls },
    );
    const wild = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.uint8Array({ maxLength: 200 }).map((rest) => packet(1, rest)),
      fc.tuple(fc.integer({ min: 0, max: 80 }), fc.integer({ min: 0, max: 255 })).map(([at, byte]) => {
        const bytes = packet(1, response({ database: 'app' }));
        bytes[at] = byte;
        return bytes;
      }),
    );
    await fc.assert(
      fc.asyncProperty(wild, async (bytes) => {
        const client = await brokered.connect();
        client.peer.send(bytes);
        client.peer.end();
        await client.peer.rest();
      }),
      { numRuns: 150 },
    );
    for (const { error } of brokered.served.endings) assert.notEqual(error, 'unexpected failure');
  });
});
