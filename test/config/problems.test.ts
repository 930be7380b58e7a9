import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { goodService, lines, readText, serviceFile, tables } from './files.ts';

const connectorNames = Object.keys(tables.connectors).join(', ');
const providerNames = Object.keys(tables.providers).join(', ');

const [connector = '', listenOn = '', credentials = '', config = ''] = goodService;

interface Case {
  readonly says: string;
  readonly text: string;
  readonly problems: readonly string[];
}

const cases: readonly Case[] = [
  {
    says: 'an unknown key of the file, with what was probably meant',
    text: `${serviceFile(...goodService)}limts: {}\n`,
    problems: ['c.yaml:8:1: limts: unknown key; did you mean "limits"?'],
  },
  {
    says: 'an unknown key of a service',
    text: serviceFile(...goodService, 'socketmode: "0600"'),
    problems: ['c.yaml:8:5: services.db.socketmode: unknown key; did you mean "socketMode"?'],
  },
  {
    says: 'an unknown key of a connector, deep inside',
    text: serviceFile(
      connector,
      listenOn,
      credentials,
      'config:',
      '  hosst: db',
      '  tls:',
      '    moed: verify-full',
    ),
    problems: [
      'c.yaml:8:7: services.db.config.hosst: unknown key; did you mean "host"?',
      'c.yaml:10:9: services.db.config.tls.moed: unknown key; did you mean "mode"?',
    ],
  },
  {
    says: 'an unknown key that is like nothing known, without a suggestion',
    text: serviceFile(...goodService, 'whatever: 1'),
    problems: ['c.yaml:8:5: services.db.whatever: unknown key'],
  },
  {
    says: 'a wrong word for a choice, with the choices',
    text: serviceFile(connector, listenOn, credentials, 'config: { host: db, tls: { mode: verify-ful } }'),
    problems: [
      'c.yaml:7:38: services.db.config.tls.mode: must be one of disable, require, verify-ca, verify-full; did you mean "verify-full"?',
    ],
  },
  {
    says: 'a number out of its range, one that is not whole, and text in its place',
    text: serviceFile(
      connector,
      listenOn,
      credentials,
      'config: { host: db, port: 70000, scramMaxIterations: 5000.5 }',
      'limits: { maxConnections: many }',
    ),
    problems: [
      'c.yaml:7:31: services.db.config.port: must be a whole number between 1 and 65535',
      'c.yaml:7:58: services.db.config.scramMaxIterations: must be a whole number between 4096 and 10000000',
      'c.yaml:8:31: services.db.limits.maxConnections: must be a whole number between 1 and 1000000',
    ],
  },
  {
    says: 'a number where text belongs',
    text: serviceFile(connector, listenOn, credentials, 'config: { host: db, database: 5 }'),
    problems: ['c.yaml:7:35: services.db.config.database: must be text: put it in quotes'],
  },
  {
    says: 'an entry of a list, by its index',
    text: serviceFile(connector, listenOn, credentials, 'config: { host: [db, 5] }'),
    problems: ['c.yaml:7:26: services.db.config.host[1]: must be text: put it in quotes'],
  },
  {
    says: 'a value of the wrong shape',
    text: serviceFile(connector, listenOn, credentials, 'config: { host: { name: db } }'),
    problems: ['c.yaml:7:21: services.db.config.host: must be text or a list of text'],
  },
  {
    says: 'a key without a value, and an empty value',
    text: serviceFile(connector, listenOn, credentials, 'config: { host: , database: "" }'),
    problems: [
      'c.yaml:7:21: services.db.config.host: has no value; it must be text or a list of text',
      'c.yaml:7:33: services.db.config.database: must not be empty',
    ],
  },
  {
    says: 'everything that a service lacks, at its name',
    text: 'version: 2\nservices:\n  db: {}\n',
    problems: [
      'c.yaml:3:3: services.db.connector: is required',
      'c.yaml:3:3: services.db.listenOn: is required',
    ],
  },
  {
    says: 'a required credential and a required setting',
    text: serviceFile('connector: strict', listenOn),
    problems: [
      'c.yaml:3:3: services.db.config.target: is required',
      'c.yaml:3:3: services.db.credentials.token: is required',
    ],
  },
  {
    says: 'a credential that the connector does not have',
    text: serviceFile(
      'connector: strict',
      listenOn,
      'credentials:',
      '  token: { from: env, get: T }',
      '  raelm: { from: env, get: R }',
      'config: { target: a }',
    ),
    problems: [
      'c.yaml:8:7: services.db.credentials.raelm: the connector has no such credential; did you mean "realm"?',
    ],
  },
  {
    says: 'what the connector finds wrong with the whole',
    text: serviceFile(
      'connector: strict',
      listenOn,
      'credentials: { token: x }',
      'config: { target: realm }',
    ),
    problems: ['c.yaml:7:15: services.db.config.target: needs a realm'],
  },
  {
    says: 'a connector that does not exist',
    text: serviceFile('connector: postgress', listenOn, credentials),
    problems: [
      `c.yaml:4:16: services.db.connector: must be one of ${connectorNames}; did you mean "postgres"?`,
    ],
  },
  {
    says: 'a connector that Secretless has and Postern does not',
    text: serviceFile('connector: ssh-agent', listenOn, credentials),
    problems: [
      `c.yaml:4:16: services.db.connector: Postern has no connector "ssh-agent" yet; it has ${connectorNames}`,
    ],
  },
  {
    says: 'both words for the connector',
    text: serviceFile(...goodService, 'protocol: pg'),
    problems: ['c.yaml:8:5: services.db.protocol: is an old word for `connector`; give one of them'],
  },
  {
    says: 'a provider that does not exist, and one that needs an entry',
    text: serviceFile(
      connector,
      listenOn,
      'credentials:',
      '  username: { from: evn, get: A }',
      '  password: { from: safe, get: 1 }',
      config,
    ),
    problems: [
      'c.yaml:7:25: services.db.credentials.username.from: no provider has this name; did you mean "env"?',
      'c.yaml:8:25: services.db.credentials.password.from: "safe" needs settings; describe it under `providers:`',
    ],
  },
  {
    says: 'a reference that its provider cannot read, and one with keys too many or missing',
    text: `${serviceFile(connector, listenOn, 'credentials:', '  username: { from: s, get: a }', '  password: { from: s, get: 1, gett: 2 }', '  realm: { from: s }', '  other: []', config)}providers: { s: { kind: safe, address: a } }\n`,
    problems: [
      'c.yaml:7:33: services.db.credentials.username.get: must be a number',
      'c.yaml:8:36: services.db.credentials.password.gett: unknown key; did you mean "get"?',
      'c.yaml:9:7: services.db.credentials.realm.get: is required',
      'c.yaml:10:14: services.db.credentials.other: must be `{from: PROVIDER, get: REFERENCE}` or the value itself',
    ],
  },
  {
    says: 'a provider of an unknown kind, without one, and with settings of another',
    text: `${serviceFile(...goodService)}providers:\n  a: { kind: evn }\n  b: {}\n  c: { kind: safe, adress: x }\n  d: { kind: safe, address: x, auth: { method: tokn } }\n  literal: { kind: env }\n`,
    problems: [
      `c.yaml:9:14: providers.a.kind: must be one of ${providerNames}; did you mean "env"?`,
      'c.yaml:10:3: providers.b.kind: is required',
      'c.yaml:11:3: providers.c.address: is required',
      'c.yaml:11:20: providers.c.adress: unknown key; did you mean "address"?',
      'c.yaml:12:48: providers.d.auth.method: must be one of token, none; did you mean "token"?',
      'c.yaml:13:20: providers.literal.kind: the name "literal" is taken: values written into the file go through it',
    ],
  },
  {
    says: 'a listener that other machines can reach',
    text: serviceFile(connector, 'listenOn: tcp://0.0.0.0:5432', credentials, config),
    problems: [
      'c.yaml:5:15: services.db.listenOn: tcp://0.0.0.0:5432 can be reached from other machines, and whoever reaches it is logged in without a password; listen on 127.0.0.1, or say `exposed: true` in this service if that is what you want',
    ],
  },
  {
    says: 'an address that is none, and one without a network',
    text: `${serviceFile(connector, 'listenOn: 127.0.0.1:5432', credentials, config)}admin: { listenOn: 9090 }\n`,
    problems: [
      'c.yaml:5:15: services.db.listenOn: must be an address such as tcp://127.0.0.1:5432 or unix:///run/postern/.s.PGSQL.5432',
      'c.yaml:8:20: admin.listenOn: must be an address such as tcp://127.0.0.1:5432 or unix:///run/postern/.s.PGSQL.5432',
    ],
  },
  {
    says: 'a socket mode without quotes, and one on a tcp listener',
    text: `${serviceFile(...goodService, 'socketMode: 0600')}  other:\n    connector: postgres\n    listenOn: tcp://127.0.0.1:5433\n    socketMode: "0600"\n    credentials: { username: a }\n    config: { host: db }\n`,
    problems: [
      'c.yaml:8:17: services.db.socketMode: must be text: put it in quotes',
      'c.yaml:12:5: services.other.socketMode: means nothing here: `listenOn` is not a unix socket',
    ],
  },
  {
    says: 'two services on one address, naming both',
    text: `${serviceFile(...goodService)}  other:\n${goodService.map((line) => `    ${line}\n`).join('')}`,
    problems: [
      'c.yaml:10:15: services.other.listenOn: tcp://127.0.0.1:5432 is also the address of the service "db" (c.yaml:3) (tcp://127.0.0.1:5432)',
    ],
  },
  {
    says: 'a service on the address of the admin listener, the default one too',
    text: serviceFile(connector, 'listenOn: tcp://127.0.0.1:9090', credentials, config),
    problems: [
      'c.yaml:5:15: services.db.listenOn: tcp://127.0.0.1:9090 is also the address of the admin listener (tcp://127.0.0.1:9090)',
    ],
  },
  {
    says: 'a name that would forge a log line',
    text: 'version: 2\nservices:\n  "a\\nb c": {}\n  ok: 5\n',
    problems: [
      'c.yaml:3:3: services."a\\nb c": a name has letters, digits, ".", "_" and "-", at most 128 of them',
      'c.yaml:4:7: services.ok: must be a map of keys and values',
    ],
  },
  {
    says: 'that there is no service',
    text: 'version: 2\nservices:\n',
    problems: ['c.yaml:2:1: services: is required: at least one service'],
  },
  {
    says: 'services that are no map',
    text: 'version: 2\nservices: [a]\n',
    problems: ['c.yaml:2:11: services: must be a map of keys and values'],
  },
  {
    says: 'a missing version once, whatever else is wrong',
    text: 'services: { db: { x: y } }\n',
    problems: [
      'c.yaml:1:1: version: is required: write `version: 2` (Secretless takes a file without it for its version 1, which must be converted)',
    ],
  },
  {
    says: 'another version',
    text: 'version: 3\nservices: {}\n',
    problems: ['c.yaml:1:10: version: must be 2'],
  },
];

