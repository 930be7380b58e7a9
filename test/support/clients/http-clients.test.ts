import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';

import { big, HttpOrigin } from '../http-origin.ts';
import { certificates } from '../servers.ts';
import { withDriver } from './drivers.ts';
import { httpClients, uploaded } from './http-clients.ts';

const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

for (const client of httpClients)
  describe(`${client.name}, straight to a server`, () => {
    for (const scheme of ['http', 'https'])
      it(`gets, posts and uploads over ${scheme}`, async (t) => {
        if (!(await withDriver(t, client))) return;
        const { server } = await certificates();
        await using origin = await HttpOrigin.open(scheme === 'https' ? server : undefined);
        const url = (path: string) => `${scheme}://localhost:${origin.port}${path}`;
        const env = Object.fromEntries(
          ['SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'NODE_EXTRA_CA_CERTS'].map((name) => [
            name,
            server.ca,
          ]),
        );
        const got = await client.ask('get', url('/big'), env);
        assert.deepEqual([got.status, got.sha256], [200, sha256(big)], got.error);
        const posted = await client.ask('post', url('/x?y=1'), env);
        assert.equal(posted.status, 200, posted.error);
        assert.equal(posted.type, 'application/json');
        assert.deepEqual(JSON.parse(posted.text ?? ''), {
          method: 'POST',
          url: '/x?y=1',
          host: `localhost:${origin.port}`,
          length: 7,
          sha256: sha256(Buffer.from('{"n":1}')),
        });
        const sent = await client.ask('upload', url('/up'), env);
        assert.equal(sent.status, 200, sent.error);
        assert.equal(origin.last?.sha256, sha256(uploaded));
        assert.equal((await client.ask('get', url('/status/403'), env)).status, 403);
      });
  });
