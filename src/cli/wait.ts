import { setTimeout as sleep } from 'node:timers/promises';

import { formatAddress } from '../core/address.ts';
import { type AdminAnswer, adminAddress, askAdmin, durationOf } from './admin-client.ts';
import { exitCodes } from './exit-codes.ts';
import { parseFlags } from './options.ts';

/** The flags of `postern wait`. */
export const waitFlags = {
  config: { type: 'string', short: 'f', multiple: true },
  'admin-listen': { type: 'string' },
  timeout: { type: 'string' },
} as const;

const POLL = 100;

/**
 * `postern wait`: waits until a Postern that was started elsewhere takes sessions. For an application that may start at
 * the same time, and for images in which there is no other program to ask with.
 */
export async function wait(words: readonly string[], environment: NodeJS.ProcessEnv): Promise<number> {
  const values = parseFlags(words, waitFlags);
  const timeout = durationOf(values.timeout ?? '30s', '--timeout');
  const address = await adminAddress(values, environment);
  const signal = AbortSignal.timeout(timeout);
  let last: AdminAnswer = { status: undefined, reason: 'nobody was asked' };
  while (!signal.aborted) {
    const answer = await askAdmin(address, 'GET', '/readyz', signal);
    if (answer.status === 200) return exitCodes.clean;
    // What the end of the time cut off says nothing.
    if (!signal.aborted) last = answer;
    await sleep(POLL, undefined, { signal }).catch(() => {});
  }
  process.stderr.write(
    `postern: not ready after ${timeout / 1000} s: ${formatAddress(address)} ${describe(last)}\n`,
  );
  return exitCodes.checkFailed;
}

function describe(answer: AdminAnswer): string {
  return answer.status === undefined
    ? `does not answer (${answer.reason})`
    : `says ${answer.status}, ${answer.text.trim().split('\n').at(-1)?.slice(0, 200) ?? ''}`;
}
