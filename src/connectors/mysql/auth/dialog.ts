import { PosternError } from '../../../core/errors.ts';
import { type AuthRequest, terminated } from './plugin.ts';

/** Kind of a question, without the lowest bit, which says that it is the last. */
const PASSWORD_QUESTION = 0x04;

/**
 * `dialog`, MariaDB's PAM: the server asks what it likes, and there is only a password to answer with. So the first question
 * gets it, if it is one for a password or has no text; a question for anything else has nobody to answer it.
 */
export async function* dialog({
  password,
  data,
  channel,
}: AuthRequest): AsyncGenerator<Buffer, void, Buffer> {
  if (!channel.secure)
    throw new PosternError(
      'AUTH_NOT_ALLOWED',
      'the server asks for the password itself (dialog) on a connection that is not verified; verify it (tls.mode)',
    );
  const kind = data[0];
  if (kind !== undefined && (kind & 0xfe) !== PASSWORD_QUESTION) throw unanswerable();
  yield terminated(password);
  throw unanswerable();
}

function unanswerable(): PosternError {
  return new PosternError(
    'AUTH_NOT_ALLOWED',
    'the server asks a question (dialog) that only a person can answer',
  );
}
