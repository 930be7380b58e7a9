import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { pathToFileURL } from 'node:url';

import { PosternError } from '../../src/core/errors.ts';
import { savedInputs, saveInput } from './corpus.ts';
import { judge, shrink } from './judge.ts';
import { nextInput, seededRandom } from './mutate.ts';
import { type FuzzTarget, targets } from './targets.ts';

for (const target of targets) {
  describe(`fuzz target ${target.name}`, () => {
    it('holds for its seed inputs', async () => {
      for (const input of target.seedInputs) assert.equal(await judge(target, input), undefined);
    });

    it('holds for some mutations of them', async () => {
      const random = seededRandom(1);
      for (let tries = 0; tries < 200; tries++) {
        const input = nextInput(target.seedInputs, random);
        assert.equal(await judge(target, input), undefined, input.toString('hex'));
      }
    });

    for (const [name, input] of savedInputs(target.name)) {
      it(`holds for ${name}, which once broke it`, async () => {
        assert.equal(await judge(target, input), undefined);
      });
    }
  });
}

describe('the fuzz runner', () => {
  const fragile: FuzzTarget = {
    name: 'fragile',
    seedInputs: [Buffer.from('hello')],
    run(bytes) {
      if (bytes.includes(0xff)) throw new TypeError('cannot read 0xff');
      if (bytes.length > 6) throw new PosternError('CLIENT_PROTOCOL', 'too long');
    },
  };

  it('makes the same inputs from the same seed', () => {
    const run = (seed: number) => {
      const random = seededRandom(seed);
      return Array.from({ length: 100 }, () => nextInput(fragile.seedInputs, random).toString('hex'));
    };
    assert.deepEqual(run(7), run(7));
    assert.notDeepEqual(run(7), run(8));
  });

  it('finds a planted fault, shrinks it, and keeps it', async () => {
    const random = seededRandom(3);
    let input: Buffer;
    do input = nextInput(fragile.seedInputs, random);
    while (!(await judge(fragile, input)));
    const small = await shrink(fragile, Buffer.concat([Buffer.from('around'), input, Buffer.from('it')]));
    assert.deepEqual(small, Buffer.from([0xff]));

    const folder = mkdtempSync(join(tmpdir(), 'fuzz-'));
    try {
      const url = pathToFileURL(`${folder}/`);
      const name = saveInput('fragile', small, url);
      assert.deepEqual(savedInputs('fragile', url), new Map([[name, small]]));
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('takes a PosternError for an answer, unless a stranger could write on the terminal with it', async () => {
    const saying = (message: string): FuzzTarget => ({
      ...fragile,
      run() {
        throw new PosternError('CLIENT_PROTOCOL', message);
      },
    });
    assert.equal(await judge(saying('no such thing'), Buffer.alloc(1)), undefined);
    assert.match((await judge(saying('red: \u001b[31m'), Buffer.alloc(1))) ?? '', /control character/);
    assert.match((await judge(saying('x'.repeat(3000)), Buffer.alloc(1))) ?? '', /3000 characters/);
  });
});
