import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { stringify } from 'yaml';

import { parseYaml } from '../../src/config/yaml.ts';
import { goodService, lines, readFiles, readText, serviceFile } from './files.ts';

const good = serviceFile(...goodService);
const said = async (text: string | Buffer) => lines((await readText(text)).problems);

describe('a file', () => {
  it('may begin with a byte order mark and have Windows line ends', async () => {
    assert.deepEqual(await said(`\ufeff${good}`), []);
    assert.deepEqual(await said(good.replaceAll('\n', '\r\n')), []);
    assert.deepEqual(await said(`\ufeff${good}x: 1\n`.replaceAll('\n', '\r\n')), [
      'c.yaml:8:1: x: unknown key',
    ]);
  });

  it('that is empty is told so', async () => {
    for (const text of ['', '# nothing\n', '---\n', '~\n'])
      assert.match((await said(text))[0] ?? '', /^c\.yaml:\d:\d: the file is empty/);
  });

  it('that is no map is told so', async () => {
    for (const text of ['- a\n', 'text\n', '5\n'])
      assert.deepEqual(await said(text), [
        'c.yaml:1:1: must be a map of keys and values that begins with `version: 2`',
      ]);
  });

  it('tells all of its YAML errors with their places', async () => {
    assert.deepEqual(await said('version: 2\nservices:\n\tdb: x\nlimits: "\\q"\n'), [
      'c.yaml:3:1: a tab in the indentation; YAML wants spaces',
      'c.yaml:4:10: unknown escape sequence in a double-quoted value; use single quotes to keep a backslash',
    ]);
  });

  it('has each key once', async () => {
    assert.deepEqual(await said(`${good}limits: {}\nlimits: {}\n`), [
      'c.yaml:9:1: limits: is given twice; the first is in line 8',
    ]);
  });

  it('has no tags, no second document, and no keys that are not text', async () => {
    assert.deepEqual(await said(`${good}limits: !!js/function x\n`), [
      'c.yaml:8:9: YAML tags (!name) are not supported',
    ]);
    assert.match((await said(`${good}---\na: 1\n`)).join(), /a second document begins here/);
    assert.match((await said(`${good}? [a]\n: 1\n`)).join(), /a key must be plain text/);
  });

  it('cannot reach the prototype of anything', async () => {
    assert.deepEqual(await said(`${good}__proto__: { polluted: 1 }\n`), [
      'c.yaml:8:1: the key "__proto__" is not allowed',
    ]);
    assert.deepEqual(
      await said(good.replace('{ host: db.internal }', '{ host: a, parameters: { set: { __proto__: b } } }')),
      ['c.yaml:7:45: services.db.config.parameters.set: the key "__proto__" is not allowed'],
    );
    assert.deepEqual(await said(`${good}constructor: { prototype: { polluted: 1 } }\n`), [
      'c.yaml:8:1: constructor: unknown key',
    ]);
    const credentials = '{ username: { from: constructor, get: a } }';
    const [connector = '', listenOn = '', , config = ''] = goodService;
    assert.deepEqual(await said(serviceFile(connector, listenOn, `credentials: ${credentials}`, config)), [
      'c.yaml:6:38: services.db.credentials.username.from: no provider has this name',
    ]);
    assert.match((await said(good.replace('postgres', 'constructor')))[0] ?? '', /must be one of/);
    assert.equal(({} as Record<string, unknown>)['polluted'], undefined);
  });

  it('cannot grow by its aliases, nor contain itself', async () => {
    const laughs = Array.from(
      { length: 12 },
      (_, i) => `l${i + 1}: &l${i + 1} [${Array(10).fill(`*l${i}`).join(', ')}]`,
    );
    assert.deepEqual(await said(`l0: &l0 ha\n${laughs.join('\n')}\n`), [
      'c.yaml:6:9: l5: its aliases expand to too many values',
      'c.yaml:11:11: l10: its aliases expand to too many values',
    ]);
    assert.deepEqual(await said('a: &a [*a]\n'), [
      'c.yaml:1:8: a[0]: the alias stands inside the value it repeats',
    ]);
    assert.match((await said('a: *b\n'))[0] ?? '', /^c\.yaml:1:4: a: no anchor of this name/);
  });

  it('cannot be too large, no text, or no file', async () => {
    assert.deepEqual(await said(Buffer.alloc(1024 * 1024 + 1, 'a')), [
      'c.yaml: is larger than 1 MiB, which no configuration needs',
    ]);
    assert.deepEqual(await said(Buffer.from([0xff, 0xfe, 0x61, 0])), ['c.yaml: is not UTF-8 text']);
    const { problems } = await readFiles({}, ['/dev/null']);
    assert.deepEqual(lines(problems), ['/dev/null: is not a regular file']);
  });

  it('of any nesting is answered soon', async () => {
    const bombs = [
      '['.repeat(50_000),
      '{a: '.repeat(20_000),
      '- '.repeat(20_000),
      'a: '.repeat(10_000),
      '? '.repeat(5000),
    ];
    const deep = `version: 2\nservices: ${'['.repeat(200)}${']'.repeat(200)}\n`;
    for (const bomb of [...bombs, deep]) {
      const found = await said(bomb);
      assert.ok(found.length > 0 && found.length < 30);
    }
    const keys = Array.from({ length: 20_000 }, (_, index) => `k${index}: 1`).join('\n');
    assert.equal((await said(`version: 2\n${keys}\n`)).length, 20_001);
  });
});

