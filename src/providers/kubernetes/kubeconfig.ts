import { delimiter, dirname, resolve } from 'node:path';
import { parse } from 'yaml';
import * as z from 'zod';
import { decodeBase64 } from '../../core/bytes.ts';
import { PosternError } from '../../core/errors.ts';
import type { ProviderContext } from '../provider.ts';
import { readSecretFile } from '../secret-file.ts';
import { type Cluster, type Login, type Pem, readTls, tokenFrom, tokenIn } from './cluster.ts';
import { pluginLogin } from './exec-plugin.ts';
import type { Settings } from './index.ts';

const text = z.string();
const named = <Key extends string, Content extends z.ZodType>(key: Key, content: Content) =>
  z
    .array(z.looseObject({ name: text, [key]: content } as { name: typeof text } & Record<Key, Content>))
    .nullish();

/** The command of a plug-in that prints a token (client.authentication.k8s.io). */
const exec = z.looseObject({
  apiVersion: text,
  command: text.min(1),
  args: z.array(text).nullish(),
  env: z.array(z.looseObject({ name: text, value: text })).nullish(),
  provideClusterInfo: z.boolean().nullish(),
});
export type ExecPlugin = z.output<typeof exec>;

const cluster = z.looseObject({
  server: text,
  'certificate-authority': text.optional(),
  'certificate-authority-data': text.optional(),
  'insecure-skip-tls-verify': z.boolean().optional(),
  'tls-server-name': text.optional(),
  'proxy-url': text.optional(),
});

const user = z.looseObject({
  token: text.optional(),
  tokenFile: text.optional(),
  'client-certificate': text.optional(),
  'client-certificate-data': text.optional(),
  'client-key': text.optional(),
  'client-key-data': text.optional(),
  username: text.optional(),
  'auth-provider': z.unknown().optional(),
  as: text.optional(),
  exec: exec.nullish(),
});

const file = z.looseObject({
  'current-context': text.nullish(),
  clusters: named('cluster', cluster),
  users: named('user', user.nullish()),
  contexts: named(
    'context',
    z.looseObject({ cluster: text, user: text.nullish(), namespace: text.nullish() }),
  ),
});

/** An entry and the folder that its relative paths begin at. */
interface Found<Entry> {
  readonly entry: Entry;
  readonly folder: string;
}

/**
 * The cluster of a kubeconfig. Of several files the first that has an entry decides it, as for kubectl. A file holds
 * tokens and keys as YAML, so that here they are strings for the time of reading.
 */
export async function clusterOf(
  paths: string,
  settings: Settings,
  { name: provider, log, environment }: ProviderContext,
  signal: AbortSignal,
): Promise<Cluster> {
  const files: Found<z.output<typeof file>>[] = [];
  for (const path of paths.split(delimiter).filter((each) => each !== ''))
    files.push(await readKubeconfig(path, signal));

  const contextName =
    settings.context ?? files.map(({ entry }) => entry['current-context']).find((name) => name);
  if (!contextName) throw invalid('names no current context; set `context`');
  const context = find(files, 'contexts', contextName, 'context').entry.context;
  const { entry: place, folder } = find(files, 'clusters', context.cluster, 'cluster');
  const { cluster: at } = place;
  const who = context.user ? find(files, 'users', context.user, 'user') : undefined;
  const as = who?.entry.user ?? {};
  const userFolder = who?.folder ?? '';

  const server = URL.parse(at.server);
  if (!server || !/^https?:$/.test(server.protocol))
    throw invalid(`has no usable server for "${context.cluster}"`);
  refuseUnsupported(at, as);
  if (at['insecure-skip-tls-verify']) {
    const risk = 'TLS is not verified (insecure-skip-tls-verify): whoever answers';
    log.warn(`provider "${provider}": ${risk} at ${server.host} gets the token`);
  }
  return {
    server,
    namespace: settings.namespace ?? (context.namespace || 'default'),
    tls: readTls({
      ca: pem(at['certificate-authority'], at['certificate-authority-data'], folder),
      cert: pem(as['client-certificate'], as['client-certificate-data'], userFolder),
      key: pem(as['client-key'], as['client-key-data'], userFolder),
      serverName: at['tls-server-name'],
      skipVerify: at['insecure-skip-tls-verify'] ?? false,
    }),
    login: loginOf(as, { provider, folder: userFolder, environment }),
  };
}

async function readKubeconfig(path: string, signal: AbortSignal): Promise<Found<z.output<typeof file>>> {
  const { bytes } = await readSecretFile(path, signal);
  try {
    const parsed = file.safeParse(parse(bytes.toString('utf8')));
    if (parsed.success) return { entry: parsed.data, folder: dirname(resolve(path)) };
    const where = parsed.error.issues[0]?.path.join('.') ?? '';
    throw new PosternError('PROVIDER_FAILED', `the kubeconfig "${path}" is not valid at "${where}"`);
  } catch (thrown) {
    if (thrown instanceof PosternError) throw thrown;
    // The message of the YAML parser quotes the text.
    throw new PosternError('PROVIDER_FAILED', `the kubeconfig "${path}" is not valid YAML`);
  } finally {
    bytes.fill(0);
  }
}

type Lists = 'contexts' | 'clusters' | 'users';
type Entry<List extends Lists> = NonNullable<z.output<typeof file>[List]>[number];

function find<List extends Lists>(
  files: readonly Found<z.output<typeof file>>[],
  list: List,
  name: string,
  word: string,
): Found<Entry<List>> {
  for (const { entry, folder } of files) {
    const entries: readonly Entry<List>[] = entry[list] ?? [];
    const found = entries.find((each) => each.name === name);
    if (found) return { entry: found, folder };
  }
  throw invalid(`has no ${word} "${name}"`);
}

/** What would be ignored silently else, and then fail as a wrong answer. */
function refuseUnsupported(at: z.output<typeof cluster>, as: z.output<typeof user>): void {
  if (at['proxy-url']) throw invalid('has a proxy-url, which Postern does not support');
  if (as['auth-provider']) throw invalid('has an auth-provider, which Kubernetes removed in 1.26; use exec');
  if (as.username) throw invalid('has a user name and a password, which Kubernetes removed in 1.19');
  if (as.as) throw invalid('asks for impersonation (`as`), which Postern does not support');
}

function pem(path: string | undefined, data: string | undefined, folder: string): Pem | undefined {
  // The data comes first where both are given, as for kubectl.
  if (data) {
    const bytes = decodeBase64(Buffer.from(data));
    if (!bytes) throw invalid('has certificate or key data that is no base64');
    return { bytes };
  }
  return path ? { path: resolve(folder, path) } : undefined;
}

function loginOf(
  { token, tokenFile, exec: plugin }: z.output<typeof user>,
  {
    provider,
    folder,
    environment,
  }: { provider: string; folder: string; environment: ProviderContext['environment'] },
): Login {
  // As for kubectl: the file comes first, since it can be renewed.
  if (tokenFile) return tokenIn(resolve(folder, tokenFile));
  if (token) {
    return {
      token: () => Promise.resolve(tokenFrom(Buffer.from(token), 'the kubeconfig')),
      refused: () => undefined,
      close: async () => undefined,
    };
  }
  if (plugin) return pluginLogin(plugin, { provider, folder, environment });
  return { token: () => Promise.resolve(undefined), refused: () => undefined, close: async () => undefined };
}

function invalid(problem: string): PosternError {
  return new PosternError('PROVIDER_FAILED', `the kubeconfig ${problem}`);
}
