import { request } from 'node:http';

import type { Address } from '../core/address.ts';
import { duration } from '../core/duration.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { UsageError } from './options.ts';

/** How long the admin listener of a healthy process may take to answer, in milliseconds. */
const ANSWER_TIMEOUT = 3000;
/** Bytes of an answer that are read. */
const LONGEST_ANSWER = 64 * 1024;

/** What the admin listener of a running Postern said, or why nobody said anything. */
export type AdminAnswer =
  | { readonly status: number; readonly text: string }
  | { readonly status: undefined; readonly reason: string };

/** The admin listener that the command line, the environment or else the configuration names. Throws CONFIG_INVALID. */
export async function adminAddress(
  words: {
    readonly config?: string[] | undefined;
    readonly 'admin-listen'?: string | undefined;
  },
  environment: NodeJS.ProcessEnv,
): Promise<Address> {
  const said = words['admin-listen'] ?? (environment['POSTERN_ADMIN_LISTEN'] || undefined);
  const address = said === undefined ? await configured(words.config ?? [], environment) : await parse(said);
  if (!address)
    throw new PosternError('CONFIG_INVALID', 'the admin listener is off, so there is nobody to ask');
  if (address.kind === 'tcp' && address.port === 0)
    throw new PosternError(
      'CONFIG_INVALID',
      'the admin listener takes a free port, which nobody knows: give it a port, or a unix socket',
    );
  const host = address.kind === 'tcp' ? { '0.0.0.0': '127.0.0.1', '::': '::1' }[address.host] : undefined;
  return address.kind === 'tcp' && host !== undefined ? { ...address, host } : address;
}

async function parse(text: string): Promise<Address | undefined> {
  if (text === 'off') return undefined;
  const { listenAddress } = await import('../config/listen.ts');
  const parsed = listenAddress.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new UsageError(
    '`--admin-listen` takes an address: tcp://127.0.0.1:9090 or unix:///run/postern/admin.sock',
  );
}

async function configured(paths: readonly string[], environment: NodeJS.ProcessEnv) {
  const { loadConfig } = await import('../config/load.ts');
  return (await loadConfig(paths, { environment })).admin.listenOn;
}

/** Asks once. Never throws but for the end of `signal`. */
export async function askAdmin(
  address: Address,
  method: 'GET' | 'POST',
  path: string,
  signal: AbortSignal,
): Promise<AdminAnswer> {
  const { promise, resolve } = Promise.withResolvers<AdminAnswer>();
  const patience = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_TIMEOUT)]);
  const place =
    address.kind === 'unix' ? { socketPath: address.path } : { host: address.host, port: address.port };
  // What no web page can send: see admin/server.ts.
  const headers = method === 'POST' ? { 'x-postern': 'quit' } : {};
  const asked = request({ ...place, method, path, headers, agent: false, signal: patience });
  asked.on('error', (error) => resolve({ status: undefined, reason: reasonOf(error) }));
  asked.on('response', (response) => {
    let text = '';
    response.setEncoding('utf8');
    response.on('data', (chunk: string) => {
      if (text.length < LONGEST_ANSWER) text += chunk;
    });
    response.on('error', (error) => resolve({ status: undefined, reason: reasonOf(error) }));
    response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
  });
  asked.end();
  const answer = await promise;
  asked.destroy();
  return answer;
}

/** Milliseconds of a flag such as `--timeout 30s`. Throws UsageError. */
export function durationOf(text: string, flag: string): number {
  const parsed = duration.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new UsageError(`\`${flag}\` takes a duration: 500ms, 10s or 5m`);
}
