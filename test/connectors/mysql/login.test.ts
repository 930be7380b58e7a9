import assert from 'node:assert/strict';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { createSecureContext } from 'node:tls';
import fc from 'fast-check';

import {
  acceptTls,
  authSwitch,
  broker,
  clientFlags,
  err,
  failure,
  flag,
  greeting,
  greetWith,
  lenenc,
  letIn,
  logIn,
  mariadbFlags,
  more,
  mysqlFlags,
  nativeAnswer,
  ok,
  packet,
  type Response,
  readResponse,
  response,
  type Script,
  sha2Answer,
  Wire,
} from '../../support/fake-mysql.ts';
import { canary, certificates } from '../../support/servers.ts';
import { paces, until } from '../../support/session.ts';

const { server: leaf, ca } = await certificates();
const serverTls = createSecureContext({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) });
const otherSalt = Buffer.from('abcdefghijklmnopqrst');
const switchTo = (plugin: string, data: Uint8Array = otherSalt) =>
  authSwitch(plugin, Buffer.concat([data, Buffer.of(0)]));

for (const pace of paces) {
  const open = (script: Script, settings: Record<string, unknown> = {}, options = {}) =>
    broker(script, { pace, settings, ...options });

  describe(`a login at a MySQL server, ${pace}`, () => {
    it('says who the service is, and of the session exactly what the client asked for', async () => {
      let said: Response | undefined;
      await using brokered = await open(
        greetWith({}, (wire, response) => {
          said = response;
          wire.send(ok());
        }),
        { programName: 'postern/' },
      );
      const client = await brokered.connect();
      const attributes = [
        ['program_name', 'shop'],
        ['_pid', '7'],
        ['_pid', '8'],
      ] as const;
      await logIn(client, { user: 'whoever', database: 'app', attributes });
      assert.ok(said);
      assert.equal(said.user, 'real_app');
      assert.deepEqual(said.authData, nativeAnswer(canary.mysql));
      assert.equal(said.plugin, 'mysql_native_password');
      assert.equal(said.database, 'app');
      assert.deepEqual(said.attributes, { program_name: 'postern/shop', _pid: '7' });
      assert.deepEqual([said.collation, said.maxPacket], [45, 0x1000000]);
      const ours =
        flag.protocol41 | flag.secureConnection | flag.pluginAuth | flag.attributes | flag.lenencAuth;
      const masked = flag.localFiles | flag.compress | flag.ssl | flag.zstd | flag.multiFactor;
      assert.equal(said.flags, ((clientFlags & ~masked) | ours | flag.connectWithDatabase) >>> 0);
      client.peer.end();
    });

    for (const [what, flags] of Object.entries({
      'query attributes, deprecated EOF and session tracking':
        flag.queryAttributes | flag.deprecateEof | flag.sessionTrack,
      'none of them': 0,
      'what was not offered': flag.multiFactor | flag.compress | flag.zstd,
    }))
      it(`mirrors a client with ${what}`, async () => {
        let said = 0;
        const mirrored = flag.queryAttributes | flag.deprecateEof | flag.sessionTrack;
        await using brokered = await open(
          greetWith({}, (wire, response) => {
            said = response.flags;
            wire.send(ok());
          }),
        );
        const client = await brokered.connect();
        await logIn(client, { flags: 0x0006f3cf | flag.pluginAuth | flag.lenencAuth | flags });
        assert.equal(said & mirrored, flags & mirrored);
        assert.equal(said & (flag.multiFactor | flag.compress | flag.zstd), 0);
        client.peer.end();
      });

    it("mirrors what a MariaDB client takes of its server's extensions", async () => {
      let said = 0;
      await using brokered = await open(
        greetWith({ flags: mariadbFlags & ~flag.ssl, extended: 0x3d }, (wire, response) => {
          said = response.extended;
          wire.send(ok());
        }),
      );
      const client = await brokered.connect();
      await logIn(client, { flags: 0x01bea302, extended: 0xff0c });
      assert.equal(said, 0x0c);
      client.peer.end();
    });

    it('pins the database of the configuration', async () => {
      let said: string | undefined;
      await using brokered = await open(
        greetWith({}, (wire, { database }) => {
          said = database;
          wire.send(ok());
        }),
        { database: 'büro' },
      );
      const client = await brokered.connect();
      await logIn(client, { database: 'other' });
      assert.equal(Buffer.from(said ?? '', 'latin1').toString(), 'büro');
      client.peer.end();
    });

    it('answers each switch with the newest salt, up to five of them', async () => {
      await using brokered = await open(
        greetWith({ plugin: 'caching_sha2_password' }, async (wire, response) => {
          assert.deepEqual(response.authData, sha2Answer(canary.mysql));
          for (let i = 0; i < 4; i += 1) {
            const fresh = Buffer.alloc(20, 65 + i);
            wire.send(switchTo('caching_sha2_password', fresh));
            assert.deepEqual(await wire.read(), sha2Answer(canary.mysql, fresh));
          }
          wire.send(switchTo('mysql_native_password'));
          assert.deepEqual(await wire.read(), nativeAnswer(canary.mysql, otherSalt));
          wire.send(ok());
        }),
      );
      const client = await brokered.connect();
      assert.deepEqual((await logIn(client)).answer, ok());
      client.peer.end();
      await brokered.served.ended();
      assert.equal(brokered.served.endings[0]?.['auth'], 'mysql_native_password');
    });

    it('takes the word that its proof was right, and keeps it to itself', async () => {
      await using brokered = await open(
        greetWith({ plugin: 'caching_sha2_password' }, (wire) => wire.send(more(3), ok())),
      );
      const client = await brokered.connect();
      assert.deepEqual((await logIn(client)).answer, ok());
      client.peer.end();
    });

    it('asks for the plugin of the account where it does not know that of the greeting', async () => {
      await using brokered = await open(
        greetWith({ plugin: 'made_up' }, async (wire, response) => {
          assert.deepEqual([response.plugin, response.authData.length], ['', 0]);
          wire.send(switchTo('mysql_native_password'));
          assert.deepEqual(await wire.read(), nativeAnswer(canary.mysql, otherSalt));
          wire.send(ok());
        }),
      );
      const client = await brokered.connect();
      assert.deepEqual((await logIn(client)).answer, ok());
      client.peer.end();
    });

    it('shows no answer of a plugin that is weaker than the service accepts', async () => {
      await using brokered = await open(
        greetWith({}, async (wire, response) => {
          assert.deepEqual([response.plugin, response.authData.length], ['', 0]);
          wire.send(switchTo('mysql_native_password'));
          await wire.read();
        }),
        { minimumAuth: 'caching_sha2_password' },
      );
      const told = await failure(await brokered.connect());
      assert.deepEqual([told.code, told.sqlstate], [1045, '28000']);
      assert.match(told.message, /mysql_native_password.*minimumAuth/);
      assert.equal((await brokered.served.ended()).outcome, 'AUTH_NOT_ALLOWED');
    });

    it('takes no OK of a server that has asked for nothing where the service wants more', async () => {
      await using brokered = await open(
        greetWith({}, (wire) => wire.send(ok())),
        { minimumAuth: 'mysql_native_password' },
        { credentials: { username: 'real_app' } },
      );
      assert.match((await failure(await brokered.connect())).message, /no password/);
    });

    for (const [what, say, message] of [
      ['the password in clear', [switchTo('mysql_clear_password')], /mysql_clear_password.*allowAuth/],
      ['the password in clear, with a greeting of native', [authSwitch('dialog', Buffer.of(4))], /dialog/],
      ['the password, by a plugin that gets it encrypted', [switchTo('sha256_password')], /sha256_password/],
      ['a hash from before MySQL 4.1', [Buffer.of(0xfe)], /mysql_old_password/],
      ['a second factor', [Buffer.from('\x02made_up\0')], /multi-factor/],
      ['a plugin that nobody knows', [switchTo('made_up')], /"made_up"/],
      ['a plugin whose name steers terminals', [switchTo('\x1b[2Jx')], /"\?\[2Jx"/],
      ['Kerberos', [switchTo('authentication_kerberos_client')], /Kerberos/],
    ] as const)
      it(`refuses a server that asks for ${what}`, async () => {
        let answered = 0;
        await using brokered = await open(
          greetWith({}, async (wire) => {
            wire.send(...say);
            await wire.read();
            answered += 1;
          }),
        );
        const told = await failure(await brokered.connect());
        assert.deepEqual([told.code, told.sqlstate], [1045, '28000']);
        assert.match(told.message, message);
        assert.equal(answered, 0);
        assert.equal((await brokered.served.ended()).outcome, 'AUTH_NOT_ALLOWED');
      });

    it('shows no password when the server asks for all of it (01 04) and there is no TLS', async () => {
      let shown: Buffer | undefined;
      await using brokered = await open(
        greetWith({ plugin: 'caching_sha2_password' }, async (wire) => {
          wire.send(more(4));
          shown = await wire.read();
        }),
      );
      assert.match((await failure(await brokered.connect())).message, /allowPublicKeyRetrieval/);
      assert.equal(shown, undefined);
    });

    it('encrypts the password to a key that the server sends where that is allowed', async () => {
      const { publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
      const pem = Buffer.from(publicKey.export({ type: 'spki', format: 'pem' }) as string);
      await using brokered = await open(
        greetWith({ plugin: 'caching_sha2_password' }, async (wire) => {
          wire.send(more(4));
          assert.deepEqual(await wire.read(), Buffer.of(2));
          wire.send(Buffer.concat([Buffer.of(1), pem]));
          assert.equal((await wire.read()).length, 256);
          wire.send(ok());
        }),
        { allowPublicKeyRetrieval: true },
      );
      const client = await brokered.connect();
      assert.deepEqual((await logIn(client)).answer, ok());
      client.peer.end();
    });

    for (const [what, say] of [
      ['switches without end', Array.from({ length: 6 }, () => switchTo('mysql_native_password'))],
      ['goes on where the plugin is at its end', [more(3)]],
      ['sends an empty packet', [Buffer.alloc(0)]],
      [
        'sends a switch with a salt of no length that there is',
        [authSwitch('mysql_native_password', Buffer.alloc(3))],
      ],
      ['sends a malformed OK', [Buffer.of(0, 0xff)]],
      ['sends an OK that is cut off', [Buffer.of(0, 0, 0)]],
    ] as const)
      it(`ends with a server that ${what}`, async () => {
        await using brokered = await open(
          greetWith({}, async (wire) => {
            for (const [i, packet] of say.entries()) {
              wire.send(packet);
              if (i < say.length - 1) await wire.read();
            }
          }),
        );
        const told = await failure(await brokered.connect());
        assert.deepEqual([told.code, told.sqlstate], [1105, 'HY000']);
        assert.equal((await brokered.served.ended()).outcome, 'UPSTREAM_PROTOCOL');
      });

    for (const [what, bytes] of [
      ['says that its greeting has 16 MB', Buffer.of(0xff, 0xff, 0xff, 0)],
      ['greets with another sequence id', packet(1, greeting())],
      ['speaks protocol 9', packet(0, Buffer.of(9), greeting().subarray(1))],
      ['greets with two bytes', packet(0, Buffer.of(10, 0))],
      ['is no MySQL', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
    ] as const)
      it(`tells the client of a server that ${what}`, async () => {
        await using brokered = await open((server) => server.send(bytes), {}, { loginTimeout: 1000 });
        const told = await failure(await brokered.connect());
        assert.ok([1105, 1159].includes(told.code), `${told.code}`);
      });

    it('tells the client at the deadline of a server that stays silent after the greeting', async () => {
      await using brokered = await open(
        greetWith({}, () => {}),
        {},
        { loginTimeout: 3000 },
      );
      assert.equal((await failure(await brokered.connect())).code, 1159);
    });

    it('tells the client soon of a server that does not greet, and that is a matter of connectTimeout', async () => {
      await using brokered = await open(() => {}, { connectTimeout: '100ms' });
      assert.equal((await failure(await brokered.connect())).code, 1158);
      assert.equal((await brokered.served.ended()).outcome, 'UPSTREAM_UNREACHABLE');
    });

    it('takes the next host when one closes without a greeting, or has too many connections', async () => {
      let connection = 0;
      await using brokered = await open((server) => {
        connection += 1;
        if (connection === 1) return server.end();
        if (connection > 2) return letIn()(server);
        server.send(packet(0, err(1040, undefined, 'Too many connections')));
        return server.end();
      });
      const { port } = brokered.fake;
      await using three = await open(() => {}, { host: [1, 2, 3].map(() => `127.0.0.1:${port}`) });
      const client = await three.connect();
      assert.deepEqual((await logIn(client)).answer, ok());
      assert.equal(connection, 3);
      client.peer.end();
      await three.served.ended();
    });

    for (const [what, tail, rewritten] of [
      ['a proof of the password', [lenenc(`\x01${'ab'.repeat(32)}`)], ok()],
      ['a place to go to instead', [lenenc('Location: mysql://other.internal:3306/user=x')], ok()],
    ] as const)
      it(`takes ${what} out of the server's OK`, async () => {
        await using brokered = await open(greetWith({}, (wire) => wire.send(ok(...tail))));
        const client = await brokered.connect();
        assert.deepEqual((await logIn(client)).answer, rewritten);
        client.peer.end();
      });

    it('keeps what the server says of the session, and takes a redirect out of it', async () => {
      const schema = Buffer.concat([Buffer.of(1), lenenc(lenenc('app'))]);
      const charset = Buffer.concat([
        Buffer.of(0),
        lenenc(Buffer.concat([lenenc('character_set_client'), lenenc('utf8mb4')])),
      ]);
      const redirect = Buffer.concat([
        Buffer.of(0),
        lenenc(Buffer.concat([lenenc('redirect_url'), lenenc('mysql://other:3306')])),
      ]);
      const tracked = (...changes: Buffer[]) =>
        Buffer.concat([Buffer.of(0, 0, 0, 2, 0x40, 0, 0, 0), lenenc(Buffer.concat(changes))]);
      await using brokered = await open(
        greetWith({}, (wire) => wire.send(tracked(schema, redirect, charset))),
      );
      const client = await brokered.connect();
      assert.deepEqual((await logIn(client)).answer, tracked(schema, charset));
      client.peer.end();
    });

    for (const [code, sqlstate, text, told, shown] of [
      [
        1045,
        '28000',
        "Access denied for user 'real_app'@'10.0.0.7'",
        1045,
        /rejected this service's credential/,
      ],
      [
        1698,
        '28000',
        "Access denied for user 'real_app'@'10.0.0.7'",
        1045,
        /rejected this service's credential/,
      ],
      [1862, 'HY000', 'Your password has expired', 1045, /rejected this service's credential/],
      [
        1044,
        '42000',
        "Access denied for user 'real_app'@'%' to database 'app'",
        1044,
        /may not use that database/,
      ],
      [1049, '42000', "Unknown database 'nope'", 1049, /^Unknown database 'nope'$/],
      [1040, '08004', 'Too many connections', 1040, /^Too many connections$/],
      [2013, 'HY000', 'Lost connection', 1105, /^Lost connection$/],
      [1105, 'HY000', `you said ${canary.mysql}`, 1105, /refused the connection/],
    ] as const)
      it(`tells the client of error ${code} without the real user`, async () => {
        await using brokered = await open(greetWith({}, (wire) => wire.send(err(code, sqlstate, text))));
        const error = await failure(await brokered.connect());
        assert.equal(error.code, told);
        assert.match(error.message, shown);
      });

    it('tries once more with a newer credential, and the client knows nothing of it but the old id', async () => {
      let connection = 0;
      await using brokered = await open(
        (server) => {
          connection += 1;
          return greetWith({ id: connection }, async (wire, response) => {
            const right = response.authData.equals(nativeAnswer(canary.mysql));
            wire.send(right ? ok() : err(1045, '28000', 'Access denied'));
            if (!right) server.end();
          })(server);
        },
        {},
        {
          credentials: (() => {
            let fetch = 0;
            return () => ({ username: 'real_app', password: fetch++ < 2 ? 'old one' : canary.mysql });
          })(),
        },
      );
      const client = await brokered.connect();
      const { greeting: greeted, answer } = await logIn(client);
      assert.equal(greeted.id, 1);
      assert.deepEqual(answer, ok());
      assert.equal(connection, 2);
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'ok');
    });

    it('does not log in a second time at a server that cannot do what the first had offered', async () => {
      let connection = 0;
      let fetch = 0;
      await using brokered = await open(
        (server) => {
          connection += 1;
          const flags =
            connection === 1 ? mysqlFlags & ~flag.ssl : mysqlFlags & ~(flag.ssl | flag.sessionTrack);
          return greetWith({ flags }, (wire) => {
            wire.send(err(1045, '28000', 'Access denied'));
            server.end();
          })(server);
        },
        {},
        { credentials: () => ({ username: 'real_app', password: `number ${fetch++}` }) },
      );
      assert.equal((await failure(await brokered.connect())).code, 1105);
      assert.equal((await brokered.served.ended()).outcome, 'UPSTREAM_PROTOCOL');
    });

    it('says nothing of the service before TLS, and nothing to a server without TLS', async () => {
      let heard: Buffer = Buffer.alloc(0);
      await using brokered = await open(
        async (server) => {
          new Wire(server).send(greeting());
          heard = await server.rest();
        },
        { tls: { mode: 'verify-full', ca } },
      );
      const told = await failure(await brokered.connect());
      assert.deepEqual([told.code, told.sqlstate], [1105, 'HY000']);
      assert.equal((await brokered.served.ended()).outcome, 'UPSTREAM_TLS');
      assert.equal(heard.length, 0);
    });

    for (const { what, tls, good } of [
      { what: 'logs in inside TLS', tls: { mode: 'verify-full', ca, serverName: 'localhost' }, good: true },
      {
        what: 'says nothing to a server of another name',
        tls: { mode: 'verify-full', ca, serverName: 'db.internal' },
        good: false,
      },
    ])
      it(`${what}, with the same capabilities before and in it`, async () => {
        let request: Buffer = Buffer.alloc(0);
        let said: Response | undefined;
        await using brokered = await open(
          async (server) => {
            const wire = new Wire(server);
            wire.send(greeting({ flags: mysqlFlags }));
            request = await wire.read();
            await acceptTls(server, serverTls);
            const inside = await wire.read();
            said = readResponse(inside);
            assert.deepEqual(inside.subarray(0, 32), request);
            wire.send(ok());
          },
          { tls },
        );
        const client = await brokered.connect();
        if (good) {
          assert.deepEqual((await logIn(client)).answer, ok());
          assert.equal(said?.user, 'real_app');
          client.peer.end();
          await brokered.served.ended();
          assert.match(String(brokered.served.endings[0]?.['upstreamTls']), /^TLSv1/);
        } else {
          assert.equal((await failure(client)).code, 1105);
          assert.equal(said, undefined);
        }
        assert.equal(request.length, 32);
      });
  });
}

describe('a login that is cut off', () => {
  /** A login with a switch and a word in between, as long as one gets. */
  const whole = greetWith({ plugin: 'caching_sha2_password' }, async (wire) => {
    wire.send(switchTo('caching_sha2_password'));
    await wire.read();
    wire.send(more(3), ok());
  });

  for (const cut of ['end', 'reset', 'close'] as const)
    it(`by the server (${cut}) after any number of bytes ends in an error, never in silence`, async () => {
      await using brokered = await broker(whole, { loginTimeout: 30_000 });
      const length = packet(0, greeting({ plugin: 'caching_sha2_password' })).length + 46 + 6;
      brokered.fake.cut = cut;
      const codes = new Set<number>();
      for (let allowance = 0; allowance < length; allowance += cut === 'end' ? 1 : 5) {
        brokered.fake.allowance = allowance;
        codes.add((await failure(await brokered.connect())).code);
      }
      assert.deepEqual([...codes], [1158]);
    });

  it('by the client after any number of bytes leaves nothing behind', async () => {
    await using brokered = await broker(letIn(), { loginTimeout: 30_000 });
    const bytes = packet(1, response({ database: 'app' }));
    for (let length = 0; length < bytes.length; length += 1) {
      const client = await brokered.connect();
      await client.read();
      client.peer.send(bytes.subarray(0, length));
      client.peer.end();
      await client.peer.rest();
    }
    await brokered.served.ended(bytes.length);
    for (const { outcome } of brokered.served.reports) assert.equal(outcome, 'CLIENT_CLOSED');
  });
});

describe('a server that sends anything', () => {
  it('gives the client an error, and never the password', async () => {
    let bytes: Buffer = Buffer.alloc(0);
    let greets = true;
    await using brokered = await broker(
      async (server) => {
        if (greets) await greetWith({}, () => server.send(bytes))(server);
        else server.send(bytes);
        server.end();
      },
      { loginTimeout: 300 },
    );
    const reply = fc
      .tuple(fc.constantFrom(0, 1, 2, 0xfe, 0xff, 0x50), fc.uint8Array({ maxLength: 60 }))
      .map(([first, rest]) => packet(2, Buffer.of(first), rest));
    const wild = fc.oneof(
      reply,
      fc.tuple(reply, reply).map((both) => Buffer.concat(both)),
      fc.uint8Array({ maxLength: 100 }).map((each) => Buffer.from(each)),
      fc.uint8Array({ maxLength: 100 }).map((each) => packet(0, Buffer.of(10), each)),
      fc.nat(99).map((at) => {
        const broken = packet(0, greeting());
        broken[at % broken.length] = randomBytes(1)[0] ?? 0;
        return broken;
      }),
    );
    await fc.assert(
      fc.asyncProperty(wild, fc.boolean(), async (each, greeted) => {
        bytes = each;
        greets = greeted;
        const client = await brokered.connect();
        client.peer.socket.on('data', () => {});
        client.peer.send(packet(1, response()));
        client.peer.end();
        const heard = await client.peer.rest();
        assert.ok(!heard.includes(canary.mysql) && heard.length > 4);
      }),
      { numRuns: 150 },
    );
    await until('all sessions to end', () => brokered.served.sessions.size === 0);
    for (const { error } of brokered.served.endings) assert.notEqual(error, 'unexpected failure');
  });
});
