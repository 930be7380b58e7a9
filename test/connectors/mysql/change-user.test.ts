import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { PosternError } from '../../../src/core/errors.ts';
import {
  authSwitch,
  type Brokered,
  broker,
  clientFlags,
  cstring,
  err,
  flag,
  int,
  lenenc,
  letIn,
  logIn,
  more,
  nativeAnswer,
  ok,
  packet,
  readError,
  sha2Answer,
  Wire,
} from '../../support/fake-mysql.ts';
import type { ServerEnd } from '../../support/fake-postgres.ts';
import { canary } from '../../support/servers.ts';
import { paces, until } from '../../support/session.ts';

const otherSalt = Buffer.from('abcdefghijklmnopqrst');
const nativeSwitch = authSwitch('mysql_native_password', Buffer.concat([otherSalt, Buffer.of(0)]));

interface Change {
  readonly database?: string;
  readonly authData?: Buffer;
  readonly plugin?: string;
}

/** COM_CHANGE_USER as a client of our days sends it. */
function changeUser({
  database = '',
  authData = Buffer.alloc(0),
  plugin = 'mysql_native_password',
}: Change = {}) {
  return Buffer.concat([
    Buffer.of(0x11),
    cstring('another'),
    int(1, authData.length),
    authData,
    cstring(database),
    int(2, 255),
    cstring(plugin),
    lenenc(Buffer.concat([lenenc('program_name'), lenenc('pool')])),
  ]);
}

/** What the server must be sent in its place. */
function expected(database: string, program = 'pool'): Buffer {
  return Buffer.concat([
    Buffer.of(0x11),
    cstring('real_app'),
    int(1, 0),
    cstring(database),
    int(2, 255),
    cstring(''),
    lenenc(Buffer.concat([lenenc('program_name'), lenenc(program)])),
  ]);
}

/** A server that changes the user as MySQL does, then answers pings. */
async function change(server: ServerEnd, database = ''): Promise<Wire> {
  const wire = new Wire(server);
  assert.deepEqual(await wire.read(), expected(database));
  wire.send(nativeSwitch);
  assert.deepEqual(await wire.read(), nativeAnswer(canary.mysql, otherSalt));
  wire.send(ok());
  return wire;
}

async function pong(server: ServerEnd): Promise<void> {
  const wire = new Wire(server);
  assert.deepEqual(await wire.read(), Buffer.of(0x0e));
  wire.send(ok(Buffer.from('pong')));
}

/** Logs a client in and leaves it at its first command. */
async function atCommand(brokered: Brokered): Promise<Wire> {
  const client = await brokered.connect();
  await logIn(client, { flags: clientFlags | flag.attributes });
  client.next = 0;
  return client;
}

async function ping(client: Wire): Promise<void> {
  client.next = 0;
  client.send(Buffer.of(0x0e));
  assert.deepEqual(await client.read(), ok(Buffer.from('pong')));
}

