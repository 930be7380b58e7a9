import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import { canary, withServer } from '../support/servers.ts';
import { until } from '../support/session.ts';

describe('a Secret of Kubernetes', () => {
  it('logs in to PostgreSQL, and a changed one does so without a restart', async (t) => {
    const [cluster, postgres] = [await withServer(t, 'kubernetes'), await withServer(t, 'postgres18')];
    if (!cluster || !postgres) return;
    const folder = await mkdtemp(join(tmpdir(), 'postern-kubernetes-'));
    t.after(() => rm(folder, { recursive: true }));
    const namespace = await cluster.namespace();
    await cluster.secret(namespace, 'db', { username: 'scram_user', password: 'not yet' });
    await cluster.permit(namespace, ['get', 'list', 'watch'], ['db']);
    const tokenFile = join(folder, 'token');
    await writeFile(tokenFile, await cluster.token(namespace));

    await using postern = await Postern.start(`version: 2
providers:
  kubernetes:
    kind: kubernetes
    server: ${cluster.url}
    ca: ${cluster.ca}
    tokenFile: ${tokenFile}
    namespace: ${namespace}
    watch: true
services:
  db:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials:
      username: { from: kubernetes, get: db#username }
      password: { from: kubernetes, get: db#password }
    config: { host: localhost, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
`);
    const target = `host=127.0.0.1 port=${postern.port('db')} dbname=app user=anybody sslmode=disable`;
    const ask = () => psql([target, '-Atc', 'SELECT current_user']);
    assert.match((await ask()).stderr, /28P01|password authentication|rejected/i);
    await cluster.secret(namespace, 'db', { username: 'scram_user', password: canary.postgres });
    await until('the new password is used', async () => (await ask()).stdout === 'scram_user\n');
    const line = await postern.logged((each) => each['outcome'] === 'ok' && each['service'] === 'db');
    assert.match(String(line['credential']), /^kubernetes@\d+$/);
  });
});
