import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import { explain } from '../../src/cli/explain.ts';
import { UsageError } from '../../src/cli/options.ts';
import { canary } from '../support/servers/canary.ts';

let folder = '';
let path = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-explain-'));
  path = join(folder, 'postern.yaml');
  const auth = { method: 'approle', roleIdEnv: 'ROLE', secretIdFile: '/run/secret-id' };
  const reference = (field: string) => ({ from: 'vault', get: `secret/app/db#${field}` });
  await writeFile(
    path,
    JSON.stringify({
      version: 2,
      providers: { vault: { kind: 'vault', address: 'https://vault.example', auth } },
      services: {
        'app-db': {
          connector: 'postgres',
          listenOn: 'unix:///run/postern/.s.PGSQL.5432',
          credentials: { username: reference('username'), password: reference('password') },
          config: { host: ['a.example', 'b.example'], databases: ['app', 'audit'] },
          limits: { maxConnections: 20 },
        },
        github: {
          connector: 'http',
          listenOn: 'tcp://127.0.0.1:18080',
          credentials: { token: { from: 'env', get: 'GITHUB_TOKEN' } },
          config: {
            upstream: 'https://api.github.com/v3',
            authenticate: { bearer: 'token' },
            allow: ['GET /user'],
          },
        },
        second: {
          connector: 'http',
          listenOn: 'tcp://127.0.0.1:18081',
          credentials: { key: canary.mysql },
          config: { match: ['https://keys.example/*'], authenticate: { query: { key: '{{ key }}' } } },
        },
        first: {
          connector: 'http',
          listenOn: 'tcp://127.0.0.1:18081',
          credentials: { token: canary.postgres },
          config: {
            match: ['GET https://api.example/**'],
            authenticate: { bearer: 'token' },
            intercept: { caCert: '/nowhere/ca.crt', caKey: '/nowhere/ca.key', unmatched: 'tunnel' },
          },
        },
      },
    }),
  );
});
after(() => rm(folder, { recursive: true, force: true }));

/** What the command prints. */
async function ask(...words: readonly string[]): Promise<string> {
  let printed = '';
  const code = await explain(['-f', path, ...words], {}, (text) => {
    printed += text;
  });
  assert.equal(code, 0);
  for (const secret of [canary.postgres, canary.mysql])
    assert.ok(!printed.includes(secret), 'a value was printed');
  return printed;
}

interface Answer {
  readonly listener: string;
  readonly allowed: boolean;
  readonly service?: string;
  readonly upstream?: string;
  readonly headers?: string[];
  readonly query?: string[];
  readonly reason?: string;
}

async function askFor(...request: readonly string[]): Promise<Answer[]> {
  return (JSON.parse(await ask('--json', '--url', ...request)) as { listeners: Answer[] }).listeners;
}

describe('postern explain', () => {
  it('says what a connection of each service would use, by name', async () => {
    const text = await ask();
    for (const line of [
      'app-db (postgres)',
      'unix:///run/postern/.s.PGSQL.5432, for users that the mode 0600 lets in',
      'a.example, port 5432; b.example, port 5432',
      'server TLS   verify-full',
      'the credential "username", databases app, audit',
      'password: secret/app/db#password from vault',
      'vault: vault at https://vault.example by approle',
      'maxConnections 20',
      'token: GITHUB_TOKEN from env',
      'token: a value of the configuration',
    ])
      assert.ok(text.includes(line), line);
  });

  it('speaks of one service, also to programs', async () => {
    const { services } = JSON.parse(await ask('app-db', '--json')) as { services: Record<string, unknown>[] };
    assert.equal(services.length, 1);
    assert.equal(services[0]?.['service'], 'app-db');
    assert.deepEqual(services[0]?.['credentials'], {
      username: 'secret/app/db#username from vault',
      password: 'secret/app/db#password from vault',
    });
    await assert.rejects(explain(['-f', path, 'nobody'], {}), {
      message: /there are app-db, github, second, first/,
    });
  });

  it('says which service a request would belong to, and what would be put into it', async () => {
    const [, shared] = await askFor('GET', 'https://api.example/things?x=1');
    assert.deepEqual(
      [shared?.service, shared?.upstream, shared?.headers],
      ['first', 'https://api.example/things?x=1', ['authorization']],
    );
    const [, other] = await askFor('DELETE', 'https://keys.example/7');
    assert.deepEqual([other?.service, other?.query], ['second', ['key']]);
  });

  it("says why a request would be refused, in the words of the client's answer", async () => {
    const [, post] = await askFor('POST', 'https://api.example/things');
    assert.equal(post?.allowed, false);
    assert.match(post?.reason ?? '', /no rule of this listener allows/);
    const [climbing] = await askFor('GET', 'https://api.github.com/v3/%2e%2e/user');
    assert.equal(climbing?.allowed, false);
    const [beside] = await askFor('GET', 'https://api.github.com/v3x/user');
    assert.match(beside?.reason ?? '', /nothing beside the path/);
  });

  it('understands the URL of a listener and that of the server behind it', async () => {
    for (const url of ['http://localhost:18080/user', 'https://api.github.com/v3/user']) {
      const [github] = await askFor(url);
      assert.deepEqual(
        [github?.service, github?.upstream],
        ['github', 'https://api.github.com/v3/user'],
        url,
      );
    }
    assert.equal((await askFor('http://127.0.0.1:18080/user')).length, 1);
    const [other] = await askFor('POST', 'http://localhost:18080/user');
    assert.match(other?.reason ?? '', /it allows GET \/user/);
  });

  it('wants a method and a URL, or the name of one service', async () => {
    for (const words of [['--url'], ['--url', 'GET', 'ftp://x/'], ['--url', 'a', 'b', 'c'], ['a', 'b']])
      await assert.rejects(explain(['-f', path, ...words], {}), UsageError, words.join(' '));
  });
});
