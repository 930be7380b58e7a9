import type { Socket } from 'node:net';

import { PosternError } from '../../core/errors.ts';
import { readExactly } from '../../core/socket.ts';

// PostgreSQL 18 documentation, chapter 54: "Frontend/Backend Protocol". All integers are big-endian.

export const SSL_REQUEST = 80877103;
export const GSSENC_REQUEST = 80877104;
export const CANCEL_REQUEST = 80877102;
/** The newest minor version of protocol 3 that Postern speaks with clients. Upstream it always asks for 3.0. */
export const NEWEST_MINOR = 2;

/** libpq takes at most 30,000 bytes for these; a server of ours may be more talkative, but not without end. */
const LONGEST_LOGIN_MESSAGE = 64 * 1024;

/** A server message during the login: its type letter, and the bytes behind the length. */
export interface Message {
  readonly type: string;
  readonly body: Buffer;
  /** The whole message as it came, to pass on unchanged. */
  readonly bytes: Buffer;
}

/** Reads one message of a server that is still logging us in. */
export async function readMessage(upstream: Socket, signal: AbortSignal): Promise<Message> {
  const head = await readExactly(upstream, 'upstream', 5, signal);
  const length = head.readInt32BE(1);
  if (length < 4 || length > LONGEST_LOGIN_MESSAGE)
    throw new PosternError(
      'UPSTREAM_PROTOCOL',
      `the server sent a message of an impossible length (${length})`,
    );
  const body = await readExactly(upstream, 'upstream', length - 4, signal);
  return { type: head.toString('latin1', 0, 1), body, bytes: Buffer.concat([head, body]) };
}

/** One message: type letter, length, body. */
export function encodeMessage(type: string, ...parts: readonly Uint8Array[]): Buffer {
  const head = Buffer.alloc(5);
  head.write(type, 'latin1');
  head.writeInt32BE(4 + parts.reduce((sum, part) => sum + part.length, 0), 1);
  return Buffer.concat([head, ...parts]);
}

/** A packet before the login, which has no type letter. */
export function encodePacket(...parts: readonly Uint8Array[]): Buffer {
  const head = Buffer.alloc(4);
  head.writeInt32BE(4 + parts.reduce((sum, part) => sum + part.length, 0));
  return Buffer.concat([head, ...parts]);
}

export function int32(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [i, value] of values.entries()) bytes.writeUInt32BE(value >>> 0, 4 * i);
  return bytes;
}

/** A name and its value from a startup message, as byte strings: one character is one byte, whatever the encoding. */
export type Parameter = readonly [name: string, value: string];

/** Text as a byte string. */
export function byteString(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

/** A byte string as text for people. */
export function textOf(bytes: string): string {
  return Buffer.from(bytes, 'latin1').toString('utf8');
}

/** The client's own parameters cannot hold a zero byte; those of the configuration and of the credentials can. */
export function encodeStartup(parameters: readonly Parameter[]): Buffer {
  const bad = parameters.find((parameter) => parameter.join('').includes('\0'));
  if (bad)
    throw new PosternError(
      'CONFIG_INVALID',
      `the startup parameter "${textOf(bad[0])}" has a zero byte in it`,
    );
  const list = parameters.map(([name, value]) => `${name}\0${value}\0`).join('');
  return encodePacket(int32(3 << 16), Buffer.from(`${list}\0`, 'latin1'));
}

/** Reads the name/value list of a StartupMessage; undefined when its layout is wrong. */
export function decodeParameters(list: Buffer): Parameter[] | undefined {
  const parameters: Parameter[] = [];
  let at = 0;
  while (at < list.length && list[at] !== 0) {
    const nameEnd = list.indexOf(0, at);
    const valueEnd = nameEnd < 0 ? -1 : list.indexOf(0, nameEnd + 1);
    if (valueEnd < 0) return undefined;
    parameters.push([list.toString('latin1', at, nameEnd), list.toString('latin1', nameEnd + 1, valueEnd)]);
    at = valueEnd + 1;
  }
  // The list ends with exactly one zero byte, the last of the packet.
  return at === list.length - 1 ? parameters : undefined;
}

/** The fields of an ErrorResponse or NoticeResponse by their letter, as byte strings. Strange ones are left out. */
export function decodeFields(body: Buffer): Map<string, string> {
  const fields = new Map<string, string>();
  let at = 0;
  while (at < body.length && body[at] !== 0) {
    const end = body.indexOf(0, at + 1);
    if (end < 0) break;
    fields.set(body.toString('latin1', at, at + 1), body.toString('latin1', at + 1, end));
    at = end + 1;
  }
  return fields;
}

export function encodeError(fields: ReadonlyMap<string, string>): Buffer {
  const list = [...fields].map(([letter, value]) => `${letter}${value}\0`).join('');
  return encodeMessage('E', Buffer.from(`${list}\0`, 'latin1'));
}

export const authenticationOk = encodeMessage('R', int32(0));

/** What a client hears first that has asked for a newer protocol, or for options of it: what it gets. Else nothing. */
export function negotiationOf(hello: {
  readonly askedMinor: number;
  readonly minor: number;
  readonly unknownOptions: readonly string[];
}): readonly Buffer[] {
  const { askedMinor, minor, unknownOptions } = hello;
  return askedMinor > NEWEST_MINOR || unknownOptions.length > 0
    ? [negotiateProtocolVersion(minor, unknownOptions)]
    : [];
}

export function negotiateProtocolVersion(minor: number, unknownOptions: readonly string[]): Buffer {
  const names = Buffer.from(unknownOptions.map((name) => `${name}\0`).join(''), 'latin1');
  return encodeMessage('v', int32((3 << 16) | minor, unknownOptions.length), names);
}

/** Process id and secret key of a server process, as they travel in BackendKeyData and CancelRequest. */
export interface BackendKey {
  readonly pid: number;
  readonly key: Buffer;
}

/** Body of BackendKeyData, or what follows the code of a CancelRequest; undefined when its length is wrong. */
export function decodeBackendKey(body: Buffer): BackendKey | undefined {
  const key = body.subarray(4);
  return key.length < 1 || key.length > 256
    ? undefined
    : { pid: body.readUInt32BE(0), key: Buffer.from(key) };
}

export function encodeBackendKey({ pid, key }: BackendKey): Buffer {
  return encodeMessage('K', int32(pid), key);
}

export function encodeCancelRequest({ pid, key }: BackendKey): Buffer {
  return encodePacket(int32(CANCEL_REQUEST, pid), key);
}
