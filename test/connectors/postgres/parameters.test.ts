import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';

import type { StartupHello } from '../../../src/connectors/postgres/client.ts';
import type { Parameter } from '../../../src/connectors/postgres/messages.ts';
import { startupRequest } from '../../../src/connectors/postgres/parameters.ts';
import { settings as schema } from '../../../src/connectors/postgres/settings.ts';
import { PosternError } from '../../../src/core/errors.ts';
import { fieldsOf } from '../../support/fake-postgres.ts';

type Policy = { allow?: string[]; deny?: string[]; otherwise?: 'refuse' | 'drop' };

/** What the server would be asked for, without `database`. */
function ask(
  parameters: readonly Parameter[],
  policy: Policy = {},
  pinned: readonly Parameter[] = [],
  more: Record<string, unknown> = {},
): Parameter[] {
  const hello: StartupHello = {
    kind: 'startup',
    askedMinor: 0,
    minor: 0,
    parameters: [['user', 'whoever'], ...parameters],
    unknownOptions: [],
  };
  const settings = schema.parse({ host: 'db', parameters: policy, ...more });
  const [database, ...rest] = startupRequest(hello, settings, pinned).parameters;
  assert.equal(database?.[0], 'database');
  return rest;
}

/** The settings that a server reads from `options`, in order: an independent reading of pg_split_opts and getopt. */
function settingsOf(options: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  let escaped = false;
  for (const character of options) {
    if (!escaped && ' \t\n\v\f\r'.includes(character)) {
      if (word !== undefined) words.push(word);
      word = undefined;
      continue;
    }
    word ??= '';
    if (!escaped && character === '\\') escaped = true;
    else {
      escaped = false;
      word += character;
    }
  }
  if (word !== undefined) words.push(word);

  const found: string[] = [];
  for (let i = 0; i < words.length; i += 1) {
    const each = words[i] ?? '';
    let setting = each.slice(2);
    if (each === '-c') setting = words[(i += 1)] ?? '';
    const equals = setting.indexOf('=');
    found.push(setting.slice(0, equals).replaceAll('-', '_') + setting.slice(equals));
  }
  return found;
}

function refusedWith(sqlstate: string, text: RegExp) {
  return (thrown: unknown) => {
    assert.ok(thrown instanceof PosternError && thrown.reply);
    const { C, M } = fieldsOf(thrown.reply.subarray(5));
    assert.equal(C, sqlstate);
    assert.match(M ?? '', text);
    assert.equal(thrown.code, 'CLIENT_REFUSED');
    return true;
  };
}

describe('startup parameters without a policy', () => {
  it('pass as they are, in order, also when they come twice', () => {
    const parameters: Parameter[] = [
      ['client_encoding', "'utf-8'"],
      ['search_path', 'a'],
      ['SEARCH_PATH', 'b'],
      ['search_path', 'c'],
      ['unknown', ''],
    ];
    assert.deepEqual(ask(parameters), parameters);
  });

  it('pass `options` byte for byte', () => {
    for (const options of ['-c a=b', '  -c  a=b\\ c ', '-B 12 -e', '\\', '-c caf\u00c3\u00a9=\u00c3\u00a0'])
      assert.deepEqual(ask([['options', options]]), [['options', options]]);
  });

  it('leave out empty options', () => {
    assert.deepEqual(ask([['options', '']]), []);
  });
});

