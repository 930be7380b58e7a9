import { readFile, writeFile } from 'node:fs/promises';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';

import { inputSchema, type JsonSchema as PartOfJsonSchema } from '../src/config/check.ts';
import * as schema from '../src/config/schema.ts';
import { connectors } from '../src/connectors/index.ts';
import { providers } from '../src/providers/index.ts';

// Writes deploy/kubernetes/crd/configurations.yaml: what an API server can say of a configuration before any Postern
// reads it. It has no more than a structural schema can have; what it cannot say (what `config` holds for which
// connector, say) the loader says, in the status of the resource.

/** The manifest that is written from the schemas. */
export const crdFile = fileURLToPath(
  new URL('../deploy/kubernetes/crd/configurations.yaml', import.meta.url),
);

/** What zod writes, and `inputSchema` does not need. */
type JsonSchema = PartOfJsonSchema & { readonly maxLength?: number; readonly maxItems?: number };

/** A node of a structural schema. */
type Structural = { readonly [key: string]: unknown };

/** A rule in CEL, and what is said to whoever breaks it. The cost of all rules is bounded by the bounds below. */
interface Rule {
  readonly rule: string;
  readonly message: string;
  readonly fieldPath?: string;
}

const most = { services: 64, providers: 32, credentials: 32, items: 64, text: 4096, address: 255 };

/** Text of the manifest as the schemas are now. */
export function crdManifest(): string {
  const manifest = {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: 'configurations.postern.dev' },
    spec: {
      group: 'postern.dev',
      scope: 'Namespaced',
      names: {
        kind: 'Configuration',
        listKind: 'ConfigurationList',
        plural: 'configurations',
        singular: 'configuration',
        shortNames: ['pconf'],
        categories: ['postern'],
      },
      versions: [
        {
          name: 'v1alpha1',
          served: true,
          storage: true,
          subresources: { status: {} },
          additionalPrinterColumns: [
            column('Accepted', '.status.conditions[?(@.type=="Accepted")].status', 'Whether it can be read'),
            column('Ready', '.status.conditions[?(@.type=="Ready")].status', 'Whether it is in force'),
            column('Reason', '.status.conditions[?(@.type=="Ready")].reason', 'Why it is not'),
            column('Age', '.metadata.creationTimestamp', 'Since when it is there', 'date'),
          ],
          schema: { openAPIV3Schema: resource() },
        },
      ],
    },
  };
  const written = stringify(manifest, { lineWidth: 120, aliasDuplicateObjects: false });
  return `# Written by scripts/crd.ts from the schemas in src: edit those, then run it again.\n${written}`;
}

function column(name: string, jsonPath: string, description: string, type = 'string'): object {
  return { name, type, jsonPath, description };
}

function resource(): Structural {
  return {
    description:
      'What Postern listens on, and how it logs in. Read with `postern run --config k8s://NAMESPACE/NAME`.',
    type: 'object',
    required: ['spec'],
    properties: {
      apiVersion: { type: 'string' },
      kind: { type: 'string' },
      metadata: { type: 'object' },
      spec: spec(),
      status: status(),
    },
  };
}

function spec(): Structural {
  const {
    version: _,
    services,
    providers: stores,
    ...others
  } = inputSchema(schema.document).properties ?? {};
  const kinds = Object.keys(providers)
    .map((name) => `'${name}'`)
    .join(', ');
  return {
    description: 'The configuration as in a file, without `version`.',
    type: 'object',
    required: ['services'],
    properties: {
      providers: {
        description: stores?.description,
        type: 'object',
        maxProperties: most.providers,
        additionalProperties: provider(),
        ...rules(named('a provider')),
      },
      services: {
        description: services?.description,
        type: 'object',
        minProperties: 1,
        maxProperties: most.services,
        additionalProperties: service(),
        ...rules(named('a service'), {
          // Those of HTTP may share a listener; the loader knows when.
          rule: `self.all(a, self.all(b, a == b || self[a].listenOn != self[b].listenOn || self[a].listenOn.endsWith(':0') || !(self[a].connector in ['postgres', 'pg', 'mysql'])))`,
          message: 'two services have the same listenOn',
        }),
      },
      ...Object.fromEntries(Object.entries(others).map(([key, value]) => [key, structural(value)])),
    },
    ...rules({
      rule: `self.services.all(s, !has(self.services[s].credentials) || self.services[s].credentials.all(c, self.services[s].credentials[c].from in [${kinds}] || (has(self.providers) && self.services[s].credentials[c].from in self.providers)))`,
      message: 'a credential is `from` a provider that is neither under providers nor a kind of provider',
      fieldPath: '.services',
    }),
  };
}

