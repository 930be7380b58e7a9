import { type PosternError } from '../../core/errors.ts';
import { callWithToken } from '../bearer.ts';
import type { Answer } from '../exchange.ts';
import { splitField, takeFields } from '../json-field.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { isPassing, jsonOf, publicLine, StoreClient } from '../store-client.ts';
import { type Read, readTogether } from '../together.ts';
import type { StoreSettings } from './index.ts';
import { checkReference } from './reference.ts';
import { entraTokens } from './tokens.ts';

const apiVersion = '7.4';
/** Hosts of the vaults of each cloud, which are also what a token for them is asked for. */
const suffixes = ['vault.azure.net', 'vault.azure.cn', 'vault.usgovcloudapi.net', 'vault.microsoftazure.de'];

/** Azure Key Vault: one GET for each secret and version of a fetch. */
export function openKeyVault(settings: StoreSettings, context: ProviderContext): Provider {
  const client = new StoreClient({
    name: context.name,
    timeout: settings.timeout,
    retries: settings.retries,
  });
  const base = new URL(
    settings.vault.includes('://') ? settings.vault : `https://${settings.vault}.vault.azure.net`,
  );
  const scope = settings.scope ?? scopeOf(base);
  const tokens = entraTokens(settings, context, client);

  /** A token is for the vaults of one cloud, and must go to no other host. */
  function scopeOf({ hostname, protocol }: URL): string {
    const suffix = suffixes.find((each) => hostname.endsWith(`.${each}`));
    if (suffix !== undefined && protocol === 'https:') return `https://${suffix}/.default`;
    throw client.error(
      'PROVIDER_FAILED',
      `${hostname} is no host of Key Vault: set \`scope\` if it is one nevertheless`,
    );
  }

  async function read(references: readonly string[], signal: AbortSignal): Promise<Read> {
    const [first = ''] = references;
    const { id } = splitField(first);
    const purpose = `reading "${first}"`;
    const url = new URL(`/secrets/${id}?api-version=${apiVersion}`, base);
    using answer = await callWithToken(client, tokens.of(scope), { method: 'GET', url, purpose }, signal);
    if (answer.status !== 200) throw refusal(purpose, answer);
    const json = jsonOf(answer);
    const text = json?.get('value');
    if (text?.kind !== 'string')
      throw client.error('PROVIDER_UNAVAILABLE', `${purpose}: the answer has no value`);
    const value = text.copy();
    try {
      const version = /\/secrets\/[^/]+\/([0-9A-Za-z]{1,64})$/.exec(json?.get('id')?.publicText() ?? '')?.[1];
      return { secrets: takeFields(value, references), version };
    } catch (thrown) {
      throw client.named(thrown);
    } finally {
      value.fill(0);
    }
  }

  function refusal(purpose: string, answer: Answer): PosternError {
    const { status } = answer;
    const error = jsonOf(answer)?.get('error');
    const inner =
      error?.get('innererror')?.get('code')?.publicText() ?? error?.get('code')?.publicText() ?? '';
    const name = /^\w{1,60}$/.test(inner) ? `, ${inner}` : '';
    const said = status === 403 || status === 404 ? publicLine(error?.get('message'), answer) : '';
    const text =
      status === 401
        ? `Key Vault does not accept the token${challenge(answer)}`
        : status === 403
          ? 'permission denied, or the secret is disabled'
          : status === 404
            ? 'there is no such secret or version'
            : status === 429
              ? 'Key Vault allows no more requests for now'
              : isPassing(status)
                ? 'Key Vault failed'
                : 'Key Vault refused';
    return client.error(
      isPassing(status) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED',
      `${purpose}: ${text} (HTTP ${status}${name}${said && `: ${said}`})`,
    );
  }

  /**
   * What the vault's challenge says is wrong. It is never followed: whoever answers in a vault's place could name an
   * authority and a resource of its own (the challenge must name the vault's own domain, as Azure's libraries check).
   */
  function challenge(answer: Answer): string {
    const header = answer.headers['www-authenticate'] ?? '';
    const resource = URL.parse(/\bresource="([^"]{1,200})"/.exec(header)?.[1] ?? '')?.hostname;
    const tenant = /\bauthorization="https:\/\/[\w.-]+\/([\w-]{1,64})"/.exec(header)?.[1];
    if (resource !== undefined && !base.hostname.endsWith(`.${resource}`)) {
      return `: it asks for one for ${resource}, which is not the domain of ${base.hostname}`;
    }
    return tenant === undefined ? '' : `: it wants one of the tenant ${tenant}`;
  }

  return {
    async fetch(references, signal) {
      for (const reference of references) {
        const problem = checkReference(reference);
        if (problem) throw client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
      }
      return await readTogether(references, { place: (of) => splitField(of).id, read }, signal);
    },
    check: (signal) => tokens.of(scope).lend(() => Promise.resolve(), signal),
    close: () => {
      tokens.close();
      client.close();
      return Promise.resolve();
    },
  };
}
