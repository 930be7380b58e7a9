import { createHash, createHmac, pbkdf2Sync, randomBytes, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { type SecureContext, TLSSocket } from 'node:tls';

import { canary } from './servers/canary.ts';
import { Chopper, type Pace, Peer, PeerGone, Served, type ServedOptions, until } from './session.ts';

// A FAKE: it says what a test's script tells it to. For faults that no real server produces on demand; whether Postern
// and PostgreSQL understand each other is for the tests with real servers to say. It shares no code with src.

export function int32(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [i, value] of values.entries()) bytes.writeInt32BE(value | 0, 4 * i);
  return bytes;
}

export function cstring(text: string): Buffer {
  return Buffer.from(`${text}\0`);
}

/** A message with its type letter and its length. */
export function message(type: string, ...parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  return Buffer.concat([Buffer.from(type, 'latin1'), int32(body.length + 4), body]);
}

/** A packet of the time before the login: no type letter. */
export function packet(...parts: readonly Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  return Buffer.concat([int32(body.length + 4), body]);
}

/** What a client says first. `version` is major and minor in one number. */
export function startup(parameters: readonly (readonly [string, string])[], version = 0x0003_0000): Buffer {
  return packet(
    int32(version),
    ...parameters.flatMap(([name, value]) => [cstring(name), cstring(value)]),
    Buffer.of(0),
  );
}

export const sslRequest = packet(int32(80877103));
export const gssRequest = packet(int32(80877104));

export function cancelRequest(pid: number, key: Uint8Array): Buffer {
  return packet(int32(80877102, pid), key);
}

export function authentication(code: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return message('R', int32(code), data);
}

export function parameterStatus(name: string, value: string): Buffer {
  return message('S', cstring(name), cstring(value));
}

export function backendKey(pid: number, key: Uint8Array): Buffer {
  return message('K', int32(pid), key);
}

export const readyForQuery = message('Z', Buffer.from('I'));

/** The body of an ErrorResponse or a NoticeResponse. */
export function fields(of: Readonly<Record<string, string>>): Buffer {
  return Buffer.concat([
    ...Object.entries(of).flatMap(([letter, text]) => [Buffer.from(letter), cstring(text)]),
    Buffer.of(0),
  ]);
}

export function errorResponse(of: Readonly<Record<string, string>>): Buffer {
  return message('E', fields(of));
}

export function notice(text: string): Buffer {
  return message('N', fields({ S: 'NOTICE', V: 'NOTICE', C: '00000', M: text }));
}

/** A message of either side, taken apart. */
export interface Received {
  readonly type: string;
  readonly body: Buffer;
  readonly bytes: Buffer;
}

/** Takes a byte stream of whole messages apart. */
export function messagesOf(bytes: Buffer): Received[] {
  const messages: Received[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = at + 1 + bytes.readInt32BE(at + 1);
    if (end > bytes.length) throw new Error(`half a message: ${bytes.subarray(at).toString('hex')}`);
    messages.push({
      type: bytes.toString('latin1', at, at + 1),
      body: bytes.subarray(at + 5, end),
      bytes: bytes.subarray(at, end),
    });
    at = end;
  }
  return messages;
}

/** The fields of an ErrorResponse by their letter. */
export function fieldsOf(body: Buffer): Record<string, string> {
  const texts = body.subarray(0, -1).toString().split('\0').filter(Boolean);
  return Object.fromEntries(texts.map((text) => [text.slice(0, 1), text.slice(1)]));
}

/** Reads one message from either side. */
export async function readMessage(peer: Peer): Promise<Received> {
  const head = await peer.read(5);
  const body = await peer.read(head.readInt32BE(1) - 4);
  return { type: head.toString('latin1', 0, 1), body, bytes: Buffer.concat([head, body]) };
}

/** Reads messages up to and with the first of one of these types. */
export async function readUntil(peer: Peer, types: string): Promise<Received[]> {
  const messages: Received[] = [];
  for (;;) {
    const received = await readMessage(peer);
    messages.push(received);
    if (types.includes(received.type)) return messages;
  }
}

/** The server's end of one connection. */
export class ServerEnd extends Peer {
  /** Bytes that may still be sent; then the connection ends. */
  #allowance: number;
  readonly #cut: 'end' | 'reset' | 'close';

  constructor(socket: Socket, allowance: number, cut: 'end' | 'reset' | 'close') {
    super(socket);
    this.#allowance = allowance;
    this.#cut = cut;
  }

