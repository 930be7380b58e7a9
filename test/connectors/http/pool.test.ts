import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import type { AddressInfo, Socket } from 'node:net';
import { describe, it } from 'node:test';
import { createServer, type TLSSocket } from 'node:tls';

import type { ServiceContext } from '../../../src/connectors/connector.ts';
import type { Generation } from '../../../src/connectors/http/generation.ts';
import { originOf } from '../../../src/connectors/http/route.ts';
import { openScheme } from '../../../src/connectors/http/schemes/index.ts';
import { openMember } from '../../../src/connectors/http/service.ts';
import { settings } from '../../../src/connectors/http/settings.ts';
import { Credentials } from '../../../src/core/credentials.ts';
import type { Prepare } from '../../../src/core/prepared.ts';
import { Secret } from '../../../src/core/secret.ts';
import { certificates, type Leaf } from '../../support/servers.ts';
import { serviceContext, until } from '../../support/session.ts';
import { get, inFrontOf, Origin, ok, readResponse } from './origin.ts';

const failed = (text: string) => [
  /^HTTP\/1\.1 (\d+)/.exec(text)?.[1],
  /\r\nPostern-Error: (\w+)/.exec(text)?.[1],
];

describe('the connections to a server', () => {
  it('are shared by the clients of a service, the one used last first', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(origin);
    for (let i = 0; i < 5; i += 1) {
      const client = await served.connect();
      client.send(get());
      await readResponse(client);
    }
    assert.equal(origin.connections, 1);
  });

  it('are no more than allowed: further requests wait for one, and too many waiting are told to come back', async () => {
    const gates: (() => void)[] = [];
    await using origin = await Origin.start(async () => {
      await new Promise<void>((resolve) => gates.push(resolve));
      return ok('served');
    });
    await using served = await inFrontOf(origin, { pool: { maxConnections: 1, maxWaiting: 1 } });
    const [first, second, third] = await Promise.all([served.connect(), served.connect(), served.connect()]);
    first.send(get());
    await until('the first request', () => gates.length === 1);
    second.send(get());
    await new Promise((resolve) => setTimeout(resolve, 50));
    third.send(get());
    const refused = (await third.rest()).toString();
    assert.deepEqual(failed(refused), ['503', 'LIMIT_REACHED']);
    assert.match(refused, /\r\nRetry-After: 1\r\n/);
    third.end();
    assert.equal(origin.received.length, 1);
    gates[0]?.();
    assert.equal((await readResponse(first)).body, 'served');
    await until('the second request', () => gates.length === 2);
    gates[1]?.();
    assert.equal((await readResponse(second)).body, 'served');
    assert.equal(origin.connections, 1);
  });

  it('are not waited for longer than a login may take, nor by a client that has gone', async () => {
    await using origin = await Origin.start(() => undefined);
    await using served = await inFrontOf(origin, { pool: { maxConnections: 1 } }, { loginTimeout: 400 });
    const [first, second, gone] = await Promise.all([served.connect(), served.connect(), served.connect()]);
    first.send(get());
    await until('the first request', () => origin.received.length === 1);
    gone.send(get());
    await new Promise((resolve) => setTimeout(resolve, 50));
    gone.destroy();
    second.send(get());
    assert.deepEqual(failed((await second.rest()).toString()), ['504', 'TIMEOUT']);
    second.end();
    first.destroy();
    await until('the connection to end', () => origin.open === 0);
    await served.ended(3);
    assert.equal(origin.received.length, 1);
  });

  it('are closed when nobody has used them for a while', async () => {
    await using origin = await Origin.start(() => ok(''));
    await using served = await inFrontOf(origin, { pool: { idleTimeout: '300ms' } });
    const client = await served.connect();
    client.send(get());
    await readResponse(client);
    await until('the connection to be closed', () => origin.open === 0);
    client.send(get());
    await readResponse(client);
    assert.equal(origin.connections, 2);
  });

  it('end with the service, and never outlive the generation of its credentials', async () => {
    let token = 'generation-one-token';
    let valid = token;
    await using origin = await Origin.start(({ head }) =>
      head.includes(`Bearer ${valid}\r\n`)
        ? ok('in')
        : 'HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n',
    );
    {
      await using served = await inFrontOf(origin, {}, { credentials: () => ({ password: token }) });
      const client = await served.connect();
      client.send(get());
      await readResponse(client);
      token = valid = 'generation-two-token';
      client.send(get());
      assert.equal((await readResponse(client)).body, 'in');
      assert.equal(origin.connections, 2);
      assert.equal(origin.open, 1);
      client.end();
      // The rejection in between was mended: nobody has to hear of it.
      assert.equal((await served.ended()).outcome, 'ok');
    }
    await until('all connections to be closed', () => origin.open === 0);
  });
});

