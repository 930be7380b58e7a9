import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import type { Credentials } from '../../src/core/credentials.ts';
import { errorCodes, PosternError } from '../../src/core/errors.ts';
import { Secret } from '../../src/core/secret.ts';
import { CredentialSource, type SourceOptions, type SourceReference } from '../../src/lifecycle/source.ts';
import type { Provider } from '../../src/providers/provider.ts';

const patient = new AbortController().signal;
const rejected = () => new PosternError('UPSTREAM_REJECTED', 'the server rejected the credential');

type Answer = (
  references: readonly string[],
  signal: AbortSignal,
) => Promise<readonly string[]> | readonly string[];

/** A provider that answers what it is told to, and remembers every buffer that it handed out. */
class FakeProvider implements Provider {
  readonly asked: (readonly string[])[] = [];
  readonly signals: AbortSignal[] = [];
  readonly handedOut: Buffer[] = [];
  version: string | undefined;
  answer: Answer;

  constructor(answer: Answer = (references) => references.map((reference) => `value of ${reference}`)) {
    this.answer = answer;
  }

  async fetch(references: readonly string[], signal: AbortSignal) {
    this.asked.push(references);
    this.signals.push(signal);
    const values = await this.answer(references, signal);
    const buffers = values.map((value) => Buffer.from(value));
    this.handedOut.push(...buffers);
    const secrets = buffers.map((bytes) => new Secret(bytes));
    return { secrets, ...(this.version !== undefined && { version: this.version }) };
  }

