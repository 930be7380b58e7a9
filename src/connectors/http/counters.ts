import type { ErrorCode } from '../../core/errors.ts';

/** What a service has done, as plain numbers that cost a request nothing; metrics read them when they are asked for. */
export class Counters {
  /** Responses by the first digit of their status; index 0 is unused. */
  readonly responses: number[] = [0, 0, 0, 0, 0, 0];
  /** Requests that Postern answered itself, or cut off. */
  readonly failures = new Map<ErrorCode, number>();
  upstreamOpened = 0;
  upstreamReused = 0;
  /** Requests sent once more because their connection was stale. */
  retries = 0;
  /** Requests sent once more with a newer credential. */
  replays = 0;

  failed(code: ErrorCode): void {
    this.failures.set(code, (this.failures.get(code) ?? 0) + 1);
  }
}