describe('the problems of a configuration', () => {
  for (const { says, text, problems } of cases)
    it(`tells ${says}`, async () => {
      const reading = await readText(text);
      assert.deepEqual(lines(reading.problems), problems);
      assert.equal(reading.config, undefined);
    });

  it('tell a Secretless version 1 file to be converted, and nothing else', async () => {
    for (const text of ['listeners: []\nhandlers: []\n', 'version: 1\nlisteners: []\n']) {
      const { problems } = await readText(text);
      assert.equal(problems.length, 1);
      assert.match(lines(problems)[0] ?? '', /^c\.yaml:1:1: version: .*must be converted to version 2/);
    }
  });

  it('are said once for a default that the file does not write', async () => {
    const { problems } = await readText(serviceFile('connector: postgres', 'listenOn: tcp://127.0.0.1:1'));
    assert.ok(lines(problems).includes('c.yaml:3:3: services.db.credentials.username: is required'));
  });
});

describe('a duration', () => {
  const drain = async (written: string) => {
    const { config: parsed, problems } = await readText(
      serviceFile(...goodService, `limits: { drainTimeout: ${written} }`),
    );
    return parsed?.services[0]?.limits.drainTimeout ?? lines(problems);
  };

  for (const [written, milliseconds] of [
    ['500ms', 500],
    ['10s', 10_000],
    ['5m', 300_000],
    ['1h', 3_600_000],
    ['0s', 0],
    ['"7s"', 7000],
  ] as const)
    it(`may be ${written}`, async () => assert.equal(await drain(written), milliseconds));

  for (const written of ['10', '1.5s', '10 s', '-1s', '1d', '1h30m', 's', '10S'])
    it(`may not be ${written}`, async () => {
      const found = await drain(written);
      assert.ok(Array.isArray(found) && found.length === 1, String(found));
      assert.match(
        found[0] ?? '',
        /^c\.yaml:8:29: services\.db\.limits\.drainTimeout: .*a duration.* 500ms, 10s, 5m or 1h$/,
      );
    });

  it('may not be longer than a timer can wait', async () => {
    assert.deepEqual(await drain('600h'), [
      'c.yaml:8:29: services.db.limits.drainTimeout: longer than 24 days',
    ]);
  });
});
