import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, createHmac, pbkdf2Sync } from 'node:crypto';
import { once } from 'node:events';
import { openSync, writeSync } from 'node:fs';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { md5Response } from '../../../../src/connectors/postgres/auth/md5.ts';
import { passwordMessage, saslResponse } from '../../../../src/connectors/postgres/auth/password-message.ts';
import { saslprep } from '../../../../src/connectors/postgres/auth/saslprep.ts';
import { ScramClient } from '../../../../src/connectors/postgres/auth/scram.ts';
import { writableMemory } from '../../../support/memory.ts';

const PASSWORDS = 8;

type Login = (password: Buffer, send: (message: Buffer) => void) => void | Promise<void>;

/** Each is tried in a process of its own, whose memory is then searched for the passwords. */
const logins: Record<string, Login> = {
  'a password in clear': (password, send) => {
    const message = passwordMessage(password);
    send(message);
    message.fill(0);
  },
  'an MD5 answer': (password, send) => {
    const answer = md5Response(Buffer.from('m1'), password, Buffer.from([1, 2, 3, 4]));
    const message = passwordMessage(answer);
    send(message);
    message.fill(0);
  },
  'a SCRAM exchange': async (password, send) => {
    const client = new ScramClient({ mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' }, { nonce: 'ours' });
    const derive = (_label: string, compute: () => Promise<Buffer>) => compute();
    const serverFirst = Buffer.from('r=ours+theirs,s=QQ==,i=10');
    send(saslResponse(await client.clientFinal(serverFirst, password, { maxIterations: 10, derive })));
  },
  'SASLprep of a password in ASCII': (password, send) => {
    const prepared = saslprep(password);
    send(prepared);
    prepared.fill(0);
  },
};

const chosen = process.argv[2];
if (chosen !== undefined) {
  const sink = openSync('/dev/null', 'w');
  for (let number = 0; number < PASSWORDS; number++) {
    const password = passwordOf(number);
    await logins[chosen]?.(password, (message) => writeSync(sink, message));
    password.fill(0);
  }
  // An asynchronous PBKDF2 has a copy of its own, which Node wipes just after it has said that it is done.
  await new Promise((resolve) => setTimeout(resolve, 50));
  process.stdout.write('done');
  setTimeout(() => undefined, 30_000);
} else {
  describe('memory', { skip: process.platform !== 'linux' }, () => {
    for (const login of Object.keys(logins)) {
      it(`holds no password after ${login}, once what was lent is wiped`, async () => {
        const child = spawn(process.execPath, [fileURLToPath(import.meta.url), login], {
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        try {
          await once(child.stdout, 'data', { signal: AbortSignal.timeout(20_000) });
          const memory = writableMemory(child.pid as number);
          const holds = (bytes: Buffer | string) => memory.some((region) => region.includes(bytes));
          assert.ok(holds(login), 'its memory can be searched: its own command line is there');
          for (let number = 0; number < PASSWORDS; number++)
            for (const [what, secret] of secretsOf(passwordOf(number)))
              assert.ok(!holds(secret), `${what} ${number}`);
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
function secretsOf(password: Buffer): [string, Buffer | string][] {
  const stored = createHash('md5').update(password).update('m1').digest();
  const saltedPassword = pbkdf2Sync(password, Buffer.from('QQ==', 'base64'), 10, 32, 'sha256');
  const clientKey = createHmac('sha256', saltedPassword).update('Client Key').digest();
  return [
    ['password', password],
    ['MD5 verifier', stored],
    ['MD5 verifier in hexadecimal', stored.toString('hex')],
    ['SaltedPassword', saltedPassword],
    ['ClientKey', clientKey],
    ['StoredKey', createHash('sha256').update(clientKey).digest()],
    ['ServerKey', createHmac('sha256', saltedPassword).update('Server Key').digest()],
  ];
}
