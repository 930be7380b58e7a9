import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import type { Credentials } from '../../src/core/credentials.ts';
import { PosternError } from '../../src/core/errors.ts';
import { Secret } from '../../src/core/secret.ts';
import { CredentialSource, type SourceReference } from '../../src/lifecycle/source.ts';
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
  observe?: ConstructorParameters<typeof CredentialSource>[2],
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
  return new CredentialSource(new Map(parsed), lookUp, observe);
}

const login = { username: 'vault:db#username', password: 'vault:db#password' };
const both = (credentials: Credentials) =>
  `${credentials.get('username').toString()}/${credentials.get('password').toString()}`;

describe('a loan of credentials', () => {
  it('lends what the provider has, and wipes it when the login is done', async () => {
    const vault = new FakeProvider();
    const lent = await sourceOf(login, { vault }).lend(async (credentials) => {
      assert.ok(!vault.allWiped);
      await new Promise(setImmediate);
      return both(credentials);
    }, patient);
    assert.equal(lent, 'value of db#username/value of db#password');
    assert.equal(vault.handedOut.length, 2);
    assert.ok(vault.allWiped);
  });
});
