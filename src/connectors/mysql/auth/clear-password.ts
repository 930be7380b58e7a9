import { type AuthRequest, assertMayShowPassword, terminated } from './plugin.ts';

/** `mysql_clear_password`: the password as it is. PAM, LDAP, and the tokens of cloud providers, which are long. */
export async function* mysqlClearPassword(request: AuthRequest): AsyncGenerator<Buffer, void, Buffer> {
  assertMayShowPassword('mysql_clear_password', request);
  yield terminated(request.password);
}
