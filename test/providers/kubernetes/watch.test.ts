import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, it } from 'node:test';

import { type FakeHttp, fakeHttp, type Said } from '../../support/fake-http.ts';
import { until } from '../../support/session.ts';
import { failure, never, type Opened, open, texts } from '../opening.ts';

const folder = mkdtempSync(join(tmpdir(), 'postern-watch-'));
const tokenFile = join(folder, 'token');
writeFileSync(tokenFile, 'KUBE-CANARY-token');
after(() => rmSync(folder, { recursive: true }));

const object = (value: string, version: string) => ({
  kind: 'Secret',
  metadata: { name: 'db', resourceVersion: version },
  data: { key: Buffer.from(value).toString('base64') },
});
const line = (type: string, content: object) => `${JSON.stringify({ type, object: content })}\n`;

/** A FAKE of an API server, for watches that no real one ends in such ways. */
describe('a watch of the provider "kubernetes"', () => {
  let api: FakeHttp;
  let provider: Opened;
  /** What GET and list answer. */
  let stored: { value: string; version: string };
  /** Watches that are open, the newest last; `behave` may end them at once. */
  let watches: { readonly path: string; readonly response: ServerResponse }[];
  let onWatch: (response: ServerResponse, count: number) => Said | undefined;

  const count = (what: 'get' | 'list' | 'watch') =>
    api.seen.filter(({ path }) =>
      what === 'get'
        ? path.endsWith('/secrets/db')
        : path.includes('watch=true') === (what === 'watch') && path.includes('fieldSelector'),
    ).length;
  const value = async () => (await texts(provider, 'db#key'))[0];
  /** Waits until `expected` is answered without a request. */
  const watched = (expected: string) =>
    until(`"${expected}" is watched`, async () => {
      const before = api.seen.length;
      return (await value().catch(() => '')) === expected && api.seen.length === before;
    });

  beforeEach(async () => {
    stored = { value: 'KUBE-CANARY-one', version: '1' };
    watches = [];
    onWatch = () => undefined;
    api = await fakeHttp(({ path, headers }, response) => {
      if (headers.authorization !== 'Bearer KUBE-CANARY-token') return { status: 401 };
      const url = new URL(path, 'http://x');
      if (url.pathname.endsWith('/secrets/db'))
        return { status: 200, json: object(stored.value, stored.version) };
      assert.equal(url.searchParams.get('fieldSelector'), 'metadata.name=db');
      if (!url.searchParams.has('watch')) {
        // Items of a real list have no kind.
        const { metadata, data } = object(stored.value, stored.version);
        const items = [{ metadata, data }];
        return {
          status: 200,
          json: { kind: 'SecretList', metadata: { resourceVersion: stored.version }, items },
        };
      }
      watches.push({ path, response });
      const said = onWatch(response, watches.length);
      if (said) return said;
      response.writeHead(200, { 'content-type': 'application/json' });
      response.flushHeaders();
      return 'by hand';
    });
    provider = open('kubernetes', { server: api.url, tokenFile, namespace: 'ns', watch: true, retries: 0 });
  });
  afterEach(async () => {
    const started = performance.now();
    await provider.close(AbortSignal.timeout(20_000));
    assert.ok(performance.now() - started < 10_000, 'closing does not wait for the server');
    assert.doesNotMatch(provider.logged(), /CANARY/);
    await api.stop();
  });
  const newest = () => {
    const last = watches.at(-1);
    assert.ok(last);
    return last;
  };

  it('starts at the version of the list, and goes on from the last one that it was told', async () => {
    await value();
    await watched('KUBE-CANARY-one');
    assert.match(newest().path, /resourceVersion=1&/);
    newest().response.write(line('MODIFIED', object('two', '5')));
    await watched('two');
    newest().response.write(line('BOOKMARK', { kind: 'Secret', metadata: { resourceVersion: '9' } }));
    newest().response.end();
    await until('it is watched again', () => watches.length === 2);
    assert.match(newest().path, /resourceVersion=9&/);
    await watched('two');
    assert.equal(count('list'), 1);
  });

  it('understands events that come one byte at a time, several in one piece, and with a half at the end', async () => {
    await value();
    await watched('KUBE-CANARY-one');
    for (const byte of Buffer.from(line('MODIFIED', object('slow', '2'))))
      newest().response.write(Buffer.of(byte));
    await watched('slow');
    const next = line('MODIFIED', object('half', '5'));
    newest().response.write(
      line('MODIFIED', object('a', '3')) + line('MODIFIED', object('b', '4')) + next.slice(0, 30),
    );
    await watched('b');
    newest().response.write(next.slice(30));
    await watched('half');
  });

  for (const [how, end] of [
    [
      'by an event',
      () => newest().response.write(line('ERROR', { kind: 'Status', code: 410, reason: 'Expired' })),
    ],
    [
      'by its status',
      () => {
        onWatch = (_, nth) => (nth === 2 ? { status: 410, json: { kind: 'Status', code: 410 } } : undefined);
        newest().response.end();
      },
    ],
  ] as const)
    it(`lists again when the server has forgotten the version, as it says ${how}`, async () => {
      await value();
      await watched('KUBE-CANARY-one');
      stored = { value: 'listed', version: '77' };
      end();
      await watched('listed');
      assert.match(newest().path, /resourceVersion=77&/);
      assert.equal(count('list'), 2);
    });

  for (const [what, words, told] of [
    ['garbage', 'KUBE-CANARY not json\n', /not valid JSON/],
    ['an event without an object', '{"type":"MODIFIED"}\n', /no object/],
    ['an error of the server', line('ERROR', { kind: 'Status', code: 500 }), /ended it with an error/],
    ['an event of more than 4 MiB', 'x'.repeat(4_300_000), /larger than 4 MiB/],
  ] as const)
    it(`is not trusted after ${what}: the secret is read until the next watch is open`, async () => {
      await value();
      await watched('KUBE-CANARY-one');
      let open = false;
      onWatch = () => (open ? undefined : { status: 503 });
      stored = { value: 'read', version: '2' };
      newest().response.write(words);
      await until(
        'it is read',
        async () => (await value()) === 'read' && provider.logged().includes('not watched'),
      );
      assert.match(provider.logged(), told);
      open = true;
      await watched('read');
      assert.match(provider.logged(), /watched again/);
    });

  it('is not trusted once its connection is cut in the middle of an event', async () => {
    await value();
    await watched('KUBE-CANARY-one');
    onWatch = () => ({ status: 503 });
    newest().response.write('{"type":"MODIFIED","object":{"kind":');
    stored = { value: 'read', version: '2' };
    newest().response.destroy();
    await until('it is read', async () => (await value()) === 'read');
    await provider.fetch(['db#key'], never);
  });

  it('forgets a secret that was deleted, and says what the server says', async () => {
    await value();
    await watched('KUBE-CANARY-one');
    newest().response.write(line('DELETED', object('KUBE-CANARY-one', '2')));
    const before = count('get');
    await until('it is read', async () => {
      await value();
      return count('get') > before;
    });
  });

  it('asks a server that ends every watch at once ever more slowly', async () => {
    onWatch = (response) => {
      response.writeHead(200);
      response.end();
      return 'by hand';
    };
    await value();
    await new Promise((later) => setTimeout(later, 1500));
    // 0.2, 0.4, 0.8 s ..., each by up to half less.
    assert.ok(watches.length >= 2 && watches.length <= 6, `${watches.length} watches in 1.5 s`);
  });

  it('asks a server that refuses the watch ever more slowly, and reads meanwhile', async () => {
    onWatch = () => ({ status: 403, json: { kind: 'Status', message: 'no' } });
    await value();
    await new Promise((later) => setTimeout(later, 1500));
    assert.ok(count('list') >= 2 && count('list') <= 6, `${count('list')} lists in 1.5 s`);
    assert.equal(await value(), 'KUBE-CANARY-one');
    assert.match(provider.logged(), /watching the secret \\"ns\/db\\": refused \(HTTP 403\)/);
  });

  it('ends with the provider, also while the server does not answer', async () => {
    onWatch = () => 'by hand';
    await value();
    await until('it is asked for', () => watches.length === 1);
    await provider.close(AbortSignal.timeout(2000));
    assert.equal((await failure(provider.fetch(['db#key'], never))).code, 'SHUTDOWN');
  });
});
