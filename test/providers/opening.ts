import { Writable } from 'node:stream';
import { pino } from 'pino';

import { PosternError } from '../../src/core/errors.ts';
import type { Provider } from '../../src/providers/provider.ts';
import { providers } from '../support/plugins.ts';

/** A provider under test, and everything it logged at trace level. */
export interface Opened extends Provider {
  readonly logged: () => string;
}

export const never = new AbortController().signal;

/** Opens a provider from settings as they stand in a configuration. Without an environment it sees none. */
export function open(
  kind: string,
  settings: object = {},
  environment: Readonly<Record<string, string>> = {},
): Opened {
  const found = providers[kind];
  if (!found) throw new Error(`no provider kind is called ${kind}`);
  const lines: string[] = [];
  const sink = new Writable({
    write(chunk, _encoding, done) {
      lines.push(String(chunk));
      done();
    },
  });
  const log = pino({ level: 'trace' }, sink);
  const provider = found.open(found.settings.parse(settings), {
    name: kind,
    log,
    environment: { HOME: '/nonexistent', ...environment },
  });
  return { ...provider, logged: () => lines.join('') };
}

/** The values of a grant as text. */
export async function texts(provider: Provider, ...references: string[]): Promise<string[]> {
  const { secrets } = await provider.fetch(references, AbortSignal.timeout(60_000));
  return secrets.map((secret) => secret.reveal().toString('utf8'));
}

/** What a promise was rejected with, which must be a PosternError. */
export async function failure(promise: Promise<unknown>): Promise<PosternError> {
  try {
    await promise;
  } catch (thrown) {
    if (thrown instanceof PosternError) return thrown;
    throw thrown;
  }
  throw new Error('expected a failure');
}
