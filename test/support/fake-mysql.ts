import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { Duplex } from 'node:stream';
import { type SecureContext, TLSSocket } from 'node:tls';

// Nothing of it is about PostgreSQL: a server that runs a test's script for each connection.
import { FakePostgres as FakeServer, type Script, type ServerEnd } from './fake-postgres.ts';
import { canary } from './servers/canary.ts';
import { type Pace, type Peer, PeerGone, Served, type ServedOptions } from './session.ts';

// A FAKE: it says what a test's script tells it to. For faults that no real server produces on demand; whether Postern
// and MySQL understand each other is for the tests with real servers to say. It shares no code with src.

/** Capability flags that tests speak of. */
export const flag = {
  longPassword: 0x1,
  connectWithDatabase: 0x8,
  compress: 0x20,
  localFiles: 0x80,
  protocol41: 0x200,
  ssl: 0x800,
  secureConnection: 0x8000,
  pluginAuth: 0x80000,
  attributes: 0x100000,
  lenencAuth: 0x200000,
  sessionTrack: 0x800000,
  deprecateEof: 0x1000000,
  zstd: 0x4000000,
  queryAttributes: 0x8000000,
  multiFactor: 0x10000000,
} as const;

/** What MySQL 9.7 says of itself. */
export const mysqlFlags = 0xdfffffff;
/** What MariaDB 11.8 says of itself. */
export const mariadbFlags = 0x81fffffe;
/** A client of our days: mysql2. */
export const clientFlags = 0x08baf3cf;

export function int(size: 1 | 2 | 3 | 4, value: number): Buffer {
  const bytes = Buffer.alloc(size);
  bytes.writeUIntLE(value, 0, size);
  return bytes;
}

export function cstring(text: string): Buffer {
  return Buffer.from(`${text}\0`);
}

/** A length-encoded string of less than 64 KiB. */
export function lenenc(bytes: Buffer | string): Buffer {
  const { length } = Buffer.from(bytes);
  return Buffer.concat([
    length < 251 ? int(1, length) : Buffer.of(0xfc, length & 255, length >> 8),
    Buffer.from(bytes),
  ]);
}

export function packet(sequence: number, ...parts: readonly Uint8Array[]): Buffer {
  const payload = Buffer.concat(parts);
  return Buffer.concat([int(3, payload.length), int(1, sequence), payload]);
}

/** Packets of one exchange from one end, which must come in order. */
export class Wire {
  peer: Peer;
  next: number;

  constructor(peer: Peer, next = 0) {
    this.peer = peer;
    this.next = next;
  }

  send(...payloads: readonly Uint8Array[]): void {
    this.peer.send(...payloads.map((payload) => packet(this.next++ & 255, payload)));
  }

  async read(): Promise<Buffer> {
    const head = await this.peer.read(4);
    assert.equal(head[3], this.next & 255, 'the sequence id of a packet');
    this.next += 1;
    return await this.peer.read(head.readUIntLE(0, 3));
  }
}

export const salt = Buffer.from('ABCDEFGHIJKLMNOPQRST');

export interface GreetingOptions {
  readonly version?: string;
  readonly id?: number;
  readonly flags?: number;
  readonly extended?: number;
  readonly plugin?: string;
}

/** HandshakeV10. */
export function greeting({
  version = '9.7.4',
  id = 4711,
  flags = mysqlFlags & ~flag.ssl,
  extended = 0,
  plugin = 'mysql_native_password',
}: GreetingOptions = {}): Buffer {
  return Buffer.concat([
    Buffer.of(10),
    cstring(version),
    int(4, id),
    salt.subarray(0, 8),
    Buffer.of(0),
    int(2, flags & 0xffff),
    int(1, 45),
    int(2, 2),
    int(2, flags >>> 16),
    int(1, 21),
    Buffer.alloc(6),
    int(4, extended),
    salt.subarray(8),
    Buffer.of(0),
    cstring(plugin),
  ]);
}

/** A greeting or a HandshakeResponse41, taken apart. */
export interface Greeted {
  readonly version: string;
  readonly id: number;
  readonly flags: number;
  readonly extended: number;
  readonly collation: number;
  readonly status: number;
  readonly salt: Buffer;
  readonly plugin: string;
}

export function readGreeting(payload: Buffer): Greeted {
  assert.equal(payload[0], 10);
  const end = payload.indexOf(0, 1);
  const rest = payload.subarray(end + 1);
  return {
    version: payload.toString('latin1', 1, end),
    id: rest.readUInt32LE(0),
    flags: rest.readUInt16LE(13) + rest.readUInt16LE(18) * 0x10000,
    collation: rest[15] ?? 0,
    status: rest.readUInt16LE(16),
    extended: rest.readUInt32LE(27),
    salt: Buffer.concat([rest.subarray(4, 12), rest.subarray(31, 43)]),
    plugin: rest.toString('latin1', 44, rest.length - 1),
  };
}

