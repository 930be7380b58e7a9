import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { exec as runHere } from '../../src/cli/exec.ts';
import { exitCodes } from '../../src/cli/exit-codes.ts';
import { UsageError } from '../../src/cli/options.ts';
import { configuration, environment, shared, towards } from '../e2e/stage.ts';
import { postgresEngine } from '../support/database-engine.ts';
import { installPsql } from '../support/servers/install.ts';
import { mysqlClient } from '../support/servers/mysql-programs.ts';
import { capture, type Output } from '../support/servers/process.ts';
import { canary, certificates, server, startOpenBao } from '../support/servers.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const env = { DB_PASSWORD: canary.postgres, MY_PASSWORD: canary.mysql };
let folder = '';
/** Where the program makes its private folders: nothing else is in it. */
let runtime = '';

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-exec-'));
  runtime = await mkdtemp(join(tmpdir(), 'postern-run-'));
});
after(async () => {
  await rm(folder, { recursive: true, force: true });
  await rm(runtime, { recursive: true, force: true });
});

interface Options {
  readonly flags?: readonly string[];
  readonly env?: Record<string, string>;
}

async function write(config: object | string): Promise<string> {
  const path = join(folder, `${Math.random()}.yaml`);
  await writeFile(path, typeof config === 'string' ? config : JSON.stringify({ version: 2, ...config }));
  return path;
}

function surroundings(more: Record<string, string> = {}): Record<string, string> {
  return { PATH: process.env['PATH'] ?? '', HOME: folder, XDG_RUNTIME_DIR: runtime, ...env, ...more };
}

async function exec(
  config: object | string,
  command: readonly string[],
  options: Options = {},
): Promise<Output> {
  const words = ['exec', '-f', await write(config), ...(options.flags ?? []), '--', ...command];
  const output = await capture(program, words, { timeout: 60_000, env: surroundings(options.env) });
  for (const secret of Object.values(canary))
    assert.ok(!(output.stdout + output.stderr).includes(secret), 'a secret was printed');
  return output;
}

/** A service that nobody connects to. */
const idle = {
  services: {
    'app-db': {
      connector: 'postgres',
      listenOn: 'tcp://127.0.0.1:0',
      credentials: { username: 'me', password: { from: 'env', get: 'DB_PASSWORD' } },
      config: { host: '127.0.0.1', port: 1 },
    },
  },
};

const databases = shared(async () => {
  const [postgres, mysql] = [await server('postgres18'), await server('mysql9')];
  return {
    postgres,
    config: {
      services: {
        'app-db': {
          connector: 'postgres',
          listenOn: 'tcp://127.0.0.1:0',
          credentials: { username: 'scram_user', password: { from: 'env', get: 'DB_PASSWORD' } },
          config: { ...towards(postgres), database: 'app' },
        },
        orders: {
          connector: 'mysql',
          listenOn: 'tcp://127.0.0.1:0',
          credentials: { username: 'sha2_user', password: { from: 'env', get: 'MY_PASSWORD' } },
          config: { host: 'localhost', port: mysql.port, tls: { ca: mysql.ca }, database: 'app' },
        },
      },
    },
  };
});

