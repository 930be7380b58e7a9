import assert from 'node:assert/strict';
import { createHash, createHmac, pbkdf2Sync, timingSafeEqual } from 'node:crypto';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import { saslprep } from '../../../../src/connectors/postgres/auth/saslprep.ts';
import {
  chooseMechanism,
  type MechanismChoice,
  ScramClient,
} from '../../../../src/connectors/postgres/auth/scram.ts';
import { Credentials, type Derive } from '../../../../src/core/credentials.ts';
import { PosternError } from '../../../../src/core/errors.ts';

const { derive } = new Credentials(new Map());
const limits = { maxIterations: 100_000, derive };
const plain: MechanismChoice = { mechanism: 'SCRAM-SHA-256', gs2Flag: 'n' };
const bindingData = createHash('sha256').update('test certificate').digest();
const plus: MechanismChoice = {
  mechanism: 'SCRAM-SHA-256-PLUS',
  gs2Flag: 'p=tls-server-end-point',
  bindingData,
};

const password = Buffer.from('pencil');
const nonce = 'rOprNGfwEbeRWgbNEkqO';
const serverFirst = Buffer.from(`r=${nonce}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`);

describe('the choice of a SCRAM mechanism', () => {
  const both = ['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256'];
  const without = ['SCRAM-SHA-256'];
  const choose = (
    offered: string[],
    tls: boolean,
    binds: boolean,
    channelBinding: 'disable' | 'prefer' | 'require',
  ) => chooseMechanism({ offered, tls, bindingData: binds ? bindingData : undefined, channelBinding });

  it('binds to the TLS channel where both ends can', () => {
    assert.deepEqual(choose(both, true, true, 'prefer'), plus);
    assert.deepEqual(choose(both, true, true, 'require'), plus);
    assert.deepEqual(choose(['SCRAM-SHA-256-PLUS'], true, true, 'prefer'), plus);
  });

  it('says "y" only when it could bind and the server did not offer to', () => {
    assert.deepEqual(choose(without, true, true, 'prefer'), { mechanism: 'SCRAM-SHA-256', gs2Flag: 'y' });
  });

  it('says "n" where it cannot or may not bind, also to a server that offered to', () => {
    assert.deepEqual(choose(both, true, true, 'disable'), plain);
    assert.deepEqual(choose(both, true, false, 'prefer'), plain);
    assert.deepEqual(choose(without, true, true, 'disable'), plain);
    assert.deepEqual(choose(without, true, false, 'prefer'), plain);
    assert.deepEqual(choose(without, false, false, 'prefer'), plain);
    assert.deepEqual(choose(without, false, true, 'prefer'), plain);
  });

  it('takes -PLUS without TLS for an attack, whatever the settings say', () => {
    for (const channelBinding of ['disable', 'prefer', 'require'] as const) {
      assert.throws(() => choose(both, false, true, channelBinding), {
        code: 'UPSTREAM_PROTOCOL',
        message: /TLS was stripped/,
      });
    }
  });

  it('refuses to log in without the channel binding that the settings require', () => {
    const requirement = (offered: string[], tls: boolean, binds: boolean, message: RegExp) =>
      assert.throws(() => choose(offered, tls, binds, 'require'), { code: 'AUTH_NOT_ALLOWED', message });
    requirement(without, true, true, /does not offer SCRAM-SHA-256-PLUS/);
    requirement(without, false, false, /has no TLS/);
    requirement(both, true, false, /no hash to bind to/);
  });

  it('says why it cannot take the only mechanism that is offered', () => {
    const only = ['SCRAM-SHA-256-PLUS'];
    assert.throws(() => choose(only, true, true, 'disable'), {
      code: 'AUTH_NOT_ALLOWED',
      message: /binding is disabled/,
    });
    assert.throws(() => choose(only, true, false, 'prefer'), {
      code: 'AUTH_NOT_ALLOWED',
      message: /no hash to bind to/,
    });
  });

  it('names the mechanisms that it does not know, shortened and printable', () => {
    const offered = ['OAUTHBEARER', 'bad\u001b[31m\nname', 'x'.repeat(500), 'scram-sha-256', 'a', 'b', 'c'];
    assert.throws(
      () => choose(offered, true, true, 'prefer'),
      (thrown) =>
        thrown instanceof PosternError &&
        thrown.code === 'UPSTREAM_PROTOCOL' &&
        thrown.message.includes('OAUTHBEARER, bad?[31m?name, xxx') &&
        thrown.message.length < 250,
    );
    assert.throws(() => choose([], true, true, 'prefer'), { message: /none at all/ });
  });
});

