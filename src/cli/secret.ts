import { parseArgs } from 'node:util';
import { pino } from 'pino';

import { PosternError } from '../core/errors.ts';
import { checkKeychainItem, KeychainItems } from '../providers/keychain.ts';
import { checkName, placesOf } from '../providers/local/places.ts';
import { SecretsFile } from '../providers/local/secrets-file.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import { UsageError } from './options.ts';

/** No secret is longer than this. */
const longestValue = 64 * 1024;

const flags = {
  file: { type: 'string' },
  identity: { type: 'string' },
  'passphrase-file': { type: 'string' },
  keychain: { type: 'string' },
  raw: { type: 'boolean' },
} as const;

/**
 * `postern secret set NAME | list | rm NAME`: keeps the secrets of the provider `local`. There is no `get`: what is
 * printed stays in the scroll-back of a terminal, in the log of a CI job, in a shell's `$(...)`. A value is tried
 * with `postern check --connect`.
 */
export async function secret(words: readonly string[]): Promise<number> {
  const { values, positionals } = parse(words);
  const [action, name, ...more] = positionals;
  const given = [values.identity, values['passphrase-file'], values.keychain];
  if (given.filter((place) => place !== undefined).length > 1)
    throw new UsageError('give only one of --identity, --passphrase-file and --keychain');
  if (values.keychain !== undefined && checkKeychainItem(values.keychain) !== undefined)
    throw new UsageError('an item of the keychain is written SERVICE#ACCOUNT');
  if (action === 'get')
    throw new UsageError(
      'there is no `secret get`: what is printed stays where it was printed; try a value with `postern check --connect`',
    );
  if (action !== 'set' && action !== 'list' && action !== 'rm')
    throw new UsageError('say what to do: secret set NAME, secret list, or secret rm NAME');
  if (action === 'list' ? name !== undefined : name === undefined || more.length > 0)
    throw new UsageError(
      action === 'list'
        ? 'secret list takes no name'
        : `secret ${action} takes one name; a value is never an argument, since others see those`,
    );
  const fault = name === undefined ? undefined : checkName(name);
  if (fault !== undefined) throw new UsageError(fault);

  const context = { name: 'local', log: pino({ level: 'silent' }), environment: process.env };
  const keychain = new KeychainItems(context, { accountAttribute: 'account', timeout: 60_000 });
  const places = placesOf(
    {
      file: values.file,
      identityFile: values.identity,
      passphraseFile: values['passphrase-file'],
      keychain: values.keychain,
    },
    process.env,
  );
  const file = new SecretsFile(places, keychain);
  const { signal } = new AbortController();
  try {
    switch (action) {
      case 'list': {
        using opened = await file.open(signal);
        for (const each of opened.names()) process.stdout.write(`${each}\n`);
        return exitCodes.clean;
      }
      case 'set':
        return await set(name ?? '', file, values.raw ?? false, signal);
      case 'rm':
        if (await file.change(name ?? '', undefined, signal)) return exitCodes.clean;
        throw new PosternError('PROVIDER_FAILED', `there is no secret "${name}"`);
    }
  } catch (thrown) {
    if (!(thrown instanceof PosternError)) throw thrown;
    process.stderr.write(`postern: ${thrown.message}\n`);
    return thrown.code === 'INTERNAL' ? exitCodeOf(thrown.code) : exitCodes.configuration;
  } finally {
    file.close();
  }
}

async function set(name: string, file: SecretsFile, raw: boolean, signal: AbortSignal): Promise<number> {
  const value = process.stdin.isTTY ? await ask(name) : await readAll(raw);
  if (!value) return 128 + 2;
  try {
    if (value.length === 0)
      throw new PosternError('PROVIDER_FAILED', 'the value is empty; nothing was changed');
    const existed = await file.change(name, value, signal);
    process.stderr.write(`${existed ? 'replaced' : 'added'} ${name}\n`);
    return exitCodes.clean;
  } finally {
    value.fill(0);
  }
}

function parse(words: readonly string[]) {
  try {
    return parseArgs({ args: [...words], options: flags, allowPositionals: true });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : 'the command line cannot be understood');
  }
}

/** All of the standard input, without one line end at its end, which `echo` adds and no secret has. */
async function readAll(raw: boolean): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > longestValue) throw new PosternError('PROVIDER_FAILED', 'the value is longer than 64 KiB');
  }
  const all = Buffer.concat(chunks);
  for (const chunk of chunks) chunk.fill(0);
  if (raw || all.at(-1) !== 0x0a) return all;
  return all.subarray(0, all.at(-2) === 0x0d ? -2 : -1);
}

/** Asks twice on the terminal, without showing what is typed; undefined when the person gave up. */
async function ask(name: string): Promise<Buffer | undefined> {
  for (;;) {
    const first = await typed(`Value of ${name} (not shown): `);
    if (!first) return undefined;
    const second = await typed('Once more: ');
    if (!second) {
      first.fill(0);
      return undefined;
    }
    const same = first.equals(second);
    second.fill(0);
    if (same) return first;
    first.fill(0);
    process.stderr.write('These were not the same.\n');
  }
}

/** A line from the terminal, up to Enter; undefined for Ctrl-C, or Ctrl-D on an empty line. */
async function typed(prompt: string): Promise<Buffer | undefined> {
  const { stdin } = process;
  const line = Buffer.alloc(longestValue);
  let length = 0;
  const { promise, resolve } = Promise.withResolvers<Buffer | undefined>();
  const take = (chunk: Buffer) => {
    for (const [at, byte] of chunk.entries()) {
      if (byte === 0x0d || byte === 0x0a || (byte === 0x04 && length > 0)) {
        const rest = Buffer.concat([chunk.subarray(at + 1)]);
        end(Buffer.concat([line.subarray(0, length)]));
        // Pasted with its line end: what follows belongs to the next question.
        if (rest.length > 0) stdin.unshift(rest);
        return;
      }
      if (byte === 0x03 || byte === 0x04) return end(undefined);
      if (byte === 0x15) length = 0;
      else if (byte === 0x7f || byte === 0x08) length = withoutLastLetter(line, length);
      else if (length < line.length) line[length++] = byte;
    }
    chunk.fill(0);
  };
  const ended = () => end(undefined);
  const end = (value: Buffer | undefined) => {
    stdin.off('data', take);
    stdin.off('end', ended);
    stdin.pause();
    stdin.setRawMode(false);
    line.fill(0);
    process.stderr.write('\n');
    resolve(value);
  };
  process.stderr.write(prompt);
  stdin.setRawMode(true);
  stdin.on('data', take);
  stdin.on('end', ended);
  stdin.resume();
  return await promise;
}

/** A letter of UTF-8 may have several bytes: those that continue one begin with the bits 10. */
function withoutLastLetter(line: Buffer, length: number): number {
  let at = Math.max(0, length - 1);
  while (at > 0 && ((line[at] ?? 0) & 0xc0) === 0x80) at--;
  return at;
}
