import * as z from 'zod';

import { duration } from '../core/duration.ts';
import { PosternError } from '../core/errors.ts';
import { Secret } from '../core/secret.ts';
import { refuseAborted } from './deadline.ts';
import { environmentOf, Programs } from './program.ts';
import { defineProvider, type ProviderContext } from './provider.ts';

const settings = z.strictObject({
  accountAttribute: z
    .string()
    .regex(/^[A-Za-z][\w.-]*$/, 'must be the name of an attribute')
    .default('account')
    .describe(
      "On Linux: the attribute of an item that holds the account. Python's `keyring` and others call it `username`.",
    ),
  timeout: duration
    .refine((milliseconds) => milliseconds > 0, 'must be longer than 0s')
    .prefault('5s')
    .describe('How long one question may take; a keychain that is locked may wait for a person.'),
});

/** The platform's own store of secrets: the macOS keychain, or the Secret Service of a Linux desktop. */
export const keychain = defineProvider({
  summary: 'The macOS keychain, or the Secret Service of a Linux desktop (GNOME Keyring, KWallet).',
  reference: '`service#account`, as in Secretless.',
  settings,
  checkReference: checkKeychainItem,
  open({ accountAttribute, timeout }, context) {
    const items = new KeychainItems(context, { accountAttribute, timeout });
    return {
      async fetch(references, signal) {
        refuseAborted(signal);
        const secrets: Secret[] = [];
        try {
          // One after the other: a keychain that is locked asks a person once, not once for each item.
          for (const reference of references) secrets.push(new Secret(await items.read(reference, signal)));
          return { secrets };
        } catch (thrown) {
          for (const secret of secrets) secret.wipe();
          throw thrown;
        }
      },
      async check(signal) {
        refuseAborted(signal);
        items.refuseUnsupported();
      },
      close: (signal) => items.close(signal),
    };
  },
});

/** Says what is wrong with `service#account`; undefined when it is well formed. */
export function checkKeychainItem(reference: string): string | undefined {
  const { service, account } = split(reference);
  if (service === '' || account === '') return 'an item is written service#account';
  if (reference.includes('\0')) return 'an item has no NUL in it';
  // What begins with "-" would be an option of the program that is asked.
  if (service.startsWith('-') || account.startsWith('-')) return 'neither part of an item begins with "-"';
  return undefined;
}

function split(reference: string): { service: string; account: string } {
  const hash = reference.indexOf('#');
  if (hash === -1) return { service: reference, account: '' };
  return { service: reference.slice(0, hash), account: reference.slice(hash + 1) };
}

/** How a platform's program is asked for an item, and what its answers mean. */
interface Platform {
  readonly command: (service: string, account: string, accountAttribute: string) => readonly string[];
  /** Variables with which the program finds its store. */
  readonly variables: readonly string[];
  /** Whether it puts a line end behind the value. */
  readonly addsLineEnd: boolean;
  readonly meaning: (exitCode: number) => Pick<PosternError, 'code' | 'message'>;
}

const unknownMeaning = (exitCode: number): Pick<PosternError, 'code' | 'message'> => ({
  code: 'PROVIDER_FAILED',
  message: `the keychain refused (exit code ${exitCode})`,
});

const platforms: Readonly<Partial<Record<NodeJS.Platform, Platform>>> = {
  darwin: {
    command: (service, account) => ['security', 'find-generic-password', '-s', service, '-a', account, '-w'],
    variables: [],
    addsLineEnd: true,
    // An exit code of `security` is the last byte of an OSStatus.
    meaning(exitCode) {
      if (exitCode === 44) return { code: 'PROVIDER_FAILED', message: 'there is no such item' };
      if (exitCode === 36)
        return { code: 'PROVIDER_UNAVAILABLE', message: 'the keychain is locked, and nobody can be asked' };
      if (exitCode === 51 || exitCode === 128)
        return { code: 'PROVIDER_FAILED', message: 'the keychain was not allowed to give it' };
      return unknownMeaning(exitCode);
    },
  },
  linux: {
    command: (service, account, accountAttribute) => [
      'secret-tool',
      'lookup',
      'service',
      service,
      accountAttribute,
      account,
    ],
    variables: ['DBUS_SESSION_BUS_ADDRESS', 'XDG_RUNTIME_DIR', 'DISPLAY', 'WAYLAND_DISPLAY'],
    addsLineEnd: false,
    // secret-tool has one exit code for everything.
    meaning: (exitCode) =>
      exitCode === 1
        ? { code: 'PROVIDER_FAILED', message: 'there is no such item, or the Secret Service cannot be asked' }
        : unknownMeaning(exitCode),
  },
};

/** Reads single items of the platform's keychain. */
export class KeychainItems {
  readonly #context: ProviderContext;
  readonly #options: { readonly accountAttribute: string; readonly timeout: number };
  readonly #programs: Programs;

  constructor(
    context: ProviderContext,
    options: { readonly accountAttribute: string; readonly timeout: number },
  ) {
    this.#context = context;
    this.#options = options;
    this.#programs = new Programs(context.name);
  }

  /** The value of `service#account`, which the caller wipes. */
  async read(reference: string, signal: AbortSignal): Promise<Buffer> {
    const platform = this.refuseUnsupported();
    const { accountAttribute, timeout } = this.#options;
    const { service, account } = split(reference);
    const command = platform.command(service, account, accountAttribute);
    const environment = environmentOf(this.#context.environment, platform.variables);
    using ended = await this.#programs.run({ command, environment, timeout }, signal);
    if (ended.code !== 0) {
      const { code, message } = platform.meaning(ended.code);
      throw new PosternError(code, `provider "${this.#context.name}": "${reference}": ${message}`);
    }
    const length = ended.output.length - (platform.addsLineEnd && ended.output.at(-1) === 0x0a ? 1 : 0);
    const value = Buffer.allocUnsafe(length);
    ended.output.copy(value, 0, 0, length);
    return value;
  }

  /** Throws PROVIDER_FAILED on a platform that has no keychain Postern knows. */
  refuseUnsupported(): Platform {
    const platform = platforms[process.platform];
    if (platform) return platform;
    const text = `there is no keychain for ${process.platform}; it works on macOS, and on Linux with secret-tool`;
    throw new PosternError('PROVIDER_FAILED', `provider "${this.#context.name}": ${text}`);
  }

  async close(signal: AbortSignal): Promise<void> {
    await this.#programs.close(signal);
  }
}
