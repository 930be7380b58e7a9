import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { inspect } from 'node:util';
import { pino } from 'pino';

import { PosternError } from '../../src/core/errors.ts';
import { Secret } from '../../src/core/secret.ts';
import { KeychainItems } from '../../src/providers/keychain.ts';
import { placesOf } from '../../src/providers/local/places.ts';
import { SecretsFile } from '../../src/providers/local/secrets-file.ts';
import { fakeConjur } from '../providers/conjur/fake-conjur.ts';
import { failure, never, type Opened, open } from '../providers/opening.ts';
import { fakeVault } from '../providers/vault/fake-vault.ts';
import { providers } from '../support/plugins.ts';
import { server } from '../support/servers.ts';
import { cloudSamples } from './providers/cloud.ts';

const first = 'LAW-CANARY-first-31337';
const second = 'LAW-CANARY-second-31337';

/** What the laws need of a kind of provider. A new line in the table of providers needs one here. */
interface Sample {
  readonly open: () => Opened;
  /** References to `first` and `second`. */
  readonly references: readonly [string, string];
  /** A well-formed reference to nothing; undefined where there is no such thing. */
  readonly missing: string | undefined;
  /** Opens one whose store never answers; undefined where there is nothing that could hang. */
  readonly hung: (() => Opened) | undefined;
  /** References are asked for side by side: the first failure may come before anything else was read. */
  readonly sideBySide?: true;
  /** Which of the two a value is, where a store makes its values up by itself. */
  readonly read?: (text: string) => string;
}

const folder = mkdtempSync(join(tmpdir(), 'postern-laws-'));
const samples: Record<string, (cleanup: (() => Promise<unknown>)[]) => Promise<Sample>> = {
  literal: async () => ({
    open: () => open('literal'),
    references: [first, second],
    missing: undefined,
    hung: undefined,
  }),
  env: async () => ({
    open: () => open('env', {}, { FIRST: first, SECOND: second }),
    references: ['FIRST', 'SECOND'],
    missing: 'NOT_SET',
    hung: undefined,
  }),
  file: async () => {
    writeFileSync(join(folder, 'first'), first);
    writeFileSync(join(folder, 'second.json'), JSON.stringify({ a: { b: second } }));
    return {
      open: () => open('file'),
      references: [join(folder, 'first'), `${join(folder, 'second.json')}#a.b`],
      missing: join(folder, 'none'),
      hung: undefined,
    };
  },
  vault: async (cleanup) => {
    const bao = await server('openbao');
    await bao.write('secret/data/app/laws', { data: { first } });
    await bao.write('kv1/app/laws', { second });
    const silent = await fakeVault({}, () => 'by hand');
    cleanup.push(silent.stop);
    const auth = { method: 'approle', roleId: bao.roleId, secretId: bao.secretId };
    return {
      open: () => open('vault', { address: bao.address, auth }),
      references: ['secret/app/laws#first', 'kv1/app/laws#second'],
      missing: 'secret/app/nothing#here',
      hung: () => open('vault', { address: silent.address, auth }),
      sideBySide: true,
    };
  },
};

