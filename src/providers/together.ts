import { PosternError } from '../core/errors.ts';
import type { Secret } from '../core/secret.ts';
import { refuseAborted } from './deadline.ts';
import type { Grant } from './provider.ts';

/** One answer of a store: the secrets of the references that it was asked for. */
export interface Read {
  readonly secrets: readonly Secret[];
  readonly version?: string | undefined;
}

/** How a store is asked for references, each already found well formed. */
interface Reading {
  /** References of the same place come from one answer, so that they are of one version. */
  readonly place: (reference: string) => string;
  readonly read: (references: readonly string[], signal: AbortSignal) => Promise<Read>;
}

/** Reads each place once, all side by side; the first failure ends the others and wipes what they brought. */
export async function readTogether(
  references: readonly string[],
  { place, read }: Reading,
  signal: AbortSignal,
): Promise<Grant> {
  refuseAborted(signal);
  const places = Map.groupBy(references.entries(), ([, reference]) => place(reference));
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const outcomes = await Promise.allSettled(
    [...places].map(async ([name, wanted]) => {
      try {
        const asked = wanted.map(([, reference]) => reference);
        return { name, wanted, ...(await read(asked, either)) };
      } catch (thrown) {
        failed.abort(thrown);
        throw thrown;
      }
    }),
  );
  const done = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
  if (done.length < outcomes.length) {
    for (const { secrets } of done) for (const secret of secrets) secret.wipe();
    throw PosternError.from(failed.signal.reason);
  }

  const secrets: Secret[] = [];
  for (const { wanted, secrets: answered } of done)
    for (const [i, [position]] of wanted.entries()) {
      const secret = answered[i];
      if (secret) secrets[position] = secret;
    }
  const versions = done.flatMap(({ name, version }) => (version === undefined ? [] : [{ name, version }]));
  const version =
    done.length === 1 ? versions[0]?.version : versions.map((of) => `${of.name}@${of.version}`).join(', ');
  return { secrets, ...(version ? { version } : {}) };
}
