import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';

/** Inputs that once broke a target, by file name. */
export function savedInputs(target: string, folder = defaultFolder): Map<string, Buffer> {
  const url = new URL(`${target}/`, folder);
  if (!existsSync(url)) return new Map();
  const names = readdirSync(url).sort();
  return new Map(names.map((name) => [name, readFileSync(new URL(name, url))]));
}

/** Keeps an input under a name made of its contents, so that the same one is kept once. Returns that name. */
export function saveInput(target: string, input: Uint8Array, folder = defaultFolder): string {
  const url = new URL(`${target}/`, folder);
  mkdirSync(url, { recursive: true });
  const name = createHash('sha256').update(input).digest('hex').slice(0, 16);
  writeFileSync(new URL(name, url), input);
  return name;
}

const defaultFolder = new URL('./corpus/', import.meta.url);
