import { PosternError } from '../../src/core/errors.ts';
import type { FuzzTarget } from './targets.ts';

const LONGEST_MESSAGE = 2000;

/** Runs one input. Returns what is wrong with the answer, or undefined when the target held. */
export async function judge(target: FuzzTarget, input: Buffer): Promise<string | undefined> {
  try {
    await target.run(Buffer.from(input));
    return undefined;
  } catch (thrown) {
    if (!(thrown instanceof PosternError))
      return `threw ${thrown instanceof Error ? thrown.stack : String(thrown)}`;
    // A message goes into logs and to terminals: what a stranger sent must not steer them, nor fill them.
    if (/[^\P{Cc}\n]/u.test(thrown.message)) return 'has a control character in the message of its error';
    if (thrown.message.length > LONGEST_MESSAGE)
      return `has an error message of ${thrown.message.length} characters`;
    return undefined;
  }
}

/** The input with all that is not needed for the finding taken out, as far as one pass of halving pieces gets. */
export async function shrink(target: FuzzTarget, input: Buffer): Promise<Buffer> {
  let smallest = input;
  for (let size = Math.ceil(input.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < smallest.length; ) {
      const shorter = Buffer.concat([smallest.subarray(0, at), smallest.subarray(at + size)]);
      if (await judge(target, shorter)) smallest = shorter;
      else at += size;
    }
  }
  return smallest;
}
