import assert from 'node:assert/strict';

import {
  cleartext,
  errorResponse,
  FakePostgres,
  fieldsOf,
  greeting,
  loginWith,
  message,
  messagesOf,
  readUntil,
  type Script,
  scram,
  startup,
} from '../../support/fake-postgres.ts';
import type { Pace, Peer } from '../../support/session.ts';
import type { Driver, Upstream } from '../connectors.test.ts';

/** What the laws have to know of PostgreSQL's protocol. */
export const postgres: Driver = {
  credentials: (password) => ({ username: 'app', password }),
  settings: ({ port }) => ({ host: '127.0.0.1', port, tls: { mode: 'disable' }, allowAuth: ['password'] }),
  upstreams: {
    accepting: (password, pace) => serve(loginWith(scram(password), greeting, echoing), pace),
    rejecting: (_password, pace) => serve(loginWith(cleartext('another password'), greeting), pace),
    echoingSecrets: (_password, pace) =>
      serve(async (server) => {
        await server.startup();
        server.send(message('R', Buffer.of(0, 0, 0, 3)));
        const said = (await server.password()).subarray(0, -1).toString();
        server.send(errorResponse({ S: 'FATAL', C: '42501', M: `you said ${said}`, H: said, D: said }));
      }, pace),
    silent: (_password, pace) => serve(() => {}, pace),
    saying: (bytes, pace) =>
      serve((server) => {
        server.socket.write(bytes);
      }, pace),
  },
  hello: startup([
    ['user', 'whoever'],
    ['database', 'orders'],
  ]),
  async assertServed(client: Peer) {
    const heard = await readUntil(client, 'ZE');
    assert.equal(heard.at(-1)?.type, 'Z');
    return Buffer.concat(heard.map(({ type, bytes }) => (type === 'K' ? Buffer.alloc(bytes.length) : bytes)));
  },
  assertRefusal(bytes: Buffer) {
    const messages = messagesOf(bytes);
    assert.equal(messages.map(({ type }) => type).join(''), 'E');
    const { S, V, C, M } = fieldsOf(messages[0]?.body ?? Buffer.alloc(0));
    assert.deepEqual([S, V], ['FATAL', 'FATAL']);
    assert.match(C ?? '', /^[0-9A-Z]{5}$/);
    assert.ok(M);
  },
  longestFromClient: [
    Buffer.of(0x7f, 0xff, 0xff, 0xff),
    Buffer.of(0, 0, 0x27, 0x14),
    Buffer.of(0x16, 3, 1, 0xff),
  ],
  longestFromUpstream: [
    Buffer.of(0x4e, 0x7f, 0xff, 0xff, 0xff),
    Buffer.of(0x45, 0, 1, 0, 0),
    Buffer.of(0x52, 0x7f, 0xff, 0xff, 0xff),
  ],
};

/** After the login: says everything back. */
const echoing: Script = async (server) => {
  server.socket.on('data', (chunk: Buffer) => server.socket.write(chunk));
  const early = server.received;
  if (early.length > 0) server.send(early);
};

async function serve(script: Script, pace: Pace): Promise<Upstream> {
  return await FakePostgres.start(script, pace);
}
