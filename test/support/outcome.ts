import type { EventData } from 'node:test';
import type { TestEvent } from 'node:test/reporters';

/** A test that failed, or a file that ended without telling which. */
export interface Failure {
  /** Absolute path; the same as `name` for a file as a whole. */
  readonly file: string;
  readonly name: string;
  readonly line: number;
  /** The message of the error, in one line. */
  readonly error: string;
}

/** What a run of the tests came to. */
export interface Outcome {
  readonly failures: readonly Failure[];
  /** The slowest first. */
  readonly files: readonly { readonly file: string; readonly seconds: number }[];
}

const isLeaf = ({ details, name }: EventData.TestFail): boolean => {
  const { failureType } = details.error as Error & { failureType?: string };
  // A suite, and a file, fails with the tests in it, which have been told already.
  return failureType !== 'subtestsFailed' && name !== '';
};

function sentence({ cause, message }: Error): string {
  const text = cause instanceof Error ? cause.message : typeof cause === 'string' ? cause : message;
  return text.replaceAll(/\s+/g, ' ').trim();
}

/**
 * A reporter of node:test for the program that started the run: JSON instead of prose.
 * A failure is noted once, for the innermost test that has it.
 */
async function* outcome(events: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const failures: Failure[] = [];
  const files: { file: string; seconds: number }[] = [];
  for await (const { type, data } of events) {
    if (type === 'test:fail' && isLeaf(data) && data.todo === undefined) {
      const { name, line = 0, file = name, details } = data;
      failures.push({ file, name, line, error: sentence(details.error) });
    } else if (type === 'test:summary' && data.file !== undefined)
      files.push({ file: data.file, seconds: data.duration_ms / 1000 });
  }
  files.sort((a, b) => b.seconds - a.seconds);
  yield JSON.stringify({ failures, files } satisfies Outcome);
}

// What node:test loads a reporter by.
export { outcome as default };
