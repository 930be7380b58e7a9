import { readFile, writeFile } from 'node:fs/promises';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

import { expectation, inputSchema, type JsonSchema } from '../src/config/check.ts';
import { usualPlaces, variables } from '../src/config/load.ts';
import * as schema from '../src/config/schema.ts';
import type { Connector } from '../src/connectors/connector.ts';
import { connectors as connectorTable } from '../src/connectors/index.ts';
import { loadFrom } from '../src/core/table.ts';
import { providers as providerTable } from '../src/providers/index.ts';
import type { ProviderKind } from '../src/providers/provider.ts';

const connectors = await loadFrom(connectorTable);
const providers = await loadFrom(providerTable);

/** The page that is written from the schemas. */
export const pageFile = fileURLToPath(new URL('../docs/configuration.md', import.meta.url));

/** Text of docs/configuration.md as the schemas are now. */
export function configurationPage(): string {
  const sections = [
    introduction(),
    section(
      'The file',
      table(inputSchema(schema.document), {
        skip: ['limits.', 'admin.', 'audit.', 'cache.', 'relay.'],
        required: ['services'],
      }),
    ),
    section(
      '`services.NAME`',
      table(inputSchema(schema.service), { skip: ['limits.', 'cache.'], required: ['connector'] }),
      serviceNotes,
    ),
    section('`services.NAME.credentials.NAME`', credentialNotes, table(inputSchema(schema.reference))),
    section('`limits`', table(inputSchema(schema.limits)), limitNotes),
    section('`cache`', table(inputSchema(schema.cache)), cacheNotes),
    section('`relay`', table(inputSchema(schema.relay))),
    section('`admin`', table(inputSchema(schema.admin)), adminNotes),
    section('`audit`', table(inputSchema(schema.audit)), auditNotes),
    '# Connectors',
    ...connectorSections(),
    '# Providers',
    ...Object.entries(providers).map(([name, kind]) => providerSection(name, kind)),
  ];
  return `${sections.join('\n\n')}\n`;
}

function introduction(): string {
  const places = usualPlaces({ environment: { HOME: '~' } });
  return `<!-- Written by scripts/docs.ts from the schemas in src: edit those, then run it again. -->

# Configuration

YAML (version 1.2), UTF-8, at most 1 MiB. \`postern check\` reports every problem at once, each with file, line and column;
\`postern schema\` prints the JSON Schema for editors. Nothing is interpolated: \`\${NAME}\` is just text.

A path may be given on the command line, several times; a folder stands for its \`.yaml\` and \`.yml\` files, merged by the
names under \`services\` and \`providers\`. A name in two files is an error; so are \`limits\`, \`cache\`, \`stateFolder\`, \`relay\`, \`admin\` or \`audit\` in two files. Every file
says \`version: 2\`. Without a path, \`${variables.config}\` names the file or folder; without that, the first of these is taken:

${places.map((place, index) => `${index + 1}. \`${place.startsWith('/') || place.startsWith('~') ? '' : './'}${place}\``).join('\n')}

**What beats what:** flags beat environment variables, which beat \`limits\` and \`admin\` of the file. A service's own \`limits\` are
more special than all of them and stand.

| variable | instead of |
| --- | --- |
| \`${variables.config}\` | the path of the file or folder |
| \`${variables.admin}\` | \`admin.listenOn\`, or \`off\` |
| \`${variables.stateFolder}\` | \`stateFolder\` |
| \`${variables.relay}\` | \`relay.engine\` |
${Object.keys(schema.limits.shape)
  .map((key) => `| \`${variables[key as keyof typeof variables]}\` | \`limits.${key}\` |`)
  .join('\n')}

**Secretless:** an unchanged Secretless \`version: 2\` file runs as far as its connectors are in the table below. Keys that
Secretless ignores are warnings for its connectors and errors for the others. A version 1 file must be converted.

A *duration* is a whole number and a unit: \`500ms\`, \`10s\`, \`5m\` or \`1h\`. An *address* is \`tcp://host:port\` or \`unix:///path\`.`;
}

const serviceNotes =
  'Two services cannot listen on one address. A path of a unix socket is absolute and has at most 107 bytes.';

const credentialNotes = `Each value is fetched when a client connects. A plain value (text, number, true or false) is taken as it is written; it
goes through the provider \`literal\`.`;

const limitNotes =
  'The same keys under `services.NAME.limits` are for that service alone and have no defaults of their own.';

const cacheNotes =
  "The same keys under `services.NAME.cache` are for that service alone. Whatever is kept is overwritten when it is replaced, when its time is over and at the end; with the defaults a database's credential is kept for no longer than the login.";

const auditNotes = '[audit.md](audit.md) has the fields of each record.';

const adminNotes =
  '`admin: off` opens no admin listener. An address that is not loopback is a warning without `exposed: true`.';

function section(title: string, ...parts: readonly string[]): string {
  return [`## ${title}`, ...parts].join('\n\n');
}

/** Connectors that differ in defaults only share a section. */
function connectorSections(): string[] {
  const seen = new Map<string, { readonly name: string; readonly schema: JsonSchema }>();
  return Object.entries(connectors).map(([name, connector]) => {
    const json = inputSchema(connector.settings);
    const shape = JSON.stringify(json, (key, value: unknown) => (key === 'default' ? undefined : value));
    const twin = seen.get(shape);
    if (!twin) seen.set(shape, { name, schema: json });
    return connectorSection(name, connector, json, twin);
  });
}

