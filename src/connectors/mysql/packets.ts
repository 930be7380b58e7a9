import type { Socket } from 'node:net';

import { PosternError } from '../../core/errors.ts';
import { readExactly, type Side } from '../../core/socket.ts';
import { type Capabilities, capability, has, isMariaDb } from './capabilities.ts';

// MySQL 9 source documentation, "Client/Server Protocol: Connection Phase" and "Connection Lifecycle"; MariaDB
// documentation, "Client/Server Protocol". Integers are little-endian. Text is kept as byte strings (one character is one
// byte), because its character set is agreed on in the very packets that carry it.

// --- framing

/** A payload of this length is continued by the next packet. */
const FULL = 0xffffff;
const HEADER = 4;

/** The longest packet of a login that is read. Connection attributes, its largest part, may have 64 KiB. */
export const LONGEST_LOGIN_PACKET = 128 * 1024;

/** One logical packet: a payload, and the sequence id of the packet that ended it. */
export interface Packet {
  readonly sequence: number;
  readonly payload: Buffer;
}

/**
 * Reads one packet with all that continues it, and not a byte more. Throws CLIENT_PROTOCOL or UPSTREAM_PROTOCOL when it is
 * longer than `maxLength`, before reading what is too much.
 */
export async function readPacket(
  socket: Socket,
  side: Side,
  { maxLength, signal }: { readonly maxLength: number; readonly signal: AbortSignal },
): Promise<Packet> {
  const parts: Buffer[] = [];
  let size = 0;
  let before: number | undefined;
  for (;;) {
    const header = await readExactly(socket, side, HEADER, signal);
    const length = header.readUIntLE(0, 3);
    const sequence = header.readUInt8(3);
    size += length;
    if (size > maxLength) throw malformed(side, `a packet of at least ${size} bytes`);
    if (before !== undefined && sequence !== nextSequence(before))
      throw malformed(side, 'the parts of a packet out of order');
    parts.push(await readExactly(socket, side, length, signal));
    if (length < FULL)
      return { sequence, payload: parts.length === 1 ? (parts[0] as Buffer) : joined(parts) };
    before = sequence;
  }
}

/** Packets with this payload: one, or as many as it needs, the first with this sequence id. The caller wipes both. */
export function encodePacket(sequence: number, payload: Buffer): Buffer {
  const count = Math.floor(payload.length / FULL) + 1;
  // Not `Buffer.alloc`: a payload may be a password, and a small one would leave copies on V8's heap (docs/decisions/0001-own-postgres-wire.md).
  const bytes = Buffer.allocUnsafe(payload.length + count * HEADER);
  for (let number = 0; number < count; number++) {
    const from = number * FULL;
    const length = Math.min(FULL, payload.length - from);
    const at = from + number * HEADER;
    bytes.writeUIntLE(length, at, 3);
    bytes.writeUInt8((sequence + number) & 0xff, at + 3);
    payload.copy(bytes, at + HEADER, from, from + length);
  }
  return bytes;
}

/** The sequence id of an answer to a packet with this one. */
export function nextSequence(sequence: number): number {
  return (sequence + 1) & 0xff;
}

function joined(parts: Buffer[]): Buffer {
  const whole = Buffer.concat(parts);
  for (const part of parts) part.fill(0);
  return whole;
}

// --- the server's greeting

/** HandshakeV10, with which a server begins. */
export interface Greeting {
  /** Drivers choose features by it; a MariaDB 10 has the prefix `5.5.5-`. A byte string. */
  readonly serverVersion: string;
  readonly connectionId: number;
  readonly capabilities: Capabilities;
  /** Low byte of the server's collation. */
  readonly collation: number;
  readonly status: number;
  /** Data for `plugin`; the final zero byte of a 20-byte salt is taken off. */
  readonly authData: Buffer;
  /** Authentication plugin of most of the server's accounts; undefined before MySQL 5.5.7. */
  readonly plugin: string | undefined;
}

