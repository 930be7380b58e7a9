import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { inspect } from 'node:util';

import { loadConfig, usualPlaces } from '../../src/config/load.ts';
import { PosternError } from '../../src/core/errors.ts';
import { goodService, lines, readFiles, readText, serviceFile } from './files.ts';

const good = serviceFile(...goodService);
const named = (name: string, port: number) =>
  good.replace('  db:', `  ${name}:`).replace('5432', String(port));

describe('a configuration without problems', () => {
  it('has typed values, with the defaults of the schema', async () => {
    const { config } = await readText(good);
    const service = config?.services[0];
    assert.deepEqual(service?.listenOn, { kind: 'tcp', host: '127.0.0.1', port: 5432 });
    assert.equal(service.socketMode, 0o600);
    assert.equal(service.listenTls, undefined);
    assert.deepEqual(service.limits, {
      loginTimeout: 10_000,
      maxConnections: 1000,
      idleTimeout: 0,
      maxSessionAge: 0,
      drainTimeout: 30_000,
      minDrainDelay: 0,
    });
    assert.deepEqual(service.credentials.get('username'), { provider: 'env', get: 'PGUSER' });
    assert.deepEqual(config?.admin, {
      listenOn: { kind: 'tcp', host: '127.0.0.1', port: 9090 },
      quit: false,
      hosts: [],
    });
    assert.equal(config?.audit, undefined);
    assert.deepEqual([...(config?.providers.keys() ?? [])], ['env']);
  });

  it('cannot be changed', async () => {
    const { config } = await readText(good);
    assert.ok(config);
    const frozen = (value: unknown): void => {
      if (typeof value !== 'object' || value === null) return;
      assert.ok(Object.isFrozen(value), inspect(value));
      for (const inner of value instanceof Map ? value.values() : Object.values(value)) frozen(inner);
    };
    frozen(config);
    const providers = config.providers as Map<string, unknown>;
    assert.throws(() => providers.set('x', 1), TypeError);
    assert.throws(() => providers.delete('env'), TypeError);
    assert.throws(() => providers.clear(), TypeError);
  });

  it('takes a value in the file as it is written', async () => {
    const { config } = await readText(
      serviceFile(
        'connector: pg',
        'listenOn: tcp://127.0.0.1:1',
        'credentials: { host: db, username: 0123, password: 1.10, port: 5432, on: true }',
      ),
    );
    const value = (name: string) => config?.services[0]?.credentials.get(name)?.get;
    assert.equal(value('username'), '0123');
    assert.equal(value('password'), '1.10');
    assert.equal(value('port'), '5432');
    assert.equal(value('on'), 'true');
    assert.equal(config?.providers.get('literal')?.kind, 'literal');
  });

  it('lets a service name a provider entry, whose settings its kind has parsed', async () => {
    const { config } = await readText(
      `${good.replaceAll('from: env', 'from: second').replaceAll(/PG\w+/g, '7')}providers: { second: { kind: safe, address: here } }\n`,
    );
    const provider = config?.providers.get('second');
    assert.equal(provider?.kind, 'safe');
    assert.deepEqual(provider.settings, { address: 'here' });
  });

  it('opens no admin listener when told so, in the words of YAML 1.1 too', async () => {
    for (const off of ['off', '"off"', 'false'])
      assert.equal((await readText(`${good}admin: ${off}\n`)).config?.admin.listenOn, undefined);
  });

  it('may leave maps empty', async () => {
    const { problems } = await readText(`${good}admin:\nlimits:\nproviders:\n`);
    assert.deepEqual(lines(problems), []);
  });

  it('may listen for other machines when the service says so', async () => {
    const { config, problems } = await readText(`${good.replace('127.0.0.1', '0.0.0.0')}    exposed: true\n`);
    assert.deepEqual(lines(problems), []);
    assert.deepEqual(config?.services[0]?.listenOn, { kind: 'tcp', host: '0.0.0.0', port: 5432 });
  });

  it('may repeat itself with anchors, aliases and merge keys', async () => {
    const { config, problems } = await readText(
      'version: 2\nservices:\n  a: &a\n    connector: postgres\n    listenOn: tcp://127.0.0.1:1\n    credentials: &c { username: u }\n    config: { host: db }\n' +
        '  b:\n    <<: *a\n    listenOn: tcp://127.0.0.1:2\n    credentials: *c\n',
    );
    assert.deepEqual(lines(problems), []);
    assert.equal(config?.services[1]?.credentials.get('username')?.get, 'u');
  });

  it('may call a service like a property of every object', async () => {
    const { config, problems } = await readText(
      ['constructor', 'toString', 'hasOwnProperty'].reduce(
        (text, name, index) => text + named(name, 6000 + index).replace(/^.*\n.*\n/, ''),
        'version: 2\nservices:\n',
      ),
    );
    assert.deepEqual(lines(problems), []);
    assert.deepEqual(
      config?.services.map(({ name }) => name),
      ['constructor', 'toString', 'hasOwnProperty'],
    );
  });
});

