import type { Review } from '../connector.ts';
import { reviewServer } from '../upstream.ts';
import type { Settings } from './settings.ts';

/** What no schema can see: settings and credentials that contradict each other, and settings that work and are unsafe. */
export function review(settings: Settings, credentials: ReadonlySet<string>): Review {
  const { tls, parameters } = settings;
  const { problems, warnings, onlySockets } = reviewServer(settings, credentials);
  const problem = (path: readonly string[], message: string) => problems.push({ path, message });

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

  const needsBinding = settings.channelBinding === 'require' || settings.minimumAuth === 'scram-sha-256-plus';
  if (needsBinding && (onlySockets || (tls.mode === 'disable' && !credentials.has('sslmode'))))
    problem(['config', 'tls', 'mode'], 'channel binding needs TLS');
  if (settings.channelBinding === 'disable' && settings.minimumAuth === 'scram-sha-256-plus')
    problem(['config', 'channelBinding'], 'minimumAuth scram-sha-256-plus needs channel binding');
  if (settings.database !== undefined && settings.databases)
    problem(['config', 'databases'], 'has no effect beside `database`: give one of them');

  if (!onlySockets && !credentials.has('sslmode'))
    for (const method of tls.mode.startsWith('verify') ? [] : settings.allowAuth)
      warnings.push({
        path: ['config', 'allowAuth'],
        message: `${method === 'password' ? 'the password itself' : 'a breakable hash of the password'} may go to a server that is not verified (allowAuth: ${method}); set \`minimumAuth: scram-sha-256\``,
      });
  return { problems, warnings };
}
