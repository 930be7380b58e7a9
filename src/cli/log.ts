import { type Logger, pino, stdTimeFunctions } from 'pino';

import type { Options } from './options.ts';

/** The descriptors of standard output and standard error. */
type Destination = 1 | 2;

/** The program's log: JSON lines on standard output, or lines for people. Written at once, so that none is lost at exit. */
export async function createLog(
  { logLevel, logFormat }: Pick<Options, 'logLevel' | 'logFormat'>,
  destination: Destination = 1,
): Promise<Logger> {
  const options = {
    level: logLevel,
    base: null,
    timestamp: stdTimeFunctions.isoTime,
    formatters: { level: named },
  };
  if (logFormat === 'json') return pino(options, pino.destination({ dest: destination, sync: true }));
  // Loaded by whoever reads the log on a terminal, not by every sidecar.
  const { build: pretty } = await import('pino-pretty');
  return pino(
    { ...options, timestamp: true, formatters: {} },
    pretty({ destination, sync: true, translateTime: 'SYS:HH:MM:ss.l' }),
  );
}

/** Levels as words: what log collectors expect. */
function named(level: string): { level: string } {
  return { level };
}
