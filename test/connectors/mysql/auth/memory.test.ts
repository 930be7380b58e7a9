import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, generateKeyPairSync, pbkdf2Sync } from 'node:crypto';
import { once } from 'node:events';
import { openSync, writeSync } from 'node:fs';
import { describe, it } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { Authentication } from '../../../../src/connectors/mysql/auth/index.ts';
import type { AuthRequest } from '../../../../src/connectors/mysql/auth/plugin.ts';
import { encodeHandshakeResponse, encodePacket } from '../../../../src/connectors/mysql/packets.ts';
import { writableMemory } from '../../../support/memory.ts';
import { channels, nonce, request, salt, strict } from './request.ts';

const PASSWORDS = 8;
const extendedSalt = Buffer.from(`P\0${'s'.repeat(18)}`);

interface Login {
  readonly plugin: string;
  /** What is known to stay behind, and why: docs/decisions/0003-mysql-wire.md. */
  readonly leaves?: readonly string[];
  /** OpenSSL wipes a private key when Node's object for it is collected. */
  readonly collect?: true;
  readonly given?: () => Partial<AuthRequest>;
  readonly packets?: () => readonly Buffer[];
}

const pem = () =>
  Buffer.from(
    generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({ type: 'spki', format: 'pem' }),
  );

/** Each is tried in a process of its own, whose memory is then searched for the passwords. */
const logins: Readonly<Record<string, Login>> = {
  'a native answer': { plugin: 'mysql_native_password' },
  'a fast answer of caching_sha2_password': {
    plugin: 'caching_sha2_password',
    packets: () => [Buffer.from([3])],
  },
  'a full answer of caching_sha2_password inside TLS': {
    plugin: 'caching_sha2_password',
    given: () => ({ channel: channels['verified TLS'] }),
    packets: () => [Buffer.from([4])],
  },
  'an answer of sha256_password encrypted to an RSA key': {
    plugin: 'sha256_password',
    given: () => ({ policy: { ...strict, rsaPublicKey: pem() } }),
  },
  'a password in clear': {
    plugin: 'mysql_clear_password',
    given: () => ({ channel: channels['verified TLS'] }),
  },
  'a signature of client_ed25519': {
    plugin: 'client_ed25519',
    leaves: ['clamped Ed25519 scalar', 'reduced Ed25519 scalar'],
    given: () => ({ data: nonce }),
  },
  'a signature of parsec': {
    plugin: 'parsec',
    collect: true,
    given: () => ({ data: nonce }),
    packets: () => [extendedSalt],
  },
};

const chosen = logins[process.argv[2] ?? ''];
if (chosen !== undefined) {
  const sink = openSync('/dev/null', 'w');
  for (let number = 0; number < PASSWORDS; number++) {
    const password = passwordOf(number);
    const given = request({ ...chosen.given?.(), password });
    const { authentication, first } = await Authentication.begin(chosen.plugin, given);
    const response = encodeHandshakeResponse({
      capabilities: { flags: 0x3ff7f7, extended: 0 },
      maxPacket: 0,
      collation: 45,
      user: 'm1',
      authData: first,
      database: undefined,
      plugin: chosen.plugin,
      attributes: new Map(),
    });
    const answers = [response];
    for (const data of chosen.packets?.() ?? []) {
      const answer = await authentication.answer(data);
      if (answer) answers.push(answer);
    }
    for (const answer of answers) {
      const packet = encodePacket(1, answer);
      writeSync(sink, packet);
      for (const sent of [packet, answer]) sent.fill(0);
    }
    for (const lent of [first, password]) lent.fill(0);
  }
  if (chosen.collect) {
    // Finalizers run in a turn of their own.
    for (let turn = 0; turn < 3; turn++) {
      globalThis.gc?.();
      await setImmediate();
    }
  }
  // An asynchronous PBKDF2 has a copy of its own, which Node wipes just after it has said that it is done.
  await new Promise((resolve) => setTimeout(resolve, 50));
  process.stdout.write('done');
  setTimeout(() => undefined, 30_000);
} else {
  describe('memory', { skip: process.platform !== 'linux' && 'reads /proc' }, () => {
    for (const [login, { leaves, collect }] of Object.entries(logins)) {
      it(`holds no password after ${login}, once what was lent is wiped${collect ? ' and garbage collected' : ''}`, async () => {
        const child = spawn(process.execPath, ['--expose-gc', fileURLToPath(import.meta.url), login], {
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        try {
          await once(child.stdout, 'data', { signal: AbortSignal.timeout(30_000) });
          const memory = writableMemory(child.pid as number);
          const holds = (bytes: Buffer | string) => memory.some((region) => region.includes(bytes));
          assert.ok(holds(login), 'its memory can be searched: its own command line is there');
          const found: string[] = [];
          for (let number = 0; number < PASSWORDS; number++)
            for (const [what, secret] of secretsOf(passwordOf(number)))
              if (!leaves?.includes(what) && holds(secret)) found.push(`${what} ${number}`);
          assert.deepEqual(found, []);
        } finally {
          child.kill();
        }
      });
    }
  });
}

/** The same in parent and child, and made in place of a hash, so that making it leaves no copy. */
function passwordOf(number: number): Buffer {
  const bytes = createHash('sha256').update(`password ${number}`).digest();
  for (const [i, byte] of bytes.entries()) bytes[i] = 0x40 + (byte & 0x1f);
  return bytes;
}

/** The password, and what logs in as well as it does. */
function secretsOf(password: Buffer): [string, Buffer][] {
  const digest = (algorithm: string, bytes: Buffer) => createHash(algorithm).update(bytes).digest();
  const expanded = digest('sha512', password);
  const scalar = Buffer.from(expanded.subarray(0, 32));
  scalar[0] = (scalar[0] as number) & 248;
  scalar[31] = ((scalar[31] as number) & 63) | 64;
  return [
    ['password', password],
    ['password XOR salt', Buffer.from(password.map((byte, i) => byte ^ (salt[i % 20] as number)))],
    ['SHA1', digest('sha1', password)],
    ['SHA1 of SHA1', digest('sha1', digest('sha1', password))],
    ['SHA256', digest('sha256', password)],
    ['SHA256 of SHA256', digest('sha256', digest('sha256', password))],
    ['expanded Ed25519 key', expanded.subarray(0, 32)],
    ['nonce half of the Ed25519 key', expanded.subarray(32)],
    ['clamped Ed25519 scalar', scalar],
    ['reduced Ed25519 scalar', reduced(scalar)],
    ['parsec seed', pbkdf2Sync(password, Buffer.alloc(18, 's'), 1024, 32, 'sha512')],
  ];
}

/** What the scalar is calculated with: it modulo the order of the base point. */
function reduced(scalar: Buffer): Buffer {
  const order = 2n ** 252n + 27742317777372353535851937790883648493n;
  const number = BigInt(`0x${Buffer.from(scalar).reverse().toString('hex')}`) % order;
  return Buffer.from(number.toString(16).padStart(64, '0'), 'hex').reverse();
}
