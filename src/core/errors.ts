/** Every way start-up or a session can fail, explained one by one in docs/errors.md (a test holds the two together). */
export const errorCodes = [
  'CONFIG_INVALID',
  'LISTEN_FAILED',
  'PROVIDER_FAILED',
  'PROVIDER_UNAVAILABLE',
  'CLIENT_PROTOCOL',
  'CLIENT_CLOSED',
  'CLIENT_REFUSED',
  'ACCESS_DENIED',
  'RATE_LIMITED',
  'LIMIT_REACHED',
  'UPSTREAM_UNREACHABLE',
  'UPSTREAM_TLS',
  'UPSTREAM_PROTOCOL',
  'UPSTREAM_REJECTED',
  'UPSTREAM_REFUSED',
  'UPSTREAM_CLOSED',
  'AUTH_NOT_ALLOWED',
  'TIMEOUT',
  'SHUTDOWN',
  'SESSION_EXPIRED',
  'INTERNAL',
] as const;

export type ErrorCode = (typeof errorCodes)[number];

interface PosternErrorOptions extends ErrorOptions {
  /** What the connector should send its client instead of the code's usual answer, in the client's protocol. */
  readonly reply?: Buffer;
}

/**
 * The one error this program throws on purpose. `message` may be shown to a client and logged, so it names
 * things (a service, a provider, a host) and never values. What lies beneath goes into `cause`, which only
 * the log sees, and only as its own code and message.
 */
export class PosternError extends Error {
  override readonly name = 'PosternError';
  readonly code: ErrorCode;
  readonly reply: Buffer | undefined;

  constructor(code: ErrorCode, message: string, options: PosternErrorOptions = {}) {
    super(message, options);
    this.code = code;
    this.reply = options.reply;
  }

  /** Wraps anything thrown, so that a library's error object (with its headers and tokens) is never shown or logged. */
  static from(thrown: unknown): PosternError {
    if (thrown instanceof PosternError) return thrown;
    return new PosternError('INTERNAL', 'unexpected failure', { cause: thrown });
  }
}

/** The short system code of a foreign error (`ECONNREFUSED`, `CERT_HAS_EXPIRED`), or its class name: safe to show. */
export function reasonOf(thrown: unknown): string {
  if (thrown instanceof Error) {
    const { code } = thrown as NodeJS.ErrnoException;
    return typeof code === 'string' ? code : thrown.name;
  }
  return typeof thrown;
}
