import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { before, describe, it } from 'node:test';
import { pathToFileURL } from 'node:url';
import { parse } from 'yaml';

import { crdFile, crdManifest } from '../../../scripts/crd.ts';
import type { Kubernetes } from '../../support/servers.ts';
import { clusterHere, configuration, configurations, defineConfiguration } from './crd.ts';

const db = {
  connector: 'postgres',
  listenOn: 'tcp://127.0.0.1:5432',
  credentials: {
    username: { from: 'vault', get: 'secret/db#u' },
    password: { from: 'env', get: 'PASSWORD' },
  },
  config: { host: 'db.internal', tls: { mode: 'verify-full' } },
};
const providers = {
  vault: { kind: 'vault', address: 'https://vault.internal:8200', auth: { method: 'token' } },
};
const good = { providers, services: { db } };
const withDb = (change: object) => ({ ...good, services: { db: { ...db, ...change } } });

const taken: readonly (readonly [what: string, spec: object])[] = [
  ['a service with providers', good],
  [
    'everything else that a file may say',
    {
      ...withDb({
        limits: { maxConnections: 7, loginTimeout: '3s' },
        cache: { ttl: '1m' },
        onRotation: 'drain',
        socketMode: '0660',
        listenOn: 'unix:///run/postern/db',
      }),
      limits: { drainTimeout: '20s' },
      cache: { maxStale: '15m' },
      stateFolder: '/var/lib/postern',
      relay: { engine: 'typescript' },
      admin: { listenOn: 'tcp://0.0.0.0:9090', exposed: true, hosts: ['postern.orders'] },
      audit: { file: 'stdout', events: ['login'] },
      access: {
        uids: [1000, 'orders'],
        password: { from: 'env', get: 'LOCAL' },
        loginRate: { perSecond: 0.5, burst: 3 },
      },
    },
  ],
  ['an address for others where that is said', withDb({ listenOn: 'tcp://0.0.0.0:5432', exposed: true })],
  ...[
    'tcp://localhost:1',
    'tcp://LOCALHOST:1',
    'tcp4://127.9.8.7:1',
    'tcp6://[::1]:1',
    'tcp://[0:0:0:0:0:0:0:1]:1',
    'tcp://[::ffff:127.0.0.1]:1',
    'unix:///a',
  ].map((listenOn) => [`the local address ${listenOn}`, withDb({ listenOn })] as const),
  [
    'two services on port 0',
    {
      ...good,
      services: { a: { ...db, listenOn: 'tcp://127.0.0.1:0' }, b: { ...db, listenOn: 'tcp://127.0.0.1:0' } },
    },
  ],
  [
    'two services of HTTP on one listener',
    {
      services: {
        a: {
          connector: 'http',
          listenOn: 'tcp://127.0.0.1:8080',
          config: { match: ['https://a.example/**'] },
        },
        b: {
          connector: 'http',
          listenOn: 'tcp://127.0.0.1:8080',
          config: { match: ['https://b.example/**'] },
        },
      },
    },
  ],
];

