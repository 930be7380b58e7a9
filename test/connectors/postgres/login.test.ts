import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import {
  authentication,
  type Brokered,
  backendKey,
  broker,
  cleartext,
  cstring,
  errorResponse,
  FakePostgres,
  fieldsOf,
  greeting,
  int32,
  loginWith,
  md5,
  message,
  messagesOf,
  notice,
  parameterStatus,
  type Received,
  readUntil,
  readyForQuery,
  type Script,
  scram,
  startup,
  trust,
} from '../../support/fake-postgres.ts';
import { canary } from '../../support/servers.ts';
import { paces } from '../../support/session.ts';

const hello = startup([
  ['user', 'whoever'],
  ['database', 'orders'],
]);

/** Sends the start-up message and reads up to ReadyForQuery or to an ErrorResponse, which must be followed by the end. */
async function tryLogin({ served }: Brokered): Promise<Received[]> {
  const client = await served.connect();
  client.send(hello);
  const heard = await readUntil(client, 'ZE');
  if (heard.at(-1)?.type === 'E') assert.equal((await client.rest()).length, 0);
  client.end();
  return heard;
}

/** The fields of the one ErrorResponse that the client gets in place of a session. */
async function failure(broker: Brokered): Promise<Record<string, string>> {
  const heard = await tryLogin(broker);
  assert.deepEqual(
    heard.map(({ type }) => type),
    ['E'],
  );
  const told = fieldsOf(heard[0]?.body ?? Buffer.alloc(0));
  assert.equal(told['S'], 'FATAL');
  assert.equal(told['V'], 'FATAL');
  assert.ok(!JSON.stringify(told).includes(canary.postgres), 'the client was told the password');
  return told;
}

async function outcome({ served }: Brokered): Promise<[unknown, string]> {
  const { outcome } = await served.ended();
  return [outcome, String(served.endings[0]?.['error'])];
}

