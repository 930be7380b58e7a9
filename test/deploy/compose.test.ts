import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parseDocument } from 'yaml';

import { readConfig } from '../../src/config/load.ts';
import { lines } from '../config/files.ts';
import { installOpenBao, openbao } from '../support/servers/install.ts';
import { capture } from '../support/servers/process.ts';
import { withServer } from '../support/servers.ts';
import { found } from './manifests.ts';

interface ComposeService {
  readonly image: string;
  readonly build?: string;
  readonly command?: readonly string[];
  readonly entrypoint?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly healthcheck?: { readonly test: readonly string[] };
  readonly network_mode?: string;
  readonly networks?: readonly string[];
  readonly configs?: readonly { readonly source: string; readonly target: string }[];
  readonly secrets?: readonly string[];
  readonly ports?: unknown;
  readonly read_only?: boolean;
  readonly cap_drop?: readonly string[];
}

interface Compose {
  readonly services: Readonly<Record<string, ComposeService>>;
  readonly networks: Readonly<Record<string, unknown>>;
  readonly configs: Readonly<Record<string, { readonly file: string }>>;
  readonly secrets: Readonly<Record<string, { readonly file: string }>>;
}

const folder = fileURLToPath(new URL('../../deploy/compose/', import.meta.url));
const document = parseDocument(readFileSync(join(folder, 'compose.yaml'), 'utf8'));
const compose = document.toJS() as Compose;
const postern = found(compose.services['postern']);
const postgres = found(compose.services['postgres']);
const secret = found(compose.services['secret']);

describe('deploy/compose', () => {
  it('is YAML without a fault', () => {
    assert.deepEqual([...document.errors, ...document.warnings], []);
  });

  it('names only services, networks and files that are there, and waits for what can be waited for', () => {
    for (const [name, service] of Object.entries(compose.services)) {
      for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
        const target = found(compose.services[other], `${name} depends on ${other}, which`);
        if (condition === 'service_healthy') assert.ok(target.healthcheck, other);
        else assert.equal(condition, 'service_completed_successfully');
      }
      for (const network of service.networks ?? []) assert.ok(network in compose.networks, network);
      for (const { source } of service.configs ?? []) assert.ok(source in compose.configs, source);
      for (const each of service.secrets ?? []) assert.ok(each in compose.secrets, each);
      assert.equal(service.ports, undefined, 'nothing is reached from other machines');
    }
    for (const { file } of [...Object.values(compose.configs), ...Object.values(compose.secrets)])
      assert.ok(existsSync(join(folder, file)), file);
    assert.ok(existsSync(join(folder, found(postern.build), 'Dockerfile')));
  });

  it('mounts a configuration that the program reads, and that fits the services', async () => {
    assert.deepEqual(postern.configs, [{ source: 'postern', target: '/etc/postern/postern.yaml' }]);
    const reading = await readConfig(['postern.yaml'], { folder, environment: {} });
    assert.deepEqual(lines(reading.problems), []);
    assert.equal(reading.warnings.length, 1, 'that nothing speaks TLS');
    const text = readFileSync(join(folder, 'postern.yaml'), 'utf8');
    const store = new URL(found(/address: (\S+)/.exec(text)?.[1]));
    assert.ok(
      found(compose.services['openbao']).command?.includes(`-dev-listen-address=0.0.0.0:${store.port}`),
    );
    for (const host of [store.hostname, found(/host: (\S+)/.exec(text)?.[1])])
      assert.ok(host in compose.services, host);
    const variable = found(/tokenEnv: (\w+)/.exec(text)?.[1]);
    assert.equal(postern.environment?.[variable], secret.environment?.['BAO_TOKEN']);
    const application = found(compose.services['application']);
    const [service] = found(reading.config).services;
    assert.ok(service?.listenOn.kind === 'tcp');
    assert.equal(application.network_mode, 'service:postern');
    assert.equal(application.environment?.['PGHOST'], service.listenOn.host);
    assert.equal(application.environment?.['PGPORT'], String(service.listenOn.port));
    assert.equal(application.environment?.['PGDATABASE'], postgres.environment?.['POSTGRES_DB']);
    assert.ok(!Object.keys(application.environment ?? {}).includes('PGPASSWORD'));
  });

  it('puts into the store what the configuration asks for, by a command that a real OpenBao takes', async (t) => {
    const bao = await withServer(t, 'openbao');
    if (!bao) return;
    const file = join(folder, found(compose.secrets['database_password']).file);
    const own = (word: string) =>
      word.replace('/run/secrets/database_password', file).replace('app/db', 'compose-quick-start/db');
    const environment = { ...process.env, BAO_ADDR: bao.address, BAO_TOKEN: bao.rootToken };
    const program = await installOpenBao();
    assert.deepEqual(secret.entrypoint, ['bao']);
    const put = await capture(program, found(secret.command).map(own), { env: environment });
    assert.equal(put.code, 0, put.stderr);
    const got = await capture(
      program,
      ['kv', 'get', '-format=json', '-mount=secret', 'compose-quick-start/db'],
      {
        env: environment,
      },
    );
    const { data } = JSON.parse(got.stdout) as { data: { data: Record<string, string> } };
    assert.deepEqual(data.data, {
      username: postgres.environment?.['POSTGRES_USER'],
      password: readFileSync(file, 'utf8'),
    });
    assert.match(readFileSync(join(folder, 'postern.yaml'), 'utf8'), /get: secret\/app\/db#username/);
  });

  it('has the versions of the tests, and holds Postern as tight as Kubernetes would', () => {
    for (const name of ['openbao', 'secret'])
      assert.equal(compose.services[name]?.image, `openbao/openbao:${openbao.version}`);
    assert.equal(postern.read_only, true);
    assert.deepEqual(postern.cap_drop, ['ALL']);
  });
});
