import { formOf } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import type { Secret } from '../../core/secret.ts';
import { ScopedTokens, tokenOf } from '../bearer.ts';
import type { Obtained } from '../expiring.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile, withoutLineEnd } from '../secret-file.ts';
import type { StoreCall, StoreClient } from '../store-client.ts';
import type { CommonSettings } from './index.ts';

/** Nothing but the machine's own hypervisor answers there, at once or never. */
const metadataTimeout = 2000;

/**
 * Access tokens of Microsoft Entra ID, found as Azure's own libraries do: client secret, workload identity, App
 * Service, the managed identity of the machine.
 */
export function entraTokens(
  settings: CommonSettings,
  { name, environment }: ProviderContext,
  client: StoreClient,
): ScopedTokens {
  const variable = (key: string) => environment[key] || undefined;
  const clientId = settings.clientId ?? variable('AZURE_CLIENT_ID');
  const tenant = settings.tenantId ?? variable('AZURE_TENANT_ID');
  return new ScopedTokens(obtain, `provider "${name}": getting an access token`);

  async function obtain(scope: string, signal: AbortSignal): Promise<Obtained<Secret>> {
    const [secret, tokenFile] = [variable('AZURE_CLIENT_SECRET'), variable('AZURE_FEDERATED_TOKEN_FILE')];
    if (clientId !== undefined && tenant !== undefined) {
      if (secret !== undefined) {
        const proof = Buffer.from(secret);
        return await fromAuthority(tenant, scope, { client_secret: proof }, [proof], signal);
      }
      if (tokenFile !== undefined) {
        // Read for each token: Kubernetes replaces it.
        const proof = await readToken(tokenFile, signal);
        const members = {
          client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
          client_assertion: withoutLineEnd(proof),
        };
        return await fromAuthority(tenant, scope, members, [proof], signal);
      }
    }
    const resource = scope.replace(/\/\.default$/, '');
    const [endpoint, header] = [variable('IDENTITY_ENDPOINT'), variable('IDENTITY_HEADER')];
    if (endpoint !== undefined && header !== undefined) {
      return await fromEndpoint(endpoint, resource, '2019-08-01', { 'x-identity-header': header }, signal);
    }
    const machine = `${variable('AZURE_POD_IDENTITY_AUTHORITY_HOST') ?? 'http://169.254.169.254'}/metadata/identity/oauth2/token`;
    return await fromEndpoint(machine, resource, '2018-02-01', { metadata: 'true' }, signal);
  }

  async function fromAuthority(
    of: string,
    scope: string,
    proof: Readonly<Record<string, Buffer | string>>,
    wiped: readonly Buffer[],
    signal: AbortSignal,
  ): Promise<Obtained<Secret>> {
    const authority = URL.parse(variable('AZURE_AUTHORITY_HOST') ?? 'https://login.microsoftonline.com');
    if (!authority) throw client.error('PROVIDER_FAILED', 'AZURE_AUTHORITY_HOST is no URL');
    const purpose = `logging in to the tenant ${of}`;
    const body = formOf({ client_id: clientId ?? '', grant_type: 'client_credentials', scope, ...proof });
    for (const bytes of wiped) bytes.fill(0);
    const sentAt = Date.now();
    try {
      const call: StoreCall = {
        method: 'POST',
        url: new URL(`/${of}/oauth2/v2.0/token`, authority),
        headers: () => ({ 'content-type': 'application/x-www-form-urlencoded' }),
        body,
        purpose,
      };
      using answer = await client.call(call, signal);
      return tokenOf(answer, sentAt, (code, problem) => client.error(code, `${purpose}: ${problem}`));
    } finally {
      body.fill(0);
    }
  }

  async function fromEndpoint(
    endpoint: string,
    resource: string,
    apiVersion: string,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<Obtained<Secret>> {
    const url = URL.parse(endpoint);
    if (!url) throw client.error('PROVIDER_FAILED', 'the endpoint of the managed identity is no URL');
    url.searchParams.set('api-version', apiVersion);
    url.searchParams.set('resource', resource);
    if (clientId !== undefined) url.searchParams.set('client_id', clientId);
    const purpose = 'asking the managed identity for a token';
    const sentAt = Date.now();
    const call: StoreCall = {
      method: 'GET',
      url,
      headers: () => headers,
      timeout: metadataTimeout,
      // An identity that is just being assigned is not found at first.
      overloaded: ({ status }) => status === 404 || status === 410,
      purpose,
    };
    using answer = await client.call(call, signal).catch((thrown: unknown) => {
      const { code, message } = PosternError.from(thrown);
      if (signal.aborted || code !== 'PROVIDER_UNAVAILABLE') throw thrown;
      throw new PosternError(code, `${message}; there is neither a client secret nor a workload identity`);
    });
    return tokenOf(answer, sentAt, (code, problem) => client.error(code, `${purpose}: ${problem}`));
  }

  async function readToken(path: string, signal: AbortSignal): Promise<Buffer> {
    try {
      return (await readSecretFile(path, signal)).bytes;
    } catch (thrown) {
      throw client.named(thrown);
    }
  }
}
