import type { Finding, Review } from '../connector.ts';
import { reviewForward } from './forward.ts';
import { reviewAuthenticate } from './schemes/index.ts';
import type { Settings } from './settings.ts';

/** What no schema can see: settings and credentials that contradict each other, and settings that work and are unsafe. */
export function review(settings: Settings, credentials: ReadonlySet<string>): Review {
  const forward = reviewForward(settings, credentials);
  const problems: Finding[] = [
    ...reviewAuthenticate(settings.authenticate, credentials),
    ...forward.problems,
  ];
  const warnings: Finding[] = [...forward.warnings];
  const { upstream, allow, tls } = settings;
  if (allow && upstream === undefined)
    problems.push({
      path: ['config', 'allow'],
      message: 'means nothing without `upstream`: a forward service says under `match` what it is for',
    });
  if (upstream !== undefined) {
    const { protocol, username, password, search, hash } = new URL(upstream);
    if (username !== '' || password !== '' || search !== '' || hash !== '')
      problems.push({
        path: ['config', 'upstream'],
        message: 'is a base URL: without user, password, query and fragment',
      });
    if (protocol === 'http:' && settings.authenticate && !settings.allowPlainHttp)
      problems.push({
        path: ['config', 'upstream'],
        message:
          'the credential would travel in clear: use https://, or say `allowPlainHttp: true` where this very server is meant',
      });
    if (protocol === 'http:' && settings.allowPlainHttp)
      warnings.push({
        path: ['config', 'allowPlainHttp'],
        message:
          'the credential travels in clear to the upstream; use https:// where it is not on this machine',
      });
  }
  if ((tls.cert === undefined) !== (tls.key === undefined))
    problems.push({ path: ['config', 'tls'], message: 'cert and key belong together' });
  if (credentials.has('tlsCert') !== credentials.has('tlsKey'))
    problems.push({ path: ['credentials'], message: '"tlsCert" and "tlsKey" belong together' });
  if (tls.verify !== 'full')
    warnings.push({
      path: ['config', 'tls', 'verify'],
      message:
        tls.verify === 'none'
          ? 'the credential goes to whoever answers; leave `verify` out, with `ca:` where the CA is your own'
          : 'any server with a certificate of a trusted CA gets the credential; leave `verify` out, with `serverName:` where the name differs',
    });
  return { problems, warnings };
}
