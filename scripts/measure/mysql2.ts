// What docs/decisions/0003 is based on. Run: node scripts/measure/mysql2.ts   (Linux; reads the memory of its own children)
import { execFileSync, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { openSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { authPlugins } from 'mysql2';

import { signWithPassword } from '../../src/connectors/mysql/auth/ed25519.ts';
import { Authentication } from '../../src/connectors/mysql/auth/index.ts';
import { writableMemory } from '../../test/support/memory.ts';

const LOGINS = 100;
const [, script = '', task, argument = '', detail = ''] = process.argv;
const SALT = Buffer.from('ABCDEFGHIJKLMNOPQRST');
const plugins = ['mysql_native_password', 'caching_sha2_password', 'mysql_clear_password'] as const;

if (task === 'log-in') await logIn(argument, detail);
else if (task === 'parse') parse(argument, Buffer.from(detail, 'hex'));
else {
  console.log(`Of ${LOGINS} logins, still in the memory of the process:`);
  for (const plugin of plugins)
    for (const how of ['mysql2', 'buffers'])
      for (const collect of [false, true])
        console.log(`  ${plugin}, ${how}, ${await leftovers(plugin, how, collect)}`);
  for (const collect of [false, true])
    console.log(`  client_ed25519, buffers, ${await leftovers('client_ed25519', 'buffers', collect)}`);

  console.log("\nWhat mysql2's readers make of a hostile server or client:");
  const response = `85a2${'3b00'}00000001${'2d'}${'00'.repeat(23)}6100`;
  const inputs: [string, string, string][] = [
    ['greeting that ends in the salt', 'Handshake', '0a3900010000004142'],
    [
      'greeting whose salt has 255 bytes and is not there',
      'Handshake',
      `0a390001000000${'41'.repeat(8)}00ffff2d0200ff81ff${'00'.repeat(10)}`,
    ],
    ['AuthSwitchRequest without a name', 'AuthSwitchRequest', 'fe'],
    ['response whose answer is longer than the packet', 'HandshakeResponse', `${response}ff414243`],
    ['OK whose session changes are longer than the packet', 'ResultSetHeader', '0000000240000000fdffff7f'],
  ];
  for (const [what, packet, hex] of inputs) console.log(`  ${what}: ${parsed(packet, hex)}`);

  console.log('\nclient_ed25519, milliseconds:');
  const begun = performance.now();
  await signWithPassword(randomBytes(20), randomBytes(32));
  const first = performance.now();
  for (let i = 0; i < 50; i++) await signWithPassword(randomBytes(20), randomBytes(32));
  const each = (performance.now() - first) / 50;
  console.log(
    `  the first, with the import of the library: ${(first - begun).toFixed(0)}; each one after: ${each.toFixed(1)}`,
  );
}

/** The same in parent and child, and made in place of a hash, so that making it leaves no copy. */
function password(number: number): Buffer {
  const bytes = createHash('sha256').update(`login ${number}`).digest();
  for (const [i, byte] of bytes.entries()) bytes[i] = 0x40 + (byte & 0x1f);
  return bytes;
}

/** One login after the other, each wiped as far as it can be; then waits to be looked at. */
async function logIn(plugin: string, how: string): Promise<void> {
  const sink = openSync('/dev/null', 'w');
  for (let number = 0; number < LOGINS; number++) {
    const secret = password(number);
    const answer = how === 'buffers' ? await ours(plugin, secret) : theirs(plugin, secret.toString('utf8'));
    writeSync(sink, answer);
    answer.fill(0);
    secret.fill(0);
  }
  globalThis.gc?.();
  process.stdout.write('done');
  setTimeout(() => undefined, 60_000);
}

async function ours(plugin: string, secret: Buffer): Promise<Buffer> {
  const { first } = await Authentication.begin(plugin, {
    password: secret,
    data: plugin === 'client_ed25519' ? Buffer.alloc(32, 5) : SALT,
    channel: { secure: true, tls: true },
    policy: { allowAuth: [], rsaPublicKey: undefined, allowPublicKeyRetrieval: false },
    derive: (_label, compute) => compute(),
  });
  return first;
}

function theirs(plugin: string, secret: string): Buffer {
  // Its types ask for a whole connection, of which it reads the password.
  const all = authPlugins as unknown as Record<
    string,
    (options: object) => (context: object) => (data: Buffer) => Buffer
  >;
  const answer = all[plugin]?.({})({ connection: { config: { password: secret } }, command: {} })(SALT);
  if (!answer) throw new Error(`mysql2 has no ${plugin}`);
  return answer;
}

async function leftovers(plugin: string, how: string, collect: boolean): Promise<string> {
  const flags = collect ? ['--expose-gc'] : [];
  const child = spawn(process.execPath, [...flags, script, 'log-in', plugin, how], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  const memory = writableMemory(child.pid as number);
  child.kill();
  const held = (of: (secret: Buffer) => Buffer) =>
    Array.from({ length: LOGINS }, (_, number) => of(password(number))).filter((secret) =>
      memory.some((region) => region.includes(secret)),
    ).length;
  const found = [
    `${held((secret) => secret)} passwords`,
    ...(plugin === 'mysql_native_password' ? [`${held((secret) => digest('sha1', secret))} SHA1`] : []),
    ...(plugin === 'caching_sha2_password' ? [`${held((secret) => digest('sha256', secret))} SHA256`] : []),
    ...(plugin === 'client_ed25519' ? [`${held(scalarOf)} secret scalars`] : []),
  ];
  return `${collect ? 'after' : 'without'} a garbage collection: ${found.join(', ')}`;
}

function digest(algorithm: string, bytes: Buffer): Buffer {
  return createHash(algorithm).update(bytes).digest();
}

/** The scalar of a password as a library calculates with it: modulo the order of the base point. */
function scalarOf(secret: Buffer): Buffer {
  const bytes = digest('sha512', secret).subarray(0, 32);
  bytes[0] = (bytes[0] as number) & 248;
  bytes[31] = ((bytes[31] as number) & 63) | 64;
  const order = 2n ** 252n + 27742317777372353535851937790883648493n;
  const number = BigInt(`0x${bytes.reverse().toString('hex')}`) % order;
  return Buffer.from(number.toString(16).padStart(64, '0'), 'hex').reverse();
}

/** In a process of its own, in case one of them never returns. */
function parsed(packet: string, hex: string): string {
  try {
    const output = execFileSync(process.execPath, [script, 'parse', packet, hex], {
      timeout: 3000,
      stdio: ['ignore', 'pipe', 'ignore'],
      encoding: 'utf8',
    });
    return output.trim();
  } catch (thrown) {
    return (thrown as { code?: string }).code === 'ETIMEDOUT'
      ? 'never returns (killed after 3 s)'
      : 'crashes';
  }
}

function parse(name: string, payload: Buffer): void {
  const require = createRequire(import.meta.url);
  const folder = join(dirname(require.resolve('mysql2')), 'lib/packets');
  const all = require(join(folder, 'index.js')) as Record<string, { fromPacket(packet: object): object }>;
  const Packet = require(join(folder, 'packet.js')) as new (...fields: unknown[]) => { offset: number };
  const buffer = Buffer.concat([Buffer.alloc(4), payload]);
  const packet = new Packet(0, buffer, 0, buffer.length);
  packet.offset = 4;
  try {
    const Read = all[name] as unknown as new (packet: object, connection: object) => object;
    const config = { config: {}, serverEncoding: 'utf8', _handshakePacket: { capabilityFlags: 0xffffffff } };
    const read = name === 'ResultSetHeader' ? new Read(packet, config) : all[name]?.fromPacket(packet);
    console.log(JSON.stringify(read).slice(0, 400));
  } catch (thrown) {
    console.log(`throws ${thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : String(thrown)}`);
  }
}
