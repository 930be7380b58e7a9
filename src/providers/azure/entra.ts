import { openTokenProvider } from '../bearer.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { StoreClient } from '../store-client.ts';
import type { TokenSettings } from './index.ts';
import { entraTokens } from './tokens.ts';

/** Tokens of Entra ID, for what takes them as a password. */
export function openEntra(settings: TokenSettings, context: ProviderContext): Provider {
  const client = new StoreClient({
    name: context.name,
    timeout: settings.timeout,
    retries: settings.retries,
  });
  return openTokenProvider({ client, tokens: entraTokens(settings, context, client), scope: settings.scope });
}
