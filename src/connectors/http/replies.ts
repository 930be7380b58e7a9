import { type ErrorCode, PosternError } from '../../core/errors.ts';

/** The status (RFC 9110, section 15) for each way in which a request can fail before its response has begun. */
const statuses: Readonly<Record<ErrorCode, number>> = {
  CONFIG_INVALID: 500,
  LISTEN_FAILED: 500,
  PROVIDER_FAILED: 502,
  PROVIDER_UNAVAILABLE: 503,
  CLIENT_PROTOCOL: 400,
  CLIENT_CLOSED: 400,
  CLIENT_REFUSED: 403,
  ACCESS_DENIED: 403,
  RATE_LIMITED: 429,
  LIMIT_REACHED: 503,
  UPSTREAM_UNREACHABLE: 502,
  UPSTREAM_TLS: 502,
  UPSTREAM_PROTOCOL: 502,
  UPSTREAM_REJECTED: 502,
  UPSTREAM_REFUSED: 502,
  UPSTREAM_CLOSED: 502,
  AUTH_NOT_ALLOWED: 502,
  TIMEOUT: 504,
  SHUTDOWN: 503,
  SESSION_EXPIRED: 503,
  INTERNAL: 500,
};

const titles: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  405: 'Method Not Allowed',
  407: 'Proxy Authentication Required',
  408: 'Request Timeout',
  413: 'Content Too Large',
  414: 'URI Too Long',
  417: 'Expectation Failed',
  421: 'Misdirected Request',
  429: 'Too Many Requests',
  431: 'Request Header Fields Too Large',
  500: 'Internal Server Error',
  501: 'Not Implemented',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
  505: 'HTTP Version Not Supported',
};

/** What a client is told where the message could name the real host: the log has the whole of it. */
const discreet: Readonly<Partial<Record<ErrorCode, string>>> = {
  UPSTREAM_UNREACHABLE: 'the server cannot be reached',
  UPSTREAM_TLS: 'no trusted TLS connection to the server could be made',
  UPSTREAM_REJECTED: "the server rejected this service's credential",
  INTERNAL: 'unexpected failure',
};

/** Seconds after which it is worth to ask again (RFC 9110, section 10.2.3). */
const RETRY_AFTER = 1;

/** What a client is told that has to show the local password of a service (RFC 7617). */
const CHALLENGE = 'Basic realm="postern", charset="UTF-8"';

/** A failure that is answered with another status than its code's usual one. */
class Refusal extends PosternError {
  readonly status: number;

  constructor(code: ErrorCode, status: number, message: string) {
    super(code, message);
    this.status = status;
  }
}

/** A request that is refused with this status. `message` is told to the client. */
export function refusal(
  status: number,
  message: string,
  code: ErrorCode = status === 403 || status === 421 || status === 413 ? 'CLIENT_REFUSED' : 'CLIENT_PROTOCOL',
): PosternError {
  return new Refusal(code, status, message);
}

export function statusOf(error: PosternError): number {
  return error instanceof Refusal ? error.status : statuses[error.code];
}

/**
 * The whole response that tells a client why its request is not served (RFC 9457, application/problem+json). The
 * connection ends after it. `withBody` is false for HEAD.
 */
export function errorReply(error: PosternError, session: string, withBody = true): Buffer {
  if (error.reply) return error.reply;
  const status = statusOf(error);
  const title = titles[status] ?? 'Error';
  const body = Buffer.from(
    `${JSON.stringify({
      type: 'about:blank',
      title,
      status,
      detail: `postern: ${discreet[error.code] ?? error.message}`,
      code: error.code,
      session,
    })}\n`,
  );
  const lines = [
    `HTTP/1.1 ${status} ${title}`,
    'Content-Type: application/problem+json',
    `Content-Length: ${body.length}`,
    'Cache-Control: no-store',
    `Postern-Error: ${error.code}`,
    // Whether Basic or Bearer: all clients know Basic.
    ...(status === 401 ? [`WWW-Authenticate: ${CHALLENGE}`] : []),
    ...(status === 407 ? [`Proxy-Authenticate: ${CHALLENGE}`] : []),
    ...(status === 503 ? [`Retry-After: ${RETRY_AFTER}`] : []),
    'Connection: close',
  ];
  const head = Buffer.from(`${lines.join('\r\n')}\r\n\r\n`);
  return withBody ? Buffer.concat([head, body]) : head;
}