describe('a policy for startup parameters', () => {
  const ways: [string, Parameter][] = [
    ['by name', ['search_path', 'evil']],
    ['by name in capitals', ['SEARCH_PATH', 'evil']],
    ['as -c name=value', ['options', '-c search_path=evil']],
    ['as -cname=value', ['options', '-csearch_path=evil']],
    ['as --name=value', ['options', '--search_path=evil']],
    ['as --name-with-dashes=value', ['options', '--search-path=evil']],
    ['as -c name-with-dashes=value', ['options', '-c search-path=evil']],
    ['in capitals in options', ['options', '-c SEARCH_PATH=evil']],
    ['behind an allowed one', ['options', '-c jit=off -c search_path=evil']],
    ['with tabs and line ends', ['options', '\t-c\nsearch_path=evil\r']],
    ['with escaped letters', ['options', '-c sear\\ch\\_path=evil']],
    ['with an escaped dash', ['options', '\\-c search_path=evil']],
    ['with an escaped equals sign', ['options', '-c search_path\\=evil']],
  ];

  for (const [way, parameter] of ways) {
    it(`refuses what it denies, given ${way}`, () => {
      assert.throws(
        () => ask([parameter], { deny: ['search_path'] }),
        refusedWith('42501', /startup parameter "search.path" is not allowed/i),
      );
    });
    it(`refuses what it does not allow, given ${way}`, () => {
      assert.throws(() => ask([parameter], { allow: ['jit'] }), refusedWith('42501', /not allowed/));
    });
    it(`drops it where it says so, given ${way}`, () => {
      const asked = ask([parameter], { deny: ['search_path'], otherwise: 'drop' });
      assert.doesNotMatch(JSON.stringify(asked), /evil/);
    });
    it(`does not let it override what is pinned, given ${way}`, () => {
      const asked = ask([parameter], {}, [['search_path', 'good']]);
      assert.doesNotMatch(JSON.stringify(asked), /evil/);
      assert.deepEqual(asked[0], ['search_path', 'good']);
    });
  }

  it('compares the names of its lists as the server would', () => {
    assert.throws(
      () => ask([['search_path', 'x']], { deny: ['Search-Path'] }),
      refusedWith('42501', /not allowed/),
    );
    assert.deepEqual(ask([['TimeZone', 'UTC']], { allow: ['timezone'] }), [['TimeZone', 'UTC']]);
  });

  for (const [old, now] of [
    ['sort_mem', 'work_mem'],
    ['vacuum_mem', 'maintenance_work_mem'],
  ] as const)
    it(`knows ${old} for the old name of ${now}, which the server still takes`, () => {
      assert.throws(() => ask([[old, '1']], { deny: [now] }), refusedWith('42501', /not allowed/));
      assert.deepEqual(ask([['options', `-c ${old}=1`]], {}, [[now, '2']]), [[now, '2']]);
    });

  it('does not let a denied setting through as part of a name', () => {
    for (const options of ['-c\\ role=evil', '-c \\\trole=evil', '--\\\nrole=evil', '-cx\\ -crole=evil']) {
      const [asked] = ask([['options', options]], { deny: ['role'] });
      const settings = settingsOf(asked?.[1] ?? '');
      assert.ok(settings.length === 1 && !settings[0]?.startsWith('role='), JSON.stringify(settings));
    }
  });

  it('keeps the values of what it lets pass, whatever bytes are in them', () => {
    for (const value of [
      'a b',
      'a\\b',
      '\\ ',
      'caf\u00c3\u00a9',
      '\u00c3\u00a0 la',
      '\'x\' = "y"',
      '-c',
      'a=b=c',
      '\u00a0',
      '\u0085',
    ]) {
      const escaped = value.replaceAll(/[ \\]/g, '\\$&');
      const asked = ask([['options', `-c application_name=${escaped} --jit=off`]], { deny: ['search_path'] });
      assert.deepEqual(settingsOf(asked[0]?.[1] ?? ''), [`application_name=${value}`, 'jit=off']);
    }
  });

  it('reads and writes `options` as the server does, for any text of settings', () => {
    const name = fc.stringMatching(/^[a-z][a-z_-]{0,8}$/);
    const value = fc.string({
      unit: fc.constantFrom(...'ab=\\ \t\n\v\f\r-\u00a0\u0085\u00ff\u00c3'.split('')),
      maxLength: 8,
    });
    const space = fc.stringMatching(/^[ \t\n\v\f\r]{1,3}$/);
    const setting = fc
      .tuple(name, value, space, space, fc.constantFrom('-c', '-c ', '--'))
      .map(([key, text, before, within, style]) => {
        const escaped = text.replaceAll(/[ \t\n\v\f\r\\]/g, '\\$&');
        return `${before}${style.replace(' ', within)}${key}=${escaped}`;
      });
    fc.assert(
      fc.property(fc.array(setting, { maxLength: 5 }), (settings) => {
        const options = settings.join('');
        const asked = ask([['options', options]], { deny: ['nothing'] });
        assert.deepEqual(settingsOf(asked[0]?.[1] ?? ''), settingsOf(options));
      }),
    );
  });

  it('never lets a denied setting through, whatever the text of `options`', () => {
    const piece = fc.constantFrom(
      '-c',
      '--',
      '-',
      'role',
      'ROLE',
      'r',
      'ole',
      '=',
      'x',
      ' ',
      '\\',
      '\t',
      '\u00a0',
      'jit=off',
      '-e',
      '_',
      '\u0085',
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 14 }), (pieces) => {
        let asked: Parameter[];
        try {
          asked = ask([['options', pieces.join('')]], { deny: ['role'] });
        } catch (error) {
          assert.ok(error instanceof PosternError);
          return;
        }
        for (const setting of settingsOf(asked[0]?.[1] ?? '')) assert.doesNotMatch(setting, /^role=/i);
      }),
      { numRuns: 20_000 },
    );
  });

  it('refuses options that are not settings', () => {
    for (const options of [
      '-B 12',
      '-e',
      '-c',
      '-c jit',
      '--',
      '--jit',
      'jit=off',
      '-c =x',
      '-- jit=off',
      '-d5 -c jit=off',
    ])
      assert.throws(
        () => ask([['options', options]], { deny: ['role'] }),
        refusedWith('42501', /more than settings/),
        options,
      );
  });

  it('can deny `options` altogether', () => {
    assert.throws(
      () => ask([['options', '-c jit=off']], { deny: ['options'] }),
      refusedWith('42501', /"options" is not allowed/),
    );
    assert.deepEqual(ask([['options', '-c jit=off']], { deny: ['options'], otherwise: 'drop' }), []);
    assert.deepEqual(ask([['options', '']], { deny: ['options'] }), []);
  });

  it('puts pinned options before those of the client', () => {
    assert.deepEqual(ask([['options', '-c jit=off']], {}, [['options', 'endpoint=blue']]), [
      ['options', 'endpoint=blue -c jit=off'],
    ]);
  });

  it('quotes names that a client made up without what could steer a terminal, and not at length', () => {
    for (const name of ['\u001b[31mred', 'x'.repeat(9000), 'a\r\nb', '\u00e2\u0080\u00ae'])
      for (const attempt of [
        () => ask([[name, 'x']], { allow: ['jit'] }),
        () => ask([['database', name]], {}, [], { databases: ['orders'] }),
      ])
        assert.throws(attempt, (error: PosternError) => {
          assert.doesNotMatch(error.message, /[\p{Cc}\p{Cf}]/u);
          assert.ok(error.message.length < 500);
          return true;
        });
  });
});

