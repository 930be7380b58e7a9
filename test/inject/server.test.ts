import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { connect as plain } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { connect } from 'node:tls';
import { pino } from 'pino';
import { CertificateFiles } from '../../src/inject/certificates.ts';
import { type RequestOutcome, WebhookServer } from '../../src/inject/server.ts';
import { parseSettings } from '../../src/inject/settings.ts';
import { certificates } from '../support/servers.ts';
import { pod } from './cluster.ts';

const settings = parseSettings('sidecar: { image: "registry.example.com/postern:0.1.0" }', 'x').sidecar;
const outcomes: RequestOutcome[] = [];
const agent = new Agent({ rejectUnauthorized: false, keepAlive: true });
let webhook: WebhookServer;
let port = 0;

before(async () => {
  const { server } = await certificates();
  const identity = { cert: await readFile(server.cert), key: await readFile(server.key) };
  webhook = await WebhookServer.open({ kind: 'tcp', host: '127.0.0.1', port: 0 }, identity, {
    maxRequests: 4,
    log: pino({ level: 'silent' }),
    surroundings: (everyPod) => ({ settings, everyPod, native: true, version: '1.2.3' }),
    observe: (outcome) => outcomes.push(outcome),
  });
  assert.ok(
    identity.key.every((byte) => byte === 0),
    'the key is wiped',
  );
  port = webhook.address.kind === 'tcp' ? webhook.address.port : 0;
});
after(async () => {
  agent.destroy();
  await webhook.close();
});

interface Sent {
  readonly path?: string;
  readonly method?: string;
  readonly type?: string;
  readonly body?: string | Buffer;
}

async function send({ path = '/pods', method = 'POST', type = 'application/json', body = '' }: Sent) {
  const asked = request({ host: '127.0.0.1', port, path, method, agent, headers: { 'content-type': type } });
  asked.end(body);
  const [response] = (await once(asked, 'response')) as [IncomingMessage];
  // Who was answered before the end of what it sends fails to send the rest.
  asked.on('error', () => {});
  let text = '';
  for await (const chunk of response) text += String(chunk);
  return { status: response.statusCode, text };
}

const review = (object: unknown, more: object = {}) =>
  JSON.stringify({
    apiVersion: 'admission.k8s.io/v1',
    kind: 'AdmissionReview',
    request: {
      uid: 'u-1',
      kind: { group: '', version: 'v1', kind: 'Pod' },
      operation: 'CREATE',
      namespace: 'shop',
      object,
      ...more,
    },
  });

const responseOf = (text: string) =>
  (
    JSON.parse(text) as {
      response: { uid: string; allowed: boolean; patch?: string; status?: { message: string } };
    }
  ).response;