describe('SCRAM-SHA-256', () => {
  const vectors = [
    {
      title: 'the exchange of RFC 7677',
      choice: plain,
      username: 'user',
      first: `n,,n=user,r=${nonce}`,
      channel: 'biws',
      proof: 'dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=',
      signature: '6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=',
    },
    {
      title: 'an exchange without a name, and with "y"',
      choice: { mechanism: 'SCRAM-SHA-256', gs2Flag: 'y' },
      username: '',
      first: `y,,n=,r=${nonce}`,
      channel: 'eSws',
      proof: 'VpuC5DGQa5ro9tXE9MnKs69NH1nxnuregZZcclqIGfM=',
      signature: 'FOmOj9BpTGwvnzwBtWQjBaPmVxT9I8IeHBOhcIPu3us=',
    },
    {
      title: 'an exchange that binds to the channel',
      choice: plus,
      username: '',
      first: `p=tls-server-end-point,,n=,r=${nonce}`,
      channel: 'cD10bHMtc2VydmVyLWVuZC1wb2ludCwshq2a+yYryoxWWBBZd9kDX9c3GkKepzw291boR3DcQ1Y=',
      proof: 'CLVmRc3PF11kyjHQ0hRM1jJiXzsiebMUlqUu/BTT188=',
      signature: 'y0b6bllucqEYitl37qYLBqUjFbyQ4MSkE04ZSayBNI4=',
    },
  ] as const;
  for (const { title, choice, username, first, channel, proof, signature } of vectors) {
    it(`does ${title}`, async () => {
      const client = new ScramClient(choice, { nonce, username });
      assert.equal(client.clientFirst().toString(), first);
      const final = await client.clientFinal(serverFirst, password, limits);
      assert.equal(final.toString(), `c=${channel},r=${nonce}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=${proof}`);
      assert.equal(client.iterations, 4096);
      assert.equal(client.verified, false);
      client.verify(Buffer.from(`v=${signature}`));
      assert.equal(client.verified, true);
    });
  }

  it('has the keys of RFC 7677 derived once, and wipes the copy it is lent', async () => {
    const lent: Buffer[] = [];
    const labels: string[] = [];
    const watching: Derive = async (label, compute) => {
      labels.push(label);
      const keys = await compute();
      assert.equal(
        keys.toString('hex'),
        'a60fc923d67e8644a92d16b96eda5ef4656b0c725c484374be25535576996e8b' +
          'c1f3cbc1c13a9d35a14c0990eed97629ea225863e566a4314ab99f3f00e5d9d5',
      );
      lent.push(keys);
      return keys;
    };
    const client = new ScramClient(plain, { nonce });
    await client.clientFinal(serverFirst, password, { ...limits, derive: watching });
    assert.deepEqual(labels, ['SCRAM-SHA-256 4096 W22ZaJ0SNY7soEsUEjb6gQ==']);
    assert.deepEqual(lent, [Buffer.alloc(64)]);
    assert.equal(password.toString(), 'pencil');
  });

  it('logs in with keys from a cache as it does with the password', async () => {
    const cache = new Map<string, Buffer>();
    const remember: Derive = async (label, compute) => {
      const keys = cache.get(label) ?? (await compute());
      cache.set(label, Buffer.from(keys));
      return Buffer.from(keys);
    };
    const server = new ReferenceServer({ password: 'pencil', iterations: 4096 });
    for (const given of ['pencil', 'not asked for']) {
      const client = new ScramClient(plain);
      const first = server.first(client.clientFirst());
      const final = await client.clientFinal(first, Buffer.from(given), { ...limits, derive: remember });
      client.verify(server.final(final));
      assert.equal(client.verified, true);
    }
    assert.equal(cache.size, 1);
  });

  it('escapes "=" and "," in a name', () => {
    const client = new ScramClient(plain, { nonce, username: 'a=b,c' });
    assert.equal(client.clientFirst().toString(), `n,,n=a=3Db=2Cc,r=${nonce}`);
  });

  it('never uses a nonce twice', () => {
    const first = new ScramClient(plain).clientFirst().toString();
    assert.notEqual(new ScramClient(plain).clientFirst().toString(), first);
    assert.match(first, /^n,,n=,r=[A-Za-z0-9+/]{24}$/);
  });

  describe('refuses a first message of the server', () => {
    const rest = ',s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096';
    const start = `r=${nonce}more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=`;
    const refused: [string, string, RegExp][] = [
      ['that is empty', '', /not nonce, salt and iterations/],
      ['with an unknown mandatory extension', `m=x,r=${nonce}more${rest}`, /extension/],
      ['with any extension', `r=${nonce}more${rest},x=1`, /not nonce, salt and iterations/],
      ['in another order', `s=W22ZaJ0SNY7soEsUEjb6gQ==,r=${nonce}more,i=4096`, /not nonce, salt/],
      ['with a nonce that is not ours', `r=x${nonce}${rest}`, /does not begin with ours/],
      ['with a nonce cut short', `r=${nonce.slice(0, -1)}${rest}`, /does not begin with ours/],
      ['with our nonce alone', `r=${nonce}${rest}`, /added nothing/],
      ['with a space in the nonce', `r=${nonce} x${rest}`, /characters/],
      ['with a control character', `r=${nonce}\u0007${rest}`, /characters/],
      ['with a character beyond ASCII', `r=${nonce}\u00e4${rest}`, /characters/],
      ['without salt', `r=${nonce}more,s=,i=4096`, /salt is empty/],
      ['with a salt without padding', `r=${nonce}more,s=W22ZaJ0SNY7soEsUEjb6gQ,i=4096`, /salt is not base64/],
      ['with a salt in the URL alphabet', `r=${nonce}more,s=-_-_,i=4096`, /salt is not base64/],
      ['with bits behind the salt', `r=${nonce}more,s=QR==,i=4096`, /salt is not base64/],
      ['with an empty iteration count', start, /not a positive number/],
      ['with no iterations', `${start}0`, /not a positive number/],
      ['with a leading zero', `${start}04096`, /not a positive number/],
      ['with a sign', `${start}+4096`, /not a positive number/],
      ['with an exponent', `${start}4e3`, /not a positive number/],
      ['with a fraction', `${start}4096.5`, /not a positive number/],
      ['with a hexadecimal number', `${start}0x1000`, /not a positive number/],
      ['with junk behind the number', `${start}4096\n`, /characters/],
      ['that is too long', `r=${nonce}${'x'.repeat(2048)}${rest}`, /longer than 2048 bytes/],
    ];
    for (const [which, message, reason] of refused) {
      it(which, async () => {
        const client = new ScramClient(plain, { nonce });
        await assert.rejects(client.clientFinal(Buffer.from(message), password, limits), {
          name: 'PosternError',
          code: 'UPSTREAM_PROTOCOL',
          message: reason,
        });
        assert.throws(() => client.verify(Buffer.from('v=')), { code: 'UPSTREAM_PROTOCOL' });
        assert.equal(client.verified, false);
      });
    }

    it('that asks for more iterations than the settings allow', async () => {
      const work = async () => assert.fail('derived keys for a server that asks for too much');
      for (const [count, named] of [
        ['100001', '100001'],
        ['9'.repeat(1000), `${'9'.repeat(40)}...`],
      ]) {
        const message = Buffer.from(`${start}${count}`);
        const client = new ScramClient(plain, { nonce });
        await assert.rejects(client.clientFinal(message, password, { ...limits, derive: work }), {
          code: 'AUTH_NOT_ALLOWED',
          message: `SCRAM: the server asks for ${named} iterations, more than scramMaxIterations (100000)`,
        });
      }
    });
  });

  it('takes as many iterations as the settings allow, and one', async () => {
    for (const iterations of [1, 5000]) {
      const client = new ScramClient(plain, { nonce });
      const message = Buffer.from(`r=${nonce}more,s=QQ==,i=${iterations}`);
      await client.clientFinal(message, password, { ...limits, maxIterations: 5000 });
      assert.equal(client.iterations, iterations);
    }
  });

  describe('does not believe a server', () => {
    const afterProof = async () => {
      const client = new ScramClient(plain, { nonce, username: 'user' });
      await client.clientFinal(serverFirst, password, limits);
      return client;
    };
    const good = 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=';

    it('whose signature is wrong: it is an impostor', async () => {
      const client = await afterProof();
      assert.throws(() => client.verify(Buffer.from(`v=${Buffer.alloc(32).toString('base64')}`)), {
        code: 'UPSTREAM_PROTOCOL',
        message: /impostor/,
      });
      assert.equal(client.verified, false);
    });

    it('whose last message is malformed', async () => {
      for (const message of ['', 'v', 'v=', 'v=QQ==', 'x=1', good.slice(0, -1), `${good},`, ` ${good}`]) {
        const client = await afterProof();
        assert.throws(() => client.verify(Buffer.from(message)), { code: 'UPSTREAM_PROTOCOL' }, message);
        assert.equal(client.verified, false);
      }
    });

    it('that says it twice, or says it again rightly after a wrong one', async () => {
      const client = await afterProof();
      assert.throws(() => client.verify(Buffer.from('v=QQ==')));
      assert.throws(() => client.verify(Buffer.from(good)), { message: /out of order/ });
      assert.equal(client.verified, false);
      await assert.rejects(client.clientFinal(serverFirst, password, limits), { message: /out of order/ });
    });

    it('that leaves out its first message', () => {
      const client = new ScramClient(plain);
      // HMAC with no key and no message would otherwise be a signature that anybody can make.
      assert.throws(() => client.verify(Buffer.from(`v=${Buffer.alloc(32).toString('base64')}`)), {
        code: 'UPSTREAM_PROTOCOL',
        message: /out of order/,
      });
    });

    it('that refuses, and passes on why', async () => {
      const refuse = async (text: string) => {
        const client = await afterProof();
        try {
          client.verify(Buffer.from(text));
        } catch (thrown) {
          assert.ok(thrown instanceof PosternError);
          assert.equal(client.verified, false);
          return thrown;
        }
        return assert.fail('accepted');
      };
      assert.equal((await refuse('e=invalid-proof')).code, 'UPSTREAM_REJECTED');
      assert.equal((await refuse('e=unknown-user')).code, 'UPSTREAM_REJECTED');
      assert.equal((await refuse('e=channel-bindings-dont-match')).code, 'UPSTREAM_PROTOCOL');
      assert.equal((await refuse('e=no\u001b[31m\nway')).message, 'SCRAM: the server refuses: no?[31m?way');
      assert.ok((await refuse(`e=${'x'.repeat(100_000)}`)).message.length < 100);
    });
  });

  describe('with a server written from the RFC', () => {
    const text = fc.string({ unit: 'binary', minLength: 1, maxLength: 30 });
    const exchange = fc.record({
      password: text,
      salt: fc.uint8Array({ minLength: 1, maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
      iterations: fc.integer({ min: 1, max: 300 }),
      serverNonce: fc
        .array(fc.integer({ min: 0x21, max: 0x7e }), { minLength: 1 })
        .map((codes) => String.fromCharCode(...codes).replaceAll(',', '+')),
      choice: fc.constantFrom<MechanismChoice>(plain, { mechanism: 'SCRAM-SHA-256', gs2Flag: 'y' }, plus),
    });

    it('logs in with any password, salt, iteration count and nonce', async () => {
      await fc.assert(
        fc.asyncProperty(exchange, async ({ choice, ...settings }) => {
          const server = new ReferenceServer({ ...settings, choice });
          const client = new ScramClient(choice);
          const first = server.first(client.clientFirst());
          const final = await client.clientFinal(first, Buffer.from(settings.password), limits);
          client.verify(server.final(final));
          assert.equal(client.verified, true);
        }),
        { numRuns: 200 },
      );
    });

    it('does not log in with another password, nor bound to another certificate', async () => {
      const attempt = async (choice: MechanismChoice, secret: string) => {
        const server = new ReferenceServer({ password: 'pencil', iterations: 10, choice: plus });
        const client = new ScramClient(choice);
        const first = server.first(client.clientFirst());
        server.final(await client.clientFinal(first, Buffer.from(secret), limits));
      };
      await attempt(plus, 'pencil');
      await assert.rejects(attempt(plus, 'pencil2'), /invalid-proof/);
      await assert.rejects(
        attempt({ ...plus, bindingData: Buffer.alloc(32) }, 'pencil'),
        /bindings-dont-match/,
      );
    });

    it('never verifies a server after any one byte of its messages was changed', async () => {
      const change = fc.record({ which: fc.boolean(), position: fc.nat(), byte: fc.nat(255) });
      await fc.assert(
        fc.asyncProperty(exchange, change, async ({ choice, ...settings }, { which, position, byte }) => {
          const changed = (message: Buffer) => {
            const copy = Buffer.from(message);
            const at = position % copy.length;
            fc.pre(copy[at] !== byte);
            copy[at] = byte;
            return copy;
          };
          const server = new ReferenceServer({ ...settings, choice });
          const client = new ScramClient(choice);
          try {
            const first = server.first(client.clientFirst());
            const final = await client.clientFinal(
              which ? changed(first) : first,
              Buffer.from(settings.password),
              limits,
            );
            // A server that does not check the proof either.
            const last = server.final(final, { careless: true });
            client.verify(which ? last : changed(last));
          } catch (thrown) {
            if (!(thrown instanceof PosternError)) throw thrown;
          }
          assert.equal(client.verified, false);
        }),
        { numRuns: 500 },
      );
    });

    it('only ever fails with a PosternError, whatever bytes a server sends', async () => {
      const bytes = fc.uint8Array({ maxLength: 100 }).map((array) => Buffer.from(array));
      const almost = fc
        .tuple(fc.constantFrom('r=', 's=', `r=${nonce}`, `r=${nonce}x,s=QQ==,i=`, 'v=', 'e='), bytes)
        .map(([start, end]) => Buffer.concat([Buffer.from(start), end]));
      const message = fc.oneof(bytes, almost);
      await fc.assert(
        fc.asyncProperty(message, message, async (first, last) => {
          const refusal = (thrown: unknown) => assert.ok(thrown instanceof PosternError);
          await new ScramClient(plain, { nonce }).clientFinal(first, password, limits).catch(refusal);

          const client = new ScramClient(plain, { nonce });
          await client.clientFinal(Buffer.from(`r=${nonce}x,s=QQ==,i=1`), password, limits);
          assert.throws(() => client.verify(last), PosternError);
          assert.equal(client.verified, false);
        }),
        { numRuns: 300 },
      );
    });
  });
});

interface ReferenceSettings {
  readonly password: string;
  readonly iterations: number;
  readonly salt?: Buffer;
  readonly serverNonce?: string;
  readonly choice?: MechanismChoice;
}

/** The server of RFC 5802 section 3, as short as it can be. It stores what a real one stores: salt, StoredKey and ServerKey. */
class ReferenceServer {
  readonly #salt: Buffer;
  readonly #iterations: number;
  readonly #serverNonce: string;
  readonly #storedKey: Buffer;
  readonly #serverKey: Buffer;
  readonly #choice: MechanismChoice;
  #nonce = '';
  #transcript = '';

  constructor({ password, iterations, salt, serverNonce, choice }: ReferenceSettings) {
    this.#salt = salt ?? Buffer.from('salt');
    this.#iterations = iterations;
    this.#serverNonce = serverNonce ?? 'server';
    this.#choice = choice ?? plain;
    const salted = pbkdf2Sync(saslprep(Buffer.from(password)), this.#salt, iterations, 32, 'sha256');
    this.#storedKey = createHash('sha256').update(hmac(salted, 'Client Key')).digest();
    this.#serverKey = hmac(salted, 'Server Key');
  }

  first(clientFirst: Buffer): Buffer {
    const [, flag, bare = '', clientNonce = ''] =
      /^(n|y|p=tls-server-end-point),,(n=[^,]*,r=([\x21-\x2b\x2d-\x7e]+))$/.exec(clientFirst.toString()) ??
      [];
    assert.equal(flag, this.#choice.gs2Flag);
    this.#nonce = clientNonce + this.#serverNonce;
    const message = `r=${this.#nonce},s=${this.#salt.toString('base64')},i=${this.#iterations}`;
    this.#transcript = `${bare},${message}`;
    return Buffer.from(message);
  }

  final(clientFinal: Buffer, { careless = false } = {}): Buffer {
    const [, withoutProof = '', channel = '', nonce, proof = ''] =
      /^(c=([^,]+),r=([^,]+)),p=([^,]+)$/.exec(clientFinal.toString()) ?? [];
    const header = Buffer.from(`${this.#choice.gs2Flag},,`);
    const expected = 'bindingData' in this.#choice ? [header, this.#choice.bindingData] : [header];
    if (!Buffer.from(channel, 'base64').equals(Buffer.concat(expected)))
      throw new Error('channel-bindings-dont-match');

    const transcript = `${this.#transcript},${withoutProof}`;
    if (!careless) {
      assert.equal(nonce, this.#nonce);
      const clientSignature = hmac(this.#storedKey, transcript);
      const clientKey = Buffer.from(proof, 'base64').map((byte, i) => byte ^ (clientSignature[i] as number));
      const storedKey = createHash('sha256').update(clientKey).digest();
      if (!timingSafeEqual(storedKey, this.#storedKey)) throw new Error('invalid-proof');
    }
    return Buffer.from(`v=${hmac(this.#serverKey, transcript).toString('base64')}`);
  }
}

function hmac(key: Buffer, data: string): Buffer {
  return createHmac('sha256', key).update(data).digest();
}
