import { PosternError } from '../../../core/errors.ts';
import { cachingSha2Password } from './caching-sha2-password.ts';
import { mysqlClearPassword } from './clear-password.ts';
import { dialog } from './dialog.ts';
import { clientEd25519 } from './ed25519.ts';
import { mysqlNativePassword } from './native-password.ts';
import { parsec } from './parsec.ts';
import type { AuthPlugin, AuthRequest } from './plugin.ts';
import { sha256Password } from './sha256-password.ts';

/** The authentication plugins that Postern answers, by the name that a server asks for them with. */
export const authPlugins: ReadonlyMap<string, AuthPlugin> = new Map<string, AuthPlugin>([
  ['mysql_native_password', mysqlNativePassword],
  ['caching_sha2_password', cachingSha2Password],
  ['sha256_password', sha256Password],
  ['mysql_clear_password', mysqlClearPassword],
  ['client_ed25519', clientEd25519],
  ['parsec', parsec],
  ['dialog', dialog],
]);

/** What plugins need that a password cannot give them. */
const unsupported: ReadonlyMap<string, string> = new Map([
  ['mysql_old_password', 'a hash from before MySQL 4.1 that anybody who listens can log in with'],
  ['authentication_ldap_sasl_client', 'LDAP with SASL'],
  ['authentication_kerberos_client', 'Kerberos'],
  ['auth_gssapi_client', 'Kerberos'],
  ['authentication_windows_client', 'a Windows login'],
  ['authentication_oci_client', 'a key of Oracle Cloud'],
  ['authentication_openid_connect_client', 'an identity token'],
  ['authentication_webauthn_client', 'a security key'],
  ['authentication_fido_client', 'a security key'],
  ['auth_socket', 'a user of the operating system'],
  ['unix_socket', 'a user of the operating system'],
]);

/** The conversation with a server about who we are, by one plugin. */
export class Authentication {
  readonly #plugin: string;
  readonly #steps: ReturnType<AuthPlugin>;

  private constructor(plugin: string, steps: ReturnType<AuthPlugin>) {
    this.#plugin = plugin;
    this.#steps = steps;
  }

  /**
   * Begins it, with the first answer: maybe empty, and the caller wipes it. Throws AUTH_NOT_ALLOWED for a plugin that is not
   * known or not allowed here, UPSTREAM_PROTOCOL for data that is not the plugin's.
   */
  static async begin(
    plugin: string,
    request: AuthRequest,
  ): Promise<{ readonly authentication: Authentication; readonly first: Buffer }> {
    const steps = authPlugins.get(plugin)?.(request);
    if (!steps) throw unknown(plugin);
    const { value: first } = await steps.next(Buffer.alloc(0));
    if (!first) throw new PosternError('INTERNAL', `${plugin} has no first answer`);
    return { authentication: new Authentication(plugin, steps), first };
  }

  /** The answer to data of the server, which the caller wipes; undefined: wait for its next packet. Throws as `begin` does. */
  async answer(data: Buffer): Promise<Buffer | undefined> {
    const { value, done } = await this.#steps.next(data);
    if (!done) return value ?? undefined;
    throw new PosternError(
      'UPSTREAM_PROTOCOL',
      `the server goes on with ${this.#plugin}, which was at its end`,
    );
  }
}

function unknown(plugin: string): PosternError {
  // The name is a stranger's.
  const name = plugin.replace(/[^\x21-\x7e]/g, '?').slice(0, 64);
  const needs = unsupported.get(plugin);
  return new PosternError(
    'AUTH_NOT_ALLOWED',
    needs === undefined
      ? `the server asks for the authentication plugin "${name}", which Postern does not know`
      : `the server asks for the authentication plugin "${name}", which needs ${needs} and is not supported`,
  );
}