const PROTOCOL_VERSION = 10;
const RESERVED = 10;

/** Reads a server's greeting. Throws UPSTREAM_PROTOCOL when it is none, or of a server from before MySQL 4.1. */
export function decodeGreeting(payload: Buffer): Greeting {
  const reader = new Reader(payload, 'upstream', 'greeting');
  const version = reader.uint8();
  if (version !== PROTOCOL_VERSION) throw malformed('upstream', `a greeting of protocol version ${version}`);
  const serverVersion = reader.cstring();
  const connectionId = reader.uint32();
  const part1 = reader.bytes(8);
  reader.skip(1);
  const low = reader.uint16();
  const collation = reader.uint8();
  const status = reader.uint16();
  const flags = low + reader.uint16() * 0x10000;
  if (!has(flags, capability.protocol41 | capability.secureConnection))
    throw new PosternError('UPSTREAM_PROTOCOL', 'the server is older than MySQL 4.1');

  const declared = reader.uint8();
  reader.skip(RESERVED - 4);
  const extended = reader.uint32();
  // Without PLUGIN_AUTH there is no length, and 13 bytes all the same.
  const part2 = reader.bytes(Math.max(13, declared - 8));
  const plugin = has(flags, capability.pluginAuth) ? reader.lastCstring() : undefined;
  return {
    serverVersion,
    connectionId,
    // A MySQL has nothing there; a MariaDB says so by the flag that every MySQL has.
    capabilities: { flags, extended: isMariaDb(flags) ? extended : 0 },
    collation,
    status,
    authData: withoutFinalZero(Buffer.concat([part1, part2])),
    plugin,
  };
}

/** Writes a greeting; `authData` is a salt of 20 bytes. */
export function encodeGreeting(greeting: Greeting): Buffer {
  const { flags, extended } = greeting.capabilities;
  const part2 = Buffer.concat([greeting.authData.subarray(8), Buffer.alloc(1)]);
  return Buffer.concat([
    uint(1, PROTOCOL_VERSION),
    cstring(greeting.serverVersion),
    uint(4, greeting.connectionId),
    greeting.authData.subarray(0, 8),
    uint(1, 0),
    uint(2, flags % 0x10000),
    uint(1, greeting.collation),
    uint(2, greeting.status),
    uint(2, Math.floor(flags / 0x10000)),
    uint(1, has(flags, capability.pluginAuth) ? 8 + part2.length : 0),
    Buffer.alloc(RESERVED - 4),
    uint(4, isMariaDb(flags) ? extended : 0),
    part2,
    ...(has(flags, capability.pluginAuth) ? [cstring(greeting.plugin ?? '')] : []),
  ]);
}

/**
 * Salts travel with a zero byte behind them that is not part of them. Data of any other length is whole as it is: the last
 * byte of 32 random ones may well be zero.
 */
function withoutFinalZero(data: Buffer): Buffer {
  return data.length === 21 && data[20] === 0 ? data.subarray(0, 20) : data;
}

// --- the client's answer to it

/** A client's first words. A client without PROTOCOL_41 is from before MySQL 4.1. */
export type ClientHello =
  | ({ readonly kind: 'response' } & HandshakeResponse)
  | { readonly kind: 'sslRequest'; readonly capabilities: Capabilities }
  | { readonly kind: 'too old' };

/** HandshakeResponse41. */
export interface HandshakeResponse {
  /** They also say which of the fields behind `user` there are. */
  readonly capabilities: Capabilities;
  readonly maxPacket: number;
  /** Low byte of the client's collation. */
  readonly collation: number;
  readonly user: string;
  readonly authData: Buffer;
  readonly database: string | undefined;
  readonly plugin: string | undefined;
  readonly attributes: Attributes;
}

/** Connection attributes, which a server shows to its administrators. Names and values are byte strings. */
export type Attributes = ReadonlyMap<string, string>;

