import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import * as z from 'zod';

import { annotations, prefix } from '../../src/inject/annotations.ts';
import { InjectorMetrics } from '../../src/inject/observations.ts';
import { reviewOutcomes } from '../../src/inject/review.ts';
import { injectorSettings } from '../../src/inject/settings.ts';

const page = readFileSync(new URL('../../docs/injector.md', import.meta.url), 'utf8');

/** The rows of the table behind a heading, each as its cells. */
function rows(heading: string): string[][] {
  const section = page.split(`\n## ${heading}\n`)[1]?.split(/^## /m)[0] ?? '';
  const table = section.split('\n').filter((line) => line.startsWith('| '));
  return table
    .slice(2)
    .map((line) => line.slice(2, -2).split(' | '))
    .filter(([first]) => !first?.startsWith('---'));
}

interface Node {
  readonly description?: string;
  readonly default?: unknown;
  readonly properties?: Readonly<Record<string, Node>>;
}

/** Every key of the settings, with its default where it is a plain one, and its sentence. */
function settings(node: Node, path = ''): string[][] {
  return Object.entries(node.properties ?? {}).flatMap(([key, value]) => {
    const name = `${path}${key}`;
    if (value.properties) return settings(value, `${name}.`);
    const otherwise =
      value.default === undefined ? '' : `\`${JSON.stringify(value.default).replaceAll('"', '')}\``;
    return [[`\`${name}\``, otherwise, value.description ?? '']];
  });
}

describe('docs/injector.md', () => {
  it('has every annotation with its sentence, in the order of the code', () => {
    assert.deepEqual(
      rows('Annotations'),
      Object.entries(annotations).map(([key, meaning]) => [`\`${prefix}${key}\``, meaning]),
    );
  });

  it('has every setting with its default and its sentence', () => {
    const schema = z.toJSONSchema(injectorSettings, { io: 'input', unrepresentable: 'any' }) as Node;
    assert.deepEqual(rows('Settings'), settings(schema));
  });

  it('has every metric of its own with its sentence, and every outcome', () => {
    const metrics = new InjectorMetrics('1.2.3', { expiry: () => 1, ready: () => true });
    metrics.close();
    const own = [...metrics.registry.families].filter(({ name }) => name.startsWith('postern_inject_'));
    assert.deepEqual(
      rows('Metrics and log').filter(([name]) => name?.startsWith('`postern_inject_')),
      own.map(({ name, type, help }) => [`\`${name}\``, type, help]),
    );
    for (const outcome of [...reviewOutcomes, 'invalid', 'overloaded', 'failed'])
      assert.ok(page.includes(`\`${outcome}\``), outcome);
  });
});
