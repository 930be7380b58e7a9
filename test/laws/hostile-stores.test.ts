import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { inspect } from 'node:util';

import { PosternError } from '../../src/core/errors.ts';
import { providers } from '../../src/providers/index.ts';
import { credentials, scheme } from '../connectors/http/schemes/support.ts';
import { fakeAzure } from '../providers/azure/fake-azure.ts';
import { fakeGoogle } from '../providers/gcp/fake-google.ts';
import { failure, open } from '../providers/opening.ts';
import { certificates } from '../support/servers.ts';
import { type HostileStore, hostileStore, mischiefs } from './hostile-store.ts';

/** In everything that a store is told in confidence. */
const secret = (of: string) => `HOSTILE-CANARY-${of}-0123456789`;
const patience = 1200;
/** Before a question has ended in whatever way: of one provider's several requests each has its time. */
const bound = 6 * patience + 1000;

/** Who asks a store: something to be asked, and everything it logged. */
interface Asker {
  readonly ask: (signal: AbortSignal) => Promise<unknown>;
  readonly close: () => Promise<void>;
  readonly logged: () => string;
}

interface Sample {
  readonly kinds: readonly string[];
  readonly open: (url: string) => Asker;
  /** Answers of the store that come before the one that is hostile. */
  readonly politely?: (line: string) => string | undefined;
  /** Its URL can be https. */
  readonly tls: boolean;
  /** The whole body is the secret, whatever it is, so that an answer of status 200 is none of a failure. */
  readonly raw?: true;
  /** It ends with the caller's signal alone, or after 20 seconds. */
  readonly patient?: true;
}

const folder = mkdtempSync(join(tmpdir(), 'postern-hostile-'));
after(() => rmSync(folder, { recursive: true }));
const tokenFile = join(folder, 'token');
writeFileSync(tokenFile, secret('file'));

function provider(
  kind: string,
  settings: object,
  reference: string,
  environment: Readonly<Record<string, string>> = {},
): Asker {
  const opened = open(kind, { timeout: `${patience}ms`, ...settings }, environment);
  return {
    ask: (signal) => opened.fetch([reference], signal),
    close: () => opened.close(AbortSignal.timeout(2000)),
    logged: opened.logged,
  };
}

function throughScheme(settings: object, values: Readonly<Record<string, string>>): Asker {
  const opened = scheme(settings);
  return {
    ask: async (signal) => await opened.prepare(credentials(values), signal),
    close: () => Promise.resolve(opened.close?.()),
    logged: () => '',
  };
}

const aws = { region: 'eu-central-1', retries: 0 };
const keys = {
  AWS_ACCESS_KEY_ID: 'AKIDEXAMPLE',
  AWS_SECRET_ACCESS_KEY: secret('aws-key'),
  AWS_SESSION_TOKEN: secret('aws-session'),
};
const privateKey = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({
  type: 'pkcs8',
  format: 'pem',
}) as string;

