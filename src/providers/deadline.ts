import { PosternError } from '../core/errors.ts';

/** Throws why `signal` ended, when it has. */
export function refuseAborted(signal: AbortSignal): void {
  if (signal.aborted) throw whyAborted(signal, 'fetching a secret');
}

/** The session's own reason (TIMEOUT, SHUTDOWN) where there is one; else TIMEOUT. */
export function whyAborted(signal: AbortSignal, doing: string): PosternError {
  if (signal.reason instanceof PosternError) return signal.reason;
  return new PosternError('TIMEOUT', `${doing} did not end in time`);
}

/** Waits for `promise`, but no longer than `signal` allows. The promise itself goes on. */
export async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal, doing: string): Promise<T> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(whyAborted(signal, doing));
  if (signal.aborted) abort();
  signal.addEventListener('abort', abort);
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
