import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';

import { until } from '../../support/session.ts';
import { inFrontOf, Origin, ok, readHead, readResponse, request, secret } from './origin.ts';

const LIMIT = 4096;

async function signing(origin: Origin) {
  return await inFrontOf(
    origin,
    {
      authenticate: {
        aws: { accessKeyId: 'id', secretAccessKey: 'password', region: 'eu-west-1', service: 'sqs' },
      },
      bufferLimit: LIMIT,
      timeouts: { requestBody: '500ms' },
    },
    { credentials: { id: 'AKIDEXAMPLE', password: secret } },
  );
}

const body = 'Action=SendMessage&MessageBody=hello';
const chunks = `10\r\n${body.slice(0, 16)}\r\n${(body.length - 16).toString(16)}\r\n${body.slice(16)}\r\n0\r\n\r\n`;
const sum = createHash('sha256').update(body).digest('hex');

/** What the server has to get, whatever way the body came. */
function assertSigned(origin: Origin): void {
  const { head = '', body: got } = origin.received.at(-1) ?? {};
  assert.match(head, /\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE\//i);
  assert.match(head, new RegExp(`\\r\\nContent-Length: ${body.length}\\r\\n`));
  assert.doesNotMatch(head, /\r\n(Expect|Transfer-Encoding):/i);
  const said = /\r\nx-amz-content-sha256: (\w+)\r\n/i.exec(head)?.[1];
  assert.ok(said === undefined || said === sum, said);
  assert.equal(got, body);
}

it('is answered without the session token that it was signed with, where a server repeats it', async () => {
  const token = `${secret}/session+token==`;
  await using origin = await Origin.start(() => ok('done', `X-Echo: ${token}`, 'X-Other: kept'));
  await using served = await inFrontOf(
    origin,
    {
      authenticate: {
        aws: {
          accessKeyId: 'id',
          secretAccessKey: 'password',
          sessionToken: 'session',
          region: 'eu-west-1',
          service: 'sqs',
        },
      },
    },
    { credentials: { id: 'AKIDEXAMPLE', password: secret, session: token } },
  );
  const client = await served.connect();
  client.send(request('GET', '/'));
  const { head, body: got } = await readResponse(client);
  assert.ok(origin.received[0]?.head.toLowerCase().includes(`x-amz-security-token: ${token}`));
  assert.equal(got, 'done');
  assert.doesNotMatch(head, /x-echo/i);
  assert.match(head, /\r\nX-Other: kept\r\n/);
});

describe('a request that is signed with its body', () => {
  it('is sent when the body is there, however it comes, and the next one follows on the connection', async () => {
    await using origin = await Origin.start(() => ok('done'));
    await using served = await signing(origin);
    const client = await served.connect();
    for (const [fields, bytes] of [
      [[`Content-Length: ${body.length}`], body],
      [['Transfer-Encoding: chunked'], chunks],
    ] as const) {
      client.send(request('POST', '/', ...fields));
      for (const byte of Buffer.from(bytes)) {
        client.socket.write(Uint8Array.of(byte));
        await new Promise((resolve) => setImmediate(resolve));
      }
      assert.equal((await readResponse(client)).body, 'done');
      assertSigned(origin);
      client.send(request('POST', '/', ...fields), Buffer.from(bytes), request('GET', '/next'));
      assert.equal((await readResponse(client)).body, 'done');
      assert.equal((await readResponse(client)).body, 'done');
      assert.match(origin.received.at(-1)?.head ?? '', /^GET \/next /);
    }
  });

  it('has its client told to go on, once', async () => {
    await using origin = await Origin.start(() => ok('done'));
    await using served = await signing(origin);
    for (const [fields, bytes] of [
      [`Content-Length: ${body.length}`, body],
      ['Transfer-Encoding: chunked', chunks],
    ] as const) {
      const client = await served.connect();
      client.send(request('POST', '/', fields, 'Expect: 100-continue'));
      assert.equal(await readHead(client), 'HTTP/1.1 100 Continue\r\n\r\n');
      client.send(Buffer.from(bytes.slice(0, 20)));
      await new Promise((resolve) => setTimeout(resolve, 30));
      client.send(Buffer.from(bytes.slice(20)));
      assert.match((await readResponse(client)).head, /^HTTP\/1\.1 200 /);
      assertSigned(origin);
    }
  });

  it('is refused when the body is too long, stops, or is not chunked as it should be: nothing is sent', async () => {
    await using origin = await Origin.start(() => ok('done'));
    await using served = await signing(origin);
    const long = 'b'.repeat(LIMIT + 1);
    for (const [fields, bytes, status] of [
      [`Content-Length: ${long.length}`, '', 413],
      ['Transfer-Encoding: chunked', `${long.length.toString(16)}\r\n${long}\r\n0\r\n\r\n`, 413],
      ['Transfer-Encoding: chunked', `ffffff\r\n${long.repeat(30)}`, 413],
      ['Transfer-Encoding: chunked', 'zz\r\n', 400],
      [`Content-Length: ${body.length}`, body.slice(1), 408],
    ] as const) {
      const client = await served.connect();
      client.send(request('POST', '/', fields), Buffer.from(bytes));
      const answer = (await client.rest()).toString();
      assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `), fields);
      client.end();
    }
    assert.equal(origin.connections, 0);
  });

  it('is forgotten when its client leaves before the body is there', async () => {
    await using origin = await Origin.start(() => ok('done'));
    await using served = await signing(origin);
    for (const way of ['end', 'reset'] as const) {
      const client = await served.connect();
      client.send(request('POST', '/', `Content-Length: ${body.length}`), Buffer.from(body.slice(1)));
      await until('the session', () => served.sessions.size === 1);
      client[way]();
      await until('its end', () => served.sessions.size === 0);
    }
    assert.equal(origin.connections, 0);
  });
});
