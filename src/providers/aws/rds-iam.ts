import { Secret } from '../../core/secret.ts';
import { amzDate, presignedQuery } from '../../core/sigv4.ts';
import { refuseAborted } from '../deadline.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { StoreClient } from '../store-client.ts';
import { CredentialChain } from './credentials.ts';
import { checkTarget, parseTarget } from './reference.ts';
import type { CommonSettings } from './settings.ts';

/** RDS accepts a token for this long for the start of a session. */
const lifeSeconds = 15 * 60;

/** Login tokens of RDS and Aurora: presigned requests that are never sent. Making one asks nobody. */
export function openRdsIam(settings: CommonSettings, context: ProviderContext): Provider {
  const http = new StoreClient({ name: context.name, timeout: settings.timeout, retries: settings.retries });
  const chain = new CredentialChain(settings, context, http);

  async function regionOf(host: string, signal: AbortSignal): Promise<string> {
    // Of a custom name only the settings know it.
    const inHost = /\.([a-z0-9-]+)\.rds\.amazonaws\.com(?:\.cn)?$/.exec(host)?.[1];
    const region = inHost ?? settings.region ?? (await chain.region(signal));
    if (region === undefined)
      throw http.error('PROVIDER_FAILED', `the region of "${host}" is not known: set \`region\``);
    return region;
  }

  async function tokenFor(reference: string, signal: AbortSignal): Promise<{ secret: Secret; end: number }> {
    const target = parseTarget(reference);
    if (!target) throw http.error('PROVIDER_FAILED', `"${reference}": ${checkTarget(reference)}`);
    const { user, host, port } = target;
    const region = await regionOf(host, signal);
    return await chain.lend(async (credentials, expiresAt) => {
      const now = Date.now();
      const place = `${host}:${port}`;
      using keys = credentials.signingKeys();
      const query = presignedQuery(
        {
          method: 'GET',
          path: '/',
          host: place,
          parameters: [
            ['Action', 'connect'],
            // As the bytes of UTF-8, which are what is signed.
            ['DBUser', Buffer.from(user, 'utf8').toString('latin1')],
          ],
          expires: lifeSeconds,
          sessionToken: credentials.sessionToken(),
          time: amzDate(now),
          scope: { region, service: 'rds-db' },
        },
        credentials.accessKeyId,
        keys,
      );
      const bytes = Buffer.from(`${place}/?${query}`, 'latin1');
      // It dies with the credentials that signed it.
      const end = Math.min(now + lifeSeconds * 1000, expiresAt);
      return await Promise.resolve({ secret: new Secret(bytes), end });
    }, signal);
  }

  return {
    async fetch(references, signal) {
      refuseAborted(signal);
      const secrets: Secret[] = [];
      let end = Infinity;
      try {
        for (const reference of references) {
          const token = await tokenFor(reference, signal);
          secrets.push(token.secret);
          end = Math.min(end, token.end);
        }
        return { secrets, ...(end === Infinity ? {} : { expiresAt: new Date(end) }) };
      } catch (thrown) {
        for (const secret of secrets) secret.wipe();
        throw http.named(thrown);
      }
    },
    check: async (signal) => chain.lend(() => Promise.resolve(), signal),
    async close(signal) {
      await chain.close(signal);
      http.close();
    },
  };
}
