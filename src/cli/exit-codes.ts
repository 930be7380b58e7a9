import type { ErrorCode } from '../core/errors.ts';

/** What the process says with its exit code; README.md lists them. */
export const exitCodes = {
  clean: 0,
  configuration: 1,
  usage: 2,
  cannotListen: 3,
  checkFailed: 4,
  internal: 70,
  commandNotRun: 126,
  commandNotFound: 127,
} as const;

export function exitCodeOf(code: ErrorCode): number {
  if (code === 'CONFIG_INVALID') return exitCodes.configuration;
  if (code === 'LISTEN_FAILED') return exitCodes.cannotListen;
  return exitCodes.internal;
}
