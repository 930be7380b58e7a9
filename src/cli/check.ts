import { pino } from 'pino';

import { Broker, type Login } from '../broker.ts';
import type { Problem } from '../config/config.ts';
import { readConfig } from '../config/load.ts';
import { formatProblem } from '../config/report.ts';
import { PosternError } from '../core/errors.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import { commonFlags, optionsOf, parseFlags } from './options.ts';
import { packageVersion } from './version.ts';

/** The flags of `postern check`. */
export const checkFlags = {
  ...commonFlags,
  json: { type: 'boolean' },
} as const;

/** What `postern check` found, for `--json`. */
interface Findings {
  readonly problems: readonly Problem[];
  readonly warnings: readonly Problem[];
  readonly services?: readonly object[];
  /** What keeps a configuration without problems from being put in force. */
  readonly error?: object;
}

/** `postern check`: says everything that is wrong with a configuration; with `--connect` also logs in everywhere once. */
export async function check(words: readonly string[], environment: NodeJS.ProcessEnv): Promise<number> {
  const values = parseFlags(words, checkFlags);
  const options = optionsOf(values, environment);
  const { config, problems, warnings } = await readConfig(options.configPaths, options.context);
  const report = (found: Omit<Findings, 'problems' | 'warnings'>, lines: readonly string[]) => {
    if (values.json) say(JSON.stringify({ problems, warnings, ...found } satisfies Findings, null, 2));
    else for (const line of lines) say(line);
  };
  const told = [
    ...warnings.map((warning) => `warning: ${formatProblem(warning)}`),
    ...problems.map(formatProblem),
  ];
  if (!config) {
    report({}, told);
    return exitCodes.configuration;
  }
  const context = { log: pino({ level: 'silent' }), version: await packageVersion(), environment };
  try {
    if (!options.connect) {
      await Broker.rehearse(config, context);
      const ok = `ok: ${config.services.length} service(s), ${config.providers.size} provider(s)`;
      report({}, [...told, ok]);
      return exitCodes.clean;
    }
    const logins = await Broker.probe(config, context);
    report({ services: logins.map(factsOf) }, [...told, ...logins.map(describeLogin)]);
    return logins.some(({ outcome }) => outcome instanceof PosternError)
      ? exitCodes.checkFailed
      : exitCodes.clean;
  } catch (thrown) {
    const { code, message } = PosternError.from(thrown);
    report({ error: { code, message } }, [...told, message]);
    return exitCodeOf(code);
  }
}

/** `orders-db: logged in as app (scram-sha-256) in 12 ms`, or why not. */
export function describeLogin({ service, outcome, milliseconds }: Login): string {
  return outcome instanceof PosternError
    ? `${service}: FAILED ${outcome.code}: ${outcome.message} (${milliseconds} ms)`
    : `${service}: ${outcome} (${milliseconds} ms)`;
}

function factsOf({ service, outcome, milliseconds }: Login): object {
  return outcome instanceof PosternError
    ? { service, ok: false, milliseconds, code: outcome.code, message: outcome.message }
    : { service, ok: true, milliseconds, message: outcome };
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
