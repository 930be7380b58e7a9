import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Logger } from 'pino';

import { Broker } from '../broker.ts';
import type { Config } from '../config/config.ts';
import { formatProblem } from '../config/report.ts';
import { ConfigSource } from '../config/source.ts';
import type { Address } from '../core/address.ts';
import { PosternError } from '../core/errors.ts';
import { describeFailure } from '../core/session.ts';
import { InheritedSockets, type ServiceManager, serviceManager } from '../systemd.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import { createLog } from './log.ts';
import type { RunOptions } from './options.ts';
import { packageVersion } from './version.ts';

/**
 * `postern run`: serves until SIGTERM or SIGINT, then drains; a second one ends at once. SIGHUP, and SIGUSR1 as in
 * Secretless, reload the configuration; so do changes of what is followed.
 */
export async function run(options: RunOptions): Promise<number> {
  const log = await createLog(options);
  const version = await packageVersion();
  dieLoudly(log);
  const manager = serviceManager(process.env, log);
  // Before anything is opened: process 1 of a container has no default handler, and would miss a signal for ever.
  const stop = Promise.race([stopSignal('SIGTERM'), stopSignal('SIGINT')]);

  // Heard from now to the very end: without a listener a SIGHUP would end the process, and the sessions that it drains.
  const { promise: started, resolve: start } = Promise.withResolvers<Broker>();
  const source = new ConfigSource(options.configPaths, options.context, { log, ...options.following });
  let stopping = false;
  let reloading: Promise<void> = Promise.resolve();
  // Many signals or changes at once are one: the reload that has not begun will see them all.
  let due = false;
  const reload = () => {
    if (due) return;
    due = true;
    reloading = Promise.all([started, reloading]).then(([broker]) => {
      due = false;
      return stopping ? undefined : reloadFrom(source, broker, log, manager);
    });
  };
  process.on('SIGHUP', reload);
  process.on('SIGUSR1', reload);

  let broker: Broker;
  const sockets = InheritedSockets.open(process.env, log);
  try {
    const config = await Promise.race([load(source, log), stop]);
    if (typeof config === 'string') {
      sockets.closeRest();
      await source.close();
      return exitCodes.clean;
    }
    warnOfDescriptors(config, log);
    const inherited = (service: string, address: Address) => sockets.take(service, address);
    broker = await Broker.start(config, { log, version, environment: process.env, inherited });
    sockets.closeRest();
    start(broker);
  } catch (thrown) {
    // Clients that wait in them would keep the process from ending.
    sockets.closeRest();
    const error = PosternError.from(thrown);
    await source.fail(error);
    if (error.code === 'CONFIG_INVALID') process.stderr.write(`${error.message}\n`);
    else log.fatal(describeFailure(error), 'could not start');
    return exitCodeOf(error.code);
  }
  log.info({ version, node: process.version, pid: process.pid }, 'ready');
  manager?.ready(describeServing(broker));
  source.report(undefined);
  source.follow(reload, (current) => broker.followed(current));
  forgetStart();

  const signal = await stop;
  stopping = true;
  log.info({ signal }, 'stopping');
  void manager?.stopping();
  for (const second of ['SIGTERM', 'SIGINT'] as const)
    process.once(second, (_name: NodeJS.Signals, number: number) => {
      log.warn({ signal: second }, 'ended without waiting for sessions');
      process.exit(128 + number);
    });
  await reloading;
  await broker.linger();
  await Promise.all([broker.stop(), source.close()]);
  log.info('stopped');
  return exitCodes.clean;
}

async function load(source: ConfigSource, log: Logger): Promise<Config> {
  const config = await source.load();
  for (const warning of config.warnings)
    log.warn({ at: formatProblem(warning) }, 'unsafe or ignored configuration');
  return config;
}

/** A configuration that is bad, or that cannot be put in force, changes nothing. */
async function reloadFrom(
  source: ConfigSource,
  broker: Broker,
  log: Logger,
  manager: ServiceManager | undefined,
): Promise<void> {
  manager?.reloading();
  try {
    await broker.reload(() => load(source, log));
    source.report(undefined);
    log.info('configuration reloaded');
  } catch (thrown) {
    const error = PosternError.from(thrown);
    source.report(error);
    log.error(describeFailure(error), 'configuration not reloaded, the old one stays in force');
  }
  // Also when nothing has changed: it serves.
  manager?.ready(describeServing(broker));
}

function describeServing({ addresses }: Broker): string {
  return `serving ${addresses.size} service(s)`;
}

/** A session has two descriptors. Without any left, Node accepts and closes connections without a word. */
function warnOfDescriptors({ services }: Config, log: Logger): void {
  const wanted = services.reduce((sum, { limits }) => sum + 2 * limits.maxConnections, 64);
  const limits = process.platform === 'linux' ? readFileSync('/proc/self/limits', 'utf8') : '';
  const allowed = Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Number.POSITIVE_INFINITY);
  if (allowed < wanted)
    log.warn(
      { allowed, wanted },
      'fewer descriptors than maxConnections may need: raise ulimit -n or lower maxConnections',
    );
}

async function stopSignal(signal: NodeJS.Signals): Promise<NodeJS.Signals> {
  await once(process, signal);
  return signal;
}

/** A bug that nobody caught leaves a state that nobody knows: say where, without the values that a message may quote. */
function dieLoudly(log: Logger): void {
  process.on('uncaughtException', (thrown) => {
    log.fatal(describeFailure(PosternError.from(thrown)), 'unexpected failure, ending');
    process.exit(exitCodes.internal);
  });
}

/** What the start left behind (sources, parsed trees, unused code) is collected at once: nothing else would for hours. */
function forgetStart(): void {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as (options: { type: string; flavor: string }) => void;
  collect({ type: 'major', flavor: 'last-resort' });
}
