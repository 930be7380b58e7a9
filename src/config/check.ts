import * as z from 'zod';

import { duration } from '../core/duration.ts';
import { listenAddress } from './listen.ts';
import { child, follow, type Located, plain, type Report, suggestion } from './report.ts';
import type { Path } from './yaml.ts';

// A configuration is parsed once: compiling its schemas to code would cost more time and memory than it saves.
z.config({ jitless: true });

/** The part of JSON Schema that zod writes and this program reads. */
export interface JsonSchema {
  readonly type?: string;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly properties?: Readonly<Record<string, JsonSchema>>;
  readonly additionalProperties?: boolean | JsonSchema;
  readonly required?: readonly string[];
  readonly items?: JsonSchema;
  readonly anyOf?: readonly JsonSchema[];
  readonly oneOf?: readonly JsonSchema[];
  readonly allOf?: readonly JsonSchema[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly minLength?: number;
  readonly minItems?: number;
  readonly pattern?: string;
  readonly default?: unknown;
  readonly description?: string;
  readonly deprecated?: boolean;
}

/** What a schema accepts in a file, which is not always what it parses to. */
export function inputSchema(schema: z.ZodType): JsonSchema {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' });
  return json as JsonSchema;
}

/** Stands for every message that the schema's author did not write; ours follow from the schema itself. */
const unsaid = '\0';

/**
 * Parses a located value; undefined when there are problems, which are then reported with their places. No message
 * quotes a value: what stands in the wrong place may be a secret.
 */
export function check<Schema extends z.ZodType>(
  schema: Schema,
  value: Located,
  report: Report,
): z.output<Schema> | undefined {
  const result = schema.safeParse(plain(value.tree), { error: () => unsaid });
  if (result.success) return result.data;
  const json = inputSchema(schema);
  for (const issue of result.error.issues) explain(issue, [], value, json, report);
  return undefined;
}

/** Says what is wrong with a value that stands in no file; undefined when nothing is. */
export function checkOutside<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  complain: (message: string) => void,
): z.output<Schema> | undefined {
  const result = schema.safeParse(value, { error: () => unsaid });
  if (result.success) return result.data;
  const json = inputSchema(schema);
  const said = result.error.issues.map(({ message }) => message).find((message) => message !== unsaid);
  complain(said ?? `must be ${expectation(json)}`);
  return undefined;
}

type Issue = z.core.$ZodIssue;

function explain(issue: Issue, before: Path, root: Located, json: JsonSchema, report: Report): void {
  const path: Path = [...before, ...issue.path.map((key) => (typeof key === 'number' ? key : String(key)))];
  const whole: Path = [...root.path, ...path];
  const { found, whole: exists } = follow(root, path);

  if (issue.code === 'unrecognized_keys') {
    for (const key of issue.keys) {
      const unknown = child(found, key) ?? found;
      report.problemOfEntry(unknown, [...whole, key], `unknown key${suggestion(key, keysAt(json, path))}`);
    }
    return;
  }
  if (issue.code === 'invalid_union' && issue.errors.length > 0) {
    const branch = issue.errors.find(isAboutTheInside);
    if (branch) {
      for (const inner of branch) explain(inner, path, root, json, report);
      return;
    }
  }
  if ((issue.code === 'invalid_key' || issue.code === 'invalid_element') && exists) {
    report.problemOfEntry(
      found,
      whole,
      issue.message === unsaid ? 'is not a valid name here' : issue.message,
    );
    return;
  }

  const expected = expectation(...schemasAt(json, path));
  const choices = choicesOf(schemasAt(json, path));
  if (!exists) {
    report.problemOfEntry(found, whole, `is required${choices.length > 0 ? `: ${expected}` : ''}`);
    return;
  }
  if (issue.message !== unsaid) {
    report.problem(found, issue.message);
    return;
  }
  if (found.tree.kind !== 'scalar') {
    report.problem(
      found,
      found.tree.size === 1 && issue.code === 'too_small' ? 'must not be empty' : `must be ${expected}`,
    );
    return;
  }
  const { value } = found.tree;
  if (value === null) report.problem(found, `has no value; it must be ${expected}`);
  else if (value === '') report.problem(found, 'must not be empty');
  else if (typeof value !== 'string' && expected.startsWith('text'))
    report.problem(found, `must be ${expected}: put it in quotes`);
  else {
    const hint = typeof value === 'string' ? suggestion(value, choices) : '';
    report.problem(found, `must be ${expected}${hint}`);
  }
}