/** A server takes no more of them than this: ERR 1043 otherwise. */
export const LONGEST_ATTRIBUTES = 0xffff;

const SSL_REQUEST = 32;

/** Reads what a client says after the greeting, or again inside TLS. Throws CLIENT_PROTOCOL. */
export function decodeClientHello(payload: Buffer): ClientHello {
  const reader = new Reader(payload, 'client', 'handshake response');
  // Before 4.1 there were two bytes of flags; this one is among them.
  if (!has(reader.peekUint16(), capability.protocol41)) return { kind: 'too old' };
  const flags = reader.uint32();
  const maxPacket = reader.uint32();
  const collation = reader.uint8();
  reader.skip(19);
  const extended = reader.uint32();
  const capabilities = { flags, extended: isMariaDb(flags) ? extended : 0 };
  if (payload.length === SSL_REQUEST && has(flags, capability.ssl))
    return { kind: 'sslRequest', capabilities };

  const user = reader.cstring();
  const authData = has(flags, capability.longAuthData)
    ? reader.lenencBytes()
    : has(flags, capability.secureConnection)
      ? reader.bytes(reader.uint8())
      : Buffer.from(reader.cstring(), 'latin1');
  return {
    kind: 'response',
    capabilities,
    maxPacket,
    collation,
    user,
    authData,
    ...readTail(reader, flags),
  };
}

/**
 * The fields that end a HandshakeResponse. Some clients announce more of them than they send, or leave out a final zero,
 * and servers do not mind.
 */
function readTail(
  reader: Reader,
  flags: number,
): Pick<HandshakeResponse, 'database' | 'plugin' | 'attributes'> {
  const database = has(flags, capability.connectWithDatabase) ? reader.lastCstring() : '';
  const plugin = has(flags, capability.pluginAuth) ? reader.lastCstring() : undefined;
  const attributes = has(flags, capability.connectAttributes) ? readAttributes(reader) : new Map();
  return { database: database === '' ? undefined : database, plugin, attributes };
}

/** SSLRequest: the beginning of a HandshakeResponse41, which then comes again inside TLS. */
export function encodeSslRequest({
  capabilities: { flags, extended },
  maxPacket,
  collation,
}: Pick<HandshakeResponse, 'capabilities' | 'maxPacket' | 'collation'>): Buffer {
  return Buffer.concat([
    uint(4, flags),
    uint(4, maxPacket),
    uint(1, collation),
    Buffer.alloc(19),
    uint(4, isMariaDb(flags) ? extended : 0),
  ]);
}

/**
 * Writes a HandshakeResponse41 with the fields that its flags announce; they have SECURE_CONNECTION, as every server that is
 * spoken to does. Holds a copy of `authData`, so the caller wipes it. Throws UPSTREAM_PROTOCOL when the flags leave no room
 * for that much.
 */
export function encodeHandshakeResponse(response: HandshakeResponse): Buffer {
  const { flags } = response.capabilities;
  const { authData, database = '', plugin = '' } = response;
  const length = has(flags, capability.longAuthData) ? lenenc(authData.length) : shortLength(authData);
  return Buffer.concat([
    encodeSslRequest(response),
    cstring(response.user),
    length,
    authData,
    ...(has(flags, capability.connectWithDatabase) ? [cstring(database)] : []),
    ...(has(flags, capability.pluginAuth) ? [cstring(plugin)] : []),
    ...(has(flags, capability.connectAttributes) ? [encodeAttributes(response.attributes)] : []),
  ]);
}

function shortLength({ length }: Buffer): Buffer {
  if (length <= 0xff) return uint(1, length);
  throw new PosternError(
    'UPSTREAM_PROTOCOL',
    'the server has no room for an answer of more than 255 bytes (PLUGIN_AUTH_LENENC_CLIENT_DATA)',
  );
}

