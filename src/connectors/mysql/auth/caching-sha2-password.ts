import { hash } from 'node:crypto';

import { PosternError } from '../../../core/errors.ts';
import { type AuthRequest, assertMayShowPassword, saltOf, terminated } from './plugin.ts';
import { encryptedPassword } from './rsa.ts';

const NAME = 'caching_sha2_password';
const REQUEST_PUBLIC_KEY = 0x02;
const FAST_AUTH_SUCCESS = 0x03;
const PERFORM_FULL_AUTHENTICATION = 0x04;

/**
 * `caching_sha2_password`, the default of MySQL since 8.0. A server that has seen the account's password since it started
 * knows a hash of it and is content with a proof. One that has not, or that was given a wrong password, asks for the password
 * itself: inside TLS or a unix socket as it is, otherwise encrypted to an RSA key.
 */
export async function* cachingSha2Password(
  request: AuthRequest,
): AsyncGenerator<Buffer | undefined, void, Buffer> {
  const { password, channel } = request;
  const verdict = yield cachingSha2Response(password, saltOf(NAME, request));
  if (verdict.length === 1 && verdict[0] === FAST_AUTH_SUCCESS) {
    yield undefined;
  } else if (verdict.length === 1 && verdict[0] === PERFORM_FULL_AUTHENTICATION) {
    if (channel.tls || channel.secure) {
      assertMayShowPassword(NAME, request);
      yield terminated(password);
    } else {
      yield* encryptedPassword(NAME, REQUEST_PUBLIC_KEY, request);
    }
  } else {
    throw new PosternError('UPSTREAM_PROTOCOL', `the server answered to ${NAME} with something else`);
  }
}

/** SHA256(password) XOR SHA256(SHA256(SHA256(password)), salt); nothing for an empty password. */
export function cachingSha2Response(password: Buffer, salt: Buffer): Buffer {
  if (password.length === 0) return Buffer.alloc(0);
  const answer = hash('sha256', password, 'buffer');
  const cached = hash('sha256', answer, 'buffer');
  const salted = Buffer.concat([cached, salt]);
  const mask = hash('sha256', salted, 'buffer');
  for (const [i, byte] of mask.entries()) answer[i] = (answer[i] as number) ^ byte;
  for (const secret of [cached, salted, mask]) secret.fill(0);
  return answer;
}
