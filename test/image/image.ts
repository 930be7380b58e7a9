// Run by run.sh, which builds the image first: not a part of `npm test`, because it needs a Docker engine.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmod, copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

import { psql } from '../support/clients/psql.ts';
import { capture, run } from '../support/servers/process.ts';
import { canary, server } from '../support/servers.ts';

const image = process.env['IMAGE'] ?? 'postern:test';

/** What a careful platform allows, and nothing more. */
const confined = [
  '--read-only',
  '--user=65532:65532',
  '--cap-drop=ALL',
  '--security-opt=no-new-privileges',
  '--pids-limit=64',
  '--memory=192m',
];

async function inspect(): Promise<{
  readonly User: string;
  readonly Entrypoint: readonly string[];
  readonly Env: readonly string[];
  readonly StopSignal: string;
  readonly Healthcheck?: unknown;
  readonly Labels: Readonly<Record<string, string>>;
}> {
  const { stdout } = await run('docker', ['image', 'inspect', '--format', '{{json .Config}}', image]);
  return JSON.parse(stdout) as Awaited<ReturnType<typeof inspect>>;
}

async function freePort(): Promise<number> {
  const listener = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => listener.once('listening', resolve));
  const { port } = listener.address() as { port: number };
  await new Promise((resolve) => listener.close(resolve));
  return port;
}

describe('the image', () => {
  it('is run by Node.js itself, as a user that is a number and not root', async () => {
    const config = await inspect();
    assert.match(config.User, /^[1-9]\d*:[1-9]\d*$/);
    assert.deepEqual(config.Entrypoint, ['node', '--use-system-ca', '/app/dist/main.js']);
    assert.equal(config.StopSignal, 'SIGTERM');
    assert.equal(config.Labels['org.opencontainers.image.title'], 'Postern');
  });

  it('holds the program and what it needs at run time, and no tool', async () => {
    const name = `postern-files-${process.pid}`;
    await run('docker', ['create', '--name', name, image]);
    after(() => run('docker', ['rm', '--force', name]));
    const { stdout } = await capture('sh', ['-c', `docker export ${name} | tar -t`]);
    const files = stdout.split('\n');
    assert.ok(files.includes('app/dist/main.js'));
    assert.deepEqual(
      files.filter((file) => /^app\/(?!dist\/|node_modules\/|package\.json$|$)/.test(file)),
      [],
    );
    const tools = ['typescript', '@biomejs', 'oxlint', 'pg', 'testcontainers', 'fast-check', 'node'];
    for (const tool of tools) assert.ok(!files.includes(`app/node_modules/${tool}/`), tool);
  });

  it('says its version without a network, a writable file system or a right', async () => {
    const { code, stdout } = await capture('docker', [
      'run',
      '--rm',
      '--network=none',
      ...confined,
      image,
      'version',
    ]);
    assert.equal(code, 0);
    assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
  });

  it('takes psql to PostgreSQL with a password from Vault, and ends in order', async () => {
    const [postgres, bao] = [await server('postgres18'), await server('openbao')];
    assert.ok(postgres.ca);
    const folder = await mkdtemp(join(tmpdir(), 'postern-image-'));
    after(() => rm(folder, { recursive: true, force: true }));
    await chmod(folder, 0o755);
    await copyFile(postgres.ca, join(folder, 'ca.pem'));
    await chmod(join(folder, 'ca.pem'), 0o644);
    const [port, adminPort] = [await freePort(), await freePort()];
    await writeFile(
      join(folder, 'postern.yaml'),
      `version: 2
providers:
  vault:
    kind: vault
    address: ${bao.address}
    auth: { method: approle, roleIdEnv: ROLE_ID, secretIdEnv: SECRET_ID }
services:
  app-db:
    connector: postgres
    listenOn: tcp://127.0.0.1:${port}
    credentials:
      username: { from: vault, get: secret/app/db#username }
      password: { from: vault, get: secret/app/db#password }
    config:
      host: ${postgres.host}
      port: ${postgres.port}
      tls: { ca: /etc/postern/ca.pem }
admin: { listenOn: "tcp://127.0.0.1:${adminPort}" }
`,
    );

    const name = `postern-image-${process.pid}`;
    const program = spawn(
      'docker',
      [
        'run',
        '--rm',
        `--name=${name}`,
        '--network=host',
        ...confined,
        `--volume=${folder}:/etc/postern:ro`,
        '--env=ROLE_ID',
        '--env=SECRET_ID',
        image,
      ],
      {
        env: { ...process.env, ROLE_ID: bao.roleId, SECRET_ID: bao.secretId },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    let output = '';
    for (const stream of [program.stdout, program.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => (output += text));
    const ended = new Promise<number | null>((resolve) => program.once('close', resolve));
    after(() => capture('docker', ['rm', '--force', name]));

    const deadline = Date.now() + 30_000;
    while (!output.includes('"ready"')) {
      assert.ok(Date.now() < deadline && program.exitCode === null, `not ready:\n${output}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const ready = await fetch(`http://127.0.0.1:${adminPort}/readyz?verbose`);
    assert.equal(ready.status, 200, await ready.text());

    const target = `host=127.0.0.1 port=${port} user=anything dbname=${postgres.database}`;
    const answer = await psql([target, '-Atc', 'SELECT current_user, count(*) FROM notes']);
    assert.equal(answer.stderr, '');
    assert.equal(answer.stdout, 'scram_user|100\n');

    await run('docker', ['stop', '--time=10', name]);
    assert.equal(await ended, 0, output);
    assert.match(output, /"auth":"scram-sha-256-plus".*"outcome":"ok"/);
    assert.match(output, /"msg":"stopped"/);
    for (const secret of [...Object.values(canary), bao.secretId]) assert.ok(!output.includes(secret));
  });
});