/** The first of equal names counts, and a total that is cut short is refused, as a server does (ERR 1043). */
function readAttributes(reader: Reader): Attributes {
  const attributes = new Map<string, string>();
  if (reader.atEnd) return attributes;
  const list = reader.lenencReader();
  if (list.size > LONGEST_ATTRIBUTES) throw list.malformed();
  while (!list.atEnd) {
    const name = list.lenencBytes().toString('latin1');
    const value = list.lenencBytes().toString('latin1');
    if (!attributes.has(name)) attributes.set(name, value);
  }
  return attributes;
}

/** Those that no longer fit are left out: without them a login succeeds, with them it would not. */
function encodeAttributes(attributes: Attributes): Buffer {
  const parts: Buffer[] = [];
  let size = 0;
  for (const pair of attributes) {
    const bytes = Buffer.concat(pair.map((text) => lenencBytes(Buffer.from(text, 'latin1'))));
    if (size + bytes.length > LONGEST_ATTRIBUTES) continue;
    size += bytes.length;
    parts.push(bytes);
  }
  return lenencBytes(Buffer.concat(parts));
}

// --- what a server answers during a login

/** A server's answer during a login, by its first byte. `payload` of an `ok` or `error` is read by `decodeOk`, `decodeError`. */
export type LoginReply =
  | { readonly kind: 'ok'; readonly payload: Buffer }
  | { readonly kind: 'error'; readonly payload: Buffer }
  /** AuthSwitchRequest: answer with this plugin and this data. */
  | { readonly kind: 'switch'; readonly plugin: string; readonly data: Buffer }
  /** A switch to the password hash from before MySQL 4.1. */
  | { readonly kind: 'old switch' }
  /** Data for the plugin. MariaDB's plugins leave out the 0x01 of AuthMoreData where theirs cannot be taken for another. */
  | { readonly kind: 'more'; readonly data: Buffer }
  /** AuthNextFactor, or a question of MariaDB's `dialog` that is not the last: either is beyond one password. */
  | { readonly kind: 'next factor' };

const OK = 0x00;
const AUTH_MORE_DATA = 0x01;
const AUTH_NEXT_FACTOR = 0x02;
const AUTH_SWITCH = 0xfe;
const ERR = 0xff;

/** What a server says while it is logging somebody in. Throws UPSTREAM_PROTOCOL. */
export function decodeLoginReply(payload: Buffer): LoginReply {
  switch (payload[0]) {
    case undefined:
      throw malformed('upstream', 'an empty packet during the login');
    case OK:
      return { kind: 'ok', payload };
    case ERR:
      return { kind: 'error', payload };
    case AUTH_SWITCH: {
      if (payload.length === 1) return { kind: 'old switch' };
      const reader = new Reader(payload, 'upstream', 'AuthSwitchRequest');
      reader.skip(1);
      return { kind: 'switch', plugin: reader.lastCstring(), data: withoutFinalZero(reader.rest()) };
    }
    case AUTH_MORE_DATA:
      return { kind: 'more', data: payload.subarray(1) };
    case AUTH_NEXT_FACTOR:
      return { kind: 'next factor' };
    default:
      return { kind: 'more', data: payload };
  }
}

/** AuthSwitchRequest; a salt of 20 bytes gets the zero byte that belongs behind it. */
export function encodeAuthSwitch(plugin: string, data: Buffer): Buffer {
  const zero = Buffer.alloc(data.length === 20 ? 1 : 0);
  return Buffer.concat([uint(1, AUTH_SWITCH), cstring(plugin), data, zero]);
}

/** AuthMoreData with data of a plugin. */
export function encodeAuthMoreData(data: Uint8Array): Buffer {
  return Buffer.concat([uint(1, AUTH_MORE_DATA), data]);
}

/** What caching_sha2_password says before its OK when the client's proof was right. */
export const fastAuthSuccess: Buffer = encodeAuthMoreData(Uint8Array.of(3));

// --- OK