samples['conjur'] = async (cleanup) => {
  const variable = (value: string) => ({ values: [Buffer.from(value)], execute: ['host/laws'] });
  const conjur = await fakeConjur({
    keys: { 'host/laws': 'key' },
    variables: { first: variable(first), 'a/second': variable(second) },
  });
  const silent = await fakeConjur({ behave: () => true });
  cleanup.push(conjur.stop, silent.stop);
  const auth = { method: 'apiKey', login: 'host/laws', apiKey: 'key' };
  return {
    open: () => open('conjur', { url: conjur.url, account: 'demo', auth }),
    references: ['first', 'demo:variable:a/second'],
    missing: 'none',
    hung: () => open('conjur', { url: silent.url, account: 'demo', auth }),
    sideBySide: true,
  };
};
/** Samples of the providers that run programs; these print, or fail, by their argument. */
samples['exec'] = async () => {
  const script = `case $1 in 1) echo ${first};; 2) echo '{"a":{"b":"${second}"}}';; *) exit 1;; esac`;
  return {
    // Fifty at once take a while on a busy machine.
    open: () => open('exec', { command: ['/bin/sh', '-c', script, 'sh', '{}'], timeout: '60s' }),
    references: ['1', '2#a.b'],
    missing: 'none',
    hung: undefined,
    sideBySide: true,
  };
};
samples['keychain'] = async () => {
  // A FAKE of secret-tool, and of macOS's security.
  const script = `#!/bin/sh
case "$*" in
  *app*1*) printf %s ${first};;
  *app*2*) printf %s ${second};;
  *) exit 1;;
esac
`;
  for (const name of ['secret-tool', 'security']) writeFileSync(join(folder, name), script, { mode: 0o755 });
  return {
    open: () => open('keychain', {}, { PATH: `${folder}:${process.env['PATH']}` }),
    references: ['app#1', 'app#2'],
    missing: 'app#3',
    hung: undefined,
  };
};
samples['kubernetes'] = async (cleanup) => {
  const cluster = await server('kubernetes');
  const namespace = await cluster.namespace();
  await cluster.secret(namespace, 'laws', { first });
  await cluster.secret(namespace, 'more', { second });
  await cluster.permit(namespace, ['get', 'list', 'watch'], ['laws', 'more']);
  const tokenFile = join(folder, 'token');
  writeFileSync(tokenFile, await cluster.token(namespace));
  const silent = await fakeVault({}, () => 'by hand');
  cleanup.push(silent.stop);
  const common = { namespace, tokenFile, watch: true };
  return {
    open: () => open('kubernetes', { server: cluster.url, ca: cluster.ca, ...common }),
    references: ['laws#first', 'more#second'],
    missing: 'laws#third',
    hung: () => open('kubernetes', { server: silent.address, ...common }),
    sideBySide: true,
  };
};

for (const [kind, prepare] of Object.entries(cloudSamples({ first, second })))
  samples[kind] = async (cleanup) => {
    const { stop, ...sample } = await prepare();
    cleanup.push(stop);
    return sample;
  };

samples['local'] = async () => {
  const home = join(folder, 'local');
  const places = placesOf({}, { HOME: home });
  const context = { name: 'local', log: pino({ level: 'silent' }), environment: {} };
  const file = new SecretsFile(
    places,
    new KeychainItems(context, { accountAttribute: 'account', timeout: 1 }),
  );
  await file.change('first', Buffer.from(first), never);
  await file.change('a/second', Buffer.from(JSON.stringify({ a: { b: second } })), never);
  return {
    open: () => open('local', {}, { HOME: home }),
    references: ['first', 'a/second#a.b'],
    missing: 'none',
    hung: undefined,
  };
};

it('every kind of provider is held to the laws', () => {
  assert.deepEqual(Object.keys(samples).sort(), Object.keys(providers).sort());
});