export interface ResponseOptions {
  readonly flags?: number;
  readonly extended?: number;
  readonly user?: string;
  readonly authData?: Buffer;
  readonly database?: string;
  readonly plugin?: string;
  readonly attributes?: readonly (readonly [string, string])[];
}

/** HandshakeResponse41. */
export function response({
  flags = clientFlags,
  extended = 0,
  user = 'whoever',
  authData = Buffer.alloc(0),
  database,
  plugin = 'mysql_native_password',
  attributes = [['program_name', 'shop']],
}: ResponseOptions = {}): Buffer {
  const all =
    ((database === undefined ? flags & ~flag.connectWithDatabase : flags | flag.connectWithDatabase) | 0) >>>
    0;
  return Buffer.concat([
    sslRequest(all, extended),
    cstring(user),
    lenenc(authData),
    ...(database === undefined ? [] : [cstring(database)]),
    cstring(plugin),
    ...(all & flag.attributes ? [lenenc(Buffer.concat(attributes.flat().map((text) => lenenc(text))))] : []),
  ]);
}

export function sslRequest(flags = clientFlags | flag.ssl, extended = 0): Buffer {
  return Buffer.concat([
    int(4, flags >>> 0),
    int(4, 0x1000000),
    int(1, 45),
    Buffer.alloc(19),
    int(4, extended),
  ]);
}

export interface Response {
  readonly flags: number;
  readonly extended: number;
  readonly maxPacket: number;
  readonly collation: number;
  readonly user: string;
  readonly authData: Buffer;
  readonly database: string | undefined;
  readonly plugin: string;
  readonly attributes: Readonly<Record<string, string>>;
}

/** Takes a payload apart from front to back. */
class Fields {
  readonly #payload: Buffer;
  #at: number;

  constructor(payload: Buffer, at = 0) {
    this.#payload = payload;
    this.#at = at;
  }

  get atEnd(): boolean {
    return this.#at === this.#payload.length;
  }

  text(): string {
    const end = this.#payload.indexOf(0, this.#at);
    const found = this.#payload.toString('latin1', this.#at, end);
    this.#at = end + 1;
    return found;
  }

  lenenc(): Buffer {
    let length = this.#payload.readUInt8(this.#at++);
    if (length === 0xfc) length = this.#payload.readUInt16LE((this.#at += 2) - 2);
    return this.bytes(length);
  }

  bytes(length: number): Buffer {
    return this.#payload.subarray(this.#at, (this.#at += length));
  }
}

function readAttributes(list: Buffer): Record<string, string> {
  const fields = new Fields(list);
  const attributes: Record<string, string> = {};
  while (!fields.atEnd) {
    const name = fields.lenenc().toString();
    attributes[name] = fields.lenenc().toString();
  }
  return attributes;
}

/** Only what Postern writes: with lenenc data, a plugin, no field missing. */
export function readResponse(payload: Buffer): Response {
  const flags = payload.readUInt32LE(0);
  const fields = new Fields(payload, 32);
  const user = fields.text();
  const authData = fields.lenenc();
  const database = flags & flag.connectWithDatabase ? fields.text() : undefined;
  const plugin = flags & flag.pluginAuth ? fields.text() : '';
  const attributes = flags & flag.attributes ? readAttributes(fields.lenenc()) : {};
  assert.ok(fields.atEnd, 'something is behind the response');
  return {
    flags,
    extended: payload.readUInt32LE(28),
    maxPacket: payload.readUInt32LE(4),
    collation: payload[8] ?? 0,
    user,
    authData,
    database,
    plugin,
    attributes,
  };
}

/** OK with autocommit; `tail` is what follows the warnings. */
export function ok(...tail: readonly Uint8Array[]): Buffer {
  return Buffer.concat([Buffer.of(0, 0, 0, 2, 0, 0, 0), ...tail]);
}

export function err(code: number, sqlstate: string | undefined, message: string): Buffer {
  const marker = sqlstate === undefined ? '' : `#${sqlstate}`;
  return Buffer.concat([Buffer.of(0xff), int(2, code), Buffer.from(marker + message)]);
}

export function authSwitch(plugin: string, data: Uint8Array): Buffer {
  return Buffer.concat([Buffer.of(0xfe), cstring(plugin), data]);
}

export function more(...data: readonly number[]): Buffer {
  return Buffer.from([1, ...data]);
}

