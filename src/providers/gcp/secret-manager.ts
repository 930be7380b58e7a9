import { decodeBase64 } from '../../core/bytes.ts';
import { callWithToken } from '../bearer.ts';
import type { Answer } from '../exchange.ts';
import { splitField, takeFields } from '../json-field.ts';
import type { Provider, ProviderContext } from '../provider.ts';
import { isPassing, jsonOf, publicLine, StoreClient } from '../store-client.ts';
import { type Read, readTogether } from '../together.ts';
import { crc32c } from './crc32c.ts';
import type { StoreSettings } from './index.ts';
import { checkReference, parseReference } from './reference.ts';
import { googleTokens } from './tokens.ts';

const scope = 'https://www.googleapis.com/auth/cloud-platform';

/** Google Cloud Secret Manager: one access of each version of a fetch. */
export function openSecretManager(settings: StoreSettings, context: ProviderContext): Provider {
  const client = new StoreClient({
    name: context.name,
    timeout: settings.timeout,
    retries: settings.retries,
  });
  const tokens = googleTokens(settings, context, client);

  function urlOf(reference: string): URL {
    const { project: named, location, secret, version } = parseReference(reference);
    const project = named ?? settings.project ?? (context.environment['GOOGLE_CLOUD_PROJECT'] || undefined);
    if (project === undefined) {
      throw client.error(
        'PROVIDER_FAILED',
        `"${reference}" names no project: set \`project\`, or GOOGLE_CLOUD_PROJECT`,
      );
    }
    const host = location === undefined ? 'secretmanager' : `secretmanager.${location}.rep`;
    const base = settings.endpoint ?? `https://${host}.googleapis.com`;
    const place = location === undefined ? '' : `/locations/${location}`;
    return new URL(`/v1/projects/${project}${place}/secrets/${secret}/versions/${version}:access`, base);
  }

  async function read(references: readonly string[], signal: AbortSignal): Promise<Read> {
    const [first = ''] = references;
    const purpose = `reading "${first}"`;
    const call = { method: 'GET', url: urlOf(first), purpose } as const;
    using answer = await callWithToken(client, tokens.of(scope), call, signal);
    if (answer.status !== 200) throw refusal(purpose, answer);
    const json = jsonOf(answer);
    const payload = json?.get('payload');
    const data = payload?.get('data');
    if (data?.kind !== 'string')
      throw client.error('PROVIDER_UNAVAILABLE', `${purpose}: the answer has no value`);
    const encoded = data.copy();
    const value = decodeBase64(encoded);
    encoded.fill(0);
    if (!value) throw client.error('PROVIDER_UNAVAILABLE', `${purpose}: the value is no base64`);
    try {
      const sum = payload?.get('dataCrc32c')?.publicText();
      if (sum !== undefined && sum !== String(crc32c(value))) {
        throw client.error('PROVIDER_UNAVAILABLE', `${purpose}: the value is not that of its checksum`);
      }
      // `latest` and aliases come back as the number that they stand for.
      const version = /\/versions\/(\d{1,20})$/.exec(json?.get('name')?.publicText() ?? '')?.[1];
      return { secrets: takeFields(value, references), version };
    } catch (thrown) {
      throw client.named(thrown);
    } finally {
      value.fill(0);
    }
  }

  function refusal(purpose: string, answer: Answer): ReturnType<StoreClient['error']> {
    const error = jsonOf(answer)?.get('error');
    const status = error?.get('status')?.publicText() ?? '';
    const name = /^[A-Z_]{1,60}$/.test(status) ? `, ${status}` : '';
    const text = Object.hasOwn(meanings, status) ? meanings[status] : 'Google refused';
    const said = Object.hasOwn(meanings, status) ? publicLine(error?.get('message'), answer) : '';
    return client.error(
      isPassing(answer.status) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED',
      `${purpose}: ${text} (HTTP ${answer.status}${name}${said && `: ${said}`})`,
    );
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

const meanings: Readonly<Record<string, string>> = {
  NOT_FOUND: 'there is no such secret or version',
  PERMISSION_DENIED: 'permission denied',
  UNAUTHENTICATED: 'Google does not accept the token',
  FAILED_PRECONDITION: 'the version is disabled or destroyed',
  RESOURCE_EXHAUSTED: 'Google allows no more requests for now',
  UNAVAILABLE: 'Google is unavailable',
  INTERNAL: 'Google failed',
};
