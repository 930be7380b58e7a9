import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash, createHmac, pbkdf2Sync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';

import { saslprep } from '../../../../src/connectors/postgres/auth/saslprep.ts';

const root = new URL('../../../../', import.meta.url);
const prepared = (password: string) => saslprep(Buffer.from(password)).toString('hex');
const raw = (password: string) => Buffer.from(password).toString('hex');

describe('SASLprep as PostgreSQL does it', () => {
  const salt = Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64');
  const examples = [
    ['user', '75736572', '0a0055ac626d07fbacfee02181a767eb8df3b565495c0cc08653eb5389eb4609'],
    ['I\u00adX', '4958', '7f9242ed6af1e27160e5480687043cdaec8373483810d3d43b95b01987cd4fdd'],
    ['\u00aa', '61', '5621a849d6a500c5619a314c682f8b8f81be800e28a27d4f9441771263a5f5b3'],
    ['\u2168', '4958', '7f9242ed6af1e27160e5480687043cdaec8373483810d3d43b95b01987cd4fdd'],
    ['p\u00a0w', '702077', '3de095aaf3b225c4b6da64d27e64abe3d5fb865462d1c6688adebb83b6dcdda3'],
    ['\u1e9b\u0323', 'e1b9a9', 'dbb1b14660dea99d238b1f3e0a6e2ee3f9cbb258e17b27105d5364a8d5c95ce1'],
    ['pa\u200bss', '7061207373', '0c2aa705e071b3a177c3c60426eb47724510dff7b56650e6d881ffc038df40d1'],
    ['\u0007', '07', 'f3abac8c6a42e2b252755945d0d638e8a3d71f97b1e1ab27cf51f1884cf377cd'],
    ['\u06271', 'd8a731', 'e7f412cf6dd451694e0a75b97729067b3d4d52be4c38ef32ca2508030b67d738'],
    ['\u{1f600}pw', 'f09f98807077', 'd527f468348661880c9baf89218f5865e64f3dfff105cae77876e4ff68ae01d5'],
  ] as const;
  for (const [password, bytes, saltedPassword] of examples) {
    it(`prepares ${JSON.stringify(password)}`, () => {
      assert.equal(prepared(password), bytes);
      assert.equal(
        pbkdf2Sync(Buffer.from(bytes, 'hex'), salt, 4096, 32, 'sha256').toString('hex'),
        saltedPassword,
      );
    });
  }

  // `ALTER ROLE x PASSWORD ...` on PostgreSQL 18.4 with `scram_iterations = 1`, and what it stored in pg_authid.
  it('leads to the verifiers that a PostgreSQL server stored', () => {
    const url = new URL('./fixtures/saslprep-postgres-18.json', import.meta.url);
    const stored = JSON.parse(readFileSync(url, 'utf8')) as { password: string; verifier: string }[];
    assert.equal(stored.length, 51);
    for (const { password, verifier } of stored) {
      const [, iterations = '', saltText = '', storedKey = ''] =
        /^SCRAM-SHA-256\$(\d+):(.+)\$(.+):/.exec(verifier) ?? [];
      const bytes = saslprep(Buffer.from(password));
      const salted = pbkdf2Sync(bytes, Buffer.from(saltText, 'base64'), Number(iterations), 32, 'sha256');
      const clientKey = createHmac('sha256', salted).update('Client Key').digest();
      assert.equal(
        createHash('sha256').update(clientKey).digest('base64'),
        storedKey,
        JSON.stringify(password),
      );
    }
  });

  it('looks for prohibited and unassigned characters before normalization, unlike RFC 4013', () => {
    assert.equal(prepared('a\u0340'), raw('a\u0340')); // NFKC would make it the harmless U+00E0
    assert.equal(prepared('\u32ff'), raw('\u32ff')); // unknown to Unicode 3.2, and two known characters in NFKC
  });

  it('takes the raw bytes where nothing would be left', () => {
    assert.equal(prepared('\u00ad\u200c'), raw('\u00ad\u200c'));
  });

  it('keeps a right-to-left password that begins and ends right-to-left', () => {
    assert.equal(prepared('\u0627\u00b2\u0628'), raw('\u06272\u0628'));
    assert.equal(prepared('\u0627\u00b2a\u0628'), raw('\u0627\u00b2a\u0628'));
    assert.equal(prepared('\u0627\u00b2'), raw('\u0627\u00b2'));
    assert.equal(prepared('\u00b2\u0627'), raw('\u00b2\u0627'));
  });

  it('takes bytes that are not UTF-8 as they are', () => {
    for (const hex of ['ff', 'c3', 'c0af', 'eda080', 'f4908080', '61e9']) {
      assert.equal(saslprep(Buffer.from(hex, 'hex')).toString('hex'), hex);
    }
  });

  it('returns a copy, also of what it does not change', () => {
    for (const password of ['pencil', '', 'p\u00e4ss', '\u0007\u00e4', '\u{1f600}']) {
      const given = Buffer.from(password);
      const copy = saslprep(given);
      copy.fill(0);
      assert.deepEqual(given, Buffer.from(password));
    }
  });

  it('prepares any bytes, and what it changed it does not change again', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 40 }), (password) => {
        const once = saslprep(Buffer.from(password));
        if (!once.equals(Buffer.from(password))) assert.deepEqual(saslprep(once), once);
      }),
    );
    fc.assert(fc.property(fc.uint8Array(), (bytes) => saslprep(Buffer.from(bytes)).length >= 0));
  });

  it('uses the tables that scripts/saslprep-tables.py prints', (t) => {
    const script = fileURLToPath(new URL('scripts/saslprep-tables.py', root));
    const printed = spawnSync('python3', [script], { encoding: 'utf8' });
    if (printed.error) return t.skip('no python3 here');
    assert.equal(printed.status, 0, printed.stderr);
    const committed = new URL('src/connectors/postgres/auth/saslprep-tables.ts', root);
    assert.equal(readFileSync(committed, 'utf8'), printed.stdout);
  });
});
