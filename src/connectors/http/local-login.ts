import type { KnownPassword, LocalLogin } from '../../core/access.ts';
import { decodeBase64 } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import { type Head, METHOD_CONNECT } from './head.ts';
import { refusal } from './replies.ts';

/** Longest value of a field that is looked at. */
const LONGEST_VALUE = 4096;

/**
 * Whether a request may be served that has to show the local password: Basic or Bearer, in Proxy-Authorization where it is
 * made to a proxy (RFC 9110 11.7), else in Authorization. Both are among the fields that are cut. The error is what the client
 * is told.
 */
export function refusalOf(
  login: LocalLogin,
  known: KnownPassword,
  bytes: Buffer,
  head: Head,
): PosternError | undefined {
  const toProxy = head.method === METHOD_CONNECT || bytes[head.targetAt] !== 0x2f;
  const status = toProxy ? 407 : 401;
  try {
    login.begin();
    const values = valuesOf(toProxy ? 'proxy-authorization' : 'authorization', bytes, head);
    const [value] = values;
    // Most clients ask without it first: that is no guess.
    if (value === undefined) return refusal(status, 'this service asks for a password', 'ACCESS_DENIED');
    if (values.length === 1 && isRight(value, login.username, known)) return undefined;
    return refusal(status, login.wrong().message, 'ACCESS_DENIED');
  } catch (thrown) {
    return PosternError.from(thrown);
  }
}

/** The values of a field among the lines that are cut; a name is in lower case. */
function valuesOf(name: string, bytes: Buffer, { cut }: Head): Buffer[] {
  const values: Buffer[] = [];
  for (let i = 0; i < cut.length; i += 2)
    for (let line = cut[i] as number; line < (cut[i + 1] as number); ) {
      const end = bytes.indexOf('\r\n', line, 'latin1');
      if (end < 0) break;
      const colon = line + name.length;
      // In this spelling alone: what only some servers take for it is cut and proves nothing.
      if (bytes[colon] === 0x3a && bytes.toString('latin1', line, colon).toLowerCase() === name)
        values.push(trimmed(bytes.subarray(colon + 1, end)));
      line = end + 2;
    }
  return values;
}

function trimmed(value: Buffer): Buffer {
  let [from, to] = [0, value.length];
  const isBlank = (byte: number | undefined) => byte === 0x20 || byte === 0x09;
  while (from < to && isBlank(value[from])) from += 1;
  while (to > from && isBlank(value[to - 1])) to -= 1;
  return value.subarray(from, to);
}

function isRight(value: Buffer, username: string | undefined, known: KnownPassword): boolean {
  const space = value.indexOf(0x20);
  if (space < 0 || value.length > LONGEST_VALUE) return false;
  const scheme = value.toString('latin1', 0, space).toLowerCase();
  const shown = trimmed(value.subarray(space));
  if (scheme === 'bearer') return known.equals(shown);
  if (scheme !== 'basic') return false;
  const pair = decodeBase64(shown);
  const colon = pair?.indexOf(0x3a) ?? -1;
  if (!pair || colon < 0) return false;
  try {
    const right = known.equals(pair.subarray(colon + 1));
    return right && (username === undefined || pair.subarray(0, colon).equals(Buffer.from(username)));
  } finally {
    pair.fill(0);
  }
}
