import { splitField, takeFields } from '../json-field.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { jsonOf } from '../store-client.ts';
import { type Read, readTogether } from '../together.ts';
import { AwsClient } from './client.ts';
import { checkParameterReference, regionOfArn } from './reference.ts';
import type { CommonSettings } from './settings.ts';

/** AWS Systems Manager's Parameter Store: GetParameter with decryption, once for each parameter of a fetch. */
export function openParameterStore(
  settings: CommonSettings & { readonly endpoint?: string | undefined },
  context: ProviderContext,
): Provider {
  const client = new AwsClient(settings, context);

  async function read(references: readonly string[], signal: AbortSignal): Promise<Read> {
    const [first = ''] = references;
    const name = splitField(first).id;
    const purpose = `reading "${first}"`;
    using answer = await client.call(
      {
        service: 'ssm',
        target: 'AmazonSSM.GetParameter',
        region: regionOfArn(name),
        body: { Name: name, WithDecryption: true },
        purpose,
      },
      signal,
    );
    const parameter = jsonOf(answer)?.get('Parameter');
    const text = parameter?.get('Value');
    if (text?.kind !== 'string') {
      throw client.error('PROVIDER_UNAVAILABLE', `${purpose}: the answer has no value`);
    }
    const value = text.copy();
    try {
      return { secrets: takeFields(value, references), version: parameter?.get('Version')?.publicText() };
    } catch (thrown) {
      throw client.named(thrown);
    } finally {
      value.fill(0);
    }
  }

  return {
    async fetch(references, signal) {
      for (const reference of references) {
        const problem = checkParameterReference(reference);
        if (problem) throw client.error('PROVIDER_FAILED', `"${reference}": ${problem}`);
      }
      return await readTogether(references, { place: (of) => splitField(of).id, read }, signal);
    },
    check: async (signal) => client.chain.lend(() => Promise.resolve(), signal),
    close: (signal) => client.close(signal),
  };
}
