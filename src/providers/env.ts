import * as z from 'zod';

import { PosternError } from '../core/errors.ts';
import { Secret } from '../core/secret.ts';
import { refuseAborted } from './deadline.ts';
import { defineProvider, type ProviderContext } from './provider.ts';
import { readSecretFile, withoutLineEnd } from './secret-file.ts';

/** Environment variables of Postern's own process, or the files that `NAME_FILE` variables point to. */
export const env = defineProvider({
  summary: "A variable of Postern's environment, or the file that NAME_FILE names.",
  reference: 'The name of the variable.',
  settings: z.strictObject({}),
  checkReference(reference) {
    if (reference === '') return 'the name of the environment variable is missing';
    if (/[=\0]/.test(reference)) return 'the name of an environment variable has no "=" in it';
    return undefined;
  },
  open: (_settings, context) => ({
    async fetch(references, signal) {
      refuseAborted(signal);
      const secrets: Secret[] = [];
      try {
        for (const name of references) secrets.push(await readVariable(name, context, signal));
      } catch (thrown) {
        for (const secret of secrets) secret.wipe();
        throw thrown;
      }
      return { secrets };
    },
    check: async () => undefined,
    close: async () => undefined,
  }),
});

/** A variable that is set but empty is a value too: an empty one, as in Secretless. */
async function readVariable(
  name: string,
  { name: provider, environment }: ProviderContext,
  signal: AbortSignal,
): Promise<Secret> {
  const value = own(environment, name);
  if (value !== undefined) return new Secret(Buffer.from(value, 'utf8'));

  const path = own(environment, `${name}_FILE`);
  if (path === undefined) {
    throw new PosternError(
      'PROVIDER_FAILED',
      `provider "${provider}": neither ${name} nor ${name}_FILE is set in the environment`,
    );
  }
  try {
    const { bytes } = await readSecretFile(path, signal);
    return new Secret(withoutLineEnd(bytes));
  } catch (thrown) {
    const { code, message } = PosternError.from(thrown);
    throw new PosternError(code, `provider "${provider}": ${name}_FILE: ${message}`);
  }
}

/** `environment.constructor` is a function that every object has, also process.env. */
function own(environment: ProviderContext['environment'], name: string): string | undefined {
  return Object.hasOwn(environment, name) ? environment[name] : undefined;
}
