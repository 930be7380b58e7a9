import assert from 'node:assert/strict';

import {
  authSwitch,
  err,
  greeting,
  greetWith,
  nativeAnswer,
  ok,
  packet,
  readError,
  readGreeting,
  response,
  type Script,
  Wire,
} from '../../support/fake-mysql.ts';
import type { Peer } from '../../support/session.ts';
import type { Driver } from '../connectors.test.ts';
import { echoing, serve } from './postgres.ts';

/** What the laws have to know of MySQL's protocol. */
export const mysql: Driver = {
  credentials: (password) => ({ username: 'app', password }),
  settings: ({ port }) => ({
    host: '127.0.0.1',
    port,
    tls: { mode: 'disable' },
    allowAuth: ['mysql_clear_password'],
  }),
  upstreams: {
    accepting: (password, pace) => serve(lettingIn(password, echoing), pace),
    rejecting: (_password, pace) => serve(lettingIn('another password'), pace),
    echoingSecrets: (_password, pace) =>
      serve(
        greetWith({}, async (wire) => {
          wire.send(authSwitch('mysql_clear_password', Buffer.alloc(0)));
          const said = (await wire.read()).subarray(0, -1).toString();
          wire.send(err(1142, '42000', `you said ${said}`));
        }),
        pace,
      ),
    silent: (_password, pace) => serve(() => {}, pace),
    listening: (_password, pace) => serve((server) => server.send(packet(0, greeting())), pace),
    saying: (bytes, pace) =>
      serve((server) => {
        server.socket.write(bytes);
      }, pace),
  },
  hello: packet(1, response({ database: 'orders' })),
  firstFromUpstream: packet(0, greeting()),
  async assertServed(client: Peer) {
    const wire = new Wire(client);
    const greeted = await wire.read();
    wire.next += 1; // The client's own packet.
    const answer = await wire.read();
    assert.equal(answer[0], 0);
    return Buffer.concat([withoutSalt(greeted), answer]);
  },
  assertRefusal(bytes, said = 'hello') {
    const [greeted, refused, ...more] = packetsOf(bytes);
    assert.ok(greeted && refused);
    assert.equal(more.length, 0);
    assert.deepEqual([greeted.sequence, refused.sequence], [0, said === 'hello' ? 2 : 1]);
    readGreeting(greeted.payload);
    const { code, sqlstate, message } = readError(refused.payload);
    assert.ok(code < 2000 || code > 2999, `${code} is a client library's own number`);
    assert.match(sqlstate ?? '', /^[0-9A-Z]{5}$/);
    assert.ok(message);
  },
  // In one packet, in one that another continues, and the longest that is read.
  longestFromClient: [Buffer.of(0xfe, 0xff, 0xff, 1), Buffer.of(0xff, 0xff, 0xff, 1), Buffer.of(0, 0, 2, 1)],
  // The same, the last one as a greeting and as an error; and in the login, there as an error and as a change of the plugin.
  longestFromUpstream: [
    Buffer.of(0xfe, 0xff, 0xff, 0),
    Buffer.of(0xff, 0xff, 0xff, 0),
    Buffer.of(0, 0, 2, 0, 10),
    Buffer.of(0, 0, 2, 0, 0xff),
    Buffer.concat([packet(0, greeting()), Buffer.of(0xff, 0xff, 0xff, 2)]),
    Buffer.concat([packet(0, greeting()), Buffer.of(0, 0, 2, 2, 0xff)]),
    Buffer.concat([packet(0, greeting()), Buffer.of(0, 0, 2, 2, 0xfe)]),
  ],
};

/** A server whose one account has this password. */
function lettingIn(password: string, then: Script = () => {}): Script {
  return greetWith({}, async (wire, { authData }, server) => {
    if (!authData.equals(nativeAnswer(password))) {
      wire.send(err(1045, '28000', "Access denied for user 'app'@'10.0.0.7' (using password: YES)"));
      return server.end();
    }
    wire.send(ok());
    await then(server);
  });
}

/** A greeting's payload with zeros for the salt, which is different in every session. */
function withoutSalt(payload: Buffer): Buffer {
  const { salt } = readGreeting(payload);
  const blank = Buffer.from(payload);
  for (const part of [salt.subarray(0, 8), salt.subarray(8)])
    blank.fill(0, payload.indexOf(part), payload.indexOf(part) + part.length);
  return blank;
}

function packetsOf(bytes: Buffer): { readonly sequence: number; readonly payload: Buffer }[] {
  const packets = [];
  for (let at = 0; at < bytes.length; ) {
    assert.ok(bytes.length >= at + 4, 'half a packet');
    const end = at + 4 + bytes.readUIntLE(at, 3);
    assert.ok(bytes.length >= end, 'half a packet');
    packets.push({ sequence: bytes.readUInt8(at + 3), payload: bytes.subarray(at + 4, end) });
    at = end;
  }
  return packets;
}
