import { type ErrorCode, PosternError } from '../../core/errors.ts';
import { byteString, decodeFields, encodeError, textOf } from './messages.ts';

/** SQLSTATE (PostgreSQL documentation, appendix A) for each way a session can fail before it is relayed. */
const sqlstates: Readonly<Record<ErrorCode, string>> = {
  CONFIG_INVALID: 'XX000',
  LISTEN_FAILED: 'XX000',
  // The operator has to act; the application cannot, and "password" would send its owner looking in the wrong place.
  PROVIDER_FAILED: '28000',
  UPSTREAM_REJECTED: '28000',
  AUTH_NOT_ALLOWED: '28000',
  CLIENT_REFUSED: '28000',
  ACCESS_DENIED: '28000',
  RATE_LIMITED: '53300',
  CLIENT_PROTOCOL: '08P01',
  CLIENT_CLOSED: '08006',
  // cannot_connect_now: the one code that makes libpq try the next host of its list.
  PROVIDER_UNAVAILABLE: '57P03',
  UPSTREAM_UNREACHABLE: '57P03',
  TIMEOUT: '57P03',
  SHUTDOWN: '57P03',
  SESSION_EXPIRED: '57P01',
  LIMIT_REACHED: '53300',
  UPSTREAM_TLS: '08001',
  UPSTREAM_PROTOCOL: '08006',
  UPSTREAM_REFUSED: '08004',
  UPSTREAM_CLOSED: '08006',
  INTERNAL: 'XX000',
};

/** What a client is told where the message could name the real host or role: the log has the whole of it. */
const discreet: Readonly<Partial<Record<ErrorCode, string>>> = {
  UPSTREAM_UNREACHABLE: 'the database server cannot be reached',
  UPSTREAM_TLS: 'no trusted TLS connection to the database server could be made',
  UPSTREAM_REJECTED: "the database server rejected this service's credential",
  INTERNAL: 'unexpected failure',
};

/** The ErrorResponse that tells a client why it is not served. */
export function errorReply(error: PosternError, session: string): Buffer {
  return error.reply ?? fatal(sqlstates[error.code], error, session);
}

/** What a session that was served hears when Postern ends it between two questions: admin_shutdown, as a server says it. */
export function farewell(reason: PosternError, session: string): Buffer {
  return fatal('57P01', reason, session);
}

function fatal(sqlstate: string, error: PosternError, session: string): Buffer {
  return encodeError(
    new Map([
      ['S', 'FATAL'],
      ['V', 'FATAL'],
      ['C', sqlstate],
      ['M', byteString(`postern: ${discreet[error.code] ?? error.message}`)],
      ['D', byteString(`Postern's log has more under session ${session}.`)],
    ]),
  );
}

/** A refusal with a SQLSTATE that is more exact than its code's usual one. */
export function refusal(
  sqlstate: string,
  message: string,
  hint?: string,
  code: ErrorCode = 'CLIENT_REFUSED',
): PosternError {
  const fields = new Map([
    ['S', 'FATAL'],
    ['V', 'FATAL'],
    ['C', sqlstate],
    ['M', byteString(`postern: ${message}`)],
  ]);
  if (hint !== undefined) fields.set('H', byteString(hint));
  return new PosternError(code, message, { reply: encodeError(fields) });
}

const refusedText = 'postern: the database server refused the connection';

/** Longest part of a stranger's own text that is shown. */
const LONGEST_TEXT = 300;

/** What a server's error text must not carry further. */
export interface Discretion {
  /** Secret bytes: neither to the client nor into the log. A hostile server may echo what it was shown. */
  readonly secrets: readonly Buffer[];
  /** The real role and host, where the client did not name them itself: not to the client. */
  readonly names: readonly Buffer[];
}

/**
 * The failure behind a server's ErrorResponse. Class 28 is a rejected credential; anything else is the server's
 * refusal and is passed on with every field, or with its SQLSTATE only where a field would be indiscreet.
 */
export function upstreamFailure(body: Buffer, { secrets, names }: Discretion): PosternError {
  const mentions = (values: readonly Buffer[]) =>
    values.some((value) => value.length > 0 && body.includes(value));
  const fields = decodeFields(body);
  const sqlstate = /^[0-9A-Z]{5}$/.test(fields.get('C') ?? '') ? (fields.get('C') ?? '') : '08004';
  const text = mentions(secrets) ? '(text withheld)' : printable(textOf(fields.get('M') ?? ''));
  if (sqlstate.startsWith('28'))
    return new PosternError('UPSTREAM_REJECTED', `the server rejected the credential: ${sqlstate} ${text}`);

  const told = mentions(secrets) || mentions(names) ? new Map([['M', refusedText]]) : fields;
  // Old servers and poolers leave out V, a broken one C or M, and a client may depend on them.
  const usual: [string, string][] = [
    ['S', 'FATAL'],
    ['V', 'FATAL'],
    ['M', refusedText],
  ];
  const reply = encodeError(new Map([...usual, ...told, ['C', sqlstate]]));
  return new PosternError('UPSTREAM_REFUSED', `the server refused the connection: ${sqlstate} ${text}`, {
    reply,
  });
}

/** A stranger's text for a message: short, and without what could steer a terminal. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]/gu, ' ').slice(0, LONGEST_TEXT);
}

/** The SQLSTATE inside a reply, such as the one that says "try another host". */
export function sqlstateOf(error: PosternError): string | undefined {
  return error.reply ? decodeFields(error.reply.subarray(5)).get('C') : sqlstates[error.code];
}
