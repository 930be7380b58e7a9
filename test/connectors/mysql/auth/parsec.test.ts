import assert from 'node:assert/strict';
import { createPublicKey, verify } from 'node:crypto';
import { describe, it } from 'node:test';

import {
  decodeExtendedSalt,
  deriveSeed,
  signScrambles,
} from '../../../../src/connectors/mysql/auth/parsec.ts';
import { converse, nonce } from './request.ts';

const password = Buffer.from('Secret#1');
/** What MariaDB 11.8.9 really sent, and the public key that it stores for the password. */
const live = Buffer.from('01500098a4026bcc38b206d206ebd2f92732f86b88', 'hex');
const livePublicKey = Buffer.from('SZkaYt3Zcf+v5VDrH2x0bGvY+1ScnWemj0fac/XtdcA=', 'base64');

function publicKey(raw: Buffer) {
  const der = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), raw]);
  return createPublicKey({ key: der, format: 'der', type: 'spki' });
}

describe('parsec', () => {
  it('derives and signs what a server expects', async () => {
    const salt = Buffer.from('202122232425262728292a2b2c2d2e2f3031', 'hex');
    const seed = await deriveSeed(password, salt, 1024);
    assert.equal(seed.toString('hex'), '622236644bffb4c8da9463a0e18f3a818f88ff208202feb4de7952ed1c53fee9');

    const client = Buffer.from(Array.from({ length: 32 }, (_, i) => 0x20 + i));
    const answer = signScrambles(seed, nonce, client);
    assert.deepEqual(answer.subarray(0, 32), client);
    assert.equal(
      answer.toString('hex', 32),
      'aa6124f80222a6f7fd918a8d9299641fc3e2859f4c216a749b6e412fa283ab44f2c4ea5aa98b3eb415ac0f2f454083f5846a5429209180934afe7597b8af790b',
    );
    const stored = Buffer.from('18b0724c89ae2cb65ed3ffb33685ee40700b1fcaad27aa419192272cb7fbc032', 'hex');
    assert.ok(verify(null, Buffer.concat([nonce, client]), publicKey(stored), answer.subarray(32)));
  });

  it('asks for the salt with an empty packet, then proves itself to a MariaDB 11.8, with a scramble of its own', async () => {
    const scrambles = new Set<string>();
    for (const data of [live, live.subarray(1)]) {
      const [first, answer] = await converse('parsec', { data: nonce }, data);
      assert.equal(first?.length, 0);
      assert.ok(answer?.length === 96);
      const signed = Buffer.concat([nonce, answer.subarray(0, 32)]);
      assert.ok(verify(null, signed, publicKey(livePublicKey), answer.subarray(32)));
      scrambles.add(answer.toString('hex', 0, 32));
    }
    assert.equal(scrambles.size, 2);
  });

  it('lets the seed be kept for the logins of one password, and wipes the copy that it is lent', async () => {
    const lent: Buffer[] = [];
    const labels: string[] = [];
    const derive = async (label: string, compute: () => Promise<Buffer>) => {
      labels.push(label);
      const seed = await compute();
      lent.push(seed);
      return seed;
    };
    await converse(
      'parsec',
      { data: nonce, derive },
      Buffer.concat([Buffer.from('P\x01'), live.subarray(3)]),
    );
    assert.deepEqual(labels, [`parsec 2048 ${live.toString('base64', 3)}`]);
    assert.deepEqual(lent, [Buffer.alloc(32)]);
    await assert.rejects(converse('parsec', { data: nonce }, live, live), { code: 'UPSTREAM_PROTOCOL' });
  });

  it('does the work of 262144 iterations and no more for a server that has proved nothing', () => {
    const withDoublings = (n: number) => Buffer.concat([Buffer.from([0x50, n]), live.subarray(3)]);
    assert.equal(decodeExtendedSalt(withDoublings(0)).iterations, 1024);
    assert.equal(decodeExtendedSalt(withDoublings(3)).iterations, 8192);
    assert.equal(decodeExtendedSalt(withDoublings(8)).iterations, 262144);
    for (const doublings of [9, 32, 255])
      assert.throws(() => decodeExtendedSalt(withDoublings(doublings)), {
        code: 'AUTH_NOT_ALLOWED',
        message: /262144 iterations \(parsec\)/,
      });
  });

  it('refuses what is no salt of 18 bytes, and a scramble that is not 32', async () => {
    const malformed = [
      '',
      '01',
      '5000',
      live.toString('hex', 2),
      `51${live.toString('hex', 2)}`,
      `${live.toString('hex')}00`,
      `02${live.toString('hex', 1)}`,
    ];
    for (const hex of malformed)
      await assert.rejects(converse('parsec', { data: nonce }, Buffer.from(hex, 'hex')), {
        code: 'UPSTREAM_PROTOCOL',
      });
    for (const length of [0, 20, 33])
      await assert.rejects(converse('parsec', { data: Buffer.alloc(length) }), { code: 'UPSTREAM_PROTOCOL' });
  });
});
