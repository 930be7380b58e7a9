import type { Derive } from '../../../core/credentials.ts';
import { PosternError } from '../../../core/errors.ts';

/** What is known about a connection to a server. */
export interface Channel {
  /** Whether whoever reads it is sure to be the server: verified TLS, or a unix socket. */
  readonly secure: boolean;
  /** Whether there is TLS, verified or not: it decides what the plugins of MySQL say. */
  readonly tls: boolean;
}

/** What a service's settings let a plugin do on a connection that is not secure. Named as the settings are. */
export interface AuthPolicy {
  /** Plugins that may show the password itself. */
  readonly allowAuth: readonly string[];
  /** PEM of the server's RSA key, to which the password is encrypted, and to no other. */
  readonly rsaPublicKey: Buffer | undefined;
  /** Whether to encrypt the password to whatever RSA key the server sends. */
  readonly allowPublicKeyRetrieval: boolean;
}

/** What a plugin is given to answer a server. */
export interface AuthRequest {
  /** Lent: the plugin neither keeps nor wipes it. Empty for an account without a password. */
  readonly password: Buffer;
  /** What came with the plugin's name in the greeting or the AuthSwitchRequest: the newest salt. */
  readonly data: Buffer;
  readonly channel: Channel;
  readonly policy: AuthPolicy;
  /** Where derived keys are kept between logins with the same password. */
  readonly derive: Derive;
}

/**
 * One authentication plugin of MySQL or MariaDB, the client's half: yields its first answer, then one for each time that
 * the server sends data; `undefined` is to wait. The receiver wipes what it was yielded.
 */
export type AuthPlugin = (request: AuthRequest) => AsyncGenerator<Buffer | undefined, void, Buffer>;

/** Throws AUTH_NOT_ALLOWED unless the plugin may show the password itself on this connection. */
export function assertMayShowPassword(plugin: string, { channel, policy }: AuthRequest): void {
  if (channel.secure || policy.allowAuth.includes(plugin)) return;
  throw new PosternError(
    'AUTH_NOT_ALLOWED',
    `the server asks for the password itself (${plugin}) on a connection that is not verified; verify it (tls.mode) or accept that (allowAuth)`,
  );
}

/** A copy of the password with a final zero byte, as the plugins send it that do not hash it. */
export function terminated(password: Buffer): Buffer {
  // The server would take what is in front of a zero byte for the whole.
  if (password.includes(0))
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      'the credential "password" has a zero byte, which the authentication plugin of the server cannot take',
    );
  return Buffer.concat([password, Buffer.alloc(1)]);
}

/** The 20 bytes of salt that every plugin of MySQL gets. Throws UPSTREAM_PROTOCOL when there are more or fewer. */
export function saltOf(plugin: string, { data }: AuthRequest): Buffer {
  if (data.length === 20) return data;
  throw new PosternError(
    'UPSTREAM_PROTOCOL',
    `the server sent a salt of ${data.length} bytes for ${plugin}, which has 20`,
  );
}
