import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { pino } from 'pino';

import { Client } from '../../src/connectors/postgres/client.ts';
import {
  decodeFields,
  decodeParameters,
  encodeStartup,
  readMessage,
} from '../../src/connectors/postgres/messages.ts';
import { startupRequest } from '../../src/connectors/postgres/parameters.ts';
import { sqlstateOf, upstreamFailure } from '../../src/connectors/postgres/replies.ts';
import { settings as schema } from '../../src/connectors/postgres/settings.ts';
import type { Session } from '../../src/core/session.ts';
import type { FuzzTarget } from './targets.ts';

const never = new AbortController().signal;

/** A connection that says these bytes and is done. */
function saying(bytes: Buffer): Socket {
  const stream = new Duplex({
    read() {
      this.push(bytes);
      this.push(null);
    },
    write: (_chunk, _encoding, done) => done(),
  });
  return stream as unknown as Socket;
}

function int32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [i, value] of values.entries()) bytes.writeUInt32BE(value >>> 0, 4 * i);
  return bytes;
}

function backend(type: string, body: Buffer | string): Buffer {
  const bytes = Buffer.from(body);
  return Buffer.concat([Buffer.from(type), int32(bytes.length + 4), bytes]);
}

const startups = [
  encodeStartup([
    ['user', 'app'],
    ['database', 'orders'],
    ['options', '-c jit=off --search-path=a\\ b -crole=x'],
    ['application_name', 'fuzz'],
  ]),
  encodeStartup([
    ['_pq_.x', '1'],
    ['replication', 'database'],
    ['USER', 'x'],
  ]),
  encodeStartup([]),
];
const policed = schema.parse({
  host: 'db',
  parameters: { deny: ['role', 'search_path'] },
  databases: ['orders', 'app'],
});
const secret = Buffer.from('s3cr3t-canary-fuzz');

/** What reads the bytes of a PostgreSQL client or server. */
export const postgresTargets: readonly FuzzTarget[] = [
  {
    name: 'postgres-hello',
    seedInputs: [
      ...startups,
      Buffer.concat([int32(8, 80877103), startups[0] as Buffer]),
      Buffer.concat([int32(8, 80877104, 8, 80877103), startups[1] as Buffer]),
      int32(16, 80877102, 1, 2),
      Buffer.of(0x16, 3, 1, 0, 5),
    ],
    async run(bytes) {
      const client = saying(bytes);
      const session = { client, localTls: undefined, log: pino({ enabled: false }), note: () => {}, id: 'x' };
      const hello = await new Client(session as unknown as Session).readHello(never);
      if (hello.kind === 'cancel') assert.ok(hello.target.key.length >= 1 && hello.target.key.length <= 256);
      else assert.ok(hello.minor <= 2 && hello.minor <= hello.askedMinor);
    },
  },
  {
    name: 'postgres-parameters',
    seedInputs: startups.map((startup) => startup.subarray(8)),
    run(bytes) {
      const parameters = decodeParameters(bytes);
      if (!parameters) return;
      assert.deepEqual(encodeStartup(parameters).subarray(8), bytes);
      const hello = { kind: 'startup', askedMinor: 0, minor: 0, parameters, unknownOptions: [] } as const;
      const asked = startupRequest(hello, policed, [['work_mem', '1MB']]);
      for (const [name] of asked.parameters)
        assert.ok(!['user', 'role', 'search_path', 'replication'].includes(name), name);
      assert.equal(asked.parameters.filter(([name]) => name.toLowerCase() === 'work_mem').length, 1);
      assert.ok(asked.database === 'orders' || asked.database === 'app');
      // What is sent is a packet that can be taken apart again.
      assert.deepEqual(decodeParameters(encodeStartup(asked.parameters).subarray(8)), asked.parameters);
    },
  },
  {
    name: 'postgres-backend-messages',
    seedInputs: [
      Buffer.concat([
        backend('R', int32(0)),
        backend('S', 'a\0b\0'),
        backend('K', int32(1, 2)),
        backend('Z', 'I'),
      ]),
      backend('E', 'SFATAL\0C28P01\0Mno\0\0'),
    ],
    async run(bytes) {
      const upstream = saying(bytes);
      for (let read = 0; ; ) {
        const message = await readMessage(upstream, never);
        read += message.bytes.length;
        assert.equal(message.bytes.length, 5 + message.body.length);
        assert.ok(read <= bytes.length);
      }
    },
  },
  {
    name: 'postgres-error-fields',
    seedInputs: [
      'SFATAL\0VFATAL\0C28P01\0Mno\0\0',
      'C53300\0Mtoo many\0D\0Hx\0\0',
      `M${secret.toString()}\0\0`,
      '',
      '\0',
    ].map((body) => Buffer.from(body)),
    run(bytes) {
      for (const [letter, text] of decodeFields(bytes)) {
        assert.equal(letter.length, 1);
        assert.ok(!text.includes('\0'));
      }
      const error = upstreamFailure(bytes, { secrets: [secret], names: [Buffer.from('app')] });
      assert.ok(!error.message.includes(secret.toString()));
      if (error.reply) {
        assert.ok(!error.reply.includes(secret) && !error.reply.includes('app'));
        const fields = decodeFields(error.reply.subarray(5));
        for (const letter of ['S', 'V', 'C', 'M']) assert.ok(fields.has(letter), letter);
        assert.match(sqlstateOf(error) ?? '', /^[0-9A-Z]{5}$/);
        assert.equal(error.reply.readInt32BE(1), error.reply.length - 1);
      }
      throw error;
    },
  },
];
