import { createPrivateKey, sign } from 'node:crypto';
import { homedir } from 'node:os';
import { join } from 'node:path';

import { copyOf, formOf } from '../../core/bytes.ts';
import { type ErrorCode, PosternError, reasonOf } from '../../core/errors.ts';
import { JsonBytes } from '../../core/json-bytes.ts';
import type { Secret } from '../../core/secret.ts';
import { authorization, checkedToken, ScopedTokens, tokenOf } from '../bearer.ts';
import type { Obtained } from '../expiring.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile, withoutLineEnd } from '../secret-file.ts';
import { isPassing, jsonOf, type StoreCall, type StoreClient } from '../store-client.ts';
import type { CommonSettings } from './index.ts';

const tokenEndpoint = 'https://oauth2.googleapis.com/token';
const everything = 'https://www.googleapis.com/auth/cloud-platform';
/** Nothing but the machine's own hypervisor answers there, at once or never. */
const metadataTimeout = 2000;

/**
 * Access tokens of Google, found as its own libraries do (Application Default Credentials): a JSON file, or the
 * metadata server. The file is read for each token, so a new key needs no restart.
 */
export function googleTokens(
  settings: CommonSettings,
  { name, environment }: ProviderContext,
  client: StoreClient,
): ScopedTokens {
  return new ScopedTokens(obtain, `provider "${name}": getting an access token`);

  async function obtain(scope: string, signal: AbortSignal): Promise<Obtained<Secret>> {
    const file = await credentialsFile(signal);
    if (!file) return await fromMetadata(scope, signal);
    const { bytes, path } = file;
    try {
      let json: JsonBytes;
      try {
        json = JsonBytes.parse(bytes);
      } catch (thrown) {
        throw failed('PROVIDER_FAILED', `the file "${path}" is ${PosternError.from(thrown).message}`);
      }
      const type = json.get('type')?.publicText() ?? '';
      switch (type) {
        case 'service_account':
          return await fromServiceAccount(json, scope, signal);
        case 'authorized_user':
          return await fromUser(json, signal);
        case 'external_account':
          return await fromExternalAccount(json, scope, signal);
        default: {
          const known = 'service_account, external_account and authorized_user are understood';
          throw failed('PROVIDER_FAILED', `the file "${path}" is of another type; ${known}`);
        }
      }
    } finally {
      bytes.fill(0);
    }
  }

  async function credentialsFile(signal: AbortSignal): Promise<{ bytes: Buffer; path: string } | undefined> {
    const named = settings.credentialsFile ?? (environment['GOOGLE_APPLICATION_CREDENTIALS'] || undefined);
    const folder =
      environment['CLOUDSDK_CONFIG'] || join(environment['HOME'] || homedir(), '.config', 'gcloud');
    const path = named ?? join(folder, 'application_default_credentials.json');
    try {
      return { bytes: await readFile(path, signal), path };
    } catch (thrown) {
      const absent = PosternError.from(thrown).message.includes('there is no such file');
      if (named === undefined && absent && !signal.aborted) return undefined;
      throw thrown;
    }
  }

  /** RFC 7523: an assertion that the account's key signs. */
  async function fromServiceAccount(
    json: JsonBytes,
    scope: string,
    signal: AbortSignal,
  ): Promise<Obtained<Secret>> {
    const email = required(json, 'client_email');
    const audience = json.get('token_uri')?.publicText() ?? tokenEndpoint;
    const now = Math.floor(Date.now() / 1000);
    const kid = json.get('private_key_id')?.publicText();
    const header = { alg: 'RS256', typ: 'JWT', ...(kid === undefined ? {} : { kid }) };
    const claims = { iss: email, scope, aud: audience, iat: now, exp: now + 3600 };
    const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const signed = `${part(header)}.${part(claims)}`;
    const assertion = `${signed}.${signature(json, signed).toString('base64url')}`;
    const form = { grant_type: 'urn:ietf:params:oauth:grant-type:jwt-bearer', assertion };
    return await exchangeAt(audience, form, `getting a token for ${email}`, signal);
  }

  function signature(json: JsonBytes, signed: string): Buffer {
    const pem = json.get('private_key')?.copy();
    if (!pem) throw failed('PROVIDER_FAILED', 'the credentials file has no "private_key"');
    try {
      return sign('RSA-SHA256', Buffer.from(signed), createPrivateKey(pem));
    } catch (thrown) {
      throw failed(
        'PROVIDER_FAILED',
        `the private key of the credentials file cannot be used (${reasonOf(thrown)})`,
      );
    } finally {
      pem.fill(0);
    }
  }

  /** What `gcloud auth application-default login` leaves on a laptop. */
  async function fromUser(json: JsonBytes, signal: AbortSignal): Promise<Obtained<Secret>> {
    const secret = secretBytes(json, 'client_secret');
    const refresh = secretBytes(json, 'refresh_token');
    try {
      const form = {
        grant_type: 'refresh_token',
        client_id: required(json, 'client_id'),
        client_secret: secret,
        refresh_token: refresh,
      };
      const url = json.get('token_uri')?.publicText() ?? tokenEndpoint;
      return await exchangeAt(url, form, 'refreshing the token of the user', signal);
    } finally {
      secret.fill(0);
      refresh.fill(0);
    }
  }

  /** Workload identity federation: somebody else's token for one of Google (RFC 8693), perhaps for a service account's. */
  async function fromExternalAccount(
    json: JsonBytes,
    scope: string,
    signal: AbortSignal,
  ): Promise<Obtained<Secret>> {
    const impersonation = json.get('service_account_impersonation_url')?.publicText();
    const subject = await subjectToken(json, signal);
    let federated: Obtained<Secret>;
    try {
      const form = {
        grant_type: 'urn:ietf:params:oauth:grant-type:token-exchange',
        requested_token_type: 'urn:ietf:params:oauth:token-type:access_token',
        subject_token_type: required(json, 'subject_token_type'),
        audience: required(json, 'audience'),
        scope: impersonation === undefined ? scope : everything,
        subject_token: subject,
      };
      federated = await exchangeAt(
        required(json, 'token_url'),
        form,
        'exchanging the federated token',
        signal,
      );
    } finally {
      subject.fill(0);
    }
    if (impersonation === undefined) return federated;
    using bearer = federated.value;
    const purpose = 'impersonating the service account';
    const body = Buffer.from(JSON.stringify({ scope: [scope], lifetime: '3600s' }));
    const call: StoreCall = {
      method: 'POST',
      url: urlOf(impersonation),
      headers: () => ({ ...authorization(bearer), 'content-type': 'application/json' }),
      body,
      purpose,
    };
    using answer = await client.call(call, signal);
    if (answer.status !== 200) {
      const code = isPassing(answer.status) ? 'PROVIDER_UNAVAILABLE' : 'PROVIDER_FAILED';
      throw failed(code, `${purpose}: refused (HTTP ${answer.status})`);
    }
    const token = jsonOf(answer)?.get('accessToken');
    const expiresAt = Date.parse(jsonOf(answer)?.get('expireTime')?.publicText() ?? '');
    if (token?.kind !== 'string' || Number.isNaN(expiresAt)) {
      throw failed('PROVIDER_UNAVAILABLE', `${purpose}: the answer has no token`);
    }
    return {
      value: checkedToken(token, (code, problem) => failed(code, `${purpose}: ${problem}`)),
      expiresAt,
    };
  }

  async function subjectToken(json: JsonBytes, signal: AbortSignal): Promise<Buffer> {
    const source = json.get('credential_source');
    const [path, url] = [source?.get('file')?.publicText(), source?.get('url')?.publicText()];
    const format = source?.get('format');
    const field =
      format?.get('type')?.publicText() === 'json'
        ? (format.get('subject_token_field_name')?.publicText() ?? 'access_token')
        : undefined;
    if (path !== undefined) return subjectIn(await readFile(path, signal), field);
    if (url !== undefined) {
      const headers = [...(source?.get('headers')?.entries() ?? [])].map(
        ([name, value]) => [name, value.publicText() ?? ''] as const,
      );
      const purpose = 'asking for the token to exchange';
      const call: StoreCall = {
        method: 'GET',
        url: urlOf(url),
        headers: () => Object.fromEntries(headers),
        purpose,
      };
      using answer = await client.call(call, signal);
      if (answer.status !== 200) throw failed('PROVIDER_UNAVAILABLE', `${purpose}: HTTP ${answer.status}`);
      return subjectIn(answer.body, field);
    }
    const known = 'a file or a url is understood, an executable, a certificate or AWS is not';
    throw failed('PROVIDER_FAILED', `the credentials file has another credential_source: ${known}`);
  }

  /** A copy of the token; `bytes` are wiped. */
  function subjectIn(bytes: Buffer, field: string | undefined): Buffer {
    try {
      if (field === undefined) return copyOf(withoutLineEnd(bytes));
      const found = JsonBytes.parse(bytes).get(field);
      if (found?.kind !== 'string')
        throw failed('PROVIDER_FAILED', `the token to exchange has no field "${field}"`);
      return found.copy();
    } finally {
      bytes.fill(0);
    }
  }

  async function exchangeAt(
    url: string,
    form: Readonly<Record<string, Buffer | string>>,
    purpose: string,
    signal: AbortSignal,
  ): Promise<Obtained<Secret>> {
    const body = formOf(form);
    const sentAt = Date.now();
    try {
      const headers = () => ({ 'content-type': 'application/x-www-form-urlencoded' });
      using answer = await client.call({ method: 'POST', url: urlOf(url), headers, body, purpose }, signal);
      return tokenOf(answer, sentAt, (code, problem) => failed(code, `${purpose}: ${problem}`));
    } finally {
      body.fill(0);
    }
  }

  async function fromMetadata(scope: string, signal: AbortSignal): Promise<Obtained<Secret>> {
    const purpose = 'asking the metadata server for a token';
    const url = new URL(
      `http://${environment['GCE_METADATA_HOST'] || 'metadata.google.internal'}/computeMetadata/v1/instance/service-accounts/default/token`,
    );
    url.searchParams.set('scopes', scope);
    const sentAt = Date.now();
    const call: StoreCall = {
      method: 'GET',
      url,
      headers: () => ({ 'metadata-flavor': 'Google' }),
      timeout: metadataTimeout,
      purpose,
    };
    using answer = await client.call(call, signal).catch((thrown: unknown) => {
      const { code, message } = PosternError.from(thrown);
      if (signal.aborted || code !== 'PROVIDER_UNAVAILABLE') throw thrown;
      throw new PosternError(code, `${message}; no credentials file was named or found either`);
    });
    // A captive portal or a proxy may answer in its place.
    if (answer.headers['metadata-flavor'] !== 'Google') {
      throw failed('PROVIDER_UNAVAILABLE', `${purpose}: the answer is not one of Google's metadata server`);
    }
    return tokenOf(answer, sentAt, (code, problem) => failed(code, `${purpose}: ${problem}`));
  }

  async function readFile(path: string, signal: AbortSignal): Promise<Buffer> {
    try {
      return (await readSecretFile(path, signal)).bytes;
    } catch (thrown) {
      throw client.named(thrown);
    }
  }

  function urlOf(text: string): URL {
    const url = URL.parse(text);
    if (url && /^https?:$/.test(url.protocol)) return url;
    throw failed('PROVIDER_FAILED', 'the credentials file has an address that is no URL');
  }

  function required(json: JsonBytes, key: string): string {
    const text = json.get(key)?.publicText();
    if (!text) throw failed('PROVIDER_FAILED', `the credentials file has no "${key}"`);
    return text;
  }

  function secretBytes(json: JsonBytes, key: string): Buffer {
    const value = json.get(key);
    if (value?.kind !== 'string') throw failed('PROVIDER_FAILED', `the credentials file has no "${key}"`);
    return value.copy();
  }

  function failed(code: ErrorCode, text: string): PosternError {
    return client.error(code, text);
  }
}