/** Everything that asks over HTTP, and each kind of thing that it asks for. */
function samplesOver(
  google: { readonly host: string },
  azure: { readonly url: string },
): Record<string, Sample> {
  return {
    'vault: a secret': {
      kinds: ['vault'],
      open: (address) =>
        provider(
          'vault',
          { address, retries: 0, auth: { method: 'token', token: secret('vault') } },
          'secret/app#a',
        ),
      tls: true,
    },
    'vault: a login': {
      kinds: ['vault'],
      open: (address) =>
        provider(
          'vault',
          { address, retries: 0, auth: { method: 'approle', roleId: 'role', secretId: secret('vault') } },
          'secret/app#a',
        ),
      tls: true,
    },
    'conjur: a login': {
      kinds: ['conjur'],
      open: (url) => conjur(url),
      tls: true,
    },
    'conjur: a variable': {
      kinds: ['conjur'],
      open: (url) => conjur(url),
      politely: (line) =>
        line.includes('/authn')
          ? JSON.stringify({ protected: 'e30=', payload: 'e30=', signature: 'e30=' })
          : undefined,
      raw: true,
      tls: true,
    },
    kubernetes: {
      kinds: ['kubernetes'],
      open: (server) =>
        provider('kubernetes', { server, namespace: 'default', tokenFile, retries: 0 }, 'app#a'),
      tls: true,
    },
    'aws: a secret': {
      kinds: ['aws', 'aws-secrets-manager'],
      open: (endpoint) => provider('aws-secrets-manager', { ...aws, endpoint }, 'app', keys),
      tls: true,
    },
    'aws: a parameter': {
      kinds: ['aws-ssm'],
      open: (endpoint) => provider('aws-ssm', { ...aws, endpoint }, '/app', keys),
      tls: true,
    },
    'aws: a web identity': {
      kinds: ['rds-iam'],
      open: (url) =>
        provider('rds-iam', aws, 'me@db.internal:5432', {
          AWS_WEB_IDENTITY_TOKEN_FILE: tokenFile,
          AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/r',
          AWS_ENDPOINT_URL_STS: url,
        }),
      tls: true,
    },
    'aws: the metadata': {
      kinds: ['rds-iam'],
      open: (url) =>
        provider('rds-iam', aws, 'me@db.internal:5432', { AWS_EC2_METADATA_SERVICE_ENDPOINT: url }),
      tls: false,
    },
    'google: a secret': {
      kinds: ['gcp-secret-manager'],
      open: (endpoint) =>
        provider('gcp-secret-manager', { endpoint, project: 'p', retries: 0 }, 'app', {
          GCE_METADATA_HOST: google.host,
        }),
      tls: true,
    },
    'google: a token': {
      kinds: ['cloudsql-iam'],
      open: (url) =>
        provider('cloudsql-iam', { retries: 0 }, 'token', { GCE_METADATA_HOST: url.replace('http://', '') }),
      tls: false,
    },
    'azure: a secret': {
      kinds: ['azure-key-vault'],
      open: (vault) =>
        provider('azure-key-vault', { vault, scope: 'https://vault.azure.net/.default', retries: 0 }, 'app', {
          AZURE_POD_IDENTITY_AUTHORITY_HOST: azure.url,
        }),
      tls: true,
    },
    'azure: a token': {
      kinds: ['entra'],
      open: (url) =>
        provider('entra', { retries: 0 }, 'token', {
          IDENTITY_ENDPOINT: `${url}/msi/token`,
          IDENTITY_HEADER: secret('azure'),
        }),
      tls: false,
    },
    'azure: a login': {
      kinds: ['entra'],
      open: (url) =>
        provider('entra', { retries: 0 }, 'token', {
          AZURE_CLIENT_ID: 'client',
          AZURE_TENANT_ID: 'tenant',
          AZURE_CLIENT_SECRET: secret('azure'),
          AZURE_AUTHORITY_HOST: url,
        }),
      tls: true,
    },
    'oauth2: a token for a client': {
      kinds: [],
      open: (url) =>
        throughScheme(
          { oauth2: { tokenUrl: `${url}/token`, clientSecret: 'clientSecret', allowPlainHttp: true } },
          { clientId: 'client', clientSecret: secret('oauth') },
        ),
      tls: true,
      patient: true,
    },
    'oauth2: a token for a refresh token': {
      kinds: [],
      open: (url) =>
        throughScheme(
          {
            oauth2: {
              tokenUrl: `${url}/token`,
              grant: 'refresh_token',
              clientSecret: 'clientSecret',
              refreshToken: 'refreshToken',
              clientAuth: 'body',
              allowPlainHttp: true,
            },
          },
          { clientId: 'client', clientSecret: secret('oauth'), refreshToken: secret('refresh') },
        ),
      tls: true,
      patient: true,
    },
    'githubApp: a token': {
      kinds: [],
      open: (apiUrl) =>
        throughScheme(
          { githubApp: { clientId: 'app', installationId: 1, apiUrl, allowPlainHttp: true } },
          { privateKey },
        ),
      tls: true,
      patient: true,
    },
  };

  function conjur(url: string): Asker {
    const auth = { method: 'apiKey', login: 'host/app', apiKey: secret('conjur') };
    return provider('conjur', { url, account: 'demo', auth }, 'app');
  }
}

/** Everything that can be seen of an error, with what lies beneath. */
function everythingOf(thrown: unknown): string {
  const parts: string[] = [];
  for (let each = thrown; each instanceof Error; each = each.cause)
    parts.push(
      inspect(each, { depth: null, showHidden: true, maxStringLength: null, maxArrayLength: null }),
      each.stack ?? '',
      JSON.stringify(
        Object.fromEntries(
          Object.getOwnPropertyNames(each).map((name) => [name, String(Reflect.get(each, name))]),
        ),
      ),
    );
  return parts.join('\n');
}

/** Secrets, and what was made of them: header fields with a password in base64, signatures, assertions. */
function confidentialIn(heard: string): string[] {
  const fields = heard.matchAll(
    /^(?:authorization|x-vault-token|x-amz-security-token|x-identity-header): (.+)\r$/gim,
  );
  return [...fields].flatMap(([, value = '']) => [
    value,
    ...value.split(/[ ,=]+/).filter(({ length }) => length > 24),
  ]);
}

function assertTold(asker: Asker, store: HostileStore, error: PosternError): void {
  assert.match(error.code, /^PROVIDER_(FAILED|UNAVAILABLE)$/, inspect(error));
  assert.ok(error.message.length < 1000 && /^[\x20-\x7e]*$/.test(error.message), error.message);
  const all = everythingOf(error) + asker.logged();
  assert.doesNotMatch(all, /CANARY/);
  for (const text of confidentialIn(store.heard()))
    assert.ok(!all.includes(text), 'what was sent is not shown');
}

