import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client, type ClientConfig } from 'pg';

import { psql } from '../support/clients/psql.ts';
import { Postern } from '../support/postern.ts';
import {
  canary,
  type OpenBao,
  type PostgresInfo,
  type Role,
  type Servers,
  sql,
  Unavailable,
  withServer,
} from '../support/servers.ts';

/** An entry under `services:`, with what the tests do not care about left out. */
export interface ServiceOptions {
  readonly connector?: string;
  readonly listenOn?: string;
  readonly listenTls?: { readonly cert: string; readonly key: string };
  readonly socketMode?: string;
  readonly credentials: Readonly<Record<string, unknown>>;
  readonly config?: Readonly<Record<string, unknown>>;
  readonly limits?: Readonly<Record<string, string | number>>;
  readonly cache?: Readonly<Record<string, string>>;
  readonly onRotation?: 'keep' | 'drain';
}

export interface Reference {
  readonly from: string;
  readonly get: string;
}

let stored = 0;

/** Puts a secret into the store under a path of this process alone; gives the path and a reference to each field. */
export async function keep<Field extends string>(
  bao: OpenBao,
  fields: Readonly<Record<Field, string>>,
): Promise<{ readonly path: string; readonly references: Readonly<Record<Field, Reference>> }> {
  stored += 1;
  const name = `app/e2e-${process.pid}-${stored}`;
  await bao.write(`secret/data/${name}`, { data: fields });
  const references = Object.fromEntries(
    Object.keys(fields).map((field) => [field, { from: 'bao', get: `secret/${name}#${field}` }]),
  );
  return { path: `secret/data/${name}`, references: references as Record<Field, Reference> };
}

/** A role's own login, in the store: `trust_user` and `cert_user` have no password. */
export async function loginOf(bao: OpenBao, role: Role): Promise<Readonly<Record<string, Reference>>> {
  if (role === 'trust_user' || role === 'cert_user') return (await keep(bao, { username: role })).references;
  const password = role === 'unicode_user' ? canary.postgresUnicode : canary.postgres;
  return (await keep(bao, { username: role, password })).references;
}

/** `config:` that reaches the server as safely as it can be reached. */
export function towards(postgres: PostgresInfo): { host: string; port: number; tls: Record<string, string> } {
  return postgres.ca === undefined
    ? { host: '127.0.0.1', port: postgres.port, tls: { mode: 'disable' } }
    : { host: 'localhost', port: postgres.port, tls: { mode: 'verify-full', ca: postgres.ca } };
}

/** The text of a configuration whose provider `bao` logs in to the store by AppRole. JSON is YAML too. */
export function configuration(
  bao: Pick<OpenBao, 'address' | 'roleId'>,
  services: Readonly<Record<string, ServiceOptions>>,
  top: Readonly<Record<string, unknown>> = {},
): string {
  const auth = { method: 'approle', roleId: bao.roleId, secretIdEnv: 'E2E_SECRET_ID' };
  const entries = Object.entries(services).map(([name, service]) => [
    name,
    { connector: 'postgres', listenOn: 'tcp://127.0.0.1:0', ...service },
  ]);
  return JSON.stringify(
    {
      version: 2,
      providers: { bao: { kind: 'vault', address: bao.address, auth } },
      services: Object.fromEntries(entries),
      ...top,
    },
    null,
    2,
  );
}

/** Environment that `configuration` counts on. */
export function environment(bao: Pick<OpenBao, 'secretId'>): Record<string, string> {
  return { E2E_SECRET_ID: bao.secretId };
}

/** The program, with a provider for the store. */
export async function perform(
  bao: OpenBao,
  services: Readonly<Record<string, ServiceOptions>>,
  options: { readonly top?: Readonly<Record<string, unknown>>; readonly env?: Record<string, string> } = {},
): Promise<Postern> {
  const env = { ...environment(bao), ...options.env };
  return await Postern.start(configuration(bao, services, options.top), { env });
}

/**
 * Something that several tests share, made when the first of them asks. A test is skipped where a server cannot be had;
 * in CI that is a failure like any other.
 */
export function shared<Scene>(make: () => Promise<Scene>): (t: TestContext) => Promise<Scene | undefined> {
  let made: Promise<Scene> | undefined;
  return async (t) => {
    try {
      return await (made ??= make());
    } catch (error) {
      if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
      t.skip(error.message);
      return undefined;
    }
  };
}

/** Both servers that nearly every test needs; undefined when the test was skipped for the lack of one. */
export async function stage(t: TestContext): Promise<Pick<Servers, 'postgres18' | 'openbao'> | undefined> {
  const postgres18 = await withServer(t, 'postgres18');
  const openbao = postgres18 && (await withServer(t, 'openbao'));
  return openbao && { postgres18, openbao };
}

/** A connected `pg` client of an application that has no secret. */
export async function application(port: number, more: ClientConfig = {}): Promise<Client> {
  const client = new Client({
    host: '127.0.0.1',
    port,
    user: 'anybody',
    database: 'app',
    connectionTimeoutMillis: 60_000,
    ...more,
  });
  // A connection that ends while nobody asks anything is told as an event.
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** Connects, asks one thing, leaves. Gives the first row. */
export async function ask(
  port: number,
  query: string,
  more: ClientConfig = {},
): Promise<Record<string, unknown>> {
  const client = await application(port, more);
  try {
    const { rows } = await client.query<Record<string, unknown>>(query);
    return rows[0] ?? {};
  } finally {
    await client.end();
  }
}

/** How a client that is not served hears of it. */
export interface Refusal {
  readonly code: string;
  readonly message: string;
  /** Everything in the ErrorResponse, for a search in it. */
  readonly whole: string;
  readonly ms: number;
}

/** Connects and expects to be refused. */
export async function refused(port: number, more: ClientConfig = {}): Promise<Refusal> {
  const started = performance.now();
  try {
    const client = await application(port, more);
    await client.end();
  } catch (error) {
    const { code = '', message } = error as Error & { code?: string };
    return {
      code,
      message,
      whole: JSON.stringify(error, Object.getOwnPropertyNames(error)),
      ms: performance.now() - started,
    };
  }
  return assert.fail('was served');
}

/** Runs a query with psql, without a password; trimmed output, or what it says on failure. */
export async function viaPsql(
  connection: string,
  query: string,
  env: NodeJS.ProcessEnv = {},
): Promise<string> {
  const { code, stdout, stderr } = await psql(['-At', '-c', query, connection], { env });
  return code === 0 ? stdout.trim() : stderr.trim();
}

/** Waits until `condition` holds, for things that another process does. */
export async function eventually(
  what: string,
  condition: () => boolean | Promise<boolean>,
  patience = 60_000,
): Promise<void> {
  const end = performance.now() + patience;
  while (!(await condition())) {
    if (performance.now() > end) assert.fail(`waited in vain for: ${what}`);
    await sleep(15);
  }
}

/** Waits until the server process has a query under way: a cancel request before that would hit nothing. */
export async function busy(postgres: PostgresInfo, pid: number): Promise<void> {
  await eventually('the query to run', async () => {
    const rows = await sql(postgres, "select 1 from pg_stat_activity where pid = $1 and state = 'active'", [
      pid,
    ]);
    return rows.length > 0;
  });
}