/** Everybody who may see the names in messages, metrics and log lines relies on their form. */
function named(what: string): Rule {
  return {
    rule: `self.all(name, name.matches('${schema.entryName.source.replaceAll('\\', '\\\\')}'))`,
    message: `the name of ${what} has letters, digits, ".", "_" and "-", at most 128 of them`,
  };
}

function service(): Structural {
  const json = inputSchema(schema.service);
  const { connector, protocol: _, listenOn, credentials, config, ...others } = json.properties ?? {};
  return {
    type: 'object',
    required: ['connector', 'listenOn'],
    properties: {
      connector: choice(connector, Object.keys(connectors)),
      listenOn: { ...structural(listenOn ?? {}), maxLength: most.address },
      ...Object.fromEntries(Object.entries(others).map(([key, value]) => [key, structural(value)])),
      credentials: {
        description: `${credentials?.description?.replace(/, or the value itself\.$/, '.')} A value that is no secret: \`{from: literal, get: VALUE}\`.`,
        type: 'object',
        maxProperties: most.credentials,
        additionalProperties: credential(),
        ...rules(named('a credential')),
      },
      config: {
        description: config?.description,
        type: 'object',
        // Which keys there are is the connector's matter.
        'x-kubernetes-preserve-unknown-fields': true,
      },
    },
    ...rules(
      {
        rule: `(has(self.exposed) && self.exposed) || self.listenOn.startsWith('unix:') || self.listenOn.matches('(?i)^tcp[46]?://(127[.][0-9.]+|localhost|\\\\[[0:]*1\\\\]|\\\\[::ffff:(127[.]|7f)[0-9a-f.:]*\\\\]):[0-9]+$')`,
        message:
          'other machines can reach this address, and whoever reaches it is logged in without a password: listen on 127.0.0.1, or say `exposed: true`',
        fieldPath: '.listenOn',
      },
      {
        rule: `!has(self.socketMode) || self.listenOn.startsWith('unix:')`,
        message: 'means nothing here: listenOn is not a unix socket',
        fieldPath: '.socketMode',
      },
    ),
  };
}

function credential(): Structural {
  const { from, get } = inputSchema(schema.reference).properties ?? {};
  return {
    type: 'object',
    required: ['from', 'get'],
    properties: {
      from: { ...structural(from ?? {}), maxLength: 128 },
      // In JSON a number has lost its zeros; here it is always text.
      get: { description: get?.description, type: 'string', maxLength: most.text },
    },
  };
}

function provider(): Structural {
  const { kind } = inputSchema(schema.provider).properties ?? {};
  return {
    type: 'object',
    required: ['kind'],
    properties: { kind: choice(kind, Object.keys(providers)) },
    'x-kubernetes-preserve-unknown-fields': true,
  };
}

function choice(json: JsonSchema | undefined, names: readonly string[]): Structural {
  return { description: json?.description, type: 'string', enum: names };
}

