import { createPrivateKey, type KeyObject, sign } from 'node:crypto';
import { join } from '../../../core/bytes.ts';
import { PosternError } from '../../../core/errors.ts';
import { basicLine, bearerLine, FixedInjection, unusable } from './fixed.ts';
import type { Scheme } from './scheme.ts';
import { valueOf } from './template.ts';
import { post, usefulLife } from './token-endpoint.ts';

/** Settings of `authenticate.githubApp`. */
export interface GithubAppSettings {
  /** Client id or app id. */
  readonly issuer: string;
  readonly installationId: string;
  /** Name of the credential. */
  readonly privateKey: string;
  readonly apiUrl: URL;
  readonly ca: string | undefined;
  readonly repositories: readonly string[] | undefined;
  readonly permissions: Readonly<Record<string, string>> | undefined;
  readonly as: 'bearer' | 'git';
}

/** A GitHub App: its key signs a request for the token of one installation, which lives for an hour. */
export function githubApp(settings: GithubAppSettings, now: () => number = Date.now): Scheme {
  const url = new URL(settings.apiUrl);
  url.pathname = `${url.pathname.replace(/\/$/, '')}/app/installations/${settings.installationId}/access_tokens`;
  const wanted = JSON.stringify({ repositories: settings.repositories, permissions: settings.permissions });
  return {
    ownedHeaders: ['authorization'],
    ownedQuery: [],
    async prepare(credentials, signal) {
      const jwt = assertion(
        settings.issuer,
        keyIn(settings.privateKey, valueOf(settings.privateKey, credentials)),
        now(),
      );
      const headers = join([Buffer.from(`${fixedHeaders}Authorization: Bearer ${jwt}\r\n`)]);
      try {
        using answer = await post({ url, ca: settings.ca }, [headers], Buffer.from(wanted), signal);
        const { status, json } = answer;
        // 201, not 200: a token was created.
        if (status !== 201) throw refusal(status, url.host);
        const expiresAt = Date.parse(json?.get('expires_at')?.publicText() ?? '');
        const token = json?.get('token')?.copy();
        if (!token || token.length === 0 || Number.isNaN(expiresAt))
          throw new PosternError(
            'PROVIDER_FAILED',
            `${url.host} answered without a token and its expires_at`,
          );
        if (expiresAt <= now()) {
          token.fill(0);
          throw new PosternError(
            'PROVIDER_FAILED',
            `${url.host} gave a token that has ended already; do the clocks differ?`,
          );
        }
        try {
          const line =
            settings.as === 'git'
              ? basicLine(Buffer.from('x-access-token'), token)
              : bearerLine(token, `the token of installation ${settings.installationId}`);
          return {
            value: new FixedInjection(line),
            expiresAt: new Date(now() + usefulLife(expiresAt - now())),
          };
        } finally {
          token.fill(0);
        }
      } finally {
        headers.fill(0);
      }
    },
  };
}

const fixedHeaders =
  'Accept: application/vnd.github+json\r\nX-GitHub-Api-Version: 2022-11-28\r\nContent-Type: application/json\r\n';

function keyIn(name: string, pem: Buffer): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey({ key: pem, format: 'pem' });
  } catch (cause) {
    throw new PosternError(
      'PROVIDER_FAILED',
      `the credential "${name}" is no private key in PEM; nothing was sent`,
      { cause },
    );
  }
  if (key.asymmetricKeyType !== 'rsa') throw unusable(name, 'is no RSA key');
  return key;
}

/** Good for nine minutes and back-dated by one, as GitHub advises: its clock may be behind, and ten are the most. */
function assertion(issuer: string, key: KeyObject, now: number): string {
  const seconds = Math.floor(now / 1000);
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = `${part({ alg: 'RS256', typ: 'JWT' })}.${part({ iat: seconds - 60, exp: seconds + 540, iss: issuer })}`;
  return `${body}.${sign('RSA-SHA256', Buffer.from(body), key).toString('base64url')}`;
}

const meanings: Readonly<Record<number, string>> = {
  401: 'it does not know the app or its key, or the clocks differ',
  403: 'the app may not do this, or has asked too often',
  404: 'the app has no such installation',
  422: 'the installation does not have these repositories or permissions',
};

function refusal(status: number, host: string): PosternError {
  if (status === 429 || status >= 500)
    return new PosternError(
      'PROVIDER_UNAVAILABLE',
      `${host} answered ${status} when it was asked for a token`,
    );
  const meaning = meanings[status] ?? 'see the documentation of GitHub Apps';
  return new PosternError(
    'PROVIDER_FAILED',
    `${host} answered ${status} when it was asked for a token: ${meaning}`,
  );
}
