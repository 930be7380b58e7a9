import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { errorCodes } from '../../src/core/errors.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const page = readFileSync(`${root}ARCHITECTURE.md`, 'utf8');
/** What stands in the frames of the page: the journey, that of a MySQL client, that of an HTTP request, the tree. */
const [journey = '', journeyOfMysql = '', journeyOfHttp = '', tree = ''] = [
  ...page.matchAll(/^```\n([^]*?)^```$/gm),
].map(([, text = '']) => text);

interface LintRules {
  readonly overrides: readonly {
    readonly files: readonly string[];
    readonly rules: {
      readonly 'no-restricted-imports'?: readonly [string, { patterns: { group: string[] }[] }];
    };
  }[];
}

describe('ARCHITECTURE.md', () => {
  it('has each error code on the journey of a connection, but for the one of bugs', () => {
    const named = new Set(journey.match(/\b[A-Z]+(?:_[A-Z]+)+\b|\bTIMEOUT\b|\bSHUTDOWN\b/g));
    const expected = errorCodes.filter((code) => code !== 'INTERNAL');
    assert.deepEqual([...named].toSorted(), expected.toSorted());
    for (const way of [journeyOfMysql, journeyOfHttp]) {
      const onIt = way.match(/\b[A-Z]+(?:_[A-Z]+)+\b|\bTIMEOUT\b|\bSHUTDOWN\b/g) ?? [];
      assert.ok(onIt.length > 8);
      for (const name of onIt) assert.ok(named.has(name), name);
    }
  });

  it('names only files that are there on the journey and in the tree', () => {
    for (const [connector, way] of [
      ['postgres', journey],
      ['mysql', journeyOfMysql],
      ['http', journeyOfHttp],
    ] as const) {
      const onJourney = [...way.matchAll(/^ {0,2}([\w./-]+\.ts)(?:, ([\w./-]+))?/gm)].flatMap(
        ([, name = '', second]) => (second === undefined ? [name] : [name, second]),
      );
      assert.ok(onJourney.length > 8);
      for (const name of onJourney)
        assert.ok(
          existsSync(`${root}src/${name}`) || existsSync(`${root}src/connectors/${connector}/${name}`),
          name,
        );
    }
    const inTree = [...tree.matchAll(/^ {0,2}([\w-]+\/)/gm)].map(([, name = '']) => name);
    assert.ok(inTree.length > 8);
    for (const name of inTree) assert.ok(existsSync(root + name) || existsSync(`${root}src/${name}`), name);
  });

  it('says who may import whom as the linter does', () => {
    const said = [...page.matchAll(/^\| (`[^|]*) \| (anything above it|`[^|]*) \|$/gm)].flatMap(
      ([, folders = '', never = '']) =>
        [...folders.matchAll(/`([\w/]+)`/g)].map(([, folder = '']): [string, string[]] => [
          folder,
          [...never.matchAll(/`(\w+)`/g)].map(([, name = '']) => name).toSorted(),
        ]),
    );
    const { overrides } = JSON.parse(readFileSync(`${root}.oxlintrc.json`, 'utf8')) as LintRules;
    const held = overrides.flatMap(({ files, rules }) => {
      const groups = rules['no-restricted-imports']?.[1].patterns.flatMap(({ group }) => group);
      if (!groups) return [];
      const names = groups.map((pattern) => pattern.replaceAll(/[*/]/g, '')).toSorted();
      return files.map((file): [string, string[]] => [file.replace('src/', '').replace('/**', ''), names]);
    });
    const above = ['admin', 'cli', 'config', 'connectors', 'lifecycle', 'providers'];
    const expected = said.map(([folder, never]) => [folder, folder === 'core' ? above : never]);
    assert.deepEqual(expected, held);
  });
});
