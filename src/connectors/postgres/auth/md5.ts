import { createHash } from 'node:crypto';

import { PosternError } from '../../../core/errors.ts';

/**
 * The answer to AuthenticationMD5Password: `md5` and hex(md5(hex(md5(password username)) salt)), without the final NUL.
 * `username` is the name in the startup message. https://www.postgresql.org/docs/current/protocol-flow.html
 */
export function md5Response(username: Buffer, password: Buffer, salt: Buffer): Buffer {
  if (salt.length !== 4) throw new PosternError('UPSTREAM_PROTOCOL', 'MD5: the salt is not four bytes');

  // What the server stores: whoever has it can log in, so it is wiped like the password.
  const stored = createHash('md5').update(password).update(username).digest();
  const storedHex = hex(stored);
  const answer = createHash('md5').update(storedHex).update(salt).digest();
  const answerHex = hex(answer);
  try {
    return Buffer.concat([Buffer.from('md5'), answerHex]);
  } finally {
    for (const secret of [stored, storedHex, answer, answerHex]) secret.fill(0);
  }
}

/** Like `toString('hex')`, but not a string: those cannot be wiped. */
function hex(bytes: Buffer): Buffer {
  const digits = Buffer.from('0123456789abcdef');
  const text = Buffer.alloc(2 * bytes.length);
  for (const [i, byte] of bytes.entries()) {
    text[2 * i] = digits[byte >> 4] as number;
    text[2 * i + 1] = digits[byte & 15] as number;
  }
  return text;
}
