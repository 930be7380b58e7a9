import type { TestContext } from 'node:test';

import { Unavailable } from '../support/servers.ts';

/** The path of a program, or undefined after marking the test as skipped with the reason; in CI that is a failure. */
export async function withProgram(
  t: TestContext,
  install: () => Promise<string>,
): Promise<string | undefined> {
  try {
    return await install();
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
    t.skip(error.message);
    return undefined;
  }
}
