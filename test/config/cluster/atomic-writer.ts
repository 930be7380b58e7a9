import { mkdir, readlink, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

let versions = 0;

/**
 * Writes a folder as the kubelet does for a volume of a ConfigMap (pkg/volume/util/atomic_writer.go): a new folder with a
 * timestamp for a name, the link `..data_tmp` to it, renamed over `..data`; links with the names of the files lead through `..data`.
 */
export class AtomicWriter {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  async write(files: Readonly<Record<string, string>>): Promise<void> {
    versions += 1;
    const data = join(this.#folder, '..data');
    const old = await readlink(data).catch(() => undefined);
    const fresh = `..2026_11_21_17_00_00.${String(versions).padStart(9, '0')}`;
    await mkdir(join(this.#folder, fresh), { mode: 0o755 });
    for (const [name, text] of Object.entries(files)) await writeFile(join(this.#folder, fresh, name), text);
    await symlink(fresh, join(this.#folder, '..data_tmp'));
    await rename(join(this.#folder, '..data_tmp'), data);
    for (const name of Object.keys(files))
      await symlink(join('..data', name), join(this.#folder, name)).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw error;
      });
    if (old !== undefined) await rm(join(this.#folder, old), { recursive: true });
  }
}
