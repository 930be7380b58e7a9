import assert from 'node:assert/strict';

import {
  authSwitch,
  err,
  greeting,
  greetWith,
  letIn,
  ok,
  packet,
  readError,
  readGreeting,
  response,
  type Script,
  Wire,
} from '../../support/fake-mysql.ts';
import { FakePostgres as FakeServer } from '../../support/fake-postgres.ts';
import type { Pace, Peer } from '../../support/session.ts';
import type { Driver, Upstream } from '../connectors.test.ts';

/** What the laws have to know of MySQL's protocol. */
export const mysql: Driver = {
  credentials: (password) => ({ username: 'real_app', password }),
  settings: ({ port }) => ({
    host: '127.0.0.1',
    port,
    tls: { mode: 'disable' },
    allowAuth: ['mysql_clear_password'],
  }),
  upstreams: {
    accepting: (password, pace) => serve(letIn(echoing, password), pace),
    rejecting: (_password, pace) => serve(letIn(echoing, 'another password'), pace),
    echoingSecrets: (_password, pace) =>
      serve(
        greetWith({}, async (wire) => {
          wire.send(authSwitch('mysql_clear_password', Buffer.alloc(0)));
          const said = (await wire.read()).subarray(0, -1).toString();
          wire.send(err(1105, 'HY000', `you said ${said}`));
        }),
        pace,
      ),
    silent: (_password, pace) => serve(() => {}, pace),
    saying: (bytes, pace) =>
      serve((server) => {
        server.socket.write(bytes);
      }, pace),
  },
  hello: packet(1, response({ database: 'orders' })),
  async assertServed(client: Peer) {
    const wire = new Wire(client);
    const greeted = await wire.read();
    readGreeting(greeted);
    wire.next += 1;
    const answer = await wire.read();
    assert.deepEqual(answer, ok());
    // The salt, in two parts, is made anew for each session.
    const version = greeted.indexOf(0, 1) + 1;
    greeted.fill(0, version + 4, version + 12).fill(0, version + 31, version + 43);
    return Buffer.concat([greeted, answer]);
  },
  assertRefusal(bytes: Buffer) {
    const payloads: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const end = at + 4 + bytes.readUIntLE(at, 3);
      assert.ok(end <= bytes.length, `half a packet: ${bytes.subarray(at).toString('hex')}`);
      payloads.push(bytes.subarray(at + 4, end));
      at = end;
    }
    const [first, second] = payloads;
    assert.ok(first && second && payloads.length === 2, 'a greeting and an error');
    readGreeting(first);
    const { code, sqlstate, message } = readError(second);
    assert.ok(code >= 1000 && code < 2000);
    assert.match(sqlstate ?? '', /^[0-9A-Z]{5}$/);
    assert.ok(message);
  },
  longestFromClient: [
    Buffer.of(0xff, 0xff, 0xff, 1),
    Buffer.of(0, 0, 2, 1),
    // Connection attributes without end.
    Buffer.concat([Buffer.of(0xff, 0xff, 1, 1), response().subarray(0, -20), Buffer.of(0xfe)]),
  ],
  longestFromUpstream: [
    Buffer.of(0xff, 0xff, 0xff, 0),
    Buffer.of(0, 0, 2, 0),
    Buffer.concat([packet(0, greeting()), Buffer.of(0xff, 0xff, 0xff, 2, 0xfe)]),
  ],
};

/** After the login: says everything back. */
const echoing: Script = (server) => {
  server.socket.on('data', (chunk: Buffer) => server.socket.write(chunk));
  const early = server.received;
  if (early.length > 0) server.send(early);
};

async function serve(script: Script, pace: Pace): Promise<Upstream> {
  return await FakeServer.start(script, pace);
}
