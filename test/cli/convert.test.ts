import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse, stringify } from 'yaml';

import { exitCodes } from '../../src/cli/exit-codes.ts';
import type { Config, ServiceConfig } from '../../src/config/config.ts';
import { convert } from '../../src/config/convert.ts';
import { loadConfig, readConfig } from '../../src/config/load.ts';
import { parseYaml } from '../../src/config/yaml.ts';
import { configuration, configurations, defineConfiguration } from '../config/cluster/crd.ts';
import { capture } from '../support/servers/process.ts';
import { withServer } from '../support/servers.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'postern-convert-'));
});
after(() => rm(folder, { recursive: true, force: true }));

function converted(text: string): { text: string; leftOut: readonly string[] } {
  const { tree, faults } = parseYaml(text);
  assert.deepEqual(faults, []);
  assert.ok(tree);
  return convert([{ where: 'secretless.yml', tree }]);
}

async function loaded(text: string): Promise<Config> {
  const path = join(folder, `${Math.random()}.yaml`);
  await writeFile(path, text);
  return await loadConfig([path], { environment: {} });
}

const settingsOf = (service: ServiceConfig | undefined) => service?.settings as Record<string, unknown>;

/** What a service has, apart from where in the file it stands: also the values that do not print. */
function meaning({ listenOn, socketMode, credentials, onRotation, limits, cache }: ServiceConfig): object {
  const references = [...credentials].map(([name, { provider, get }]) => `${name} from ${provider}: ${get}`);
  return { listenOn, socketMode, references: references.toSorted(), onRotation, limits, cache };
}

/** Credentials of a literal that have become settings. */
const moved = /^(host|address|port|sslmode|sslhost|application_name) from literal: /;