/** OK_Packet. */
export interface Ok {
  readonly affectedRows: bigint;
  readonly lastInsertId: bigint;
  readonly status: number;
  readonly warnings: number;
  readonly info: Buffer;
  /** What changed in the session, where both ends have SESSION_TRACK and something did. */
  readonly changes: readonly SessionChange[] | undefined;
}

/** One entry of the session-state information; `data` as it is on the wire. */
export interface SessionChange {
  readonly type: number;
  readonly data: Buffer;
}

const SESSION_STATE_CHANGED = 0x4000;
const SYSTEM_VARIABLES = 0;

/** An OK with nothing to tell. */
export function emptyOk(status: number): Ok {
  return {
    affectedRows: 0n,
    lastInsertId: 0n,
    status,
    warnings: 0,
    info: Buffer.alloc(0),
    changes: undefined,
  };
}

/** Reads an OK packet of a session with these flags. Throws UPSTREAM_PROTOCOL. */
export function decodeOk(payload: Buffer, flags: number): Ok {
  const reader = new Reader(payload, 'upstream', 'OK packet');
  if (reader.uint8() !== OK) throw reader.malformed();
  const affectedRows = reader.lenencBigInt();
  const lastInsertId = reader.lenencBigInt();
  const status = reader.uint16();
  const warnings = reader.uint16();
  const head = { affectedRows, lastInsertId, status, warnings };
  if (!has(flags, capability.sessionTrack)) return { ...head, info: reader.rest(), changes: undefined };

  // A server that has neither says nothing at all.
  const info = reader.atEnd ? Buffer.alloc(0) : reader.lenencBytes();
  if (!has(status, SESSION_STATE_CHANGED)) return { ...head, info, changes: undefined };
  const changes: SessionChange[] = [];
  for (const list = reader.lenencReader(); !list.atEnd; )
    changes.push({ type: list.uint8(), data: list.lenencBytes() });
  return { ...head, info, changes };
}

/** Writes an OK packet for a session with these flags. */
export function encodeOk(ok: Ok, flags: number): Buffer {
  const head = [
    uint(1, OK),
    lenenc(ok.affectedRows),
    lenenc(ok.lastInsertId),
    uint(2, ok.status),
    uint(2, ok.warnings),
  ];
  if (!has(flags, capability.sessionTrack)) return Buffer.concat([...head, ok.info]);
  if (has(ok.status, SESSION_STATE_CHANGED)) {
    const list = (ok.changes ?? []).map(({ type, data }) => [uint(1, type), lenencBytes(data)]);
    return Buffer.concat([...head, lenencBytes(ok.info), lenencBytes(Buffer.concat(list.flat()))]);
  }
  return Buffer.concat([...head, ...(ok.info.length > 0 ? [lenencBytes(ok.info)] : [])]);
}

/**
 * The OK of a login as the client may have it. Its text goes: MariaDB puts a hash of password, salt and certificate there, with
 * which anybody could try passwords at home, and others the address of a server to go to instead. So does a change of
 * `redirect_url`, which says the same. All else is kept.
 */
export function rewriteLoginOk(payload: Buffer, flags: number): Buffer {
  const ok = decodeOk(payload, flags);
  const changes = ok.changes?.map(withoutRedirect).filter((change) => change !== undefined);
  const unchanged = changes?.length === 0 && ok.changes?.length !== 0;
  return encodeOk(
    {
      ...ok,
      info: Buffer.alloc(0),
      changes,
      status: unchanged ? ok.status & ~SESSION_STATE_CHANGED : ok.status,
    },
    flags,
  );
}

/** The change without `redirect_url`; undefined when nothing is left of it. */
function withoutRedirect(change: SessionChange): SessionChange | undefined {
  if (change.type !== SYSTEM_VARIABLES) return change;
  const reader = new Reader(change.data, 'upstream', 'OK packet');
  const kept: Buffer[] = [];
  while (!reader.atEnd) {
    const name = reader.lenencBytes();
    const value = reader.lenencBytes();
    if (name.toString('latin1').toLowerCase() !== 'redirect_url')
      kept.push(lenencBytes(name), lenencBytes(value));
  }
  return kept.length > 0 ? { ...change, data: Buffer.concat(kept) } : undefined;
}

