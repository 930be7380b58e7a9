/**
 * What Secretless's configuration files (version 2) have that Postern's do not.
 *
 * Secretless ignores every key that it does not know, and its own examples carry some. A file that ran there runs
 * here: those keys are warnings for its connectors, and errors everywhere else.
 */

/** The connectors of Secretless, under its names. */
export const secretlessConnectors: ReadonlySet<string> = new Set([
  'pg',
  'mysql',
  'mssql',
  'ssh',
  'ssh-agent',
  'http',
  'basic_auth',
  'conjur',
  'aws',
  'generic_http',
]);

/** Those that are forward proxies for HTTP, and names of Secretless alone. */
export const secretlessHttp: ReadonlySet<string> = new Set(['basic_auth', 'conjur', 'aws', 'generic_http']);

/** Keys of a service that Secretless files carry and that no code of it reads. */
export const ignoredServiceKeys: ReadonlyMap<string, string> = new Map([
  ['debug', 'is ignored, here as in Secretless; the log level is a setting of the whole program'],
  ['caCertFiles', 'is ignored, here as in Secretless; give the CA as the credential `sslrootcert`'],
]);

/**
 * Whether a service speaks Secretless: its database connectors have no `config:` at all, and `pg` and those of HTTP are
 * its names alone. `http` is never: without a `config:` it is nothing at all.
 */
export function isSecretlessService(connector: string, hasConfig: boolean): boolean {
  if (connector === 'pg' || secretlessHttp.has(connector)) return true;
  return connector !== 'http' && secretlessConnectors.has(connector) && !hasConfig;
}

/** What to do with a file that Secretless would read as its version 1. */
export const convertVersion1 =
  'this is a Secretless version 1 file (`listeners:` and `handlers:`), which must be converted to version 2: ' +
  'write `version: 2` and, for each listener with its handler, an entry `services: {NAME: {connector, listenOn, ' +
  'credentials: {NAME: {from: PROVIDER, get: ID}}}}`';
