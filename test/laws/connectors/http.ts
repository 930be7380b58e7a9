import assert from 'node:assert/strict';

import type { Peer } from '../../support/session.ts';
import type { Driver } from '../connectors.test.ts';
import { serve } from './postgres.ts';

const upgrade = 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n';
const unauthorized =
  'HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer\r\nConnection: close\r\n\r\n';

/** What the laws have to know of HTTP: a session is a request for a WebSocket, behind which bytes pass both ways. */
export const http: Driver = {
  credentials: (password) => ({ password }),
  settings: ({ port }) => ({
    upstream: `http://127.0.0.1:${port}/api`,
    authenticate: { bearer: 'password' },
    allowPlainHttp: true,
    timeouts: { response: '400ms' },
  }),
  upstreams: {
    accepting: (password, pace) =>
      serve(async (server) => {
        assert.match(
          await readHead(server),
          new RegExp(`^GET /api/chat HTTP/1.1\r\n(.*\r\n)*Authorization: Bearer ${password}\r\n`),
        );
        server.send(Buffer.from(upgrade));
        server.socket.on('data', (chunk: Buffer) => server.socket.write(chunk));
        const early = server.received;
        if (early.length > 0) server.send(early);
      }, pace),
    rejecting: (_password, pace) =>
      serve(async (server) => {
        await readHead(server);
        server.send(Buffer.from(unauthorized));
        server.end();
      }, pace),
    echoingSecrets: (_password, pace) =>
      serve(async (server) => {
        const [, said = ''] = /\r\nAuthorization: (.*)\r\n/.exec(await readHead(server)) ?? [];
        server.send(
          Buffer.from(
            `HTTP/1.1 400 you said ${said}\r\nX-Said: ${said}\r\nLocation: /?token=${said.split(' ')[1]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`,
          ),
        );
        server.end();
      }, pace),
    silent: (_password, pace) => serve(() => {}, pace),
    // A server says nothing unasked.
    listening: (_password, pace) => serve(() => {}, pace),
    saying: (bytes, pace) =>
      serve((server) => {
        server.socket.write(bytes);
      }, pace),
  },
  hello: Buffer.from(
    'GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n',
  ),
  // Not all of it: behind that a server may say what it likes.
  firstFromUpstream: Buffer.from(upgrade.slice(0, -2)),
  async assertServed(client: Peer) {
    const heard = await client.read(upgrade.length);
    assert.equal(heard.toString(), upgrade);
    return heard;
  },
  assertRefusal(bytes: Buffer) {
    const [head = '', body] = bytes.toString().split('\r\n\r\n');
    const [, status = ''] = /^HTTP\/1\.1 ([45]\d\d) [A-Z][A-Za-z ]+\r\n/.exec(head) ?? [];
    assert.ok(status, head);
    assert.match(head, /\r\nConnection: close(\r\n|$)/);
    // The server's own, which is passed on.
    if (status === '401') return;
    const [, code] = /\r\nPostern-Error: (\w+)/.exec(head) ?? [];
    const problem = JSON.parse(body ?? '') as Record<string, unknown>;
    assert.deepEqual([problem['status'], problem['code']], [Number(status), code]);
    assert.match(String(problem['detail']), /^postern: ./);
  },
  longestFromClient: [
    Buffer.from('GET /'),
    Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\nX: '),
    Buffer.from('POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: '),
  ],
  longestFromUpstream: [Buffer.from('HTTP/1.1 200 '), Buffer.from('HTTP/1.1 200 OK\r\nX: ')],
};

async function readHead(server: Pick<Peer, 'read'>): Promise<string> {
  let head = '';
  while (!head.endsWith('\r\n\r\n')) head += (await server.read(1)).toString('latin1');
  return head;
}
