import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';

import { Postern } from '../support/postern.ts';
import { certificates } from '../support/servers/certificates.ts';
import { capture } from '../support/servers/process.ts';
import { canary } from '../support/servers.ts';

const secret = canary.postgres;

/** A file as Secretless's users have it: old words, keys that mean nothing, several services on one listener. */
function secretlessFile(plain: number, tls: number): string {
  return `version: "2"
services:
  basic:
    protocol: http
    listenOn: tcp://127.0.0.1:0
    debug: true
    credentials:
      username: ann
      password: { from: env, get: SECRET }
    config:
      authenticationStrategy: basic_auth
      authenticateURLsMatching: ^http\\:\\/\\/127\\.0\\.0\\.1:${plain}\\/basic
      credentialPatterns: { username: x }
  secure:
    connector: basic_auth
    listenOn: tcp://127.0.0.1:0
    credentials: { username: ann, password: { from: env, get: SECRET } }
    config:
      authenticateURLsMatching: [ "^http[s]*://localhost:${tls}" ]
      forceSSL: true
  conjur:
    connector: conjur
    listenOn: tcp://127.0.0.1:0
    credentials: { accessToken: { from: env, get: SECRET } }
    config: { authenticateURLsMatching: ^http }
  aws:
    connector: aws
    listenOn: tcp://127.0.0.1:0
    credentials:
      accessKeyId: AKIDEXAMPLE
      secretAccessKey: { from: env, get: SECRET }
      accessToken: session-token
    config: { authenticateURLsMatching: [ .* ] }
  generic:
    connector: generic_http
    listenOn: tcp://127.0.0.1:0
    credentials: { id: someone, key: { from: env, get: SECRET } }
    config:
      headers:
        Authorization: ApiKey {{ printf "%s:%s" .id .key | base64 }}
        Content-Type: application/json
      queryParams: { key: "{{ .key }}" }
      credentialValidations: { id: "^[a-z]+$" }
      authenticateURLsMatching: [ ^http ]
  invalid:
    connector: generic_http
    listenOn: tcp://127.0.0.1:0
    credentials: { key: { from: env, get: SECRET } }
    config:
      headers: { Authorization: "{{ .key }}" }
      credentialValidations: { key: "^[0-9]+$" }
      authenticateURLsMatching: ^http
`;
}

describe("a file of Secretless with its HTTP connectors, by curl's -x", () => {
  let postern: Postern;
  const arrived: { url: string; headers: Record<string, string | string[] | undefined> }[] = [];
  const origin = createServer();
  const tlsOrigin = createTlsServer();
  const port = (server: typeof origin) => (server.address() as AddressInfo).port;

  before(async () => {
    const { server: leaf, ca } = await certificates();
    tlsOrigin.setSecureContext({ cert: readFileSync(leaf.cert), key: readFileSync(leaf.key) });
    for (const server of [origin, tlsOrigin]) {
      server.on('request', (request, response) => {
        arrived.push({ url: request.url ?? '', headers: request.headers });
        response.end('said');
      });
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
    }
    postern = await Postern.start(secretlessFile(port(origin), port(tlsOrigin as typeof origin)), {
      env: { SECRET: secret, SECRETLESS_HTTP_CA_BUNDLE: ca },
    });
  });

  after(async () => {
    await postern[Symbol.asyncDispose]();
    for (const server of [origin, tlsOrigin]) {
      server.closeAllConnections();
      server.close();
    }
  });

  async function curl(service: string, url: string, ...more: readonly string[]) {
    arrived.length = 0;
    const proxy = `http://127.0.0.1:${postern.port(service)}`;
    const words = [
      '-sS',
      '--max-time',
      '15',
      '-w',
      ' %{http_code}',
      '-x',
      proxy,
      '--noproxy',
      '',
      ...more,
      url,
    ];
    const { stdout } = await capture('curl', words);
    return { told: stdout, request: arrived[0] };
  }
  const url = (path: string) => `http://127.0.0.1:${port(origin)}${path}`;

  it('has basic_auth, under its oldest name', async () => {
    const { told, request } = await curl('basic', url('/basic/x'), '-H', 'authorization: mine');
    assert.equal(told, 'said 200');
    assert.equal(request?.headers['authorization'], `Basic ${btoa(`ann:${secret}`)}`);
    assert.equal(request?.url, '/basic/x');
  });

  it('refuses what no service has, and says what there is', async () => {
    const { told, request } = await curl('basic', url('/other'));
    assert.match(told, /no rule of this listener allows this request.*URLs matching \^http.* 403$/s);
    assert.equal(request, undefined);
  });

  it('fetches over TLS with forceSSL, trusting SECRETLESS_HTTP_CA_BUNDLE', async () => {
    const { told, request } = await curl('secure', `http://localhost:${port(tlsOrigin as typeof origin)}/s`);
    assert.equal(told, 'said 200');
    assert.equal(request?.headers['authorization'], `Basic ${btoa(`ann:${secret}`)}`);
  });

  it('has conjur', async () => {
    const { request } = await curl('conjur', url('/secrets'));
    assert.equal(request?.headers['authorization'], `Token token="${btoa(secret)}"`);
  });

  it('has generic_http, with headers, a parameter and what the credentials must look like', async () => {
    const { request } = await curl('generic', url('/g?own=1'));
    assert.equal(request?.headers['authorization'], `ApiKey ${btoa(`someone:${secret}`)}`);
    assert.equal(request?.headers['content-type'], 'application/json');
    assert.equal(request?.url, `/g?own=1&key=${encodeURIComponent(secret)}`);
    const refused = await curl('invalid', url('/g'));
    assert.match(refused.told, /502$/);
    assert.equal(refused.request, undefined);
  });

  it('has aws, which signs anew what is signed with a key that means nothing', async () => {
    const signature = `AWS4-HMAC-SHA256 Credential=X/20130524/eu-west-1/execute-api/aws4_request, SignedHeaders=host;x-amz-date, Signature=${'0'.repeat(64)}`;
    const headers = ['-H', `Authorization: ${signature}`, '-H', 'X-Amz-Date: 20130524T000000Z'];
    const { told, request } = await curl('aws', url('/a'), ...headers);
    assert.equal(told, 'said 200');
    assert.match(
      String(request?.headers['authorization']),
      /^AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE\/20130524\/eu-west-1\/execute-api\/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token, Signature=(?!0{64})[0-9a-f]{64}$/,
    );
    assert.equal(request?.headers['x-amz-security-token'], 'session-token');
  });

  it('takes http://secretless.empty for the service that the request is signed for', async () => {
    const signed = (service: string) => [
      '-H',
      `Authorization: AWS4-HMAC-SHA256 Credential=X/20130524/xx-test-1/${service}/aws4_request, SignedHeaders=host, Signature=0`,
    ];
    // No such region: the name that it looked up is in the log.
    const { told } = await curl('aws', 'http://secretless.empty/', ...signed('sts'));
    assert.match(told, /502$/);
    await postern.logged((line) => JSON.stringify(line).includes('sts.xx-test-1.amazonaws.com'));
    const unsigned = await curl('aws', 'http://secretless.empty/');
    assert.match(unsigned.told, /names no region and service.* 403$/s);
  });

  it('reaches no metadata service, whatever the expressions say', async () => {
    for (const host of ['169.254.169.254', '[fd00:ec2::254]', '2852039166']) {
      const { told } = await curl('generic', `http://${host}/latest/meta-data/`);
      assert.match(told, / (403|400)$/, host);
    }
  });
});
