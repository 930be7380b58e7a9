import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { injectPod } from '../../src/inject/pod.ts';
import { parseSettings } from '../../src/inject/settings.ts';
import { psql } from '../support/clients/psql.ts';
import { freePort } from '../support/servers/process.ts';
import { canary, withServer } from '../support/servers.ts';
import { eventually, pod } from './cluster.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));

interface Container {
  readonly name: string;
  readonly args: readonly string[];
  readonly startupProbe: { readonly httpGet: { readonly path: string } };
  readonly env: readonly { readonly name: string; readonly value: string }[];
}

describe('an injected pod', () => {
  it('works: the sidecar runs by its command line, its probe passes, and the application logs in by its variables', async (t) => {
    const postgres = await withServer(t, 'postgres18');
    if (!postgres) return;
    const folder = await mkdtemp(join(tmpdir(), 'postern-inject-'));
    t.after(() => rm(folder, { recursive: true }));
    const [port, adminPort] = [await freePort(), await freePort()];
    const config = join(folder, 'postern.yaml');
    await writeFile(
      config,
      `version: 2
services:
  orders-db:
    connector: postgres
    listenOn: tcp://127.0.0.1:${port}
    credentials: { username: scram_user, password: { from: env, get: PASSWORD } }
    config: { host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
`,
    );
    const settings = parseSettings('sidecar: { image: x, logLevel: debug }', 'x').sidecar;
    const annotations = {
      'postern.dev/inject': 'true',
      'postern.dev/env': `orders-db=postgres:${port}/app`,
      'postern.dev/admin-port': String(adminPort),
      'postern.dev/drain-timeout': '1s',
    };
    const made = injectPod(pod(annotations), { settings, everyPod: false, native: true, version: '1.2.3' });
    const { spec } = made.pod as { spec: { initContainers: Container[]; containers: Container[] } };
    const [sidecar, application] = [spec.initContainers[0], spec.containers[0]];
    assert.ok(sidecar && application);
    const words = sidecar.args.map((word) => (word === '/etc/postern/postern.yaml' ? config : word));
    const child = spawn(program, words, {
      env: { PATH: process.env['PATH'], HOME: folder, PASSWORD: canary.postgres },
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    const { path } = sidecar.startupProbe.httpGet;
    await eventually(
      () =>
        fetch(`http://127.0.0.1:${adminPort}${path}`).then(
          ({ status }) => status === 200,
          () => false,
        ),
      'the startup probe passes',
    );
    const env = Object.fromEntries(application.env.map(({ name, value }) => [name, value]));
    const query = ['-Atc', 'SELECT current_user, current_database()'];
    assert.equal((await psql(query, { env })).stdout.trim(), 'scram_user|app');
    assert.equal((await psql([env['ORDERS_DB_URL'] ?? '', ...query])).stdout.trim(), 'scram_user|app');
    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    assert.deepEqual(await exited, [0, null]);
  });
});
