import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { parse } from 'yaml';
import * as z from 'zod';

import { providers } from '../support/plugins.ts';

interface Example {
  providers?: Record<string, { kind: string } & Record<string, unknown>>;
  services: Record<string, { credentials: Record<string, string | { from: string; get: string }> }>;
}

const page = (kind: string) => new URL(`../../docs/providers/${kind}.md`, import.meta.url);

describe('the documentation of providers', () => {
  for (const [kind, provider] of Object.entries(providers)) {
    it(`has a page for "${kind}" whose example is valid`, () => {
      assert.ok(existsSync(page(kind)));
      const text = readFileSync(page(kind), 'utf8');
      const example = parse(/```yaml\n([\s\S]*?)```/.exec(text)?.[1] ?? '') as Example;
      for (const { kind: named, ...entry } of Object.values(example.providers ?? {})) {
        assert.equal(named, kind);
        provider.settings.parse(entry);
      }
      for (const { credentials } of Object.values(example.services)) {
        for (const reference of Object.values(credentials)) {
          if (typeof reference !== 'string') assert.equal(provider.checkReference(reference.get), undefined);
        }
      }
    });

    it(`names every setting of "${kind}"`, () => {
      const text = readFileSync(page(kind), 'utf8');
      const { properties = {} } = z.toJSONSchema(provider.settings, { io: 'input', unrepresentable: 'any' });
      for (const name of Object.keys(properties)) {
        assert.ok(text.includes(`\`${name}\``) || text.includes(`\`${name}.`), `${name} is not explained`);
      }
    });
  }
});
