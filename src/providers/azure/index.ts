import * as z from 'zod';

import { duration } from '../../core/duration.ts';
import { checkTokenReference } from '../bearer.ts';
import { openLazily } from '../lazy.ts';
import { defineProvider } from '../provider.ts';
import { checkReference } from './reference.ts';

const text = z.string().min(1);
const scope = (what: string) =>
  text
    .regex(/^(https|api):\/\/[\w.-]+(\/[\w./-]*)?$/, 'must be a scope such as https://example.com/.default')
    .describe(what);

const common = {
  tenantId: text
    .regex(/^[\w.-]{1,253}$/, 'is no tenant')
    .optional()
    .describe('Tenant to log in to. Default: AZURE_TENANT_ID.'),
  clientId: text
    .regex(/^[\w-]{1,64}$/, 'is no client id')
    .optional()
    .describe(
      'Client id of the application, or of a user-assigned managed identity. Default: AZURE_CLIENT_ID.',
    ),
  timeout: duration.prefault('5s').describe('How long one request may take.'),
  retries: z
    .int()
    .min(0)
    .max(10)
    .default(2)
    .describe('How often a request is repeated when Azure is overloaded, fails or is unreachable.'),
};
export type CommonSettings = z.output<z.ZodObject<typeof common>>;

const store = z.strictObject({
  vault: z
    .union([
      text.regex(/^[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]$/),
      z.url({ protocol: /^https?$/ }).regex(/^https?:\/\/[\w.:[\]-]+\/?$/),
    ])
    .describe('Name of the vault, or its URL: `https://NAME.vault.azure.net`.'),
  scope: scope(
    'Scope of the token. Default: that of the cloud whose vaults have such a host; a vault under another name needs it.',
  ).optional(),
  ...common,
});
export type StoreSettings = z.output<typeof store>;

const token = z.strictObject({
  scope: scope(
    'What the reference `token` asks for. The default is that of Azure Database for PostgreSQL and MySQL in the public cloud.',
  ).default('https://ossrdbms-aad.database.windows.net/.default'),
  ...common,
});
export type TokenSettings = z.output<typeof token>;

/** Azure Key Vault. */
export const azureKeyVault = defineProvider({
  summary: 'Azure Key Vault: a whole secret, or a field of its JSON.',
  reference: '`name`, or `name/version`; `#field` behind it for a field of its JSON.',
  settings: store,
  checkReference,
  open: (parsed, context) =>
    openLazily(async () => (await import('./key-vault.ts')).openKeyVault(parsed, context)),
});

/** Microsoft Entra ID tokens. */
export const entra = defineProvider({
  summary:
    'Access tokens of Microsoft Entra ID, as the password of Azure Database for PostgreSQL or MySQL, or of what else takes them.',
  reference: '`token` for the scope of the settings, or a scope: `https://example.com/.default`.',
  settings: token,
  checkReference: checkTokenReference,
  open: (parsed, context) => openLazily(async () => (await import('./entra.ts')).openEntra(parsed, context)),
});
