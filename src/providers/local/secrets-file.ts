import { isUtf8 } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import { type FileHandle, mkdir, open, readFile, realpath, rename, stat, unlink } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { decodeBase64, encodeBase64 } from '../../core/bytes.ts';
import { PosternError, reasonOf } from '../../core/errors.ts';
import { JsonBytes, jsonObject } from '../../core/json-bytes.ts';
import { untilAborted, whyAborted } from '../deadline.ts';
import type { KeychainItems } from '../keychain.ts';
import { readSecretFile, type SecretFile, withoutLineEnd } from '../secret-file.ts';
import {
  type AgeKey,
  IdentityKey,
  isArmored,
  maxPlaintext,
  newIdentityFile,
  openSealed,
  PassphraseKey,
  StretchedKeys,
  seal,
  toArmor,
} from './age.ts';
import type { Places } from './places.ts';

/** How long a change waits for another one to end, in milliseconds. */
const lockPatience = 10_000;

/** What was sealed in the file: a JSON object of names and values. Wiped when it is disposed of. */
export class Opened implements Disposable {
  readonly changedAt: Date;
  readonly #text: Buffer;
  readonly #values: ReadonlyMap<string, JsonBytes>;

  /** Takes ownership of `text`. Throws PROVIDER_FAILED when it is something else, with `text` wiped. */
  constructor(text: Buffer, changedAt: Date) {
    this.#text = text;
    this.changedAt = changedAt;
    try {
      const json = JsonBytes.parse(text);
      if (json.kind !== 'object') throw new PosternError('PROVIDER_FAILED', 'another value');
      this.#values = new Map(json.entries());
    } catch (thrown) {
      text.fill(0);
      const { message } = PosternError.from(thrown);
      throw new PosternError('PROVIDER_FAILED', `it holds no JSON object of names and values: ${message}`);
    }
  }

