import { conjur } from './conjur/index.ts';
import { env } from './env.ts';
import { exec } from './exec.ts';
import { file } from './file.ts';
import { keychain } from './keychain.ts';
import { kubernetes } from './kubernetes/index.ts';
import { literal } from './literal.ts';
import { local } from './local/index.ts';
import type { ProviderKind } from './provider.ts';
import { vault } from './vault/index.ts';

/** Every kind of provider the configuration may name. A new one is a file beside this and a line here. */
export const providers: Readonly<Record<string, ProviderKind>> = {
  literal,
  env,
  file,
  vault,
  conjur,
  exec,
  keychain,
  local,
  kubernetes,
};
