import { randomBytes } from 'node:crypto';

import { canary, type MySqlInfo, mysqlQuery, type OpenBao, type PostgresInfo, sql } from './servers.ts';

/** How long the credentials of a role live. */
interface Lifetime {
  readonly ttl: string;
  readonly max: string;
}

/** A role of the database engine, and the server whose users it makes. */
export interface DatabaseRole {
  /** Reference without a field: `database/creds/ro-1f2e`. */
  readonly path: string;
  /** Names of the users it has made that are still there. */
  readonly users: () => Promise<string[]>;
}

/** A role of one user whose password OpenBao changes. */
export interface StaticRole {
  readonly path: string;
  readonly username: string;
  /** Changes the password now. */
  readonly rotate: () => Promise<void>;
}

/** The database engine of an OpenBao, with a real server behind it. */
export interface DatabaseEngine {
  readonly dynamic: (lifetime?: Partial<Lifetime>) => Promise<DatabaseRole>;
  readonly static: (rotationPeriod?: string) => Promise<StaticRole>;
}

const unique = () => randomBytes(4).toString('hex');

/** Mounts the database engine at `database`, where it is not yet, and connects it to a PostgreSQL. */
export async function postgresEngine(bao: OpenBao, info: PostgresInfo): Promise<DatabaseEngine> {
  const connection = await connect(bao, {
    plugin_name: 'postgresql-database-plugin',
    connection_url: `postgresql://{{username}}:{{password}}@${info.host}:${info.port}/${info.database}?sslmode=disable`,
    password: canary.postgres,
  });
  const create = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`;
  return engine(bao, connection, {
    create: [create],
    // Without the grants of a real application there is nothing to revoke first.
    revoke: [`DROP ROLE IF EXISTS "{{name}}"`],
    users: async (prefix) =>
      (await sql(info, 'SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1)', [prefix])).map((row) =>
        String(row['rolname']),
      ),
    addUser: async (name) => void (await sql(info, `CREATE ROLE "${name}" LOGIN`)),
    template: (role) => `${role}-{{random 12}}`,
  });
}

/** The same with a MySQL or MariaDB. */
export async function mysqlEngine(bao: OpenBao, info: MySqlInfo): Promise<DatabaseEngine> {
  const connection = await connect(bao, {
    plugin_name: 'mysql-database-plugin',
    connection_url: `{{username}}:{{password}}@tcp(${info.host}:${info.port})/`,
    password: canary.mysql,
  });
  return engine(bao, connection, {
    create: [
      `CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'`,
      `GRANT SELECT ON app.* TO '{{name}}'@'%'`,
    ],
    revoke: [`DROP USER IF EXISTS '{{name}}'@'%'`],
    users: async (prefix) =>
      (await mysqlQuery(info, 'SELECT user FROM mysql.user WHERE user LIKE ?', [`${prefix}%`])).map((row) =>
        String(row['user'] ?? row['User']),
      ),
    addUser: async (name) => {
      await mysqlQuery(info, `CREATE USER '${name}'@'%' IDENTIFIED BY '${randomBytes(12).toString('hex')}'`);
      await mysqlQuery(info, `GRANT SELECT ON app.* TO '${name}'@'%'`);
    },
    template: (role) => `${role}-{{random 12}}`,
  });
}

async function connect(bao: OpenBao, settings: Record<string, string>): Promise<string> {
  const mounts = (await bao.read('sys/mounts')) as { data: object };
  if (!('database/' in mounts.data)) await bao.write('sys/mounts/database', { type: 'database' });
  const name = `server-${unique()}`;
  await bao.write(`database/config/${name}`, { ...settings, username: 'admin', allowed_roles: '*' });
  return name;
}

interface Dialect {
  readonly create: readonly string[];
  readonly revoke: readonly string[];
  readonly users: (prefix: string) => Promise<string[]>;
  readonly addUser: (name: string) => Promise<void>;
  readonly template: (role: string) => string;
}

function engine(bao: OpenBao, connection: string, dialect: Dialect): DatabaseEngine {
  return {
    async dynamic({ ttl = '1h', max = '24h' } = {}) {
      const role = `ro-${unique()}`;
      // The name of a user says which role made it: other tests have theirs on the same server.
      const own = `${connection}-${role}`;
      const { data } = (await bao.read(`database/config/${connection}`)) as {
        data: { plugin_name: string; connection_details: { connection_url: string; username: string } };
      };
      await bao.write(`database/config/${own}`, {
        plugin_name: data.plugin_name,
        connection_url: data.connection_details.connection_url,
        username: data.connection_details.username,
        password: data.plugin_name.startsWith('mysql') ? canary.mysql : canary.postgres,
        allowed_roles: role,
        username_template: dialect.template(role),
      });
      await bao.write(`database/roles/${role}`, {
        db_name: own,
        creation_statements: dialect.create,
        revocation_statements: dialect.revoke,
        default_ttl: ttl,
        max_ttl: max,
      });
      return { path: `database/creds/${role}`, users: () => dialect.users(`${role}-`) };
    },

    async static(rotationPeriod = '1h') {
      const username = `static-${unique()}`;
      await dialect.addUser(username);
      await bao.write(`database/static-roles/${username}`, {
        db_name: connection,
        username,
        rotation_period: rotationPeriod,
      });
      return {
        path: `database/static-creds/${username}`,
        username,
        rotate: async () => void (await bao.write(`database/rotate-role/${username}`)),
      };
    },
  };
}
