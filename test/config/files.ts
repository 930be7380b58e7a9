import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import * as z from 'zod';

import { type LoadContext, type Reading, readConfig } from '../../src/config/load.ts';
import { formatProblem } from '../../src/config/report.ts';
import { defineConnector } from '../../src/connectors/connector.ts';
import { connectors } from '../../src/connectors/index.ts';
import { providers } from '../../src/providers/index.ts';
import { defineProvider } from '../../src/providers/provider.ts';

const never = () => {
  throw new Error('reading a configuration opens nothing');
};

/** Services of both connectors that have this may share a listener; two of them with the same topic may not. */
function reviewTopics(
  services: readonly { readonly name: string; readonly settings: { topic?: string | undefined } }[],
) {
  const topics = services.map(({ settings }) => settings.topic);
  const paths = services.map(({ name }) => [name, 'config', 'topic']);
  const again = paths.filter((_, i) => topics[i] !== undefined && topics.indexOf(topics[i]) < i);
  const old = paths.filter((_, i) => topics[i] === 'old');
  return {
    problems: again.map((path) => ({ path, message: 'is the topic of another service here' })),
    warnings: old.map((path) => ({ path, message: 'is old' })),
  };
}

const sharing = {
  summary: 'Shares its listener',
  settings: z.strictObject({ topic: z.string().optional().describe('What about.') }),
  credentials: { required: [], optional: [] },
  review: () => ({ problems: [], warnings: [] }),
  reviewShared: reviewTopics,
  open: never,
};

/** Connectors and a provider that use what the real ones do not, beside the real ones. */
export const tables = {
  connectors: {
    ...connectors,
    sharing: async () => defineConnector(sharing),
    mate: async () => defineConnector(sharing),
    strict: async () =>
      defineConnector({
        summary: 'Knows two credentials and needs a setting',
        settings: z.strictObject({ target: z.string().min(1).describe('Where to.') }),
        credentials: { required: ['token'], optional: ['realm'] },
        review: ({ target }, names) => ({
          problems:
            target === 'realm' && !names.has('realm')
              ? [{ path: ['config', 'target'], message: 'needs a realm' }]
              : [],
          warnings: target === 'old' ? [{ path: ['config', 'target'], message: 'is old' }] : [],
        }),
        open: never,
      }),
  },
  providers: {
    ...providers,
    safe: async () =>
      defineProvider({
        summary: 'Needs an address',
        reference: 'a number',
        settings: z.strictObject({
          address: z.string().min(1),
          auth: z
            .discriminatedUnion('method', [
              z.strictObject({ method: z.literal('token'), token: z.string() }),
              z.strictObject({ method: z.literal('none') }),
            ])
            .optional(),
        }),
        checkReference: (reference) => (/^\d+$/.test(reference) ? undefined : 'must be a number'),
        open: never,
      }),
  },
};

export type Files = Readonly<Record<string, string | Buffer>>;

/** Writes files into a folder of their own and reads them as a configuration, with nothing of this machine's environment. */
export async function readFiles(
  files: Files,
  paths: readonly string[] = Object.keys(files),
  context: LoadContext = {},
): Promise<Reading> {
  const folder = await mkdtemp(join(tmpdir(), 'postern-config-'));
  try {
    for (const [name, text] of Object.entries(files)) {
      await mkdir(dirname(join(folder, name)), { recursive: true });
      await writeFile(join(folder, name), text);
    }
    return await readConfig(paths, {
      environment: { HOME: join(folder, 'home') },
      folder,
      systemFolder: join(folder, 'etc'),
      ...tables,
      ...context,
    });
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** One file named `c.yaml`. */
export function readText(text: string | Buffer, context: LoadContext = {}): Promise<Reading> {
  return readFiles({ 'c.yaml': text }, ['c.yaml'], context);
}

/** The lines that a person would see. */
export function lines(found: Reading['problems']): string[] {
  return found.map(formatProblem);
}

/** A whole file around the lines of one service, which begin in line 4. */
export function serviceFile(...settings: readonly string[]): string {
  return ['version: 2', 'services:', '  db:', ...settings.map((line) => `    ${line}`), ''].join('\n');
}

/** A service without anything wrong. */
export const goodService = [
  'connector: postgres',
  'listenOn: tcp://127.0.0.1:5432',
  'credentials: { username: { from: env, get: PGUSER }, password: { from: env, get: PGPASSWORD } }',
  'config: { host: db.internal }',
];
