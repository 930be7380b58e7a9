import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { exitCodes } from '../../src/cli/exit-codes.ts';
import { readConfig } from '../../src/config/load.ts';
import { connectors } from '../../src/connectors/index.ts';
import { providers } from '../../src/providers/index.ts';
import { lines } from '../config/files.ts';
import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import { certificates } from '../support/servers/certificates.ts';
import { mysqlClient } from '../support/servers/mysql-programs.ts';
import { capture } from '../support/servers/process.ts';
import { canary, type PostgresInfo, server } from '../support/servers.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const pages = globSync(
  ['*.md', 'docs/**/*.md', 'src/**/*.md', 'test/**/*.md', 'demo/**/*.md', 'bench/*.md'],
  {
    cwd: root,
  },
).toSorted();
const read = (page: string) => readFileSync(join(root, page), 'utf8');
const readme = read('README.md');

/** Whole configurations in a page. */
function configurations(page: string): string[] {
  return [...read(page).matchAll(/^```yaml\n(version: 2\n[^]*?)^```$/gm)].map(([, text = '']) => text);
}

/** Anchors as GitHub makes them from headings. */
function anchors(page: string): string[] {
  return [...read(page).matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\p{Letter}\p{Number}\s_-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

describe('a page of the documentation', () => {
  for (const page of pages)
    it(`links only to what is there: ${page}`, () => {
      for (const [, link = ''] of read(page).matchAll(/\]\((?!https?:)([^)\s]+)\)/g)) {
        const [path = '', anchor] = link.split('#');
        const target = path === '' ? page : join(dirname(page), path);
        assert.ok(existsSync(join(root, target)), link);
        if (anchor !== undefined) assert.ok(anchors(target).includes(anchor), link);
      }
    });

  for (const page of pages.filter((each) => configurations(each).length > 0))
    it(`shows configurations that load without a warning: ${page}`, async () => {
      const folder = await mkdtemp(join(tmpdir(), 'postern-docs-'));
      try {
        for (const text of configurations(page)) {
          await writeFile(join(folder, 'postern.yaml'), text);
          const reading = await readConfig(['postern.yaml'], { folder, environment: {} });
          assert.deepEqual([...lines(reading.problems), ...lines(reading.warnings)], []);
        }
      } finally {
        await rm(folder, { recursive: true });
      }
    });

  it('speaks of no npm script that is not there', () => {
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
    for (const page of pages)
      for (const [, name = ''] of read(page).matchAll(/\bnpm run (?:--silent )?([a-z]+)/g))
        assert.ok(name in scripts, `${page}: npm run ${name}`);
  });
});

/** The first configuration of the README is without Vault, the second with it; both get the servers of the tests. */
function quickStart(nth: number, postgres: PostgresInfo, replacements: readonly [string, string][]): string {
  let text = configurations('README.md')[nth] ?? '';
  for (const [what, by] of [
    [
      'host: db.example.com',
      `host: ${postgres.host}\n      port: ${postgres.port}\n      tls: { ca: ${postgres.ca} }`,
    ],
    ['tcp://127.0.0.1:6432', 'tcp://127.0.0.1:0'],
    ...replacements,
  ] as const) {
    assert.ok(text.includes(what), what);
    text = text.replace(what, by);
  }
  return text;
}