// Whoever does not say that it verifies asks this variable: nobody may.
process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0';

const cleanups: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const cleanup of cleanups.toReversed()) await cleanup();
});

describe('whoever asks a hostile store', { concurrency: 4 }, async () => {
  const [google, azure] = [await fakeGoogle(), await fakeAzure()];
  google.tokenFor.set('https://www.googleapis.com/auth/cloud-platform', secret('google'));
  azure.tokenFor.set('https://vault.azure.net', secret('azure'));
  cleanups.push(google.stop, azure.stop);
  const samples = samplesOver(google, azure);

  it('is every kind of provider that asks over HTTP', () => {
    const local = ['literal', 'env', 'file', 'exec', 'keychain', 'local'];
    const covered = new Set([...local, ...Object.values(samples).flatMap(({ kinds }) => kinds)]);
    assert.deepEqual([...covered].toSorted(), Object.keys(providers).toSorted());
  });

  for (const [name, sample] of Object.entries(samples)) {
    describe(name, () => {
      for (const [deed, mischief] of Object.entries(mischiefs))
        it(`fails in time and says nothing in confidence when it ${deed}`, async (t) => {
          const store = await hostileStore(mischief, { politely: sample.politely });
          t.after(store.stop);
          const asker = sample.open(store.url);
          const started = performance.now();
          const signal = sample.patient ? AbortSignal.timeout(2 * patience) : new AbortController().signal;
          const outcome = await asker.ask(signal).then(
            () => undefined,
            (thrown: unknown) => thrown,
          );
          const ms = performance.now() - started;
          await asker.close();
          // The buffers of the system on both sides hold several megabytes.
          assert.ok(store.sent() < 24 * 1024 * 1024, `took ${store.sent()} bytes`);
          for (let i = 0; i < 100 && store.open() > 0; i++)
            await new Promise((later) => setTimeout(later, 10));
          assert.equal(store.open(), 0, 'no connection is left');
          t.diagnostic(
            `${Math.round(ms)} ms, ${store.sent()} bytes: ${(outcome as Error | undefined)?.message}`,
          );
          assert.ok(ms < bound, `took ${ms} ms`);
          assert.ok(store.heard().length > 0, 'the store was asked');
          // What did not end by itself ended with the caller's patience.
          if (sample.patient && outcome === signal.reason) return;
          if (sample.raw && outcome === undefined) return;
          assert.ok(outcome instanceof PosternError, `there was no secret to be had: ${inspect(outcome)}`);
          assertTold(asker, store, outcome);
        });

      it('goes nowhere that a redirect sends it', async (t) => {
        const trap = await hostileStore(
          (socket) => void socket.end('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'),
        );
        t.after(trap.stop);
        for (const code of [301, 302, 303, 307, 308]) {
          const store = await hostileStore(
            (socket) =>
              void socket.write(
                `HTTP/1.1 ${code} Go\r\nLocation: ${trap.url}/x\r\nContent-Length: 0\r\n\r\n`,
              ),
            { politely: sample.politely },
          );
          t.after(store.stop);
          const asker = sample.open(store.url);
          const error = await failure(asker.ask(AbortSignal.timeout(bound)));
          await asker.close();
          assertTold(asker, store, error);
        }
        assert.equal(trap.heard(), '');
      });

      if (!sample.tls) return;

      it('tells a server that nothing vouches for nothing, whatever the environment says of verification', async (t) => {
        const { server } = await certificates();
        const store = await hostileStore((socket) => void socket.end('HTTP/1.1 200 OK\r\n\r\n'), {
          tls: { cert: readFileSync(server.cert, 'utf8'), key: readFileSync(server.key, 'utf8') },
        });
        t.after(store.stop);
        const asker = sample.open(store.url);
        const error = await failure(asker.ask(AbortSignal.timeout(bound)));
        await asker.close();
        assertTold(asker, store, error);
        assert.match(error.message, /TLS|UNABLE_TO_VERIFY/);
        assert.equal(store.heard(), '');
      });

      it('tells a server nothing that does not speak TLS', async (t) => {
        const store = await hostileStore(() => undefined);
        t.after(store.stop);
        const asker = sample.open(store.url.replace('http:', 'https:'));
        const outcome = await asker.ask(AbortSignal.timeout(2 * patience)).then(
          () => undefined,
          (thrown: unknown) => thrown,
        );
        await asker.close();
        assert.ok(outcome instanceof Error, 'there was no secret to be had');
        assert.doesNotMatch(everythingOf(outcome), /CANARY/);
        assert.doesNotMatch(store.heard(), /CANARY/);
      });
    });
  }
});