describe('warnings', () => {
  it('tell what a connector finds unsafe, and stay with the configuration', async () => {
    const { config, warnings } = await readText(
      serviceFile(
        'connector: strict',
        'listenOn: tcp://127.0.0.1:1',
        'credentials: { token: x }',
        'config: { target: old }',
      ),
    );
    assert.deepEqual(lines(warnings), ['c.yaml:7:15: services.db.config.target: is old']);
    assert.deepEqual(config?.warnings, warnings);
  });

  it("are what Secretless's habits are, in files of its connectors only", async () => {
    const file = serviceFile(
      'protocol: pg',
      'listenOn: tcp://0.0.0.0:5432',
      'debug: true',
      'credentials: { host: db, username: u, password: p }',
    );
    const { config, warnings } = await readText(file);
    assert.ok(config);
    const said = lines(warnings).join('\n');
    assert.match(said, /c\.yaml:4:5: services\.db\.protocol: is an old word/);
    assert.match(said, /c\.yaml:5:5: services\.db\.listenOn: .*other machines/);
    assert.match(said, /c\.yaml:6:5: services\.db\.debug: is ignored/);
    const { problems } = await readText(file.replace('protocol: pg', 'connector: postgres'));
    assert.match(lines(problems).join('\n'), /services\.db\.debug: unknown key/);
  });

  it('tell of a socket that every user may use, and of an admin listener for other machines', async () => {
    const { warnings } = await readText(
      `${good.replace('tcp://127.0.0.1:5432', 'unix:///run/a.sock')}    socketMode: "0666"\nadmin: { listenOn: tcp://0.0.0.0:9090 }\n`,
    );
    assert.deepEqual(
      warnings.map(({ path }) => path),
      ['services.db.socketMode', 'admin.listenOn'],
    );
  });
});

describe('several files', () => {
  it('of a folder are one configuration', async () => {
    const { config, problems } = await readFiles(
      {
        'd/a.yaml': named('a', 5001),
        'd/b.yml': `${named('b', 5002)}limits: { maxConnections: 7 }\n`,
        'd/providers.yaml': 'version: 2\nproviders: { env: { kind: env } }\n',
        'd/notes.txt': '\t[',
        'd/.hidden.yaml': '\t[',
        'd/sub/c.yaml': '\t[',
      },
      ['d'],
    );
    assert.deepEqual(lines(problems), []);
    assert.deepEqual(
      config?.services.map(({ name, limits }) => [name, limits.maxConnections]),
      [
        ['a', 7],
        ['b', 7],
      ],
    );
  });

  it('cannot have a name twice, nor limits', async () => {
    const { problems } = await readFiles({
      'a.yaml': `${named('a', 1)}limits: {}\nproviders: { env: { kind: env } }\n`,
      'b.yaml': `${named('a', 2)}limits: {}\nproviders: { env: { kind: env } }\n`,
    });
    assert.deepEqual(lines(problems), [
      'b.yaml:3:3: services.a: is given twice: here and in a.yaml:3:3',
      'b.yaml:8:1: limits: is given twice: here and in a.yaml:8:1',
      'b.yaml:9:14: providers.env: is given twice: here and in a.yaml:9:14',
    ]);
  });

  it('each tell their own problems', async () => {
    const { problems } = await readFiles({
      'a.yaml': `${named('a', 1)}x: 1\n`,
      'b.yaml': 'version: 2\ny: 1\n',
    });
    assert.deepEqual(lines(problems), ['a.yaml:8:1: x: unknown key', 'b.yaml:2:1: y: unknown key']);
  });
});