const refused: readonly (readonly [what: string, spec: object, why: RegExp])[] = [
  ['no service', { services: {} }, /spec\.services.*should have at least 1 properties/],
  ['no services at all', {}, /spec\.services: Required value/],
  ['a misspelt key', { ...good, limit: {} }, /unknown field \\"spec\.limit\\"/],
  ['a misspelt key of a service', withDb({ listen: 'x' }), /unknown field \\"spec\.services\.db\.listen\\"/],
  ['a misspelt key of a limit', withDb({ limits: { maxConnection: 1 } }), /unknown field .*maxConnection\\"/],
  [
    'an unknown connector',
    withDb({ connector: 'postgre' }),
    /spec\.services\.db\.connector: Unsupported value/,
  ],
  [
    'an unknown kind of provider',
    { ...good, providers: { vault: { kind: 'volt' } } },
    /spec\.providers\.vault\.kind: Unsupported value/,
  ],
  [
    'a service without an address',
    { services: { db: { connector: 'pg' } } },
    /spec\.services\.db\.listenOn: Required value/,
  ],
  [
    'an address of another form',
    withDb({ listenOn: '127.0.0.1:5432' }),
    /spec\.services\.db\.listenOn.*should match/,
  ],
  [
    'an address for others without a word',
    withDb({ listenOn: 'tcp://0.0.0.0:5432' }),
    /spec\.services\[db\]\.listenOn: Invalid value.*whoever reaches it is logged in without a password: listen on 127\.0\.0\.1, or say `exposed: true`/,
  ],
  [
    'a host that begins like a local one',
    withDb({ listenOn: 'tcp://127.evil.example:5432' }),
    /exposed: true/,
  ],
  ['every address, in IPv6', withDb({ listenOn: 'tcp://[::]:5432' }), /exposed: true/],
  [
    'a host that is called like a local one',
    withDb({ listenOn: 'tcp://localhost.example.com:5432' }),
    /exposed: true/,
  ],
  [
    'one address twice',
    { ...good, services: { a: db, b: db } },
    /spec\.services.*two services have the same listenOn/,
  ],
  ['a name that is none', { ...good, services: { 'a b': db } }, /the name of a service has letters, digits/],
  [
    'a name of a credential that is none',
    withDb({ credentials: { 'pass word': { from: 'env', get: 'X' } } }),
    /the name of a credential has letters/,
  ],
  [
    'a provider that nobody described',
    withDb({ credentials: { password: { from: 'store', get: 'x' } } }),
    /spec\.services: Invalid value.*neither under providers nor a kind of provider/,
  ],
  [
    'a value in the place of a reference',
    withDb({ credentials: { password: 'hunter2' } }),
    /credentials\.password.*must be of type object/,
  ],
  [
    'a socketMode without a socket',
    withDb({ socketMode: '0660' }),
    /means nothing here: listenOn is not a unix socket/,
  ],
  ['a mode that is none', withDb({ socketMode: '9', listenOn: 'unix:///a' }), /socketMode.*should match/],
  [
    'a duration that is none',
    { ...good, limits: { drainTimeout: '20' } },
    /spec\.limits\.drainTimeout.*should match/,
  ],
  [
    'a number out of bounds',
    withDb({ limits: { maxConnections: 0 } }),
    /maxConnections.*greater than or equal to 1/,
  ],
  [
    'more services than there may be',
    {
      services: Object.fromEntries(
        Array.from({ length: 65 }, (_, i) => [
          `s${i}`,
          { ...db, credentials: {}, listenOn: `tcp://127.0.0.1:${1000 + i}` },
        ]),
      ),
    },
    /must have at most 64 items|Too many/,
  ],
];

const here = await clusterHere();

describe('the definition of the resource Configuration', { timeout: 120_000, skip: !here }, () => {
  let cluster: Kubernetes;
  let namespace = '';

  before(async () => {
    assert.ok(here);
    cluster = here;
    await defineConfiguration(cluster);
    namespace = await cluster.namespace();
  });

  const create = (spec: object) =>
    cluster.request(
      'POST',
      `${configurations(namespace)}?dryRun=All&fieldValidation=Strict`,
      configuration('orders', spec),
    );

  it('is written from the schemas as they are', async () => {
    assert.equal(await readFile(crdFile, 'utf8'), crdManifest(), 'run `node scripts/crd.ts`');
  });

  it('takes the example', async () => {
    const text = await readFile(new URL('example.yaml', pathToFileURL(crdFile)), 'utf8');
    const { spec } = parse(text) as { spec: object };
    assert.deepEqual(((await create(spec)) as { spec: object }).spec, spec);
  });

  for (const [what, spec] of taken)
    it(`takes ${what}, and keeps every field`, async () => {
      const made = (await create(spec)) as { spec: object };
      assert.deepEqual(made.spec, spec);
    });

  for (const [what, spec, why] of refused)
    it(`refuses ${what}`, async () => {
      await assert.rejects(create(spec), why);
    });

  it('takes the most that it bounds, within the time that the API server has for its rules', async () => {
    const credentials = Object.fromEntries(
      Array.from({ length: 32 }, (_, i) => [`c${i}`.padEnd(128, 'x'), { from: 'env', get: 'X' }]),
    );
    const services = Object.fromEntries(
      Array.from({ length: 64 }, (_, i) => [
        `s${i}`.padEnd(128, 'x'),
        { ...db, listenOn: `unix:///${'a'.repeat(90)}${i}`, credentials },
      ]),
    );
    await create({ ...good, services });
  });
});