describe('postern exec, with real servers', { timeout: 300_000 }, () => {
  it("logs psql in that was told nothing, over a socket that is this user's alone", async (t) => {
    const at = await databases(t);
    if (!at) return;
    const psql = join(await installPsql(), 'psql');
    for (const flags of [[], ['--tcp'], ['--connect']]) {
      const { code, stdout, stderr } = await exec(
        at.config,
        [psql, '--no-psqlrc', '--no-password', '-At', '-c', 'select session_user'],
        { flags },
      );
      assert.equal(code, 0, stderr);
      assert.equal(stdout, 'scram_user\n');
    }
    assert.deepEqual(await readdir(runtime), [], 'the private folder is gone');
  });

  it('gives a URL that clients take as it is, to a socket and to a port', async (t) => {
    const at = await databases(t);
    if (!at) return;
    const psql = join(await installPsql(), 'psql');
    const ask = `"${psql}" -X -w -At -c 'select session_user' "$APP_DB_URL"`;
    for (const flags of [[], ['--tcp']])
      assert.equal((await exec(at.config, ['sh', '-c', ask], { flags })).stdout, 'scram_user\n');
  });

  it('logs the mysql client in that was told nothing but where to look', async (t) => {
    const at = await databases(t);
    if (!at) return;
    const { command, env: own } = await mysqlClient('mysql9');
    const first = command.includes('--no-defaults') ? [] : ['--no-defaults'];
    const words = [...first, '--ssl-mode=DISABLED', '--user=anybody', '--batch', '--skip-column-names'];
    for (const flags of [[], ['--tcp']]) {
      const { code, stdout, stderr } = await exec(
        at.config,
        [
          ...command,
          ...words,
          ...(flags.length > 0 ? ['--protocol=tcp'] : []),
          '-e',
          "select substring_index(user(), '@', 1)",
        ],
        { flags, env: own as Record<string, string> },
      );
      assert.equal(code, 0, stderr);
      assert.equal(stdout, 'sha2_user\n');
    }
  });

  it('does not start the command when --connect cannot log in', async (t) => {
    const at = await databases(t);
    if (!at) return;
    const { code, stdout, stderr } = await exec(idle, ['echo', 'started'], { flags: ['--connect'] });
    assert.equal(code, exitCodes.checkFailed);
    assert.equal(stdout, '');
    assert.match(stderr, /app-db: FAILED UPSTREAM_UNREACHABLE/);
  });

  it("revokes the lease of the command's credential when the command has ended", async (t) => {
    const at = await databases(t);
    if (!at) return;
    const bao = await startOpenBao();
    try {
      const engine = await postgresEngine(bao, at.postgres);
      const role = await engine.dynamic();
      await bao.request('PUT', 'sys/policies/acl/exec', {
        policy: `path "database/creds/*" { capabilities = ["read"] }\npath "sys/leases/revoke" { capabilities = ["update"] }`,
      });
      await bao.write('auth/approle/role/exec', { token_policies: 'exec' });
      await bao.write('auth/approle/role/exec/role-id', { role_id: 'exec' });
      await bao.write('auth/approle/role/exec/custom-secret-id', { secret_id: 'secret-of-exec' });
      const own = { address: bao.address, roleId: 'exec', secretId: 'secret-of-exec' };
      const credentials = {
        username: { from: 'bao', get: `${role.path}#username` },
        password: { from: 'bao', get: `${role.path}#password` },
      };
      const config = configuration(own, {
        db: { credentials, config: { ...towards(at.postgres), database: 'app' } },
      });
      const psql = join(await installPsql(), 'psql');
      const child = `"${psql}" -X -w -At -c 'select session_user'; env | grep -c E2E_SECRET_ID; exit 3`;
      const { code, stdout, stderr } = await exec(config, ['sh', '-c', child], { env: environment(own) });
      assert.equal(code, 3, stderr);
      const [user = '', inEnvironment] = stdout.split('\n');
      assert.match(user, /^ro-/);
      assert.equal(inEnvironment, '0', 'the secret id is not in the environment');
      assert.deepEqual(await role.users(), [], 'the user is gone from the database');
    } finally {
      await bao.stop();
    }
  });
});

describe('postern exec, for HTTP', { timeout: 300_000 }, () => {
  it('gives curl a proxy that puts the token into its requests, and the URL of an API', async (t) => {
    if ((await capture('sh', ['-c', 'command -v curl'])).code !== 0) return t.skip('there is no curl');
    const seen: string[] = [];
    const origin = createHttpServer((request, response) => {
      seen.push(`${request.url} ${request.headers.authorization}`);
      response.end('served');
    });
    await once(origin.listen(0, '127.0.0.1'), 'listening');
    const at = `http://127.0.0.1:${(origin.address() as { port: number }).port}`;
    const service = (name: string, where: object) => ({
      connector: 'http',
      listenOn: 'tcp://127.0.0.1:0',
      credentials: { token: `token-of-${name}` },
      config: { ...where, allowPlainHttp: true, authenticate: { bearer: 'token' } },
    });
    const services = {
      proxy: service('proxy', { match: [`${at}/**`] }),
      'my-api': service('api', { upstream: at }),
    };
    // curl would else go to this machine without a proxy, as the environment says.
    const script = `curl -s --noproxy '' ${at}/one && curl -s "$MY_API_URL/two"`;
    const { code, stdout, stderr } = await exec({ services }, ['sh', '-c', script]);
    origin.close();
    assert.deepEqual([code, stdout], [0, 'servedserved'], stderr);
    assert.deepEqual(seen, ['/one Bearer token-of-proxy', '/two Bearer token-of-api']);
  });
});

