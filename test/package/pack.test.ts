import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { nativeTargets } from '../../src/core/native.ts';
import { psql } from '../support/clients/psql.ts';
import { capture, run } from '../support/servers/process.ts';
import { canary, server } from '../support/servers.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));

let work: string;
/** An empty project that the package was installed into, far from the checkout. */
let project: string;
let packed: string[];
let environment: NodeJS.ProcessEnv;

/** The checkout without its history and its dependencies: packing builds, and the tree must not be touched. */
async function copyOfCheckout(): Promise<string> {
  const copy = join(work, 'checkout');
  await mkdir(copy);
  const { stdout } = await run('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z'], {
    cwd: root,
  });
  for (const file of stdout.split('\0').filter(Boolean)) {
    await mkdir(dirname(join(copy, file)), { recursive: true });
    await cp(join(root, file), join(copy, file)).catch((error: NodeJS.ErrnoException) => {
      // Deleted, and not yet committed as such.
      if (error.code !== 'ENOENT') throw error;
    });
  }
  await symlink(join(root, 'node_modules'), join(copy, 'node_modules'));
  return copy;
}

before(async () => {
  work = await mkdtemp(join(tmpdir(), 'postern-pack-'));
  project = join(work, 'project');
  await mkdir(project);
  // Whoever installs Postern has Node.js 24; npm is whichever this machine has.
  environment = {
    ...process.env,
    PATH: `${dirname(process.execPath)}:${process.env['PATH']}`,
    npm_config_audit: 'false',
    npm_config_fund: 'false',
    npm_config_loglevel: 'error',
  };
  const checkout = await copyOfCheckout();
  const pack = await run('npm', ['pack', '--json', '--pack-destination', work], {
    cwd: checkout,
    env: environment,
    timeout: 120_000,
  });
  // The build speaks before it, on the same stream.
  const listing = JSON.parse(pack.stdout.slice(pack.stdout.search(/^[[{]$/m))) as unknown;
  const [result] = Object.values(listing as Record<string, { filename: string; files: { path: string }[] }>);
  assert.ok(result);
  packed = result.files.map(({ path }) => path);
  await writeFile(join(project, 'package.json'), '{ "name": "elsewhere", "private": true }\n');
  await run('npm', ['install', join(work, result.filename)], {
    cwd: project,
    env: environment,
    timeout: 120_000,
  });
});

after(() => rm(work, { recursive: true, force: true }));

async function postern(...words: string[]): Promise<Awaited<ReturnType<typeof capture>>> {
  return await capture('npx', ['--no-install', 'postern', ...words], { cwd: project, env: environment });
}

describe('the package', () => {
  it('holds what runs and its documentation, no sources, no tests and no tools', () => {
    const expected =
      /^(LICENSE|README\.md|CHANGELOG\.md|SECURITY\.md|package\.json|bin\/postern|dist\/.*\.js|dist\/LICENSES\.txt|docs\/[\w/-]+\.md)$/;
    assert.deepEqual(
      packed.filter((path) => !expected.test(path)),
      [],
    );
    for (const needed of ['LICENSE', 'README.md', 'bin/postern', 'dist/main.js'])
      assert.ok(packed.includes(needed), needed);
  });

  it('brings none of the tools that build and test it', async () => {
    const installed = await readdir(join(project, 'node_modules'));
    const { devDependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as {
      devDependencies: Record<string, string>;
    };
    const tools = Object.keys(devDependencies).map((name) => name.split('/')[0] ?? '');
    assert.deepEqual(
      installed.filter((name) => tools.includes(name)),
      [],
    );
  });

  it('says its version', async () => {
    const { stdout, code } = await postern('version');
    const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
    assert.deepEqual({ stdout, code }, { stdout: `${version}\n`, code: 0 });
  });

  it('checks a configuration: 0 when it is right, 1 with the place of what is wrong', async () => {
    const right = `version: 2
services:
  db:
    connector: postgres
    listenOn: tcp://127.0.0.1:5432
    credentials: { username: app }
    config: { host: db.internal }
`;
    await writeFile(join(project, 'right.yaml'), right);
    await writeFile(join(project, 'wrong.yaml'), right.replace('credentials', 'credentails'));
    const good = await postern('check', '-f', 'right.yaml');
    assert.deepEqual([good.code, good.stdout], [0, 'ok: 1 service(s), 1 provider(s)\n']);
    const bad = await postern('check', '-f', 'wrong.yaml');
    assert.equal(bad.code, 1);
    assert.match(bad.stdout, /^wrong\.yaml:6:5.*did you mean "?credentials/m);
  });

  it('takes psql to PostgreSQL with a password from Vault', async (t) => {
    const [postgres, bao] = [await server('postgres18'), await server('openbao')];
    await writeFile(
      join(project, 'postern.yaml'),
      `version: 2
providers:
  vault:
    kind: vault
    address: ${bao.address}
    auth: { method: approle, roleIdEnv: ROLE_ID, secretIdEnv: SECRET_ID }
services:
  app-db:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials:
      username: { from: vault, get: secret/app/db#username }
      password: { from: vault, get: secret/app/db#password }
    config: { host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} } }
admin: off
`,
    );
    const child = spawn(join(project, 'node_modules/.bin/postern'), [], {
      cwd: project,
      env: { ...environment, ROLE_ID: bao.roleId, SECRET_ID: bao.secretId },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    t.after(() => child.kill('SIGKILL'));
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => (output += text));
    const ended = once(child, 'close');
    const deadline = Date.now() + 20_000;
    while (!output.includes('"msg":"ready"')) {
      assert.ok(Date.now() < deadline && child.exitCode === null, `not ready:\n${output}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    const port = /"address":"tcp:\/\/127\.0\.0\.1:(\d+)"/.exec(output)?.[1];
    const target = `host=127.0.0.1 port=${port} user=anything dbname=${postgres.database}`;
    const answer = await psql([target, '-Atc', 'SELECT current_user']);
    assert.deepEqual([answer.stdout, answer.stderr], ['scram_user\n', '']);
    child.kill('SIGTERM');
    assert.deepEqual(await ended, [0, null]);
    for (const secret of Object.values(canary)) assert.ok(!output.includes(secret));
  });
});

describe('the package of the compiled relay', () => {
  const target = nativeTargets()[0] ?? '';
  const built = existsSync(join(root, `native/postern-native.${target}.node`));

  it('is found by the package of Postern that it is installed beside', { skip: !built }, async () => {
    await writeFile(
      join(project, 'native.yaml'),
      `version: 2
services:
  app:
    connector: postgres
    listenOn: tcp://127.0.0.1:0
    credentials: { username: somebody, password: ${canary.postgres} }
    config: { host: 127.0.0.1 }
relay: { engine: native }
`,
    );
    const check = async (env: NodeJS.ProcessEnv = {}) => {
      const checked = await capture(
        join(project, 'node_modules/.bin/postern'),
        ['check', '-f', 'native.yaml'],
        {
          cwd: project,
          env: { ...environment, ...env },
        },
      );
      return { code: checked.code, said: checked.stdout + checked.stderr };
    };
    const without = await check();
    assert.equal(without.code, 1);
    assert.match(without.said, /relay\.engine is "native": there is no binary for /);

    const packages = join(work, 'native');
    await run(process.execPath, [join(root, 'scripts/native-packages.ts'), packages], { cwd: root });
    const { stdout } = await run('npm', ['pack', '--pack-destination', work], {
      cwd: join(packages, target),
      env: environment,
    });
    await run('npm', ['install', '--no-save', join(work, stdout.trim())], {
      cwd: project,
      env: environment,
      timeout: 120_000,
    });
    assert.equal((await check()).code, 0);
    assert.match((await check({ POSTERN_NATIVE: 'off' })).said, /POSTERN_NATIVE=off says not to use it/);
  });
});

describe('package-lock.json', () => {
  it('names no registry, and every package that its packages name as optional', async () => {
    const text = await readFile(join(root, 'package-lock.json'), 'utf8');
    assert.ok(!text.includes('"resolved"'));
    const { packages } = JSON.parse(text) as {
      packages: Record<string, { optionalDependencies?: Record<string, string> }>;
    };
    // npm ci calls a lock without them out of date, and a machine of another kind would miss its own.
    const missing = Object.values(packages)
      .flatMap(({ optionalDependencies }) => Object.keys(optionalDependencies ?? {}))
      .filter((name) => !Object.keys(packages).some((path) => path.endsWith(`node_modules/${name}`)));
    assert.deepEqual(missing, []);
  });
});