describe('the database of a session', () => {
  const database = (parameters: Parameter[], more: Record<string, unknown>) => {
    const hello: StartupHello = { kind: 'startup', askedMinor: 0, minor: 0, parameters, unknownOptions: [] };
    return startupRequest(hello, schema.parse({ host: 'db', ...more }), []).database;
  };

  it('is the pinned one, whatever the client asks for', () => {
    for (const parameters of [[], [['database', 'other']], [['user', 'x']]] as Parameter[][])
      assert.equal(database(parameters, { database: 'or\u00e9' }), 'or\u00c3\u00a9');
  });

  it('must be in the list, where there is one', () => {
    const databases = ['orders', 'caf\u00e9'];
    assert.equal(database([['database', 'orders']], { databases }), 'orders');
    assert.equal(database([['user', 'orders']], { databases }), 'orders');
    assert.equal(database([['database', 'caf\u00c3\u00a9']], { databases }), 'caf\u00c3\u00a9');
    for (const asked of ['other', 'Orders', 'orders ', ''])
      assert.throws(
        () =>
          database(
            [
              ['user', 'x'],
              ['database', asked],
            ],
            { databases },
          ),
        refusedWith('42501', /is not allowed/),
      );
  });
});

describe('a replication connection', () => {
  it('needs a permission, however it is asked for', () => {
    for (const value of [
      'true',
      'TRUE',
      'on',
      '1',
      'yes',
      'database',
      'DATABASE',
      't',
      'y',
      '',
      'nonsense',
      'o',
    ])
      assert.throws(
        () => ask([['replication', value]]),
        refusedWith('0A000', /replication connections are not allowed/),
        value,
      );
    assert.deepEqual(ask([['replication', 'database']], {}, [], { replication: true }), [
      ['replication', 'database'],
    ]);
  });

  it('is not asked for by any of the words for no', () => {
    for (const value of ['false', 'FALSE', 'f', 'fal', 'off', 'OFF', 'of', '0', 'no', 'n'])
      assert.deepEqual(ask([['replication', value]]), [], value);
  });

  it('is judged by the last value, as the server does', () => {
    assert.throws(
      () =>
        ask([
          ['replication', 'off'],
          ['replication', 'on'],
        ]),
      refusedWith('0A000', /replication/),
    );
    assert.deepEqual(
      ask([
        ['replication', 'on'],
        ['replication', 'off'],
      ]),
      [],
    );
  });
});