  names(): string[] {
    return [...this.#values.keys()].toSorted();
  }

  /** A copy of a value, which the caller wipes; undefined when there is none. */
  value(name: string): Buffer | undefined {
    const found = this.#values.get(name);
    const encoded = found?.kind === 'object' ? found.get('base64') : undefined;
    if (!encoded) return found?.copy();
    const text = encoded.copy();
    const bytes = decodeBase64(text);
    text.fill(0);
    if (!bytes) throw new PosternError('PROVIDER_FAILED', 'not valid base64');
    return bytes;
  }

  /** The text with one value replaced, or taken out when it is undefined; the others as they are. The caller wipes it. */
  with(name: string, value: Buffer | undefined): Buffer {
    const parts: Buffer[] = [];
    const add = (key: string, written: Buffer) =>
      parts.push(Buffer.from(`${parts.length === 0 ? '{' : ','}\n${JSON.stringify(key)}:`), written);
    for (const [key, json] of this.#values) if (key !== name) add(key, json.written());
    const own = value && asJson(value);
    if (own) add(name, own);
    parts.push(Buffer.from(parts.length === 0 ? '{}\n' : '\n}\n'));
    const text = Buffer.concat(parts);
    own?.fill(0);
    return text;
  }

  [Symbol.dispose](): void {
    this.#text.fill(0);
  }
}

/** A text as a string of JSON; any other bytes as `{"base64": "..."}`. */
function asJson(value: Buffer): Buffer {
  const text = isUtf8(value) ? value : encodeBase64(value);
  const object = jsonObject({ base64: text });
  if (text !== value) {
    text.fill(0);
    return object;
  }
  // The string alone, without `{"base64":` and `}`.
  const string = Buffer.concat([object.subarray('{"base64":'.length, -1)]);
  object.fill(0);
  return string;
}

/** A file of secrets that age has sealed. Nothing of its plaintext is kept between two questions. */
export class SecretsFile {
  readonly #places: Places;
  readonly #keychain: KeychainItems;
  readonly #stretched = new StretchedKeys();

  constructor(places: Places, keychain: KeychainItems) {
    this.#places = places;
    this.#keychain = keychain;
  }

  /** Opens the file. Throws PROVIDER_FAILED, with the file or the key that is at fault. */
  async open(signal: AbortSignal): Promise<Opened> {
    const { file } = this.#places;
    const sealed = await this.#readSealed(signal);
    if (!sealed) {
      const text = `there is no file "${file}"; \`postern secret set NAME\` makes it`;
      throw new PosternError('PROVIDER_FAILED', text);
    }
    using key = await this.#readKey(signal);
    return await this.#unseal(sealed, key, signal);
  }

  /**
   * Sets a value, or removes it when it is undefined, with no other change between the reading and the writing.
   * Returns whether there was one before. The first one makes the file, and its identity where there is none.
   */
  async change(name: string, value: Buffer | undefined, signal: AbortSignal): Promise<boolean> {
    const file = await realpath(this.#places.file).catch(() => this.#places.file);
    try {
      await mkdir(dirname(file), { recursive: true, mode: 0o700 });
    } catch (thrown) {
      throw new PosternError('PROVIDER_FAILED', `folder "${dirname(file)}": ${reasonOf(thrown)}`);
    }
    await using _lock = await takeLock(`${file}.lock`, signal);
    const sealed = await this.#readSealed(signal);
    if (!sealed) await this.#makeIdentity();
    using key = await this.#readKey(signal);
    using before = sealed
      ? await this.#unseal(sealed, key, signal)
      : new Opened(Buffer.from('{}'), new Date());
    const existed = before.names().includes(name);
    if (!existed && value === undefined) return false;
    const text = before.with(name, value);
    try {
      if (text.length > maxPlaintext)
        throw new PosternError('PROVIDER_FAILED', `the secrets in "${file}" would be larger than 512 KiB`);
      const binary = await seal(text, key);
      await replaceFile(file, sealed && isArmored(sealed.bytes) ? await toArmor(binary) : binary);
    } finally {
      text.fill(0);
    }
    return existed;
  }

  /** Forgets the key that was stretched from a passphrase. */
  close(): void {
    this.#stretched[Symbol.dispose]();
  }

  /** undefined: there is no such file. */
  async #readSealed(signal: AbortSignal): Promise<SecretFile | undefined> {
    const { file } = this.#places;
    const status = await stat(file).catch((thrown: unknown) => reasonOf(thrown));
    if (status === 'ENOENT' || status === 'ENOTDIR') return undefined;
    return await readSecretFile(file, signal);
  }

  async #unseal({ bytes, changedAt }: SecretFile, key: AgeKey, signal: AbortSignal): Promise<Opened> {
    const { file } = this.#places;
    const opening = openSealed(bytes, key);
    try {
      return new Opened(await untilAborted(opening, signal, `opening "${file}"`), changedAt);
    } catch (thrown) {
      void opening.then(
        (late) => late.fill(0),
        () => undefined,
      );
      if (signal.aborted) throw thrown;
      const { code, message } = PosternError.from(thrown);
      throw new PosternError(code, `file "${file}": ${message}`);
    }
  }

  async #readKey(signal: AbortSignal): Promise<AgeKey> {
    const { key } = this.#places;
    const place = key.kind === 'keychain' ? `keychain item "${key.item}"` : `file "${key.file}"`;
    const bytes =
      key.kind === 'keychain'
        ? await this.#keychain.read(key.item, signal)
        : await readOwnFile(key.file, signal);
    try {
      if (key.kind === 'passphrase') {
        const passphrase = Buffer.concat([withoutLineEnd(bytes)]);
        return new PassphraseKey(passphrase, this.#stretched);
      }
      return await IdentityKey.from(bytes);
    } catch (thrown) {
      const { code, message } = PosternError.from(thrown);
      throw new PosternError(code, `${place}: ${message}`);
    } finally {
      bytes.fill(0);
    }
  }

  /** An identity that is there already, perhaps of another file, is used as it is. */
  async #makeIdentity(): Promise<void> {
    const { key } = this.#places;
    if (key.kind !== 'identity') return;
    const text = await newIdentityFile();
    try {
      await mkdir(dirname(key.file), { recursive: true, mode: 0o700 });
      await using file = await open(key.file, 'wx', 0o600);
      await file.writeFile(text);
      await file.sync();
    } catch (thrown) {
      const reason = reasonOf(thrown);
      if (reason !== 'EEXIST')
        throw new PosternError('PROVIDER_FAILED', `file "${key.file}" cannot be made (${reason})`);
    } finally {
      text.fill(0);
    }
  }
}

