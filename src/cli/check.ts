import { pino } from 'pino';

import { Broker } from '../broker.ts';
import { readConfig } from '../config/load.ts';
import { formatProblem } from '../config/report.ts';
import { PosternError } from '../core/errors.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import type { Options } from './options.ts';
import { packageVersion } from './version.ts';

/** `postern check`: says everything that is wrong with a configuration; with `--connect` also logs in everywhere once. */
export async function check(options: Options): Promise<number> {
  const { config, problems, warnings } = await readConfig(options.configPaths, options.context);
  for (const warning of warnings) say(`warning: ${formatProblem(warning)}`);
  for (const problem of problems) say(formatProblem(problem));
  if (!config) return exitCodes.configuration;
  const context = {
    log: pino({ level: 'silent' }),
    version: await packageVersion(),
    environment: process.env,
  };
  try {
    if (!options.connect) {
      await Broker.rehearse(config, context);
      say(`ok: ${config.services.length} service(s), ${config.providers.size} provider(s)`);
      return exitCodes.clean;
    }
    const results = await Broker.probe(config, context);
    for (const [name, result] of results)
      say(`${name}: ${result instanceof PosternError ? `FAILED ${result.code}: ${result.message}` : result}`);
    return results.values().some((result) => result instanceof PosternError)
      ? exitCodes.checkFailed
      : exitCodes.clean;
  } catch (thrown) {
    const error = PosternError.from(thrown);
    say(error.message);
    return exitCodeOf(error.code);
  }
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
