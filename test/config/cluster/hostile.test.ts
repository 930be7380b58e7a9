import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';

import { FollowedResource } from '../../../src/config/cluster/follow.ts';

const object = (generation: number, version: string) => ({
  metadata: { uid: 'one', resourceVersion: version, generation },
  spec: { services: { generation: String(generation) } },
});

type Watch = (response: ServerResponse) => void;

/** A server that answers as an API server does, but for its watches, each of which is played once; the last one stays. */
async function scene(t: TestContext, watches: readonly Watch[]) {
  const seen = { lists: 0, watches: 0, changes: 0 };
  const state = { generation: 1 };
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    const url = new URL(request.url ?? '/', 'http://api');
    if (request.method !== 'GET') return response.writeHead(403).end('{}');
    if (!url.pathname.endsWith('/configurations'))
      return response.end(JSON.stringify(object(state.generation, 'v')));
    if (url.searchParams.get('watch') === 'true') {
      seen.watches += 1;
      return (watches[seen.watches - 1] ?? ((open) => open.write('\n')))(response);
    }
    seen.lists += 1;
    assert.equal(url.searchParams.get('fieldSelector'), 'metadata.name=orders');
    const items = [object(state.generation, 'v')];
    return response.end(
      JSON.stringify({ kind: 'ConfigurationList', metadata: { resourceVersion: 'v' }, items }),
    );
  };
  const api = createServer((request, response) => void answer(request, response)).listen(0, '127.0.0.1');
  await once(api, 'listening');
  const folder = await mkdtemp(join(tmpdir(), 'postern-hostile-'));
  const kubeconfig = join(folder, 'config');
  const server = `http://127.0.0.1:${(api.address() as AddressInfo).port}`;
  await writeFile(
    kubeconfig,
    JSON.stringify({
      'current-context': 'c',
      contexts: [{ name: 'c', context: { cluster: 'c', user: 'u', namespace: 'shop' } }],
      clusters: [{ name: 'c', cluster: { server } }],
      users: [{ name: 'u', user: {} }],
    }),
  );
  const resource = new FollowedResource('k8s:///orders', {
    environment: { KUBECONFIG: kubeconfig },
    log: pino({ level: 'silent' }),
    patience: 0,
  });
  t.after(async () => {
    await resource.close();
    api.closeAllConnections();
    api.close();
    await rm(folder, { recursive: true });
  });
  assert.deepEqual((await resource.read()).spec, object(1, '').spec);
  resource.follow(
    () => (seen.changes += 1),
    () => undefined,
  );
  return { seen, state, resource };
}

async function until(what: string, holds: () => boolean): Promise<void> {
  const end = Date.now() + 20_000;
  while (!holds()) {
    assert.ok(Date.now() < end, `waited in vain for ${what}`);
    await sleep(10);
  }
}

const line = (type: string, about: object) => `${JSON.stringify({ type, object: about })}\n`;
const stays: Watch = (response) => void response.write(line('BOOKMARK', object(1, 'w')));

describe('following a configuration whose API server is odd', { timeout: 60_000 }, () => {
  const gone: readonly (readonly [string, Watch])[] = [
    ['with the status 410', (response) => void response.writeHead(410).end('{}')],
    ['with an event of the code 410', (response) => void response.end(line('ERROR', { code: 410 }))],
  ];
  for (const [how, forgotten] of gone)
    it(`lists it again when its version is forgotten, which is said ${how}`, async (t) => {
      const { seen, state, resource } = await scene(t, [
        (response) => {
          state.generation = 2;
          forgotten(response);
        },
        stays,
      ]);
      await until('the change', () => seen.changes === 1);
      assert.ok(seen.lists >= 2);
      assert.equal((await resource.read()).generation, 2);
    });

  const broken: readonly (readonly [string, Watch])[] = [
    [
      'that is cut in the middle of an event',
      (response) => response.write('{"type":"MODIFIED","obj', () => response.destroy()),
    ],
    ['of lines that are no JSON', (response) => void response.end('<html>\n')],
    ['with an event that has no object', (response) => void response.end('{"type":"MODIFIED"}\n')],
    [
      'with an object of another form',
      (response) => void response.end(line('MODIFIED', { metadata: {}, spec: 7 })),
    ],
    ['with an event that has no end', (response) => void response.write('x'.repeat(5 * 1024 * 1024))],
    ['that is refused', (response) => void response.writeHead(403).end('{}')],
    ['that fails', (response) => void response.writeHead(500).end('{}')],
  ];
  for (const [what, watch] of broken)
    it(`goes on after a watch ${what}, with what it had until then`, async (t) => {
      const { seen, state, resource } = await scene(t, [
        watch,
        (response) => {
          state.generation = 2;
          response.write(line('MODIFIED', object(2, 'x')));
        },
      ]);
      await until('the change', () => seen.changes === 1);
      assert.equal((await resource.read()).generation, 2);
    });

  it('says nothing of events in which the spec is the same', async (t) => {
    const { seen } = await scene(t, [
      (response) => {
        for (let i = 0; i < 50; i++) response.write(line('MODIFIED', object(1, `v${i}`)));
        response.end();
      },
      stays,
    ]);
    await until('the next watch', () => seen.watches === 2);
    assert.equal(seen.changes, 0);
  });
});
