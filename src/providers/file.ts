import * as z from 'zod';

import { copyOf } from '../core/bytes.ts';
import { PosternError } from '../core/errors.ts';
import { JsonBytes } from '../core/json-bytes.ts';
import { Secret } from '../core/secret.ts';
import { refuseAborted } from './deadline.ts';
import { defineProvider, type Grant } from './provider.ts';
import { readSecretFile, type SecretFile, withoutLineEnd } from './secret-file.ts';

const settings = z.strictObject({
  trim: z
    .boolean()
    .default(false)
    .describe(
      'Whether to cut the line end at the end of a file. Without it the value is every byte of the file.',
    ),
});

/** Files, read anew for each login: mounted secrets, and what an agent writes. */
export const file = defineProvider({
  summary: 'A file, or a field of a JSON file, read anew for each login.',
  reference:
    '`path`, or `path#field` for a field of a JSON object (`path#database.password` for a nested one).',
  settings,
  checkReference(reference) {
    const { path, field } = split(reference);
    if (path === '') return 'the path of the file is missing';
    if (path.includes('\0')) return 'a path has no NUL in it';
    if (field === '') return 'the name of the field after "#" is missing';
    return undefined;
  },
  open({ trim }, context) {
    return {
      async fetch(references, signal) {
        refuseAborted(signal);
        const files = new Map<string, SecretFile>();
        const secrets: Secret[] = [];
        try {
          for (const reference of references) {
            const { path, field } = split(reference);
            const { bytes } = files.get(path) ?? (await remember(files, path, signal));
            secrets.push(new Secret(field === undefined ? whole(bytes, trim) : member(bytes, field)));
          }
          return { secrets, ...version(files) };
        } catch (thrown) {
          for (const secret of secrets) secret.wipe();
          const { code, message } = PosternError.from(thrown);
          const reference = references[secrets.length] ?? '';
          throw new PosternError(
            code,
            `provider "${context.name}": "${reference}" is not readable: ${message}`,
          );
        } finally {
          for (const { bytes } of files.values()) bytes.fill(0);
        }
      },
      check: async () => undefined,
      close: async () => undefined,
    };
  },
});

function split(reference: string): { path: string; field: string | undefined } {
  const hash = reference.indexOf('#');
  if (hash === -1) return { path: reference, field: undefined };
  return { path: reference.slice(0, hash), field: reference.slice(hash + 1) };
}

/** One read for all references into a file: a user name and its password are never of two versions. */
async function remember(
  files: Map<string, SecretFile>,
  path: string,
  signal: AbortSignal,
): Promise<SecretFile> {
  const read = await readSecretFile(path, signal);
  files.set(path, read);
  return read;
}

function whole(bytes: Buffer, trim: boolean): Buffer {
  return copyOf(trim ? withoutLineEnd(bytes) : bytes);
}

function member(bytes: Buffer, field: string): Buffer {
  const value = JsonBytes.parse(bytes).find(field);
  if (!value) throw new PosternError('PROVIDER_FAILED', `the file has no field "${field}"`);
  return value.copy();
}

function version(files: ReadonlyMap<string, SecretFile>): Pick<Grant, 'version'> {
  const [first, ...others] = files.values();
  return first && others.length === 0 ? { version: first.changedAt.toISOString() } : {};
}
