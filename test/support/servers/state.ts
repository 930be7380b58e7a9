import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { chmod, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { alive, end, mark, type ProcessMark } from './process.ts';

/**
 * What the test processes of one user know together:
 *
 *   NAME.json     one server: its process, how to end it, what tests need to know (mode 0600: tokens are in it)
 *   NAME.lock     held while somebody starts or stops it
 *   NAME/         its data, sockets and log
 *   users/PID     somebody uses the servers; they are stopped some time after the last one has gone
 *   keep          do not stop them at all
 */
export interface ServerRecord {
  readonly process?: ProcessMark;
  /** Id of a Docker container, in place of a process. */
  readonly container?: string;
  readonly endSignal?: NodeJS.Signals;
  /** A private server goes when its owner has gone. */
  readonly owner?: ProcessMark;
  /** False from the moment the process exists until it is ready for tests. */
  readonly ready: boolean;
  readonly port: number;
  readonly info: unknown;
  /** What started it; a server that other code has started may lack a role or say other things about itself. */
  readonly recipe?: string;
}

const here = import.meta.dirname;

/** Identifies the code that starts servers. */
export const recipe = fingerprint();

function fingerprint(): string {
  const hash = createHash('sha256');
  const files = readdirSync(here, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name));
  for (const file of files.sort()) hash.update(readFileSync(file));
  return hash.digest('hex');
}

let verified: string | undefined;

/** The folder of all state. Others may pass through it (servers run as another user), but only its owner may list or change it. */
export function home(): string {
  if (verified) return verified;
  const uid = process.getuid?.() ?? 0;
  // Two checkouts do not share: each would end the servers of the other, whose recipe it does not know.
  const checkout = createHash('sha256').update(here).digest('hex').slice(0, 6);
  const folder = process.env['POSTERN_TEST_HOME'] ?? join(tmpdir(), `postern-servers-${uid}-${checkout}`);
  mkdirSync(folder, { recursive: true, mode: 0o711 });
  // The name is predictable and the parent is everyone's: whoever made it first could read our keys and lend us servers.
  if (statSync(folder).uid !== uid) throw new Error(`${folder} belongs to someone else`);
  mkdirSync(join(folder, 'users'), { recursive: true, mode: 0o700 });
  verified = folder;
  return folder;
}

/** Where downloaded and built things stay between runs; whether there is anything yet is another question. */
export function cachePath(name: string): string {
  return join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'postern', name);
}

/** The same folder, made where it was missing. */
export async function cache(name: string): Promise<string> {
  const folder = cachePath(name);
  await mkdir(folder, { recursive: true });
  return folder;
}

/** A new, empty folder for one server's files. */
export async function freshFolder(name: string): Promise<string> {
  const folder = join(home(), name);
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder);
  await chmod(folder, 0o711);
  return folder;
}

/**
 * Runs `use` while no other process runs under the same name. The lock is SQLite's own on an empty file, so the
 * kernel lets go of it when its holder is killed: there are no stale locks to guess about.
 */
export async function withLock<T>(name: string, use: () => Promise<T>, patience = 300_000): Promise<T> {
  const database = new DatabaseSync(join(home(), `${name}.lock`));
  try {
    const deadline = Date.now() + patience;
    while (!tryLock(database)) {
      if (Date.now() > deadline)
        throw new Error(`another process has been starting ${name} for ${patience / 60_000} minutes`);
      await sleep(40);
    }
    return await use();
  } finally {
    database.close();
  }
}

/** Holds a lock until the process ends; false when another process holds it. */
export function lockForLife(name: string): DatabaseSync | undefined {
  const database = new DatabaseSync(join(home(), `${name}.lock`));
  if (tryLock(database)) return database;
  database.close();
  return undefined;
}

function tryLock(database: DatabaseSync): boolean {
  try {
    database.exec('BEGIN EXCLUSIVE');
    return true;
  } catch (error) {
    const busy = 5;
    if ((error as { errcode?: number }).errcode === busy) return false;
    throw error;
  }
}

const recordPath = (name: string) => join(home(), `${name}.json`);

/** The record of a server, if there is one. */
export async function readRecord(name: string): Promise<ServerRecord | undefined> {
  try {
    return JSON.parse(await readFile(recordPath(name), 'utf8')) as ServerRecord;
  } catch {
    return undefined;
  }
}

/** Writes a record; a reader sees the old one or the new one, never half of one. */
export async function writeRecord(name: string, record: ServerRecord): Promise<void> {
  const draft = `${recordPath(name)}.${process.pid}`;
  await writeFile(draft, JSON.stringify({ ...record, recipe }), { mode: 0o600 });
  await rename(draft, recordPath(name));
}

/** Ends a server and removes what it left. The caller holds its lock, or owns it. */
export async function discard(name: string): Promise<void> {
  const record = await readRecord(name);
  if (record?.process) await end(record.process, record.endSignal);
  if (record?.container) await (await import('./docker.ts')).removeContainer(record.container);
  await rm(join(home(), name), { recursive: true, force: true });
  await rm(recordPath(name), { force: true });
  if (record?.owner) await rm(join(home(), `${name}.lock`), { force: true });
}

/** Names of all servers that have a record. */
export async function recordNames(): Promise<string[]> {
  const files = await readdir(home());
  return files.filter((file) => file.endsWith('.json')).map((file) => file.slice(0, -'.json'.length));
}

let registered = false;

/** Says that this process uses the servers, until it ends. */
export function registerUser(): void {
  if (registered) return;
  registered = true;
  // Whole at once: a file that is there and still empty would look like that of a dead process.
  const draft = join(home(), `user-${process.pid}.new`);
  writeFileSync(draft, mark(process.pid).born);
  renameSync(draft, join(home(), 'users', String(process.pid)));
  process.once('exit', unregisterUser);
}

/** Says that this process does not use the servers any more. */
export function unregisterUser(): void {
  registered = false;
  rmSync(join(home(), 'users', String(process.pid)), { force: true });
}

/** Whether any living process uses the servers. */
export function inUse(): boolean {
  const folder = join(home(), 'users');
  let used = false;
  for (const pid of readdirSync(folder)) {
    try {
      if (alive({ pid: Number(pid), born: readFileSync(join(folder, pid), 'utf8') })) used = true;
      else rmSync(join(folder, pid), { force: true });
    } catch {
      // It unregistered itself between the two calls.
    }
  }
  return used;
}

/** Ends the private servers of processes that have gone. */
export async function sweepOrphans(): Promise<void> {
  for (const name of await recordNames()) {
    const record = await readRecord(name);
    if (record?.owner && !alive(record.owner)) await discard(name);
  }
}

/** Ends all shared servers, unless (with `onlyIdle`) somebody still uses them. */
export async function stopShared({ onlyIdle }: { readonly onlyIdle: boolean }): Promise<boolean> {
  await sweepOrphans();
  let stopped = true;
  const names = await recordNames();
  await Promise.all(
    names.map(async (name) => {
      const record = await readRecord(name);
      if (record?.owner) return;
      await withLock(name, async () => {
        // Users register before they take the lock: whoever is not seen here has not looked at the record yet.
        if (onlyIdle && inUse()) stopped = false;
        else await discard(name);
      });
    }),
  );
  return stopped;
}
