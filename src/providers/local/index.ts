import * as z from 'zod';

import { PosternError } from '../../core/errors.ts';
import { Secret } from '../../core/secret.ts';
import { refuseAborted } from '../deadline.ts';
import { checkField, splitField, takeFields } from '../json-field.ts';
import { checkKeychainItem, KeychainItems } from '../keychain.ts';
import { defineProvider, type Grant, type Provider, type ProviderContext } from '../provider.ts';
import { checkName, placesOf } from './places.ts';
import { type Opened, SecretsFile } from './secrets-file.ts';

const text = z.string().min(1);

const settings = z
  .strictObject({
    file: text
      .optional()
      .describe(
        'The encrypted file. Default: POSTERN_SECRETS_FILE, else ~/.config/postern/secrets.age. Read anew for each login.',
      ),
    identityFile: text
      .optional()
      .describe(
        'File with the age identity that opens it (AGE-SECRET-KEY-1...), which nobody else may read. Default: POSTERN_IDENTITY_FILE, else ~/.config/postern/identity.txt.',
      ),
    passphraseFile: text
      .optional()
      .describe('File with a passphrase that opens it, which nobody else may read; instead of an identity.'),
    keychain: text
      .refine((item) => checkKeychainItem(item) === undefined, 'an item is written service#account')
      .optional()
      .describe("Item of the platform's keychain with the identity, `service#account`; instead of a file."),
  })
  .refine(
    ({ identityFile, passphraseFile, keychain }) =>
      [identityFile, passphraseFile, keychain].filter((place) => place !== undefined).length <= 1,
    { message: 'give only one of identityFile, passphraseFile, keychain' },
  );

/** Secrets in a file of this machine that age has encrypted; `postern secret` writes it. */
export const local = defineProvider({
  summary: 'An encrypted file of this machine (age), which `postern secret set` writes: no server needed.',
  reference: '`name`, or `name#field` for a field of a value that is JSON.',
  settings,
  checkReference(reference) {
    const { id, field } = splitField(reference);
    return checkName(id) ?? checkField(field);
  },
  open: openLocal,
});

function openLocal(parsed: z.output<typeof settings>, context: ProviderContext): Provider {
  const { name, environment } = context;
  const keychain = new KeychainItems(context, { accountAttribute: 'account', timeout: 5000 });
  const file = new SecretsFile(placesOf(parsed, environment), keychain);

  const named = (thrown: unknown): PosternError => {
    const { code, message } = PosternError.from(thrown);
    if (message.startsWith('provider "') || code === 'TIMEOUT' || code === 'SHUTDOWN')
      return thrown as PosternError;
    return new PosternError(code, `provider "${name}": ${message}`);
  };
  const openFile = async (signal: AbortSignal): Promise<Opened> => {
    refuseAborted(signal);
    try {
      return await file.open(signal);
    } catch (thrown) {
      if (thrown instanceof PosternError) throw named(thrown);
      throw thrown;
    }
  };

  return {
    async fetch(references, signal): Promise<Grant> {
      using opened = await openFile(signal);
      const secrets: Secret[] = [];
      try {
        for (const reference of references) secrets.push(...take(opened, reference));
        return { secrets, version: opened.changedAt.toISOString() };
      } catch (thrown) {
        for (const secret of secrets) secret.wipe();
        throw named(thrown);
      }
    },

    async check(signal) {
      (await openFile(signal))[Symbol.dispose]();
    },

    async close(signal) {
      file.close();
      await keychain.close(signal);
    },
  };
}

function take(opened: Opened, reference: string): Secret[] {
  const { id } = splitField(reference);
  let value: Buffer | undefined;
  try {
    value = opened.value(id);
  } catch (thrown) {
    const { code, message } = PosternError.from(thrown);
    throw new PosternError(code, `"${reference}": the value is ${message}`);
  }
  if (!value) throw new PosternError('PROVIDER_FAILED', `"${reference}": there is no secret of this name`);
  try {
    return takeFields(value, [reference]);
  } finally {
    value.fill(0);
  }
}
