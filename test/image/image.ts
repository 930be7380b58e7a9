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
  it('is run without a shell, as a user that is a number and not root', async () => {
    const config = await inspect();
    assert.match(config.User, /^[1-9]\d*:[1-9]\d*$/);
    assert.deepEqual(config.Entrypoint, ['/usr/local/bin/postern']);
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
    assert.ok(files.some((file) => /^app\/native\/postern-native\..*\.node$/.test(file)));
    assert.deepEqual(
      files.filter((file) =>
        /^app\/(?!dist\/|node_modules\/|native\/|(package|sbom\.cdx)\.json$|$)/.test(file),
      ),
      [],
    );
    const programs = /^(usr\/)?(local\/)?s?bin\/(.+)$/;
    assert.deepEqual(
      new Set(files.flatMap((file) => programs.exec(file)?.[3] ?? [])),
      new Set(['node', 'postern']),
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

  it('lists what it is made of: packages, crates, Node.js and its libraries', async () => {
    const name = `postern-list-${process.pid}`;
    await run('docker', ['create', '--name', name, image]);
    after(() => run('docker', ['rm', '--force', name]));
    const { stdout } = await capture('sh', ['-c', `docker cp ${name}:/app/sbom.cdx.json - | tar -xO`]);
    const list = JSON.parse(stdout) as {
      readonly bomFormat: string;
      readonly components: readonly { readonly name: string; readonly version: string }[];
    };
    assert.equal(list.bomFormat, 'CycloneDX');
    const versions = new Map(list.components.map((each) => [each.name, each.version]));
    for (const part of ['pino', 'napi', 'node', 'openssl', 'v8'])
      assert.match(versions.get(part) ?? '', /^\d+\./, part);
    assert.ok(!versions.has('typescript'));
  });

  it('obeys no variable that would have Node.js or the loader do something else', async () => {
    const variables = {
      NODE_OPTIONS: '--inspect=0.0.0.0:9229 --require /etc/postern/evil.js',
      NODE_TLS_REJECT_UNAUTHORIZED: '0',
      LD_PRELOAD: '/etc/postern/evil.so',
      OPENSSL_CONF: '/etc/postern/evil.cnf',
    };
    const given = Object.entries(variables).map(([name, value]) => `--env=${name}=${value}`);
    const { code, stdout, stderr } = await capture('docker', [
      'run',
      '--rm',
      '--network=none',
      ...confined,
      ...given,
      image,
      'version',
    ]);
    assert.equal(code, 0);
    assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
    const names = Object.keys(variables).toSorted((a, b) => (a < b ? -1 : 1));
    assert.equal(stderr, `postern: not obeyed in the image: ${names.join(', ')}\n`);
  });

  it('takes psql to PostgreSQL with a password from Vault, and ends in order', async (t) => {
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

    const started = performance.now();
    const deadline = Date.now() + 30_000;
    while (!output.includes('"ready"')) {
      assert.ok(Date.now() < deadline && program.exitCode === null, `not ready:\n${output}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    t.diagnostic(`ready ${Math.round(performance.now() - started)} ms after docker run`);
    const ready = await fetch(`http://127.0.0.1:${adminPort}/readyz?verbose`);
    assert.equal(ready.status, 200, await ready.text());

    const target = `host=127.0.0.1 port=${port} user=anything dbname=${postgres.database}`;
    const answer = await psql([target, '-Atc', 'SELECT current_user, count(*) FROM notes']);
    assert.equal(answer.stderr, '');
    assert.equal(answer.stdout, 'scram_user|100\n');

    // A process of the same user in the same container: reads neither memory nor environment, and nothing dumps core.
    const spy = `const { readFileSync: read } = require('fs'); const tries = {};
for (const name of ['environ', 'mem', 'maps']) try { read('/proc/1/' + name); tries[name] = 'read'; } catch (e) { tries[name] = e.code; }
const core = /^Max core file size +(\\d+) +(\\d+)/m.exec(read('/proc/1/limits', 'utf8')).slice(1).map(Number);
const heap = /--max-old-space-size-percentage=50/.test(read('/proc/1/cmdline', 'latin1'));
console.log(JSON.stringify({ tries, core, heap }));`;
    const seen = JSON.parse((await run('docker', ['exec', name, 'node', '-e', spy])).stdout) as {
      readonly tries: Readonly<Record<string, string>>;
      readonly core: readonly number[];
      readonly heap: boolean;
    };
    assert.deepEqual(seen.tries, { environ: 'EACCES', mem: 'EACCES', maps: 'EACCES' });
    assert.ok(
      seen.core.every((bytes) => bytes <= 1),
      String(seen.core),
    );
    assert.equal(seen.heap, true);
    // The program's own wait, as in a hook.
    const waited = await capture('docker', [
      'exec',
      name,
      'postern',
      'wait',
      '--admin-listen',
      `tcp://127.0.0.1:${adminPort}`,
    ]);
    assert.equal(waited.code, 0, waited.stderr);

    await run('docker', ['stop', '--time=10', name]);
    assert.equal(await ended, 0, output);
    assert.match(output, /"auth":"scram-sha-256-plus".*"outcome":"ok"/);
    assert.match(output, /"msg":"stopped"/);
    for (const secret of [...Object.values(canary), bao.secretId]) assert.ok(!output.includes(secret));
  });
});