function connectorSection(
  name: string,
  { summary, credentials }: Connector,
  json: JsonSchema,
  twin: { readonly name: string; readonly schema: JsonSchema } | undefined,
): string {
  const parts = [sentence(summary)];
  if (twin) {
    parts.push(`As \`${twin.name}\`, with the same credentials and settings, but for these defaults:`);
    const other = new Map(rows(twin.schema).map(({ key, fallback }) => [key, fallback]));
    const changed = rows(json).filter(({ key, fallback }) => other.get(key) !== fallback);
    parts.push(
      [
        `| key | \`${name}\` | \`${twin.name}\` |`,
        '| --- | --- | --- |',
        ...changed.map(({ key, fallback }) => `| \`${key}\` | ${fallback} | ${other.get(key) ?? ''} |`),
      ].join('\n'),
    );
    return section(`\`connector: ${name}\``, ...parts);
  }
  const names = [
    ...credentials.required.map((credential) => `| \`${credential}\` | yes |`),
    ...credentials.optional.map((credential) => `| \`${credential}\` | |`),
  ];
  parts.push('`credentials`:', ['| name | required |', '| --- | --- |', ...names].join('\n'));
  if (credentials.others !== undefined) parts.push(sentence(`Any other name: ${credentials.others}`));
  parts.push('`config`:', table(json));
  return section(`\`connector: ${name}\``, ...parts);
}

function providerSection(name: string, { summary, reference, settings }: ProviderKind): string {
  const json = inputSchema(settings);
  const none = rows(json).length === 0;
  return section(
    `\`kind: ${name}\``,
    sentence(summary),
    `\`get:\` ${sentence(reference)}`,
    none ? 'It has no settings, so it needs no entry under `providers:`.' : table(json),
  );
}

interface Row {
  readonly key: string;
  readonly type: string;
  readonly fallback: string;
  readonly description: string;
}

/** `required`: keys that are required by more than their schema. */
function table(
  json: JsonSchema,
  {
    skip = [],
    required = [],
  }: { readonly skip?: readonly string[]; readonly required?: readonly string[] } = {},
): string {
  const shown = rows(json)
    .filter(({ key }) => !skip.some((prefix) => key.startsWith(prefix)))
    .map((row) => (required.includes(row.key) ? { ...row, fallback: '*required*' } : row));
  return [
    '| key | type | default | |',
    '| --- | --- | --- | --- |',
    ...shown.map(
      ({ key, type, fallback, description }) => `| \`${key}\` | ${type} | ${fallback} | ${description} |`,
    ),
  ].join('\n');
}

/** One row for each key, those of a nested map behind the map's own. Branches of a union are told apart by their constants. */
function rows(json: JsonSchema, prefix = '', branch = ''): Row[] {
  const unions = [...(json.anyOf ?? []), ...(json.oneOf ?? [])];
  const objects = unions.filter(({ properties }) => properties);
  if (objects.length > 1) {
    const names = new Set(objects.flatMap((object) => Object.keys(constants(object))));
    const selectors = [...names].map((name) => ({
      key: `${prefix}${name}`,
      type: typeOf({ anyOf: objects.map((object) => constants(object)[name] ?? {}) }),
      fallback: '*required*',
      description: 'Selects what else may be given.',
    }));
    const others = objects.flatMap((object) =>
      rows(object, prefix, branchOf(object)).filter(({ key }) => !selectors.some((row) => row.key === key)),
    );
    return [...selectors, ...others];
  }
  if (objects[0]) return rows(objects[0], prefix, branch);
  return Object.entries(json.properties ?? {}).flatMap(([name, property]) => {
    const key = `${prefix}${name}`;
    const required = json.required?.includes(name) ?? false;
    const row: Row = {
      key,
      type: cell(typeOf(property)),
      fallback: 'default' in property ? code(property.default) : required ? '*required*' : '',
      description: cell([branch, property.description ?? ''].filter((part) => part !== '').join(' ')),
    };
    return [row, ...rows(property, `${key}.`)];
  });
}

function constants({ properties = {} }: JsonSchema): Readonly<Record<string, JsonSchema>> {
  return Object.fromEntries(Object.entries(properties).filter(([, property]) => 'const' in property));
}

/** `(method: approle)` for the branch of a union that a constant selects. */
function branchOf(object: JsonSchema): string {
  const selected = Object.entries(constants(object));
  return selected.map(([name, property]) => `(\`${name}: ${String(property.const)}\`)`).join(' ');
}

function typeOf(property: JsonSchema): string {
  return expectation(property)
    .replace(/^one of /, '')
    .replace(/a duration: .*1h/, 'duration')
    .replace(/an address such as \S+ or \S+/, 'address')
    .replaceAll(/(^| or | of )an? /g, '$1')
    .replace('map of keys and values', 'map');
}

function sentence(text: string): string {
  return text.endsWith('.') ? text : `${text}.`;
}

function code(value: unknown): string {
  const empty = typeof value === 'object' && value !== null && Object.keys(value).length === 0;
  if (empty) return '';
  return `\`${typeof value === 'string' ? value : JSON.stringify(value)}\``;
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|').replaceAll('\n', ' ');
}

if (import.meta.main) {
  const page = configurationPage();
  if (!process.argv.includes('--check')) await writeFile(pageFile, page);
  else if ((await readFile(pageFile, 'utf8').catch(() => '')) !== page) {
    process.stderr.write('docs/configuration.md is stale: run `node scripts/docs.ts`\n');
    process.exitCode = 1;
  }
}
