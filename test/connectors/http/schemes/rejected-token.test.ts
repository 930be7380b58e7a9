import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, it } from 'node:test';

import { Served } from '../../../support/session.ts';
import { type Said, TokenServer } from './token-server.ts';

/** An API that takes one token only. */
async function api(
  good: string,
): Promise<{ readonly url: string; readonly shown: string[] } & AsyncDisposable> {
  const shown: string[] = [];
  const server = createServer((request, response) => {
    shown.push(String(request.headers.authorization));
    response.writeHead(request.headers.authorization === `Bearer ${good}` ? 200 : 401);
    response.end('said');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    shown,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

async function asked(upstream: string, tokens: TokenServer): Promise<{ status: string; answer: string }> {
  await using served = await Served.open({
    connector: 'http',
    credentials: { clientId: 'id', clientSecret: 'c4nary-of-the-client' },
    settings: {
      upstream,
      allowPlainHttp: true,
      authenticate: {
        oauth2: { tokenUrl: `${tokens.url}/token`, clientSecret: 'clientSecret', ca: tokens.ca },
      },
    },
  });
  const client = await served.connect();
  client.send(Buffer.from('GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'));
  const answer = (await client.rest()).toString();
  client.end();
  assert.ok(!served.log.includes('c4nary'));
  assert.ok(!answer.includes('c4nary'));
  return { status: answer.slice(9, 12), answer };
}

const numbered = (_: unknown, nth: number): Said => ({
  body: { access_token: `token-${nth}`, token_type: 'Bearer', expires_in: 3600 },
});

describe('an access token that the API rejects before its end', () => {
  it('is replaced once, and the request sent once more', async () => {
    await using tokens = await TokenServer.start(numbered);
    await using server = await api('token-2');
    assert.equal((await asked(server.url, tokens)).status, '200');
    assert.deepEqual(server.shown, ['Bearer token-1', 'Bearer token-2']);
    assert.equal(tokens.asked.length, 2);
  });

  it('is not replaced for ever', async () => {
    await using tokens = await TokenServer.start(numbered);
    await using server = await api('never');
    assert.equal((await asked(server.url, tokens)).status, '401');
    assert.equal(server.shown.length, 2);
  });

  it('that is not to be had at all is a failure of the provider, which names the server', async () => {
    await using tokens = await TokenServer.start(() => ({ status: 401, body: { error: 'invalid_client' } }));
    await using server = await api('none');
    const { status, answer } = await asked(server.url, tokens);
    assert.equal(status, '502');
    assert.match(answer, /Postern-Error: PROVIDER_FAILED/);
    assert.equal(server.shown.length, 0);
    assert.match(answer, /"postern: localhost:\d+ gives no token: invalid_client"/);
  });

  it('that is not to be had now is to be asked for later', async () => {
    await using tokens = await TokenServer.start(() => ({ status: 503, body: '' }));
    await using server = await api('none');
    const { status, answer } = await asked(server.url, tokens);
    assert.equal(status, '503');
    assert.match(answer, /Postern-Error: PROVIDER_UNAVAILABLE/);
  });
});
