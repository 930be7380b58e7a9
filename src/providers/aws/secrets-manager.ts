import { decodeBase64 } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import type { JsonBytes } from '../../core/json-bytes.ts';
import { splitField, takeFields } from '../json-field.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { jsonOf } from '../store-client.ts';
import { type Read, readTogether } from '../together.ts';
import { AwsClient } from './client.ts';
import { checkSecretReference, parseSecretReference, regionOfArn } from './reference.ts';
import type { CommonSettings } from './settings.ts';

/** AWS Secrets Manager: GetSecretValue, once for each secret and version of a fetch. */
export function openSecretsManager(
  settings: CommonSettings & { readonly endpoint?: string | undefined },
  context: ProviderContext,
): Provider {
  const client = new AwsClient(settings, context);

  async function read(references: readonly string[], signal: AbortSignal): Promise<Read> {
    const [first = ''] = references;
    const { id, version, stage } = parseSecretReference(first);
    const purpose = `reading "${first}"`;
    using answer = await client.call(
      {
        service: 'secretsmanager',
        target: 'secretsmanager.GetSecretValue',
        region: regionOfArn(id),
        body: { SecretId: id, VersionId: version, VersionStage: stage },
        purpose,
      },
      signal,
    );
    const json = jsonOf(answer);
    const value = valueOf(json);
    if (!value) throw client.error('PROVIDER_UNAVAILABLE', `${purpose}: the answer has no value`);
    try {
      const secrets = takeFields(value, references);
      return { secrets, version: json?.get('VersionId')?.publicText() };
    } catch (thrown) {
      throw client.named(thrown);
    } finally {
      value.fill(0);
    }
  }

  return {
    async fetch(references, signal) {
      for (const reference of references) {
        const problem = checkSecretReference(reference);
        if (problem) throw client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
      }
      return await readTogether(references, { place: (of) => splitField(of).id, read }, signal);
    },
    // Reading a secret costs money and a permission: that there are credentials is what can be known without.
    check: async (signal) => client.chain.lend(() => Promise.resolve(), signal),
    close: (signal) => client.close(signal),
  };
}

/** SecretString as it is, or SecretBinary decoded; in a buffer of its own. */
function valueOf(json: JsonBytes | undefined): Buffer | undefined {
  const text = json?.get('SecretString');
  if (text?.kind === 'string') return text.copy();
  const binary = json?.get('SecretBinary');
  if (binary?.kind !== 'string') return undefined;
  const encoded = binary.copy();
  const bytes = decodeBase64(encoded);
  encoded.fill(0);
  if (!bytes) throw new PosternError('PROVIDER_UNAVAILABLE', 'SecretBinary is no base64');
  return bytes;
}
