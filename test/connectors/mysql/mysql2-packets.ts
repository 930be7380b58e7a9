import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

// mysql2 reads and writes packets with classes that it does not export. They are the oracle of the codecs, so they are taken from
// its folder; its version is pinned.

/** A cursor over a packet with its header, as mysql2 hands them round. */
export interface Mysql2Packet {
  offset: number;
  readonly buffer: Buffer;
  writeHeader(length: number): void;
}

interface Packets {
  readonly Handshake: {
    new (fields: object): { toPacket(sequence: number): Mysql2Packet };
    fromPacket(packet: Mysql2Packet): Record<string, unknown>;
  };
  readonly HandshakeResponse: {
    new (fields: object): { toPacket(): Mysql2Packet };
    fromPacket(packet: Mysql2Packet): Record<string, unknown>;
  };
  readonly ChangeUser: new (fields: object) => { toPacket(): Mysql2Packet };
  readonly SSLRequest: new (flags: number, charset: number, extended: number) => { toPacket(): Mysql2Packet };
  readonly AuthSwitchRequest: {
    new (fields: object): { toPacket(): Mysql2Packet };
    fromPacket(packet: Mysql2Packet): Record<string, unknown>;
  };
  readonly ResultSetHeader: new (packet: Mysql2Packet, connection: object) => Record<string, unknown>;
  readonly OK: { toPacket(fields: object, encoding: string): Mysql2Packet };
  readonly Error: {
    toPacket(fields: object, encoding: string): Mysql2Packet;
    fromPacket(packet: Mysql2Packet): { code: number; message: string };
  };
}

const require = createRequire(import.meta.url);
const folder = join(dirname(require.resolve('mysql2')), 'lib/packets');

export const packets = require(join(folder, 'index.js')) as Packets;
const Packet = require(join(folder, 'packet.js')) as new (
  id: number,
  buffer: Buffer,
  start: number,
  end: number,
) => Mysql2Packet;

/** The payload as mysql2's readers want it: behind a header, the cursor on its first byte. */
export function asMysql2(payload: Buffer): Mysql2Packet {
  const buffer = Buffer.concat([Buffer.alloc(4), payload]);
  const packet = new Packet(0, buffer, 0, buffer.length);
  packet.offset = 4;
  return packet;
}

/** What one of mysql2's writers wrote, without the header. */
export function payloadOf({ buffer }: Mysql2Packet): Buffer {
  return buffer.subarray(4);
}
