import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { TLSSocket, connect as tlsConnect } from 'node:tls';

import { findInternals, type Internals, useInternals } from './relay-port.ts';
import { TypeScriptRelay } from './relay-typescript.ts';

/** How long the trial may take, in milliseconds. */
const PATIENCE = 5000;
const QUESTION = Buffer.alloc(100_000, 'are you there?');

let trial: Promise<boolean> | undefined;

/**
 * Tries once for the process whether sockets can be read and written directly, with this version of Node: a relay over
 * loopback, plain on one side and under TLS on the other, has to carry bytes both ways and to end in order. Until that is
 * known, and where it fails, relays do it in the documented way. Never rejects.
 */
export async function proveDirect(): Promise<boolean> {
  trial ??= attempt().then(
    (found) => {
      useInternals(found);
      return found !== undefined;
    },
    () => {
      useInternals(undefined);
      return false;
    },
  );
  return await trial;
}

async function attempt(): Promise<Internals | undefined> {
  const sockets: Socket[] = [];
  const signal = AbortSignal.timeout(PATIENCE);
  try {
    const [client, relayed] = await pair(sockets, signal);
    const found = findInternals(relayed);
    if (!found) return undefined;
    const [upstream, server] = (await pair(sockets, signal)).map(withTls) as [TLSSocket, TLSSocket];
    sockets.push(upstream, server);
    for (const socket of sockets) socket.on('error', () => {});
    await once(upstream, 'secureConnect', { signal });
    await once(client, 'readable', { signal });
    client.read();

    useInternals(found);
    const relay = new TypeScriptRelay(relayed, upstream, { idleTimeout: 0 });
    useInternals(undefined);
    server.pipe(server);
    client.end(QUESTION);
    const answer: Buffer[] = [];
    client.on('data', (bytes: Buffer) => answer.push(bytes));
    await once(client, 'end', { signal });
    const { fromClient, fromUpstream } = relay.bytes;
    const whole = Buffer.concat(answer).equals(QUESTION) && fromClient === fromUpstream;
    return whole ? found : undefined;
  } finally {
    for (const socket of sockets) socket.destroy();
  }
}

async function pair(sockets: Socket[], signal: AbortSignal): Promise<[Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true });
  try {
    await once(server.listen(0, '127.0.0.1'), 'listening', { signal });
    const { port } = server.address() as AddressInfo;
    const accepted = once(server, 'connection', { signal });
    const near = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    sockets.push(near);
    const [[far]] = (await Promise.all([accepted, once(near, 'connect', { signal })])) as [[Socket], unknown];
    sockets.push(far);
    return [near, far];
  } finally {
    server.close();
  }
}

/** A key that both ends know (RFC 4279) spares them a certificate; what they say to each other is no secret. */
function withTls(socket: Socket, index: number): TLSSocket {
  const psk = Buffer.alloc(32);
  const shared = { ciphers: 'PSK-AES128-GCM-SHA256', maxVersion: 'TLSv1.2' } as const;
  if (index === 0)
    return tlsConnect({
      ...shared,
      socket,
      pskCallback: () => ({ psk, identity: 'trial' }),
      checkServerIdentity: () => undefined,
    });
  // Of the types, only those of `createServer` know the callback.
  const options = { ...shared, isServer: true, pskCallback: () => psk };
  return new TLSSocket(socket, options);
}