describe('the connections of a generation of credentials', () => {
  it('go over to the next one when the credentials are the very same, and to no other', async () => {
    await using origin = await Origin.start(() => ok(''));
    let make: Prepare<Generation> | undefined;
    const context = serviceContext(((given: Prepare<Generation>) => {
      make = given;
      return undefined;
    }) as unknown as ServiceContext['prepare']);
    const engine = settings.parse({ upstream: 'http://localhost' });
    openMember(context, engine, openScheme({ bearer: 'token' }, { name: 'test' }));
    const generation = async (token: string, previous?: Generation) => {
      const credentials = new Credentials(new Map([['token', new Secret(Buffer.from(token))]]));
      const made = await make?.(credentials, AbortSignal.timeout(1000), previous);
      assert.ok(made);
      previous?.[Symbol.dispose]();
      return made.value;
    };
    const target = originOf(false, '127.0.0.1', origin.port);
    const first = await generation('the-same-token');
    const pool = first.poolOf(target);
    const again = await generation('the-same-token', first);
    assert.equal(again.poolOf(target), pool);
    assert.equal(pool.generation, again);
    const other = await generation('another-token', again);
    assert.notEqual(other.poolOf(target), pool);
    other[Symbol.dispose]();
  });
});

describe('the TLS connections to a server', () => {
  it('prove who the server is before anything is sent, and use a session again', async () => {
    const { server, ca, ...others } = await certificates();
    await using origin = await tlsOrigin(server);
    const settings = (tls: Readonly<Record<string, string>>) => ({
      upstream: `https://localhost:${origin.port}`,
      allowPlainHttp: false,
      tls,
    });
    await using good = await inFrontOf(origin, settings({ ca }));
    for (let i = 0; i < 2; i += 1) {
      const client = await good.connect();
      client.send(get());
      assert.equal((await readResponse(client)).body, 'secure');
      client.end();
    }
    assert.deepEqual(
      origin.seen.map(({ reused, name, client }) => [reused, name, client]),
      [
        [false, 'localhost', ''],
        [true, 'localhost', ''],
      ],
    );
    for (const tls of [{}, { ca: others['other-ca'].ca }, { ca, serverName: 'other.example' }]) {
      await using bad = await inFrontOf(origin, settings(tls));
      const client = await bad.connect();
      client.send(get());
      const told = (await client.rest()).toString();
      assert.deepEqual(failed(told), ['502', 'UPSTREAM_TLS']);
      assert.ok(!told.includes(String(origin.port)));
      client.end();
      assert.equal((await bad.ended()).outcome, 'UPSTREAM_TLS');
    }
    assert.equal(origin.heard, 2);
  });

  it('show a client certificate, from files or from credentials', async () => {
    const { server, ca, client } = await certificates();
    await using origin = await tlsOrigin(server, ca);
    const [cert, key] = await Promise.all([readFile(client.cert, 'utf8'), readFile(client.key, 'utf8')]);
    for (const [tls, credentials] of [
      [{ ca, cert: client.cert, key: client.key }, {}],
      [{ ca }, { tlsCert: cert, tlsKey: key }],
    ] as const) {
      await using served = await inFrontOf(
        origin,
        { upstream: `https://127.0.0.1:${origin.port}`, allowPlainHttp: false, authenticate: undefined, tls },
        { credentials },
      );
      const peer = await served.connect();
      peer.send(get());
      assert.equal((await readResponse(peer)).body, 'secure');
      assert.equal(origin.seen.at(-1)?.client, 'cert_user');
    }
  });
});

interface TlsOrigin extends AsyncDisposable {
  readonly port: number;
  readonly seen: { readonly reused: boolean; readonly client: string; readonly name: string }[];
  /** Requests that arrived. */
  readonly heard: number;
}

/** A server that answers one request in each connection. */
async function tlsOrigin(leaf: Leaf, clientCa?: string): Promise<TlsOrigin> {
  const seen: { reused: boolean; client: string; name: string }[] = [];
  const sockets = new Set<Socket>();
  let heard = 0;
  const server = createServer(
    {
      cert: await readFile(leaf.cert),
      key: await readFile(leaf.key),
      ...(clientCa && { ca: await readFile(clientCa), requestCert: true }),
    },
    (socket: TLSSocket) => {
      sockets.add(socket);
      socket.on('error', () => {});
      seen.push({
        reused: socket.isSessionReused(),
        client: String(socket.getPeerCertificate().subject?.CN ?? ''),
        name: String(socket.servername || ''),
      });
      socket.on('data', () => {
        heard += 1;
        socket.end(ok('secure', 'Connection: close'));
      });
    },
  );
  server.on('tlsClientError', () => {});
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    seen,
    get heard() {
      return heard;
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}
