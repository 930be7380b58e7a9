import type { ErrorCode } from './errors.ts';

/** Totals of a protocol whose sessions carry many requests. */
export interface RequestCounters {
  /** Responses that clients got, by the first digit of their status; index 0 is unused. */
  readonly responses: readonly number[];
  /** Requests that Postern answered itself, or cut off, by the code of docs/errors.md. */
  readonly failures: ReadonlyMap<ErrorCode, number>;
  readonly upstreamOpened: number;
  readonly upstreamReused: number;
  /** Requests sent once more because the connection was stale, and because the credential was rejected. */
  readonly retries: number;
  readonly replays: number;
  /** Tunnels (CONNECT) that nobody looks into, once the server was reached. */
  readonly tunnelsBlind: number;
}
