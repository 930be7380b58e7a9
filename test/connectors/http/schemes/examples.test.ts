import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';

import { readConfig } from '../../../../src/config/load.ts';
import { lines } from '../../../config/files.ts';
import { Served } from '../../../support/session.ts';

const folder = fileURLToPath(new URL('../../../../examples/http/', import.meta.url));

/** What of a service's entry the test looks at. */
interface Entry {
  readonly connector: string;
  readonly credentials: Readonly<Record<string, unknown>>;
  readonly config: Readonly<Record<string, unknown>> & {
    readonly upstream: string;
    readonly authenticate: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  };
}

const key = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({
  type: 'pkcs8',
  format: 'pem',
}) as string;
const valueOf = (name: string) => (name === 'privateKey' ? key : `the-${name}`);
const basic = (user: string, password: string) => `Basic ${btoa(`the-${user}:the-${password}`)}`;
const bearer = 'Bearer the-token';

/** What has to arrive, by service: header fields, or `?` for the query. */
const arrives: Readonly<Record<string, Readonly<Record<string, string | RegExp>>>> = {
  'datadog-send': { 'dd-api-key': 'the-api_key' },
  'datadog-read': { 'dd-api-key': 'the-api_key', 'dd-application-key': 'the-app_key' },
  'docker-registry': { authorization: bearer },
  dropbox: { authorization: bearer },
  'dropbox-app': { authorization: basic('app_key', 'app_secret') },
  'dropbox-content': { authorization: bearer, 'dropbox-api-arg': 'the-api_arg' },
  'elasticsearch-token': { authorization: bearer },
  'elasticsearch-api-key': { authorization: `ApiKey ${btoa('the-id:the-api_key')}` },
  fullcontact: { authorization: bearer },
  'fullcontact-api-key': { 'x-fullcontact-apikey': 'the-api_key' },
  github: { authorization: bearer },
  'github-app': { authorization: 'Bearer made-token' },
  'github-git': { authorization: `Basic ${btoa('x-access-token:made-token')}` },
  'google-maps': { '?': 'own=1&key=the-api_key' },
  instagram: { authorization: 'OAuth the-token' },
  jfrog: { authorization: basic('user', 'pass') },
  'jfrog-api-key': { 'x-jfrog-art-api': 'the-api_key' },
  'jfrog-token': { authorization: bearer },
  logentries: { 'x-api-key': 'the-api_key' },
  loggly: { authorization: bearer },
  'loggly-password': { authorization: basic('username', 'password') },
  mailchimp: { authorization: basic('user', 'api_key') },
  'mailchimp-token': { authorization: 'OAuth the-token' },
  'new-relic': { 'x-api-key': 'the-api_key' },
  oauth1: {
    authorization:
      /^OAuth oauth_consumer_key="the-consumerKey", oauth_token="the-token", .*oauth_signature="/,
  },
  'oauth2-client': { authorization: 'Bearer made-token' },
  'oauth2-refresh': { authorization: 'Bearer made-token' },
  'oauth2-token': { authorization: bearer },
  papertrail: { 'x-papertrail-token': 'the-token' },
  'papertrail-password': { authorization: basic('user', 'pass') },
  sendgrid: { authorization: bearer },
  sentry: { authorization: bearer },
  servicenow: { authorization: bearer },
  slack: { authorization: bearer },
  splunk: { authorization: bearer },
  stripe: { authorization: bearer },
  'stripe-account': { authorization: bearer, 'stripe-account': 'the-account' },
  tableau: { 'x-tableau-auth': 'the-token' },
  twilio: { authorization: basic('account_sid', 'auth_token') },
  twitter: { authorization: bearer },
  'twitter-user': { authorization: /^OAuth oauth_consumer_key="the-consumerKey", .*oauth_signature="/ },
  'aws-s3': {
    authorization:
      /^AWS4-HMAC-SHA256 Credential=the-accessKeyId\/\d{8}\/eu-central-1\/s3\/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=[0-9a-f]{64}$/,
  },
};

interface Arrived {
  readonly url: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
}

/** Stands for the API and for the server of its tokens. */
async function origin(): Promise<{ readonly url: string; readonly arrived: Arrived[] } & AsyncDisposable> {
  const arrived: Arrived[] = [];
  const server = createServer((request, response) => {
    request.resume();
    const { url = '', headers } = request;
    const json = { 'content-type': 'application/json' };
    if (url.endsWith('/access_tokens')) {
      response.writeHead(201, json);
      response.end(JSON.stringify({ token: 'made-token', expires_at: new Date(Date.now() + 3600_000) }));
    } else if (url.endsWith('/oauth2/token')) {
      response.writeHead(200, json);
      response.end(JSON.stringify({ access_token: 'made-token', token_type: 'Bearer', expires_in: 3600 }));
    } else {
      arrived.push({ url, headers });
      response.end('ok');
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    arrived,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

/** The settings of an example with its servers replaced by this one. */
function inFrontOf(url: string, { config }: Entry): Record<string, unknown> {
  const { pathname } = new URL(config.upstream);
  const authenticate = { ...config.authenticate };
  for (const [scheme, setting] of [
    ['oauth2', { tokenUrl: `${url}/oauth2/token` }],
    ['githubApp', { apiUrl: url }],
  ] as const)
    if (authenticate[scheme])
      authenticate[scheme] = { ...authenticate[scheme], ...setting, allowPlainHttp: true };
  // Its host says which region it is; the one in its place says nothing.
  if (authenticate['aws'])
    authenticate['aws'] = { ...authenticate['aws'], region: 'eu-central-1', service: 's3' };
  return { ...config, upstream: url + pathname.replace(/\/$/, ''), authenticate, allowPlainHttp: true };
}

describe('the example', () => {
  const seen = new Set<string>();
  for (const file of readdirSync(folder)) {
    const { services } = parse(readFileSync(folder + file, 'utf8')) as { services: Record<string, Entry> };

    it(`loads without a warning, and says of each service how to call it: ${file}`, async () => {
      const { problems, warnings } = await readConfig([file], { folder, environment: {} });
      assert.deepEqual([...lines(problems), ...lines(warnings)], []);
      const text = readFileSync(folder + file, 'utf8');
      for (const [, port = ''] of text.matchAll(/listenOn: tcp:\/\/127\.0\.0\.1:(\d+)/g))
        assert.match(text, new RegExp(`^  # .*http://localhost:${port}`, 'm'));
    });

    for (const [name, entry] of Object.entries(services)) {
      seen.add(name);
      it(`puts the credential where the API wants it: ${name}`, async () => {
        await using server = await origin();
        const values = Object.fromEntries(
          Object.keys(entry.credentials).map((credential) => [credential, valueOf(credential)]),
        );
        await using served = await Served.open({
          connector: entry.connector,
          credentials: values,
          settings: inFrontOf(server.url, entry),
        });
        const client = await served.connect();
        client.send(
          Buffer.from(
            'GET /x?own=1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: of the client\r\nConnection: close\r\n\r\n',
          ),
        );
        const answer = (await client.rest()).toString();
        client.end();
        assert.match(answer, /^HTTP\/1\.1 200 OK\r\n[^]*ok$/);
        const [request, ...others] = server.arrived;
        assert.equal(others.length, 0);
        const expected = arrives[name];
        assert.ok(expected && request, 'what has to arrive is not in the table');
        for (const [field, value] of Object.entries(expected)) {
          const got: unknown = field === '?' ? request.url.split('?')[1] : request.headers[field];
          if (typeof value === 'string') assert.equal(got, value);
          else assert.match(String(got), value);
        }
        assert.ok(
          request.url.startsWith(`${new URL(entry.config.upstream).pathname.replace(/\/$/, '')}/x?own=1`),
        );
        for (const secret of Object.values(values)) assert.ok(!served.log.includes(secret));
      });
    }
  }

  it('is there for all that the table has', () => {
    assert.deepEqual(Object.keys(arrives).toSorted(), [...seen].toSorted());
  });
});
