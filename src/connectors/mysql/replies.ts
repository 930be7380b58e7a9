import { type ErrorCode, PosternError } from '../../core/errors.ts';
import { byteString, textOf } from './names.ts';
import { decodeError, encodeError } from './packets.ts';

/** Error number and SQLSTATE (MySQL "Server Error Message Reference"). */
type Told = readonly [number: number, sqlstate: string];

/**
 * What a client is told for each way a session can fail before it is relayed. Never a number from 2000 to 2999: those
 * are the client library's own, and it takes a packet with one for a malformed one. SQLSTATE class 08 makes drivers with
 * several hosts try the next.
 */
const numbers: Readonly<Record<ErrorCode, Told>> = {
  CONFIG_INVALID: [1105, 'HY000'],
  LISTEN_FAILED: [1105, 'HY000'],
  INTERNAL: [1105, 'HY000'],
  // The operator has to act; another try does not help.
  PROVIDER_FAILED: [1045, '28000'],
  UPSTREAM_REJECTED: [1045, '28000'],
  AUTH_NOT_ALLOWED: [1045, '28000'],
  CLIENT_REFUSED: [1045, '28000'],
  ACCESS_DENIED: [1045, '28000'],
  RATE_LIMITED: [1226, '42000'],
  CLIENT_PROTOCOL: [1043, '08S01'],
  CLIENT_CLOSED: [1158, '08S01'],
  PROVIDER_UNAVAILABLE: [1158, '08S01'],
  UPSTREAM_UNREACHABLE: [1158, '08S01'],
  UPSTREAM_CLOSED: [1158, '08S01'],
  TIMEOUT: [1159, '08S01'],
  SHUTDOWN: [1053, '08S01'],
  SESSION_EXPIRED: [1053, '08S01'],
  LIMIT_REACHED: [1040, '08004'],
  UPSTREAM_TLS: [1105, 'HY000'],
  UPSTREAM_PROTOCOL: [1105, 'HY000'],
  UPSTREAM_REFUSED: [1105, 'HY000'],
};

/** What a client is told where the message could name the real host or user: the log has the whole of it. */
const discreet: Readonly<Partial<Record<ErrorCode, string>>> = {
  UPSTREAM_UNREACHABLE: 'the database server cannot be reached',
  UPSTREAM_TLS: 'no trusted TLS connection to the database server could be made',
  UPSTREAM_REJECTED: "the database server rejected this service's credential",
  INTERNAL: 'unexpected failure',
};

/** MYSQL_ERRMSG_SIZE: clients cut a text behind this many bytes. */
const LONGEST_REPLY = 511;

/** The payload of the ERR packet that tells a client why it is not served. */
export function errorReply(error: PosternError, session: string): Buffer {
  if (error.reply) return error.reply;
  const [number, sqlstate] = numbers[error.code];
  const text = `postern: ${discreet[error.code] ?? error.message}`;
  const hint = ` (session ${session} in Postern's log)`;
  return errorPayload(number, sqlstate, text.slice(0, LONGEST_REPLY - hint.length) + hint);
}

/** A refusal with a number that is more exact than its code's usual one. */
export function refusal(code: ErrorCode, [number, sqlstate]: Told, message: string): PosternError {
  return new PosternError(code, message, { reply: errorPayload(number, sqlstate, `postern: ${message}`) });
}

/** Text of the program, whose bytes are UTF-8, as a byte string. */
function errorPayload(code: number, sqlstate: string, text: string): Buffer {
  return encodeError({ code, sqlstate, message: byteString(text).slice(0, LONGEST_REPLY) });
}

/** The same error in the form for a client that has seen no greeting, or is too old: without SQLSTATE, which it would show as text. */
export function withoutSqlstate(payload: Buffer): Buffer {
  const { code, message } = decodeError(payload);
  return encodeError({ code, sqlstate: undefined, message });
}

const refusedText = 'postern: the database server refused the connection';
/** Longest part of a stranger's own text that is shown. */
const LONGEST_TEXT = 300;

/** What a server's error text must not carry further. */
export interface Discretion {
  /** Secret bytes: neither to the client nor into the log. A hostile server may echo what it was shown. */
  readonly secrets: readonly Buffer[];
  /** The real user and host, where the client did not name them itself: not to the client. */
  readonly names: readonly Buffer[];
  /** Whether the server has proved who it is, where it has to: before that its text could be anybody's. */
  readonly trusted: boolean;
}

/**
 * Numbers that reject the credential beside SQLSTATE class 28: password expired, account locked (MySQL, MySQL after too
 * many failures, MariaDB). Another version of the credential may do.
 */
const rejections: ReadonlySet<number> = new Set([1862, 3118, 3955, 4151]);

/** The failure behind a server's ERR packet: a rejected credential, or a refusal that the client may see. */
export function upstreamFailure(payload: Buffer, { secrets, names, trusted }: Discretion): PosternError {
  const { code, sqlstate, message } = decodeError(payload);
  const mentions = (values: readonly Buffer[]) =>
    values.some((value) => value.length > 0 && payload.includes(value));
  const text = mentions(secrets) ? '(text withheld)' : printable(textOf(message));
  const state = sqlstate !== undefined && /^[0-9A-Z]{5}$/.test(sqlstate) ? sqlstate : usualState(code);
  const said = `${code} (${state}) ${text}`;
  if (state.startsWith('28') || rejections.has(code))
    return new PosternError('UPSTREAM_REJECTED', `the server rejected the credential: ${said}`);

  const quiet = !trusted || mentions(secrets) || mentions(names);
  // A client takes an error with one of its own numbers for a malformed packet.
  const number = code >= 2000 && code <= 2999 ? 1105 : code;
  const reply = errorPayload(number, state, quiet ? (ownWords.get(number) ?? refusedText) : text);
  return new PosternError('UPSTREAM_REFUSED', `the server refused the connection: ${said}`, { reply });
}

/** What is told in place of a server's text that names too much, or that anybody could have sent. */
const ownWords: ReadonlyMap<number, string> = new Map([
  [1040, 'postern: the database server has too many connections'],
  [1044, 'postern: the user of this service may not use that database'],
  [1129, 'postern: the database server blocks connections from Postern after too many failed ones'],
  [1130, 'postern: the database server does not allow connections from where Postern runs'],
]);

/** In place of a greeting an ERR has no SQLSTATE. */
function usualState(code: number): string {
  if (code === 1040) return '08004';
  return code === 1053 ? '08S01' : 'HY000';
}

/** A stranger's text for a message: short, and without what could steer a terminal. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]/gu, ' ').slice(0, LONGEST_TEXT);
}
