import type { Finding, Review } from '../connector.ts';
import type { Settings } from './settings.ts';

/** What no schema can see: settings and credentials that contradict each other, and settings that work and are unsafe. */
export function review(settings: Settings, credentials: ReadonlySet<string>): Review {
  const problems: Finding[] = [];
  const warnings: Finding[] = [];
  const problem = (path: readonly string[], message: string) => problems.push({ path, message });
  const warn = (path: readonly string[], message: string) => warnings.push({ path, message });
  const { tls, parameters } = settings;

  const hostCredential = credentials.has('host') || credentials.has('address');
  if (!hostCredential && settings.host === undefined)
    problem(['config', 'host'], 'missing: give the server as config.host or as the credential "host"');
  if (hostCredential && settings.host !== undefined)
    problem(['config', 'host'], 'given twice: as config.host and as a credential');
  if ((tls.cert === undefined) !== (tls.key === undefined))
    problem(['config', 'tls'], 'cert and key belong together');
  if (credentials.has('sslcert') !== credentials.has('sslkey'))
    problem(['credentials'], '"sslcert" and "sslkey" belong together');
  for (const name of Object.keys(parameters.set))
    if (['user', 'database', 'replication'].includes(name.toLowerCase()))
      problem(
        ['config', 'parameters', 'set', name],
        'cannot be set here: use the credential "username", `database` or `replication`',
      );

  for (const name of credentials)
    if (['user', 'database', 'replication'].includes(name.toLowerCase()))
      problem(
        ['credentials', name],
        'cannot be a credential: use "username", config.database or config.replication',
      );

  const hosts = [settings.host ?? []].flat();
  const onlySockets = hosts.length > 0 && hosts.every((host) => host.startsWith('/'));
  const needsBinding = settings.channelBinding === 'require' || settings.minimumAuth === 'scram-sha-256-plus';
  if (needsBinding && (onlySockets || (tls.mode === 'disable' && !credentials.has('sslmode'))))
    problem(['config', 'tls', 'mode'], 'channel binding needs TLS');
  if (settings.channelBinding === 'disable' && settings.minimumAuth === 'scram-sha-256-plus')
    problem(['config', 'channelBinding'], 'minimumAuth scram-sha-256-plus needs channel binding');
  if (settings.database !== undefined && settings.databases)
    problem(['config', 'databases'], 'has no effect beside `database`: give one of them');

  const mend = 'add `tls: { mode: verify-full }` to config, with `ca:` where the CA is your own';
  if (!onlySockets && !credentials.has('sslmode')) {
    if (tls.mode === 'disable')
      warn(['config', 'tls', 'mode'], `queries and results travel in clear; ${mend}`);
    else if (tls.mode === 'require' && tls.ca === undefined && !credentials.has('sslrootcert'))
      warn(
        ['config', 'tls', 'mode'],
        `TLS without knowing the server (mode require): a man in the middle goes unnoticed; ${mend}`,
      );
    for (const method of tls.mode.startsWith('verify') ? [] : settings.allowAuth)
      warn(
        ['config', 'allowAuth'],
        `${method === 'password' ? 'the password itself' : 'a breakable hash of the password'} may go to a server that is not verified (allowAuth: ${method}); set \`minimumAuth: scram-sha-256\``,
      );
  }
  return { problems, warnings };
}
