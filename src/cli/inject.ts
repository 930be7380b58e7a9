import { readFile, stat } from 'node:fs/promises';
import { text as textOf } from 'node:stream/consumers';

import { PosternError, reasonOf } from '../core/errors.ts';
import { injectManifests } from '../inject/manifests.ts';
import { type InjectorSettings, parseSettings } from '../inject/settings.ts';
import { exitCodes } from './exit-codes.ts';
import { logFormats, logLevels, parseFlags, UsageError } from './options.ts';
import { packageVersion } from './version.ts';

/** No settings and no manifests are longer. */
const LARGEST_FILE = 16 * 1024 * 1024;
/** Since then init containers may be sidecars. */
const NATIVE_SINCE = 29;

/**
 * `postern inject`: serves the webhook that adds the sidecar to pods, until a signal says to stop. `postern inject --file
 * PATH` does the same to manifests and prints them.
 */
export async function inject(words: readonly string[]): Promise<number> {
  const values = parseFlags(words, {
    file: { type: 'string' },
    config: { type: 'string', short: 'f' },
    image: { type: 'string' },
    all: { type: 'boolean' },
    'kube-version': { type: 'string' },
    listen: { type: 'string' },
    'admin-listen': { type: 'string' },
    'log-level': { type: 'string' },
    'log-format': { type: 'string' },
  });
  const settings = await settingsOf(values.config, {
    image: values.image,
    listen: values.listen,
    admin: values['admin-listen'],
  });
  if (values.file !== undefined) return await offline(values.file, settings, values);
  if (values.all || values['kube-version'] !== undefined)
    throw new UsageError('`--all` and `--kube-version` are for `postern inject --file PATH`');
  const [logLevel, logFormat] = [
    logLevels.find((each) => each === (values['log-level'] ?? 'info')),
    logFormats.find((each) => each === (values['log-format'] ?? 'json')),
  ];
  if (!logLevel || !logFormat)
    throw new UsageError(`the log level is one of ${logLevels.join(', ')}, the format json or pretty`);
  const { serveInjector } = await import('../inject/injector.ts');
  const { createLog } = await import('./log.ts');
  const log = await createLog({ logLevel, logFormat });
  const signals = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.once(signal, () => {
      log.info({ signal }, 'stopping');
      signals.abort(new PosternError('SHUTDOWN', 'the injector is stopping'));
    });
  await serveInjector(settings, {
    log,
    version: await packageVersion(),
    environment: process.env,
    signal: signals.signal,
  });
  log.info('stopped');
  return exitCodes.clean;
}

async function offline(
  file: string,
  { sidecar }: InjectorSettings,
  values: { readonly all?: boolean | undefined; readonly 'kube-version'?: string | undefined },
): Promise<number> {
  const wanted = values['kube-version'];
  const [, minor] = /^v?1\.(\d{1,3})(?:[.+-].*)?$/.exec(wanted ?? `1.${NATIVE_SINCE}`) ?? [];
  if (minor === undefined) throw new UsageError('`--kube-version` takes a version such as 1.28');
  const { text, injected, notes } = injectManifests(
    await read(file),
    file === '-' ? 'standard input' : file,
    {
      settings: sidecar,
      everyPod: values.all ?? false,
      native: Number(minor) >= NATIVE_SINCE,
      version: await packageVersion(),
    },
  );
  process.stdout.write(text);
  for (const note of notes) process.stderr.write(`postern: ${note}\n`);
  if (injected === 0)
    process.stderr.write(
      'postern: no pod in it asks for the sidecar (postern.dev/inject: "true", or --all)\n',
    );
  return exitCodes.clean;
}

async function settingsOf(
  path: string | undefined,
  over: {
    readonly image: string | undefined;
    readonly listen: string | undefined;
    readonly admin: string | undefined;
  },
): Promise<InjectorSettings> {
  return path === undefined
    ? parseSettings('', 'the command line (or the file of --config)', over)
    : parseSettings(await read(path), path, over);
}

async function read(file: string): Promise<string> {
  try {
    if (file === '-') return await textOf(process.stdin);
    const { size } = await stat(file);
    if (size > LARGEST_FILE) throw new PosternError('CONFIG_INVALID', `${file} is larger than 16 MiB`);
    return await readFile(file, 'utf8');
  } catch (cause) {
    if (cause instanceof PosternError) throw cause;
    throw new PosternError('CONFIG_INVALID', `cannot read ${file} (${reasonOf(cause)})`, { cause });
  }
}