  check(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  get allWiped(): boolean {
    return this.handedOut.every((bytes) => bytes.every((byte) => byte === 0));
  }
}

/** Answers these one after the other; the last one for ever. */
function inTurn(...answers: readonly (readonly string[])[]): Answer {
  let turn = 0;
  return () => answers[Math.min(turn++, answers.length - 1)] ?? [];
}

function sourceOf(
  references: Readonly<Record<string, string>>,
  providers: Readonly<Record<string, Provider>>,
  options?: SourceOptions,
): CredentialSource {
  const parsed = Object.entries(references).map(([name, reference]): [string, SourceReference] => {
    const [provider = '', get = ''] = reference.split(':');
    return [name, { provider, get }];
  });
  const lookUp = (name: string) => {
    const found = providers[name];
    if (!found) throw new PosternError('INTERNAL', `no provider is called "${name}"`);
    return found;
  };
  return new CredentialSource(new Map(parsed), lookUp, options);
}

const withoutGrace: SourceOptions = { policy: { rotationGrace: 0 } };

const login = { username: 'vault:db#username', password: 'vault:db#password' };
const both = (credentials: Credentials) =>
  `${credentials.get('username').toString()}/${credentials.get('password').toString()}`;

describe('a loan of credentials', () => {
  it('lends what the provider has, and wipes it when the login is done', async () => {
    const vault = new FakeProvider();
    const lent = await sourceOf(login, { vault }).lend(async (credentials) => {
      await new Promise(setImmediate);
      return both(credentials);
    }, patient);
    assert.equal(lent, 'value of db#username/value of db#password');
    assert.equal(vault.handedOut.length, 2);
    assert.ok(vault.allWiped);
  });

  it('is wiped when the login fails, and cannot be used after it', async () => {
    const vault = new FakeProvider();
    let kept: Credentials | undefined;
    const lending = sourceOf(login, { vault }).lend((credentials) => {
      kept = credentials;
      return Promise.reject(new Error('no route'));
    }, patient);
    await assert.rejects(lending, /no route/);
    assert.ok(vault.handedOut.length > 0 && vault.allWiped);
    assert.throws(() => kept?.get('password'), /after it was wiped/);
  });

  it('asks each provider once for all that it has, and gives each value to its own name', async () => {
    const vault = new FakeProvider();
    const env = new FakeProvider();
    vault.version = '3';
    const references = { host: 'env:HOST', username: 'vault:db#u', port: 'env:PORT', password: 'vault:db#p' };
    let versions = '';
    const lent = await sourceOf(references, { vault, env }).lend(
      (credentials) =>
        Promise.resolve(credentials.names().map((name) => `${name}=${credentials.text(name)}`)),
      patient,
      (tenure) => (versions = tenure.versions),
    );
    assert.deepEqual(vault.asked, [['db#u', 'db#p']]);
    assert.deepEqual(env.asked, [['HOST', 'PORT']]);
    assert.deepEqual(lent.toSorted(), [
      'host=value of HOST',
      'password=value of db#p',
      'port=value of PORT',
      'username=value of db#u',
    ]);
    assert.equal(versions, 'env, vault@3');
  });

  it('asks anew for every login', async () => {
    const vault = new FakeProvider(inTurn(['u', 'first'], ['u', 'second']));
    const source = sourceOf(login, { vault });
    const use = (credentials: Credentials) => Promise.resolve(both(credentials));
    assert.equal(await source.lend(use, patient), 'u/first');
    assert.equal(await source.lend(use, patient), 'u/second');
  });

  it('lends nothing to a source without references, and asks nobody', async () => {
    assert.deepEqual(
      await sourceOf({}, {}).lend((credentials) => Promise.resolve(credentials.names()), patient),
      [],
    );
  });
});

describe('a rejected credential', () => {
  it('is tried once more when it was rotated between fetch and login', async () => {
    const vault = new FakeProvider(inTurn(['u', 'old'], ['u', 'new']));
    vault.version = '1';
    const tried: string[] = [];
    const told: string[] = [];
    const lent = await sourceOf(login, { vault }).lend(
      (credentials) => {
        tried.push(both(credentials));
        vault.version = '2';
        return tried.length === 1 ? Promise.reject(rejected()) : Promise.resolve('in');
      },
      patient,
      ({ versions }) => told.push(versions),
    );
    assert.equal(lent, 'in');
    assert.deepEqual(tried, ['u/old', 'u/new']);
    assert.deepEqual(told, ['vault@1', 'vault@2']);
    assert.ok(vault.allWiped);
  });

  it('is wiped before the next one is asked for', async () => {
    const vault = new FakeProvider();
    const turn = inTurn(['u', 'old'], ['u', 'new']);
    let wipedByThen: boolean | undefined;
    vault.answer = (references, signal) => {
      wipedByThen = vault.allWiped;
      return turn(references, signal);
    };
    let uses = 0;
    await sourceOf(login, { vault }).lend(
      () => (uses++ === 0 ? Promise.reject(rejected()) : Promise.resolve()),
      patient,
    );
    assert.equal(wipedByThen, true);
  });

  for (const [what, before, now] of [
    ['only the name changed', ['old', 'p'], ['new', 'p']],
    ['only the border between the two moved', ['ab', 'c'], ['a', 'bc']],
    ['the two changed places', ['a', 'b'], ['b', 'a']],
    ['it became empty', ['u', 'p'], ['u', '']],
  ] as const)
    it(`counts as rotated when ${what}`, async () => {
      const vault = new FakeProvider(inTurn(before, now));
      let uses = 0;
      await sourceOf(login, { vault }).lend(
        () => (uses++ === 0 ? Promise.reject(rejected()) : Promise.resolve()),
        patient,
      );
      assert.equal(uses, 2);
    });

  it('is not tried again without a grace when the provider still has the same: the server would count it as an attack', async () => {
    const vault = new FakeProvider();
    const error = rejected();
    let uses = 0;
    const lending = sourceOf(login, { vault }, withoutGrace).lend(() => {
      uses += 1;
      return Promise.reject(error);
    }, patient);
    await assert.rejects(lending, (thrown) => thrown === error);
    assert.equal(uses, 1);
    assert.equal(vault.asked.length, 2);
    assert.ok(vault.allWiped);
  });

  it('is tried twice at most without a grace, however often it changes', async () => {
    const vault = new FakeProvider(inTurn(['u', '1'], ['u', '2'], ['u', '3'], ['u', '4']));
    const errors: PosternError[] = [];
    const lending = sourceOf(login, { vault }, withoutGrace).lend(() => {
      errors.push(rejected());
      return Promise.reject(errors.at(-1) as PosternError);
    }, patient);
    await assert.rejects(lending, (thrown) => thrown === errors[1]);
    assert.equal(errors.length, 2);
    assert.equal(vault.asked.length, 2);
    assert.ok(vault.allWiped);
  });

  it('is the only failure that is tried again', async () => {
    for (const error of [
      ...errorCodes
        .filter((code) => code !== 'UPSTREAM_REJECTED')
        .map((code) => new PosternError(code, 'some failure')),
      new Error('UPSTREAM_REJECTED'),
    ]) {
      const vault = new FakeProvider(inTurn(['u', 'old'], ['u', 'new']));
      const lending = sourceOf(login, { vault }).lend(() => Promise.reject(error), patient);
      await assert.rejects(lending, (thrown) => thrown === error);
      assert.equal(vault.asked.length, 1);
      assert.ok(vault.allWiped);
    }
  });

  it('gives way to the failure of the provider that is asked once more', async () => {
    const vault = new FakeProvider();
    const sealed = new PosternError('PROVIDER_UNAVAILABLE', 'provider "vault": sealed');
    const lending = sourceOf(login, { vault }).lend(() => {
      vault.answer = () => Promise.reject(sealed);
      return Promise.reject(rejected());
    }, patient);
    await assert.rejects(lending, (thrown) => thrown === sealed);
    assert.ok(vault.allWiped);
  });

  it('does not outlast the deadline: a provider that then hangs is the failure', async () => {
    const vault = new FakeProvider();
    const deadline = new AbortController();
    const lending = sourceOf(login, { vault }).lend(() => {
      vault.answer = () => {
        setImmediate(() => deadline.abort(new PosternError('TIMEOUT', 'the login took too long')));
        return new Promise(() => {});
      };
      return Promise.reject(rejected());
    }, deadline.signal);
    await assert.rejects(lending, { code: 'PROVIDER_UNAVAILABLE' });
    assert.ok(vault.allWiped);
  });

  it('of a hundred sessions at once is one more question, not a hundred', async () => {
    const vault = new FakeProvider(inTurn(['u', 'old'], ['u', 'new']));
    const source = sourceOf(login, { vault });
    const lendings = Array.from({ length: 100 }, () =>
      source.lend(
        (credentials) =>
          credentials.get('password').toString() === 'old'
            ? Promise.reject(rejected())
            : Promise.resolve('in'),
        patient,
      ),
    );
    assert.ok((await Promise.all(lendings)).every((result) => result === 'in'));
    assert.equal(vault.asked.length, 2);
    assert.equal(vault.handedOut.length, 4);
    assert.ok(vault.allWiped);
  });
});

describe('a provider that fails', () => {
  it('leaves nothing unwiped of what the others answered', async () => {
    const vault = new FakeProvider();
    const denied = new PosternError('PROVIDER_FAILED', 'provider "env": "PASSWORD" is not set');
    const env = new FakeProvider(() => Promise.reject(denied));
    const references = { username: 'vault:db#username', password: 'env:PASSWORD' };
    const lending = sourceOf(references, { vault, env }).lend(() => assert.fail('was lent'), patient);
    await assert.rejects(lending, (thrown) => thrown === denied);
    assert.equal(vault.handedOut.length, 1);
    assert.ok(vault.allWiped);
  });

  it('leaves nothing unwiped of what another one answers later', async () => {
    const slow = Promise.withResolvers<string[]>();
    const vault = new FakeProvider(() => slow.promise);
    const denied = new PosternError('PROVIDER_FAILED', 'provider "env": "PASSWORD" is not set');
    const env = new FakeProvider(() => Promise.reject(denied));
    const references = { username: 'vault:db#username', password: 'env:PASSWORD' };
    const lending = sourceOf(references, { vault, env }).lend(() => assert.fail('was lent'), patient);
    const heard = assert.rejects(lending, (thrown) => thrown === denied);
    await new Promise(setImmediate);
    slow.resolve(['late']);
    await heard;
    await new Promise(setImmediate);
    assert.equal(vault.handedOut.length, 1);
    assert.ok(vault.allWiped);
  });

  it('in a way that nobody foresaw is named, and what it threw is not shown', async () => {
    const vault = new FakeProvider(() => Promise.reject(new Error('GET /v1 X-Vault-Token: s.verysecret')));
    const lending = sourceOf(login, { vault }).lend(() => assert.fail('was lent'), patient);
    await assert.rejects(lending, (thrown) => {
      assert.ok(thrown instanceof PosternError);
      assert.equal(thrown.code, 'PROVIDER_FAILED');
      assert.match(thrown.message, /"vault"/);
      assert.ok(!thrown.message.includes('verysecret'));
      return true;
    });
  });

  it('is asked again by the next login', async () => {
    const vault = new FakeProvider(() =>
      Promise.reject(new PosternError('PROVIDER_UNAVAILABLE', 'provider "vault": sealed')),
    );
    const source = sourceOf(login, { vault });
    await assert.rejects(
      source.lend(() => assert.fail('was lent'), patient),
      { code: 'PROVIDER_UNAVAILABLE' },
    );
    vault.answer = inTurn(['u', 'p']);
    assert.equal(await source.lend((credentials) => Promise.resolve(both(credentials)), patient), 'u/p');
  });

  it('is counted, each answer with its outcome and its time', async () => {
    const told: string[] = [];
    const vault = new FakeProvider();
    const env = new FakeProvider(() => Promise.reject(new PosternError('PROVIDER_FAILED', 'not set')));
    const references = { username: 'vault:db#username', password: 'env:PASSWORD' };
    const asked = (provider: string, outcome: string, seconds: number) => {
      assert.ok(seconds >= 0 && seconds < 60);
      told.push(`${provider} ${outcome}`);
    };
    const source = sourceOf(references, { vault, env }, { observer: { asked } });
    await assert.rejects(source.lend(() => assert.fail('was lent'), patient));
    assert.deepEqual(told.toSorted(), ['env PROVIDER_FAILED', 'vault ok']);
  });
});

describe('a deadline', () => {
  /** A provider that answers only when told to, and a login that waits for it. */
  function hanging() {
    const answer = Promise.withResolvers<string[]>();
    const vault = new FakeProvider(() => answer.promise);
    const deadline = new AbortController();
    const source = sourceOf(login, { vault });
    const lending = source.lend(() => assert.fail('was lent'), deadline.signal);
    return { answer, vault, deadline, source, lending };
  }

  it('that passes while a provider is asked is that provider being unavailable', async () => {
    const { vault, deadline, lending } = hanging();
    deadline.abort(new PosternError('TIMEOUT', 'the login took longer than 10 s'));
    await assert.rejects(lending, {
      code: 'PROVIDER_UNAVAILABLE',
      message: /"vault" did not answer in time/,
    });
    assert.equal(vault.signals[0]?.aborted, true, 'the provider is told to stop');
  });

  it('leaves no secret behind when the answer comes after it', async () => {
    const { answer, vault, deadline, lending } = hanging();
    deadline.abort(new PosternError('TIMEOUT', 'the login took longer than 10 s'));
    await assert.rejects(lending);
    answer.resolve(['u', 'p']);
    await new Promise(setImmediate);
    assert.equal(vault.handedOut.length, 2);
    assert.ok(vault.allWiped);
  });

  it('is not what a shutdown is called', async () => {
    const { deadline, lending } = hanging();
    deadline.abort(new PosternError('SHUTDOWN', 'Postern is shutting down'));
    await assert.rejects(lending, { code: 'SHUTDOWN' });
  });

  it('of one login does not end the question that others wait for', async () => {
    const { answer, vault, deadline, source, lending } = hanging();
    const other = source.lend((credentials) => Promise.resolve(both(credentials)), patient);
    deadline.abort(new PosternError('TIMEOUT', 'the login took longer than 10 s'));
    await assert.rejects(lending, { code: 'PROVIDER_UNAVAILABLE' });
    assert.equal(vault.signals[0]?.aborted, false);
    answer.resolve(['u', 'p']);
    assert.equal(await other, 'u/p');
    assert.equal(vault.asked.length, 1);
    assert.ok(vault.allWiped);
  });

  it('that has passed already lends nothing', async () => {
    const vault = new FakeProvider();
    const late = AbortSignal.abort(new PosternError('TIMEOUT', 'the login took longer than 10 s'));
    await assert.rejects(
      sourceOf(login, { vault }).lend(() => assert.fail('was lent'), late),
      PosternError,
    );
    await new Promise(setImmediate);
    assert.ok(vault.allWiped);
  });
});

describe('logins at the same time', () => {
  it('share one question, and each has the secrets in buffers of its own until it is done itself', async () => {
    const vault = new FakeProvider();
    const source = sourceOf(login, { vault });
    const gates = Array.from({ length: 50 }, () => Promise.withResolvers<void>());
    const lent: Buffer[] = [];
    const lendings = gates.map(({ promise }) =>
      source.lend(async (credentials) => {
        lent.push(credentials.get('password'));
        await promise;
        return both(credentials);
      }, patient),
    );
    await new Promise(setImmediate);
    assert.equal(vault.asked.length, 1);
    assert.ok(vault.allWiped, 'what the provider gave is kept for nobody');
    const last = gates.pop();
    for (const { resolve } of gates) resolve();
    await Promise.all(lendings.slice(0, -1));
    assert.ok(lent.slice(0, -1).every((bytes) => bytes.every((byte) => byte === 0)));
    assert.equal(lent.at(-1)?.toString(), 'value of db#password');
    last?.resolve();
    assert.equal(await lendings.at(-1), 'value of db#username/value of db#password');
    assert.ok(lent.at(-1)?.every((byte) => byte === 0));
  });

  it('ask again when they come after the answer, though others still use it', async () => {
    const vault = new FakeProvider();
    const source = sourceOf(login, { vault });
    const gate = Promise.withResolvers<void>();
    const first = source.lend(() => gate.promise, patient);
    await new Promise(setImmediate);
    await source.lend(() => Promise.resolve(), patient);
    assert.equal(vault.asked.length, 2);
    gate.resolve();
    await first;
    assert.ok(vault.allWiped);
  });
});

describe('keys derived from a loan', () => {
  const derive = (computed: string[]) => (credentials: Credentials) =>
    credentials.derive('salt', () => {
      computed.push(credentials.get('password').toString());
      return Promise.resolve(Buffer.from('key'));
    });

  it('are kept for the next login with the same values, and computed anew for others', async () => {
    const vault = new FakeProvider(inTurn(['u', 'a'], ['u', 'a'], ['u', 'b']));
    const source = sourceOf(login, { vault });
    const computed: string[] = [];
    for (let turn = 0; turn < 3; turn++) await source.lend(derive(computed), patient);
    assert.deepEqual(computed, ['a', 'b']);
  });

  it('belong to one service: another one with the same values computes its own', async () => {
    const vault = new FakeProvider(inTurn(['u', 'a']));
    const computed: string[] = [];
    for (let turn = 0; turn < 2; turn++) await sourceOf(login, { vault }).lend(derive(computed), patient);
    assert.deepEqual(computed, ['a', 'a']);
  });

  it('are gone when the source is disposed of', async () => {
    const vault = new FakeProvider(inTurn(['u', 'a']));
    const source = sourceOf(login, { vault });
    const computed: string[] = [];
    await source.lend(derive(computed), patient);
    source[Symbol.dispose]();
    await source.lend(derive(computed), patient);
    assert.deepEqual(computed, ['a', 'a']);
  });
});

describe('credentials that are rotated while others ask', () => {
  it('are fetched anew for a rejected login, although a question from before the rotation is still under way', async () => {
    const slow = Promise.withResolvers<void>();
    let stored = 'old';
    const provider = new FakeProvider(async () => {
      const seen = stored;
      if (provider.asked.length === 2) await slow.promise;
      return [seen];
    });
    const source = sourceOf({ password: 'vault:db#password' }, { vault: provider });
    const gate = Promise.withResolvers<void>();
    const logIn = async (credentials: Credentials) => {
      const password = credentials.text('password');
      await gate.promise;
      if (password !== stored) throw rejected();
      return 'logged in';
    };
    const first = source.lend(logIn, patient);
    await new Promise(setImmediate);
    const second = source.lend(logIn, patient);
    await new Promise(setImmediate);
    stored = 'new';
    gate.resolve();
    await new Promise(setImmediate);
    slow.resolve();
    assert.deepEqual(await Promise.all([first, second]), ['logged in', 'logged in']);
    assert.ok(provider.allWiped);
  });

  it('are not waited for where another provider has failed already, and that one is not counted as failed', async () => {
    const told: string[] = [];
    const hangs = new FakeProvider(
      (_references, signal) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => reject(signal.reason as Error));
        }),
    );
    const fails = new FakeProvider(() => Promise.reject(new PosternError('PROVIDER_FAILED', 'not set')));
    const source = sourceOf(
      { username: 'env:USER', password: 'vault:db' },
      { vault: hangs, env: fails },
      { observer: { asked: (name) => told.push(name) } },
    );
    await assert.rejects(
      source.lend(() => Promise.resolve(), patient),
      { code: 'PROVIDER_FAILED', message: 'not set' },
    );
    assert.deepEqual(told, ['env']);
  });
});
