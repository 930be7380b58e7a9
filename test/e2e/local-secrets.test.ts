import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { fakeConjur } from '../providers/conjur/fake-conjur.ts';
import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import { run } from '../support/servers/process.ts';
import { canary, server } from '../support/servers.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** The example of a page, made to reach the server of the tests. */
async function example(page: string): Promise<string> {
  const postgres = await server('postgres18');
  const [, yaml = ''] =
    /^```yaml\n(version: 2\n[^]*?)^```$/m.exec(readFileSync(`${root}${page}`, 'utf8')) ?? [];
  const config = `host: ${postgres.host}, port: ${postgres.port}, tls: { ca: ${postgres.ca} }`;
  return yaml
    .replace('tcp://127.0.0.1:5432', 'tcp://127.0.0.1:0')
    .replace(/host: [a-z.]+ }/, `${config} }`)
    .replace('username: app', 'username: scram_user');
}

async function whoAmI(postern: Postern): Promise<string> {
  const target = `host=127.0.0.1 port=${postern.port('orders-db')} user=anything dbname=app`;
  const answer = await psql([target, '-Atc', 'SELECT current_user']);
  assert.equal(answer.stderr, '');
  return answer.stdout.trim();
}

it('logs psql in with a password from `postern secret set`, as docs/providers/local.md shows it', {
  timeout: 120_000,
}, async (t) => {
  const home = await mkdtemp(join(tmpdir(), 'postern-e2e-local-'));
  t.after(() => rm(home, { recursive: true }));
  const env = { PATH: process.env['PATH'] ?? '', HOME: home };
  await run(join(root, 'bin/postern'), ['secret', 'set', 'orders-db'], {
    env,
    input: `${canary.postgres}\n`,
  });
  await using postern = await Postern.start(await example('docs/providers/local.md'), { env });
  assert.equal(await whoAmI(postern), 'scram_user');
  const line = await postern.logged(({ outcome }) => outcome === 'ok');
  assert.match(String(line['credential']), /\blocal@\d{4}-\d\d-\d\dT/);
});

it('logs psql in with a password that a program prints', { timeout: 120_000 }, async () => {
  const env = { PATH: process.env['PATH'] ?? '', STORE_TOKEN: canary.postgres };
  const yaml = (await example('docs/providers/local.md'))
    .replace('from: local, get: orders-db', 'from: helper, get: "orders#password"')
    .replace(
      'services:',
      `providers:
  helper:
    kind: exec
    command: [sh, -c, 'printf "{\\"password\\":\\"%s\\"}" "$STORE_TOKEN"', sh, '{}']
    passEnv: [STORE_TOKEN]
services:`,
    );
  await using postern = await Postern.start(yaml, { env });
  assert.equal(await whoAmI(postern), 'scram_user');
});

it('logs psql in with variables of a fake Conjur, by the variables of an unchanged Secretless set-up', {
  timeout: 120_000,
}, async (t) => {
  const execute = ['host/orders/app'];
  const conjur = await fakeConjur({
    keys: { 'host/orders/app': 'CANARY-key' },
    variables: {
      'orders/db/username': { values: [Buffer.from('scram_user')], execute },
      'orders/db/password': { values: [Buffer.from(canary.postgres)], execute },
    },
  });
  t.after(conjur.stop);
  const yaml = (await example('docs/providers/conjur.md')).replace(/^providers:\n(?: {2}.*\n)+/m, '');
  const env = {
    CONJUR_APPLIANCE_URL: conjur.url,
    CONJUR_ACCOUNT: 'demo',
    CONJUR_AUTHN_LOGIN: 'host/orders/app',
    CONJUR_AUTHN_API_KEY: 'CANARY-key',
  };
  await using postern = await Postern.start(yaml, { env });
  assert.equal(await whoAmI(postern), 'scram_user');
  assert.equal(conjur.count('/secrets?variable_ids='), 1);
});
