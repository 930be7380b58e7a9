import { getCACertificates } from 'node:tls';

import type { Credentials } from '../../core/credentials.ts';
import type { Preparation } from '../../core/prepared.ts';
import type { ServiceContext } from '../connector.ts';
import { readPem } from '../upstream.ts';
import { Generation } from './generation.ts';
import { Member } from './member.ts';
import type { UpstreamTls } from './reach.ts';
import type { Scheme } from './schemes/index.ts';
import type { EngineSettings } from './settings.ts';

/** Credentials that are a client certificate for the upstream, by name. */
export const tlsCredentials = ['tlsCert', 'tlsKey', 'tlsKeyPassword', 'tlsCa'] as const;

/** Sets a service up: its scheme, and what is made of each generation of its credentials. */
export function openMember(
  service: ServiceContext,
  settings: EngineSettings,
  scheme: Scheme,
  takesAuthorization = false,
): Member {
  return new Member({
    name: service.name,
    log: service.log,
    settings,
    scheme,
    loginTimeout: service.loginTimeout,
    audit: service.requestAudit,
    takesAuthorization,
    prepare: (member) =>
      service.prepare<Generation>((credentials, signal, previous) =>
        generate(member, credentials, signal, previous),
      ),
  });
}

async function generate(
  member: Member,
  credentials: Credentials,
  signal: AbortSignal,
  previous: Generation | undefined,
): Promise<Preparation<Generation>> {
  const tls = await tlsOf(member.settings, credentials);
  const { value, expiresAt } = await member.scheme.prepare(credentials, signal);
  const generation = new Generation(member, value, tls);
  if (previous) generation.adopt(previous);
  return { value: generation, expiresAt };
}

/** Reads what TLS towards the servers needs, the client's key among it: the caller wipes that. Throws UPSTREAM_TLS. */
export async function tlsOf(
  { tls, extraCa }: EngineSettings,
  credentials: Credentials,
): Promise<UpstreamTls> {
  const own = (name: (typeof tlsCredentials)[number]) =>
    credentials.has(name) ? Buffer.concat([credentials.get(name)]) : undefined;
  const [ca, cert, key] = await Promise.all([
    own('tlsCa') ?? readPem(tls.ca ?? extraCa),
    own('tlsCert') ?? readPem(tls.cert),
    own('tlsKey') ?? readPem(tls.key),
  ]);
  const trusted = extraCa !== undefined && ca ? Buffer.from([...getCACertificates(), ca].join('\n')) : ca;
  const verify = ({ full: 'verify-full', ca: 'verify-ca', none: 'require' } as const)[tls.verify];
  return { verify, minVersion: tls.minVersion, ca: trusted, cert, key, passphrase: own('tlsKeyPassword') };
}