// --- ERR

/** ERR_Packet. */
export interface ErrorPacket {
  readonly code: number;
  /** Five characters; undefined in an error that comes in place of the greeting. */
  readonly sqlstate: string | undefined;
  /** A byte string. */
  readonly message: string;
}

/** Whether a server's packet is an error. */
export function isError(payload: Buffer): boolean {
  return payload[0] === ERR;
}

/** Reads an ERR packet, with or without SQLSTATE. Throws UPSTREAM_PROTOCOL. */
export function decodeError(payload: Buffer): ErrorPacket {
  const reader = new Reader(payload, 'upstream', 'ERR packet');
  if (reader.uint8() !== ERR) throw reader.malformed();
  const code = reader.uint16();
  const text = reader.rest().toString('latin1');
  return text.startsWith('#') && text.length >= 6
    ? { code, sqlstate: text.slice(1, 6), message: text.slice(6) }
    : { code, sqlstate: undefined, message: text };
}

export function encodeError({ code, sqlstate, message }: ErrorPacket): Buffer {
  const marker = sqlstate === undefined ? '' : `#${sqlstate}`;
  return Buffer.concat([uint(1, ERR), uint(2, code), Buffer.from(marker + message, 'latin1')]);
}

// --- COM_CHANGE_USER

/** COM_CHANGE_USER: another login on the same connection. */
export interface ChangeUser {
  readonly user: string;
  readonly authData: Buffer;
  readonly database: string | undefined;
  /** Whole number of the collation; undefined when the client ends before it. */
  readonly collation: number | undefined;
  readonly plugin: string | undefined;
  readonly attributes: Attributes;
}

const COM_CHANGE_USER = 0x11;

/** Reads a COM_CHANGE_USER of a session with these flags. Throws CLIENT_PROTOCOL. */
export function decodeChangeUser(payload: Buffer, flags: number): ChangeUser {
  const reader = new Reader(payload, 'client', 'COM_CHANGE_USER');
  if (reader.uint8() !== COM_CHANGE_USER) throw reader.malformed();
  const user = reader.cstring();
  const authData = has(flags, capability.secureConnection)
    ? reader.bytes(reader.uint8())
    : Buffer.from(reader.cstring(), 'latin1');
  const database = reader.lastCstring();
  const collation = reader.atEnd ? undefined : reader.uint16();
  const plugin = has(flags, capability.pluginAuth) && !reader.atEnd ? reader.lastCstring() : undefined;
  const attributes = has(flags, capability.connectAttributes) ? readAttributes(reader) : new Map();
  return { user, authData, database: database === '' ? undefined : database, collation, plugin, attributes };
}

/**
 * Writes a COM_CHANGE_USER for a session with these flags, SECURE_CONNECTION among them. Throws UPSTREAM_PROTOCOL when
 * `authData` is longer than 255 bytes.
 */
export function encodeChangeUser(change: ChangeUser, flags: number): Buffer {
  const { user, authData, database = '', collation, plugin = '', attributes } = change;
  const head = [uint(1, COM_CHANGE_USER), cstring(user), shortLength(authData), authData, cstring(database)];
  if (collation === undefined) return Buffer.concat(head);
  return Buffer.concat([
    ...head,
    uint(2, collation),
    ...(has(flags, capability.pluginAuth) ? [cstring(plugin)] : []),
    ...(has(flags, capability.connectAttributes) ? [encodeAttributes(attributes)] : []),
  ]);
}

// --- fields

function malformed(side: Side, what: string): PosternError {
  return side === 'client'
    ? new PosternError('CLIENT_PROTOCOL', `the client sent ${what}`)
    : new PosternError('UPSTREAM_PROTOCOL', `the server sent ${what}`);
}

