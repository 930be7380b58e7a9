import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { exitCodes } from '../../src/cli/exit-codes.ts';
import { configuration, environment, shared, towards } from '../e2e/stage.ts';
import { postgresEngine } from '../support/database-engine.ts';
import { installPsql } from '../support/servers/install.ts';
import { mysqlClient } from '../support/servers/mysql-programs.ts';
import { capture } from '../support/servers/process.ts';
import { server, startOpenBao } from '../support/servers.ts';
import { exec, idle, runtime } from './exec-stage.ts';

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
