import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, it } from 'node:test';

import { certificates } from '../../support/servers.ts';
import { failure, never, open, texts } from '../opening.ts';
import { fakeVault } from './fake-vault.ts';

const running: Server[] = [];
afterEach(async () => {
  for (const server of running.splice(0)) {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  }
});

/** A FAKE standby: it redirects every request to `target`, or answers it when there is none. */
async function fakeStandby(
  leaf: 'server' | 'other-ca',
  target?: string,
): Promise<{ port: number; tokens: unknown[] }> {
  const { cert, key } = (await certificates())[leaf];
  const tokens: unknown[] = [];
  const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (request, response) => {
    tokens.push(request.headers['x-vault-token']);
    if (target) response.writeHead(307, { location: `${target}${request.url}` });
    response.end(JSON.stringify({ data: { data: { value: 'found' }, metadata: { version: 1 } } }));
  });
  running.push(server);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, tokens };
}

async function askThrough(port: number) {
  const { ca } = await certificates();
  return open('vault', {
    address: `https://127.0.0.1:${port}`,
    auth: { method: 'token', token: 'a-token' },
    tls: { ca },
    kvVersion: 2,
  });
}

describe('a standby that redirects over TLS', () => {
  it('is followed to another host that proves its name to the same CA, with the token', async () => {
    const active = await fakeStandby('server');
    const standby = await fakeStandby('server', `https://localhost:${active.port}`);
    const provider = await askThrough(standby.port);
    assert.deepEqual(await texts(provider, 'secret/app'), ['found']);
    assert.deepEqual(active.tokens, ['a-token']);
    await provider.close(never);
  });

  it('is not followed to a host of another CA: it never sees the token', async () => {
    const impostor = await fakeStandby('other-ca');
    const standby = await fakeStandby('server', `https://localhost:${impostor.port}`);
    const provider = await askThrough(standby.port);
    const error = await failure(provider.fetch(['secret/app'], never));
    assert.equal(error.code, 'PROVIDER_UNAVAILABLE');
    assert.match(error.message, /TLS with .* failed/);
    assert.deepEqual(impostor.tokens, []);
    await provider.close(never);
  });

  it('is not followed to plain http', async () => {
    const plain = await fakeVault({ value: 'found' });
    const standby = await fakeStandby('server', plain.address);
    const provider = await askThrough(standby.port);
    const error = await failure(provider.fetch(['secret/app'], never));
    assert.match(error.message, /redirected to where the token must not go/);
    assert.deepEqual(plain.seen, []);
    await provider.close(never);
    await plain.stop();
  });
});