describe('the place of a configuration', () => {
  it('must exist, when it is given', async () => {
    const { problems } = await readFiles({ 'empty/readme.txt': '' }, ['missing.yaml', 'empty']);
    assert.deepEqual(lines(problems), [
      'missing.yaml: no such file or folder',
      'empty: the folder has no .yaml or .yml file',
    ]);
  });

  it('is named by POSTERN_CONFIG when no path is given', async () => {
    const { config } = await readFiles({ 'x.yaml': good, 'postern.yaml': 'no' }, [], {
      environment: { POSTERN_CONFIG: 'x.yaml' },
    });
    assert.equal(config?.services.length, 1);
  });

  it('is the first of the usual ones, Postern before Secretless and near before far', async () => {
    const order = [
      'postern.yaml',
      'postern.yml',
      'etc/postern/postern.yaml',
      'secretless.yml',
      'home/.secretless.yml',
      'etc/secretless.yml',
    ];
    for (const [index] of order.entries()) {
      const files = order.slice(index).map((path, later) => [path, named(`s${index + later}`, 5000)]);
      const { config, problems } = await readFiles(Object.fromEntries(files) as Record<string, string>, []);
      assert.deepEqual(lines(problems), []);
      assert.equal(config?.services[0]?.name, `s${index}`);
    }
  });

  it('is listed when there is none', async () => {
    const { problems } = await readFiles({ 'other.txt': '' }, []);
    const said = lines(problems).join('\n');
    assert.match(said, /^no configuration found; .*POSTERN_CONFIG/);
    for (const place of usualPlaces({ environment: { HOME: '' }, systemFolder: '' }))
      assert.ok(said.includes(place.split('/').at(-1) ?? ''));
  });
});

describe('loadConfig', () => {
  it('throws CONFIG_INVALID with one line for each problem', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'postern-config-'));
    const missing = [join(folder, 'a.yaml'), join(folder, 'b.yaml')];
    await assert.rejects(loadConfig(missing, { environment: {} }), (error) => {
      assert.ok(error instanceof PosternError);
      assert.equal(error.code, 'CONFIG_INVALID');
      assert.equal(error.message, missing.map((path) => `${path}: no such file or folder`).join('\n'));
      return true;
    });
    await rm(folder, { recursive: true });
  });
});

describe('flags and variables', () => {
  const limited = `${good}limits: { drainTimeout: 1s, loginTimeout: 1s, idleTimeout: 1s }\nadmin: { listenOn: tcp://127.0.0.1:1 }\n`;

  it('beat the file, flags before variables', async () => {
    const { config } = await readText(limited, {
      environment: {
        POSTERN_DRAIN_TIMEOUT: '2s',
        POSTERN_LOGIN_TIMEOUT: '2s',
        POSTERN_MAX_CONNECTIONS: '5',
        POSTERN_ADMIN_LISTEN: 'tcp://127.0.0.1:2',
      },
      overrides: { limits: { drainTimeout: '3s' }, admin: 'tcp://127.0.0.1:3' },
    });
    assert.deepEqual(config?.services[0]?.limits, {
      loginTimeout: 2000,
      maxConnections: 5,
      idleTimeout: 1000,
      maxSessionAge: 0,
      drainTimeout: 3000,
      minDrainDelay: 0,
    });
    assert.deepEqual(config.admin.listenOn, { kind: 'tcp', host: '127.0.0.1', port: 3 });
  });

  it('leave alone what one service says of itself', async () => {
    const { config } = await readText(
      good.replace('    config:', '    limits: { maxConnections: 2 }\n    config:'),
      {
        overrides: { limits: { maxConnections: 9, idleTimeout: '9s' } },
      },
    );
    assert.equal(config?.services[0]?.limits.maxConnections, 2);
    assert.equal(config.services[0].limits.idleTimeout, 9000);
  });

  it('turn the admin listener off', async () => {
    const { config } = await readText(good, { environment: { POSTERN_ADMIN_LISTEN: 'off' } });
    assert.equal(config?.admin.listenOn, undefined);
  });

  it('are named when they are wrong', async () => {
    const { problems } = await readText(good, {
      environment: { POSTERN_LOGIN_TIMEOUT: '5', POSTERN_MAX_CONNECTIONS: '0', POSTERN_ADMIN_LISTEN: '9090' },
      overrides: { limits: { drainTimeout: 'soon' }, admin: 'tcp://nowhere' },
    });
    assert.deepEqual(
      problems.map(({ path }) => path),
      [
        'POSTERN_LOGIN_TIMEOUT',
        'POSTERN_MAX_CONNECTIONS',
        '--drain-timeout',
        'POSTERN_ADMIN_LISTEN',
        '--admin-listen',
      ],
    );
    assert.match(
      lines(problems)[1] ?? '',
      /^POSTERN_MAX_CONNECTIONS: must be a whole number between 1 and 1000000$/,
    );
  });

  it('of the variables, an empty one is as good as none', async () => {
    const { problems } = await readText(good, {
      environment: { POSTERN_LOGIN_TIMEOUT: '', POSTERN_ADMIN_LISTEN: '' },
    });
    assert.deepEqual(lines(problems), []);
  });
});

