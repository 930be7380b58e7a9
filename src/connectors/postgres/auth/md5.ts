import { hash } from 'node:crypto';

import { PosternError } from '../../../core/errors.ts';

/**
 * The answer to AuthenticationMD5Password: `md5` and hex(md5(hex(md5(password username)) salt)), without the final NUL.
 * `username` is the name in the startup message. https://www.postgresql.org/docs/current/protocol-flow.html
 */
export function md5Response(username: Buffer, password: Buffer, salt: Buffer): Buffer {
  if (salt.length !== 4) throw new PosternError('UPSTREAM_PROTOCOL', 'MD5: the salt is not four bytes');

  // The server stores md5(password username): whoever has it can log in, so it is wiped like the password. `createHash`
  // would keep a digest of its own that nobody can wipe.
  const named = Buffer.concat([password, username]);
  const stored = hex(hash('md5', named, 'buffer'));
  const salted = Buffer.concat([stored, salt]);
  const answer = hex(hash('md5', salted, 'buffer'));
  try {
    return Buffer.concat([Buffer.from('md5'), answer]);
  } finally {
    for (const secret of [named, stored, salted, answer]) secret.fill(0);
  }
}

/** Like `toString('hex')`, but not a string: those cannot be wiped. Nor can a small `Buffer.alloc`: see password-message.ts. */
function hex(digest: Buffer): Buffer {
  const digits = Buffer.from('0123456789abcdef');
  const text = Buffer.allocUnsafe(2 * digest.length);
  for (const [i, byte] of digest.entries()) {
    text[2 * i] = digits[byte >> 4] as number;
    text[2 * i + 1] = digits[byte & 15] as number;
  }
  digest.fill(0);
  return text;
}
