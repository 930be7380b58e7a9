import { timingSafeEqual } from 'node:crypto';

import type { Session } from '../../core/session.ts';
import { cachingSha2Response } from './auth/caching-sha2-password.ts';
import type { Client } from './client.ts';
import { byteString } from './names.ts';
import type { Greeting } from './packets.ts';

/**
 * Has a client prove that it knows the local password, by the fast way of caching_sha2_password: Postern knows the password, so
 * it needs no more than the proof, and none is ever sent. Throws ACCESS_DENIED. `greeting` is asked for only where the peer may
 * try at all.
 */
export async function logInLocally(
  session: Session,
  client: Client,
  greeting: () => Promise<Greeting>,
): Promise<void> {
  const { localLogin } = session;
  if (!localLogin) return;
  const { username } = localLogin;
  await localLogin.prove(async (credentials) => {
    const shown = await greeting();
    const { user, answer, salt } = await client.meetLocally(shown, session.deadline('the local login'));
    const proved = isProof(answer, credentials.get('password'), salt);
    return proved && (username === undefined || user === byteString(username));
  });
}

function isProof(answer: Buffer, password: Buffer, salt: Buffer): boolean {
  const right = cachingSha2Response(password, salt);
  try {
    return answer.length === right.length && timingSafeEqual(answer, right);
  } finally {
    right.fill(0);
  }
}