describe('the end of postern exec', { timeout: 300_000 }, () => {
  it('has the exit code of its command, also where a signal ended it', async () => {
    assert.equal((await exec(idle, ['sh', '-c', 'exit 42'])).code, 42);
    assert.equal((await exec(idle, ['sh', '-c', 'kill -TERM $$'])).code, 143);
    assert.equal((await exec(idle, ['sh', '-c', 'kill -KILL $$'])).code, 137);
  });

  it('is 127 where there is no such command and 126 where it cannot be run, as in a shell', async () => {
    const missing = await exec(idle, ['no-such-command']);
    assert.equal(missing.code, 127);
    assert.match(missing.stderr, /no-such-command: there is no such command/);
    const folderAsCommand = await exec(idle, [folder]);
    assert.equal(folderAsCommand.code, 126);
    assert.match(folderAsCommand.stderr, /cannot be run \(EACCES\)/);
    assert.deepEqual(await readdir(runtime), [], 'the private folder is gone');
  });

  it('is that of the failure where the command was never started', async () => {
    const bad = await exec('version: [', ['echo', 'started']);
    assert.deepEqual([bad.code, bad.stdout], [exitCodes.configuration, '']);
    const other = createServer();
    await once(other.listen(0, '127.0.0.1'), 'listening');
    const { port } = other.address() as { port: number };
    const [service] = Object.values(idle.services);
    const taken = { services: { db: { ...service, listenOn: `tcp://127.0.0.1:${port}` } } };
    const busy = await exec(taken, ['echo', 'started']);
    other.close();
    assert.deepEqual([busy.code, busy.stdout], [exitCodes.cannotListen, '']);
    assert.match(busy.stderr, /cannot listen on/);
    const authority = { intercept: {} };
    const fetched = await exec(
      {
        services: {
          api: {
            connector: 'http',
            listenOn: 'tcp://127.0.0.1:0',
            credentials: {
              token: 'x',
              caCert: { from: 'file', get: join(folder, 'nowhere.pem') },
              caKey: { from: 'file', get: join(folder, 'nowhere.key') },
            },
            config: { match: ['https://api.example/**'], authenticate: { bearer: 'token' }, ...authority },
          },
        },
      },
      ['echo', 'started'],
    );
    assert.deepEqual([fetched.code, fetched.stdout], [exitCodes.checkFailed, ''], fetched.stderr);
  });

  for (const [words, why] of [
    [[], /behind two dashes/],
    [['psql'], /behind two dashes/],
    [['--'], /behind two dashes/],
    [['--sockets', '--tcp', '--', 'true'], /either --sockets or --tcp/],
    [['--kill-after', 'soon', '--', 'true'], /takes a duration/],
    [['--nonsense', '--', 'true'], /nonsense/],
    [['stray', '--', 'true'], /stray/],
  ] as const)
    it(`is 2 for "exec ${words.join(' ')}"`, async () => {
      await assert.rejects(
        runHere(words, {}),
        (error) => error instanceof UsageError && why.test(error.message),
      );
    });

  it('leaves --help behind the dashes to the command', async () => {
    assert.equal((await exec(idle, ['printf', '%s\\n', '--help'])).stdout, '--help\n');
    const own = await capture(program, ['exec', '--help', '--', 'false'], { env: surroundings() });
    assert.equal(own.code, 0);
    assert.match(own.stdout, /--kill-after TIME/);
  });
});

/** A command that is spoken to while it runs. */
class Running {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  output = '';

  constructor(child: ChildProcess) {
    this.child = child;
    child.stdout?.on('data', (chunk) => (this.output += String(chunk)));
    child.stderr?.on('data', (chunk) => (this.output += String(chunk)));
    this.ended = once(child, 'close').then(([code]) => code as number | null);
  }

  async printed(pattern: RegExp): Promise<void> {
    for (const end = Date.now() + 30_000; !pattern.test(this.output); await sleep(20))
      assert.ok(Date.now() < end && this.child.exitCode === null, `did not print ${pattern}: ${this.output}`);
  }
}

