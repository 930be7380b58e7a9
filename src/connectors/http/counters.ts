import type { ErrorCode } from '../../core/errors.ts';
import type { RequestCounters } from '../../core/request-counters.ts';

/** What a service has done, as plain numbers that cost a request nothing; metrics read them when they are asked for. */
export class Counters implements RequestCounters {
  readonly responses: number[] = [0, 0, 0, 0, 0, 0];
  readonly failures = new Map<ErrorCode, number>();
  upstreamOpened = 0;
  upstreamReused = 0;
  retries = 0;
  replays = 0;
  tunnelsBlind = 0;

  failed(code: ErrorCode): void {
    this.failures.set(code, (this.failures.get(code) ?? 0) + 1);
  }
}
