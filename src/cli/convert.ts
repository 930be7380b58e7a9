import { readFile, stat } from 'node:fs/promises';

import { convert as convertDocuments, type SourceDocument } from '../config/convert.ts';
import { formatPath } from '../config/report.ts';
import { parseYaml } from '../config/yaml.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { exitCodes } from './exit-codes.ts';
import { parseWords, UsageError } from './options.ts';

/** The flags of `postern convert`. */
export const convertFlags = { to: { type: 'string' } } as const;

const forms = ['file', 'crd'] as const;

/** No configuration is longer. */
const LARGEST_FILE = 1024 * 1024;

/**
 * `postern convert FILE...`: prints files of Secretless, of version 2 or 1, and its resources in Kubernetes, as one
 * configuration of Postern, or with `--to crd` as a resource for the cluster. Ends with 1 when something could not be taken over, which is said beside it.
 */
export async function convert(words: readonly string[]): Promise<number> {
  const { positionals, values } = parseWords(words, convertFlags);
  const form = forms.find((each) => each === (values.to ?? 'file'));
  if (form === undefined) throw new UsageError(`--to must be one of ${forms.join(', ')}`);
  if (positionals.length === 0) throw new UsageError('`postern convert` takes files of Secretless');
  const documents: SourceDocument[] = [];
  for (const file of positionals) documents.push(...parse(file, await read(file)));
  const { text, leftOut } = convertDocuments(documents, form);
  process.stdout.write(text);
  for (const line of leftOut) process.stderr.write(`postern: ${line}\n`);
  return leftOut.length > 0 ? exitCodes.configuration : exitCodes.clean;
}

async function read(file: string): Promise<string> {
  try {
    const { size } = await stat(file);
    if (size > LARGEST_FILE)
      throw new PosternError('CONFIG_INVALID', `${file} is larger than 1 MiB, which no configuration is`);
    return await readFile(file, 'utf8');
  } catch (cause) {
    if (cause instanceof PosternError) throw cause;
    throw new PosternError('CONFIG_INVALID', `cannot read ${file} (${reasonOf(cause)})`, { cause });
  }
}

/** A file of manifests has several documents; nothing but their separator begins with three dashes at a line's start. */
function parse(file: string, text: string): SourceDocument[] {
  const documents: SourceDocument[] = [];
  const problems: string[] = [];
  let line = 0;
  for (const part of text.split(/^---(?=\s|$)/m)) {
    const { tree, faults } = parseYaml(part);
    for (const { at, path, message } of faults) {
      const where = formatPath(path);
      problems.push(`${file}:${line + at.line}:${at.column}: ${where === '' ? '' : `${where}: `}${message}`);
    }
    if (tree && tree.kind === 'map') documents.push({ where: file, tree });
    line += part.split('\n').length - 1;
  }
  if (problems.length > 0) throw new PosternError('CONFIG_INVALID', problems.join('\n'));
  if (documents.length === 0) throw new PosternError('CONFIG_INVALID', `${file} holds no configuration`);
  return documents;
}
