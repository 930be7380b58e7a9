import type { Stats } from 'node:fs';
import { constants } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';

import { copyOf } from '../core/bytes.ts';
import { PosternError, reasonOf } from '../core/errors.ts';
import { refuseAborted, untilAborted } from './deadline.ts';

/** More than any secret needs; a path that names a log or a disk image by mistake is refused. */
const maxBytes = 1024 * 1024;

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

async function readRegularFile(path: string): Promise<SecretFile> {
  let file: FileHandle | undefined;
  try {
    // Looked at before it is opened: opening a device can have effects, and a FIFO would wait for its writer.
    refuseUnlessRegular(path, await stat(path));
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    const status = await file.stat();
    refuseUnlessRegular(path, status);
    const bytes = await readToEnd(path, file, status.size);
    return { bytes, changedAt: status.mtime, mode: status.mode & 0o777 };
  } catch (thrown) {
    if (thrown instanceof PosternError) throw thrown;
    throw new PosternError('PROVIDER_FAILED', `file "${path}": ${explain(reasonOf(thrown))}`);
  } finally {
    await file?.close();
  }
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

/** A size of 0 says nothing (procfs), and a file may grow while it is read: its end is where a read finds nothing. */
async function readToEnd(path: string, file: FileHandle, size: number): Promise<Buffer> {
  let buffer: Buffer = Buffer.allocUnsafe(size + 1);
  let length = 0;
  try {
    for (;;) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length, length);
      length += bytesRead;
      if (length > maxBytes) throw tooLarge(path);
      if (bytesRead === 0) return copyOf(buffer, 0, length);
      if (length === buffer.length) {
        const larger = Buffer.allocUnsafe(maxBytes + 1);
        buffer.copy(larger);
        buffer.fill(0);
        buffer = larger;
      }
    }
  } finally {
    buffer.fill(0);
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
