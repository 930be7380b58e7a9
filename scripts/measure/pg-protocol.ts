// What docs/decisions/0001 is based on. Run: node scripts/measure/pg-protocol.ts   (Linux; reads the memory of its own children)
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { openSync, writeSync } from 'node:fs';
import { serialize } from 'pg-protocol';
import { Parser } from 'pg-protocol/dist/parser.js';

import { passwordMessage } from '../../src/connectors/postgres/auth/password-message.ts';
import { writableMemory } from '../../test/support/memory.ts';

const LOGINS = 100;
const [, script = '', task, argument = ''] = process.argv;

if (task === 'log-in') logIn(argument);
else if (task === 'parse') parse(Buffer.from(argument, 'hex'));
else {
  console.log(
    `Passwords of ${LOGINS} logins that are still in the memory of the process (copies in brackets):`,
  );
  for (const how of ['pg-protocol', 'buffers'])
    for (const collect of [false, true]) console.log(`  ${how}, ${await leftovers(how, collect)}`);

  console.log("\nWhat pg-protocol's parser makes of a hostile server:");
  const inputs = {
    'ErrorResponse with an empty body': '4500000004',
    'ErrorResponse without its final zero': '450000000a534641494c',
    'AuthenticationCleartextPassword, one byte too long': '52000000090000000300',
    'message of length 0': '5a00000000',
    'ErrorResponse without field V': '450000001753464154414c00433238503031004d6e6f0000',
    NegotiateProtocolVersion: '760000000c0003000200000000',
    'BackendKeyData with a key of 32 bytes': `4b000000280000004d${'ab'.repeat(32)}`,
    'ParameterStatus that ends early, and a message behind it': '5300000006616252000000080000000000',
  };
  for (const [what, hex] of Object.entries(inputs)) console.log(`  ${what}: ${parsed(hex)}`);
  console.log(`  message that announces 2 GiB: ${kept()} MiB of 64 MiB sent are kept, and no error`);
}

/** The same in parent and child, and made in place of a hash, so that making it leaves no copy. */
function password(number: number): Buffer {
  const bytes = createHash('sha256').update(`login ${number}`).digest();
  for (const [i, byte] of bytes.entries()) bytes[i] = 0x40 + (byte & 0x1f);
  return bytes;
}

/** One login after the other, each wiped as far as it can be; then waits to be looked at. */
function logIn(how: string): void {
  const sink = openSync('/dev/null', 'w');
  for (let number = 0; number < LOGINS; number++) {
    const secret = password(number);
    const message = how === 'buffers' ? passwordMessage(secret) : serialize.password(secret.toString('utf8'));
    writeSync(sink, message);
    message.fill(0);
    secret.fill(0);
  }
  globalThis.gc?.();
  process.stdout.write('done');
  setTimeout(() => undefined, 60_000);
}

async function leftovers(how: string, collect: boolean): Promise<string> {
  const child = spawn(process.execPath, [...(collect ? ['--expose-gc'] : []), script, 'log-in', how], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  const memory = writableMemory(child.pid as number);
  child.kill();
  const copies = Array.from({ length: LOGINS }, (_, number) => count(memory, password(number)));
  const found = copies.filter((n) => n > 0).length;
  const total = copies.reduce((sum, n) => sum + n, 0);
  return `${collect ? 'after' : 'without'} a garbage collection: ${found} of ${LOGINS} (${total})`;
}

function count(regions: readonly Buffer[], needle: Buffer): number {
  let found = 0;
  for (const region of regions)
    for (let at = region.indexOf(needle); at >= 0; at = region.indexOf(needle, at + 1)) found++;
  return found;
}

/** In a process of its own: one of the inputs never returns. */
function parsed(hex: string): string {
  try {
    const output = execFileSync(process.execPath, [script, 'parse', hex], {
      timeout: 3000,
      stdio: ['ignore', 'pipe', 'ignore'],
      encoding: 'utf8',
    });
    return output.trim() || 'nothing';
  } catch (thrown) {
    return (thrown as { code?: string }).code === 'ETIMEDOUT' ? 'never returns (killed after 3 s)' : 'throws';
  }
}

function parse(bytes: Buffer): void {
  const parser = new Parser();
  parser.parse(bytes, (message) => {
    const { name, length, ...fields } = message as unknown as Record<string, unknown>;
    console.log(`${String(name)} (length ${String(length)}) ${JSON.stringify(fields)}`);
  });
}

/** How much of an endless message the parser collects. */
function kept(): number {
  const parser = new Parser();
  const chunk = Buffer.alloc(2 ** 20);
  parser.parse(Buffer.from('447fffffff', 'hex'), () => undefined);
  for (let sent = 0; sent < 64; sent++) parser.parse(chunk, () => undefined);
  return Math.floor((parser as unknown as { bufferLength: number }).bufferLength / 2 ** 20);
}