/** A branch of a union that fits on the outside: what is wrong inside it is worth telling. */
function isAboutTheInside(issues: readonly Issue[]): boolean {
  return issues.every(
    (issue) => issue.path.length > 0 || (issue.code !== 'invalid_type' && issue.code !== 'invalid_value'),
  );
}

/** The schemas that a value at `path` may follow. */
function schemasAt(json: JsonSchema, path: Path): JsonSchema[] {
  let schemas = branches(json);
  for (const key of path) {
    schemas = schemas.flatMap((schema) => {
      if (typeof key === 'number') return schema.items ? branches(schema.items) : [];
      const property = schema.properties && Object.hasOwn(schema.properties, key) && schema.properties[key];
      if (property) return branches(property);
      return typeof schema.additionalProperties === 'object' ? branches(schema.additionalProperties) : [];
    });
  }
  return schemas;
}

function branches(schema: JsonSchema): JsonSchema[] {
  const inner = [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.allOf ?? [])];
  return inner.length > 0 ? inner.flatMap(branches) : [schema];
}

function keysAt(json: JsonSchema, path: Path): Set<string> {
  return new Set(schemasAt(json, path).flatMap(({ properties }) => Object.keys(properties ?? {})));
}

function choicesOf(schemas: readonly JsonSchema[]): string[] {
  return schemas.flatMap((schema) => ('const' in schema ? [schema.const] : (schema.enum ?? []))).map(String);
}

/** Completes the sentence "must be ...". */
export function expectation(...schemas: readonly JsonSchema[]): string {
  const flat = schemas.flatMap(branches);
  const choices = [...new Set(choicesOf(flat))];
  const phrases = new Set<string>();
  if (choices.length === 1) phrases.add(choices[0] ?? '');
  if (choices.length > 1) phrases.add(`one of ${choices.join(', ')}`);
  for (const schema of flat)
    if (!('const' in schema) && !schema.enum && schema.type !== 'null') phrases.add(phrase(schema));
  return [...phrases].join(' or ');
}

/** Patterns that people know by a better name. */
const known = new Map(
  [
    { schema: duration, words: 'a duration: a whole number and a unit, such as 500ms, 10s, 5m or 1h' },
    {
      schema: listenAddress,
      words: 'an address such as tcp://127.0.0.1:5432 or unix:///run/postern/.s.PGSQL.5432',
    },
  ].map(({ schema, words }) => [inputSchema(schema).pattern, words]),
);

function phrase(schema: JsonSchema): string {
  switch (schema.type) {
    case 'string':
      return known.get(schema.pattern) ?? 'text';
    case 'integer':
      return `a whole number${range(schema)}`;
    case 'number':
      return `a number${range(schema)}`;
    case 'boolean':
      return 'true or false';
    case 'array':
      return schema.items ? `a list of ${expectation(schema.items).replace(/^one of /, '')}` : 'a list';
    case 'object':
      return 'a map of keys and values';
    default:
      return 'another kind of value';
  }
}

function range({ minimum, maximum, exclusiveMinimum }: JsonSchema): string {
  // zod writes the safe integers as bounds of every whole number; that says nothing to people.
  const lowest = minimum === Number.MIN_SAFE_INTEGER ? undefined : (minimum ?? exclusiveMinimum);
  const highest = maximum === Number.MAX_SAFE_INTEGER ? undefined : maximum;
  if (lowest !== undefined && highest !== undefined) return ` between ${lowest} and ${highest}`;
  if (lowest !== undefined)
    return exclusiveMinimum === undefined ? ` of at least ${lowest}` : ` above ${lowest}`;
  return highest === undefined ? '' : ` of at most ${highest}`;
}