async function start(script: string, flags: readonly string[] = []): Promise<Running> {
  const words = ['exec', '-f', await write(idle), '--log-level', 'error', ...flags, '--', 'sh', '-c', script];
  return new Running(spawn(program, words, { env: surroundings(), stdio: ['ignore', 'pipe', 'pipe'] }));
}

describe('signals to postern exec', { timeout: 300_000 }, () => {
  it('reach the command, whose answer decides', async () => {
    for (const signal of ['TERM', 'INT', 'USR1'] as const) {
      const running = await start(
        `trap 'echo got ${signal}; exit 9' ${signal}; echo up; while :; do sleep 0.05; done`,
      );
      await running.printed(/up/);
      running.child.kill(`SIG${signal}`);
      assert.equal(await running.ended, 9, running.output);
      assert.match(running.output, new RegExp(`got ${signal}`));
    }
  });

  it('end a command that does not listen to SIGTERM after --kill-after, and at once the second time', async () => {
    const deaf = `trap '' TERM; echo up; while :; do sleep 0.05; done`;
    const patient = await start(deaf, ['--kill-after', '500ms']);
    await patient.printed(/up/);
    patient.child.kill('SIGTERM');
    assert.equal(await patient.ended, 137);
    const twice = await start(deaf, ['--kill-after', '10m']);
    await twice.printed(/up/);
    twice.child.kill('SIGTERM');
    // Two signals of a kind that have not been taken yet are one: so until it is known that the first one was.
    for (const end = Date.now() + 30_000; twice.child.exitCode === null && Date.now() < end; await sleep(200))
      twice.child.kill('SIGTERM');
    assert.equal(await twice.ended, 137);
    assert.deepEqual(await readdir(runtime), [], 'the private folders are gone');
  });

  it('are not given twice where a terminal has sent them to the whole group', async (t) => {
    const path = await write(idle);
    const script = join(folder, 'counts.sh');
    await writeFile(
      script,
      `n=0; trap 'n=$((n+1)); echo "interrupt $n."' INT; trap 'echo "total $n."; exit 0' TERM; echo up; while :; do sleep 0.05; done\n`,
    );
    const found = await capture('sh', ['-c', 'command -v script']);
    if (found.code !== 0) return t.skip('no script(1) on this machine, to have a terminal');
    const line = `exec ${program} exec -f ${path} --log-level error -- sh ${script}`;
    const running = new Running(
      spawn('script', ['--quiet', '--return', '--command', line, '/dev/null'], {
        env: surroundings(),
        stdio: ['pipe', 'pipe', 'pipe'],
      }),
    );
    await running.printed(/up/);
    running.child.stdin?.write('\x03');
    await running.printed(/interrupt 1\./);
    running.child.stdin?.write('\x03');
    await running.printed(/interrupt 2\./);
    // SIGTERM is for Postern alone, and passed on: behind everything that may have come before it.
    const listed = await capture('pgrep', ['-f', `main.ts exec -f ${path}`]);
    process.kill(Number(listed.stdout.trim().split('\n')[0]), 'SIGTERM');
    assert.equal(await running.ended, 0, running.output);
    assert.match(running.output, /total 2\./);
  });

  it('keep the command from starting when they come before', async () => {
    const { server: own } = await certificates();
    const [asked, go] = [join(folder, 'asked'), join(folder, 'go')];
    const slow = `touch ${asked}; while [ ! -e ${go} ]; do sleep 0.05; done; cat ${own.cert}`;
    const path = await write({
      providers: { slow: { kind: 'exec', command: ['sh', '-c', slow], timeout: '60s' } },
      services: {
        api: {
          connector: 'http',
          listenOn: 'tcp://127.0.0.1:0',
          credentials: { token: 'x', caCert: { from: 'slow', get: '-' }, caKey: 'x' },
          config: { match: ['https://api.example/**'], authenticate: { bearer: 'token' }, intercept: {} },
        },
      },
    });
    const words = ['exec', '-f', path, '--', 'echo', 'started'];
    const running = new Running(
      spawn(program, words, { env: surroundings(), stdio: ['ignore', 'pipe', 'pipe'] }),
    );
    for (const end = Date.now() + 30_000; !existsSync(asked); await sleep(20))
      assert.ok(Date.now() < end, running.output);
    running.child.kill('SIGTERM');
    await writeFile(go, '');
    assert.equal(await running.ended, 143, running.output);
    assert.doesNotMatch(running.output, /started/);
  });
});
