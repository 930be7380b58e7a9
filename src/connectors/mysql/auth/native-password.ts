import { hash } from 'node:crypto';

import { type AuthRequest, saltOf } from './plugin.ts';

/** `mysql_native_password`, the default of MariaDB; removed from MySQL 9. */
export async function* mysqlNativePassword(request: AuthRequest): AsyncGenerator<Buffer, void, Buffer> {
  yield nativeResponse(request.password, saltOf('mysql_native_password', request));
}

/** SHA1(password) XOR SHA1(salt, SHA1(SHA1(password))); nothing for an empty password. */
export function nativeResponse(password: Buffer, salt: Buffer): Buffer {
  if (password.length === 0) return Buffer.alloc(0);
  const answer = hash('sha1', password, 'buffer');
  const stored = hash('sha1', answer, 'buffer');
  const salted = Buffer.concat([salt, stored]);
  const mask = hash('sha1', salted, 'buffer');
  for (const [i, byte] of mask.entries()) answer[i] = (answer[i] as number) ^ byte;
  for (const secret of [stored, salted, mask]) secret.fill(0);
  return answer;
}
