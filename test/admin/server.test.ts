import assert from 'node:assert/strict';
import { request } from 'node:http';
import { after, before, describe, it } from 'node:test';

import { Ledger } from '../../src/admin/ledger.ts';
import { Metrics } from '../../src/admin/metrics.ts';
import { AdminServer } from '../../src/admin/server.ts';
import { escaping, operation } from './operation.ts';

interface Reply {
  readonly status: number;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly text: string;
}

/** Any Host and any method, which fetch would not send. */
async function ask(
  port: number,
  path: string,
  { method = 'GET', headers = {} }: { method?: string; headers?: Record<string, string> } = {},
): Promise<Reply> {
  const { promise, resolve, reject } = Promise.withResolvers<Reply>();
  const asked = request({ host: '127.0.0.1', port, path, method, headers, agent: false }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text }));
  });
  asked.on('error', reject);
  asked.end();
  return await promise;
}

describe('the admin listener', () => {
  let server: AdminServer;
  let quitting: AdminServer;
  let quits = 0;
  let why: string | undefined;
  const port = (of = server) => (of.address as { readonly port: number }).port;

  before(async () => {
    const metrics = new Metrics('1.2.3', { ready: () => true, services: () => [] });
    const options = {
      health: {
        notReady: () => why,
        detail: async () => ({
          services: [{ name: 'db', address: 'tcp://127.0.0.1:1', active: 1, limit: 2, notes: ['a note'] }],
          providers: [
            { name: 'vault', error: undefined },
            { name: 'env', error: 'no such thing' },
          ],
        }),
      },
      operation: operation(metrics, new Ledger()),
      hosts: ['postern.internal'],
    };
    const anywhere = { kind: 'tcp', host: '127.0.0.1', port: 0 } as const;
    server = await AdminServer.open(anywhere, { ...options, quit: undefined });
    quitting = await AdminServer.open(anywhere, { ...options, quit: () => (quits += 1) });
  });

  after(() => {
    server.close();
    quitting.close();
  });

  it('answers only to addresses, localhost and the names it was given', async () => {
    const named = async (host: string) => (await ask(port(), '/livez', { headers: { host } })).status;
    for (const host of [
      '127.0.0.1',
      '10.2.3.4:9090',
      '[::1]:9090',
      'localhost',
      'LOCALHOST:80',
      'localhost.',
      'postern.internal:9090',
    ])
      assert.equal(await named(host), 200, host);
    for (const host of [
      'evil.example',
      'evil.example:9090',
      '127.0.0.1.evil.example',
      'localhost.evil.example',
      '[::1',
      '1',
      '127.1',
      'a@127.0.0.1',
    ])
      assert.equal(await named(host), 421, host);
  });

  it('lets nobody else frame it, sniff it, keep it or run anything on it', async () => {
    for (const path of ['/', '/?parts', '/status', '/metrics', '/livez', '/nowhere']) {
      const { headers } = await ask(port(), path);
      assert.equal(headers['cache-control'], 'no-store', path);
      assert.equal(headers['x-content-type-options'], 'nosniff', path);
      assert.equal(headers['cross-origin-resource-policy'], 'same-origin', path);
      assert.match(
        String(headers['content-security-policy']),
        /^default-src 'none';.*frame-ancestors 'none'/,
        path,
      );
      assert.equal(headers['access-control-allow-origin'], undefined, path);
    }
  });

  it('answers probes as text, and to programs as JSON', async () => {
    why = undefined;
    assert.equal((await ask(port(), '/readyz')).text, 'ok\n');
    assert.equal(
      (await ask(port(), '/readyz?verbose')).text,
      'service db: listening on tcp://127.0.0.1:1, 1 of 2 connections\nservice db: a note\nprovider vault: ok\nprovider env: no such thing\nok\n',
    );
    const whole = await ask(port(), '/readyz?verbose&format=json');
    assert.deepEqual(JSON.parse(whole.text), {
      status: 'ok',
      services: [{ name: 'db', address: 'tcp://127.0.0.1:1', active: 1, limit: 2, notes: ['a note'] }],
      providers: [
        { name: 'vault', status: 'ok' },
        { name: 'env', status: 'failing', error: 'no such thing' },
      ],
    });
    why = 'draining';
    const unready = await ask(port(), '/startupz', { headers: { accept: 'application/json' } });
    assert.equal(unready.status, 503);
    assert.match(String(unready.headers['content-type']), /^application\/json/);
    assert.deepEqual(JSON.parse(unready.text), { status: 'draining' });
    assert.equal((await ask(port(), '/readyz')).text, 'draining\n');
    why = undefined;
  });

  it('gives a HEAD no body, and refuses other methods', async () => {
    const head = await ask(port(), '/livez', { method: 'HEAD' });
    assert.deepEqual([head.status, head.text], [200, '']);
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH']) {
      const refused = await ask(port(), '/metrics', { method });
      assert.equal(refused.status, 405, method);
      assert.equal(refused.headers['allow'], 'GET, HEAD');
    }
    assert.equal((await ask(port(), '/livezz')).status, 404);
  });

  it('gives metrics in the format that was asked for', async () => {
    assert.match(
      String((await ask(port(), '/metrics')).headers['content-type']),
      /^text\/plain; version=0\.0\.4/,
    );
    const open = await ask(port(), '/metrics', { headers: { accept: 'application/openmetrics-text' } });
    assert.match(String(open.headers['content-type']), /^application\/openmetrics-text; version=1\.0\.0/);
    assert.match(open.text, /# EOF\n$/);
  });

  it('knows no /quit unless it is configured', async () => {
    for (const method of ['GET', 'POST'])
      assert.equal((await ask(port(), '/quit', { method, headers: { 'x-postern': 'quit' } })).status, 404);
  });

  it('quits for whoever means it, and for no web page', async () => {
    const quit = (headers: Record<string, string>, method = 'POST') =>
      ask(port(quitting), '/quit', { method, headers });
    quits = 0;
    assert.equal((await quit({ 'x-postern': 'quit' }, 'GET')).status, 405);
    assert.equal((await quit({ 'x-postern': 'quit' }, 'OPTIONS')).status, 405);
    assert.equal((await quit({})).status, 403);
    // What a form, or fetch without CORS, may send.
    for (const type of [
      'text/plain',
      'application/x-www-form-urlencoded',
      'multipart/form-data',
      'text/plain; application/json',
    ])
      assert.equal((await quit({ 'content-type': type })).status, 403, type);
    assert.equal((await quit({ 'x-postern': 'quit', origin: 'https://evil.example' })).status, 403);
    assert.equal((await quit({ 'x-postern': 'quit', host: 'evil.example' })).status, 421);
    assert.equal(quits, 0);

    assert.equal((await quit({ 'x-postern': 'quit' })).status, 202);
    assert.equal((await quit({ 'content-type': 'application/json; charset=utf-8' })).status, 202);
    const end = Date.now() + 20_000;
    while (quits < 2 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10));
    assert.equal(quits, 2);
  });

  it('survives what no HTTP client sends', async () => {
    const { connect } = await import('node:net');
    for (const bytes of [
      '\0\0\0\0',
      'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
      'GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n',
      'POST /quit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\nx',
      `GET /${'x'.repeat(100_000)} HTTP/1.1\r\n\r\n`,
    ]) {
      const socket = connect(port(), '127.0.0.1');
      socket.on('error', () => {});
      socket.end(bytes);
      socket.resume();
      await new Promise((resolve) => socket.once('close', resolve));
    }
    assert.equal((await ask(port(), '/livez')).status, 200);
  });

  it('escapes whatever text comes to the page', async () => {
    const { text } = await ask(port(), '/');
    assert.ok(!text.includes(escaping));
    assert.ok(text.includes('&#60;img src=x onerror=alert(1)&#62;'));
  });
});