function status(): Structural {
  const text = (maxLength: number, description?: string): Structural => ({
    ...(description !== undefined && { description }),
    type: 'string',
    maxLength,
  });
  return {
    type: 'object',
    description: 'Written by Postern.',
    properties: {
      conditions: {
        type: 'array',
        maxItems: 8,
        'x-kubernetes-list-type': 'map',
        'x-kubernetes-list-map-keys': ['type'],
        items: {
          type: 'object',
          required: ['type', 'status', 'reason', 'message', 'lastTransitionTime'],
          properties: {
            type: text(
              64,
              '`Accepted`: every pod that reads it can. `Ready`: it is in force in all of them.',
            ),
            status: { type: 'string', enum: ['True', 'False', 'Unknown'] },
            reason: text(128),
            message: text(4096, 'What is wrong, with names and never with values.'),
            lastTransitionTime: { type: 'string', format: 'date-time' },
            observedGeneration: { type: 'integer', format: 'int64', minimum: 0 },
          },
        },
      },
      instances: {
        description: 'Pods in which it is not in force, some of them; they go on with what they had.',
        type: 'array',
        maxItems: 16,
        'x-kubernetes-list-type': 'map',
        'x-kubernetes-list-map-keys': ['name'],
        items: {
          type: 'object',
          required: ['name', 'observedGeneration', 'reason', 'message', 'lastSeen'],
          properties: {
            name: text(253, 'The pod.'),
            observedGeneration: { type: 'integer', format: 'int64', minimum: 0 },
            reason: text(64, 'An error code.'),
            message: text(1024),
            lastSeen: {
              type: 'string',
              format: 'date-time',
              description: 'Its word is taken for half an hour.',
            },
          },
        },
      },
    },
  };
}

function rules(...validations: readonly Rule[]): Structural {
  return { 'x-kubernetes-validations': validations };
}

/** What of a JSON Schema a structural one can say, with a bound on everything that can be long. */
function structural(json: JsonSchema): Structural {
  const branches = [...(json.anyOf ?? []), ...(json.oneOf ?? [])].filter(({ type }) => type !== 'null');
  const description = described(json);
  const said = description === undefined ? {} : { description };
  if (branches.length === 2 && branches.some(({ type }) => type === 'integer')) {
    const text = branches.find(({ type }) => type === 'string');
    return { ...said, 'x-kubernetes-int-or-string': true, maxLength: most.text, pattern: text?.pattern };
  }
  if (branches.length > 0) {
    // Of `off` and a map the map: `off` is a matter of the pod, which says it with POSTERN_ADMIN_LISTEN.
    const object = branches.map((branch) => structural(branch)).find(({ type }) => type === 'object');
    return { ...(object ?? structural(branches[0] ?? {})), ...said };
  }
  const { type, pattern, enum: choices, items, properties, required } = json;
  // Where zod leaves it open, it is a credential outside of `credentials`.
  if (type === undefined) return choices ? { ...said, enum: choices } : { ...credential(), ...said };
  const { minimum, exclusiveMinimum, maximum, minLength, maxLength, minItems, maxItems } = json;
  return {
    ...said,
    type,
    ...(type === 'integer' && { format: 'int64' }),
    ...(type === 'number' && { format: 'double' }),
    ...((type === 'integer' || type === 'number') && {
      minimum: minimum ?? exclusiveMinimum,
      maximum,
      ...(exclusiveMinimum !== undefined && { exclusiveMinimum: true }),
    }),
    ...(type === 'string' && !choices && { maxLength: maxLength ?? most.text, minLength, pattern }),
    ...(choices && { enum: choices }),
    ...(type === 'array' &&
      items && { items: structural(items), minItems, maxItems: maxItems ?? most.items }),
    ...(properties && {
      required,
      properties: Object.fromEntries(
        Object.entries(properties).map(([key, value]) => [key, structural(value)]),
      ),
    }),
  };
}

/** A default in words alone: one that the API server fills in would be stored, and beat the pod's environment. */
function described({ description, default: fallback }: JsonSchema): string | undefined {
  if (typeof fallback !== 'string' && typeof fallback !== 'number' && typeof fallback !== 'boolean')
    return description;
  return `${description ?? ''} Default: ${fallback}.`.trim();
}

if (import.meta.main) {
  const manifest = crdManifest();
  if (!process.argv.includes('--check')) await writeFile(crdFile, manifest);
  else if ((await readFile(crdFile, 'utf8').catch(() => '')) !== manifest) {
    process.stderr.write('deploy/kubernetes/crd/configurations.yaml is stale: run `node scripts/crd.ts`\n');
    process.exitCode = 1;
  }
}
