import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import postgres from 'postgres';

import { psql } from '../support/clients/psql.ts';
import type { Postern } from '../support/postern.ts';
import { server } from '../support/servers.ts';
import {
  application,
  ask,
  keep,
  loginOf,
  perform,
  refused,
  type ServiceOptions,
  shared,
  towards,
  viaPsql,
} from './stage.ts';
import { Wire } from './wire.ts';

const notAllowed = '42501';
const place = [
  ['user', 'anybody'],
  ['database', 'app'],
] as const;

describe('what an application may decide about its session', () => {
  let postern: Postern | undefined;

  const scene = shared(async () => {
    const [bao, pg18, pgbouncer] = [
      await server('openbao'),
      await server('postgres18'),
      await server('pgbouncer'),
    ];
    const credentials = await loginOf(bao, 'scram_user');
    const pinnedByStore = await keep(bao, { application_name: 'from-the-store' });
    const config = towards(pg18);
    const policies: Record<string, Record<string, unknown>> = {
      open: {},
      'one-database': { database: 'app' },
      databases: { databases: ['app', 'template1'] },
      allow: { parameters: { allow: ['application_name', 'client_encoding', 'search_path'] } },
      'allow-and-drop': { parameters: { allow: ['application_name'], otherwise: 'drop' } },
      deny: { parameters: { deny: ['work_mem', 'role', 'session_authorization'] } },
      'deny-and-drop': { parameters: { deny: ['work_mem'], otherwise: 'drop' } },
      set: { parameters: { set: { application_name: 'pinned', statement_timeout: '4321ms' } } },
      'set-options': { parameters: { set: { options: '-c work_mem=5555kB' } } },
      replication: { replication: true },
    };
    const services: Record<string, ServiceOptions> = Object.fromEntries(
      Object.entries(policies).map(([name, more]) => [name, { credentials, config: { ...config, ...more } }]),
    );
    services['others'] = { credentials: { ...credentials, ...pinnedByStore.references }, config };
    services['pgbouncer'] = {
      credentials,
      config: {
        host: 'localhost',
        port: pgbouncer.port,
        tls: { ca: pgbouncer.ca },
        parameters: { deny: ['search_path'], otherwise: 'drop' },
      },
    };
    postern = await perform(bao, services);
    return postern;
  });

  after(() => postern?.stop());

  /** The setting as a session with these startup parameters has it, or the SQLSTATE of the refusal. */
  const setting = async (
    port: number,
    name: string,
    parameters: readonly (readonly [string, string])[],
  ): Promise<unknown> => {
    using wire = await Wire.open(port, [['user', 'anybody'], ['database', 'app'], ...parameters]);
    if (wire.refusal) return wire.refusal['C'];
    const rows = await wire.ask(`select current_setting('${name}')`);
    return typeof rows === 'string' ? rows : rows[0]?.[0];
  };

  it('chooses the database', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const port = program.port('open');
    for (const database of ['app', 'postgres', 'template1'])
      assert.equal((await ask(port, 'select current_database() as it', { database }))['it'], database);
    const { code, message } = await refused(port, { database: 'notfound' });
    assert.deepEqual([code, message], ['3D000', 'database "notfound" does not exist']);
  });

  it('gets the database of its own user name when it names none, as from the server', async (t) => {
    const program = await scene(t);
    if (!program) return;
    using wire = await Wire.open(program.port('open'), [['user', 'app']]);
    assert.deepEqual(await wire.ask('select current_database(), current_user'), [['app', 'scram_user']]);
    using none = await Wire.open(program.port('open'), [['user', 'nobody_here']]);
    assert.equal(none.refusal?.['C'], '3D000');
    using nobody = await Wire.open(program.port('open'), []);
    assert.equal(nobody.refusal?.['C'], '28000');
  });

  it('is who the store says, whatever user it names', async (t) => {
    const program = await scene(t);
    if (!program) return;
    for (const user of ['postgres', 'admin', 'scram_user', "x'; drop table notes; --"])
      assert.equal(
        (await ask(program.port('open'), 'select session_user as it', { user }))['it'],
        'scram_user',
      );
    using twice = await Wire.open(program.port('open'), [
      ['user', 'admin'],
      ['database', 'app'],
      ['user', 'postgres'],
    ]);
    assert.deepEqual(await twice.ask('select session_user'), [['scram_user']]);
  });

  it('may be given an empty password, or a wrong one, as it is not looked at', async (t) => {
    const program = await scene(t);
    if (!program) return;
    for (const password of ['', 'wrong'])
      assert.equal(
        (await ask(program.port('open'), 'select session_user as it', { password }))['it'],
        'scram_user',
      );
  });

  it('names things in any script', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const name = 'd\u00E4t\u00E4-\u{1F418}';
    const there = await refused(program.port('open'), { database: name });
    assert.deepEqual([there.code, there.message], ['3D000', `database "${name}" does not exist`]);
    const here = await refused(program.port('databases'), { database: name });
    assert.equal(here.message, `postern: database "${name}" is not allowed by this service`);
    // The server replaces what is not ASCII in this one.
    const asked = String(
      await setting(program.port('open'), 'application_name', [['application_name', name]]),
    );
    assert.equal(asked, String.raw`d\xc3\xa4t\xc3\xa4-\xf0\x9f\x90\x98`);
  });

  it('gets protocol 3.2 at most, and hears which options are not known', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const strange = ['_pq_.strange', 'yes'] as const;
    using wire = await Wire.open(program.port('open'), [...place, strange], 0x0003_270f);
    const [negotiate] = wire.greeting;
    assert.equal(negotiate?.type, 'v');
    assert.equal(negotiate.body.readInt32BE(), 0x0003_0002);
    assert.equal(negotiate.body.toString('latin1', 8), '_pq_.strange\0');
    assert.deepEqual(await wire.ask('select session_user'), [['scram_user']]);
    using two = await Wire.open(program.port('open'), place, 0x0002_0000);
    assert.equal(two.refusal?.['C'], '0A000');
  });

  it('names itself', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const place = `host=127.0.0.1 port=${program.port('open')} dbname=app user=anybody`;
    assert.equal(await viaPsql(`${place} application_name=orders`, 'show application_name'), 'orders');
    const line = await program.logged((each) => each['application'] === 'orders');
    assert.deepEqual([line['askedUser'], line['database']], ['anybody', 'app']);
  });

  const encodings = {
    latin1: ['LATIN1', 't\uFFFDst'],
    'euc-jp': ['EUC_JP', undefined],
    '': ['UTF8', 't\u00E9st'],
  } as const;
  for (const [asked, [encoding, row]] of Object.entries(encodings))
    it(`gets rows in the encoding that it asks for (${asked || 'none'})`, async (t) => {
      const program = await scene(t);
      if (!program) return;
      const place = `host=127.0.0.1 port=${program.port('open')} dbname=app user=anybody`;
      const env = asked ? { PGCLIENTENCODING: asked } : {};
      assert.equal(await viaPsql(place, 'show client_encoding', env), encoding);
      // The single byte 0xE9 of LATIN1 is no UTF-8.
      if (row) assert.equal(await viaPsql(place, String.raw`select U&'t\00E9st'`, env), row);
    });

  it('sets anything that it could also set by SQL, through `options`', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const place = `host=127.0.0.1 port=${program.port('open')} dbname=app user=anybody`;
    assert.equal(
      await viaPsql(`${place} options='-c search_path=pg_catalog,public'`, 'show search_path'),
      'pg_catalog,public',
    );
    const withSpace = String.raw`-c DateStyle=ISO,\ DMY --work-mem=6MB`;
    assert.equal(await viaPsql(place, 'show datestyle', { PGOPTIONS: withSpace }), 'ISO, DMY');
    const client = await application(program.port('open'), { options: '-c statement_timeout=50' });
    await assert.rejects(client.query('select pg_sleep(10)'), { code: '57014' });
    await client.end();
    assert.equal(await setting(program.port('open'), 'work_mem', [['options', '--work-mem=6MB']]), '6MB');
  });

  it('sends the startup parameters of JDBC, Rails and postgres.js', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const sql = postgres({
      host: '127.0.0.1',
      port: program.port('open'),
      user: 'anybody',
      database: 'app',
      max: 1,
      connection: {
        application_name: 'PostgreSQL JDBC Driver',
        DateStyle: 'ISO, DMY',
        TimeZone: 'Asia/Tokyo',
        extra_float_digits: '2',
        search_path: 'information_schema',
        standard_conforming_strings: 'on',
        intervalstyle: 'iso_8601',
      },
    });
    try {
      const settings = [
        'application_name',
        'DateStyle',
        'TimeZone',
        'extra_float_digits',
        'search_path',
        'intervalstyle',
      ];
      const rows =
        await sql`select current_setting(name) as it from unnest(${settings}::text[]) with ordinality s (name, n) order by n`;
      assert.deepEqual(
        rows.map(({ it: value }) => value as unknown),
        ['PostgreSQL JDBC Driver', 'ISO, DMY', 'Asia/Tokyo', '2', 'information_schema', 'iso_8601'],
      );
    } finally {
      await sql.end();
    }
  });

  it("hears the server's own error about a setting, with every field", async (t) => {
    const program = await scene(t);
    if (!program) return;
    using wire = await Wire.open(program.port('open'), [
      ['user', 'anybody'],
      ['database', 'app'],
      ['there_is_no_such_setting', '1'],
    ]);
    assert.equal(wire.refusal?.['C'], '42704');
    assert.match(
      wire.refusal?.['M'] ?? '',
      /unrecognized configuration parameter "there_is_no_such_setting"/,
    );
    for (const field of ['S', 'V', 'F', 'L', 'R']) assert.ok(wire.refusal?.[field], field);
    using super_ = await Wire.open(program.port('open'), [
      ['user', 'anybody'],
      ['database', 'app'],
      ['log_statement', 'all'],
    ]);
    assert.equal(super_.refusal?.['C'], notAllowed);
    assert.doesNotMatch(super_.refusal?.['M'] ?? '', /^postern/);
  });

  it('gets the pinned database, whatever it asks for', async (t) => {
    const program = await scene(t);
    if (!program) return;
    for (const database of ['postgres', 'template1', 'notfound'])
      assert.equal(
        (await ask(program.port('one-database'), 'select current_database() as it', { database }))['it'],
        'app',
      );
    using wire = await Wire.open(program.port('one-database'), [
      ['user', 'x'],
      ['database', 'a'],
      ['database', 'postgres'],
    ]);
    assert.deepEqual(await wire.ask('select current_database()'), [['app']]);
  });

  it('gets no database that is not on the list', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const port = program.port('databases');
    assert.equal(
      (await ask(port, 'select current_database() as it', { database: 'template1' }))['it'],
      'template1',
    );
    for (const database of ['postgres', 'APP', 'app ', 'notfound']) {
      const { code, message } = await refused(port, { database });
      assert.equal(code, notAllowed);
      assert.equal(message, `postern: database "${database}" is not allowed by this service`);
    }
    // The server takes the last one of several.
    using last = await Wire.open(port, [
      ['user', 'x'],
      ['database', 'app'],
      ['database', 'postgres'],
    ]);
    assert.equal(last.refusal?.['C'], notAllowed);
    using asUser = await Wire.open(port, [['user', 'postgres']]);
    assert.equal(asUser.refusal?.['C'], notAllowed);
  });

  it('sends no parameter that is not allowed', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const port = program.port('allow');
    assert.equal(await setting(port, 'application_name', [['application_name', 'fine']]), 'fine');
    assert.equal(await setting(port, 'search_path', [['options', '-c search_path=fine']]), 'fine');
    assert.equal(await setting(port, 'search_path', [['SEARCH_PATH', 'fine']]), 'fine');
    assert.equal(await setting(port, 'work_mem', [['work_mem', '7MB']]), notAllowed);
    assert.equal(await setting(port, 'work_mem', [['options', '-c work_mem=7MB']]), notAllowed);
    assert.equal(
      await setting(port, 'work_mem', [['options', '-c search_path=a --work-mem=7MB']]),
      notAllowed,
    );
    assert.equal(await setting(port, 'work_mem', [['options', '-d 5']]), notAllowed);
  });

  it('has what is not allowed left out where the service says so', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const port = program.port('allow-and-drop');
    const usual = await setting(port, 'work_mem', []);
    assert.equal(await setting(port, 'work_mem', [['work_mem', '7MB']]), usual);
    assert.equal(await setting(port, 'work_mem', [['options', '-c work_mem=7MB']]), usual);
    assert.equal(
      await setting(port, 'application_name', [['options', '-c work_mem=7MB -c application_name=x']]),
      'x',
    );
  });

  const ways = [
    [['work_mem', '7MB']],
    [['WORK_MEM', '7MB']],
    [['Work_Mem', '7MB']],
    [['sort_mem', '7MB']],
    [['options', '-c work_mem=7MB']],
    [['options', '-cwork_mem=7MB']],
    [['options', '-c WORK_MEM=7MB']],
    [['options', '--work-mem=7MB']],
    [['options', '--work_mem=7MB']],
    [['options', String.raw`-c w\ork_mem=7MB`]],
    [['options', String.raw`\-c work_mem=7MB`]],
    [['options', '-c\vwork_mem=7MB']],
    [['options', '-S 7168']],
    [['options', '-B16 -c work_mem=7MB']],
    [
      ['options', '-c search_path=a'],
      ['options', '-c work_mem=7MB'],
    ],
  ] as const;
  for (const parameters of ways) {
    const shown = parameters.map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join(', ');

    it(`cannot set what is denied by ${shown}`, async (t) => {
      const program = await scene(t);
      if (!program) return;
      assert.equal(await setting(program.port('deny'), 'work_mem', parameters), notAllowed);
    });

    it(`cannot set what is silently denied by ${shown}`, async (t) => {
      const program = await scene(t);
      if (!program) return;
      const port = program.port('deny-and-drop');
      const usual = await setting(port, 'work_mem', []);
      assert.notEqual(usual, '7MB');
      // What is more than a setting (-S, -B) cannot be left out safely.
      assert.ok([usual, notAllowed].includes(await setting(port, 'work_mem', parameters)));
    });
  }

  it('cannot become another role at the start where that is denied', async (t) => {
    const program = await scene(t);
    if (!program) return;
    assert.equal(await setting(program.port('deny'), 'role', [['role', 'admin']]), notAllowed);
    assert.equal(await setting(program.port('deny'), 'role', [['options', '-c Role=admin']]), notAllowed);
  });

  const overrides = [
    [
      ['application_name', 'mine'],
      ['statement_timeout', '1'],
    ],
    [
      ['APPLICATION_NAME', 'mine'],
      ['Statement_Timeout', '1'],
    ],
    [['options', '-c application_name=mine -c statement_timeout=1']],
    [['options', '--application-name=mine --Statement-Timeout=1']],
    [['options', String.raw`-c application\_name=mine -c s\tatement_timeout=1`]],
  ] as const;
  for (const parameters of overrides)
    it(`cannot override what the configuration sets by ${JSON.stringify(parameters)}`, async (t) => {
      const program = await scene(t);
      if (!program) return;
      const port = program.port('set');
      assert.equal(await setting(port, 'application_name', parameters), 'pinned');
      assert.equal(await setting(port, 'statement_timeout', parameters), '4321ms');
    });

  for (const parameters of ways)
    it(`cannot override what the configuration sets through \`options\` by ${JSON.stringify(parameters)}`, async (t) => {
      const program = await scene(t);
      if (!program) return;
      const it = await setting(program.port('set-options'), 'work_mem', parameters);
      assert.ok(['5555kB', notAllowed].includes(String(it)), String(it));
    });

  it('adds its `options` behind those that the configuration sets, and overrides none of the others', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const port = program.port('set-options');
    assert.equal(await setting(port, 'work_mem', []), '5555kB');
    assert.equal(await setting(port, 'search_path', [['options', '-c search_path=mine']]), 'mine');
  });

  it('cannot override a credential that is a startup parameter', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const port = program.port('others');
    assert.equal(await setting(port, 'application_name', []), 'from-the-store');
    assert.equal(await setting(port, 'application_name', [['application_name', 'mine']]), 'from-the-store');
    assert.equal(
      await setting(port, 'application_name', [['options', '-c application_name=mine']]),
      'from-the-store',
    );
    assert.equal(await setting(port, 'work_mem', [['work_mem', '7MB']]), '7MB');
  });

  it('opens no replication connection, and hears which setting would allow it', async (t) => {
    const program = await scene(t);
    if (!program) return;
    for (const replication of ['database', 'true', '1', 'on', 'yes', 'DataBase'])
      for (const name of ['open', 'deny']) {
        using wire = await Wire.open(program.port(name), [
          ['user', 'x'],
          ['database', 'app'],
          ['replication', replication],
        ]);
        assert.equal(wire.refusal?.['C'], '0A000');
        assert.match(wire.refusal?.['H'] ?? '', /`replication: true`/);
      }
    using ordinary = await Wire.open(program.port('open'), [
      ['user', 'x'],
      ['database', 'app'],
      ['replication', 'off'],
    ]);
    assert.equal(ordinary.refusal, undefined);
    assert.equal(await ordinary.ask('IDENTIFY_SYSTEM'), '42601');
  });

  it('opens a replication connection where the service allows it', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const place = `host=127.0.0.1 port=${program.port('replication')} dbname=app user=anybody`;
    assert.match(
      await viaPsql(`${place} replication=database`, 'IDENTIFY_SYSTEM'),
      /^\d+\|\d+\|[0-9A-F]+\/[0-9A-F]+\|app$/,
    );
    assert.match(
      await viaPsql(`${place} replication=true`, 'IDENTIFY_SYSTEM'),
      /^\d+\|\d+\|[0-9A-F]+\/[0-9A-F]+\|$/,
    );
    assert.equal(await viaPsql(place, 'select current_user'), 'scram_user');
  });

  it('reaches PgBouncer, without the parameter that it would not take', async (t) => {
    const program = await scene(t);
    if (!program) return;
    const { stdout, stderr } = await psql(
      [
        '-Atc',
        "select current_user, current_setting('application_name')",
        `host=127.0.0.1 port=${program.port('pgbouncer')} dbname=app user=anybody`,
      ],
      { env: { PGAPPNAME: 'pooled' } },
    );
    assert.equal(stdout.trim(), 'scram_user|pooled', stderr);
    assert.equal(
      await setting(program.port('pgbouncer'), 'application_name', [
        ['search_path', 'x'],
        ['application_name', 'y'],
      ]),
      'y',
    );
  });
});
