import { closeSync, constants, fstatSync, openSync, readSync, type Stats, statSync } from 'node:fs';
import { open, stat, statfs } from 'node:fs/promises';

import { copyOf } from '../core/bytes.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { refuseAborted, untilAborted } from './deadline.ts';

/** More than any secret needs; a path that names a log or a disk image by mistake is refused. */
const maxBytes = 1024 * 1024;
const flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;

/** File systems of this machine's memory and disks, by the magic numbers of statfs(2): no other machine has to answer. */
const ownFileSystems: ReadonlySet<number> = new Set([
  0x01021994, // tmpfs: Kubernetes secrets, /run
  0x858458f6, // ramfs
  0x794c7630, // overlayfs
  0xef53, // ext2 to ext4
  0x58465342, // XFS
  0x9123683e, // Btrfs
]);

/** A file's content, which the caller wipes, and when it was last changed. */
export interface SecretFile {
  readonly bytes: Buffer;
  readonly changedAt: Date;
  /** Permissions, as in `ls -l`: 0o600. */
  readonly mode: number;
}

/**
 * Reads a small regular file. The path is resolved anew each time, so a Kubernetes volume's symlink swap is seen,
 * and one open descriptor is read to its end, so the content is of one version.
 */
export async function readSecretFile(path: string, signal: AbortSignal): Promise<SecretFile> {
  refuseAborted(signal);
  const read = readRegularFile(path);
  try {
    return await untilAborted(read, signal, `reading the file "${path}"`);
  } catch (thrown) {
    // A file system that hangs (NFS) may still answer: nobody else would wipe what it says.
    void read.then(
      (late) => late.bytes.fill(0),
      () => undefined,
    );
    throw thrown;
  }
}

/** Cuts the line ends at the end, which editors and `echo` add and no password has; the rest stays in place. */
export function withoutLineEnd(bytes: Buffer): Buffer {
  let end = bytes.length;
  while (end > 0 && (bytes[end - 1] === 0x0a || bytes[end - 1] === 0x0d)) end--;
  return bytes.subarray(0, end);
}

/**
 * Six calls in the thread pool take a login more time than its cryptography. So only the first goes there, which may hang in
 * a file system of the network; where it says that the file is on this machine, the others are made here, in microseconds.
 */
async function readRegularFile(path: string): Promise<SecretFile> {
  try {
    const { type } = await statfs(path);
    return ownFileSystems.has(type) ? readAtOnce(path) : await readPatiently(path);
  } catch (thrown) {
    if (thrown instanceof PosternError) throw thrown;
    throw new PosternError('PROVIDER_FAILED', `file "${path}": ${explain(reasonOf(thrown))}`);
  }
}

// Both look at a file before they open it: opening a device can have effects, and a FIFO would wait for its writer.

function readAtOnce(path: string): SecretFile {
  refuseUnlessRegular(path, statSync(path));
  const fd = openSync(path, flags);
  try {
    const status = fstatSync(fd);
    refuseUnlessRegular(path, status);
    using content = new Content(path, status.size);
    let more = true;
    while (more) more = content.grew(readSync(fd, content.room, 0, content.room.length, content.length));
    return fileOf(content, status);
  } finally {
    closeSync(fd);
  }
}

async function readPatiently(path: string): Promise<SecretFile> {
  refuseUnlessRegular(path, await stat(path));
  const file = await open(path, flags);
  try {
    const status = await file.stat();
    refuseUnlessRegular(path, status);
    using content = new Content(path, status.size);
    let more = true;
    while (more) {
      const { bytesRead } = await file.read(content.room, 0, content.room.length, content.length);
      more = content.grew(bytesRead);
    }
    return fileOf(content, status);
  } finally {
    await file.close();
  }
}

function fileOf(content: Content, { mtime, mode }: Stats): SecretFile {
  return { bytes: content.copy(), changedAt: mtime, mode: mode & 0o777 };
}

function refuseUnlessRegular(path: string, status: Stats): void {
  const kind = status.isDirectory()
    ? 'a folder'
    : status.isFIFO()
      ? 'a FIFO'
      : status.isSocket()
        ? 'a socket'
        : status.isFile()
          ? undefined
          : 'a device';
  if (kind) throw new PosternError('PROVIDER_FAILED', `"${path}" is ${kind}, not a file`);
  if (status.size > maxBytes) throw tooLarge(path);
}

/** What was read of a file. A size of 0 says nothing (procfs), and a file may grow: its end is where a read finds nothing. */
class Content implements Disposable {
  readonly #path: string;
  #buffer: Buffer;
  #length = 0;

  constructor(path: string, size: number) {
    this.#path = path;
    this.#buffer = Buffer.allocUnsafe(size + 1);
  }

  get length(): number {
    return this.#length;
  }

  /** Where the next bytes go. */
  get room(): Buffer {
    return this.#buffer.subarray(this.#length);
  }

  /** So many were read; whether to read on. */
  grew(count: number): boolean {
    this.#length += count;
    if (this.#length > maxBytes) throw tooLarge(this.#path);
    if (this.#length === this.#buffer.length) {
      const larger = Buffer.allocUnsafe(maxBytes + 1);
      this.#buffer.copy(larger);
      this.#buffer.fill(0);
      this.#buffer = larger;
    }
    return count > 0;
  }

  copy(): Buffer {
    return copyOf(this.#buffer, 0, this.#length);
  }

  [Symbol.dispose](): void {
    this.#buffer.fill(0);
  }
}

function tooLarge(path: string): PosternError {
  return new PosternError('PROVIDER_FAILED', `file "${path}" is larger than 1 MiB`);
}

function explain(reason: string): string {
  if (reason === 'ENOENT' || reason === 'ENOTDIR') return 'there is no such file';
  if (reason === 'EACCES' || reason === 'EPERM') return 'permission denied';
  if (reason === 'ELOOP') return 'its symbolic links go in a circle';
  return `cannot be read (${reason})`;
}