for (const [kind, prepare] of Object.entries(samples)) {
  describe(`a provider of kind "${kind}"`, () => {
    const cleanup: (() => Promise<unknown>)[] = [];
    let sample: Sample;
    before(async () => {
      sample = await prepare(cleanup);
    });
    after(async () => {
      for (const end of cleanup) await end();
    });

    const read = (secret: Secret | undefined) => {
      const text = secret?.reveal().toString() ?? '';
      return sample.read?.(text) ?? text;
    };

    /** Runs `use` with a fresh provider, which is closed and must not have logged a value. */
    async function using<T>(use: (provider: Opened) => Promise<T>, opening = sample.open): Promise<T> {
      const provider = opening();
      try {
        return await use(provider);
      } finally {
        await provider.close(AbortSignal.timeout(2000));
        assert.doesNotMatch(provider.logged(), /CANARY/);
      }
    }

    it('finds its own sample references well formed', () => {
      for (const reference of [...sample.references, sample.missing ?? sample.references[0]]) {
        assert.equal(providers[kind]?.checkReference(reference), undefined);
      }
    });

    it('gives the secrets in the order of the references', async () => {
      const [one, two] = sample.references;
      for (const order of [
        [one, two],
        [two, one],
        [one, two, one, one],
      ]) {
        const { secrets } = await using((provider) => provider.fetch(order, never));
        assert.deepEqual(
          secrets.map(read),
          order.map((reference) => (reference === one ? first : second)),
        );
      }
    });

    it('gives each secret in a fresh buffer: wiping one changes no other and no later one', async () => {
      await using(async (provider) => {
        const [one] = sample.references;
        const before = await provider.fetch([one, one], never);
        const [wiped, other] = before.secrets;
        wiped?.wipe();
        assert.equal(read(other), first);
        other?.wipe();
        const later = await provider.fetch([one], never);
        assert.equal(read(later.secrets[0]), first);
      });
    });

    it('serves many at once', async () => {
      await using(async (provider) => {
        const grants = await Promise.all(
          Array.from({ length: 50 }, () => provider.fetch(sample.references, never)),
        );
        for (const { secrets } of grants) assert.equal(read(secrets[1]), second);
      });
    });

    it('names the reference that is missing, and no value anywhere in the error', async (t) => {
      const { missing, references } = sample;
      if (missing === undefined) return t.skip('every reference is there');
      const error = await using((provider) => failure(provider.fetch([...references, missing], never)));
      assert.equal(error.code, 'PROVIDER_FAILED');
      assert.ok(error.message.includes(missing), error.message);
      assert.ok(error.message.includes(`"${kind}"`), 'names the provider');
      assert.doesNotMatch(inspect(error, { depth: null, showHidden: true }) + error.stack, /CANARY/);
    });

    it('wipes what it had read when another reference fails', async (t) => {
      const { missing, references } = sample;
      if (missing === undefined) return t.skip('every reference is there');
      const revealed: Buffer[] = [];
      // oxlint-disable-next-line typescript/unbound-method -- called with its `this`, and put back as it was
      const { wipe } = Secret.prototype;
      Secret.prototype.wipe = function (this: Secret) {
        const bytes = this.reveal();
        if (bytes.includes('CANARY')) revealed.push(bytes);
        wipe.call(this);
      };
      try {
        await using((provider) => failure(provider.fetch([...references, missing], never)));
      } finally {
        Secret.prototype.wipe = wipe;
      }
      for (const bytes of revealed) assert.ok(bytes.every((byte) => byte === 0));
      if (!sample.sideBySide) assert.equal(revealed.length, references.length);
    });

    it('asks nothing of its store for a signal that has already ended', async () => {
      const reason = new PosternError('SHUTDOWN', 'the end');
      const error = await using((provider) =>
        failure(provider.fetch(sample.references, AbortSignal.abort(reason))),
      );
      assert.equal(error, reason);
    });

    it('ends with the signal when its store does not answer', async (t) => {
      const { hung, references } = sample;
      if (!hung) return t.skip('there is nothing that could hang');
      await using(async (provider) => {
        for (const ask of [
          (signal: AbortSignal) => provider.fetch(references, signal),
          (signal: AbortSignal) => provider.check(signal),
        ]) {
          const caller = new AbortController();
          const answer = failure(ask(caller.signal));
          await new Promise((later) => setTimeout(later, 50));
          const abortedAt = performance.now();
          caller.abort(new PosternError('TIMEOUT', 'too late'));
          assert.equal((await answer).code, 'TIMEOUT');
          assert.ok(performance.now() - abortedAt < 4000, 'at once');
        }
      }, hung);
    });

    it('says that it can be asked, and leaves no socket and no timer when it is closed', async () => {
      const before = await settledResources();
      await using(async (provider) => {
        await provider.check(never);
        await provider.fetch(sample.references, never);
      });
      assert.deepEqual(await settledResources(), before);
    });

    it('opens without its store, and closes without having been used', async () => {
      await using(async () => undefined, sample.hung ?? sample.open);
    });
  });
}

after(() => rmSync(folder, { recursive: true }));

/** What keeps the process alive, once the sockets and files that were closed just now are gone. */
async function settledResources(): Promise<string[]> {
  for (let turns = 0; turns < 50; turns++) await new Promise((turn) => setImmediate(turn));
  const passing = new Set(['Immediate', 'FSReqPromise', 'CloseReq']);
  return process
    .getActiveResourcesInfo()
    .filter((name) => !passing.has(name))
    .sort();
}