describe('postern convert', () => {
  for (const name of ['secretless-pg.yml', 'secretless-mysql.yml', 'secretless-http.yml'])
    it(`means the same as ${name}, and says in the file what it has written down`, async () => {
      const original = await readFile(join(root, 'examples', name), 'utf8');
      const { text, leftOut } = converted(original);
      assert.deepEqual(leftOut, []);
      const [before, after] = [await loaded(original), await loaded(text)];
      assert.deepEqual(
        after.services.map((service) => service.name),
        before.services.map((service) => service.name),
      );
      for (const [i, service] of before.services.entries()) {
        const was = meaning(service) as { references: string[] };
        const kept = { ...was, references: was.references.filter((line) => !moved.test(line)) };
        assert.deepEqual(meaning(after.services[i] as ServiceConfig), kept, service.name);
      }
    });

  it('puts a server of PostgreSQL where settings belong, with every default of Secretless in sight', async () => {
    const { text } = converted(await readFile(join(root, 'examples/secretless-pg.yml'), 'utf8'));
    const { services } = await loaded(text);
    const [lax, strict] = services.map(settingsOf);
    assert.deepEqual(
      {
        host: lax?.['host'],
        port: lax?.['port'],
        allowAuth: lax?.['allowAuth'],
        parameters: lax?.['parameters'],
      },
      {
        host: 'pg.example.com',
        port: 5432,
        allowAuth: ['password', 'md5'],
        parameters: { set: { application_name: 'legacy-app' }, otherwise: 'refuse' },
      },
    );
    assert.equal((lax?.['tls'] as { mode?: string } | undefined)?.mode, 'require');
    assert.deepEqual(strict?.['allowAuth'], []);
    const tls = strict?.['tls'] as { mode: string; serverName: string } | undefined;
    assert.deepEqual(
      [tls?.mode, tls?.serverName, strict?.['host']],
      ['verify-full', 'pg2.internal', 'pg2.example.com:5433'],
    );
    assert.match(text, /# Secretless's default: TLS that does not verify the server[^\n]*\n +mode: require/);
    assert.match(text, /# Other machines can reach this address[^\n]*\n +exposed: true/);
    assert.match(text, /# `debug` is left out/);
  });

  it('has MySQL do all that Secretless does', async () => {
    const original = await readFile(join(root, 'examples/secretless-mysql.yml'), 'utf8');
    const [before, after] = [await loaded(original), await loaded(converted(original).text)];
    const keys = ['allowAuth', 'allowPublicKeyRetrieval', 'allowLocalInfile'] as const;
    const [was, is] = [settingsOf(before.services[0]), settingsOf(after.services[0])];
    for (const key of keys) assert.deepEqual(is[key], was[key], key);
    // Verified: what only matters to a server that is not is left to Postern's defaults.
    assert.deepEqual(settingsOf(after.services[1])['allowAuth'], []);
    assert.equal(settingsOf(after.services[1])['allowLocalInfile'], true);
  });

  it('turns expressions for a whole host into rules, and keeps every other one', async () => {
    const service = (pattern: string, more = '') => `
  s${pattern.length}:
    connector: basic_auth
    listenOn: tcp://127.0.0.1:0
    credentials: { username: a, password: b }
    config: { authenticateURLsMatching: ['${pattern}'] ${more} }`;
    const whole = [
      '^http://api\\.example\\.com/',
      '^http://api\\.example\\.com:8080/.*$',
      '^https:\\/\\/a\\.example\\/',
    ];
    const other = [
      '^http://api\\.example\\.com',
      '^http://api\\.example\\.com/v[12]/',
      'example',
      // An unescaped dot is any character, and so another host.
      '^http://api.example.com/',
      '^http://(a|b)\\.example/',
    ];
    for (const pattern of whole) {
      const [found] = (await loaded(converted(`version: 2\nservices:${service(pattern)}`).text)).services;
      assert.equal(found?.connector, 'http', pattern);
    }
    for (const pattern of other) {
      const [found] = (await loaded(converted(`version: 2\nservices:${service(pattern)}`).text)).services;
      assert.equal(found?.connector, 'basic_auth', pattern);
    }
    const { text } = converted(`version: 2\nservices:${service('^http://a\\.example/')}`);
    assert.match(text, /- http:\/\/a\.example\/\*\*/);
    assert.match(text, /# As in Secretless without `forceSSL`[^\n]*\n +allowPlainHttp: true/);
    const secure = converted(`version: 2\nservices:${service('^http://a\\.example/', ', forceSSL: true')}`);
    assert.match(secure.text, /forceTls: true/);
    assert.doesNotMatch(secure.text, /allowPlainHttp/);
  });

  it('keeps a password of digits as it was written', async () => {
    const { text } = converted(`version: 2
services:
  db: { connector: pg, listenOn: "tcp://127.0.0.1:0", credentials: { host: h, username: 0123, password: 1.10 } }`);
    const [service] = (await loaded(text)).services;
    assert.equal(service?.credentials.get('username')?.get, '0123');
    assert.equal(service?.credentials.get('password')?.get, '1.10');
  });

  const version1 = `listeners:
  - { name: db, protocol: pg, address: "127.0.0.1:5432", debug: true }
  - { name: web, protocol: http, socket: /sock/web }
  - { name: lonely, protocol: pg, address: "127.0.0.1:5433" }
handlers:
  - name: first
    listener: db
    credentials:
      - { name: address, provider: literal, id: "db.example:5432" }
      - { name: username, provider: env, id: DB_USER }
  - { name: second, listener: db, credentials: [] }
  - name: basic
    type: http/basic_auth
    listener: web
    match: [ "^http://a\\\\.example/" ]
    credentials: [ { name: username, provider: env, id: U }, { name: password, provider: env, id: P } ]
  - { name: orphan, listener: nobody }
`;

  it('joins listeners and handlers of version 1 as Secretless does', async () => {
    const { text, leftOut } = converted(version1);
    const { services } = await loaded(text);
    assert.deepEqual(
      services.map(({ name, connector }) => [name, connector]),
      [
        ['first', 'postgres'],
        ['basic', 'http'],
      ],
    );
    assert.equal(settingsOf(services[0])['host'], 'db.example:5432');
    assert.deepEqual(services[1]?.listenOn, { kind: 'unix', path: '/sock/web' });
    const said = leftOut.join('\n');
    for (const name of ['second', 'lonely', 'orphan']) assert.match(said, new RegExp(`"${name}"`));
  });

  it('takes the resources of Kubernetes, alone, in a list, or several in a file', async () => {
    const resource = (name: string) => `apiVersion: secretless.io/v1
kind: Configuration
metadata: { name: ${name} }
spec:
${version1.replaceAll(/^/gm, '  ').trimEnd()}
`;
    const path = join(folder, 'resources.yaml');
    await writeFile(path, `---\n${resource('one')}---\n${resource('two')}`);
    const { code, stdout, stderr } = await capture(join(root, 'bin/postern'), ['convert', path], {
      timeout: 60_000,
    });
    // The resources have the same names in them, and things that cannot be taken over.
    assert.equal(code, exitCodes.configuration);
    assert.match(stderr, /the name "first" is taken, so the service is called "first-2"/);
    assert.match(stdout, /# Left out or changed: the Configuration "one"/);
    const listed = `kind: List\nitems:\n${resource('three').replaceAll(/^/gm, '    ').replace('    apiVersion', '  - apiVersion')}`;
    assert.equal((await loaded(converted(listed).text)).services.length, 2);
  });

  it('makes a resource for the cluster of them, which means the same', async (t) => {
    const path = join(folder, 'secretless-crd.yaml');
    await writeFile(
      path,
      `apiVersion: secretless.io/v1
kind: Configuration
metadata: { name: orders, namespace: shop }
spec:
  listeners: [{ name: db, protocol: pg, address: 0.0.0.0:5432 }]
  handlers:
    - name: db
      listener: db
      credentials:
        - { name: username, provider: literal, id: 0123 }
        - { name: password, provider: env, id: DB_PASSWORD }
        - { name: host, provider: env, id: DB_HOST }
`,
    );
    const [crd, file] = [
      await capture(`${root}bin/postern`, ['convert', '--to', 'crd', path]),
      await capture(`${root}bin/postern`, ['convert', path]),
    ];
    assert.equal(crd.code, exitCodes.clean, crd.stderr);
    const resource = parse(crd.stdout) as { metadata: object; spec: { services: Record<string, object> } };
    assert.deepEqual(resource.metadata, { name: 'orders', namespace: 'shop' });
    assert.partialDeepStrictEqual(resource.spec.services['db'], {
      connector: 'postgres',
      exposed: true,
      credentials: {
        username: { from: 'literal', get: '0123' },
        password: { from: 'env', get: 'DB_PASSWORD' },
      },
    });
    assert.match(crd.stdout, /# Other machines can reach this address/);
    const [asResource, asFile] = [
      await loaded(stringify({ version: 2, ...resource.spec })),
      await loaded(file.stdout),
    ];
    assert.deepEqual(asResource.services.map(meaning), asFile.services.map(meaning));

    const kubernetes = await withServer(t, 'kubernetes');
    if (!kubernetes) return;
    await defineConfiguration(kubernetes);
    const namespace = await kubernetes.namespace();
    const { name } = resource.metadata as { name: string };
    await kubernetes.request(
      'POST',
      `${configurations(namespace)}?fieldValidation=Strict`,
      configuration(name, resource.spec),
    );
  });

  it('leaves out what Postern cannot do, and says so', () => {
    const { text, leftOut } = converted(`version: 2
services:
  shell: { connector: ssh, listenOn: "tcp://127.0.0.1:2222", credentials: { address: x, privateKey: { from: env, get: K } } }
  db: { connector: pg, listenOn: "tcp://127.0.0.1:0", credentials: { host: h, username: u } }
`);
    assert.deepEqual(leftOut, ['secretless.yml: the service "shell": Postern has no connector "ssh"']);
    assert.doesNotMatch(text, /2222/);
  });

  it('says where a file cannot be read, and what is no configuration', async () => {
    const path = join(folder, 'bad.yaml');
    await writeFile(path, 'version: 2\n---\nservices: [\n');
    const program = join(root, 'bin/postern');
    const bad = await capture(program, ['convert', path], { timeout: 60_000 });
    assert.equal(bad.code, exitCodes.configuration);
    assert.match(bad.stderr, /bad\.yaml:4:/);
    assert.match(converted('a: 1').leftOut.join(), /neither a file of Secretless/);
  });

  it('makes something that the loader takes or complains about, of whatever it is given', async () => {
    const odd = [
      'version: 2\nservices: [1, 2]',
      'version: 2\nservices: { a: 1, b: null, c: { connector: pg } }',
      'listeners: 7\nhandlers: { a: b }',
      'kind: List\nitems: [ { kind: List, items: [ 3 ] } ]',
      'version: 2\nservices: { "a b": { connector: mysql, listenOn: 5, credentials: [x], config: y } }',
    ];
    for (const [i, text] of odd.entries()) {
      const path = join(folder, `odd-${i}.yaml`);
      await writeFile(path, converted(text).text);
      await readConfig([path], { environment: {} });
    }
  });
});
