import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import { paces, until } from '../../../support/session.ts';
import {
  type Case,
  desyncGuardian,
  h1spec,
  h1specFragments,
  http11Probe,
  responses,
  smuggling,
} from './cases.ts';
import { fateOf, Stage, token } from './stage.ts';

const tables: readonly (readonly [string, readonly Case[]])[] = [
  ['Http11Probe', http11Probe],
  ['h1spec', h1spec],
  ['http-desync-guardian', desyncGuardian],
  ['the table of smuggling', smuggling],
];
/** Byte by byte, this many are enough. */
const LONG = 20_000;

let stage: Stage;
before(async () => {
  stage = await Stage.start();
});
after(async () => {
  await stage[Symbol.asyncDispose]();
});

for (const pace of paces)
  for (const [table, cases] of tables)
    describe(`a request of ${table}, ${pace}`, () => {
      for (const each of cases) {
        if (pace === 'one byte at a time' && each.bytes.length > LONG) continue;
        if (each.refused !== undefined)
          it(`is refused and goes nowhere: ${each.name}`, async () => {
            const { statuses, requests, received } = await fateOf(stage, each.bytes, pace);
            assert.equal(statuses.length, 1, received);
            assert.ok([each.refused].flat().includes(statuses[0] as number), received);
            assert.deepEqual(requests, []);
            assert.match(received, /\r\nConnection: close\r\n/);
            assert.ok(!received.includes(token));
          });
        else
          it(`goes upstream as one request: ${each.name}`, async () => {
            const { statuses, requests, received } = await fateOf(stage, each.bytes, pace);
            const { head = [], without = [], body, closes } = each.passes ?? {};
            assert.deepEqual(
              statuses.filter((status) => status >= 200),
              closes ? [200] : [200, 200],
              received,
            );
            assert.equal(requests.length, closes ? 1 : 2);
            const [first, marker] = requests;
            if (!closes) assert.ok(marker?.head.startsWith('GET /marker HTTP/1.1\r\n'));
            const upstream = first?.head ?? '';
            assert.equal(upstream.split(`\r\nAuthorization: Bearer ${token}\r\n`).length, 2, upstream);
            assert.equal(upstream.match(/\r\nhost:/gi)?.length, 1);
            assert.ok(upstream.includes(`\r\nHost: 127.0.0.1:${stage.origin.port}\r\n`));
            for (const part of head) assert.ok(upstream.includes(part), `${part} in ${upstream}`);
            for (const part of without) assert.ok(!upstream.includes(part), `${part} in ${upstream}`);
            if (body !== undefined) assert.equal(first?.body, body);
          });
      }
    });

describe('the beginning of a request (h1spec)', () => {
  for (const fragment of h1specFragments)
    it(`is waited for: ${JSON.stringify(fragment)}`, async () => {
      stage.origin.reset();
      using client = await stage.connect();
      await client.send(fragment);
      await new Promise((resolve) => setTimeout(resolve, 30));
      assert.equal(client.received, '');
      assert.equal(client.ended, false);
      // And it was not lost.
      const whole = 'GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n';
      assert.ok(whole.startsWith(fragment));
      await client.send(whole.slice(fragment.length));
      await client.responses(1);
      assert.deepEqual(client.statuses, [200]);
    });
});

describe('a response', () => {
  for (const pace of paces)
    for (const each of responses) {
      if (pace === 'one byte at a time' && each.bytes.length > LONG) continue;
      it(`${each.refused ? 'is a 502' : each.broken ? 'breaks off' : 'is passed on'}, ${pace}: ${each.name}`, async () => {
        stage.origin.reset();
        let connection: unknown;
        stage.origin.respond = (request, socket) => {
          if (!request.head.includes(' /case ')) return 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nafter';
          connection = socket;
          void (async () => {
            const bytes = Buffer.from(each.bytes, 'latin1');
            if (pace === 'as they come') socket.write(bytes);
            else
              for (const byte of bytes) {
                if (socket.destroyed) return;
                socket.write(Uint8Array.of(byte));
                await new Promise((resolve) => setImmediate(resolve));
              }
            if (each.closes) socket.end();
          })();
          return undefined;
        };
        using client = await stage.connect();
        await client.send(`${each.method ?? 'GET'} /case HTTP/1.1\r\nHost: localhost\r\n\r\n`);
        if (each.refused) {
          await client.end();
          assert.match(client.received, /^HTTP\/1\.1 502 /);
          assert.deepEqual(client.statuses, [502]);
        } else if (each.broken) {
          await client.end();
          // The head went through before the fault was seen. What matters: the end of the body never does.
          assert.ok(!client.received.endsWith('0\r\n\r\n'), client.received);
          assert.deepEqual(client.statuses, [200]);
        } else {
          await until('the response', () => client.received.length >= (each.passes ?? '').length);
          if (each.closes) await client.end();
          assert.equal(client.received, each.passes);
        }
        // The next client gets its own answer and nothing that was left over.
        using next = await stage.connect();
        await next.send('GET /after HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n');
        await next.end();
        assert.ok(next.received.endsWith('\r\n\r\nafter'), next.received);
        assert.deepEqual(next.statuses, [200]);
        if (each.reused !== undefined && pace === 'as they come') {
          assert.ok(connection);
          assert.equal(stage.origin.connections.length, each.reused ? 1 : 2);
        }
      });
    }
});
