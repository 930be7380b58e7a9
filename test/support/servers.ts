import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { OpenBao, OpenBaoInfo, PrivateOpenBao } from './servers/openbao.ts';
import { openBao, startLocalOpenBao, startPrivateOpenBao } from './servers/openbao.ts';
import { alive, answers, mark, type ProcessMark, Unavailable } from './servers/process.ts';
import { discard, home, readRecord, registerUser, type ServerRecord, withLock } from './servers/state.ts';

export { canary } from './servers/canary.ts';
export type { Certificates, Leaf, ServerCertificate } from './servers/certificates.ts';
export { certificates } from './servers/certificates.ts';
export type { OpenBao, PrivateOpenBao } from './servers/openbao.ts';
export { Unavailable } from './servers/process.ts';

/** What each server tells a test. */
export interface Servers {
  readonly openbao: OpenBao;
}

export type ServerName = keyof Servers;

/** Every server there is, in the order in which it pays to start them. */
export const serverNames: readonly ServerName[] = ['openbao'];

interface Source<Info> {
  readonly start: (name: string) => Promise<Info>;
  /** Makes what `start` gave out of what the record kept of it. */
  readonly recall: (info: unknown) => Info;
}

const local: { readonly [Name in ServerName]: Source<Servers[Name]> } = {
  openbao: { start: startLocalOpenBao, recall: (info) => openBao(info as OpenBaoInfo) },
};

const asked = new Map<ServerName, Promise<unknown>>();

/**
 * A running server, shared with every other test process of this user: started (and installed) by whoever asks first,
 * ended some time after the last one has gone. Throws `Unavailable`, saying what to install, where it cannot be had;
 * in CI (`CI=true`) that is a failure like any other.
 */
export function server<Name extends ServerName>(name: Name): Promise<Servers[Name]> {
  let answer = asked.get(name);
  if (!answer) asked.set(name, (answer = obtain(name)));
  return answer as Promise<Servers[Name]>;
}

/** The server, or undefined after marking the test as skipped with the reason. */
export async function withServer<Name extends ServerName>(
  t: TestContext,
  name: Name,
): Promise<Servers[Name] | undefined> {
  try {
    return await server(name);
  } catch (error) {
    if (!(error instanceof Unavailable) || process.env['CI'] === 'true') throw error;
    t.skip(`${name} is not here: ${error.message}`);
    return undefined;
  }
}

async function obtain<Name extends ServerName>(name: Name): Promise<Servers[Name]> {
  registerUser();
  ensureKeeper();
  return withLock(name, async () => {
    const record = await readRecord(name);
    const source = local[name];
    if (record && (await usable(record))) return source.recall(record.info);
    await discard(name);
    try {
      return await source.start(name);
    } catch (error) {
      await discard(name);
      throw error;
    }
  });
}

async function usable(record: ServerRecord): Promise<boolean> {
  if (!record.ready || (record.process && !alive(record.process))) return false;
  return answers(record.port);
}

function ensureKeeper(): void {
  try {
    const keeper = JSON.parse(readFileSync(join(home(), 'keeper.pid'), 'utf8')) as ProcessMark;
    if (alive(keeper)) return;
  } catch {
    // None has run yet.
  }
  const script = fileURLToPath(new URL('./servers/keeper.ts', import.meta.url));
  spawn(process.execPath, [script], { detached: true, stdio: 'ignore', cwd: home() }).unref();
}

let privates = 0;

function privateName(kind: string): string {
  registerUser();
  ensureKeeper();
  privates += 1;
  return `${kind}-${process.pid}-${privates}`;
}

/** An OpenBao of this test alone, which it may seal, kill and restart. Stop it in `after`. */
export async function startOpenBao(): Promise<PrivateOpenBao> {
  const name = privateName('openbao');
  return startPrivateOpenBao(name, mark(process.pid));
}