  override send(...parts: readonly Uint8Array[]): void {
    const bytes = Buffer.concat(parts).subarray(0, this.#allowance);
    this.#allowance -= bytes.length;
    super.send(bytes);
    if (this.#allowance > 0) return;
    if (this.#cut === 'end') this.end();
    else if (this.#cut === 'close') this.socket.destroySoon();
    // A reset throws away what the other side has not read yet.
    else this.socket.write('', () => setImmediate(() => this.reset()));
    throw new PeerGone('said all that it may');
  }

  /** The first packet: its code and the name/value list, in order. */
  async packet(): Promise<{ readonly code: number; readonly body: Buffer }> {
    const body = await this.read((await this.read(4)).readInt32BE() - 4);
    return { code: body.readInt32BE(), body: body.subarray(4) };
  }

  async startup(): Promise<[string, string][]> {
    const { body } = await this.packet();
    const texts = body.toString('latin1').split('\0').slice(0, -2);
    return Array.from({ length: texts.length / 2 }, (_, i) => [texts[2 * i] ?? '', texts[2 * i + 1] ?? '']);
  }

  /** The body of the client's next message, which must be the answer to an authentication request. */
  async password(): Promise<Buffer> {
    const { type, body } = await readMessage(this);
    if (type !== 'p') throw new Error(`message ${type} instead of a password`);
    return body;
  }

  /** Answers the SSLRequest and makes the server's half of the handshake. */
  async acceptTls(secureContext: SecureContext, alpn: readonly string[] = []): Promise<TLSSocket> {
    // What has come already is the beginning of the handshake.
    this.socket.pause().removeAllListeners('data');
    const early = this.takeAll();
    if (early.length > 0) this.socket.unshift(early);
    const secure = new TLSSocket(this.socket, {
      isServer: true,
      secureContext,
      ...(alpn.length > 0 && { ALPNProtocols: [...alpn] }),
    });
    // At once: who leaves after the handshake may do so together with its last message.
    secure.on('end', () => secure.end());
    const ended = new Promise((_resolve, reject) => {
      secure.on('error', () => reject(new PeerGone('TLS failed')));
      secure.on('close', () => reject(new PeerGone('closed during TLS')));
    });
    await Promise.race([once(secure, 'secure'), ended]);
    ended.catch(() => {});
    this.wear(secure);
    return secure;
  }
}

/** What the fake does with one connection. */
export type Script = (server: ServerEnd) => Promise<void> | void;

export class FakePostgres implements AsyncDisposable {
  readonly #server: Server;
  readonly #chopper: Chopper | undefined;
  readonly #sockets = new Set<Socket>();
  /** What scripts failed with, other than the end of their connection. */
  readonly #failures: unknown[] = [];
  script: Script;
  connections = 0;
  /** Bytes it may say in each connection, and what then happens. */
  allowance = Number.POSITIVE_INFINITY;
  cut: 'end' | 'reset' | 'close' = 'end';

  private constructor(server: Server, chopper: Chopper | undefined, script: Script) {
    this.#server = server;
    this.#chopper = chopper;
    this.script = script;
    server.on('connection', (socket) => void this.#serve(socket));
  }

  static async start(script: Script, pace: Pace = 'as they come'): Promise<FakePostgres> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    const chopper = pace === 'one byte at a time' ? await Chopper.start(port) : undefined;
    return new FakePostgres(server, chopper, script);
  }

  get port(): number {
    return this.#chopper?.port ?? (this.#server.address() as AddressInfo).port;
  }

  /** `config:` of a service in front of it, without TLS. */
  get settings(): { host: string; port: number; tls: { mode: string } } {
    return { host: '127.0.0.1', port: this.port, tls: { mode: 'disable' } };
  }

  /** Connections that are still open. */
  get open(): number {
    return this.#sockets.size;
  }

  /** Fails when Postern has left a connection open, or a script failed. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      if (this.#failures.length > 0) throw this.#failures[0];
      await until('Postern to close its connections to the server', () => this.#sockets.size === 0);
    } finally {
      for (const socket of this.#sockets) socket.destroy();
      await this.#chopper?.[Symbol.asyncDispose]();
      this.#server.close();
    }
  }

  async #serve(socket: Socket): Promise<void> {
    this.connections += 1;
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    const server = new ServerEnd(socket, this.allowance, this.cut);
    // As a server process does: when the client is done, so is it.
    socket.on('end', () => server.end());
    try {
      if (this.allowance === 0) server.send();
      await this.script(server);
    } catch (error) {
      if (!(error instanceof PeerGone)) this.#failures.push(error);
    }
  }
}

/** What a server says after AuthenticationOk. */
export const greeting: readonly Buffer[] = [
  parameterStatus('server_version', '18.4'),
  parameterStatus('client_encoding', 'UTF8'),
  parameterStatus('in_hot_standby', 'off'),
  backendKey(4711, Buffer.of(1, 2, 3, 4)),
  readyForQuery,
];

/** Reads the startup packet, authenticates, greets. */
export function loginWith(
  authenticate: Script,
  greet: readonly Buffer[] = greeting,
  then: Script = () => {},
): Script {
  return async (server) => {
    await server.startup();
    await authenticate(server);
    server.send(authentication(0), ...greet);
    await then(server);
  };
}

/** No authentication at all. */
export const trust: Script = () => {};

export function cleartext(password: string): Script {
  return async (server) => {
    server.send(authentication(3));
    if (!(await server.password()).equals(cstring(password))) refuse(server);
  };
}

export function md5(user: string, password: string): Script {
  return async (server) => {
    const salt = randomBytes(4);
    server.send(authentication(5, salt));
    const inner = createHash('md5').update(password).update(user).digest('hex');
    const expected = `md5${createHash('md5').update(inner).update(salt).digest('hex')}`;
    if (!(await server.password()).equals(cstring(expected))) refuse(server);
  };
}

/** SCRAM-SHA-256 without channel binding (RFC 5802), from the server's side. Few iterations: it need not be safe. */
export function scram(
  password: string,
  { signature = (right: Buffer): Buffer => right, iterations = 16 } = {},
): Script {
  return async (server) => {
    server.send(authentication(10, Buffer.from('SCRAM-SHA-256\0\0')));
    const initial = await server.password();
    const clientFirst = initial.subarray(initial.indexOf(0) + 5).toString();
    const [, gs2Header = '', bare = '', clientNonce = ''] = /^([ny],,)(n=,r=(.*))$/.exec(clientFirst) ?? [];
    const nonce = clientNonce + randomBytes(9).toString('base64');
    const salt = randomBytes(16);
    const serverFirst = `r=${nonce},s=${salt.toString('base64')},i=${iterations}`;
    server.send(authentication(11, Buffer.from(serverFirst)));

    const [withoutProof = '', proof = ''] = (await server.password()).toString().split(',p=');
    if (withoutProof !== `c=${Buffer.from(gs2Header).toString('base64')},r=${nonce}`) refuse(server);
    const hmac = (key: Buffer, text: string) => createHmac('sha256', key).update(text).digest();
    const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256');
    const storedKey = createHash('sha256').update(hmac(salted, 'Client Key')).digest();
    const authMessage = `${bare},${serverFirst},${withoutProof}`;
    const clientSignature = hmac(storedKey, authMessage);
    const clientKey = Buffer.from(proof, 'base64').map((byte, i) => byte ^ (clientSignature[i] ?? 0));
    if (!timingSafeEqual(createHash('sha256').update(clientKey).digest(), storedKey)) refuse(server);
    const right = hmac(hmac(salted, 'Server Key'), authMessage);
    server.send(authentication(12, Buffer.from(`v=${signature(right).toString('base64')}`)));
  };
}

function refuse(server: ServerEnd): never {
  server.send(
    errorResponse({ S: 'FATAL', V: 'FATAL', C: '28P01', M: 'password authentication failed for user "app"' }),
  );
  server.end();
  throw new PeerGone('refused');
}

/** A service in front of a fake, and the way to both. Ending it fails when anything is left open or unwiped. */
export interface Brokered extends AsyncDisposable {
  readonly served: Served;
  readonly fake: FakePostgres;
}

/** Opens the connector `postgres` in front of a fake, with `app` and the canary for a credential. */
export async function broker(
  script: Script,
  {
    pace = 'as they come',
    settings = {},
    ...options
  }: Partial<ServedOptions> & { readonly pace?: Pace } = {},
): Promise<Brokered> {
  const fake = await FakePostgres.start(script, pace);
  const served = await Served.open({
    credentials: { username: 'app', password: canary.postgres },
    ...options,
    settings: { ...fake.settings, allowAuth: ['password', 'md5'], ...settings },
    pace,
  });
  return {
    fake,
    served,
    [Symbol.asyncDispose]: async () => {
      await served[Symbol.asyncDispose]();
      await fake[Symbol.asyncDispose]();
    },
  };
}