describe('any input', () => {
  const word = fc.oneof(
    fc.constantFrom(
      'version',
      'services',
      'providers',
      'limits',
      'admin',
      'connector',
      'protocol',
      'listenOn',
      'credentials',
      'config',
      'from',
      'get',
      'kind',
      'pg',
      'postgres',
      'env',
      'vault',
      'literal',
      'host',
      'port',
      'tls',
      'mode',
      'tcp://127.0.0.1:1',
      'unix:///a',
      '10s',
      '<<',
      '__proto__',
      'constructor',
      'off',
      '',
    ),
    fc.string(),
  );
  const { tree } = fc.letrec((tie) => ({
    leaf: fc.oneof(word, fc.integer(), fc.double(), fc.boolean(), fc.constant(null), fc.bigInt()),
    tree: fc.oneof(
      { depthSize: 'small' },
      tie('leaf'),
      fc.array(tie('tree'), { maxLength: 4 }),
      fc.dictionary(word, tie('tree'), { maxKeys: 6 }),
    ),
  }));
  const services = fc.dictionary(word, tree, { maxKeys: 4 });

  it('that is YAML is a configuration or a list of problems, never an exception', async () => {
    await fc.assert(
      fc.asyncProperty(tree, services, services, async (any, some, more) => {
        for (const value of [any, { version: 2, services: some, providers: more, limits: any, admin: any }]) {
          const { config, problems } = await readText(stringify(value));
          assert.equal(config === undefined, problems.length > 0);
          for (const line of lines(problems)) assert.match(line, /^c\.yaml(:\d+:\d+)?: [^\n]+$/);
        }
      }),
      { numRuns: 150 },
    );
  });

  it('of characters that mean something to YAML is a tree or a list of faults', () => {
    const text = fc.string({
      unit: fc.constantFrom(...'ab01:-?[]{},&*!|>%@`\'"#~<.\\ \t\n\r'.split('')),
      maxLength: 80,
    });
    fc.assert(
      fc.property(text, (input) => {
        const { tree: parsed, faults } = parseYaml(input);
        assert.equal(parsed === undefined, faults.length > 0);
      }),
      { numRuns: 3000 },
    );
  });

  it('of bytes is answered', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 60 }), async (bytes) => {
        assert.ok((await readText(Buffer.from(bytes))).problems.length > 0);
      }),
      { numRuns: 200 },
    );
  });
});
