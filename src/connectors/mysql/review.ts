import type { Review } from '../connector.ts';
import { reviewServer } from '../upstream.ts';
import type { Settings } from './settings.ts';

/** Finds what no schema can see; `known` are the credentials that mean something. */
export function review(
  settings: Settings,
  credentials: ReadonlySet<string>,
  known: ReadonlySet<string>,
): Review {
  const { tls, secretless } = settings;
  // Secretless's `mysql` does not look at the CA in mode require.
  const looksAtCa = !secretless || tls.mode !== 'require' || credentials.has('sslmode');
  const heeded = looksAtCa ? credentials : new Set([...credentials].filter((name) => name !== 'sslrootcert'));
  const { problems, warnings, onlySockets } = reviewServer(settings, heeded);
  const warn = (path: readonly string[], message: string) => warnings.push({ path, message });

  for (const name of credentials) {
    if (known.has(name)) continue;
    const path = ['credentials', name];
    if (secretless) warn(path, 'is ignored, here as in Secretless');
    else problems.push({ path, message: `means nothing; known are ${[...known].join(', ')}` });
  }
  if (settings.database !== undefined && settings.databases)
    problems.push({
      path: ['config', 'databases'],
      message: 'has no effect beside `database`: give one of them',
    });

  if (!looksAtCa && credentials.has('sslrootcert'))
    warn(
      ['credentials', 'sslrootcert'],
      'is not looked at in mode require, as in Secretless; add `sslmode: verify-full`',
    );
  const unverified = !onlySockets && !credentials.has('sslmode') && !tls.mode.startsWith('verify');
  if (unverified && settings.allowAuth.length > 0)
    warn(
      ['config', 'allowAuth'],
      `the password itself may go to a server that is not verified (allowAuth: ${settings.allowAuth.join(', ')}); verify it with \`tls: { mode: verify-full }\``,
    );
  if (unverified && tls.mode === 'disable' && settings.allowPublicKeyRetrieval && !settings.rsaPublicKey)
    warn(
      ['config', 'allowPublicKeyRetrieval'],
      'the password may be encrypted to the key of a man in the middle; give the key of the server as `rsaPublicKey`, or use TLS',
    );
  if (secretless && settings.allowLocalInfile)
    warn(
      ['config', 'allowLocalInfile'],
      'the server may ask the application for any file (LOAD DATA LOCAL), as in Secretless; add `allowLocalInfile: false` to config',
    );
  return { problems, warnings };
}
