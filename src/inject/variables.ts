import { proxyVariables } from '../cli/child-environment.ts';
import { variablePrefix, type WantedService } from './annotations.ts';

/** Where the folder of unix sockets is in every container that has it. */
export const socketFolder = '/run/postern';

/** The user name for clients that have to say one; it decides nothing. */
const anybody = 'postern';
const host = '127.0.0.1';

/** Variables that belong together: half of them would lead somewhere else, or there without TLS. */
export interface VariableGroup {
  readonly variables: Readonly<Record<string, string>>;
  /** A container that has one of these itself goes its own way, and gets none of the group. */
  readonly anchors: readonly string[];
}

/**
 * The variables by which clients find the services: the same names as `postern exec` gives to its child. The first
 * service of a kind also has the names that its clients know by themselves (PGHOST, MYSQL_HOST, HTTP_PROXY).
 */
export function variablesOf(
  services: readonly WantedService[],
  { sockets }: { readonly sockets: boolean },
): readonly VariableGroup[] {
  const own = services.map((service): VariableGroup => {
    const variables = Object.fromEntries(
      Object.entries(ownVariables(service, sockets)).map(([name, value]) => [
        `${variablePrefix(service.name)}_${name}`,
        value,
      ]),
    );
    return { variables, anchors: Object.keys(variables) };
  });
  const first = (form: WantedService['form']) => services.find((service) => service.form === form);
  const [postgres, mysql, proxy] = [first('postgres'), first('mysql'), first('proxy')];
  const groups = [...own];
  if (postgres)
    groups.push({
      variables: {
        PGHOST: sockets ? socketFolder : host,
        PGPORT: String(postgres.port),
        PGUSER: anybody,
        PGDATABASE: postgres.database ?? 'postgres',
        // Between containers of a pod there is no network; libpq would ask for TLS first.
        PGSSLMODE: 'disable',
      },
      anchors: ['PGHOST', 'PGHOSTADDR', 'PGPORT', 'PGSERVICE'],
    });
  if (mysql)
    groups.push({
      // Clients of MySQL take the word localhost, and no address, for the unix socket.
      variables: sockets
        ? { MYSQL_HOST: 'localhost', MYSQL_UNIX_PORT: mysqlSocket(mysql) }
        : { MYSQL_HOST: host, MYSQL_TCP_PORT: String(mysql.port) },
      anchors: ['MYSQL_HOST', 'MYSQL_TCP_PORT', 'MYSQL_UNIX_PORT'],
    });
  if (proxy) {
    const variables = proxyVariables(`http://${host}:${proxy.port}`);
    groups.push({
      variables,
      anchors: Object.keys(variables).filter((name) => /^https?_proxy$/i.test(name)),
    });
  }
  return groups;
}

function ownVariables(service: WantedService, sockets: boolean): Record<string, string> {
  const { form, database = '' } = service;
  const port = String(service.port);
  switch (form) {
    case 'postgres':
      return sockets
        ? {
            HOST: socketFolder,
            PORT: port,
            SOCKET: `${socketFolder}/.s.PGSQL.${port}`,
            URL: `postgresql://${anybody}@/${database || 'postgres'}?host=${encodeURIComponent(socketFolder)}&port=${port}`,
          }
        : {
            HOST: host,
            PORT: port,
            URL: `postgresql://${anybody}@${host}:${port}/${database || 'postgres'}?sslmode=disable`,
          };
    case 'mysql':
      return sockets
        ? {
            HOST: 'localhost',
            SOCKET: mysqlSocket(service),
            URL: `mysql://${anybody}@localhost/${database}?socket=${encodeURIComponent(mysqlSocket(service))}`,
          }
        : { HOST: host, PORT: port, URL: `mysql://${anybody}@${host}:${port}/${database}` };
    case 'http':
    case 'proxy':
      return { HOST: host, PORT: port, URL: `http://${host}:${port}` };
  }
}

function mysqlSocket({ name }: WantedService): string {
  return `${socketFolder}/${name}.sock`;
}
