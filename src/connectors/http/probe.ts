import { TLSSocket } from 'node:tls';

import type { Probe } from '../../core/session.ts';
import type { Member } from './member.ts';
import { reach } from './reach.ts';
import type { Origin } from './route.ts';
import { tlsOf } from './service.ts';

/**
 * Makes what would go into requests and connects to the servers, and sends nothing: no request is without an effect for
 * sure. Says what it found. Throws what a request would be answered with.
 */
export async function tryOut(probe: Probe, member: Member, origins: readonly Origin[]): Promise<string> {
  return await probe.withCredentials(async (credentials, signal) => {
    const { value } = await member.scheme.prepare(credentials, signal);
    value[Symbol.dispose]();
    const found: string[] = [];
    for (const origin of origins) {
      const tls = await tlsOf(member.settings, credentials);
      try {
        const socket = await reach(origin, member.settings, tls, signal);
        const version = socket instanceof TLSSocket ? String(socket.getProtocol()) : 'none';
        socket.destroy();
        found.push(`connected to ${origin.host}:${origin.port} (TLS ${version})`);
      } finally {
        for (const secret of [tls.key, tls.passphrase]) secret?.fill(0);
      }
    }
    return [...found, 'the credential can go into requests, and none was sent'].join('; ');
  });
}