/** Takes a payload apart from front to back. A field that ends behind the payload is a malformed packet. */
class Reader {
  readonly #payload: Buffer;
  readonly #side: Side;
  readonly #what: string;
  #at = 0;

  constructor(payload: Buffer, side: Side, what: string) {
    this.#payload = payload;
    this.#side = side;
    this.#what = what;
  }

  get size(): number {
    return this.#payload.length;
  }

  get atEnd(): boolean {
    return this.#at === this.#payload.length;
  }

  malformed(): PosternError {
    return malformed(this.#side, `a malformed ${this.#what}`);
  }

  bytes(length: number): Buffer {
    if (length > this.#payload.length - this.#at) throw this.malformed();
    this.#at += length;
    return this.#payload.subarray(this.#at - length, this.#at);
  }

  skip(length: number): void {
    this.bytes(length);
  }

  rest(): Buffer {
    return this.bytes(this.#payload.length - this.#at);
  }

  uint8(): number {
    return this.bytes(1).readUInt8();
  }

  uint16(): number {
    return this.bytes(2).readUInt16LE();
  }

  uint32(): number {
    return this.bytes(4).readUInt32LE();
  }

  peekUint16(): number {
    const value = this.uint16();
    this.#at -= 2;
    return value;
  }

  /** Text up to a zero byte. */
  cstring(): string {
    const end = this.#payload.indexOf(0, this.#at);
    if (end < 0) throw this.malformed();
    const text = this.bytes(end - this.#at).toString('latin1');
    this.#at += 1;
    return text;
  }

  /** Text up to a zero byte or the end. */
  lastCstring(): string {
    return this.#payload.indexOf(0, this.#at) < 0 ? this.rest().toString('latin1') : this.cstring();
  }

  /** A length-encoded integer: one byte below 0xFB, or 0xFC, 0xFD, 0xFE and 2, 3, 8 bytes. */
  lenencBigInt(): bigint {
    const first = this.uint8();
    switch (first) {
      case 0xfc:
        return BigInt(this.uint16());
      case 0xfd:
        return BigInt(this.bytes(3).readUIntLE(0, 3));
      case 0xfe:
        return this.bytes(8).readBigUInt64LE();
      // NULL, and the first byte of an ERR: no numbers.
      case 0xfb:
      case 0xff:
        throw this.malformed();
      default:
        return BigInt(first);
    }
  }

  lenencBytes(): Buffer {
    const length = this.lenencBigInt();
    if (length > BigInt(this.#payload.length)) throw this.malformed();
    return this.bytes(Number(length));
  }

  /** A reader of a list that has its length in front. */
  lenencReader(): Reader {
    return new Reader(this.lenencBytes(), this.#side, this.#what);
  }
}

function uint(size: 1 | 2 | 4, value: number): Buffer {
  const bytes = Buffer.alloc(size);
  bytes.writeUIntLE(value, 0, size);
  return bytes;
}

function cstring(text: string): Buffer {
  // A zero byte inside would end the field early and make its rest the next field.
  if (text.includes('\0')) throw new PosternError('CONFIG_INVALID', 'a name has a zero byte in it');
  return Buffer.from(`${text}\0`, 'latin1');
}

function lenenc(value: number | bigint): Buffer {
  if (value < 0xfb) return uint(1, Number(value));
  const bytes = Buffer.alloc(9);
  if (value <= 0xffff) {
    bytes[0] = 0xfc;
    bytes.writeUInt16LE(Number(value), 1);
    return bytes.subarray(0, 3);
  }
  if (value <= 0xffffff) {
    bytes[0] = 0xfd;
    bytes.writeUIntLE(Number(value), 1, 3);
    return bytes.subarray(0, 4);
  }
  bytes[0] = 0xfe;
  bytes.writeBigUInt64LE(BigInt(value), 1);
  return bytes;
}

function lenencBytes(bytes: Buffer): Buffer {
  return Buffer.concat([lenenc(bytes.length), bytes]);
}