describe('README.md', () => {
  /** The words of its psql command, with the port that the test got. */
  const target = (port: number) => {
    const command = /^psql "(host=127\.0\.0\.1 port=6432 [^"]*)"$/m.exec(readme)?.[1];
    assert.ok(command);
    return command.replace('port=6432', `port=${port}`);
  };

  /** Does what the page says before its first configuration; gives the environment in which the secrets are found. */
  const setSecrets = async (t: TestContext, values: Readonly<Record<string, string>>) => {
    const folder = await mkdtemp(join(tmpdir(), 'postern-readme-'));
    t.after(() => rm(folder, { recursive: true }));
    const env = { XDG_CONFIG_HOME: folder };
    const named = [...readme.matchAll(/\bpostern secret set ([\w/]+)/g)].map(([, name = '']) => name);
    assert.deepEqual([...named].toSorted(), ['app/password', 'app/user', 'github']);
    for (const [name, value] of Object.entries(values)) {
      const words = ['secret', 'set', name];
      const set = await capture(join(root, 'bin/postern'), words, {
        env: { ...process.env, ...env },
        input: `${value}\n`,
      });
      assert.equal(set.code, 0, set.stderr);
    }
    return env;
  };

  it('leads to a working psql without a secret store', async (t) => {
    const env = await setSecrets(t, { 'app/user': 'scram_user', 'app/password': canary.postgres });
    await using postern = await Postern.start(quickStart(0, await server('postgres18'), []), { env });
    const answer = await psql([target(postern.port('app-db')), '-Atc', 'SELECT current_user']);
    assert.deepEqual([answer.stdout, answer.stderr], ['scram_user\n', '']);

    const words = ['check', '--connect', '-f', postern.configPath];
    const checked = await capture(join(root, 'bin/postern'), words, { env: { ...process.env, ...env } });
    assert.equal(checked.code, 0);
    assert.match(checked.stdout, /app-db: logged in to 127\.0\.0\.1:\d+ as scram_user/);
  });

  it('leads to a working psql with Vault', async (t) => {
    const [postgres, bao] = [await server('postgres18'), await server('openbao')];
    const folder = await mkdtemp(join(tmpdir(), 'postern-readme-'));
    t.after(() => rm(folder, { recursive: true }));
    await writeFile(join(folder, 'secret-id'), bao.secretId, { mode: 0o600 });
    const yaml = quickStart(1, postgres, [
      ['https://vault.example.com:8200', bao.address],
      ['/run/secrets/vault-secret-id', join(folder, 'secret-id')],
    ]);
    await using postern = await Postern.start(yaml, { env: { ROLE_ID: bao.roleId } });
    const answer = await psql([target(postern.port('app-db')), '-Atc', 'SELECT current_user']);
    assert.deepEqual([answer.stdout, answer.stderr], ['scram_user\n', '']);
  });

  for (const kind of ['mysql9', 'mariadb11'] as const)
    it(`leads to a working client of ${kind}`, async (t) => {
      const { port, ca, database } = await server(kind);
      const user = kind === 'mysql9' ? 'sha2_user' : 'ed_user';
      const yaml = (configurations('README.md')[0] ?? '')
        .replace('connector: postgres', 'connector: mysql')
        .replace('tcp://127.0.0.1:6432', 'tcp://127.0.0.1:0')
        .replace('host: db.example.com', `host: localhost\n      port: ${port}\n      tls: { ca: ${ca} }`);
      const env = await setSecrets(t, { 'app/user': user, 'app/password': canary.mysql });
      await using postern = await Postern.start(yaml, { env });
      const { command, env: itsOwn } = await mysqlClient(kind);
      const [program, ...first] = command;
      const words = /`mysql (--host=127\.0\.0\.1 --port=6432 --user=anything) app`/.exec(readme)?.[1] ?? '';
      const target = words.replace('6432', String(postern.port('app-db'))).split(' ');
      const ask = (...more: readonly string[]) =>
        capture(program, [...first, ...target, ...more, database, '-BNe', 'SELECT current_user()'], {
          env: itsOwn,
        });
      const quiet = kind === 'mysql9' ? await ask() : await ask('--skip-ssl');
      assert.deepEqual([quiet.stdout, quiet.stderr], [`${user}@%\n`, '']);
      if (kind === 'mysql9') return;
      const warned = await ask();
      assert.equal(warned.stdout, `${user}@%\n`);
      assert.match(warned.stderr, /^WARNING: option --ssl-verify-server-cert is disabled/);
    });

  it('leads to a curl that an API knows', async (t) => {
    const token = 's3cr3t-of-an-api';
    const { ca, server: own } = await certificates();
    const api = createServer(
      { cert: await readFile(own.cert), key: await readFile(own.key) },
      (asked, answer) => answer.end(`${asked.url} ${asked.headers.authorization === `Bearer ${token}`}`),
    );
    t.after(() => api.close());
    await once(api.listen(0, '127.0.0.1'), 'listening');
    const yaml = (configurations('README.md')[2] ?? '')
      .replace('tcp://127.0.0.1:8080', 'tcp://127.0.0.1:0')
      .replace(
        'https://api.github.com',
        `https://localhost:${(api.address() as AddressInfo).port}\n      tls: { ca: ${ca} }`,
      );
    const env = await setSecrets(t, { github: token });
    await using postern = await Postern.start(yaml, { env });
    const url = /^curl (http:\/\/localhost:8080\/user)$/m.exec(readme)?.[1] ?? '';
    const asked = await capture('curl', ['-sS', url.replace('8080', String(postern.port('github')))]);
    assert.deepEqual([asked.stdout, asked.stderr], ['/user true', '']);
    assert.equal(postern.output.includes(token), false);
  });

  it('says that every connector and provider works that is there', () => {
    const working = [...readme.matchAll(/^\| (`[^|]*) \| Works?\b/gm)]
      .flatMap(([, cell = '']) => [...cell.matchAll(/`([\w-]+)`/g)].map(([, name = '']) => name))
      .toSorted();
    assert.deepEqual(working, [...Object.keys(connectors), ...Object.keys(providers)].toSorted());
  });

  it('lists the exit codes', () => {
    const [, sentence = ''] = /^Exit codes: ([^]*?)\. SIGTERM/m.exec(readme) ?? [];
    const listed = [...sentence.matchAll(/(?:^|,\s)(\d+) /g)].map(([, code]) => Number(code));
    assert.deepEqual(listed, Object.values(exitCodes));
  });
});