describe('a fingerprint', () => {
  const of = async (text: string) => (await readText(text)).config?.services[0]?.fingerprint;

  it('is the same for the same entry, however it is written', async () => {
    const [connector = '', listenOn = '', ...rest] = goodService;
    const turned = serviceFile(...rest, `# a comment\n    "connector": ${connector.slice(11)}`, listenOn);
    assert.equal(await of(good), await of(turned));
  });

  it('changes with a setting, a literal secret, and the limits of the whole', async () => {
    const first = await of(good);
    assert.notEqual(first, await of(good.replace('db.internal', 'db2.internal')));
    assert.notEqual(first, await of(`${good}limits: { idleTimeout: 1m }\n`));
    const literal = good.replace('{ from: env, get: PGPASSWORD }', 'one');
    assert.notEqual(await of(literal), await of(literal.replace('one', 'two')));
  });
});

describe('a secret in the file', () => {
  const canary = 'c4n4ry-hunter2';
  const places = [
    `credentials: { username: u, password: ${canary} }`,
    `credentials: { username: u, password: [${canary}] }`,
    `credentials: { username: u, password: { from: literal, get: ${canary}, x: ${canary} } }`,
    `credentials: { username: u, password: { from: safe, get: 5, token: ${canary} } }`,
    `credentials: { username: u, password:${canary} }`,
    `credentials: { username: u, "${canary}!" }`,
    `credentials: { username: u, ${canary} }`,
    `credentials: ${canary}`,
    `credentials: [${canary}]`,
    `credentials: { username: u, password: "${canary}" ${canary} }`,
    `credentials: { username: u, password: !${canary} ${canary} }`,
    `credentials: { username: u, password: *${canary} }`,
    `credentials: { username: u, password: "${canary}\\q" }`,
    `credentials: { username: u, password: %${canary} }`,
    `credentials: { username: u, password: '${canary} }`,
    `credentials:\n      password: ${canary}\n        x: ${canary}`,
    `credentials:\n      username: u\n      ${canary}`,
    `config: { host: { a: ${canary} }, tls: { mode: ${canary}, ca: [${canary}] }, port: ${canary} }`,
    `limits: { loginTimeout: ${canary} }`,
    `listenOn: ${canary}`,
    `connector: [${canary}]`,
  ];
  for (const place of places)
    it(`is in no message: ${place.replaceAll(canary, '...').replaceAll('\n', ' ')}`, async () => {
      const kept = goodService.filter((line) => line.split(':')[0] !== place.split(':')[0]);
      const { problems, warnings, config } = await readText(
        `${serviceFile(...kept, place)}providers: { v: { kind: safe, auth: { method: ${canary}, token: ${canary} } } }\n`,
      );
      assert.equal(config, undefined);
      assert.ok(problems.length > 0);
      assert.ok(
        ![...lines(problems), ...lines(warnings)].join('\n').includes(canary),
        lines(problems).join('\n'),
      );
    });

  it('does not show when a configuration is printed or serialised', async () => {
    const { config } = await readText(good.replace('{ from: env, get: PGPASSWORD }', canary));
    const credentials = config?.services[0]?.credentials;
    assert.equal(credentials?.get('password')?.get, canary);
    assert.ok(!inspect(config, { depth: 20 }).includes(canary));
    assert.ok(
      !JSON.stringify(config, (_, value: unknown) => (value instanceof Map ? [...value] : value)).includes(
        canary,
      ),
    );
  });
});