for (const pace of paces) {
  const open = (script: Script, settings: Record<string, unknown> = {}, options = {}) =>
    broker(script, { pace, settings, ...options });

  describe(`a login, ${pace}`, () => {
    for (const { method, authenticate } of [
      { method: 'none', authenticate: trust },
      { method: 'password', authenticate: cleartext(canary.postgres) },
      { method: 'md5', authenticate: md5('app', canary.postgres) },
      { method: 'scram-sha-256', authenticate: scram(canary.postgres) },
    ])
      it(`answers ${method} and says so in the log`, async () => {
        await using broker = await open(loginWith(authenticate));
        const heard = await tryLogin(broker);
        assert.equal(heard.map(({ type }) => type).join(''), 'RSSSKZ');
        assert.deepEqual(heard[0]?.bytes, authentication(0));
        assert.equal((await broker.served.ended()).outcome, 'ok');
        assert.equal(broker.served.endings[0]?.['auth'], method);
      });

    it('holds notices back that come before AuthenticationOk: libpq takes none there', async () => {
      const early = [notice('one'), notice('two')];
      await using broker = await open(
        loginWith(
          async (server) => {
            server.send(...early);
            await cleartext(canary.postgres)(server);
          },
          [notice('three'), ...greeting],
        ),
      );
      const heard = await tryLogin(broker);
      assert.equal(heard.map(({ type }) => type).join(''), 'RNNNSSSKZ');
      assert.deepEqual(
        heard.slice(1, 4).map(({ bytes }) => bytes),
        [...early, notice('three')],
      );
    });

    it('passes ParameterStatus on unchanged and in order, whatever is in it', async () => {
      const statuses = [
        parameterStatus('b', '1'),
        parameterStatus('a', '2'),
        parameterStatus('b', '3'),
        message('S', Buffer.from([0xff, 0, 0xfe, 0])),
        parameterStatus('x', 'y'.repeat(20_000)),
      ].slice(0, pace === 'as they come' ? 5 : 4);
      await using broker = await open(loginWith(trust, [...statuses, readyForQuery]));
      const heard = await tryLogin(broker);
      assert.deepEqual(
        heard.slice(1, -1).map(({ bytes }) => bytes),
        statuses,
      );
    });

    it('moves the cancel key to the end, directly before ReadyForQuery', async () => {
      await using broker = await open(
        loginWith(trust, [backendKey(5, Buffer.alloc(4)), parameterStatus('a', 'b'), readyForQuery]),
      );
      assert.equal((await tryLogin(broker)).map(({ type }) => type).join(''), 'RSKZ');
    });

    for (const [what, greet] of Object.entries({
      'sends none': [readyForQuery],
      'sends one with a key of no byte': [backendKey(5, Buffer.alloc(0)), readyForQuery],
      'sends one without even a process id': [message('K', Buffer.alloc(2)), readyForQuery],
      'sends one with a key of 257 bytes': [backendKey(5, Buffer.alloc(257)), readyForQuery],
    }))
      it(`gives the client no cancel key when the server ${what}`, async () => {
        await using broker = await open(loginWith(trust, greet));
        assert.equal((await tryLogin(broker)).map(({ type }) => type).join(''), 'RZ');
      });

    for (const length of [4, 32, 256])
      it(`gives a client of protocol 3.0 a key of 4 bytes for a key of ${length}`, async () => {
        await using broker = await open(
          loginWith(trust, [backendKey(5, Buffer.alloc(length, 7)), readyForQuery]),
        );
        const heard = await tryLogin(broker);
        assert.equal(heard[1]?.bytes.length, 13);
        assert.equal(heard[1]?.body.readInt32BE(), 5);
      });

    it('takes NegotiateProtocolVersion from a server that was asked for nothing, and keeps it to itself', async () => {
      await using broker = await open(
        loginWith((server) => server.send(message('v', int32(0x0003_0000, 0)))),
      );
      assert.equal((await tryLogin(broker)).map(({ type }) => type).join(''), 'RSSSKZ');
    });
  });

  describe(`a server that breaks the rules of a login, ${pace}`, () => {
    for (const [code, name] of [
      [2, 'Kerberos V5'],
      [6, 'SCM credentials'],
      [7, 'GSSAPI'],
      [8, 'GSSAPI'],
      [9, 'SSPI'],
      [13, 'authentication method 13'],
      [-1, 'authentication method -1'],
    ] as const)
      it(`is told by name that its method ${code} is not supported`, async () => {
        await using broker = await open(loginWith((server) => server.send(authentication(code))));
        const { C, M } = await failure(broker);
        assert.equal(C, '28000');
        assert.ok(M?.includes(name), M);
        assert.equal((await outcome(broker))[0], 'AUTH_NOT_ALLOWED');
      });

    const starts: Record<string, Script> = {
      password: cleartext(canary.postgres),
      md5: md5('app', canary.postgres),
      'scram-sha-256': (server) => server.send(authentication(10, Buffer.from('SCRAM-SHA-256\0\0'))),
    };
    for (const [first, start] of Object.entries(starts))
      for (const [second, data] of [
        [3, Buffer.alloc(0)],
        [5, Buffer.alloc(4)],
        [10, Buffer.from('SCRAM-SHA-256\0\0')],
      ] as const)
        it(`does not get an answer to request ${second} after it asked for ${first}`, async () => {
          let answers: string | undefined;
          await using broker = await open(async (server) => {
            await server.startup();
            await start(server);
            server.send(authentication(second, data));
            if (first === 'scram-sha-256') await server.password();
            answers = (await server.rest()).toString('latin1');
          });
          assert.equal((await failure(broker))['C'], '08006');
          assert.deepEqual(await outcome(broker), [
            'UPSTREAM_PROTOCOL',
            `the server sent an unexpected authentication request ${second} during the login`,
          ]);
          assert.equal(answers, '');
        });

    it('is not believed when it skips the proof that it knows the password', async () => {
      for (const skip of [0, 1]) {
        await using broker = await open(async (server) => {
          await server.startup();
          server.send(authentication(10, Buffer.from('SCRAM-SHA-256\0\0')));
          const clientFirst = (await server.password()).toString();
          const nonce = /r=(.*)$/.exec(clientFirst)?.[1] ?? '';
          if (skip === 1) {
            server.send(authentication(11, Buffer.from(`r=${nonce}x,s=c2FsdA==,i=16`)));
            await server.password();
          }
          server.send(authentication(0), ...greeting);
        });
        assert.equal((await failure(broker))['C'], '08006');
        assert.match((await outcome(broker))[1], /skipped the proof/);
      }
    });

    it('is an impostor when its proof is wrong', async () => {
      const signature = (right: Buffer) => Buffer.from(right.map((byte, i) => (i === 31 ? byte ^ 1 : byte)));
      await using broker = await open(loginWith(scram(canary.postgres, { signature })));
      assert.equal((await failure(broker))['C'], '08006');
      assert.match((await outcome(broker))[1], /impostor/);
    });

    it('does not keep the processor busy: too many iterations are refused', async () => {
      await using broker = await open(loginWith(scram(canary.postgres, { iterations: 100_001 })));
      // The script computes only what it gets an answer to.
      assert.equal((await failure(broker))['C'], '28000');
      assert.match((await outcome(broker))[1], /scramMaxIterations/);
    });

    it('is not answered with a second SCRAM message when it repeats its own', async () => {
      await using broker = await open(async (server) => {
        await server.startup();
        server.send(authentication(10, Buffer.from('SCRAM-SHA-256\0\0')));
        const nonce = /r=(.*)$/.exec((await server.password()).toString())?.[1] ?? '';
        const first = authentication(11, Buffer.from(`r=${nonce}x,s=c2FsdA==,i=16`));
        server.send(first, first);
        await server.password();
        assert.equal((await server.rest()).length, 0);
      });
      assert.equal((await failure(broker))['C'], '08006');
      assert.match((await outcome(broker))[1], /out of order/);
    });

    for (const code of [11, 12])
      it(`cannot begin with SASL message ${code}`, async () => {
        await using broker = await open(
          loginWith((server) => server.send(authentication(code, Buffer.from('v=')))),
        );
        assert.equal((await failure(broker))['C'], '08006');
      });

    for (const [what, said] of Object.entries({
      'an MD5 salt of 3 bytes': authentication(5, Buffer.alloc(3)),
      'an MD5 salt of 5 bytes': authentication(5, Buffer.alloc(5)),
      'an authentication request without a code': message('R', Buffer.alloc(3)),
      'a message of length 3': Buffer.from([0x52, 0, 0, 0, 3]),
      'a message of length 0': Buffer.from([0x52, 0, 0, 0, 0]),
      'a message of a negative length': Buffer.from([0x52, 0x80, 0, 0, 0]),
      'a message of 64 KB and a byte': Buffer.from([0x52, 0, 1, 0, 1]),
      'a message of 2 GB': Buffer.from([0x4e, 0x7f, 0xff, 0xff, 0xff]),
      'a row': message('D', int32(0)),
      'a message of type zero': message('\0'),
      'a message of type 0xff': message('ÿ'),
      'a NotificationResponse': message('A', int32(1), cstring('channel'), cstring('')),
      'ReadyForQuery before AuthenticationOk': readyForQuery,
      'ParameterStatus before AuthenticationOk': parameterStatus('a', 'b'),
      'an HTTP answer': Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'),
    }))
      it(`fails with an error that names ${what}`, async () => {
        await using broker = await open(async (server) => {
          await server.startup();
          server.send(said);
          assert.equal((await server.rest()).length, 0);
        });
        const { C, M } = await failure(broker);
        assert.equal(C, '08006');
        assert.match(M ?? '', /unexpected|impossible length/);
        assert.equal((await outcome(broker))[0], 'UPSTREAM_PROTOCOL');
      });

    for (const [what, said] of Object.entries({
      'a second AuthenticationOk': authentication(0),
      'an authentication request': authentication(3),
      'a row': message('D', int32(0)),
      NegotiateProtocolVersion: message('v', int32(0x0003_0000, 0)),
    }))
      it(`may not send ${what} after AuthenticationOk`, async () => {
        await using broker = await open(loginWith(trust, [said, ...greeting]));
        assert.equal((await failure(broker))['C'], '08006');
      });

    it('is cut off when it talks without end', async () => {
      const flood = (said: Buffer, before: boolean): Script =>
        loginWith(
          async (server) => {
            while (before && !server.ended && !server.socket.destroyed) {
              server.send(said);
              await new Promise((resolve) => setImmediate(resolve));
            }
          },
          Array.from({ length: 1100 }, () => said),
        );
      const many = notice('x');
      // Byte by byte, so many would take too long to be worth it.
      const cases: [Buffer, boolean][] =
        pace === 'as they come'
          ? [
              [many, true],
              [many, false],
              [parameterStatus('a', 'b'), false],
              [notice('x'.repeat(60_000)), true],
            ]
          : [[many, true]];
      for (const [said, before] of cases) {
        await using broker = await open(flood(said, before));
        const { C, M } = await failure(broker);
        assert.equal(C, '08006');
        assert.match(M ?? '', /talks without end/);
      }
    });
  });

  describe(`a server that refuses, ${pace}`, () => {
    const refusing = (of: Record<string, string>, when: 'before' | 'after' = 'before'): Script =>
      loginWith(
        (server) => {
          if (when === 'before') server.send(errorResponse(of));
        },
        [errorResponse(of)],
      );

    it('is passed on with its SQLSTATE and every field', async () => {
      const fields = {
        S: 'FATAL',
        V: 'FATAL',
        C: '53300',
        M: 'sorry, too many clients already',
        D: 'détail',
        H: 'hint',
        F: 'proc.c',
        L: '345',
        R: 'InitProcess',
        Z: 'a field of tomorrow',
      };
      await using broker = await open(refusing(fields));
      assert.deepEqual(await failure(broker), fields);
      const [code, error] = await outcome(broker);
      assert.equal(code, 'UPSTREAM_REFUSED');
      assert.match(error, /53300 sorry, too many clients already/);
    });

    it('is passed on also when it takes the login and not the database', async () => {
      const fields = { S: 'FATAL', V: 'FATAL', C: '3D000', M: 'database "orders" does not exist' };
      await using broker = await open(refusing(fields, 'after'));
      assert.deepEqual(await failure(broker), fields);
    });

    it('is passed on without V, as PgBouncer sends it, with V', async () => {
      await using broker = await open(refusing({ S: 'FATAL', C: '08P01', M: 'no such database' }));
      assert.deepEqual(await failure(broker), {
        S: 'FATAL',
        V: 'FATAL',
        C: '08P01',
        M: 'no such database',
      });
    });

    it('is given a SQLSTATE where it sends none, or nonsense', async () => {
      for (const fields of [
        { S: 'FATAL', M: 'no' },
        { S: 'FATAL', C: '5330', M: 'no' },
        { C: '53"00', M: 'no' },
      ]) {
        await using broker = await open(refusing(fields));
        assert.equal((await failure(broker))['C'], '08004');
      }
    });

    it('gets a text where it sends none', async () => {
      await using broker = await open(refusing({}));
      assert.match((await failure(broker))['M'] ?? '', /the database server refused the connection/);
    });

    it('may say anything in an ErrorResponse without breaking the one that the client gets', async () => {
      for (const body of [
        Buffer.alloc(0),
        Buffer.of(0),
        Buffer.from('Mno end'),
        Buffer.from('M'),
        Buffer.from('\0\0\0'),
        Buffer.from('Mtext\0\0C28P01\0\0'),
        Buffer.from([0xff, 0xfe, 0, 0x4d, 0xff, 0, 0]),
      ]) {
        await using broker = await open(loginWith((server) => server.send(message('E', body))));
        const { C } = await failure(broker);
        assert.match(C ?? '', /^[0-9A-Z]{5}$/);
      }
    });

    it('does not name the real role or host to the client, and does in the log', async () => {
      for (const M of [
        'no pg_hba.conf entry for host "127.0.0.1", database "orders"',
        'role "app" is not permitted to log in',
      ]) {
        await using broker = await open(
          refusing({ S: 'FATAL', V: 'FATAL', C: '42501', M, D: 'for app on 127.0.0.1' }),
        );
        const told = await failure(broker);
        assert.equal(told['C'], '42501');
        assert.doesNotMatch(JSON.stringify(told), /127\.0\.0\.1|\bapp\b|orders/);
        assert.ok((await outcome(broker))[1].includes(M));
      }
    });

    it('does not get its text into the log when it echoes the password', async () => {
      for (const C of ['28P01', '42501']) {
        await using broker = await open(
          refusing({ S: 'FATAL', C, M: `you sent ${canary.postgres}`, H: canary.postgres }),
        );
        await failure(broker);
        assert.match((await outcome(broker))[1], /text withheld/);
        assert.ok(!broker.served.log.includes(canary.postgres));
      }
    });

    it('cannot steer a terminal or fill the log with its text', async () => {
      const M = `\u001b[31mred\r\n\u202Eevil ${'x'.repeat(5000)}`;
      await using broker = await open(refusing({ S: 'FATAL', C: '42501', M }));
      await failure(broker);
      const [, error] = await outcome(broker);
      assert.doesNotMatch(error, /[\p{Cc}\p{Cf}]/u);
      assert.ok(error.length < 500);
    });

    for (const C of ['28P01', '28000'])
      it(`rejects the credential with ${C}: the client hears so in our words, without the role`, async () => {
        await using broker = await open(
          refusing({ S: 'FATAL', V: 'FATAL', C, M: 'password authentication failed for user "app"' }),
        );
        const told = await failure(broker);
        assert.equal(told['C'], '28000');
        assert.match(told['M'] ?? '', /rejected this service's credential/);
        assert.doesNotMatch(JSON.stringify(told), /app|authentication failed/);
        assert.equal((await outcome(broker))[0], 'UPSTREAM_REJECTED');
        assert.equal(
          broker.served.fetches,
          2,
          'the credential may have been rotated: it is asked for once more',
        );
        assert.equal(broker.fake.connections, 1, 'the same credential is not tried twice');
      });

    it('is tried once more with the credential that has come since', async () => {
      // Asked for the names when the service is opened, then for the first login, then for the second.
      let asked = 0;
      const credentials = () => {
        asked += 1;
        return { username: 'app', password: asked < 3 ? 'the old one' : canary.postgres };
      };
      await using fake = await FakePostgres.start(loginWith(scram(canary.postgres)), pace);
      await using broker = await open(trust, fake.settings, { credentials });
      const heard = await tryLogin(broker);
      assert.equal(heard.at(-1)?.type, 'Z');
      assert.equal(fake.connections, 2);
      assert.equal((await broker.served.ended()).outcome, 'ok');
    });

    it('with 57P03 sends the login to the next server of the list, and with nothing else', async () => {
      for (const { C, goesOn } of [
        { C: '57P03', goesOn: true },
        { C: '53300', goesOn: false },
        { C: '57P01', goesOn: false },
        { C: '28P01', goesOn: false },
      ]) {
        await using second = await FakePostgres.start(loginWith(trust), pace);
        await using broker = await open(refusing({ S: 'FATAL', C, M: 'no' }));
        const hosts = [`127.0.0.1:${broker.fake.port}`, `127.0.0.1:${second.port}`];
        await using both = await open(loginWith(trust), { host: hosts });
        const heard = await tryLogin(both);
        assert.equal(heard.at(-1)?.type, goesOn ? 'Z' : 'E');
        assert.equal(second.connections, goesOn ? 1 : 0);
      }
    });

    it('passes the refusal of the last server on when all say 57P03', async () => {
      await using broker = await open(refusing({ S: 'FATAL', V: 'FATAL', C: '57P03', M: 'starting up' }));
      const address = `127.0.0.1:${broker.fake.port}`;
      await using both = await open(loginWith(trust), { host: [address, address] });
      assert.equal((await failure(both))['M'], 'starting up');
      assert.equal(broker.fake.connections, 2);
    });
  });
}

/** What the client hears when the server's words end after so many bytes. */
describe('a server that leaves in the middle of a login', () => {
  const whole: Script = loginWith(scram(canary.postgres), [notice('hello'), ...greeting]);

  for (const cut of ['end', 'close', 'reset'] as const)
    it(`(${cut}) always ends in a clear error for the client, wherever it was`, async () => {
      await using broker = await open(whole);
      const { fake, served } = broker;
      await tryLogin(broker);
      const length = loginLength();
      let sessions = 1;
      for (let allowance = 0; allowance < length; allowance += 1) {
        fake.allowance = allowance;
        fake.cut = cut;
        const { C, M } = await failure(broker);
        sessions += 1;
        const report = await served.ended(sessions);
        assert.equal(report.outcome, 'UPSTREAM_CLOSED', `after ${allowance} bytes`);
        assert.equal(C, '08006');
        assert.match(M ?? '', /closed the connection/);
        assert.ok(report.seconds < 5);
      }
      assert.equal(served.admission.active, 0);
    });

  /** Bytes that the script says in all. The lengths of its random parts are always the same. */
  function loginLength(): number {
    const first = `r=${'x'.repeat(24 + 12)},s=${'x'.repeat(24)},i=16`;
    const signature = `v=${'x'.repeat(44)}`;
    const said = [
      authentication(10, Buffer.from('SCRAM-SHA-256\0\0')),
      authentication(11, Buffer.from(first)),
      authentication(12, Buffer.from(signature)),
      authentication(0),
      notice('hello'),
      ...greeting,
    ];
    return Buffer.concat(said).length;
  }

  const open = (script: Script) => broker(script);
});

describe('a server that is silent in the middle of a login', () => {
  it('costs the client no more than the login timeout, wherever it was', async () => {
    const silent: Script = () => {};
    const asks: Script = async (server) => {
      await server.startup();
      server.send(authentication(10, Buffer.from('SCRAM-SHA-256\0\0')));
    };
    const half: Script = async (server) => {
      await server.startup();
      server.send(authentication(0).subarray(0, 6));
    };
    const almost: Script = loginWith(trust, greeting.slice(0, -1));
    for (const script of [silent, asks, half, almost]) {
      await using slow = await broker(script, { loginTimeout: 150 });
      const { C, M } = await failure(slow);
      assert.equal(C, '57P03');
      assert.match(M ?? '', /the login took longer than 0\.15 s/);
      assert.equal((await slow.served.ended()).outcome, 'TIMEOUT');
    }
  });

  it('does not keep its connection when the session is stopped', async () => {
    await using stopped = await broker(() => {});
    const client = await stopped.served.connect();
    client.send(hello);
    while (stopped.fake.connections === 0) await new Promise((resolve) => setImmediate(resolve));
    for (const session of stopped.served.sessions) session.stop();
    const [message] = messagesOf(await client.rest());
    assert.equal(fieldsOf(message?.body ?? Buffer.alloc(0))['C'], '57P03');
    client.end();
    assert.equal((await stopped.served.ended()).outcome, 'SHUTDOWN');
  });
});