/** A key that others may read is no key. */
async function readOwnFile(path: string, signal: AbortSignal): Promise<Buffer> {
  const { bytes, mode } = await readSecretFile(path, signal);
  if ((mode & 0o077) === 0) return bytes;
  bytes.fill(0);
  const seen = mode.toString(8).padStart(3, '0');
  throw new PosternError(
    'PROVIDER_FAILED',
    `file "${path}" can be used by others (mode ${seen}); give it mode 600`,
  );
}

/** The old file or the new one is there at every moment, also when the machine loses its power. */
async function replaceFile(path: string, content: Buffer): Promise<void> {
  const folder = dirname(path);
  const draft = join(folder, `.${basename(path)}.${randomBytes(6).toString('hex')}`);
  try {
    {
      await using file = await open(draft, 'wx', 0o600);
      await file.writeFile(content);
      await file.sync();
    }
    await rename(draft, path);
    await using opened = await open(folder, 'r');
    // Not every file system can.
    await opened.sync().catch(() => undefined);
  } catch (thrown) {
    await unlink(draft).catch(() => undefined);
    throw new PosternError('PROVIDER_FAILED', `file "${path}" cannot be written (${reasonOf(thrown)})`);
  }
}

/** Keeps others from changing the file; the lock of a process that is dead is taken away. */
async function takeLock(path: string, signal: AbortSignal): Promise<AsyncDisposable> {
  const own = `${process.pid} ${hostname()} ${randomBytes(6).toString('hex')}\n`;
  const end = performance.now() + lockPatience;
  for (;;) {
    let file: FileHandle | undefined;
    try {
      file = await open(path, 'wx', 0o600);
      await file.writeFile(own);
      return { [Symbol.asyncDispose]: () => unlink(path).catch(() => undefined) };
    } catch (thrown) {
      const reason = reasonOf(thrown);
      if (reason !== 'EEXIST')
        throw new PosternError('PROVIDER_FAILED', `file "${path}" cannot be made (${reason})`);
    } finally {
      await file?.close();
    }
    const holder = await readFile(path, 'utf8').catch(() => undefined);
    if (holder !== undefined && isDead(holder)) await takeAway(path, holder);
    else if (performance.now() > end) {
      const text = `another \`postern secret\` is changing the file; if none is running, remove "${path}"`;
      throw new PosternError('PROVIDER_FAILED', text);
    }
    await delay(20, undefined, { signal }).catch(() => {
      throw whyAborted(signal, 'waiting for the lock');
    });
  }
}

function isDead(holder: string): boolean {
  const [, pid, machine] = /^(\d+) (\S+) \S+\n$/.exec(holder) ?? [];
  if (pid === undefined || machine !== hostname()) return false;
  try {
    process.kill(Number(pid), 0);
    return false;
  } catch (thrown) {
    return reasonOf(thrown) === 'ESRCH';
  }
}

/** Only one of those who found it dead gets to rename it; what it got by then may be another's new lock. */
async function takeAway(path: string, holder: string): Promise<void> {
  const aside = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    await rename(path, aside);
    if ((await readFile(aside, 'utf8')) === holder) await unlink(aside);
    else await rename(aside, path);
  } catch {
    // Another was faster.
  }
}