/** An ERR as a client reads it, with its SQLSTATE where there is one. */
export function readError(payload: Buffer): { code: number; sqlstate: string | undefined; message: string } {
  assert.equal(payload[0], 0xff, `not an ERR: ${payload.toString('hex')}`);
  const text = payload.toString('utf8', 3);
  const [, sqlstate, message = ''] = /^(?:#(.{5}))?([^]*)$/.exec(text) ?? [];
  return { code: payload.readUInt16LE(1), sqlstate, message };
}

function sha(algorithm: string, ...parts: readonly Uint8Array[]): Buffer {
  return createHash(algorithm).update(Buffer.concat(parts)).digest();
}

function xor(a: Buffer, b: Buffer): Buffer {
  return Buffer.from(a.map((byte, i) => byte ^ (b[i] ?? 0)));
}

/** What mysql_native_password answers. */
export function nativeAnswer(password: string, to = salt): Buffer {
  const once = sha('sha1', Buffer.from(password));
  return xor(once, sha('sha1', to, sha('sha1', once)));
}

/** What caching_sha2_password answers. */
export function sha2Answer(password: string, to = salt): Buffer {
  const once = sha('sha256', Buffer.from(password));
  return xor(once, sha('sha256', sha('sha256', once), to));
}

/**
 * The server's half of a TLS handshake. A client begins its own without waiting for a word, so what has come behind its
 * request belongs to it.
 */
export async function acceptTls(server: ServerEnd, secureContext: SecureContext): Promise<void> {
  const { socket, received } = server;
  socket.removeAllListeners('data');
  Duplex.prototype.pause.call(socket);
  if (received.length > 0) socket.unshift(received);
  const secure = new TLSSocket(socket, { isServer: true, secureContext });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  secure.once('secure', resolve);
  for (const event of ['error', 'end', 'close']) secure.on(event, () => reject(new PeerGone(event)));
  try {
    await promise;
  } catch (error) {
    socket.destroy();
    throw error;
  }
  server.wear(secure);
  secure.on('end', () => server.end());
}

export type { Script };

/** Greets, reads the response, hands both on. */
export function greetWith(
  options: GreetingOptions,
  then: (wire: Wire, response: Response, server: ServerEnd) => Promise<void> | void,
): Script {
  return async (server) => {
    const wire = new Wire(server);
    wire.send(greeting(options));
    await then(wire, readResponse(await wire.read()), server);
  };
}

/** A server that lets the right password in, and then does what follows. */
export function letIn(
  then: (server: ServerEnd, response: Response) => Promise<void> | void = () => {},
  password: string = canary.mysql,
): Script {
  return greetWith({}, async (wire, response, server) => {
    if (!response.authData.equals(nativeAnswer(password))) {
      wire.send(
        err(1045, '28000', `Access denied for user '${response.user}'@'10.0.0.7' (using password: YES)`),
      );
      server.end();
      return;
    }
    wire.send(ok());
    await then(server, response);
  });
}

/** A client that has connected, and its service with the fake behind it. */
export interface Brokered extends AsyncDisposable {
  readonly served: Served;
  readonly fake: FakeServer;
  readonly connect: () => Promise<Wire>;
}

/** Opens the connector `mysql` in front of a fake, with `real_app` and the canary for a credential. */
export async function broker(
  script: Script,
  {
    pace = 'as they come',
    settings = {},
    ...options
  }: Partial<ServedOptions> & { readonly pace?: Pace } = {},
): Promise<Brokered> {
  const fake = await FakeServer.start(script, pace);
  const served = await Served.open({
    connector: 'mysql',
    credentials: { username: 'real_app', password: canary.mysql },
    ...options,
    settings: { ...fake.settings, ...settings },
    pace,
  });
  return {
    fake,
    served,
    connect: async () => new Wire(await served.connect()),
    [Symbol.asyncDispose]: async () => {
      await served[Symbol.asyncDispose]();
      await fake[Symbol.asyncDispose]();
    },
  };
}

/** Answers the greeting; resolves with it and the next packet of the server. */
export async function logIn(
  client: Wire,
  options: ResponseOptions = {},
): Promise<{ readonly greeting: Greeted; readonly answer: Buffer }> {
  const greeted = readGreeting(await client.read());
  client.send(response(options));
  return { greeting: greeted, answer: await client.read() };
}

/** The error that the client gets in place of a session, by whatever way, and then the end. */
export async function failure(
  client: Wire,
  options: ResponseOptions = {},
): Promise<ReturnType<typeof readError>> {
  const first = await client.read();
  let payload = first;
  if (first[0] === 10) {
    client.send(response(options));
    payload = await client.read();
  }
  const told = readError(payload);
  assert.equal((await client.peer.rest()).length, 0);
  client.peer.end();
  assert.ok(told.code < 2000 || told.code > 2999, `${told.code} is a client library's own number`);
  assert.ok(!told.message.includes(canary.mysql), 'the client was told the password');
  assert.ok(!told.message.includes('real_app'), 'the client was told the real user');
  return told;
}
