import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, describe, it } from 'node:test';

import { withDriver } from '../support/clients/drivers.ts';
import { httpClients, pythonWebSocket, uploaded } from '../support/clients/http-clients.ts';
import { big, HttpOrigin } from '../support/http-origin.ts';
import { clientEnvironment, type HttpService, Papers, performHttp, token } from './http-stage.ts';
import { shared } from './stage.ts';

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
const ends: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const end of ends.toReversed()) await end();
});

const scene = shared(async () => {
  const papers = await Papers.make();
  ends.push(() => papers[Symbol.asyncDispose]());
  const [api, other] = [
    await HttpOrigin.open(await papers.leaf('api.test')),
    await HttpOrigin.open(await papers.leaf('other.test')),
  ];
  ends.push(
    () => api[Symbol.asyncDispose](),
    () => other[Symbol.asyncDispose](),
  );
  const service: HttpService = {
    config: {
      match: [`https://api.test:${api.port}/**`],
      tls: { ca: papers.serversCa },
      intercept: { caCert: papers.local.cert, caKey: papers.local.key },
    },
  };
  const postern = await performHttp({ api: service }, { 'api.test': '127.0.0.1', 'other.test': '127.0.0.1' });
  ends.push(() => postern[Symbol.asyncDispose]());
  const env = clientEnvironment(postern.port('api'), papers.local.cert);
  return { papers, api, other, postern, env };
});

for (const client of httpClients)
  describe(`${client.name}, by CONNECT`, () => {
    it('gets, posts and uploads with a credential that it does not have', async (t) => {
      const here = await scene(t);
      if (!here || !(await withDriver(t, client))) return;
      const { api, env } = here;
      const url = (path: string) => `https://api.test:${api.port}${path}`;
      const got = await client.ask('get', url('/big'), env);
      assert.deepEqual([got.status, got.sha256], [200, sha256(big)], got.error);
      assert.equal(api.last?.authorization, `Bearer ${token}`);
      const posted = await client.ask('post', url('/x?y=1'), env);
      assert.equal(posted.status, 200, posted.error);
      assert.deepEqual(
        [api.last?.url, api.last?.length, api.last?.host],
        ['/x?y=1', 7, `api.test:${api.port}`],
      );
      assert.equal(api.last?.authorization, `Bearer ${token}`);
      const sent = await client.ask('upload', url('/up'), env);
      assert.equal(sent.status, 200, sent.error);
      assert.equal(api.last?.sha256, sha256(uploaded));
      assert.equal((await client.ask('get', url('/status/404'), env)).status, 404);
    });

    it('does not get to a host that no rule names', async (t) => {
      const here = await scene(t);
      if (!here || !(await withDriver(t, client))) return;
      const { other, env } = here;
      const answer = await client.ask('get', `https://other.test:${other.port}/`, env);
      assert.ok(answer.status === 0 || answer.status === 403, JSON.stringify(answer));
      assert.equal(other.connections, 0);
    });
  });