for (const pace of paces)
  describe(`COM_CHANGE_USER, ${pace}`, () => {
    for (const [what, asked, answers] of [
      ['with no password', {}, [ok()]],
      ['with a native answer', { authData: nativeAnswer('whatever') }, [ok()]],
      [
        'with a caching_sha2 answer',
        { plugin: 'caching_sha2_password', authData: sha2Answer('x') },
        [more(3), ok()],
      ],
      ['with caching_sha2 and no password', { plugin: 'caching_sha2_password' }, [ok()]],
      ['to a database', { database: 'app' }, [ok()]],
    ] as const)
      it(`${what} is done with the credential of the service, and the session goes on`, async () => {
        const database = 'database' in asked ? asked.database : '';
        await using brokered = await broker(
          letIn(async (server) => {
            await change(server, database);
            await pong(server);
          }),
          { pace },
        );
        const client = await atCommand(brokered);
        client.send(changeUser(asked));
        for (const answer of answers) assert.deepEqual(await client.read(), answer);
        await ping(client);
        client.peer.end();
        assert.equal((await brokered.served.ended()).outcome, 'ok');
        assert.equal(brokered.served.fetches, 2);
      });

    it('works again and again, between other commands and behind ones that have no answer', async () => {
      await using brokered = await broker(
        letIn(async (server) => {
          for (let i = 0; i < 5; i += 1) {
            await pong(server);
            assert.deepEqual(await new Wire(server).read(), Buffer.from('\x19\x01\0\0\0'));
            await change(server);
          }
        }),
        { pace },
      );
      const client = await atCommand(brokered);
      for (let i = 0; i < 5; i += 1) {
        await ping(client);
        client.peer.send(packet(0, Buffer.from('\x19\x01\0\0\0')), packet(0, changeUser()));
        client.next = 1;
        assert.deepEqual(await client.read(), ok());
      }
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'ok');
    });

    it('lets the command that follows it at once wait, and loses nothing of it', async () => {
      await using brokered = await broker(
        letIn(async (server) => {
          await change(server);
          await pong(server);
        }),
        { pace },
      );
      const client = await atCommand(brokered);
      client.peer.send(packet(0, changeUser()), packet(0, Buffer.of(0x0e)));
      client.next = 1;
      assert.deepEqual(await client.read(), ok());
      client.next = 1;
      assert.deepEqual(await client.read(), ok(Buffer.from('pong')));
      client.peer.end();
      await brokered.served.ended();
    });

    for (const [what, settings, asked, code] of [
      ['is refused where the service says so', { changeUser: 'refuse' }, {}, 1047],
      ['to a database that is not allowed is refused', { databases: ['app'] }, { database: 'other' }, 1044],
    ] as const)
      it(`${what}, and the session goes on`, async () => {
        await using brokered = await broker(letIn(pong), { pace, settings });
        const client = await atCommand(brokered);
        client.send(changeUser(asked));
        assert.equal(readError(await client.read()).code, code);
        await ping(client);
        client.peer.end();
        assert.equal((await brokered.served.ended()).outcome, 'ok');
      });

    it('keeps the pinned database and names the program', async () => {
      await using brokered = await broker(
        letIn(async (server) => {
          const wire = new Wire(server);
          assert.deepEqual(await wire.read(), expected('app', 'postern/pool'));
          wire.send(ok());
        }),
        { pace, settings: { database: 'app', programName: 'postern/' } },
      );
      const client = await atCommand(brokered);
      client.send(changeUser({ database: 'other' }));
      assert.deepEqual(await client.read(), ok());
      client.peer.end();
      await brokered.served.ended();
    });

    for (const [what, say, code, outcome] of [
      [
        'rejects the credential',
        [err(1045, '28000', "Access denied for user 'real_app'")],
        1045,
        'UPSTREAM_REJECTED',
      ],
      ['knows no such database', [err(1049, '42000', "Unknown database 'x'")], 1049, 'UPSTREAM_REFUSED'],
      [
        'asks for the password in clear',
        [authSwitch('mysql_clear_password', Buffer.alloc(0))],
        1045,
        'AUTH_NOT_ALLOWED',
      ],
      ['talks nonsense', [Buffer.of(0x77)], 1105, 'UPSTREAM_PROTOCOL'],
      ['closes', [], 1158, 'UPSTREAM_CLOSED'],
    ] as const)
      it(`ends the session with an error when the server ${what}`, async () => {
        await using brokered = await broker(
          letIn(async (server) => {
            const wire = new Wire(server);
            await wire.read();
            wire.send(...say);
            server.end();
          }),
          { pace },
        );
        const client = await atCommand(brokered);
        client.send(changeUser());
        const told = readError(await client.read());
        assert.equal(told.code, code);
        assert.ok(!told.message.includes('real_app'));
        assert.equal((await client.peer.rest()).length, 0);
        client.peer.end();
        assert.equal((await brokered.served.ended()).outcome, outcome);
      });

    it('ends the session with an error when the provider fails', async () => {
      let fetches = 0;
      await using brokered = await broker(
        letIn(async (server) => void (await server.rest())),
        {
          pace,
          credentials: () => {
            if (fetches++ < 2) return { username: 'real_app', password: canary.mysql };
            throw new PosternError('PROVIDER_UNAVAILABLE', 'provider "vault" is away');
          },
        },
      );
      const client = await atCommand(brokered);
      client.send(changeUser());
      assert.equal(readError(await client.read()).code, 1158);
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'PROVIDER_UNAVAILABLE');
    });

    it('ends with an error at the deadline when the server stays silent', async () => {
      await using brokered = await broker(
        letIn(async (server) => void (await server.rest())),
        { pace, loginTimeout: 2000 },
      );
      const client = await atCommand(brokered);
      client.send(changeUser());
      assert.equal(readError(await client.read()).code, 1159);
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'TIMEOUT');
    });

    it('that is cut off by the client ends the session', async () => {
      await using brokered = await broker(
        letIn(async (server) => void (await server.rest())),
        { pace },
      );
      const client = await atCommand(brokered);
      client.peer.send(packet(0, changeUser()).subarray(0, 20));
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'CLIENT_CLOSED');
    });

    it('of more than 128 KiB ends the session with an error', async () => {
      await using brokered = await broker(
        letIn(async (server) => void (await server.rest())),
        { pace },
      );
      const client = await atCommand(brokered);
      client.peer.send(int(3, 200_000), Buffer.of(0, 0x11));
      client.next = 1;
      const head = await client.peer.read(4);
      assert.equal(readError(await client.peer.read(head.readUIntLE(0, 3))).code, 1043);
      client.peer.end();
      assert.equal((await brokered.served.ended()).outcome, 'CLIENT_PROTOCOL');
    });

    it('passes as it is where the service says so', async () => {
      await using brokered = await broker(
        letIn(async (server) => {
          const wire = new Wire(server);
          assert.deepEqual(await wire.read(), changeUser());
          wire.send(err(1045, '28000', 'Access denied'));
        }),
        { pace, settings: { changeUser: 'relay' } },
      );
      const client = await atCommand(brokered);
      client.send(changeUser());
      assert.equal(readError(await client.read()).code, 1045);
      client.peer.end();
      await brokered.served.ended();
    });
  });

describe('COM_CHANGE_USER and a shutdown', () => {
  it('is answered and ended when the session is stopped in the middle of it', async () => {
    let asked = false;
    await using brokered = await broker(
      letIn(async (server) => {
        await new Wire(server).read();
        asked = true;
        await server.rest();
      }),
    );
    const client = await atCommand(brokered);
    client.send(changeUser());
    await until('the server to be asked', () => asked);
    for (const session of brokered.served.sessions) session.stop();
    assert.equal((await brokered.served.ended()).outcome, 'SHUTDOWN');
  });
});
