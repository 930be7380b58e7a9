import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import { type Address, formatAddress } from '../core/address.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { adminAddress, askAdmin, durationOf } from './admin-client.ts';
import { exitCodes } from './exit-codes.ts';
import { parseFlags, UsageError } from './options.ts';
import { waitFlags } from './wait.ts';

/** The flags of `postern stop`. */
export const stopFlags = {
  ...waitFlags,
  pid: { type: 'string' },
  'pid-file': { type: 'string' },
} as const;

const POLL = 100;

/** One running process that can be asked to end. */
interface Running {
  readonly who: string;
  /** Whether there was anybody to ask. */
  ask(signal: AbortSignal): Promise<boolean>;
  isGone(signal: AbortSignal): Promise<boolean>;
}

/**
 * `postern stop`: has a running Postern drain and end, as SIGTERM does, and waits until it is gone. For hooks of
 * containers that have no shell and no kill. That nobody runs is what was wanted.
 */
export async function stop(words: readonly string[], environment: NodeJS.ProcessEnv): Promise<number> {
  const values = parseFlags(words, stopFlags);
  const timeout = durationOf(values.timeout ?? '60s', '--timeout');
  if (values.pid !== undefined && values['pid-file'] !== undefined)
    throw new UsageError('give either --pid or --pid-file');
  const pid = values['pid-file'] === undefined ? pidOf(values.pid) : await pidFromFile(values['pid-file']);
  const byPid = values.pid !== undefined || values['pid-file'] !== undefined;
  if (byPid && pid === undefined) return say('there is no such process');
  const running = pid === undefined ? throughAdmin(await adminAddress(values, environment)) : byNumber(pid);

  const signal = AbortSignal.timeout(timeout);
  if (!(await running.ask(signal))) return say(`${running.who} is not there`);
  while (!signal.aborted) {
    if (await running.isGone(signal)) return exitCodes.clean;
    await sleep(POLL, undefined, { signal }).catch(() => {});
  }
  process.stderr.write(
    `postern: ${running.who} was asked to stop and is still there after ${timeout / 1000} s\n`,
  );
  return exitCodes.checkFailed;
}

function say(text: string): number {
  process.stdout.write(`${text}\n`);
  return exitCodes.clean;
}

function throughAdmin(address: Address): Running {
  const who = formatAddress(address);
  return {
    who,
    async ask(signal) {
      const answer = await askAdmin(address, 'POST', '/quit', signal);
      if (answer.status === undefined) {
        if (isNobody(answer.reason)) return false;
        throw new PosternError('CONFIG_INVALID', `${who} does not answer (${answer.reason})`);
      }
      if (answer.status === 202) return true;
      throw new PosternError(
        'CONFIG_INVALID',
        `${who} does not take the order to stop (${answer.status}): give the process \`admin: { quit: true }\`, or say which one it is with --pid or --pid-file`,
      );
    },
    async isGone(signal) {
      const answer = await askAdmin(address, 'GET', '/livez', signal);
      return answer.status === undefined && !signal.aborted && isNobody(answer.reason);
    },
  };
}

/** Nobody listens there; another reason (a time-out, a reset) may pass. */
function isNobody(reason: string): boolean {
  return reason === 'ECONNREFUSED' || reason === 'ENOENT';
}

function byNumber(pid: number): Running {
  const send = (signal: NodeJS.Signals | 0): boolean => {
    try {
      process.kill(pid, signal);
      return true;
    } catch (cause) {
      const reason = reasonOf(cause);
      if (reason === 'ESRCH') return false;
      throw new PosternError('CONFIG_INVALID', `process ${pid} cannot be asked to stop (${reason})`, {
        cause,
      });
    }
  };
  return {
    who: `process ${pid}`,
    ask: async () => send('SIGTERM'),
    isGone: async () => !send(0) || (await isZombie(pid)),
  };
}

/** A process that has ended stays in the table until its parent has asked for its exit code. */
async function isZombie(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '');
  return status.split(') ').at(-1)?.startsWith('Z') ?? false;
}

function pidOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (!/^[1-9]\d{0,9}$/.test(text)) throw new UsageError('`--pid` takes the number of a process');
  return Number(text);
}

/** undefined: the file is gone, and with it the process that it is of. */
async function pidFromFile(path: string): Promise<number | undefined> {
  let text: string;
  try {
    text = (await readFile(path, 'latin1')).trim();
  } catch (cause) {
    const reason = reasonOf(cause);
    if (reason === 'ENOENT') return undefined;
    throw new PosternError('CONFIG_INVALID', `cannot read ${path} (${reason})`, { cause });
  }
  if (!/^[1-9]\d{0,9}$/.test(text))
    throw new PosternError('CONFIG_INVALID', `${path} does not hold the number of a process`);
  const pid = Number(text);
  // The file of a process that was killed is still there, and its number may be another process's by now.
  const command = await readFile(`/proc/${pid}/cmdline`, 'latin1').catch(() => undefined);
  if (command !== undefined && !command.includes('postern') && !/main\.[jt]s/.test(command))
    throw new PosternError('CONFIG_INVALID', `process ${pid}, which ${path} names, is not Postern`);
  return pid;
}
