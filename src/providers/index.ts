import type { ProviderKind } from './provider.ts';

/** Every kind of provider the configuration may name. A new one is a file beside this and a line here. */
export const providers: Readonly<Record<string, ProviderKind>> = {};
