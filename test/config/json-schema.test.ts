import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { parse } from 'yaml';

import { jsonSchema } from '../../src/config/schema.ts';
import type { Connector } from '../../src/connectors/connector.ts';
import { loadFrom } from '../../src/core/table.ts';
import type { ProviderKind } from '../../src/providers/provider.ts';
import * as plugins from '../support/plugins.ts';
import { goodService, serviceFile, tables } from './files.ts';

const validate = new Ajv2020({ strict: false, allErrors: true }).compile(
  jsonSchema({
    connectors: await loadFrom<Connector>(tables.connectors),
    providers: await loadFrom<ProviderKind>(tables.providers),
  }),
);
const accepts = (text: string) => validate(parse(text));
const good = serviceFile(...goodService);
const examples = new URL('../../examples/', import.meta.url);

describe('the JSON Schema', () => {
  for (const name of globSync('**/*.{yaml,yml}', { cwd: examples }))
    it(`accepts ${name}`, () => {
      assert.ok(accepts(readFileSync(new URL(name, examples), 'utf8')), JSON.stringify(validate.errors));
    });

  it('accepts what loads', () => {
    for (const text of [
      good,
      `${good}admin: off\n`,
      `${good}limits:\n`,
      `${good}providers: { s: { kind: safe, address: a } }\n`,
    ])
      assert.ok(accepts(text), JSON.stringify(validate.errors));
  });

  for (const [what, text] of [
    ['another version', good.replace('version: 2', 'version: 1')],
    ['an unknown key of the file', `${good}x: 1\n`],
    ['an unknown key of a service', `${good}    x: 1\n`],
    ['an unknown key of a connector', good.replace('host:', 'hosst:')],
    ['an unknown connector', good.replace('postgres', 'postgress')],
    ['a service without a connector', good.replace('connector: postgres', 'exposed: true')],
    ['a service without an address', good.replace(/listenOn: .*/, 'exposed: true')],
    ['a missing credential', good.replace('username:', 'user:')],
    ['a reference without get', good.replace(', get: PGUSER', '')],
    ['a habit of Secretless in another connector', `${good}    debug: true\n`],
    ['a setting of another type', good.replace('db.internal', '{}')],
    ['a duration without a unit', `${good}limits: { drainTimeout: 5 }\n`],
    ['an unknown kind of provider', `${good}providers: { a: { kind: b } }\n`],
    ['an unknown setting of a provider', `${good}providers: { s: { kind: safe, address: a, x: 1 } }\n`],
    ['a missing setting of a provider', `${good}providers: { s: { kind: safe } }\n`],
    [
      'a credential that the connector does not have',
      serviceFile(
        'connector: strict',
        'listenOn: tcp://127.0.0.1:1',
        'credentials: { token: a, x: b }',
        'config: { target: a }',
      ),
    ],
    [
      'a connector without a setting it needs',
      serviceFile('connector: strict', 'listenOn: tcp://127.0.0.1:1', 'credentials: { token: a }'),
    ],
  ] as const)
    it(`refuses ${what}`, () => assert.equal(accepts(text), false));

  it('carries sentences and defaults for editors', () => {
    const text = JSON.stringify(jsonSchema(plugins));
    assert.match(text, /"default":"verify-full"/);
    assert.match(text, /"default":"10s"/);
    assert.match(text, /TCP port of the server\./);
  });
});
