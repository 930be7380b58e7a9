import { openTokenProvider } from '../bearer.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { StoreClient } from '../store-client.ts';
import type { CommonSettings } from './index.ts';
import { googleTokens } from './tokens.ts';

/** Tokens with the one scope that lets them log in to databases, and do nothing else. */
export function openCloudsqlIam(settings: CommonSettings, context: ProviderContext): Provider {
  const client = new StoreClient({
    name: context.name,
    timeout: settings.timeout,
    retries: settings.retries,
  });
  const tokens = googleTokens(settings, context, client);
  return openTokenProvider({ client, tokens, scope: 'https://www.googleapis.com/auth/sqlservice.login' });
}
