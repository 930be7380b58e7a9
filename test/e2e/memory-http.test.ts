import assert from 'node:assert/strict';
import { createHmac, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { fakeAws } from '../providers/aws/fake-aws.ts';
import { fakeAzure } from '../providers/azure/fake-azure.ts';
import { fakeConjur } from '../providers/conjur/fake-conjur.ts';
import { fakeGoogle, payload } from '../providers/gcp/fake-google.ts';
import { fakeVault } from '../providers/vault/fake-vault.ts';
import { HttpOrigin } from '../support/http-origin.ts';
import { copiesIn, told, total } from '../support/memory.ts';
import { Postern } from '../support/postern.ts';
import { capture } from '../support/servers/process.ts';
import { server, Unavailable } from '../support/servers.ts';
import { eventually } from './stage.ts';

const program = fileURLToPath(new URL('../../bin/postern', import.meta.url));
const cleanups: (() => Promise<unknown>)[] = [];
after(async () => {
  for (const cleanup of cleanups.toReversed()) await cleanup();
});

/** A value that is in no memory by chance; as long as the tokens of a service are. */
const fresh = () => randomBytes(30).toString('base64url');
const reverse = (upstream: number, authenticate: object, credentials: object, ttl: string) => ({
  connector: 'http',
  listenOn: 'tcp://127.0.0.1:0',
  credentials,
  cache: { ttl, linger: '0s' },
  config: { upstream: `http://127.0.0.1:${upstream}`, allowPlainHttp: true, authenticate },
});

async function request(postern: Postern, service: string): Promise<void> {
  const response = await fetch(`http://127.0.0.1:${postern.port(service)}/x`, {
    headers: { connection: 'close' },
  });
  await response.text();
  assert.equal(response.status, 200, service);
}

/** Found nowhere in memory, in the end: what waits for its time, or for a connection, to end has some seconds. */
async function goneFrom(postern: Postern, what: string, secret: string | Buffer, left = 0): Promise<void> {
  const bytes = Buffer.from(secret as string);
  const copies = () => copiesIn(postern.pid, bytes);
  try {
    await eventually(what, () => total(copies()) <= left, 6000);
  } catch {
    assert.fail(`${what}: ${told(copies())}`);
  }
}

const base64 = (text: string) => Buffer.from(text).toString('base64');
const hmac = (key: Buffer | string, text: string) => createHmac('sha256', key).update(text).digest();

describe('memory of HTTP services', { skip: process.platform !== 'linux' && 'needs /proc' }, () => {
  it('holds what goes into requests while it is current, and nothing once it was replaced or its time is over', async (t) => {
    const values: Record<string, string> = {};
    const vault = await fakeVault(values);
    const origin = await HttpOrigin.open();
    cleanups.push(vault.stop, () => origin[Symbol.asyncDispose]());
    const renew = () => {
      for (const name of ['bearer', 'query', 'password', 'header', 'key']) values[name] = fresh();
      return { ...values };
    };
    const from = (...names: readonly string[]) =>
      Object.fromEntries(names.map((name) => [name, { from: 'store', get: `secret/app#${name}` }]));
    const first = renew();
    const schemes = {
      bearer: [{ bearer: 'bearer' }, from('bearer')],
      query: [{ query: { key: '{{ query }}' } }, from('query')],
      basic: [{ basic: {} }, { username: 'ann', ...from('password') }],
      headers: [{ headers: { 'X-Key': 'Key {{ header }}' } }, from('header')],
      aws: [
        { aws: { secretAccessKey: 'key', region: 'eu-central-1', service: 's3' } },
        { accessKeyId: 'AKIDEXAMPLE', ...from('key') },
      ],
    } as const;
    const config = {
      version: 2,
      providers: {
        store: { kind: 'vault', address: vault.address, auth: { method: 'token', tokenEnv: 'STORE_TOKEN' } },
      },
      services: Object.fromEntries(
        Object.entries(schemes).map(([name, [authenticate, credentials]]) => [
          name,
          reverse(origin.port, authenticate, credentials, '2s'),
        ]),
      ),
    };
    const postern = await Postern.start(JSON.stringify(config), { env: { STORE_TOKEN: 'store-token' } });
    cleanups.push(() => postern[Symbol.asyncDispose]());

    const day = new Date().toISOString().slice(0, 10).replaceAll('-', '');
    /** All forms of a value in which it is as good as itself. */
    const formsOf = (of: Readonly<Record<string, string>>): Record<string, Buffer> => {
      const date = hmac(`AWS4${of['key']}`, day);
      return {
        bearer: Buffer.from(of['bearer'] ?? ''),
        query: Buffer.from(of['query'] ?? ''),
        password: Buffer.from(of['password'] ?? ''),
        'user and password': Buffer.from(base64(`ann:${of['password']}`)),
        header: Buffer.from(of['header'] ?? ''),
        'secret key': Buffer.from(of['key'] ?? ''),
        'signing key of the day': date,
        'signing key': hmac(hmac(hmac(date, 'eu-central-1'), 's3'), 'aws4_request'),
      };
    };

    for (const name of Object.keys(schemes)) await request(postern, name);
    const authorizations = origin.received
      .map(({ authorization, url }) => `${authorization} ${url}`)
      .join('\n');
    for (const sent of [first['bearer'], first['query'], base64(`ann:${first['password']}`)])
      assert.ok(authorizations.includes(sent ?? '?'), 'what is searched for is what was sent');
    const current: Record<string, number> = {};
    for (const [name, form] of Object.entries(formsOf(first))) {
      const copies = copiesIn(postern.pid, form);
      current[name] = total(copies);
      t.diagnostic(`${name} while current: ${told(copies)}`);
    }
    assert.ok((current['bearer'] ?? 0) >= 1, 'the search finds what must be there');
    for (const [name, count] of Object.entries(current)) assert.ok(count <= 4, `${name}: ${count} copies`);

    const second = renew();
    await eventually(
      'the new values are used',
      async () => {
        for (const name of Object.keys(schemes)) await request(postern, name);
        return origin.received.some(({ authorization }) => authorization?.includes(second['bearer'] ?? '?'));
      },
      15_000,
    );
    for (const name of Object.keys(schemes)) await request(postern, name);
    for (const [name, form] of Object.entries(formsOf(first)))
      await goneFrom(postern, `the old ${name} is gone after it was replaced`, form);
    // Nobody asks any more.
    for (const [name, form] of Object.entries(formsOf(second)))
      await goneFrom(postern, `the ${name} is gone when its time is over`, form);
  });

  it('holds no value of any provider once its time is over', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'postern-memory-'));
    const origin = await HttpOrigin.open();
    cleanups.push(
      () => rm(folder, { recursive: true }),
      () => origin[Symbol.asyncDispose](),
    );
    const value = Object.fromEntries(
      [
        'vault',
        'conjur',
        'aws',
        'ssm',
        'google',
        'azure',
        'entra',
        'cloudsql',
        'local',
        'exec',
        'file',
        'kubernetes',
      ].map((name) => [name, fresh()]),
    );
    const of = (name: string): string => value[name] ?? assert.fail(name);
    const vault = await fakeVault({ a: of('vault') });
    const conjur = await fakeConjur({
      keys: { 'host/app': 'key' },
      variables: { a: { values: [Buffer.from(of('conjur'))], execute: ['host/app'] } },
    });
    const aws = await fakeAws();
    aws.secrets.set('a', { SecretString: of('aws'), VersionId: '1' });
    aws.parameters.set('/a', { Value: of('ssm'), Version: 1 });
    const google = await fakeGoogle();
    google.versions.set('projects/p/secrets/a/versions/latest', payload(of('google')));
    const azure = await fakeAzure();
    azure.secrets.set('a', { value: of('azure') });
    cleanups.push(vault.stop, conjur.stop, aws.stop, google.stop, azure.stop);
    await writeFile(join(folder, 'printed'), of('exec'));
    await writeFile(join(folder, 'file'), of('file'));
    const home = { PATH: process.env['PATH'] ?? '', HOME: folder };
    const set = await capture(program, ['secret', 'set', 'a'], { env: home, input: of('local') });
    assert.equal(set.code, 0, set.stderr);

    const providers: Record<string, object> = {
      vault: { kind: 'vault', address: vault.address, auth: { method: 'token', tokenEnv: 'STORE_TOKEN' } },
      conjur: {
        kind: 'conjur',
        url: conjur.url,
        account: 'demo',
        auth: { method: 'apiKey', login: 'host/app', apiKey: 'key' },
      },
      aws: { kind: 'aws', region: 'eu-central-1', endpoint: aws.url },
      ssm: { kind: 'aws-ssm', region: 'eu-central-1', endpoint: aws.url },
      google: { kind: 'gcp-secret-manager', endpoint: google.url, project: 'p' },
      azure: { kind: 'azure-key-vault', vault: azure.url, scope: 'https://vault.azure.net/.default' },
      local: { kind: 'local' },
      exec: { kind: 'exec', command: ['/bin/cat', join(folder, 'printed')] },
      file: { kind: 'file' },
    };
    const references: Record<string, string> = {
      vault: 'secret/app#a',
      ssm: '/a',
      exec: '-',
      file: join(folder, 'file'),
      kubernetes: 'app#a',
    };
    try {
      const cluster = await server('kubernetes');
      const namespace = await cluster.namespace();
      await cluster.secret(namespace, 'app', { a: of('kubernetes') });
      await cluster.permit(namespace, ['get'], ['app']);
      const tokenFile = join(folder, 'token');
      await writeFile(tokenFile, await cluster.token(namespace));
      providers['kubernetes'] = {
        kind: 'kubernetes',
        server: cluster.url,
        ca: cluster.ca,
        namespace,
        tokenFile,
      };
    } catch (thrown) {
      if (!(thrown instanceof Unavailable) || process.env['CI'] === 'true') throw thrown;
      t.diagnostic('without kubernetes, which is not here');
    }
    const services = Object.fromEntries(
      Object.keys(providers).map((name) => [
        name,
        reverse(
          origin.port,
          { bearer: 'token' },
          { token: { from: name, get: references[name] ?? 'a' } },
          '1s',
        ),
      ]),
    );
    const postern = await Postern.start(JSON.stringify({ version: 2, providers, services }), {
      env: {
        ...home,
        STORE_TOKEN: 'store-token',
        AWS_EC2_METADATA_SERVICE_ENDPOINT: aws.url,
        GCE_METADATA_HOST: google.host,
        AZURE_POD_IDENTITY_AUTHORITY_HOST: azure.url,
      },
    });
    cleanups.push(() => postern[Symbol.asyncDispose]());
    for (const name of Object.keys(services)) {
      await request(postern, name);
      assert.equal(origin.last?.authorization, `Bearer ${of(name)}`, name);
      assert.ok(
        total(copiesIn(postern.pid, Buffer.from(of(name)))) >= 1,
        `${name}: the search finds it while it is kept`,
      );
    }
    const left: string[] = [];
    for (const name of Object.keys(services)) {
      // Node reads a program's output into a block of its own, which it does not overwrite: docs/providers/exec.md.
      await goneFrom(postern, `the value of ${name} is gone`, of(name), name === 'exec' ? 1 : 0).catch(
        (thrown: Error) => left.push(thrown.message),
      );
    }
    assert.deepEqual(left, []);
    assert.ok(!Object.values(value).some((each) => postern.output.includes(each)), 'nor was it printed');
  });
});
