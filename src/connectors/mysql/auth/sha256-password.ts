import { type AuthRequest, assertMayShowPassword, saltOf, terminated } from './plugin.ts';
import { encryptedPassword } from './rsa.ts';

const NAME = 'sha256_password';
const REQUEST_PUBLIC_KEY = 0x01;

/**
 * `sha256_password`, older than caching_sha2_password and without its proof: the server gets the password itself every time,
 * inside TLS as it is, otherwise encrypted to an RSA key, on a unix socket too.
 */
export async function* sha256Password(
  request: AuthRequest,
): AsyncGenerator<Buffer | undefined, void, Buffer> {
  const { password, channel } = request;
  if (password.length === 0) {
    yield terminated(password);
  } else if (channel.tls) {
    assertMayShowPassword(NAME, request);
    yield terminated(password);
  } else {
    saltOf(NAME, request);
    yield* encryptedPassword(NAME, REQUEST_PUBLIC_KEY, request);
  }
}
