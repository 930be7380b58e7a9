import type { Socket } from 'node:net';

import { PosternError } from '../../core/errors.ts';
import { type Side, writeAll } from '../../core/socket.ts';
import { encodePacket, LONGEST_LOGIN_PACKET, nextSequence, readPacket } from './packets.ts';
import { refusal } from './replies.ts';

/**
 * The packets of one exchange on one connection. Each side's packet carries the next sequence id, so every connection
 * counts for itself: the ids of the client are never those of the server.
 */
export class Leg {
  readonly side: Side;
  socket: Socket;
  #next: number;

  /** `next` is the sequence id of the exchange's first packet that goes through here. */
  constructor(socket: Socket, side: Side, next = 0) {
    this.socket = socket;
    this.side = side;
    this.#next = next;
  }

  /** The payload of the peer's next packet. Throws CLIENT_PROTOCOL or UPSTREAM_PROTOCOL for one out of order. */
  async read(signal: AbortSignal): Promise<Buffer> {
    const limits = { maxLength: LONGEST_LOGIN_PACKET, signal };
    const { sequence, payload } = await readPacket(this.socket, this.side, limits);
    if (sequence !== this.#next) throw outOfOrder(this.side);
    this.#next = nextSequence(sequence);
    return payload;
  }

  /** Sends packets together. */
  write(...payloads: readonly Buffer[]): void {
    this.socket.write(Buffer.concat(payloads.map((payload) => this.#frame(payload))));
  }

  /** Sends a packet and wipes it once the kernel has it. */
  async writeSecret(payload: Buffer, signal: AbortSignal): Promise<void> {
    const packet = this.#frame(payload);
    payload.fill(0);
    try {
      await writeAll(this.socket, this.side, packet, signal);
    } finally {
      packet.fill(0);
    }
  }

  #frame(payload: Buffer): Buffer {
    const packet = encodePacket(this.#next, payload);
    this.#next = nextSequence(this.#next);
    return packet;
  }
}

function outOfOrder(side: Side): PosternError {
  return side === 'client'
    ? refusal('CLIENT_PROTOCOL', [1156, '08S01'], 'the client sent packets out of order')
    : new PosternError('UPSTREAM_PROTOCOL', 'the server sent packets out of order');
}