describe('the listener of the webhook', () => {
  it('answers a review with its own uid, and with a patch only where something changes', async () => {
    const asked = responseOf(
      (await send({ body: review(pod({ 'postern.dev/inject': 'true' })), path: '/pods?timeout=5s' })).text,
    );
    assert.equal(asked.uid, 'u-1');
    assert.ok(asked.allowed && asked.patch !== undefined);
    const unasked = responseOf((await send({ body: review(pod({})) })).text);
    assert.deepEqual(unasked, { uid: 'u-1', allowed: true });
    const everyPod = responseOf((await send({ body: review(pod({})), path: '/namespaces' })).text);
    assert.ok(everyPod.patch !== undefined);
  });

  it('touches nothing but new pods', async () => {
    const asking = pod({ 'postern.dev/inject': 'true' });
    for (const more of [
      { operation: 'UPDATE' },
      { kind: { group: 'apps', version: 'v1', kind: 'Deployment' } },
      { kind: { version: 'v2', kind: 'Pod', group: '' } },
      { subResource: 'ephemeralcontainers' },
    ])
      assert.deepEqual(responseOf((await send({ body: review(asking, more) })).text), {
        uid: 'u-1',
        allowed: true,
      });
  });

  it('refuses what is no review, without a word of it in the answer', async () => {
    const garbage = [
      { body: '' },
      { body: 'null' },
      { body: '{"kind":"AdmissionReview"}' },
      { body: review({}).replace('/v1"', '/v1beta1"') },
      { body: '['.repeat(100_000) },
      { body: Buffer.from([0xff, 0xfe, 0]) },
      { body: JSON.stringify({ request: { uid: 'marker' } }) },
    ];
    for (const each of garbage) {
      const { status, text } = await send(each);
      assert.equal(status, 400);
      assert.equal(text, 'no AdmissionReview of admission.k8s.io/v1\n');
    }
    assert.equal((await send({ method: 'GET' })).status, 405);
    assert.equal((await send({ path: '/' })).status, 404);
    assert.equal((await send({ type: 'text/plain', body: review({}) })).status, 415);
    // Whoever sends so much may find the connection closed before it has read the answer.
    const large = send({ body: review(pod({})).padEnd(4 * 1024 * 1024 + 1) }).catch(
      ({ code }: NodeJS.ErrnoException) => ({
        status: code === 'EPIPE' || code === 'ECONNRESET' ? 413 : code,
      }),
    );
    assert.equal((await large).status, 413);
    assert.equal((await send({ body: review(pod({})) })).status, 200);
  });

  it('takes a pod that asks and is none for a refusal, and no failure', async () => {
    const metadata = { annotations: { 'postern.dev/inject': 'true' } };
    for (const object of [
      { metadata },
      { metadata, spec: null },
      { metadata, spec: { containers: [] } },
      { metadata, spec: { containers: [1] } },
    ]) {
      const { allowed, status } = responseOf((await send({ body: review(object) })).text);
      assert.equal(allowed, false);
      assert.equal(status?.message, 'postern: this is no pod that Kubernetes would take');
    }
    assert.ok(!outcomes.includes('failed'));
  });

  it('tells those beyond its limit to come again, and serves on when they have gone', async () => {
    const slow = Array.from({ length: 4 }, () => {
      const asked = request({
        host: '127.0.0.1',
        port,
        path: '/pods',
        method: 'POST',
        rejectUnauthorized: false,
        headers: { 'content-type': 'application/json', 'content-length': 100 },
      });
      asked.on('error', () => {});
      asked.write('{');
      return asked;
    });
    const end = Date.now() + 20_000;
    while ((await send({ body: review(pod({})) })).status !== 503) assert.ok(Date.now() < end, 'no limit');
    for (const each of slow) each.destroy();
    while ((await send({ body: review(pod({})) })).status !== 200)
      assert.ok(Date.now() < end, 'it does not recover');
    assert.ok(outcomes.includes('overloaded'));
  });

  it('outlives garbage before and after the handshake', async () => {
    for (const bytes of [
      'GET / HTTP/1.1\r\n\r\n',
      '\u0000\u0001',
      'POST /pods HTTP/1.1\r\ncontent-length: x\r\n\r\n',
    ]) {
      const raw = plain(port, '127.0.0.1');
      raw.on('error', () => {});
      raw.end(bytes);
      raw.resume();
      await once(raw, 'close');
      const secure = connect({ port, host: '127.0.0.1', rejectUnauthorized: false });
      secure.on('error', () => {});
      await once(secure, 'secureConnect');
      secure.end(bytes);
      secure.resume();
      await once(secure, 'close');
    }
    assert.equal((await send({ body: review(pod({})) })).status, 200);
  });

  it('shows another certificate from the next connection on, and ends no other one', async () => {
    const { 'wrong-host': other } = await certificates();
    const open = connect({ port, host: '127.0.0.1', rejectUnauthorized: false });
    await once(open, 'secureConnect');
    const before = open.getPeerX509Certificate()?.fingerprint256;
    webhook.show({ cert: await readFile(other.cert), key: await readFile(other.key) });
    const next = connect({ port, host: '127.0.0.1', rejectUnauthorized: false });
    await once(next, 'secureConnect');
    assert.notEqual(next.getPeerX509Certificate()?.fingerprint256, before);
    next.destroy();
    open.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n');
    const [answer] = (await once(open, 'data')) as [Buffer];
    assert.match(answer.toString(), /^HTTP\/1\.1 404 /);
    open.destroy();
  });
});

describe('files of a certificate that somebody else renews', () => {
  it('are read again when they change, and not while they do not belong together', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'postern-inject-'));
    t.after(() => rm(folder, { recursive: true }));
    const { server, 'wrong-host': other } = await certificates();
    const [cert, key] = [`${folder}/tls.crt`, `${folder}/tls.key`];
    const files = new CertificateFiles(cert, key);
    await assert.rejects(files.look(), { code: 'CONFIG_INVALID' });
    await writeFile(cert, await readFile(server.cert));
    await writeFile(key, await readFile(server.key));
    assert.deepEqual((await files.look())?.cert, await readFile(server.cert));
    assert.equal(await files.look(), undefined);
    await rm(cert);
    await writeFile(cert, await readFile(other.cert));
    await assert.rejects(files.look(), /cannot be read/);
    await rm(key);
    await writeFile(key, await readFile(other.key));
    assert.deepEqual((await files.look())?.cert, await readFile(other.cert));
  });
});
