import { homedir } from 'node:os';
import { join } from 'node:path';

import type { ProviderContext } from '../provider.ts';

/** What opens the file. */
export type KeyPlace =
  | { readonly kind: 'identity'; readonly file: string }
  | { readonly kind: 'passphrase'; readonly file: string }
  | { readonly kind: 'keychain'; readonly item: string };

/** Where secrets are kept, and what opens them. */
export interface Places {
  readonly file: string;
  readonly key: KeyPlace;
}

/** What settings or the command line say of it. */
export interface GivenPlaces {
  readonly file?: string | undefined;
  readonly identityFile?: string | undefined;
  readonly passphraseFile?: string | undefined;
  readonly keychain?: string | undefined;
}

/** The places, which are the same for the provider and for `postern secret`. */
export function placesOf(given: GivenPlaces, environment: ProviderContext['environment']): Places {
  const base = environment['XDG_CONFIG_HOME'] || join(environment['HOME'] || homedir(), '.config');
  const folder = join(base, 'postern');
  return {
    file: given.file ?? (environment['POSTERN_SECRETS_FILE'] || join(folder, 'secrets.age')),
    key: keyPlace(given, environment['POSTERN_IDENTITY_FILE'] || join(folder, 'identity.txt')),
  };
}

function keyPlace({ identityFile, passphraseFile, keychain }: GivenPlaces, usual: string): KeyPlace {
  if (passphraseFile !== undefined) return { kind: 'passphrase', file: passphraseFile };
  if (keychain !== undefined) return { kind: 'keychain', item: keychain };
  return { kind: 'identity', file: identityFile ?? usual };
}

/** Says what is wrong with the name of a secret; undefined when it is well formed. */
export function checkName(name: string): string | undefined {
  if (/^[\w.@:/+-]{1,128}$/.test(name) && !name.startsWith('-')) return undefined;
  return 'a name is 1 to 128 letters, digits and "._@:/+-", and does not begin with "-"';
}
