import * as z from 'zod';

const units = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 } as const;
/** Node's timers overflow beyond 2^31-1 ms and fire at once. */
const longest = 2 ** 31 - 1;

/** A duration in a configuration, `500ms|10s|5m|1h`; parsed to milliseconds. */
export const duration = z
  .string()
  .regex(/^\d+(ms|s|m|h)$/, 'a duration is a whole number and a unit: 500ms, 10s, 5m or 1h')
  .transform((text, context) => {
    const [, count = '0', unit = 'ms'] = /^(\d+)(ms|s|m|h)$/.exec(text) ?? [];
    const milliseconds = Number(count) * units[unit as keyof typeof units];
    if (milliseconds > longest) {
      context.addIssue({ code: 'custom', message: 'longer than 24 days' });
      return z.NEVER;
    }
    return milliseconds;
  });
