import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { type SecureContext, TLSSocket, connect as tlsConnect } from 'node:tls';
import { pino } from 'pino';

import type { ServiceContext } from '../../src/connectors/connector.ts';
import type { Access } from '../../src/core/access.ts';
import { Admission } from '../../src/core/admission.ts';
import { Relays } from '../../src/core/relay.ts';
import { Secret } from '../../src/core/secret.ts';
import { ClientSession, type SessionReport } from '../../src/core/session.ts';
import { CredentialSource } from '../../src/lifecycle/source.ts';
import { connectors } from './plugins.ts';

const relays = Relays.start({ engine: 'auto', dedicatedSessions: 4 });

/** How bytes travel between the ends of a test: through the kernel as they come, or handed on one by one. */
export const paces = ['as they come', 'one byte at a time'] as const;
export type Pace = (typeof paces)[number];

/** How long a test waits for what has to happen, in milliseconds. */
const PATIENCE = 120_000;

/** Waits until `condition` holds; fails after a while, saying what was waited for. */
export async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + PATIENCE;
  while (!(await condition())) {
    if (Date.now() > end) assert.fail(`waited in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** The other side ended the connection where a test's script wanted more of it. */
export class PeerGone extends Error {}

/** One end of a connection in the hand of a test: it pulls bytes, so that a test reads from top to bottom. */
export class Peer {
  #socket: Socket;
  #received: Buffer[] = [];
  #ended = false;
  /** Code of the error that broke the connection. */
  error: string | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    this.#listen(socket);
  }

  static async connect(port: number, host = '127.0.0.1'): Promise<Peer> {
    const socket = connect({ port, host, allowHalfOpen: true, noDelay: true });
    await once(socket, 'connect');
    return new Peer(socket);
  }

  get socket(): Socket {
    return this.#socket;
  }

  /** Everything received and not yet read. */
  get received(): Buffer {
    return Buffer.concat(this.#received);
  }

  /** The other side is done: it half-closed, closed or broke. */
  get ended(): boolean {
    return this.#ended;
  }

  send(...parts: readonly Uint8Array[]): void {
    this.#socket.write(Buffer.concat(parts));
  }

  /** Exactly `size` bytes; throws PeerGone when the other side ends before. */
  async read(size: number): Promise<Buffer> {
    await until(`${size} bytes`, () => this.received.length >= size || this.#ended);
    const received = this.received;
    if (received.length < size) throw new PeerGone(`ended after ${received.length} of ${size} bytes`);
    this.#received = [received.subarray(size)];
    return received.subarray(0, size);
  }

  /** All bytes until the other side is done. */
  async rest(): Promise<Buffer> {
    await until('the end of the connection', () => this.#ended);
    return this.takeAll();
  }

  /** What there is now, without waiting. */
  takeAll(): Buffer {
    const { received } = this;
    this.#received = [];
    return received;
  }

  end(): void {
    this.#socket.end();
  }

  reset(): void {
    this.#socket.resetAndDestroy();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  /** The client's half of a TLS handshake, trusting anybody. Rejects with the error of the handshake. */
  async startTls(alpn: readonly string[] = []): Promise<TLSSocket> {
    const secure = tlsConnect({
      socket: this.#socket,
      rejectUnauthorized: false,
      ...(alpn.length > 0 && { ALPNProtocols: [...alpn] }),
    });
    await once(secure, 'secureConnect');
    this.wear(secure);
    return secure;
  }

  /** From now on speaks through the TLS socket that was put around the old one. */
  wear(secure: TLSSocket): void {
    this.#socket = secure;
    this.#received = [];
    this.#ended = secure.readableEnded;
    this.#listen(secure);
  }

  #listen(socket: Socket): void {
    socket.on('data', (chunk: Buffer) => this.#received.push(chunk));
    socket.on('error', (error: NodeJS.ErrnoException) => (this.error ??= error.code));
    for (const event of ['end', 'close'] as const) socket.on(event, () => (this.#ended = true));
  }
}

/** A proxy that hands every byte on by itself, so that whoever reads behind it sees every possible fragment. */
export class Chopper implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server, target: number) {
    this.#server = server;
    server.on('connection', (near) => {
      const far = connect({ port: target, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
      for (const socket of [near, far]) {
        this.#sockets.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => this.#sockets.delete(socket));
      }
      void chop(near, far);
      void chop(far, near);
    });
  }

  static async start(target: number): Promise<Chopper> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    return new Chopper(server, target);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await until('the proxy to close', () => this.#sockets.size === 0);
  }
}

async function chop(from: Socket, to: Socket): Promise<void> {
  try {
    for await (const chunk of from.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>)
      for (let at = 0; at < chunk.length && !to.destroyed; at += 1) {
        to.write(chunk.subarray(at, at + 1));
        await new Promise((resolve) => setImmediate(resolve));
      }
    to.end();
  } catch {
    if (to.connecting) to.destroy();
    else to.resetAndDestroy();
  }
}

/** What a connector gets when it is opened, for one that needs no more of it than `prepare`, or not even that. */
export function serviceContext(
  prepare: ServiceContext['prepare'] = () => assert.fail('nothing is prepared'),
): ServiceContext {
  return { name: 'test', log: pino({ level: 'silent' }), loginTimeout: PATIENCE, idleTimeout: 0, prepare };
}

export interface ServedOptions {
  readonly connector?: string;
  /** `config:` of the service. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** What the provider answers; a function is asked anew for each fetch. */
  readonly credentials:
    | Readonly<Record<string, string>>
    | (() => Readonly<Record<string, string>> | Promise<Readonly<Record<string, string>>>);
  readonly localTls?: SecureContext;
  readonly loginTimeout?: number;
  readonly idleTimeout?: number;
  readonly maxSessionAge?: number;
  readonly drainTimeout?: number;
  readonly onRotation?: 'keep' | 'drain';
  readonly maxConnections?: number;
  /** Who may use the port. */
  readonly access?: Access;
  readonly pace?: Pace;
}

/** One service in this process, on a real loopback socket, with everything it leaves behind in sight. */
export class Served implements AsyncDisposable {
  readonly reports: SessionReport[] = [];
  readonly sessions = new Set<ClientSession>();
  readonly admission: Admission;
  /** The bytes of every secret that was lent. */
  readonly lent: Buffer[] = [];
  readonly #server: Server;
  readonly #chopper: Chopper | undefined;
  readonly #lines: string[];
  readonly #peers: Peer[] = [];
  readonly #secretTexts = new Set<string>();
  #fetches = 0;
  /** Ends what belongs to the service and not to a session. */
  readonly #close: () => void;
  /** Tells the protocol that no new clients come. */
  readonly drain: () => void;

  private constructor(
    server: Server,
    chopper: Chopper | undefined,
    lines: string[],
    options: ServedOptions,
    serve: (client: Socket, served: Served) => void,
    close: () => void,
    drain: () => void,
  ) {
    this.#close = close;
    this.drain = drain;
    this.#server = server;
    this.#chopper = chopper;
    this.#lines = lines;
    this.admission = new Admission('test', options.maxConnections ?? 100);
    server.on('connection', (client) => serve(client, this));
  }

  static async open(options: ServedOptions): Promise<Served> {
    const connector = connectors[options.connector ?? 'postgres'];
    assert.ok(connector);
    const { credentials } = options;
    const ask = typeof credentials === 'function' ? credentials : () => credentials;
    const names = Object.keys(await ask());
    const references = new Map(names.map((name) => [name, { provider: 'test', get: name }]));

    const lines: string[] = [];
    const log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) });
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    const chopper = options.pace === 'one byte at a time' ? await Chopper.start(port) : undefined;

    const itself: { served?: Served } = {};
    const fetch = (wanted: readonly string[]) => {
      assert.ok(itself.served);
      return itself.served.#fetch(wanted, ask);
    };
    const newSource = () =>
      new CredentialSource(references, () => ({
        fetch,
        check: async () => {},
        close: async () => {},
      }));
    const shared = newSource();
    const protocol = connector.open(connector.settings.parse(options.settings), {
      ...serviceContext((make) => shared.prepare(make)),
      log,
      loginTimeout: options.loginTimeout ?? PATIENCE,
      idleTimeout: options.idleTimeout ?? 0,
    });
    const serve = (client: Socket, served: Served) => {
      const source = newSource();
      const session = new ClientSession(client, {
        name: 'test',
        log,
        localTls: options.localTls,
        loginTimeout: options.loginTimeout ?? PATIENCE,
        idleTimeout: options.idleTimeout ?? 0,
        maxSessionAge: options.maxSessionAge ?? 0,
        drainTimeout: options.drainTimeout ?? PATIENCE,
        onRotation: options.onRotation ?? 'keep',
        admission: served.admission,
        access: options.access,
        relay: relays.relay,
        serve: (each) => protocol.serve(each),
        lend: (use, signal, onLent) => source.lend(use, signal, onLent),
      });
      served.sessions.add(session);
      void session.run().then((report) => {
        source[Symbol.dispose]();
        served.sessions.delete(session);
        served.reports.push(report);
      });
    };
    const close = () => {
      protocol.close?.();
      shared[Symbol.dispose]();
    };
    const drain = () => protocol.drain?.();
    const served = new Served(server, chopper, lines, options, serve, close, drain);
    itself.served = served;
    return served;
  }

  get port(): number {
    return this.#chopper?.port ?? (this.#server.address() as AddressInfo).port;
  }

  /** How often the provider was asked. */
  get fetches(): number {
    return this.#fetches;
  }

  /** Everything that was logged. */
  get log(): string {
    return this.#lines.join('');
  }

  /** The one log line of each session that has ended. */
  get endings(): Record<string, unknown>[] {
    return this.#lines
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter(({ msg }) => msg === 'session ended' || msg === 'session failed');
  }

  async connect(): Promise<Peer> {
    const peer = await Peer.connect(this.port);
    this.#peers.push(peer);
    return peer;
  }

  /** The report of the `count`-th session to end. */
  async ended(count = 1): Promise<SessionReport> {
    await until(`the end of ${count} sessions`, () => this.reports.length >= count);
    return this.reports[count - 1] as SessionReport;
  }

  /** Sockets of clients that are still open. */
  async openSockets(): Promise<number> {
    const { promise, resolve } = Promise.withResolvers<number>();
    this.#server.getConnections((_error, count) => resolve(count));
    return await promise;
  }

  /** Fails when anything is left of the sessions: a socket, a place, a secret in memory or in the log. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const peer of this.#peers) peer.destroy();
    await this.#chopper?.[Symbol.asyncDispose]();
    this.#server.close();
    await until('all sessions to end', () => this.sessions.size === 0);
    await until('all sockets to close', async () => (await this.openSockets()) === 0);
    this.#close();
    assert.equal(this.admission.active, 0, 'a place is still taken');
    for (const bytes of this.lent)
      assert.ok(
        bytes.every((byte) => byte === 0),
        'a lent secret was not wiped',
      );
    for (const secret of this.#secretTexts) assert.ok(!this.log.includes(secret), 'a secret is in the log');
  }

  async #fetch(wanted: readonly string[], ask: () => unknown): Promise<{ secrets: Secret[] }> {
    this.#fetches += 1;
    const values = (await ask()) as Record<string, string>;
    const secrets = wanted.map((name) => {
      const bytes = Buffer.from(values[name] ?? '');
      this.lent.push(bytes);
      if (name === 'password' && bytes.length > 0) this.#secretTexts.add(values[name] ?? '');
      return new Secret(bytes);
    });
    return { secrets };
  }
}

/** Two ends of one connection over loopback, both half-closable. */
export async function socketPair(): Promise<[Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true, noDelay: true });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const near = connect({
    port: (server.address() as AddressInfo).port,
    host: '127.0.0.1',
    allowHalfOpen: true,
  });
  const [[far]] = await Promise.all([accepted, once(near, 'connect')]);
  server.close();
  near.setNoDelay(true);
  for (const socket of [near, far]) socket.on('error', () => {});
  return [near, far];
}

/** The same with TLS on it: the first end is the TLS client. */
export async function tlsPair(secureContext: SecureContext): Promise<[TLSSocket, TLSSocket]> {
  const [near, far] = await socketPair();
  const server = new TLSSocket(far, { isServer: true, secureContext });
  const client = tlsConnect({ socket: near, rejectUnauthorized: false });
  for (const socket of [client, server]) socket.on('error', () => {});
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  return [client, server];
}
